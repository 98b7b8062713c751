"""Signs of depth that is readable but wrong: another unit, disparity, previews, a wrong focal length."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..modeling_depthvlm.losses_depthvlm import valid_depth

# Number of images checked first. A sign that holds for all of them is not due to a single picture.
IMAGES_LOOKED_AT = 8

FARTHEST_MEDIAN = 150.0  # metres; outdoor lidar has 10 to 40
NEAREST_MEDIAN = 0.05  # metres
FULL_RANGE = 0.99  # farthest pixel of relative depth, with a margin for reduced maps
EIGHT_BITS = 256  # steps; a sensor in millimetres has thousands
DENSE_PIXELS = 5000
NARROWEST_FOV = 25.0  # degrees: an 81 mm lens on 35 mm film
STRONGEST_DESCENT = 0.3  # mean rank correlation of depth with the row: the ground makes it negative
MAPS_FOR_DESCENT = 4


class FirstLook:
    """Depth maps and cameras of the first batches of a run, checked together."""

    def __init__(self) -> None:
        self.depth: list[Tensor] = []
        self.cameras: list[Tensor] = []

    @property
    def full(self) -> bool:
        """True if there are enough images."""
        return len(self.depth) >= IMAGES_LOOKED_AT

    def add(self, batch: dict[str, Any]) -> None:
        """Take the images with depth of a batch."""
        for depth, camera in zip(batch.get("depth_labels") or [], batch.get("cameras", ()), strict=False):
            if depth is not None:
                self.depth.append(depth)
                self.cameras.append(camera)

    def signs(self) -> list[str]:
        """Return the signs that [`find_nonsense`] finds in them."""
        return find_nonsense(self.depth, torch.stack(self.cameras)) if self.depth else []


def find_nonsense(depth_labels: Sequence[Tensor | None], cameras: Tensor) -> list[str]:
    """Find signs that true depth or cameras are misinterpreted.

    Args:
        depth_labels: `(height, width)` in metres for each image, or None; at least two maps are needed.
        cameras (`(images, 7)`): Cameras as the processor returns them.

    Returns:
        A sentence for each sign, with the numbers, the likely cause and what to do. None of them is an error: telephoto
        lenses and pictures of nothing but a floor exist.
    """
    maps, fields = [], []
    for depth, camera in zip(depth_labels, cameras.tolist(), strict=True):
        if depth is not None and valid_depth(depth).any():
            maps.append(depth.float().cpu())
            fx, fy, _, _, height, width, _ = camera
            # Across the longer side: portraits are narrow across the shorter one.
            fields.append(2 * math.degrees(math.atan(max(width / fx, height / fy) / 2)))
    if len(maps) < 2:
        return []
    values = [depth[valid_depth(depth)] for depth in maps]
    medians = [value.median().item() for value in values]
    found, count = [], f"all {len(maps)} depth maps"
    if min(medians) > FARTHEST_MEDIAN:
        found.append(
            f"The medians of {count} are {min(medians):,.0f} to {max(medians):,.0f} m. If they are in millimetres, set "
            "`depth_scale` to 1000 (floats are taken for metres without it)."
        )
    elif max(medians) < NEAREST_MEDIAN:
        found.append(
            f"The medians of {count} are {min(medians):.2g} to {max(medians):.2g} m. `depth_scale` is raw value "
            "divided by metres; relative depth between 0 and 1 is not metric and cannot be trained on."
        )
    elif all(FULL_RANGE <= value.max().item() <= 1 for value in values):
        found.append(
            f"The farthest pixel of {count} is at 1 m. Relative depth, scaled to 0 to 1 picture by picture, is not "
            "metric and cannot be trained on: use the raw files."
        )
    levels = [_levels(value) for value in values if value.numel() >= DENSE_PIXELS]
    if len(levels) == len(values) and max(levels) <= EIGHT_BITS:
        found.append(
            f"{count.capitalize()} have at most {max(levels):.0f} equal steps from 0 to their farthest pixel, as 8-bit "
            "pictures of depth have. Such previews are scaled image by image and hold no metres: use the raw files."
        )
    descents = [_descent(depth) for depth in maps]
    descent = sum(descents) / len(descents)
    if len(descents) >= MAPS_FOR_DESCENT and descent > STRONGEST_DESCENT:
        found.append(
            f"Over {len(maps)} maps depth grows towards the bottom (mean rank correlation with the row {descent:.2f}), "
            "where the ground is usually near. If they hold disparity or inverse depth, convert them to metres; if "
            "they are upside down, turn them."
        )
    if max(fields) < NARROWEST_FOV:
        found.append(
            f"The field of view of all {len(maps)} images with depth is {min(fields):.0f} to {max(fields):.0f} "
            "degrees, as of a telephoto lens. If the pictures were made smaller after the calibration, scale the "
            "focal length (pixels of the stored image) with them."
        )
    return found


def _levels(values: Tensor) -> float:
    """Return the farthest depth over the smallest difference between two depths: the number of equal steps."""
    distinct = values.double().unique()
    return (distinct[-1] / distinct.diff().min()).item() if len(distinct) > 1 else 1.0


def _descent(depth: Tensor) -> float:
    """Return the correlation of the rank of depth with the row, over the valid pixels."""
    rows, _ = torch.nonzero(valid_depth(depth), as_tuple=True)
    ranks = pd.Series(depth[valid_depth(depth)].numpy()).rank()  # ties at their mean
    with np.errstate(invalid="ignore"):  # 0 for a plane at one distance, or a single row
        return float(np.nan_to_num(np.corrcoef(rows, ranks)[0, 1]))
