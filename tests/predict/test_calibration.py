"""Calibration by known distances: corrections worked out by hand, with wrong points among the right ones."""

import json

import numpy as np
import pytest
from depthvlm.processing import Camera
from PIL import Image

from depthvlm import Prediction
from depthvlm.calibration import POINTS_NEEDED

WIDTH, HEIGHT = 80, 60


def prediction(depth: np.ndarray) -> Prediction:
    height, width = depth.shape
    camera = Camera(100.0, 100.0, width / 2, height / 2, width, height, "focal_length")
    return Prediction(depth.astype(np.float32), camera, Image.new("RGB", (width, height)))


def scene() -> np.ndarray:
    """Depth from 2 m at the bottom to 8 m at the top."""
    return np.repeat(np.linspace(8, 2, HEIGHT)[:, None], WIDTH, axis=1)


def points_on(truth: np.ndarray, count: int = 10, seed: int = 0) -> dict[tuple[float, float], float]:
    random = np.random.default_rng(seed)
    places = random.choice(truth.size, count, replace=False)
    return {(x + 0.5, y + 0.5): float(truth[y, x]) for y, x in zip(*np.divmod(places, truth.shape[1]), strict=True)}


def with_one_wrong(points: dict, times: float = 10.0) -> tuple[dict, tuple[float, float, float]]:
    (x, y), metres = list(points.items())[3]
    return points | {(x, y): metres * times}, (x, y, metres * times)


class TestScale:
    def test_one_known_distance_scales_all(self):
        before = prediction(scene())
        after = before.calibrate({(10.5, 0.5): 10.0})  # 8 m as predicted
        np.testing.assert_allclose(after.depth, scene() * 1.25, rtol=1e-6)
        np.testing.assert_array_equal(before.depth, scene().astype(np.float32))
        assert before.calibration is None
        record = after.calibration
        assert (record.model, record.shift, record.used, record.rejected) == ("scale", 0, 1, ())
        assert record.factor == pytest.approx(1.25)
        assert record.error_before == pytest.approx(0.2)  # 8 / 10 - 1
        assert record.error_after == pytest.approx(0, abs=1e-6)

    def test_a_point_ten_times_too_far_or_too_near_is_rejected(self):
        truth = scene() * 0.7
        for times in (10, 0.1):
            points, wrong = with_one_wrong(points_on(truth), times)
            after = prediction(scene()).calibrate(points)
            np.testing.assert_allclose(after.depth, truth, rtol=0.01)
            assert after.calibration.rejected == (pytest.approx(wrong),)
            assert after.calibration.used == 9

    def test_points_as_an_array_and_along_the_ray(self):
        """The centre of pixel (59, 69) is 29.5 px from the axis of a camera of 100 px, in both directions."""
        known = [[69.5, 59.5, 3 * (1 + 2 * 0.295**2) ** 0.5]]
        after = prediction(np.full((HEIGHT, WIDTH), 2.0)).calibrate(np.array(known), along="ray")
        np.testing.assert_allclose(after.depth, 3, rtol=1e-6)


class TestScaleAndShift:
    def test_recovers_both_with_one_point_wrong(self):
        truth = scene() * 1.5 - 0.6
        points, wrong = with_one_wrong(points_on(truth))
        after = prediction(scene()).calibrate(points, model="scale+shift")
        np.testing.assert_allclose(after.depth, truth, rtol=0.01)
        record = after.calibration
        assert record.factor == pytest.approx(1.5, rel=1e-3)
        assert record.shift == pytest.approx(-0.6, abs=1e-3)
        assert record.rejected == (pytest.approx(wrong),)

    def test_noise_of_one_percent_averages_out_as_in_weighted_least_squares(self):
        truth = scene() * 0.8 + 0.5
        random = np.random.default_rng(2)
        points = {place: z * (1 + random.normal(0, 0.01)) for place, z in points_on(truth, 60).items()}
        record = prediction(scene()).calibrate(points, model="scale+shift").calibration
        z = np.array([scene()[int(y), int(x)] for x, y in points])
        slope, offset = np.polyfit(z, list(points.values()), 1, w=1 / np.array(list(points.values())))
        assert record.used == 60
        assert (record.factor, record.shift) == (pytest.approx(slope, rel=1e-6), pytest.approx(offset, rel=1e-6))

    def test_points_at_one_depth_and_reversed_order_are_refused(self):
        flat = prediction(np.full((HEIGHT, WIDTH), 2.0))
        with pytest.raises(ValueError, match=r"all at 2\.00 to 2\.00 m as predicted, where a shift cannot be told"):
            flat.calibrate(points_on(np.full((HEIGHT, WIDTH), 3.0)), model="scale+shift")
        with pytest.raises(ValueError, match="far ones are given as nearer than near ones"):
            prediction(scene()).calibrate(points_on(16 - scene()), model="scale+shift")

    def test_pixels_that_the_shift_takes_behind_the_camera_have_no_depth(self):
        depth = scene()
        depth[-1] = 0.5  # 0.5 * 1.5 - 2 is behind the camera
        points = points_on((depth * 1.5 - 2)[:-10])
        with pytest.warns(UserWarning, match="takes 80 of 4800 pixels to or behind the camera"):
            after = prediction(depth).calibrate(points, model="scale+shift")
        np.testing.assert_array_equal(after.valid, depth > 0.5)


