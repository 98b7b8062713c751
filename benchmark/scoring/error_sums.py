"""Which pixels are scored, and the sums over them that every metric is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

DELTA_THRESHOLD = 1.25

_GREATEST = float(np.finfo(np.float32).max)


def valid_truth(truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image") -> Mask:
    """
    Pixels that are scored: finite and positive truth, and inside `valid` where it is given.

    Raises:
        ValueError: `valid` has another shape, or no pixel is left; with `name`.
    """
    metres = np.asarray(truth)
    mask: Mask = np.isfinite(metres) & (metres > 0)
    if valid is not None:
        chosen = np.asarray(valid, dtype=bool)
        if chosen.shape != metres.shape:
            raise ValueError(f"The mask of {name} has the shape {chosen.shape}, its truth {metres.shape}.")
        mask &= chosen
    if not mask.any():
        raise ValueError(
            f"The truth of {name} has no valid pixel (shape {metres.shape}): its data are wrong. Check the depth file, "
            "its scale, the valid range and the crop."
        )
    return mask


def answered(prediction: ArrayLike) -> Mask:
    """Where a system gave a depth: positive, and finite in float32 as depth is. Everything else is a failure."""
    metres = np.asarray(prediction)
    return (metres > 0) & (metres <= _GREATEST)


def answers(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image"
) -> tuple[Array, Array, int]:
    """
    What the metrics compare.

    Args:
        prediction: metres, of any shape.
        truth: metres, of the same shape; 0, negative and non-finite where there is none.
        valid: bool of the same shape, where to score; by default wherever there is truth.
        name: of the image, for messages.

    Returns:
        Predicted and true metres `(n,)` at the valid pixels with an answer, and the number of all valid pixels, of
        which `pixels - n` are failures.

    Raises:
        ValueError: the shapes differ, or no truth pixel is valid.
    """
    predicted, metres = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != metres.shape:
        raise ValueError(f"The prediction for {name} has the shape {predicted.shape}, its truth {metres.shape}.")
    mask = valid_truth(metres, valid, name)
    pixels = int(np.count_nonzero(mask))
    mask &= answered(predicted)
    return predicted[mask].astype(np.float64), metres[mask].astype(np.float64), pixels


def ratio(p: Array, g: Array) -> Array:
    """`max(p / g, g / p)`."""
    with np.errstate(over="ignore"):
        return np.maximum(p / g, g / p)


@dataclass(frozen=True)
class ErrorSums:
    """
    What all metrics of a set of pixels are made of.

    Args:
        pixels: valid ones.
        answers: valid ones with an answer.
        within1, within2, within3: answers below the thresholds 1.25, 1.25^2 and 1.25^3.
        abs_rel, sq_rel, squared, log10: sums over the answers.
        log_mean: mean of `d = ln p - ln g` over the answers.
        log_spread: sum of `(d - log_mean)^2`.
    """

    pixels: int
    answers: int
    within1: int
    within2: int
    within3: int
    abs_rel: float
    sq_rel: float
    squared: float
    log10: float
    log_mean: float
    log_spread: float

    @classmethod
    def of(
        cls, prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image"
    ) -> ErrorSums:
        """Of one image; shapes and errors as in [`answers`]."""
        p, g, pixels = answers(prediction, truth, valid, name)
        ratios, error = ratio(p, g), np.abs(p - g)
        squared = error**2
        d = np.log(p) - np.log(g)
        mean = float(d.mean()) if d.size else 0.0
        return cls(
            pixels,
            p.size,
            int(np.count_nonzero(ratios < DELTA_THRESHOLD)),
            int(np.count_nonzero(ratios < DELTA_THRESHOLD**2)),
            int(np.count_nonzero(ratios < DELTA_THRESHOLD**3)),
            float((error / g).sum()),
            float((squared / g).sum()),
            float(squared.sum()),
            float(np.abs(d).sum()) / math.log(10),
            mean,
            float(((d - mean) ** 2).sum()),
        )

    @classmethod
    def pooled(cls, parts: Iterable[ErrorSums]) -> ErrorSums:
        """Of the pixels of all parts together. Sums are exact (`math.fsum`), so the order does not matter."""
        parts = list(parts)
        count = sum(part.answers for part in parts)
        mean = math.fsum(part.answers * part.log_mean for part in parts) / count if count else 0.0
        between = math.fsum(part.answers * (part.log_mean - mean) ** 2 for part in parts)
        return cls(
            sum(part.pixels for part in parts),
            count,
            sum(part.within1 for part in parts),
            sum(part.within2 for part in parts),
            sum(part.within3 for part in parts),
            math.fsum(part.abs_rel for part in parts),
            math.fsum(part.sq_rel for part in parts),
            math.fsum(part.squared for part in parts),
            math.fsum(part.log10 for part in parts),
            mean,
            math.fsum(part.log_spread for part in parts) + between,
        )

    @property
    def failures(self) -> int:
        """Valid pixels without an answer."""
        return self.pixels - self.answers

    def metrics(self) -> dict[str, float]:
        """All of `METRICS`; without any answer the deltas are 0 and the others NaN."""
        count = self.answers or math.nan
        return {
            "delta1": self.within1 / self.pixels,
            "delta2": self.within2 / self.pixels,
            "delta3": self.within3 / self.pixels,
            "abs_rel": self.abs_rel / count,
            "sq_rel": self.sq_rel / count,
            "rmse": math.sqrt(self.squared / count),
            "rmse_log": math.sqrt(self.log_spread / count + self.log_mean**2),
            "log10": self.log10 / count,
            "silog": math.sqrt(self.log_spread / count),
        }
