"""Depth metrics: which pixels are scored, functions of arrays in metres, exact sums, and an accumulator over images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
DELTA_THRESHOLD = 1.25

_GREATEST = float(np.finfo(np.float32).max)


def valid_truth(truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image") -> Mask:
    """Return the pixels that are scored: finite, positive truth, inside `valid` where that is given.

    Raises:
        ValueError: `valid` has another shape, or no pixel is left; the message contains `name`.
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
    """Return where a system gave a depth: positive and finite in float32. Everything else is a failure."""
    metres = np.asarray(prediction)
    return (metres > 0) & (metres <= _GREATEST)


def answers(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image"
) -> tuple[Array, Array, int]:
    """Return the values that the metrics compare.

    Args:
        prediction: Metres, of any shape.
        truth: Metres, of the same shape; zero, negative or not finite where there is no truth.
        valid: Boolean mask of the same shape; by default every pixel with truth is scored.
        name: Name of the image for error messages.

    Returns:
        Predicted and true metres `(n,)` at the valid pixels with an answer, and the number of all valid pixels, of
        which `pixels - n` are failures.

    Raises:
        ValueError: The shapes differ, or no truth pixel is valid.
    """
    predicted, metres = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != metres.shape:
        raise ValueError(f"The prediction for {name} has the shape {predicted.shape}, its truth {metres.shape}.")
    mask = valid_truth(metres, valid, name)
    pixels = int(np.count_nonzero(mask))
    mask &= answered(predicted)
    return predicted[mask].astype(np.float64), metres[mask].astype(np.float64), pixels


@dataclass(frozen=True)
class ErrorSums:
    """Sums over a set of pixels from which every metric follows."""

    pixels: int  # valid
    answers: int  # valid, with an answer
    within1: int  # answers with a ratio below 1.25
    within2: int  # below 1.25^2
    within3: int  # below 1.25^3
    abs_rel: float  # sums over the answers, as the next three
    sq_rel: float
    squared: float
    log10: float
    log_mean: float  # mean of d = ln p - ln g over the answers
    log_spread: float  # sum of (d - log_mean)^2

    @classmethod
    def of(
        cls, prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, name: str = "the image"
    ) -> ErrorSums:
        """Return the sums of one image; shapes and errors are those of [`answers`]."""
        p, g, pixels = answers(prediction, truth, valid, name)
        ratios, error = _ratio(p, g), np.abs(p - g)
        squared = error**2
        d = np.log(p) - np.log(g)
        mean = float(d.mean()) if d.size else 0.0
        within1, within2, within3 = (int(np.count_nonzero(ratios < DELTA_THRESHOLD**power)) for power in (1, 2, 3))
        return cls(
            pixels,
            p.size,
            within1,
            within2,
            within3,
            float((error / g).sum()),
            float((squared / g).sum()),
            float(squared.sum()),
            float(np.abs(d).sum()) / math.log(10),
            mean,
            float(((d - mean) ** 2).sum()),
        )

    @classmethod
    def pooled(cls, parts: Iterable[ErrorSums]) -> ErrorSums:
        """Return the sums over the pixels of all parts. They are exact (`math.fsum`), so the order does not matter."""
        parts = list(parts)
        counts = ("pixels", "answers", "within1", "within2", "within3")
        count: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in counts}
        total: dict[str, Any] = {
            name: math.fsum(getattr(part, name) for part in parts)
            for name in ("abs_rel", "sq_rel", "squared", "log10", "log_spread")
        }
        mean = math.fsum(part.answers * part.log_mean for part in parts) / (count["answers"] or 1)
        total["log_spread"] += math.fsum(part.answers * (part.log_mean - mean) ** 2 for part in parts)
        return cls(**count, **total, log_mean=mean)

    @property
    def failures(self) -> int:
        """Number of valid pixels without an answer."""
        return self.pixels - self.answers

    def metrics(self) -> dict[str, float]:
        """Return all of `METRICS`; without any answer the deltas are 0 and the others NaN."""
        count = self.answers or math.nan
        return {
            "delta1": self.within1 / self.pixels,
            "delta2": self.within2 / self.pixels,
            "delta3": self.within3 / self.pixels,
            "abs_rel": self.abs_rel / count,
            "sq_rel": self.sq_rel / count,
            "rmse": math.sqrt(self.squared / count),
            "rmse_log": self.silog(0.0),
            "log10": self.log10 / count,
            "silog": self.silog(1.0),
        }

    def silog(self, silog_lambda: float) -> float:
        """Return `sqrt(mean(d^2) - silog_lambda * mean(d)^2)`, written so that rounding cannot bring it below zero."""
        spread = self.log_spread / (self.answers or math.nan)
        return math.sqrt(spread + (1 - silog_lambda) * self.log_mean**2)


def delta(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, threshold: float = DELTA_THRESHOLD
) -> float:
    """Return the share of the valid pixels with `max(p / g, g / p) < threshold` (paper, section 4.1, for 1.25).

    A failure counts as wrong, also a negative answer, whose ratio is below any threshold. Shapes and errors are those
    of [`answers`].
    """
    p, g, pixels = answers(prediction, truth, valid)
    return int(np.count_nonzero(_ratio(p, g) < threshold)) / pixels


