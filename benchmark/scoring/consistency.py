"""Consistency: the same picture seen at other sizes, and mirrored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..systems.interface import DensePredictor, Example, check_maps
from .metrics import answered
from .tasks import at_size

CONSISTENCY = "consistency"
"""Name on request: these metrics need further predictions, one for each of `SCALES` and one mirrored."""
SCALES = (0.5, 0.75, 1.5)
"""Sizes at which the picture is seen, besides its own."""


def consistency(
    predictor: DensePredictor, examples: Sequence[Example], maps: Sequence[NDArray[np.float32]]
) -> list[dict[str, float]]:
    """Return how much depth changes when a picture is seen at another size with its camera, or mirrored.

    Nothing of the scene changes, so a right answer does not either: cameras of scaled images are the augmentation of
    Facil et al., CAM-Convs, 2019, and mirrored ones the consistency of Godard et al. 2017's post-processing. With
    `d = ln(other) - ln(own)` at the pixels of the picture, where both maps have an answer: `scale_median_F` and
    `scale_std_F` are the median and the standard deviation of d at F times the size, a scale drift and a change of
    shape; `mirror` is the mean of |d| after mirroring back.

    Args:
        predictor: The system.
        examples: Images of one size.
        maps: Its maps of them.

    Returns:
        The metrics of each image by name, NaN where no pixel has both answers.

    Raises:
        PredictorError: The predictor does not answer with one map for each image.
    """
    found: list[dict[str, float]] = [{} for _ in examples]
    for factor in SCALES:
        for scores, d in zip(found, _changes(predictor, [scaled(one, factor) for one in examples], maps), strict=True):
            scores[f"scale_median_{factor:g}"] = float(np.median(d)) if d.size else math.nan
            scores[f"scale_std_{factor:g}"] = float(d.std()) if d.size else math.nan
    changes = _changes(predictor, [mirrored(one) for one in examples], [depth[:, ::-1] for depth in maps])
    for scores, d in zip(found, changes, strict=True):
        scores["mirror"] = float(np.abs(d).mean()) if d.size else math.nan
    return found


def scaled(example: Example, factor: float) -> Example:
    """Return an image at `factor` times its size, with its camera."""
    width, height = (max(1, round(side * factor)) for side in example.image.size)
    x, y = width / example.image.width, height / example.image.height
    fx, fy, cx, cy = example.intrinsics
    image = example.image.resize((width, height), Image.Resampling.BICUBIC)
    return replace(example, image=image, intrinsics=(fx * x, fy * y, cx * x, cy * y))


def mirrored(example: Example) -> Example:
    """Return an image with left and right exchanged, with its camera."""
    fx, fy, cx, cy = example.intrinsics
    return replace(example, image=ImageOps.mirror(example.image), intrinsics=(fx, fy, example.image.width - cx, cy))


def _changes(
    predictor: DensePredictor, examples: Sequence[Example], own: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float64]]:
    """Return `ln(other) - ln(own)` of each image at the pixels of its own map where both have an answer, `(n,)`."""
    others = check_maps(predictor.predict(examples), examples, predictor.name or type(predictor).__name__)
    found = []
    for other, depth in zip(others, own, strict=True):
        other = at_size(other, depth.shape)
        both = answered(other) & answered(depth)
        found.append(np.log(other[both].astype(np.float64)) - np.log(depth[both].astype(np.float64)))
    return found
