"""The grid artefact: powers worked out by hand, SciPy's periodogram, and patterns of a known period."""

import numpy as np
import pytest
from depthvlm.benchmark.scoring.grid_artefact import grid_spectrum, pooled_spectrum
from scipy.signal import periodogram


def test_four_pixels_by_hand():
    """ln depth 0, 1, 0, 1: second differences 0, -2, 2, 0. At 1/2 a pixel |2 + 2|^2 / 4, at 1/4 |2i - 2|^2 / 4."""
    found = grid_spectrum(np.exp([[0.0, 1, 0, 1]]), 2)
    assert found.power == pytest.approx([4.0])
    assert found.around == pytest.approx([2.0])
    assert found.worst == (1, pytest.approx(2.0))
    # The scale of the depth does not matter, and a column is read as a row.
    assert grid_spectrum(7 * np.exp([[0.0], [1], [0], [1]]), 2, "y").ratios == pytest.approx([2.0])


def test_the_powers_are_those_of_scipys_periodogram():
    rng = np.random.default_rng(0)
    log = rng.normal(0, 0.1, (3, 64))
    bend = np.pad(np.diff(log, 2, axis=1), ((0, 0), (1, 1)))
    frequencies, density = periodogram(bend, window="boxcar", detrend=False)
    expected = dict(zip(np.round(frequencies * 64).astype(int).tolist(), density.mean(axis=0) / 2, strict=True))
    found = grid_spectrum(np.exp(log), 16)
    # Four periods of 16: harmonic k is bin 4 k, with the bins one and two away on both sides.
    assert found.power[:7] == pytest.approx([expected[4 * k] for k in range(1, 8)])
    sides = [np.mean([expected[4 * k + j] for j in (-2, -1, 1, 2)]) for k in range(1, 8)]
    assert found.around[:7] == pytest.approx(sides)
    assert len(found.ratios) == 8


def test_a_pattern_of_the_grid_is_found_at_its_harmonic_and_noise_is_not():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (128, 256))
    column = np.arange(256)
    pattern = 0.01 * np.cos(2 * np.pi * 11 * column / 32)
    flat = grid_spectrum(np.exp(noise), 32)
    assert np.abs(flat.ratios[3:] - 1).max() < 0.35
    # At 11/32 of a cycle a pixel the second difference of a cosine is -(2 - 2 cos w) times it. A line's power there is
    # 256 / 4 a^2 (2 - 2 cos w)^2 for the pattern and s^2 (2 - 2 cos w)^2 for the noise: their ratio is 64.
    marked = grid_spectrum(np.exp(noise + pattern), 32)
    assert marked.worst[0] == 11
    assert marked.worst[1] == pytest.approx(65, rel=0.15)
    assert np.delete(marked.ratios, 10)[3:].max() < 1.35
    assert grid_spectrum(np.exp(noise + pattern), 32, "y").worst[1] < 2.5  # not in the other direction


def test_a_period_that_is_not_whole_is_followed_through_a_resize():
    """A picture 1.25 times the size of the map has a token of 40 pixels, one 0.85 times has 27.2."""
    rng = np.random.default_rng(2)
    for factor in (1.25, 0.85):
        column = np.arange(round(320 * factor)) / factor
        log = rng.normal(0, 0.01, (64, len(column))) + 0.01 * np.cos(2 * np.pi * 3 * column / 32)
        found = grid_spectrum(np.exp(log), 32 * factor)
        assert found.worst[0] == 3
        assert found.worst[1] > 20
        assert grid_spectrum(np.exp(log), 32).ratios[2] < 3


def test_pixels_without_depth_are_left_out():
    ramp = np.exp(np.tile(np.linspace(0, 1, 64), (4, 1)))
    assert grid_spectrum(ramp, 16).power.max() < 1e-25  # linear in the logarithm
    assert np.isnan(grid_spectrum(np.ones((4, 64)), 16).worst[1])
    holed, mask = ramp.copy(), np.ones(ramp.shape, bool)
    holed[1, 20], holed[2, 30], mask[2, 30] = np.nan, 99.0, False
    assert grid_spectrum(holed, 16, valid=mask).power.max() < 1e-25
    assert grid_spectrum(holed, 16).power.max() > 1


def test_maps_are_pooled_with_equal_weight():
    first, second = np.exp([[0.0, 1, 0, 1]]), np.exp([[0.0, 0.1, 0, 0]])
    # The second map: bends -0.2, 0.1; |0.3|^2 / 4 and |0.2i - 0.1|^2 / 4, a ratio of 9 / 5.
    spectra = [grid_spectrum(each, 2) for each in (first, second)]
    assert spectra[1].ratios == pytest.approx([1.8])
    assert pooled_spectrum(spectra).ratios == pytest.approx([1.9])  # (2 + 1.8) / (1 + 1)
    with pytest.raises(ValueError, match="None of the 1 maps"):
        pooled_spectrum([grid_spectrum(np.ones((2, 8)), 4)])


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="map has 8 pixels along x; at least two periods"):
        grid_spectrum(np.ones((8, 8)), 5)
    with pytest.raises(ValueError, match="got 'rows'"):
        grid_spectrum(np.ones((8, 8)), 4, "rows")
    with pytest.raises(ValueError, match=r"map \(H, W\), got \(8,\)"):
        grid_spectrum(np.ones(8), 4)
