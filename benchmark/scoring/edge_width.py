"""Width of the depth edges of a map: over how many pixels it passes from one surface to the other."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Array, Mask, answered, valid_truth

EDGE_RATIO = 1.25
"""Least ratio of the true depths of the two pixels at an edge."""
REACH = 12
"""Pixels on each side of an edge that are looked at; a width is below twice as many."""

_SMOOTH = math.log(1.05)  # greatest true step between neighbours of one surface
_LEVEL = 3  # pixels at the far end of each side that give the predicted level of the surface


class EdgeWidth(NamedTuple):
    """Widths of the edges of one map."""

    width: float  # pixels, median over the edges that the map shows; NaN where it shows none
    shown: float  # share of the true edges that the map shows; NaN where the truth has none
    edges: int  # number of true edges


def edge_width(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> EdgeWidth:
    """Return the 10 % to 90 % width of a map across the true depth edges.

    This is the rise distance by which the sharpness of an image is read from an edge (ISO 12233, edge-based methods),
    in log depth. A true edge lies between two neighbours of a row or column whose depths have a ratio of at least
    `EDGE_RATIO`, with `REACH` pixels of one smooth surface on each side. The levels 0 and 1 are the predicted surfaces
    on both sides: the prediction's mean over the three outermost pixels, continued towards the edge with the truth's
    slope. The width is the distance between the points nearest to each other, on both sides of the level 0.5, where the
    profile, interpolated linearly, crosses 0.1 and 0.9. An edge is shown where the predicted step at the edge is at
    least half of the true one, in log depth; others have no width. The true map itself has the width 0.8: a step
    between two neighbours. An edge that runs diagonally is crossed up to 1.4 times wider.

    Args:
        prediction: Depth of any scale, `(H, W)`.
        truth: Metres `(H, W)`, dense: a sparse map shows no edge.
        valid: Boolean mask `(H, W)`.

    Raises:
        ValueError: The maps do not have one shape `(H, W)`, or no truth pixel is valid.
    """
    predicted, metres = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if predicted.ndim != 2 or predicted.shape != metres.shape:
        raise ValueError(
            f"Edges are of maps (H, W) of one shape, got a prediction {predicted.shape} and a truth {metres.shape}."
        )
    mask = valid_truth(metres, valid)
    true = np.log(np.where(mask, metres, np.nan), where=mask, out=np.full(mask.shape, np.nan))
    good = answered(predicted)
    found = np.log(predicted, where=good, out=np.full(good.shape, np.nan))
    both = [_profiles(found, true), _profiles(found.T, true.T)]
    found, true = (np.concatenate([pair[index] for pair in both]) for index in (0, 1))
    if not len(true):
        return EdgeWidth(math.nan, math.nan, 0)
    height, shown = _heights(found, true)
    widths = _widths(height[shown])
    return EdgeWidth(float(np.median(widths)) if len(widths) else math.nan, float(shown.mean()), len(true))


def _profiles(found: Array, true: Array) -> tuple[Array, Array]:
    """Return predicted and true log depth `(n, 2 REACH)` across the edges of the rows, from near to far."""
    size = true.shape[1]
    if size < 2 * REACH:
        return np.zeros((0, 2 * REACH)), np.zeros((0, 2 * REACH))
    with np.errstate(invalid="ignore"):
        step = np.abs(np.diff(true, axis=1))
        jump, smooth = step >= math.log(EDGE_RATIO), step <= _SMOOTH
    rows, columns = np.nonzero(jump[:, REACH - 1 : size - REACH])
    places = columns[:, None] + np.arange(2 * REACH)
    # One step of each window is the jump; all others must be smooth.
    alone = smooth[rows[:, None], places[:, :-1]].sum(axis=1) == 2 * REACH - 2
    rows, places = rows[alone, None], places[alone]
    found, true = found[rows, places], true[rows, places]
    falls = (true[:, REACH] < true[:, REACH - 1])[:, None]
    return np.where(falls, found[:, ::-1], found), np.where(falls, true[:, ::-1], true)


def _heights(found: Array, true: Array) -> tuple[Array, Mask]:
    """Return the profiles between the levels of their two surfaces, 0 and 1, and which of the edges are shown."""
    across = np.arange(2 * REACH)
    near, far = slice(0, _LEVEL), slice(2 * REACH - _LEVEL, 2 * REACH)
    slopes = ((true[:, REACH - 1] - true[:, 0]) / (REACH - 1), (true[:, -1] - true[:, REACH]) / (REACH - 1))
    low, high = (
        found[:, end].mean(axis=1)[:, None] + slope[:, None] * (across - across[end].mean())
        for end, slope in zip((near, far), slopes, strict=True)
    )
    step = (high - low)[:, REACH - 1 : REACH + 1].mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shown = np.isfinite(found).all(axis=1) & (step >= 0.5 * (true[:, REACH] - true[:, REACH - 1]))
        return (found - low) / (high - low), shown


def _widths(height: Array) -> Array:
    """Return the distance between the crossings of 0.1 and 0.9 of profiles `(n, 2 REACH)`."""
    rows, last = np.arange(len(height)), height.shape[1] - 1
    # The first step up across 0.5; an edge that is shown has one.
    middle = ((height[:, :-1] < 0.5) & (height[:, 1:] >= 0.5)).argmax(axis=1)
    places = np.arange(height.shape[1])
    below = np.where((height <= 0.1) & (places <= middle[:, None]), places, 0).max(axis=1)
    above = np.where((height >= 0.9) & (places > middle[:, None]), places, last).min(axis=1)
    ends = []
    for start, level in ((below, 0.1), (above - 1, 0.9)):
        first, second = height[rows, start], height[rows, start + 1]
        ends.append(start + np.clip((level - first) / np.where(second == first, 1.0, second - first), 0, 1))
    return ends[1] - ends[0]
