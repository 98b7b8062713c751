"""Corrections of a depth map by distances that the user knows, each robust to wrong ones among them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .visualize import valid_mask

POINTS_NEEDED = {"scale": 1, "scale+shift": 3, "field": 10}
"""The least number of known points of each model."""

# A known point whose distance differs from the corrected map by less than this, relatively, is never rejected.
_TRUSTED = 0.05
_MADS = 3 * 1.4826  # three standard deviations of a normal distribution, in median absolute deviations
_LEAST_RATIO = 1.2  # of the farthest to the nearest point, below which a shift cannot be told from a scale
_SEARCHED = 500  # points and pairs that the search for a scale and a shift looks at
_CELLS = 16  # along the longer side; the known points of a cell of the field become one, their median
# Length of the field's variation over the picture's longer side, and variance of a point's error over the field's.
_SMOOTHNESS = tuple((length, noise) for length in (0.15, 0.3, 0.6, 1.2) for noise in (0.01, 0.1, 1.0))


@dataclass(frozen=True)
class Calibration:
    """Record of a calibration, see `Prediction.calibrate`.

    Attributes:
        model: `scale`, `scale+shift` or `field`.
        factor: The factor by which the depth was multiplied; of a field, its median over the picture.
        shift: Metres added after that; 0 except for `scale+shift`.
        error_before: Median of |predicted / known - 1| over the used points, before the calibration.
        error_after: The same after it.
        used: Number of points that determined the correction.
        rejected: The points that disagree with it, each as x, y in pixels and its known distance in metres as given.
    """

    model: str
    factor: float
    shift: float
    error_before: float
    error_after: float
    used: int
    rejected: tuple[tuple[float, float, float], ...]


class Correction(NamedTuple):
    """The correction `factor * depth + shift`, and the mask `(n,)` of the known points that agree with it."""

    factor: "float | NDArray[np.float64]"
    shift: float
    agree: NDArray[np.bool_]


def checked_points(
    points: Mapping[tuple[float, float], float] | ArrayLike, model: str, along: str, depth: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return known points as `(n, 3)`, x and y in pixels and metres, after checking them; see `Prediction.calibrate`.

    Raises:
        ValueError: See `Prediction.calibrate`.
    """
    if model not in POINTS_NEEDED or along not in ("z", "ray"):
        raise ValueError(
            f"Got model={model!r} and along={along!r}; the models are {', '.join(POINTS_NEEDED)}, and distances are "
            "along 'z' or the 'ray'."
        )
    rows = [(*position, metres) for position, metres in points.items()] if isinstance(points, Mapping) else points
    try:
        known = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError):
        known = np.empty(0)
    if known.size and (known.ndim != 2 or known.shape[1] != 3):
        raise ValueError(f"Known points are {{(x, y): metres}} or an array (n, 3), got {np.shape(rows)}.")
    if len(known) < POINTS_NEEDED[model]:
        raise ValueError(f"model={model!r} needs at least {POINTS_NEEDED[model]} known points, got {len(known)}.")
    height, width = depth.shape
    for x, y, metres in known:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"The known point ({x:g}, {y:g}) is outside the image of {width}x{height} pixels: x from 0 to below "
                f"{width}, y from 0 to below {height}."
            )
        if not (np.isfinite(metres) and metres > 0):
            raise ValueError(f"The distance of the known point ({x:g}, {y:g}) must be above 0 metres, got {metres:g}.")
        if not valid_mask(depth[int(y), int(x)]):
            raise ValueError(f"The map has no depth at the known point ({x:g}, {y:g}): leave it out.")
    return known


