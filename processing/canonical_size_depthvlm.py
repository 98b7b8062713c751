# Copyright 2026 The DepthVLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The size at which the model sees an image: equation 6 of the paper, within the pixel budget."""

import math

from .camera_depthvlm import Camera

MAX_ASPECT_RATIO = 200

# Of `qwen_vl_utils.process_vision_info`, made for the patches of Qwen2-VL.
QWEN_VL_UTILS_MULTIPLE = 28


def canonical_size(
    camera: Camera,
    canonical_focal_length: float,
    cell: int,
    min_pixels: int,
    max_pixels: int,
    qwen_vl_utils_rounding: bool = False,
) -> tuple[int, int, float]:
    """
    The size at which the model sees an image, and what its depth must then be multiplied by.

    Equation 6 of the paper scales an image by `s = f_c / f`, so that every camera becomes the canonical one. Here the
    scaled size is rounded once, to whole cells of the model: the image counts as canonical, `focal_scale = 1`, as in
    the published method. Where the pixel budget does not allow that size, the image is scaled to the largest (or
    smallest) one that it allows, with a whole number of cells on one side; it is then seen at `f_eff = f * s`, and
    metres are recovered with `focal_scale = f_eff / f_c`. There `s` depends on the image's size alone, so depths are
    exactly proportional to the focal length.

    Args:
        camera ([`Camera`]): The camera of the image as given.
        canonical_focal_length (`float`): `f_c`, in pixels.
        cell (`int`): Side of the square that makes one visual token, in pixels: patch size times merge size.
        min_pixels (`int`): Least area of the result, in pixels.
        max_pixels (`int`): Greatest area of the result, in pixels.
        qwen_vl_utils_rounding (`bool`): Round the sides to whole pixels and to multiples of 28 before cells, as the
            published implementation does, for whose checkpoints it gives the grid that they were trained on.

    Returns:
        `tuple[int, int, float]`: height and width in pixels, multiples of `cell`, and `focal_scale`.

    Raises:
        ValueError: if one side is more than 200 times the other, or the budget cannot hold one row of cells.
    """
    height, width = camera.height, camera.width
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"The image has {width}x{height} pixels (width x height): one side is more than {MAX_ASPECT_RATIO} times "
            "the other. Crop it, or cut it into pieces."
        )
    # The model needs a cell on the shorter side, also where `min_pixels` would allow less.
    lower = max(math.sqrt(min_pixels / (height * width)), cell / min(height, width))
    upper = math.sqrt(max_pixels / (height * width))
    if lower > upper and lower * min(height, width) <= cell:
        raise ValueError(
            f"An image of {width}x{height} pixels (width x height) needs at least {cell} pixels on its shorter side, "
            f"which is {math.ceil(height * width * lower**2)} in all, but `max_pixels` is {max_pixels}. Raise "
            "`max_pixels` or crop the image."
        )
    sides = [side * canonical_focal_length / camera.focal_length for side in (height, width)]
    if qwen_vl_utils_rounding:
        multiple = QWEN_VL_UTILS_MULTIPLE
        sides = [max(1, round(round(side) / multiple)) * multiple for side in sides]
    rows, columns = _cells(sides[0], sides[1], 1.0, cell)
    largest = _bound(height, width, cell, upper, max_pixels, largest=True)
    smallest = _bound(height, width, cell, lower, min_pixels, largest=False)
    # A size that merely rounds to the bound counts as bounded: equal pixels must have proportional depths.
    if rows * columns >= largest[1] * largest[2]:
        scale, rows, columns = largest
    elif rows * columns <= smallest[1] * smallest[2]:
        scale, rows, columns = min(smallest, largest)
    else:
        return rows * cell, columns * cell, 1.0
    return rows * cell, columns * cell, scale * camera.focal_length / canonical_focal_length


def _cells(height: float, width: float, scale: float, cell: int) -> tuple[int, int]:
    return max(1, round(height * scale / cell)), max(1, round(width * scale / cell))


def _bound(height: int, width: int, cell: int, scale: float, pixels: int, largest: bool) -> tuple[float, int, int]:
    """The scale nearest to `scale`, with its cells, that keeps within `pixels` and cuts one side into whole cells."""
    found = []
    for side in (height, width):
        # A hair of tolerance: an exact multiple must not be lost to the rounding of floats.
        count = math.floor(side * scale / cell + 1e-6) if largest else math.ceil(side * scale / cell - 1e-6)
        while count > 0:
            candidate = count * cell / side
            rows, columns = _cells(height, width, candidate, cell)
            area = rows * columns * cell**2
            if area <= pixels if largest else area >= pixels:
                found.append((candidate, rows, columns))
                break
            count += -1 if largest else 1
    return max(found) if largest else min(found)
