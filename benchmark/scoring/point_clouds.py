"""F-score of the points in space that a depth map describes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...geometry import viewing_rays
from .metrics import answered, valid_truth


def point_cloud_f_score(
    prediction: ArrayLike,
    truth: ArrayLike,
    intrinsics: Sequence[float],
    valid: ArrayLike | None = None,
    threshold: float = 0.05,
) -> float:
    """Return the F-score of the predicted point cloud (Knapitsch et al., Tanks and Temples, 2017).

    Precision is the share of predicted points with a true point nearer than `threshold`, recall the share of true
    points with a predicted point so near; the score is their harmonic mean. Both clouds consist of the valid pixels. A
    failed prediction counts as a point far from everything, so it lowers the precision too.

    Args:
        prediction: Z-depth `(H, W)` in metres.
        truth: Z-depth `(H, W)` in metres.
        intrinsics: Fx, fy, cx, cy in pixels of the maps, the centre of the first pixel at (0.5, 0.5).
        valid: Boolean mask `(H, W)`.
        threshold: Distance in metres.

    Returns:
        A score in [0, 1].

    Raises:
        ValueError: The maps do not have one shape `(H, W)`, no truth pixel is valid, or the threshold is not positive.
        ImportError: SciPy is missing.
    """
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError('The point-cloud F-score needs SciPy: `pip install "depthvlm[bench]"`.') from error

    predicted, metres = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if predicted.ndim != 2 or predicted.shape != metres.shape:
        raise ValueError(
            f"Point clouds need maps (H, W) of one shape, got a prediction {predicted.shape}, a truth {metres.shape}."
        )
    if not 0 < threshold < np.inf:
        raise ValueError(f"The threshold must be a distance above 0 metres, got {threshold}.")
    rows, columns = np.nonzero(valid_truth(metres, valid))
    rays = viewing_rays(np.column_stack([columns, rows]), intrinsics)
    p, g = predicted[rows, columns], metres[rows, columns]
    good = answered(p)
    if not good.any():
        return 0.0
    found, true = rays[good] * p[good, None], rays * g[:, None]
    near_found = cKDTree(true).query(found, distance_upper_bound=threshold)[0] < threshold
    near_true = cKDTree(found).query(true, distance_upper_bound=threshold)[0] < threshold
    precision, recall = np.count_nonzero(near_found) / len(p), np.count_nonzero(near_true) / len(p)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
