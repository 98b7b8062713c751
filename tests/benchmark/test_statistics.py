"""Bootstrap intervals and paired comparisons against all resamples, scipy and numbers by hand."""

import itertools
import math

import numpy as np
import pytest
from depthvlm.benchmark.scoring.metrics import MetricAccumulator
from depthvlm.benchmark.scoring.statistics import bootstrap_interval, paired_bootstrap
from scipy import stats


def named(values) -> dict[str, float]:
    return {f"image{index:04}": float(value) for index, value in enumerate(values)}


def three(result) -> tuple[float, float, float]:
    return result.low, result.estimate, result.high


def scipy_interval(samples, statistic, seed):
    options = {"n_resamples": 20_000, "method": "percentile", "random_state": np.random.default_rng(seed)}
    return stats.bootstrap(samples, statistic, **options).confidence_interval


class TestInterval:
    def test_against_all_resamples(self):
        # The 27 resamples of 1, 2, 4 sum to 3 once, to 4 three times ... to 10 three times, to 12 once.
        values = named([1, 2, 4])
        assert three(bootstrap_interval(values, samples=20_000)) == pytest.approx((1, 7 / 3, 4))
        # 1/27 < 10 % < 4/27 at both ends.
        narrow = bootstrap_interval(values, samples=20_000, confidence=0.8)
        assert (narrow.low, narrow.high) == pytest.approx((4 / 3, 10 / 3))
        assert (narrow.images, narrow.samples, narrow.confidence) == (3, 20_000, 0.8)
        assert three(bootstrap_interval({"a": 0.3})) == (0.3, 0.3, 0.3)

    def test_against_scipy(self):
        values = np.random.default_rng(3).beta(4, 2, 150)
        mine, theirs = bootstrap_interval(named(values), samples=20_000), scipy_interval((values,), np.mean, 5)
        error = values.std() / math.sqrt(150)
        assert mine.estimate == pytest.approx(values.mean())
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * error)

    @pytest.mark.parametrize(
        ("mean_of", "statistic"),
        [
            ("strata", lambda a, b, axis=-1: (a.mean(axis) + b.mean(axis)) / 2),
            ("images", lambda a, b, axis=-1: (60 * a.mean(axis) + 20 * b.mean(axis)) / 80),
        ],
    )
    def test_strata_against_scipy(self, mean_of, statistic):
        rng = np.random.default_rng(4)
        indoor, outdoor = rng.normal(0.9, 0.02, 60), rng.normal(0.5, 0.1, 20)
        values = named(np.concatenate([indoor, outdoor]))
        strata = {image: "indoor" if index < 60 else "outdoor" for index, image in enumerate(values)}
        mine = bootstrap_interval(values, strata=strata, mean_of=mean_of, samples=20_000)
        theirs = scipy_interval((indoor, outdoor), statistic, 4)
        assert mine.estimate == pytest.approx(statistic(indoor, outdoor))
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))

    def test_strata_keep_their_size(self):
        values = named([1.0] * 10 + [0.0] * 90)
        strata = {image: "abc"[index >= 10] for index, image in enumerate(values)}
        free = bootstrap_interval(values)
        assert free.low < 0.06 < 0.14 < free.high
        assert three(bootstrap_interval(values, strata=strata)) == pytest.approx((0.1, 0.1, 0.1))
        assert bootstrap_interval(values, strata=strata, mean_of="strata").estimate == 0.5

    def test_weights_are_pooled_pixels(self):
        accumulator = MetricAccumulator()
        rng = np.random.default_rng(0)
        for index in range(12):
            truth = rng.uniform(1, 5, 3 + index)
            accumulator.add(str(index), truth * np.exp(rng.normal(0, 0.2, truth.size)), truth)
        interval = bootstrap_interval(accumulator.values("delta1"), weights=accumulator.pixels())
        assert interval.estimate == pytest.approx(accumulator.compute()["pixels"]["delta1"])
        assert interval.low < interval.estimate < interval.high
        # Of two images with weights 1 and 3: 0 (1/4 of resamples), 3/4 (1/2) or 1 (1/4).
        two = bootstrap_interval({"a": 0.0, "b": 1.0}, {"a": 1, "b": 3}, samples=2000, confidence=0.4)
        assert three(two) == (0.75, 0.75, 0.75)

    def test_seed_alone_decides(self):
        values = named(np.random.default_rng(1).normal(size=300))
        shuffled = dict(reversed(values.items()))
        assert bootstrap_interval(values, seed=7) == bootstrap_interval(shuffled, seed=7)
        assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ({"a": 1.0, "b": math.nan, "c": math.inf}, {}, r"2 image\(s\) have no finite score, 'b' first"),
            ({}, {}, "No image"),
            ({"a": 1.0, "b": 1.0}, {"weights": {"a": 1}}, r"`weights` must have the same images .* 1 missing \(b\)"),
            ({"a": 1.0}, {"strata": {"a": "s", "z": "s"}}, r"`strata` .* 1 unknown \(z\)"),
            ({"a": 1.0}, {"weights": {"a": 0}}, "finite and above 0"),
            ({"a": 1.0}, {"confidence": 95}, "`confidence` must lie between 0 and 1"),
            ({"a": 1.0}, {"samples": 0}, "`samples`"),
            ({"a": 1.0}, {"mean_of": "sets"}, "`mean_of`"),
            ({"a": 1.0}, {"mean_of": "strata"}, "needs `strata`"),
        ],
    )
    def test_errors(self, values, options, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(values, **options)


class TestComparison:
    def test_p_value_against_all_resamples(self):
        differences = [-1.0, 0.0, 4.0, 1.0]
        means = [sum(resample) / 4 for resample in itertools.product(differences, repeat=4)]
        share = sum(abs(mean - 1) >= 1 for mean in means) / len(means)
        assert 0.2 < share < 0.6
        result = paired_bootstrap(named([1 + d for d in differences]), named([1.0] * 4), samples=20_000)
        assert three(result) == pytest.approx((np.quantile(means, 0.025), 1, np.quantile(means, 0.975)))
        assert result.p_value == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 20_000))

    def test_signs_and_extremes(self):
        first, second = named([0.5, 0.7, 0.9]), named([0.4, 0.5, 0.6])
        forth, back = paired_bootstrap(first, second), paired_bootstrap(second, first)
        assert forth.estimate == pytest.approx(0.2)
        assert three(back) == pytest.approx((-forth.high, -forth.estimate, -forth.low))
        assert forth.p_value == back.p_value
        values = named(np.linspace(0, 1, 50))
        same = paired_bootstrap(values, values)
        assert (three(same), same.p_value) == ((0, 0, 0), 1)
        better = paired_bootstrap({k: v + 0.1 for k, v in values.items()}, values, samples=999)
        assert better.p_value == 1 / 1000
        assert (better.low, better.high) == pytest.approx((0.1, 0.1))

    def test_pairing_sees_what_separate_intervals_do_not(self):
        rng = np.random.default_rng(2)
        hard = rng.uniform(0, 1, 200)
        first, second = named(hard + 0.01 + rng.normal(0, 0.01, 200)), named(hard)
        assert bootstrap_interval(first).low < bootstrap_interval(second).high
        result = paired_bootstrap(first, second)
        assert 0 < result.low < 0.01 < result.high < 0.02
        assert result.p_value < 0.001
        z = stats.ttest_rel(list(first.values()), list(second.values()))
        interval = z.confidence_interval(0.95)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=2e-4)

    def test_error_rate_without_a_difference(self):
        # At the 10 % level about one in ten comparisons of equals is a false alarm.
        noise, zero = np.random.default_rng(6).normal(size=(200, 40)), named(np.zeros(40))
        alarms = sum(paired_bootstrap(named(row), zero, samples=400).p_value < 0.1 for row in noise)
        assert 8 <= alarms <= 36

    def test_weights_and_strata(self):
        first, second = {"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 0.0}
        assert paired_bootstrap(first, second, weights={"a": 1, "b": 3}).estimate == 0.75
        kept = paired_bootstrap(first, second, strata={"a": "x", "b": "y"}, mean_of="strata")
        assert three(kept) == (0.5, 0.5, 0.5)

    def test_other_images(self):
        first, second = named(range(8)), named(range(2, 9))
        del first["image0003"]
        with pytest.raises(ValueError, match=r"second system .* 1 missing \(image0007\); 1 unknown \(image0003\)"):
            paired_bootstrap(first, second)
        with pytest.raises(ValueError, match=r"8 missing \(image0000, image0001, image0002, \.\.\.\)"):
            paired_bootstrap(named(range(8)), {})
