"""Sharpness of a depth map: F1 of its occluding contours."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Array, Mask, answered, valid_truth

Convention = Literal["paper", "released"]


def boundary_f1(
    prediction: ArrayLike,
    truth: ArrayLike,
    valid: ArrayLike | None = None,
    min_threshold: float = 1.05,
    max_threshold: float = 1.25,
    thresholds: int = 10,
    convention: Convention = "paper",
) -> float:
    """Return the scale-invariant boundary F1 of dense maps (Bochkovskii et al., Depth Pro, 2024).

    An occluding contour lies between neighbouring pixels i, j where `c(i, j) = [d(j) / d(i) > t]`. Over all pairs of
    horizontal and vertical neighbours, both ways, precision is `sum(c and c') / sum(c')` and recall
    `sum(c and c') / sum(c)`, with c of the truth and c' of the prediction. F1 is their harmonic mean, averaged over
    evenly spaced thresholds t, each weighted by t.

    Args:
        prediction: Metres, or depth of any scale, `(H, W)`.
        truth: Metres `(H, W)`, dense: a sparse map has no neighbours.
        valid: Boolean mask `(H, W)`. A pair counts where both of its pixels are valid. A pair with a failed prediction
            has no predicted contour, so a contour of the truth there is missed.
        min_threshold: First t.
        max_threshold: Last t.
        thresholds: Number of thresholds.
        convention: "paper" pools the pairs of all directions, and leaves out thresholds at which the truth has no
            contour. "released" follows the authors' program: precision and recall are means over the four directions,
            0 where a direction has none, and F1 is 0 where the truth has no contour at all.

    Returns:
        F1 in [0, 1]; with "paper" NaN where the truth has no contour at any threshold.

    Raises:
        ValueError: The maps do not have one shape `(H, W)`, no truth pixel is valid, or the thresholds are not
            ascending and above 1.
    """
    predicted, metres = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if predicted.ndim != 2 or predicted.shape != metres.shape:
        raise ValueError(
            f"Boundaries need maps (H, W) of one shape, got a prediction {predicted.shape} and a truth {metres.shape}."
        )
    if not 1 < min_threshold <= max_threshold or thresholds < 1:
        raise ValueError(
            f"Thresholds are ratios of depths above 1, from the least to the greatest, got {thresholds} from "
            f"{min_threshold} to {max_threshold}."
        )
    if convention not in ("paper", "released"):
        raise ValueError(f'Unknown convention {convention!r}: choose "paper" or "released".')
    mask, good = valid_truth(metres, valid), answered(predicted)
    predicted, metres = np.where(good, predicted, 1.0), np.where(mask, metres, 1.0)
    levels = np.linspace(min_threshold, max_threshold, thresholds)
    # Contours of the truth, of the prediction and of both, (4 directions, 3, thresholds).
    across = _both_ways(predicted, metres, mask, good, levels)
    counts = np.array(across + _both_ways(predicted.T, metres.T, mask.T, good.T, levels))
    if convention == "paper":
        true, found, both = counts.sum(axis=0)
        if not true.any():
            return math.nan
        # 2PR / (P + R), with `both` cancelled.
        score = 2 * both / np.maximum(true + found, 1)
        levels = np.where(true > 0, levels, 0)
    else:
        true, found, both = np.moveaxis(counts, 1, 0)
        recall = (both / np.maximum(true, 1)).mean(axis=0)
        precision = (both / np.maximum(found, 1)).mean(axis=0)
        total = recall + precision
        score = 2 * recall * precision / np.where(total > 0, total, 1)
    return math.fsum(score * levels) / math.fsum(levels)


def _both_ways(predicted: Array, metres: Array, mask: Mask, good: Mask, levels: Array) -> list[NDArray[np.int64]]:
    """Count contours from each pixel to the next of its row, and back."""
    pairs = mask[:, :-1] & mask[:, 1:]
    seen = (good[:, :-1] & good[:, 1:])[pairs]
    here, there = metres[:, :-1][pairs], metres[:, 1:][pairs]
    from_here, to_there = predicted[:, :-1][pairs], predicted[:, 1:][pairs]
    return [
        _contours(there / here, np.where(seen, to_there / from_here, 0.0), levels),
        _contours(here / there, np.where(seen, from_here / to_there, 0.0), levels),
    ]


def _contours(true: Array, found: Array, levels: Array) -> NDArray[np.int64]:
    return np.stack([_above(true, levels), _above(found, levels), _above(np.minimum(true, found), levels)])


def _above(ratios: Array, levels: Array) -> NDArray[np.int64]:
    """Count the ratios above each of the ascending levels."""
    ratios = np.sort(ratios[ratios > levels[0]])
    return ratios.size - np.searchsorted(ratios, levels, side="right")
