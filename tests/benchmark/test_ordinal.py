"""The ordinal error: orders counted by hand, and Kendall's tau of SciPy."""

import math

import numpy as np
import pytest
from depthvlm.benchmark.scoring.ordinal import ordinal_errors, ordinal_names
from scipy.stats import kendalltau


def stripes(*values: float) -> np.ndarray:
    """A map with columns of these depths, 30 pixels wide each."""
    return np.tile(np.repeat(values, 30), (60, 1))


def test_three_surfaces_by_hand():
    """1.00 m and 1.04 m are told the wrong way round, 2 m is right: one of three kinds of pairs is wrong."""
    found = ordinal_errors(stripes(1.0, 0.9, 5.0), stripes(1.0, 1.04, 2.0))
    assert list(found) == ordinal_names()
    assert found["ordinal_1.02_1.05"] == 1
    assert found["ordinal_1.25"] == 0
    assert math.isnan(found["ordinal_1.05_1.1"])
    assert math.isnan(found["ordinal_1.1_1.25"])
    assert found["ordinal"] == pytest.approx(1 / 3, abs=0.02)
    assert found["ordinal_3m"] == found["ordinal"]
    # Neighbours lie at most 90 / 16 pixels apart: they see one of the two borders each, one told wrong, one right.
    assert found["ordinal_neighbours"] == pytest.approx(1 / 2, abs=0.05)


def test_ties_failures_and_far_points():
    truth = stripes(2.0, 2.15, 8.0)
    equal = ordinal_errors(np.full(truth.shape, 4.0), truth)
    assert (equal["ordinal"], equal["ordinal_1.05_1.1"]) == (1, 1)
    failed = ordinal_errors(np.where(truth == 8, np.nan, truth), truth)
    assert (failed["ordinal_1.05_1.1"], failed["ordinal_1.25"], failed["ordinal_3m"]) == (0, 1, 0)
    # A negative depth is no answer either, though it is less than all others.
    assert ordinal_errors(np.where(truth == 2, -1.0, truth), truth)["ordinal_3m"] == 1
    masked = ordinal_errors(np.where(truth == 8, np.nan, truth), truth, truth < 8)
    assert math.isnan(masked["ordinal_1.25"])
    assert masked["ordinal"] == 0


def test_all_pairs_agree_with_kendalls_tau():
    """Without ties the share of wrong orders is (1 - tau) / 2."""
    rng = np.random.default_rng(0)
    truth = 1.03 ** rng.permutation(400).reshape(20, 20)  # any two differ by more than 2 %
    prediction = truth * np.exp(rng.normal(0, 2, truth.shape))
    expected = (1 - kendalltau(prediction.ravel(), truth.ravel()).statistic) / 2
    assert 0.1 < expected < 0.3
    assert ordinal_errors(prediction, truth, pairs=200_000)["ordinal"] == pytest.approx(expected, abs=0.01)
    assert ordinal_errors(prediction, truth) == ordinal_errors(prediction, truth)
    assert ordinal_errors(prediction, truth, seed=1) != ordinal_errors(prediction, truth)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ordinal_errors(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        ordinal_errors(np.ones((2, 2)), np.ones((2, 2)), pairs=1)
