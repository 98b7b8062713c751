"""Uncertainty of a score: bootstrap over images, and paired comparison of two systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .metrics import Array

MeanOf: TypeAlias = Literal["images", "strata"]

# Resampled images held in memory at once.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Interval:
    """A mean over images, or of the differences of two systems, with its percentile bootstrap interval."""

    estimate: float
    low: float
    high: float
    confidence: float
    images: int
    samples: int
    p_value: float | None = None  # two-sided, of no difference
    means: Array = field(repr=False, compare=False, default_factory=lambda: np.zeros(0))  # one for each resample


def bootstrap_interval(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    strata: Mapping[str, str] | None = None,
    mean_of: MeanOf = "images",
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return a mean with its percentile bootstrap interval over images (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: Score of each image by id (`MetricAccumulator.values`).
        weights: Weight of each image by id, for a score of pooled pixels (`MetricAccumulator.pixels`):
            `sum(w v) / sum(w)`.
        strata: Set of each image by id; each set is then resampled alone and keeps its size.
        mean_of: "images", or "strata" for the plain mean of the sets' means, as in the paper's `Avg.` column.
        confidence: Confidence of the interval, in (0, 1).
        samples: Number of resamples.
        seed: Seed; the same seed gives the same interval.

    Raises:
        ValueError: There is no image, a value is not finite, weights or strata belong to other images, or an option
            is out of range.
    """
    from scipy.stats import bootstrap

    groups = _groups(values, weights, strata, mean_of, confidence, samples)

    def mean(*drawn: NDArray[np.int64], axis: int = -1) -> Array:
        # SciPy wants two observations at least; a stratum of one image has a second index that is not read.
        sums = []
        for (v, w), indices in zip(groups, drawn, strict=True):
            chosen = indices[..., : len(v)]
            sums.append(((v * w)[chosen].sum(axis), w[chosen].sum(axis)))
        totals, counts = np.moveaxis(np.array(sums), 1, 0)
        if mean_of == "strata":
            return (totals / counts).mean(axis=0)
        return totals.sum(axis=0) / counts.sum(axis=0)

    indices = [np.arange(max(len(v), 2)) % len(v) for v, _ in groups]
    found = bootstrap(
        indices,
        mean,
        n_resamples=samples,
        batch=max(1, _CHUNK // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, found.confidence_interval)
    return Interval(
        float(mean(*indices)), low, high, confidence, len(values), samples, means=found.bootstrap_distribution
    )


def paired_bootstrap(first: Mapping[str, float], second: Mapping[str, float], **options: Any) -> Interval:
    """Compare two systems on the same images, which are resampled together.

    The p-value is the share of resampled differences that are at least as far from the observed difference as that is
    from zero, `(1 + #{|d* - d| >= |d|}) / (1 + samples)` (Efron and Tibshirani 1993, section 16.4).

    Args:
        first: Score of each image by id.
        second: The same of the other system.
        **options: As in [`bootstrap_interval`], from `weights` on.

    Raises:
        ValueError: The images differ (the message names some), or as in [`bootstrap_interval`].
    """
    _check_same("The second system", second, first)
    found = bootstrap_interval({image: value - second[image] for image, value in first.items()}, **options)
    # Rounding must not tell equal distances apart.
    slack = 1e-12 * max(abs(found.estimate), float(np.abs(found.means).max()))
    extreme = np.count_nonzero(np.abs(found.means - found.estimate) >= abs(found.estimate) - slack)
    return replace(found, p_value=(1 + int(extreme)) / (1 + found.samples))


def _groups(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None,
    strata: Mapping[str, str] | None,
    mean_of: MeanOf,
    confidence: float,
    samples: int,
) -> list[tuple[Array, Array]]:
    """Return values and weights of each stratum, in an order that does not depend on that of the mappings."""
    if not values:
        raise ValueError("No image was scored, so there is nothing to resample.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence}.")
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, got {samples}.")
    if mean_of not in ("images", "strata"):
        raise ValueError(f'`mean_of` must be "images" or "strata", got {mean_of!r}.')
    if mean_of == "strata" and strata is None:
        raise ValueError('`mean_of="strata"` needs `strata`, the set of each image.')
    undefined = [image for image, value in values.items() if not np.isfinite(value)]
    if undefined:
        raise ValueError(
            f"{len(undefined)} image(s) have no finite score, {undefined[0]!r} first: leave them out, of both systems "
            "in a comparison, and say so beside the number."
        )
    for name, mapping in (("`weights`", weights), ("`strata`", strata)):
        if mapping is not None:
            _check_same(name, mapping, values)
    members: dict[str, list[str]] = {}
    for image in sorted(values):
        members.setdefault("" if strata is None else strata[image], []).append(image)
    groups = []
    for _, images in sorted(members.items()):
        weight = np.array([1.0 if weights is None else weights[image] for image in images])
        if not (np.isfinite(weight) & (weight > 0)).all():
            raise ValueError("`weights` must be finite and above 0.")
        groups.append((np.array([values[image] for image in images], dtype=np.float64), weight))
    return groups


def _check_same(name: str, given: Mapping[str, object], expected: Mapping[str, object]) -> None:
    problems = []
    for what, images in (("missing", set(expected) - set(given)), ("unknown", set(given) - set(expected))):
        if images:
            names = ", ".join(sorted(images)[:3])
            problems.append(f"{len(images)} {what} ({names}{', ...' if len(images) > 3 else ''})")
    if problems:
        raise ValueError(f"{name} must have the same images as the scores: {'; '.join(problems)}.")