def calibrated(
    depth: NDArray[np.float32], points: NDArray[np.float64], known: NDArray[np.float64], model: str
) -> tuple[NDArray[np.float32], Calibration]:
    """Return a depth map corrected by known points, and the record of the calibration.

    Args:
        depth: `(H, W)` in metres.
        points: `(n, 3)` from `checked_points`.
        known: `(n,)`, z-depth of the points in metres.
        model: See `Prediction.calibrate`.

    Raises:
        ValueError: The points cannot determine the correction.
    """
    columns, rows = points[:, 0].astype(int), points[:, 1].astype(int)
    predicted = depth[rows, columns].astype(np.float64)
    if model == "field":
        height, width = depth.shape
        correction = fit_field(predicted, known, points[:, :2], (width, height))
    else:
        correction = (fit_scale if model == "scale" else fit_scale_and_shift)(predicted, known)
    factor, shift, agree = correction
    corrected = (depth * factor + shift).astype(np.float32)
    lost = valid_mask(depth) & ~valid_mask(corrected)
    if lost.any():
        warnings.warn(
            f"The shift of {shift:.2f} m takes {lost.sum()} of {depth.size} pixels to or behind the camera: they have "
            'no depth now. Give more points, nearer ones too, or model="scale".',
            stacklevel=3,
        )
        corrected[lost] = 0

    def error(values: NDArray[np.floating]) -> float:
        return float(np.median(np.abs(values[rows, columns][agree] / known[agree] - 1)))

    record = Calibration(
        model=model,
        factor=float(np.median(factor)),
        shift=shift,
        error_before=error(depth),
        error_after=error(corrected),
        used=int(agree.sum()),
        rejected=tuple((float(x), float(y), float(metres)) for x, y, metres in points[~agree]),
    )
    return corrected, record


def fit_scale(predicted: NDArray[np.float64], known: NDArray[np.float64]) -> Correction:
    """Fit one factor: the median of the ratios of known to predicted depth.

    Args:
        predicted: `(n,)`, predicted z-depth at the points, positive.
        known: `(n,)`, known z-depth at the points in metres, positive.
    """
    ratio = np.log(known / predicted)
    agree = _agreeing(ratio - np.median(ratio))
    return Correction(float(np.exp(np.median(ratio[agree]))), 0.0, agree)


def fit_scale_and_shift(predicted: NDArray[np.float64], known: NDArray[np.float64]) -> Correction:
    """Fit `factor * depth + shift` by the least median of relative errors, then by least squares of what agrees.

    The search takes the line through each pair of points (up to 500 of them) and keeps the one with the smallest
    median error, which up to half of the points may contradict (Rousseeuw, "Least median of squares regression", 1984).

    Args:
        predicted: See `fit_scale`.
        known: See `fit_scale`.

    Raises:
        ValueError: The points lie at nearly one depth, or no line with a positive factor fits them.
    """
    _require_depths(predicted)
    random = np.random.default_rng(0)
    few = random.permutation(len(known))[:_SEARCHED]
    z, metres = predicted[few], known[few]
    one, other = np.triu_indices(len(z), 1)
    if len(one) > _SEARCHED:
        chosen = random.choice(len(one), _SEARCHED, replace=False)
        one, other = one[chosen], other[chosen]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = (metres[one] - metres[other]) / (z[one] - z[other])
    usable = (factors > 0) & np.isfinite(factors)
    factors, shifts = factors[usable], metres[one[usable]] - factors[usable] * z[one[usable]]
    errors = np.median(np.abs(_log_error(factors[:, None] * z + shifts[:, None], metres)), axis=1)
    best = int(np.argmin(errors)) if len(errors) else None
    if best is None or not np.isfinite(errors[best]):
        raise ValueError(
            "No factor above 0 and shift bring the prediction to the known points: far ones are given as nearer than "
            "near ones. Check their positions, x before y, and their order."
        )
    agree = _agreeing(_log_error(factors[best] * predicted + shifts[best], known))
    _require_depths(predicted[agree])
    weights = 1 / known[agree]  # relative errors
    columns = np.stack([predicted[agree], np.ones(agree.sum())], axis=1) * weights[:, None]
    (factor, shift), *_ = np.linalg.lstsq(columns, known[agree] * weights, rcond=None)
    return Correction(float(factor), float(shift), agree)


