"""Planarity: how flat a map draws flat surfaces, and how they are turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...geometry import viewing_rays
from .metrics import Array, answered, valid_truth

MIN_PLANE = 0.05
"""Share of the image that a plane covers at least to be scored, as in the evaluation of iBims-1."""


class PlaneErrors(NamedTuple):
    """Planarity errors of one map: means over its planes, NaN where it has none."""

    flatness: float  # centimetres
    orientation: float  # degrees
    planes: int  # number of planes that are scored


def plane_errors(
    prediction: ArrayLike,
    truth: ArrayLike,
    intrinsics: Sequence[float],
    planes: ArrayLike,
    valid: ArrayLike | None = None,
    rescale: bool = True,
) -> PlaneErrors:
    """Return how far the points of flat surfaces lie from a plane, and how that plane is turned: the PE of iBims-1.

    A plane is fitted to the predicted points of each planar mask (Koch et al., Evaluation of CNN-based Single-Image
    Depth Estimation Methods, 2018, "planarity error"). Flatness is the standard deviation of their distances from it in
    centimetres, orientation the angle between its normal and the true one in degrees. As in that evaluation, the
    predicted depths of a mask are first scaled to the median of the true ones, so that a wrong scale counts
    as neither. The true normal is here that of the plane fitted to the true points, in place of the annotated one.

    Args:
        prediction: Z-depth in metres, `(H, W)`.
        truth: Z-depth in metres, `(H, W)`.
        intrinsics: Fx, fy, cx, cy in pixels of the maps, the centre of the first pixel at (0.5, 0.5).
        planes: Number of the plane that each pixel belongs to, `(H, W)`, below 0 for none. Planes are scored that cover
            at least `MIN_PLANE` of the map.
        valid: Boolean mask `(H, W)`. Pixels without an answer are left out of their plane.
        rescale: Scale the prediction of each mask to the truth; False scores metres as they are.

    Raises:
        ValueError: The maps do not have one shape `(H, W)`, or no truth pixel is valid.
    """
    predicted, metres, labels = np.asarray(prediction, np.float64), np.asarray(truth, np.float64), np.asarray(planes)
    if predicted.ndim != 2 or not predicted.shape == metres.shape == labels.shape:
        raise ValueError(
            f"Planes need maps (H, W) of one shape, got a prediction {predicted.shape}, a truth {metres.shape} and "
            f"planes {labels.shape}."
        )
    mask = valid_truth(metres, valid) & answered(predicted)
    flatness, orientation = [], []
    for label in np.unique(labels[labels >= 0]).tolist():
        rows, columns = np.nonzero((labels == label) & mask)
        if len(rows) < max(3, MIN_PLANE * labels.size):
            continue
        rays = viewing_rays(np.column_stack([columns, rows]), intrinsics)
        p, g = predicted[rows, columns], metres[rows, columns]
        if rescale:
            p = p * (np.median(g) / np.median(p))
        normal, spread = fit_plane(rays * p[:, None])
        true_normal, _ = fit_plane(rays * g[:, None])
        flatness.append(100 * spread)
        # The arc tangent keeps small angles, which the arc cosine rounds away; a normal has no sign.
        sine, cosine = np.linalg.norm(np.cross(normal, true_normal)), abs(normal @ true_normal)
        orientation.append(math.degrees(math.atan2(sine, cosine)))
    if not flatness:
        return PlaneErrors(math.nan, math.nan, 0)
    return PlaneErrors(float(np.mean(flatness)), float(np.mean(orientation)), len(flatness))


def fit_plane(points: NDArray[np.floating]) -> tuple[Array, float]:
    """Return the unit normal of the plane with the least squared distances to points, and their standard deviation.

    Args:
        points: `(n, 3)`, n at least 3.
    """
    centred = points - points.mean(axis=0)
    # The eigenvector of the least variance.
    _, vectors = np.linalg.eigh(centred.T @ centred)
    normal: Array = vectors[:, 0]
    return normal, float((centred @ normal).std())
