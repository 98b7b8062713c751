"""Ordinal error: how often a depth map says of two points that the farther one is nearer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Array, Mask, answered, valid_truth

BANDS = ((1.02, 1.05), (1.05, 1.1), (1.1, 1.25), (1.25, math.inf))
"""Ratios of the farther to the nearer true depth between which pairs are counted together, upper bound excluded."""
NEAR_METRES = 3.0
"""Depth up to which both points of a near pair lie."""
NEIGHBOUR_SHARE = 1 / 16
"""Greatest distance of two neighbours in the image, as a share of its longer side: 40 pixels of 640."""


def ordinal_errors(
    prediction: ArrayLike, truth: ArrayLike, valid: ArrayLike | None = None, pairs: int = 20_000, seed: int = 0
) -> dict[str, float]:
    """Return the share of pairs of points whose order in depth is wrong: WHDR of Chen et al. 2016 with equal weights.

    The weighted human disagreement rate (Chen et al., Single-Image Depth Perception in the Wild, 2016) is the share of
    pairs for which the predicted relation, nearer or farther, is not the annotated one. Here the relation is that of
    the true depths. Pairs whose depths differ by less than 2 % are left out: their order is often noise of the sensor.
    A pair with equal predictions or a failed one is wrong.

    Half of the pairs are two random pixels of the image; they give the errors by bands. The other half are neighbours:
    a random pixel and another one at most `NEIGHBOUR_SHARE` of the longer side away.

    Args:
        prediction: Depth of any scale, `(H, W)`.
        truth: Metres `(H, W)`, also of a sparse map.
        valid: Boolean mask `(H, W)`.
        pairs: Number of pairs drawn; some of them are then left out.
        seed: Seed of the pairs: the same maps give the same pairs, whatever is predicted.

    Returns:
        Shares in [0, 1], NaN where there is no such pair. `ordinal_1.02_1.05` and so on: by `BANDS`; `ordinal`: all
        bands; `ordinal_3m`: both points within `NEAR_METRES`; `ordinal_neighbours`: the neighbours, of all bands.

    Raises:
        ValueError: The maps do not have one shape `(H, W)`, no truth pixel is valid, or `pairs` is below 2.
    """
    predicted, metres = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if predicted.ndim != 2 or predicted.shape != metres.shape:
        raise ValueError(
            f"Pairs are of maps (H, W) of one shape, got a prediction {predicted.shape} and a truth {metres.shape}."
        )
    if pairs < 2:
        raise ValueError(f"`pairs` must be at least 2, got {pairs}.")
    mask = valid_truth(metres, valid)
    predicted = np.where(answered(predicted), predicted, np.nan)
    rng = np.random.default_rng(seed)
    anywhere = _random_pairs(mask, pairs // 2, rng)
    ratio, near, wrong = _compare(predicted, metres, anywhere)
    found = {_name(low, high): _share(wrong, (ratio >= low) & (ratio < high)) for low, high in BANDS}
    apart = ratio >= BANDS[0][0]
    found["ordinal"] = _share(wrong, apart)
    found["ordinal_3m"] = _share(wrong, apart & near)
    ratio, _, wrong = _compare(predicted, metres, _neighbour_pairs(mask, pairs // 2, rng))
    found["ordinal_neighbours"] = _share(wrong, ratio >= BANDS[0][0])
    return found


def ordinal_names() -> list[str]:
    """Return the names of the errors, in order."""
    return [*(_name(low, high) for low, high in BANDS), "ordinal", "ordinal_3m", "ordinal_neighbours"]


def _name(low: float, high: float) -> str:
    return f"ordinal_{low:g}" + (f"_{high:g}" if math.isfinite(high) else "")


def _random_pairs(mask: Mask, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Draw pairs of valid pixels, `(2, n)` indices of the flattened map."""
    pixels = np.flatnonzero(mask)
    return pixels[rng.integers(len(pixels), size=(2, count))]


def _neighbour_pairs(mask: Mask, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Draw valid pixels with a pixel within the radius; pairs whose second pixel is not valid are dropped."""
    height, width = mask.shape
    radius = NEIGHBOUR_SHARE * max(height, width)
    rows, columns = np.divmod(_random_pairs(mask, count, rng)[0], width)
    # Uniform over the disc.
    length, angle = radius * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    down = rows + np.rint(length * np.sin(angle)).astype(int)
    right = columns + np.rint(length * np.cos(angle)).astype(int)
    kept = (down >= 0) & (down < height) & (right >= 0) & (right < width)
    kept[kept] = mask[down[kept], right[kept]]
    return np.stack([(rows * width + columns)[kept], (down * width + right)[kept]])


def _compare(predicted: Array, metres: Array, pairs: NDArray[Any]) -> tuple[Array, Mask, Mask]:
    """Return the true ratio of each pair, where both points are near, and where the predicted order is wrong."""
    first, second = metres.ravel()[pairs]
    p, q = predicted.ravel()[pairs]
    ratio, near = np.maximum(first / second, second / first), np.maximum(first, second) <= NEAR_METRES
    right = np.where(first < second, p < q, p > q)  # false for NaN
    return ratio, near, ~right


def _share(wrong: Mask, chosen: Mask) -> float:
    return float(wrong[chosen].mean()) if chosen.any() else math.nan
