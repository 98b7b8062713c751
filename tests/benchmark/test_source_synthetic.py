"""Rendered scenes as a source: the renderer's own depth and camera, in the benchmark's conventions."""

import io

import numpy as np
import pytest
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.sources.frames import SourceError
from depthvlm.benchmark.synthetic.samples import HELD_OUT
from depthvlm.benchmark.synthetic.scenes import render_scene
from PIL import Image


def test_frames_are_the_scenes():
    source = open_source("synthetic", ".")
    refs = source.index("test")
    assert len(refs) == 1000
    assert sum(ref.scene == "room" for ref in refs) == 500
    ref = next(ref for ref in refs if ref.id == f"street/{HELD_OUT + 3}")
    frame, scene = source.read(ref), render_scene(HELD_OUT + 3, kind="street")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(frame.image))), scene.image)
    assert np.array_equal(frame.metres(), scene.depth)
    assert frame.image_size == (256, 192)
    focal_length = scene.focal_length
    # The middle of the image lies between its pixels 127 and 128, 95 and 96, counted from 0.
    assert frame.intrinsics == (focal_length, focal_length, 128, 96)


def test_no_such_split_and_no_seed_of_training():
    source = open_source("synthetic", ".")
    assert {ref.order for ref in source.index("train")}.isdisjoint(ref.order for ref in source.index("test"))
    assert min(ref.order for ref in source.index("train")) >= 900_000_000
    with pytest.raises(SourceError, match="train, test, not 'val'"):
        source.index("val")