class TestField:
    def factors(self) -> np.ndarray:
        """From 0.8 on the left to 1.25 on the right."""
        return np.repeat(np.geomspace(0.8, 1.25, WIDTH)[None], HEIGHT, axis=0)

    def test_recovers_a_smooth_field_with_one_point_wrong(self):
        truth = scene() * self.factors()
        points, wrong = with_one_wrong(points_on(truth, 30))
        after = prediction(scene()).calibrate(points, model="field")
        np.testing.assert_allclose(after.depth, truth, rtol=0.03)
        assert np.median(np.abs(after.depth / truth - 1)) < 0.01
        assert after.calibration.rejected == (pytest.approx(wrong),)
        scaled = prediction(scene()).calibrate(points)
        assert np.median(np.abs(scaled.depth / truth - 1)) > 0.08

    def test_a_uniform_factor_stays_uniform_far_from_the_points(self):
        truth = scene() * 1.3
        near = {place: z for place, z in points_on(truth, 200).items() if place[0] < 20}
        after = prediction(scene()).calibrate(near, model="field")
        np.testing.assert_allclose(after.depth, truth, rtol=1e-5)

    def test_thousands_of_returns_with_a_tenth_of_them_wrong(self):
        truth = scene() * self.factors()
        points = points_on(truth, 3000)
        wrong = list(points)[::10]
        after = prediction(scene()).calibrate(points | {place: points[place] * 3 for place in wrong}, model="field")
        np.testing.assert_allclose(after.depth, truth, rtol=0.02)
        assert {point[:2] for point in after.calibration.rejected} == set(wrong)


class TestMistakes:
    @pytest.mark.parametrize(
        ("points", "options", "message"),
        [
            ({(80, 1): 2.0}, {}, r"\(80, 1\) is outside the image of 80x60 pixels"),
            ({(-1, 1): 2.0}, {}, "outside the image"),
            ({(float("nan"), 1): 2.0}, {}, "outside the image"),
            ({(1, 1): 0.0}, {}, "must be above 0 metres, got 0"),
            ({(1, 1): float("inf")}, {}, "must be above 0 metres, got inf"),
            ({}, {}, "model='scale' needs at least 1 known points, got 0"),
            ({(1, 1): 2.0, (2, 2): 2.0}, {"model": "scale+shift"}, "needs at least 3 known points, got 2"),
            ({(x, 1): 2.0 for x in range(9)}, {"model": "field"}, "needs at least 10 known points, got 9"),
            ({(1, 1): 2.0}, {"model": "affine"}, "the models are scale, scale.shift, field"),
            ({(1, 1): 2.0}, {"along": "x"}, "distances are along 'z' or the 'ray'"),
            (np.ones((4, 2)), {}, r"an array \(n, 3\), got \(4, 2\)"),
            ({(0, 0): 2.0}, {}, "has no depth at the known point"),
        ],
    )
    def test_are_named(self, points, options, message):
        depth = scene()
        depth[0, 0] = 0
        with pytest.raises(ValueError, match=message):
            prediction(depth).calibrate(points, **options)

    def test_a_second_calibration_is_refused(self):
        after = prediction(scene()).calibrate({(1, 1): 2.0})
        with pytest.raises(ValueError, match="calibrated already"):
            after.calibrate({(1, 1): 2.0})

    def test_the_least_number_of_points_is_enough(self):
        for model, count in POINTS_NEEDED.items():
            after = prediction(scene()).calibrate(points_on(scene() * 2, count), model=model)
            np.testing.assert_allclose(after.depth, scene() * 2, rtol=1e-5)


def test_the_json_says_what_was_done(tmp_path):
    made = prediction(scene())
    assert "calibration" not in made.record()
    points, wrong = with_one_wrong(points_on(scene() * 2))
    made.calibrate(points).save(tmp_path, "door", ["json"])
    record = json.loads((tmp_path / "door.json").read_text())["calibration"]
    assert record["model"] == "scale"
    assert record["factor"] == pytest.approx(2)
    assert record["rejected"] == [pytest.approx(list(wrong))]
