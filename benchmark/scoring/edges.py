"""Depth boundaries: how far the edges of a map lie from the true ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Mask, answered


def canny(image: ArrayLike, sigma: float = math.sqrt(2), low: float = 0.15, high: float = 0.3) -> Mask:
    """Return the edges of an image of values in [0, 1] by Canny's detector (Canny 1986).

    A Gaussian, Sobel's derivatives (kernels with weights 1, 2, 1, not normalised), non-maximum suppression along the
    gradient with linear interpolation, and hysteresis over eight neighbours, as in scikit-image's `feature.canny` but
    for the image's border, where no edge is looked for.

    Args:
        image: `(H, W)`.
        sigma: Standard deviation of the Gaussian in pixels.
        low: Least magnitude of the gradient of an edge pixel.
        high: Magnitude that at least one pixel of a connected edge has.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.asarray(image, np.float64), sigma, mode="nearest")
    down, right = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    magnitude = np.hypot(down, right)
    # One step along the gradient to the square of the eight neighbours.
    step = np.stack([down, right]) / np.maximum(np.maximum(np.abs(down), np.abs(right)), 1e-300)
    place = np.indices(magnitude.shape)
    thin = magnitude >= low
    for sign in (1, -1):
        # Without the last bits, in which the two sides of a symmetric edge differ.
        beside = ndimage.map_coordinates(magnitude, place + sign * step, order=1, mode="nearest")
        thin &= magnitude >= beside * (1 - 1e-12)
    thin[[0, -1]] = thin[:, [0, -1]] = False
    parts, count = ndimage.label(thin, np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[parts[thin & (magnitude >= high)]] = True
    return strong[parts] & thin


def boundary_errors(prediction: ArrayLike, edges: ArrayLike, reach: float = 10.0) -> tuple[float, float]:
    """Return accuracy and completeness of a map's depth boundaries in pixels: the DBE of iBims-1.

    With Y the predicted edges, Y* the true ones, and E, E* the distances to the nearest pixel of each, both at most
    `reach` (Koch et al., Evaluation of CNN-based Single-Image Depth Estimation Methods, 2018, "depth boundary
    errors"): accuracy is the mean of E* over the predicted edges nearer than `reach` to a true one;
    completeness is `(sum over Y of E* + sum over Y* of E) / (|Y| + |Y*|)`. Predicted edges are those of [`canny`] in
    the depth map, scaled to [0, 1] by its own least and greatest value, with the Gaussian (sigma 1.41) and thresholds
    (0.15, 0.3) of evaluations in Python; the paper's used MATLAB's detector, which chooses thresholds of its own.

    Args:
        prediction: Depth of any scale, `(H, W)`; pixels without an answer take the greatest depth.
        edges: True edges, `(H, W)`, bool.
        reach: Greatest distance in pixels.

    Returns:
        Accuracy and completeness; both are `reach` where no predicted edge lies near a true one, and NaN without any
        true edge.

    Raises:
        ValueError: The map and the edges do not have one shape `(H, W)`.
    """
    from scipy.ndimage import distance_transform_edt

    metres, true = np.asarray(prediction, np.float64), np.asarray(edges, bool)
    if metres.ndim != 2 or metres.shape != true.shape:
        raise ValueError(f"Boundaries need a map (H, W) and edges of its shape, got {metres.shape} and {true.shape}.")
    good = answered(metres)
    if not true.any():
        return math.nan, math.nan
    if not good.any():
        return reach, reach
    low, high = metres[good].min(), metres[good].max()
    found = canny((np.where(good, metres, high) - low) / max(high - low, 1e-300))
    to_true = distance_transform_edt(~true)
    near = found & (to_true < reach)
    if not near.any():
        return reach, reach
    to_found = distance_transform_edt(~found)
    both = np.minimum(to_true[found], reach).sum() + np.minimum(to_found[true], reach).sum()
    return float(to_true[near].mean()), float(both / (found.sum() + true.sum()))
