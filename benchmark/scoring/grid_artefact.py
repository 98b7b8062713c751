"""Grid artefact: what of a depth map repeats from visual token to visual token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Array, answered

Direction = Literal["x", "y"]
"""Direction of the lines of a map that are read: "x" across the picture, "y" down it."""

_LINES = 256  # transformed at once


@dataclass(frozen=True)
class GridSpectrum:
    """Power of a map's second difference at the harmonics of the token grid, and beside them.

    Attributes:
        period: Pixels of the map per token.
        power: `(K,)`, mean over the lines of the map; harmonic k is entry k - 1.
        around: `(K,)`, the same, mean over the neighbouring frequencies.
    """

    period: float
    power: Array
    around: Array

    @property
    def ratios(self) -> Array:
        """Power over that of the neighbouring frequencies, `(K,)`; NaN where the map is flat there."""
        return np.divide(self.power, self.around, out=np.full(self.power.shape, math.nan), where=self.around > 0)

    @property
    def worst(self) -> tuple[int, float]:
        """The harmonic with the greatest ratio, counted from 1, and its ratio; 0 and NaN for a flat map."""
        if np.isnan(self.ratios).all():
            return 0, math.nan
        best = int(np.nanargmax(self.ratios))
        return best + 1, float(self.ratios[best])


def grid_spectrum(
    depth: ArrayLike,
    period: float,
    direction: Direction = "x",
    valid: ArrayLike | None = None,
    harmonics: int | None = None,
) -> GridSpectrum:
    """Return how much stronger the second difference of log depth is at the token grid's harmonics than beside them.

    With `l = ln(depth)`, the second difference `l(n - 1) - 2 l(n) + l(n + 1)` is 0 on a linear ramp and grows with a
    kink or a step, so that a pattern of the grid shows above the scene. Its periodogram (Schuster 1898; Oppenheim and
    Schafer, Discrete-Time Signal Processing, section 10.5) is taken of every line over a whole number m of periods
    without a window: a pattern that repeats exactly with the period then has power at the harmonics `k / period` alone.
    The neighbouring frequencies of a harmonic are the bins `j / (m period)`, `1 <= j <= m / 2`, on both sides of it,
    which reach halfway to the next harmonic. No grid gives a ratio near 1; at the first harmonic it lies below, because
    the power of depth edges grows with the frequency.

    Args:
        depth: Depth of any scale, `(H, W)`: best the model's own map, whose period is the input stride
            (`config.input_stride`, 32 in Qwen3-VL). In a map that was resized, the period is the stride times the
            new size over the model's, and harmonics near the model's own Nyquist frequency are blurred.
        period: Pixels of the map per token along the direction, not always whole; at least 2.
        direction: "x" reads the rows, from the left to the right; "y" the columns, from the top to the bottom.
        valid: Boolean mask `(H, W)`; a difference counts where its three pixels are valid and have a positive depth.
        harmonics: Number of harmonics; by default all up to half of the sampling frequency, `period // 2`, which is
            also the most. An enlarged map has none of its own above half of the stride.

    Raises:
        ValueError: The map is not `(H, W)`, the mask has another shape, the direction is unknown, or the map is
            shorter than two periods.
    """
    metres = np.asarray(depth, np.float64)
    good = answered(metres) if valid is None else answered(metres) & np.asarray(valid, bool)
    if metres.ndim != 2:
        raise ValueError(f"A grid is looked for in a map (H, W), got {metres.shape}.")
    if direction not in ("x", "y"):
        raise ValueError(f'`direction` must be "x" or "y", got {direction!r}.')
    log = np.log(np.where(good, metres, 1.0))
    if direction == "y":
        log, good = log.T, good.T
    size = log.shape[1]
    periods = math.floor(size / period + 1e-9) if period >= 2 else 0
    if periods < 2:
        raise ValueError(
            f"The map has {size} pixels along {direction}; at least two periods of 2 pixels or more are needed, got "
            f"periods of {period}."
        )
    # Zero where one of the three pixels is missing, as at both ends.
    bend = np.zeros(log.shape)
    whole = good[:, :-2] & good[:, 1:-1] & good[:, 2:]
    bend[:, 1:-1] = np.where(whole, log[:, :-2] - 2 * log[:, 1:-1] + log[:, 2:], 0.0)
    most = math.floor(period / 2 + 1e-9)
    count, beside = min(most if harmonics is None else harmonics, most), periods // 2
    power = _power(bend[:, : round(periods * period)], 1 / (periods * period), count * periods + beside + 1)
    centres = periods * np.arange(1, count + 1)
    offsets = np.concatenate([np.arange(-beside, 0), np.arange(1, beside + 1)])
    return GridSpectrum(float(period), power[centres], power[centres[:, None] + offsets].mean(axis=1))


def pooled_spectrum(spectra: Sequence[GridSpectrum]) -> GridSpectrum:
    """Return the sum of the spectra of many maps, the first harmonics that all of them have.

    Each map counts alike: its powers are divided by their own mean first. The ratio of sums has a smaller bias than the
    mean of ratios, whose denominators are noisy. The period is the mean of the maps' periods.

    Raises:
        ValueError: There is no map, or all are flat.
    """
    scales = [spectrum.around.mean() for spectrum in spectra]
    kept = [(spectrum, scale) for spectrum, scale in zip(spectra, scales, strict=True) if scale > 0]
    if not kept:
        raise ValueError(f"None of the {len(spectra)} maps has a second difference other than 0.")
    count = min(len(spectrum.power) for spectrum, _ in kept)
    power, around = (
        np.mean([getattr(spectrum, name)[:count] / scale for spectrum, scale in kept], axis=0)
        for name in ("power", "around")
    )
    return GridSpectrum(float(np.mean([spectrum.period for spectrum, _ in kept])), power, around)


def _power(lines: Array, step: float, count: int) -> Array:
    """Return `|sum_n x(n) exp(-2 pi i f n)|^2 / N` at `f = 0, step, 2 step, ...` cycles a pixel, mean of the lines."""
    from scipy.signal import CZT

    # The chirp-z transform takes frequencies that are no multiples of 1 / N, as a period that is not whole has them.
    transform = CZT(lines.shape[1], count, np.exp(-2j * np.pi * step))
    total = np.zeros(count)
    for start in range(0, len(lines), _LINES):
        total += (np.abs(transform(lines[start : start + _LINES])) ** 2).sum(axis=0)
    power: Array = total / lines.size
    return power