def delta1(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return [`delta`] at the threshold 1.25; failures count as wrong."""
    return delta(prediction, truth, valid)


def delta2(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return [`delta`] at the threshold 1.25^2; failures count as wrong."""
    return delta(prediction, truth, valid, DELTA_THRESHOLD**2)


def delta3(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return [`delta`] at the threshold 1.25^3; failures count as wrong."""
    return delta(prediction, truth, valid, DELTA_THRESHOLD**3)


def abs_rel(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return `mean(|p - g| / g)` over valid answers, NaN without any; failures are left out, see [`failures`]."""
    return ErrorSums.of(prediction, truth, valid).metrics()["abs_rel"]


def sq_rel(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return `mean((p - g)^2 / g)` in metres over valid answers, NaN without any; failures are left out."""
    return ErrorSums.of(prediction, truth, valid).metrics()["sq_rel"]


def rmse(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return `sqrt(mean((p - g)^2))` in metres over valid answers, NaN without any; failures are left out."""
    return ErrorSums.of(prediction, truth, valid).metrics()["rmse"]


def rmse_log(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return `sqrt(mean(d^2))`, `d = ln p - ln g`, over valid answers, NaN without any; failures are left out."""
    return ErrorSums.of(prediction, truth, valid).metrics()["rmse_log"]


def log10(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return `mean(|log10 p - log10 g|)` over valid answers, NaN without any; failures are left out."""
    return ErrorSums.of(prediction, truth, valid).metrics()["log10"]


def silog(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, silog_lambda: float = 1.0) -> float:
    """Return `sqrt(mean(d^2) - silog_lambda * mean(d)^2)`, `d = ln p - ln g`, over valid answers; NaN without any.

    The default of 1 gives the standard deviation of d, which does not depend on the scale (Eigen et al. 2014, equation
    1, under a root, as KITTI has it). The training loss uses 0.5. Failures are left out.
    """
    return ErrorSums.of(prediction, truth, valid).silog(silog_lambda)


def silog_kitti(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Return 100 times [`silog`], as KITTI's depth leaderboard prints it (natural logarithm)."""
    return 100 * silog(prediction, truth, valid)


def failures(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> int:
    """Return the number of valid pixels without a finite, positive prediction."""
    return ErrorSums.of(prediction, truth, valid).failures


class MetricAccumulator:
    """Scores of many images.

    A dozen numbers are kept of each image. The mean over images and the metrics of the pooled pixels are made of them
    with exact sums: the result is the same to the last bit for any order of the images.
    """

    def __init__(self) -> None:
        self._sums: dict[str, ErrorSums] = {}
        self._metrics: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, image_id: str, prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> None:
        """Score one image.

        Args:
            image_id: Unique id; an image that enters twice (a small set, oversampled) needs two ids.
            prediction: Metres, as in [`answers`].
            truth: Metres of the same shape.
            valid: Boolean mask of the same shape.

        Raises:
            ValueError: The shapes differ, no truth pixel is valid, or the id is known; the message names the image.
        """
        self.add_sums(image_id, ErrorSums.of(prediction, truth, valid, f"image {image_id!r}"))

    def add_sums(self, image_id: str, sums: ErrorSums, extra: Mapping[str, float] | None = None) -> None:
        """Add an image that is already scored.

        Args:
            image_id: Unique id.
            sums: Its sums.
            extra: Further metrics of this image by name (boundary F1, F-score), NaN where undefined.

        Raises:
            ValueError: The id is known.
        """
        if image_id in self._sums:
            raise ValueError(f"The image {image_id!r} was already scored: each image counts once.")
        self._sums[image_id] = sums
        self._metrics[image_id] = {**sums.metrics(), **(extra or {})}

    def values(self, metric: str) -> dict[str, float]:
        """Return one metric of each image by id, NaN where undefined.

        Raises:
            ValueError: An image lacks the metric.
        """
        for image_id, metrics in self._metrics.items():
            if metric not in metrics:
                raise ValueError(f"The image {image_id!r} has no metric {metric!r}, only {', '.join(metrics)}.")
        return {image_id: metrics[metric] for image_id, metrics in self._metrics.items()}

    def pixels(self) -> dict[str, int]:
        """Return the number of valid pixels of each image by id: weights that turn means over images into pooled."""
        return {image_id: sums.pixels for image_id, sums in self._sums.items()}

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the metrics of all images.

        Returns:
            `images`: mean over the images, each metric over those that have it (`defined`). `pixels`: the metrics of
            all pixels pooled. `defined`: number of images in each mean. `counts`: `images`, `pixels`, `failures`
            (valid pixels without an answer) and `failed_images` (without any answer).

        Raises:
            ValueError: There is no image.
        """
        if not self._sums:
            raise ValueError("No image was scored, so there is no result.")
        finite: dict[str, list[float]] = {}
        for name, value in (item for metrics in self._metrics.values() for item in metrics.items()):
            finite.setdefault(name, []).extend([] if math.isnan(value) else [value])
        pooled = ErrorSums.pooled(self._sums.values())
        return {
            "images": {name: math.fsum(v) / len(v) if v else math.nan for name, v in finite.items()},
            "pixels": pooled.metrics(),
            "defined": {name: len(v) for name, v in finite.items()},
            "counts": {
                "images": len(self._sums),
                "pixels": pooled.pixels,
                "failures": pooled.failures,
                "failed_images": sum(sums.answers == 0 for sums in self._sums.values()),
            },
        }


def _ratio(p: Array, g: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.maximum(p / g, g / p)
