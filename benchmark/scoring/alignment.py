"""Fitting a prediction to the truth, for scale-invariant and affine-invariant scores."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from .error_sums import Array, answered, answers

Alignment: TypeAlias = Literal["none", "median", "scale", "scale_shift", "scale_shift_disparity"]
ALIGNMENTS: tuple[str, ...] = get_args(Alignment)


def fit_alignment(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, method: Alignment = "median"
) -> tuple[float, float]:
    """
    Scale and shift that bring a prediction to the truth, over the valid pixels with an answer.

    Args:
        prediction, truth, valid: as in [`~depthvlm.benchmark.scoring.error_sums.answers`], metres.
        method:
            "none": 1 and 0.
            "median": `median(g) / median(p)` (Zhou et al. 2017).
            "scale": the s of least `sum (s p - g)^2`.
            "scale_shift": s and t of least `sum (s p + t - g)^2`.
            "scale_shift_disparity": s and t of least `sum (s / p + t - 1 / g)^2` (Ranftl et al. 2020).

    Returns:
        Scale and shift; of the disparity in 1/m for the last method, of the depth in metres for the others. Of a
        constant prediction the scale of the affine methods is 0. 1 and 0 where there is no answer at all.

    Raises:
        ValueError: an unknown method, shapes that differ, or a truth without a valid pixel.
    """
    if method not in ALIGNMENTS:
        raise ValueError(f"Unknown alignment {method!r}: choose one of {', '.join(ALIGNMENTS)}.")
    p, g, _ = answers(prediction, truth, valid)
    if method == "none" or p.size == 0:
        return 1.0, 0.0
    if method == "median":
        return float(np.median(g) / np.median(p)), 0.0
    if method == "scale":
        return float(p @ g / (p @ p)), 0.0
    if method == "scale_shift_disparity":
        p, g = 1 / p, 1 / g
    p_mean, g_mean = p.mean(), g.mean()
    centred = p - p_mean
    variance = centred @ centred
    # A constant differs from its mean by rounding alone, which must not become a slope.
    constant = variance <= p.size * (np.finfo(np.float64).eps * p_mean) ** 2
    scale = 0.0 if constant else float(centred @ (g - g_mean) / variance)
    return scale, float(g_mean - scale * p_mean)


def align(
    prediction: ArrayLike,
    truth: ArrayLike,
    valid: ArrayLike | None = None,
    method: Alignment = "median",
    max_depth: float | None = None,
) -> Array:
    """
    The prediction after [`fit_alignment`]; any metric of it is the scale-invariant ("median", "scale") or
    affine-invariant ("scale_shift", "scale_shift_disparity") variant of that metric.

    Args:
        prediction, truth, valid, method: as there.
        max_depth: metres at which "scale_shift_disparity" cuts, so that a disparity fitted at or below zero is this
            far away (Ranftl et al. 2020). Without it such a pixel is infinitely far, and a failure.

    Returns:
        Metres of the shape of the prediction, float64; NaN where there was no answer. A fitted depth can come out zero
        or negative: that is a failure to the metrics, unless it is clipped to a range first.

    Raises:
        ValueError: as in [`fit_alignment`], or for a `max_depth` that is not positive.
    """
    if max_depth is not None and not max_depth > 0:
        raise ValueError(f"`max_depth` must be above 0 metres, got {max_depth}.")
    scale, shift = fit_alignment(prediction, truth, valid, method)
    metres = np.asarray(prediction, dtype=np.float64)
    metres = np.where(answered(metres), metres, np.nan)
    if method != "scale_shift_disparity":
        return scale * metres + shift
    disparity = scale / metres + shift
    if max_depth is not None:
        disparity = np.maximum(disparity, 1 / max_depth)
    positive = disparity > 0
    return np.where(positive, 1 / np.where(positive, disparity, 1.0), np.where(np.isnan(metres), np.nan, np.inf))
