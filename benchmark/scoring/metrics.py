"""Depth metrics: pure functions on arrays of metres, and an accumulator over images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .error_sums import DELTA_THRESHOLD, Array, ErrorSums, answers, ratio

METRICS = ("delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
HIGHER_IS_BETTER = frozenset({"delta1", "delta2", "delta3", "boundary_f1", "point_cloud_f_score"})


def delta(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, threshold: float = DELTA_THRESHOLD
) -> float:
    """
    Share of the valid pixels with `max(p / g, g / p) < threshold` (paper, section 4.1, for 1.25).

    A failure (not finite, zero or negative: the ratio of a negative one is below any threshold) counts as wrong.
    Shapes and errors as in [`answers`].
    """
    p, g, pixels = answers(prediction, truth, valid)
    return int(np.count_nonzero(ratio(p, g) < threshold)) / pixels


def delta1(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """[`delta`] with the threshold 1.25; failures count as wrong."""
    return delta(prediction, truth, valid, DELTA_THRESHOLD)


def delta2(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """[`delta`] with the threshold 1.25^2; failures count as wrong."""
    return delta(prediction, truth, valid, DELTA_THRESHOLD**2)


def delta3(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """[`delta`] with the threshold 1.25^3; failures count as wrong."""
    return delta(prediction, truth, valid, DELTA_THRESHOLD**3)


def abs_rel(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """`mean(|p - g| / g)` over valid answers; NaN without any. Failures do not enter: read [`failures`] beside it."""
    p, g, _ = answers(prediction, truth, valid)
    return _mean(np.abs(p - g) / g)


def sq_rel(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """`mean((p - g)^2 / g)` in metres over valid answers; NaN without any. Failures do not enter."""
    p, g, _ = answers(prediction, truth, valid)
    return _mean((p - g) ** 2 / g)


def rmse(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """`sqrt(mean((p - g)^2))` in metres over valid answers; NaN without any. Failures do not enter."""
    p, g, _ = answers(prediction, truth, valid)
    return math.sqrt(_mean((p - g) ** 2))


def rmse_log(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """`sqrt(mean(d^2))`, `d = ln p - ln g`, over valid answers; NaN without any. Failures do not enter."""
    p, g, _ = answers(prediction, truth, valid)
    return math.sqrt(_mean((np.log(p) - np.log(g)) ** 2))


def log10(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """`mean(|log10 p - log10 g|)` over valid answers; NaN without any. Failures do not enter."""
    p, g, _ = answers(prediction, truth, valid)
    return _mean(np.abs(np.log10(p) - np.log10(g)))


def silog(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, silog_lambda: float = 1.0) -> float:
    """
    `sqrt(mean(d^2) - silog_lambda * mean(d)^2)`, `d = ln p - ln g` (natural), over valid answers; NaN without any.

    With the default of 1 it is the standard deviation of d, blind to scale (Eigen et al. 2014, equation 1, under a
    root, as KITTI does). The training loss has 0.5. Failures do not enter.
    """
    p, g, _ = answers(prediction, truth, valid)
    d = np.log(p) - np.log(g)
    mean = _mean(d)
    # Written as variance + (1 - lambda) mean^2: never below zero by rounding.
    return math.sqrt(_mean((d - mean) ** 2) + (1 - silog_lambda) * mean**2)


def silog_kitti(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> float:
    """100 times [`silog`], as KITTI's depth leaderboard prints it (natural logarithm)."""
    return 100 * silog(prediction, truth, valid)


def failures(prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None) -> int:
    """Number of valid pixels without a finite, positive prediction."""
    p, _, pixels = answers(prediction, truth, valid)
    return pixels - p.size


