"""Constant and oracle, and the check of what any dense predictor returns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from depthvlm.benchmark.systems import make_predictor
from depthvlm.benchmark.systems.dense import resize_maps, rgb_pixels, stacked_pixels
from depthvlm.benchmark.systems.interface import Constant, Oracle, PredictorError, check_maps
from PIL import Image
from toy_examples import toy_example


def test_constants():
    predictor = make_predictor("always-2m")
    assert predictor.name == "Always Output 2.0m"
    first, second = predictor.predict([toy_example(5, 3), toy_example(2, 7)])
    assert (first.dtype, first.tolist()) == (np.float32, [[2.0] * 5] * 3)
    assert second.shape == (7, 2)
    other = make_predictor("always-2m", metres=3.5)
    assert (other.name, Constant(3.5).name) == ("Always Output 2.0m (metres=3.5)", "Always Output 3.5m")
    assert other.predict([toy_example()])[0].max() == 3.5
    for metres in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number of metres above 0"):
            Constant(metres)


def test_the_oracle_says_the_truth_of_every_point():
    answers = Oracle().predict([toy_example(truth=np.array([1.25, 80.0])), toy_example(truth=np.array([0.5]))])
    assert [[answer.metres for answer in image] for image in answers] == [[1.25, 80.0], [0.5]]
    example = replace(toy_example(truth=np.array([1.0, 2.0])), truth=np.zeros(0))
    with pytest.raises(ValueError, match="truth of all 2 points of 'image-0', got 0"):
        Oracle().predict([example])


class TestCheckMaps:
    def test_good_maps_pass_as_float32(self):
        maps = check_maps([np.ones((48, 64)), np.ones((48, 64), np.uint16)], [toy_example(), toy_example()])
        assert [depth.dtype for depth in maps] == [np.float32, np.float32]
        depth = np.ones((48, 64), np.float32)
        assert check_maps([depth], [toy_example()])[0] is depth  # not copied
        depth = np.array([[np.nan, -1.0], [0.0, np.inf]])  # failures pass
        np.testing.assert_array_equal(check_maps([depth], [toy_example(2, 2)])[0], depth)

    @pytest.mark.parametrize(
        ("maps", "message"),
        [
            (None, r"'zoedepth' returned nothing for 2 image\(s\), the first 'image-7'"),
            *(
                ([np.ones((48, 64))] * count, rf"'zoedepth' returned {count} map\(s\) for 2 image")
                for count in (0, 1, 3)
            ),
            *(
                ([np.ones(shape)] * 2, r"'zoedepth' returned a map of shape .*'image-7': \(48, 64\)")
                for shape in [(64, 48), (24, 32), (1, 48, 64), (48, 64, 1)]
            ),
            *(([np.ones((48, 64)).astype(kind)] * 2, "not of metres") for kind in (object, complex, bool, str)),
        ],
    )
    def test_other_answers_are_refused(self, maps, message):
        with pytest.raises(PredictorError, match=message):
            check_maps(maps, [toy_example(seed=7), toy_example()], "zoedepth")


def test_pixels_stay_as_stored():
    """The points are in stored pixels, so the turn that EXIF asks for is not made. All modes become RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    example = toy_example(pixels=pixels)
    example.image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(rgb_pixels(example), pixels)
    grey = np.array([[0, 200], [3, 4]], np.uint8)
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        np.testing.assert_array_equal(rgb_pixels(replace(example, image=image)), np.stack([grey] * 3, axis=-1))


def test_a_batch_has_one_size():
    assert stacked_pixels([toy_example(), toy_example(seed=1)]).shape == (2, 48, 64, 3)
    with pytest.raises(ValueError, match=r"one size, got \[\(64, 48\), \(65, 48\)\]"):
        stacked_pixels([toy_example(), toy_example(65)])


def test_maps_are_resized_edges_on_edges():
    """Pixel i of 2 covers pixels 2i and 2i + 1 of 4; between their centres it is linear, beyond them constant."""
    depth = resize_maps(torch.tensor([[[1.0, 3.0]]]), (1, 4))
    assert depth.tolist() == [[[1.0, 1.5, 2.5, 3.0]]]
