"""Does a predicted uncertainty tell where the errors are?"""

import numpy as np
from numpy.typing import ArrayLike

from .metrics import Array


def sparsification_gain(errors: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return how much of the mean error goes when pixels are left out by uncertainty, averaged over the share left out.

    Pixels are removed from the most uncertain on, and the mean error of those that remain is averaged over all steps
    (the area under the sparsification curve; Ilg et al. 2018, "Uncertainty Estimates and Multi-Hypotheses Networks for
    Optical Flow", section 4.1). Removed at random, the remaining error stays at the mean: the gain is 1 less the area
    over it, so that 0 is no better than random. Pixels of equal uncertainty count as in random order.

    Args:
        errors: Error of each pixel, any shape; at least one above 0.
        uncertainty: Uncertainty of each, the same shape.

    Raises:
        ValueError: The shapes differ, there is no pixel, a value is not finite, or all errors are 0.
    """
    error, doubt = np.asarray(errors, np.float64).ravel(), np.asarray(uncertainty, np.float64).ravel()
    if error.shape != doubt.shape or not error.size or not (np.isfinite(error).all() and np.isfinite(doubt).all()):
        raise ValueError(
            f"Errors and uncertainties must be finite and as many, at least one; got {error.size} and {doubt.size}."
        )
    if not error.mean() > 0:
        raise ValueError("All errors are 0: there is nothing to rank.")
    return float(1 - _area(error, doubt) / error.mean())


def _area(error: Array, doubt: Array) -> float:
    """Return the mean over k of the mean error of the k + 1 most certain pixels."""
    values, place, counts = np.unique(doubt, return_inverse=True, return_counts=True)
    tied = np.bincount(place, error, len(values)) / counts
    ranked = tied.repeat(counts)
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1)).mean())
