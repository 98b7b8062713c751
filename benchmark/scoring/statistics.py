"""How sure a score is: bootstrap over images, and paired comparison of two systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .error_sums import Array

MeanOf: TypeAlias = Literal["images", "strata"]

# Resampled images held in memory at once.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class Interval:
    """A mean over images with its percentile bootstrap interval: `low` and `high` at `confidence`."""

    estimate: float
    low: float
    high: float
    confidence: float
    images: int
    samples: int


@dataclass(frozen=True)
class Comparison:
    """First minus second system: `difference`, its interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float
    confidence: float
    images: int
    samples: int


def bootstrap_interval(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    strata: Mapping[str, str] | None = None,
    mean_of: MeanOf = "images",
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """
    Percentile bootstrap over images (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: the score of each image by id (`MetricAccumulator.values`).
        weights: of the images by id, for a score of pooled pixels (`MetricAccumulator.pixels`): `sum(w v) / sum(w)`.
        strata: the set of each image by id; each set is then resampled alone and keeps its size.
        mean_of: "images", or "strata", the plain mean of the sets' means, as the paper's `Avg.` column.
        confidence: of the interval, in (0, 1).
        samples: number of resamples.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no image, a value that is not finite, weights or strata of other images, or a bad option.
    """
    groups = _groups(values, weights, strata, mean_of, confidence, samples)
    estimate = _combine([np.array([[v @ w, w.sum()]]) for v, w in groups], mean_of)[0]
    means = np.concatenate(list(_resampled(groups, mean_of, samples, seed)))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high), confidence, len(values), samples)


def paired_bootstrap(
    first: Mapping[str, float],
    second: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    strata: Mapping[str, str] | None = None,
    mean_of: MeanOf = "images",
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """
    Compares two systems on the same images, which are resampled together.

    The interval is of the percentiles. The p-value is the share of resampled differences as far from the observed one
    as that is from zero, `(1 + #{|d* - d| >= |d|}) / (1 + samples)` (Efron and Tibshirani 1993, section 16.4).

    Args:
        first, second: the scores of each image by id, of the same images.
        weights, strata, mean_of, confidence, samples, seed: as in [`bootstrap_interval`].

    Raises:
        ValueError: the images differ, with some of those that do; or as in [`bootstrap_interval`].
    """
    _check_same("The second system", second, first)
    groups = _groups({k: v - second[k] for k, v in first.items()}, weights, strata, mean_of, confidence, samples)
    difference = _combine([np.array([[v @ w, w.sum()]]) for v, w in groups], mean_of)[0]
    means = np.concatenate(list(_resampled(groups, mean_of, samples, seed)))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    # Equal distances must not be told apart by rounding.
    slack = 1e-12 * max(abs(difference), float(np.abs(means).max()))
    extreme = int(np.count_nonzero(np.abs(means - difference) >= abs(difference) - slack))
    p_value = (1 + extreme) / (1 + samples)
    return Comparison(float(difference), float(low), float(high), p_value, confidence, len(first), samples)


def _groups(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None,
    strata: Mapping[str, str] | None,
    mean_of: MeanOf,
    confidence: float,
    samples: int,
) -> list[tuple[Array, Array]]:
    """Values and weights of each stratum, in an order that does not depend on that of the mapping."""
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


def _resampled(groups: list[tuple[Array, Array]], mean_of: MeanOf, samples: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // sum(len(v) for v, _ in groups))
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        sums = []
        for value, weight in groups:
            chosen = rng.integers(0, len(value), (count, len(value)), dtype=np.int32)
            sums.append(np.stack([(value * weight)[chosen].sum(axis=1), weight[chosen].sum(axis=1)], axis=1))
        yield _combine(sums, mean_of)


def _combine(sums: list[Array], mean_of: MeanOf) -> Array:
    """Means from the weighted sums and weights `(samples, 2)` of each stratum."""
    stacked = np.stack(sums)
    if mean_of == "strata":
        return (stacked[..., 0] / stacked[..., 1]).mean(axis=0)
    total = stacked.sum(axis=0)
    return total[:, 0] / total[:, 1]


def _check_same(name: str, given: Mapping[str, object], expected: Mapping[str, object]) -> None:
    problems = []
    for what, images in (("missing", set(expected) - set(given)), ("unknown", set(given) - set(expected))):
        if images:
            names = ", ".join(sorted(images)[:3])
            problems.append(f"{len(images)} {what} ({names}{', ...' if len(images) > 3 else ''})")
    if problems:
        raise ValueError(f"{name} must be of the same images as the scores: {'; '.join(problems)}.")