@dataclass(frozen=True)
class ImageRow:
    """The scores of one image: `id`, its sums, and metrics of its own kind in `extra` (boundary F1, F-score)."""

    id: str
    sums: ErrorSums
    extra: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """`METRICS` and the extra ones."""
        return {**self.sums.metrics(), **self.extra}

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: metrics (without undefined ones), counts, and what [`from_dict`] makes the row of again."""
        defined = {name: value for name, value in self.metrics().items() if not math.isnan(value)}
        extra = {name: None if math.isnan(value) else value for name, value in self.extra.items()}
        counts = {"pixels": self.sums.pixels, "failures": self.sums.failures}
        return {"id": self.id, "metrics": defined, **counts, "sums": asdict(self.sums), "extra": extra}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ImageRow:
        """The row that [`to_dict`] wrote, to the last bit."""
        extra = {name: math.nan if value is None else value for name, value in row["extra"].items()}
        return cls(row["id"], ErrorSums(**row["sums"]), extra)


class MetricAccumulator:
    """
    Scores of many images, as they come.

    Each image keeps a row of a dozen numbers, from which both the mean over images and the metrics of the pooled pixels
    are made, with exact sums: the result is the same to the last bit, however the images were ordered or shared out.
    """

    def __init__(self, rows: Iterable[ImageRow] = ()):
        self._rows: dict[str, ImageRow] = {}
        for row in rows:
            self.add_row(row)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    @property
    def rows(self) -> list[ImageRow]:
        """In the order in which they came."""
        return list(self._rows.values())

    def add(
        self,
        image_id: str,
        prediction: ArrayLike,
        truth: ArrayLike,
        valid: ArrayLike | None = None,
        extra: Mapping[str, float] | None = None,
    ) -> ImageRow:
        """
        Scores one image.

        Args:
            image_id: unique; an image that enters twice (a small set, oversampled) needs two ids.
            prediction, truth, valid: as in [`answers`], metres.
            extra: metrics of this image by name, NaN where undefined.

        Raises:
            ValueError: the shapes differ, no truth pixel is valid, or the id was there before; it names the image.
        """
        row = ImageRow(image_id, ErrorSums.of(prediction, truth, valid, f"image {image_id!r}"), dict(extra or {}))
        self.add_row(row)
        return row

    def add_row(self, row: ImageRow) -> None:
        """Adds an image that was scored before. Raises ValueError if its id is already there."""
        if row.id in self._rows:
            raise ValueError(f"The image {row.id!r} was already scored: each image counts once.")
        self._rows[row.id] = row

    def merge(self, other: MetricAccumulator) -> MetricAccumulator:
        """Adds all images of another process. Raises ValueError, and adds none, if one is in both."""
        both = [image_id for image_id in other._rows if image_id in self._rows]
        if both:
            raise ValueError(f"{len(both)} image(s) were scored by both parts, {both[0]!r} first: each counts once.")
        self._rows |= other._rows
        return self

    def values(self, metric: str) -> dict[str, float]:
        """One metric of each image by id, NaN where undefined. Raises ValueError for a metric that a row lacks."""
        result = {}
        for row in self._rows.values():
            metrics = row.metrics()
            if metric not in metrics:
                raise ValueError(f"The image {row.id!r} has no metric {metric!r}, only {', '.join(metrics)}.")
            result[row.id] = metrics[metric]
        return result

    def pixels(self) -> dict[str, int]:
        """Number of valid pixels of each image by id: the weights with which means over images become pooled."""
        return {row.id: row.sums.pixels for row in self._rows.values()}

    def compute(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            `images`: mean over the images, each metric over those that have it (`defined`). `pixels`: the metrics of
            all pixels pooled. `defined`: number of images in each mean. `counts`: `images`, `pixels`, `failures`
            (valid pixels without an answer) and `failed_images` (without any answer).

        Raises:
            ValueError: there is no image.
        """
        if not self._rows:
            raise ValueError("No image was scored, so there is no result.")
        by_metric: dict[str, list[float]] = {}
        for row in self._rows.values():
            for name, value in row.metrics().items():
                by_metric.setdefault(name, []).append(value)
        finite = {name: [v for v in values if not math.isnan(v)] for name, values in by_metric.items()}
        pooled = ErrorSums.pooled(row.sums for row in self._rows.values())
        return {
            "images": {name: math.fsum(v) / len(v) if v else math.nan for name, v in finite.items()},
            "pixels": pooled.metrics(),
            "defined": {name: len(v) for name, v in finite.items()},
            "counts": {
                "images": len(self._rows),
                "pixels": pooled.pixels,
                "failures": pooled.failures,
                "failed_images": sum(row.sums.answers == 0 for row in self._rows.values()),
            },
        }


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else math.nan