def _require_depths(predicted: NDArray[np.float64]) -> None:
    nearest, farthest = predicted.min(), predicted.max()
    if farthest < nearest * _LEAST_RATIO:
        raise ValueError(
            f"The {len(predicted)} known points that agree with each other are all at {nearest:.2f} to {farthest:.2f} "
            "m as predicted, where a shift cannot be told from a scale: give points whose depths differ by a factor of "
            f'{_LEAST_RATIO} or more, or model="scale".'
        )


def fit_field(
    predicted: NDArray[np.float64],
    known: NDArray[np.float64],
    positions: NDArray[np.float64],
    size: tuple[int, int],
) -> Correction:
    """Fit a smooth field of factors over the picture, which far from all points returns to their median.

    It is the mean of a Gaussian process of the logarithm of known over predicted depth (Rasmussen and Williams,
    "Gaussian Processes for Machine Learning", equation 2.25) with a squared-exponential kernel, whose length and noise
    have the smallest median leave-one-out error (equation 5.12). Points that their neighbours contradict are left out.

    Args:
        predicted: See `fit_scale`.
        known: See `fit_scale`.
        positions: `(n, 2)`, x and y of the points in pixels.
        size: Width and height of the map in pixels.

    Returns:
        The correction with a factor `(height, width)` for each pixel.
    """
    side = max(size)
    ratio = np.log(known / predicted)
    plausible = _agreeing(ratio - np.median(ratio))
    nodes, values = _cell_medians(positions[plausible] / side, ratio[plausible])
    kept = np.ones(len(values), dtype=bool)
    while True:
        middle = float(np.median(values[kept]))
        fits = [_gaussian_process(nodes[kept], values[kept] - middle, *each) for each in _SMOOTHNESS]
        best = min(fits, key=lambda fit: float(np.median(np.abs(fit.left_out))))
        agree = _agreeing(best.left_out)
        if agree.all():
            break
        kept[np.flatnonzero(kept)[~agree]] = False

    def kernel(at: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.exp(-0.5 * ((at[:, None] - nodes[kept][None, :, axis]) / best.length) ** 2)

    across, down = ((np.arange(length) + 0.5) / side for length in size)
    field = middle + (kernel(down, 1) * best.weights) @ kernel(across, 0).T
    at_points = middle + (kernel(positions[:, 0] / side, 0) * kernel(positions[:, 1] / side, 1)) @ best.weights
    return Correction(np.exp(field), 0.0, _agreeing(ratio - at_points))


class _GaussianProcess(NamedTuple):
    weights: NDArray[np.float64]
    length: float
    left_out: NDArray[np.float64]  # error at each point of the fit to the others


def _gaussian_process(
    nodes: NDArray[np.float64], values: NDArray[np.float64], length: float, noise: float
) -> _GaussianProcess:
    squared = ((nodes[:, None] - nodes[None]) ** 2).sum(axis=-1)
    inverse = np.linalg.inv(np.exp(-0.5 * squared / length**2) + noise * np.eye(len(nodes)))
    weights = inverse @ values
    return _GaussianProcess(weights, length, weights / np.diag(inverse))


def _cell_medians(
    positions: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return one position and value for each cell of the picture that holds points: their medians."""
    cells = (positions * _CELLS).astype(int)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    groups = [np.flatnonzero(cell == index) for index in range(cell.max() + 1)]
    return (
        np.array([np.median(positions[group], axis=0) for group in groups]),
        np.array([np.median(values[group]) for group in groups]),
    )


def _log_error(corrected: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of known over corrected depth; infinite where the latter is not positive."""
    return np.where(corrected > 0, np.log(known / np.where(corrected > 0, corrected, 1)), np.inf)


def _agreeing(errors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the mask of errors, as logarithms, within three robust standard deviations or the trusted tolerance."""
    return np.abs(errors) <= max(_MADS * float(np.median(np.abs(errors))), np.log1p(_TRUSTED))
