"""Edge widths: ramps whose width is known, and SciPy's Gaussian, whose 10 % to 90 % distance is 2.563 sigma."""

import math

import numpy as np
import pytest
from depthvlm.benchmark.scoring.edge_width import REACH, edge_width
from scipy.ndimage import gaussian_filter1d
from scipy.stats import norm

TRUTH = np.where(np.arange(64) < 32, 2.0, 5.0) * np.ones((6, 1))


def test_a_step_and_a_ramp():
    """A step between two pixels is crossed from 10 % to 90 % in 0.8 pixels; a ramp of five steps in four pixels."""
    assert edge_width(TRUTH, TRUTH) == (pytest.approx(0.8), 1.0, 6)
    share = np.clip((np.arange(64) - 29) / 5, 0, 1)
    ramp = np.exp(math.log(2) + share * math.log(5 / 2)) * np.ones((6, 1))
    assert edge_width(ramp, TRUTH) == (pytest.approx(4.0), 1.0, 6)
    assert edge_width(3 * ramp.T, TRUTH.T) == (pytest.approx(4.0), 1.0, 6)
    assert edge_width(ramp[:, ::-1], TRUTH[:, ::-1]).width == pytest.approx(4.0)


@pytest.mark.parametrize("sigma", [1.5, 2.5])
def test_a_gaussian_between_slanted_surfaces(sigma):
    column = np.arange(64)
    slopes = np.where(column < 32, 0.01 * column, 1.5 - 0.008 * column) * np.ones((6, 1))
    blurred = gaussian_filter1d(slopes, sigma, axis=1)
    width = edge_width(2 * np.exp(blurred), np.exp(slopes)).width
    assert width == pytest.approx((norm.ppf(0.9) - norm.ppf(0.1)) * sigma, rel=0.05)


def test_edges_that_are_not_shown_or_not_alone():
    flat = edge_width(np.full(TRUTH.shape, 3.0), TRUTH)
    assert math.isnan(flat.width)
    assert flat[1:] == (0, 6)
    half = TRUTH.copy()
    half[:3] = 3.0
    half[3, 30] = np.nan  # a failed pixel beside an edge: not shown
    assert edge_width(half, TRUTH) == (pytest.approx(0.8), 2 / 6, 6)
    # A step the other way round is none.
    assert edge_width(7 - TRUTH, TRUTH).shown == 0
    # Edges nearer to each other, or to a hole of the truth, than the reach are left out.
    for between, edges in ((REACH, 12), (REACH - 1, 0)):
        twice = np.where(np.arange(64) >= 32 + between, 9.0, TRUTH)
        assert edge_width(twice, twice).edges == edges
    holed = TRUTH.copy()
    holed[0, 32 + REACH - 1] = 0
    assert edge_width(holed, holed).edges == 5
    assert math.isnan(edge_width(np.ones((6, 20)), TRUTH[:, 22:42]).shown)  # too small
    with pytest.raises(ValueError, match="one shape"):
        edge_width(TRUTH, TRUTH[1:])
