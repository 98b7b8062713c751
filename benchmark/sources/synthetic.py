"""Rendered rooms and streets as a source of the benchmark: truth without a download."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..synthetic.samples import HELD_OUT
from ..synthetic.scenes import MAX_DEPTH, render_scene
from .frames import Frame, FrameRef, Source


class Synthetic(Source):
    """Scenes of [`~depthvlm.benchmark.synthetic.scenes.render_scene`], 256x192 pixels, half rooms and half streets.

    There is no download, so any `root` will do. The test split has seeds that the training of depthvlm-nano never sees
    (`HELD_OUT` on), the train split those from 900,000,000 on, which it does not see either.
    """

    name = "synthetic"
    title = "Synthetic"
    depth_range = (0.05, MAX_DEPTH)
    licence = "Apache-2.0"
    image_size: ClassVar[tuple[int, int]] = (256, 192)
    """Width and height in pixels."""
    scenes: ClassVar[dict[str, int]] = {"train": 10_000, "test": 1_000}
    first_seed: ClassVar[dict[str, int]] = {"train": 900_000_000, "test": HELD_OUT}

    def __init__(self, root: str | Path = "."):
        super().__init__(root)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        for number in range(self.scenes[split]):
            kind = "room" if number % 2 == 0 else "street"
            seed = self.first_seed[split] + number // 2
            yield FrameRef(f"{kind}/{seed}", kind, order=seed, files={"seed": seed, "kind": kind})

    def read(self, ref: FrameRef) -> Frame:
        """Render the scene of a frame; its image is a PNG."""
        width, height = self.image_size
        scene = render_scene(ref.files["seed"], kind=ref.files["kind"], width=width, height=height)
        stream = io.BytesIO()
        Image.fromarray(scene.image).save(stream, "PNG")
        (fx, _, cx), (_, fy, cy), _ = scene.intrinsics.tolist()
        return Frame(ref, stream.getvalue(), (width, height), scene.depth.astype(np.float32), 1.0, (fx, fy, cx, cy))
