"""Depth metrics, alignment, boundaries and point clouds against numbers worked out by hand and by scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from depthvlm.benchmark.scoring import metrics
from depthvlm.benchmark.scoring.boundary import boundary_f1
from depthvlm.benchmark.scoring.metrics import METRICS, ErrorSums, MetricAccumulator
from depthvlm.benchmark.scoring.point_clouds import point_cloud_f_score
from depthvlm.benchmark.scoring.protocols import ALIGNMENTS, align, fit_alignment
from scipy import optimize, stats
from scipy.spatial.distance import cdist

from depthvlm import silog_loss
from depthvlm.geometry import ray_factors, viewing_rays

LN2, LN10 = 0.6931471805599453, 2.302585092994046

# Ratios 1, 2, 2 and 1.5; errors 0, 2, -2 and 1 metres.
TRUTH = np.array([[1.0, 2.0], [4.0, 2.0]])
PREDICTION = np.array([[1.0, 4.0], [2.0, 3.0]])
LN15 = 0.4054651081081644
BY_HAND = {
    "delta1": 1 / 4,  # 1 alone is below 1.25
    "delta2": 2 / 4,  # 1.5 is below 1.5625
    "delta3": 2 / 4,  # 2 is above 1.953125
    "abs_rel": (0 + 1 + 0.5 + 0.5) / 4,
    "sq_rel": (0 + 2 + 1 + 0.5) / 4,
    "rmse": 1.5,  # sqrt((0 + 4 + 4 + 1) / 4)
    "rmse_log": math.sqrt((2 * LN2**2 + LN15**2) / 4),
    "log10": (2 * LN2 + LN15) / 4 / LN10,
    "silog": math.sqrt((2 * LN2**2 + LN15**2) / 4 - (LN15 / 4) ** 2),
}


def some_maps(shape=(24, 32), seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 20, shape)
    return truth * np.exp(rng.normal(0.1, 0.3, shape)), truth


class TestByHand:
    @pytest.mark.parametrize("name", METRICS)
    def test_a_small_map(self, name):
        assert getattr(metrics, name)(PREDICTION, TRUTH) == pytest.approx(BY_HAND[name], rel=1e-12)
        assert ErrorSums.of(PREDICTION, TRUTH).metrics()[name] == pytest.approx(BY_HAND[name], rel=1e-12)

    def test_thresholds_are_strict(self):
        for power, name in enumerate(("delta1", "delta2", "delta3"), 1):
            function, edge = getattr(metrics, name), 1.25**power
            assert [function([edge], [1.0]), function([1.0], [edge])] == [0, 0]
            assert [function([edge - 1e-9], [1.0]), function([1.0], [edge - 1e-9])] == [1, 1]

    def test_silog_lambdas(self):
        # d = ln 2, ln 2, 0: mean 2/3 ln 2, mean of squares 2/3 ln^2 2.
        prediction, truth = [2.0, 4.0, 3.0], [1.0, 2.0, 3.0]
        for silog_lambda, factor in ((0, 2 / 3), (0.5, 2 / 3 - 2 / 9), (1, 2 / 9)):
            expected = LN2 * math.sqrt(factor)
            assert metrics.silog(prediction, truth, silog_lambda=silog_lambda) == pytest.approx(expected, rel=1e-12)
        assert metrics.silog_kitti(prediction, truth) == pytest.approx(100 * LN2 * math.sqrt(2 / 9), rel=1e-12)
        # At its lambda it is the training loss.
        prediction, truth = some_maps()
        loss = silog_loss(torch.tensor(prediction), torch.tensor(truth), silog_lambda=0.5).item()
        assert metrics.silog(prediction, truth, silog_lambda=0.5) == pytest.approx(loss, rel=1e-5)

    def test_only_valid_pixels(self):
        truth = np.array([2.0, 0.0, np.nan, np.inf, -1.0, 2.0, 2.0])
        prediction = np.array([2.0, 1.0, 1.0, 1.0, 1.0, 8.0, 4.0])
        assert metrics.delta1(prediction, truth) == pytest.approx(1 / 3)
        valid = np.array([True] * 5 + [False, True])
        assert metrics.delta1(prediction, truth, valid) == 1 / 2
        assert metrics.abs_rel(prediction, truth, valid) == 1 / 2

    def test_against_scipy(self):
        prediction, truth = some_maps()
        d = (np.log(prediction) - np.log(truth)).ravel()
        norm = np.linalg.norm(prediction - truth)
        assert metrics.silog(prediction, truth) == pytest.approx(stats.tstd(d, ddof=0), rel=1e-12)
        assert metrics.rmse_log(prediction, truth) == pytest.approx(stats.moment(d, 2, center=0) ** 0.5, rel=1e-12)
        assert metrics.rmse(prediction, truth) == pytest.approx(norm / math.sqrt(truth.size), rel=1e-12)


class TestFailures:
    BAD = np.array([np.nan, np.inf, -np.inf, 0.0, -2.0, 1e300])

    def test_count_as_wrong(self):
        # A negative answer has a ratio below every threshold: here -2 for 2.
        prediction, truth = np.concatenate([self.BAD, [2.0, 2.2]]), np.full(8, 2.0)
        deltas = ("delta1", "delta2", "delta3")
        assert [getattr(metrics, name)(prediction, truth) for name in deltas] == [2 / 8] * 3
        assert metrics.failures(prediction, truth) == 6
        assert metrics.abs_rel(prediction, truth) == pytest.approx(0.05)
        # No answer at all.
        values = ErrorSums.of(self.BAD, np.ones(6)).metrics()
        assert [values.pop(name) for name in deltas] == [0, 0, 0]
        assert all(math.isnan(value) for value in values.values())
        assert math.isnan(metrics.rmse(self.BAD, np.ones(6)))
        assert math.isnan(metrics.silog(self.BAD, np.ones(6)))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("nyu/7", [1.0, 2.0], [0.0, np.nan]), "'nyu/7' has no valid pixel"),
            (("a", [1.0], [1.0], [False]), "'a' has no valid pixel"),
            (("a", np.ones((2, 3)), np.ones((3, 2))), r"'a' has the shape \(2, 3\), its truth \(3, 2\)"),
            (("a", [1.0, 1.0], [1.0, 1.0], [True]), r"mask of image 'a' has the shape \(1,\)"),
            (("x", [1.0], [1.0]), "'x' was already scored"),
        ],
    )
    def test_errors_name_the_image(self, arguments, words):
        accumulator = MetricAccumulator()
        with pytest.raises(ValueError, match="No image"):
            accumulator.compute()
        accumulator.add("x", [1.0], [1.0])
        with pytest.raises(ValueError, match=words):
            accumulator.add(*arguments)
        with pytest.raises(ValueError, match="'x' has no metric 'nonsense'"):
            accumulator.values("nonsense")
        assert len(accumulator) == 1


class TestAccumulator:
    def test_means_and_pools(self):
        accumulator = MetricAccumulator()
        accumulator.add("a", [1.0, 1.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0])
        accumulator.add("b", [2.0], [1.0])
        accumulator.add("c", [np.nan, -1.0], [1.0, 1.0])
        result = accumulator.compute()
        images, pixels, defined = result["images"], result["pixels"], result["defined"]
        # c has no answer: abs_rel over the other two, 3/4 and 1; over their five pixels (3 + 1) / 5.
        assert (images["delta1"], images["abs_rel"]) == pytest.approx(((0.75 + 0 + 0) / 3, 0.875))
        assert (pixels["delta1"], pixels["abs_rel"], pixels["rmse"]) == pytest.approx((3 / 7, 0.8, math.sqrt(10 / 5)))
        assert result["counts"] == {"images": 3, "pixels": 7, "failures": 2, "failed_images": 1}
        assert (defined["delta1"], defined["abs_rel"]) == (3, 2)
        assert accumulator.values("delta1") == {"a": 0.75, "b": 0.0, "c": 0.0}
        assert accumulator.pixels() == {"a": 4, "b": 1, "c": 2}

    def test_pooled_is_of_all_pixels_at_once(self):
        images = [some_maps((5 + i, 7), i) for i in range(6)]
        accumulator = MetricAccumulator()
        for index, (prediction, truth) in enumerate(images):
            accumulator.add(str(index), prediction, truth)
        prediction, truth = (np.concatenate([image[i].ravel() for image in images]) for i in (0, 1))
        pooled = accumulator.compute()["pixels"]
        for name in METRICS:
            assert pooled[name] == pytest.approx(getattr(metrics, name)(prediction, truth), rel=1e-12)

    def test_any_order_to_the_last_bit(self):
        images = {str(i): ErrorSums.of(*some_maps((3, 4), i)) for i in range(6)}
        images["6"] = ErrorSums.of([np.nan, 1.0], [1.0, 2.0])
        results = []
        for order in itertools.islice(itertools.permutations(images), 0, 5040, 331):
            accumulator = MetricAccumulator()
            for name in order:
                accumulator.add_sums(name, images[name], {"boundary_f1": 0.1 + 0.2 if name == "0" else math.nan})
            results.append(accumulator.compute())
        assert all(result == results[0] for result in results)
        assert (results[0]["images"]["boundary_f1"], results[0]["defined"]["boundary_f1"]) == (0.1 + 0.2, 1)


class TestAlignment:
    def test_by_hand(self):
        # Medians 4 and 3, over the answers alone.
        prediction = np.array([1.0, 4.0, 100.0, -5.0, np.nan])
        truth = np.array([3.0, 2.0, 50.0, 9.0, 9.0])
        assert fit_alignment(prediction, truth, method="median") == (0.75, 0.0)
        np.testing.assert_array_equal(align(prediction, truth), [0.75, 3.0, 75.0, np.nan, np.nan])
        # (1 * 3 + 2 * 5) / (1 + 4)
        assert fit_alignment([1.0, 2.0], [3.0, 5.0], method="scale") == (2.6, 0.0)
        # Fitted where valid, applied everywhere.
        truth, valid = np.array([1.0, 2.0, 3.0, 100.0]), np.array([True, True, True, False])
        np.testing.assert_allclose(align([2.0, 3.0, 4.0, 5.0], truth, valid, "scale_shift"), [1, 2, 3, 4])

    def test_against_scipy(self):
        prediction, truth = (each.ravel() for each in some_maps())
        for method, x, y in (("scale_shift", prediction, truth), ("scale_shift_disparity", 1 / prediction, 1 / truth)):
            line = stats.linregress(x, y)
            assert fit_alignment(prediction, truth, method=method) == pytest.approx((line.slope, line.intercept))
        best = optimize.least_squares(lambda s: s * prediction - truth, [1.0])
        assert fit_alignment(prediction, truth, method="scale")[0] == pytest.approx(best.x[0], rel=1e-6)

    @pytest.mark.parametrize(
        ("method", "distort"),
        [
            ("median", lambda g: 7 * g),
            ("scale", lambda g: 0.01 * g),
            ("scale_shift", lambda g: 0.2 * g + 3),
            ("scale_shift_disparity", lambda g: 1 / (4 / g + 0.5)),
        ],
    )
    def test_what_it_is_invariant_to(self, method, distort):
        _, truth = some_maps()
        aligned = align(distort(truth), truth, method=method)
        np.testing.assert_allclose(aligned, truth, rtol=1e-9)
        assert metrics.delta1(distort(truth), truth) < 1

    def test_a_constant_becomes_the_mean(self):
        truth = np.array([1.0, 2.0, 6.0])
        for constant in (0.1, 2.0, 1e6):
            assert fit_alignment(np.full(3, constant), truth, method="scale_shift") == (0.0, 3.0)
        np.testing.assert_allclose(align(np.full(3, 0.3), truth, method="scale_shift_disparity"), 1 / (10 / 18))

    def test_disparity_beyond_infinity(self):
        # Fitted disparities 0.5, 0.2 and, for the pixel outside the fit, -0.1.
        prediction, truth = 1 / np.array([0.8, 0.5, 0.2]), np.array([2.0, 5.0, 9.0])
        valid = [True, True, False]
        assert align(prediction, truth, valid, "scale_shift_disparity")[2] == np.inf
        np.testing.assert_allclose(align(prediction, truth, valid, "scale_shift_disparity", 80.0), [2, 5, 80])

    @pytest.mark.parametrize("method", ALIGNMENTS)
    def test_no_answer_stays_none(self, method):
        assert np.isnan(align([np.nan, -1.0], [1.0, 2.0], method=method, max_depth=80.0)).all()


def brute_force_boundaries(prediction, truth, thresholds, released):
    """The definition, pair by pair."""
    height, width = truth.shape
    scores = []
    for t in thresholds:
        counts = []
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            true = found = both = 0
            for i, j in itertools.product(range(height), range(width)):
                k, m = i + down, j + right
                if 0 <= k < height and 0 <= m < width:
                    c, d = truth[k, m] / truth[i, j] > t, prediction[k, m] / prediction[i, j] > t
                    true, found, both = true + c, found + d, both + (c and d)
            counts.append((true, found, both))
        counts = counts if released else [tuple(sum(column) for column in zip(*counts, strict=True))]
        recall = sum(both / max(true, 1) for true, _, both in counts) / len(counts)
        precision = sum(both / max(found, 1) for _, found, both in counts) / len(counts)
        scores.append(2 * recall * precision / (recall + precision) if recall + precision else 0.0)
    return sum(s * t for s, t in zip(scores, thresholds, strict=True)) / sum(thresholds)


class TestBoundaries:
    # A step of ratio 2 between columns 1 and 2 of four rows.
    STEP = np.array([[1.0, 1.0, 2.0, 2.0]] * 4)

    def test_a_step(self):
        assert boundary_f1(self.STEP, self.STEP) == 1
        assert boundary_f1(5 * self.STEP, self.STEP) == 1
        assert boundary_f1(np.ones((4, 4)), self.STEP) == 0
        assert boundary_f1(np.roll(self.STEP, 1, axis=1), self.STEP) == 0

    def test_half_found(self):
        # Two of the four rows have the step: recall 1/2, precision 1, F1 2/3.
        prediction = np.where(np.arange(4)[:, None] < 2, self.STEP, 1.0)
        # The horizontal edge below row 1 is predicted at columns 2 and 3, and is not there: precision 2 / 4.
        assert boundary_f1(prediction, self.STEP) == pytest.approx(1 / 2)
        valid = np.ones((4, 4), dtype=bool)
        valid[:, 3] = False
        # Without the last column there is one such edge: precision 2 / 3, recall 1 / 2.
        assert boundary_f1(prediction, self.STEP, valid) == pytest.approx(4 / 7)

    def test_weights_of_thresholds(self):
        # A step of 1.12 is above 1.05 and 1.10 and below 1.15 ... 1.25; the predicted one, of 1.07, above 1.05 alone.
        truth, prediction = np.array([[1.0, 1.12]]), np.array([[1.0, 1.07]])
        options = {"min_threshold": 1.05, "max_threshold": 1.25, "thresholds": 5}
        assert boundary_f1(prediction, truth, **options) == pytest.approx(1.05 / (1.05 + 1.10))
        # Released: means over the four directions, of which one has the contour; all five thresholds count.
        released = boundary_f1(prediction, truth, **options, convention="released")
        assert released == pytest.approx(0.25 * 1.05 / (1.05 + 1.10 + 1.15 + 1.20 + 1.25))

    @pytest.mark.parametrize("released", [False, True])
    def test_against_the_definition(self, released):
        rng = np.random.default_rng(1)
        truth = np.exp(rng.normal(0, 0.2, (9, 11)))
        prediction = truth * np.exp(rng.normal(0, 0.1, truth.shape))
        expected = brute_force_boundaries(prediction, truth, np.linspace(1.05, 1.25, 10), released)
        assert 0.3 < expected < 0.95
        convention = "released" if released else "paper"
        assert boundary_f1(prediction, truth, convention=convention) == pytest.approx(expected, rel=1e-12)

    def test_failures_and_a_truth_without_contours(self):
        prediction = self.STEP.copy()
        prediction[:2, 1] = np.nan, -1.0
        # Two of four contours left, none false.
        assert boundary_f1(prediction, self.STEP) == pytest.approx(2 / 3)
        assert math.isnan(boundary_f1(self.STEP, np.ones((4, 4))))
        assert boundary_f1(self.STEP, np.ones((4, 4)), convention="released") == 0


class TestPointClouds:
    def test_rays_by_hand(self):
        pixels, camera = [[10, 20], [14, 20], [10, 26]], (4.0, 3.0, 10.5, 20.5)
        np.testing.assert_allclose(viewing_rays(pixels, camera), [[0, 0, 1], [1, 0, 1], [0, 2, 1]])
        np.testing.assert_allclose(ray_factors(pixels, camera), [1, math.sqrt(2), math.sqrt(5)])

    def test_f_score_by_hand(self):
        # Points 1 m apart on a wall at 10 m; the first is seen 3 cm too far, the second 1 m, the third not at all.
        truth, intrinsics = np.full((1, 4), 10.0), (10.0, 10.0, 0.0, 0.0)
        prediction = np.array([[10.03, 11.0, np.nan, 10.0]])
        assert point_cloud_f_score(truth, truth, intrinsics) == 1
        assert point_cloud_f_score(prediction, truth, intrinsics, threshold=0.05) == pytest.approx(1 / 2)
        assert point_cloud_f_score(prediction, truth, intrinsics, threshold=0.01) == pytest.approx(1 / 4)
        # Within 1.05 m the second finds its place too; each true point has one near: the third by the fourth.
        assert point_cloud_f_score(prediction, truth, intrinsics, threshold=1.05) == pytest.approx(6 / 7)
        assert point_cloud_f_score(np.full((1, 4), -1.0), truth, intrinsics) == 0
        assert point_cloud_f_score(truth * 2, truth, intrinsics) == 0

    def test_a_point_may_be_found_by_a_neighbour(self):
        # Two predicted points on one true point: precision 1, recall 1/2.
        truth, valid = np.array([[1.0, 1.0]]), np.array([[True, True]])
        near = point_cloud_f_score(truth, truth * [1, 3], (1e6, 1e6, 0.0, 0.0), valid, threshold=0.1)
        assert near == pytest.approx(2 * 1 * 0.5 / 1.5)

    def test_against_all_distances(self):
        prediction, truth = some_maps((6, 8))
        intrinsics = (8.0, 8.0, 3.5, 2.5)
        rows, columns = np.mgrid[:6, :8]
        rays = viewing_rays(np.column_stack([columns.ravel(), rows.ravel()]), intrinsics)
        distances = cdist(rays * prediction.reshape(-1, 1), rays * truth.reshape(-1, 1))
        precision, recall = (np.mean(distances.min(axis=axis) < 0.8) for axis in (1, 0))
        assert 0.1 < precision < 0.9
        score = point_cloud_f_score(prediction, truth, intrinsics, threshold=0.8)
        assert score == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)


WALL, STEP = np.ones((2, 2)), TestBoundaries.STEP


@pytest.mark.parametrize(
    ("function", "arguments", "options", "words"),
    [
        (align, ([1.0], [1.0]), {"method": "mean"}, "Unknown alignment 'mean': choose one of none, median, scale"),
        (align, ([1.0], [1.0]), {"max_depth": 0.0}, "`max_depth` must be above 0"),
        (boundary_f1, (np.ones(4), np.ones(4)), {}, r"got a prediction \(4,\) and a truth \(4,\)"),
        (boundary_f1, (STEP, STEP), {"min_threshold": 0.05}, "ratios of depths above 1"),
        (boundary_f1, (STEP, STEP), {"convention": "mine"}, "Unknown convention"),
        (point_cloud_f_score, (WALL, WALL, (1, 1, 0, 0)), {"threshold": 0}, "threshold must be a distance above 0"),
        (point_cloud_f_score, (WALL, np.ones(4), (1, 1, 0, 0)), {}, "maps"),
        (point_cloud_f_score, (WALL, WALL, (0, 1, 0, 0)), {}, "fx, fy, cx, cy"),
        (viewing_rays, ([1, 2], (1, 1, 0, 0)), {}, "column and row"),
    ],
)
def test_errors(function, arguments, options, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments, **options)
