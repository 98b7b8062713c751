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
"""The pinhole camera of an image, and where it came from."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .exif_depthvlm import focal_length_from_exif

CAMERA_SOURCES = ("intrinsics", "focal_length", "fov", "exif", "assumed")

# A 30 mm lens on 35 mm film, what most phones and compact cameras are near to, sees 60 degrees across a 4:3 picture.
DEFAULT_ASSUMED_FOV = 60.0

# No pinhole picture is wider than this: a focal length that says so is in another unit or of another image.
WIDEST_PLAUSIBLE_FOV = 150.0


@dataclass(frozen=True)
class Camera:
    """
    A pinhole camera. The centre of the first pixel is at (0.5, 0.5), so scaling an image multiplies all four numbers.

    Args:
        fx (`float`): Focal length along the width, in pixels.
        fy (`float`): Focal length along the height, in pixels.
        cx (`float`): Principal point from the left border, in pixels.
        cy (`float`): Principal point from the top border, in pixels.
        width (`int`): Width of the image that the numbers belong to, in pixels, after its EXIF orientation.
        height (`int`): Height of that image, in pixels.
        source (`str`): Where it came from: `"intrinsics"`, `"focal_length"`, `"fov"`, `"exif"` or `"assumed"`.

    Raises:
        ValueError: for a size below one pixel, a focal length that is not positive, or an unknown source.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    source: str

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"A camera needs an image of at least 1x1 pixels, got {self.width}x{self.height}.")
        if self.source not in CAMERA_SOURCES:
            raise ValueError(f"The source of a camera must be one of {CAMERA_SOURCES}, got {self.source!r}.")
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not all(math.isfinite(number) for number in numbers) or self.fx <= 0 or self.fy <= 0:
            raise ValueError(
                f"A camera needs finite numbers and positive focal lengths, got fx, fy, cx, cy = {numbers}."
            )

    @property
    def focal_length(self) -> float:
        """`float`: the focal length that the method means, along the width, in pixels."""
        return self.fx

    @property
    def fov(self) -> float:
        """`float`: the horizontal field of view of a centred camera of this focal length, in degrees."""
        return math.degrees(2 * math.atan(self.width / (2 * self.fx)))

    @property
    def intrinsics(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(3, 3)`, float32, in pixels: the matrix `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`."""
        return torch.tensor([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def scaled_to(self, width: int, height: int) -> "Camera":
        """The same camera for the same picture resized to `width` x `height` pixels."""
        across, down = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * across,
            fy=self.fy * down,
            cx=self.cx * across,
            cy=self.cy * down,
            width=int(width),
            height=int(height),
        )

    def to_row(self) -> list[float]:
        """The seven numbers in which a camera travels through the model, see [`Camera.from_row`]."""
        source = CAMERA_SOURCES.index(self.source)
        return [self.fx, self.fy, self.cx, self.cy, float(self.height), float(self.width), float(source)]

    @classmethod
    def from_row(cls, row: Sequence[float] | torch.Tensor) -> "Camera":
        """The camera of one row `(7,)` of `cameras`: fx, fy, cx, cy, height, width, index into `CAMERA_SOURCES`."""
        fx, fy, cx, cy, height, width, source = (float(number) for number in row)
        return cls(fx, fy, cx, cy, round(width), round(height), CAMERA_SOURCES[round(source)])


def resolve_cameras(
    sizes: Sequence[tuple[int, int]],
    exifs: Sequence[Image.Exif | None] | None = None,
    intrinsics: Any = None,
    focal_length: Any = None,
    fov: Any = None,
    assumed_fov: float = DEFAULT_ASSUMED_FOV,
) -> list[Camera]:
    """
    One camera for every image, from the first of these that knows it: `intrinsics`, `focal_length`, `fov`, the image's
    EXIF data, an assumed field of view. Each of the first three is one value for all images or a list with one value,
    or None where unknown, for each.

    Args:
        sizes (`Sequence[tuple[int, int]]`): Height and width of every image in pixels, after its EXIF orientation.
        exifs (`Sequence[PIL.Image.Exif | None]`, *optional*): The EXIF data of every image, orientation tag included.
        intrinsics: A 3x3 matrix or `[fx, fy, cx, cy]` (tensor, array or list), in pixels of the image as given.
        focal_length: Focal length in pixels of the image as given, not in millimetres.
        fov: Horizontal field of view in degrees.
        assumed_fov (`float`): Field of view in degrees across the longer side where nothing is known.

    Returns:
        `list[Camera]`: one for every image; `source` says where it came from.

    Raises:
        ValueError: for a value that is not a finite positive number, not a pinhole matrix, an angle outside 0 to 180
            degrees, or a list whose length is not the number of images.

    Warns once for all images without a known focal length, and for values that no pinhole camera has.
    """
    count = len(sizes)
    matrices = [None if one is None else _intrinsics(one) for one in _intrinsics_per_image(intrinsics, count)]
    lengths = [_positive(one, "focal_length", "pixels") for one in per_image(focal_length, count, "focal_length")]
    angles = [_angle(one, "fov") for one in per_image(fov, count, "fov")]
    assumed = _angle(assumed_fov, "assumed_fov") or DEFAULT_ASSUMED_FOV
    exifs = [None] * count if exifs is None else exifs

    cameras, unknown = [], []
    for index, (height, width) in enumerate(sizes):
        centre = (width / 2, height / 2)
        matrix, length, angle = matrices[index], lengths[index], angles[index]
        if matrix is not None:
            camera = Camera(*matrix, width, height, "intrinsics")
        elif length is not None:
            camera = Camera(length, length, *centre, width, height, "focal_length")
        elif angle is not None:
            length = _focal_length(angle, width)
            camera = Camera(length, length, *centre, width, height, "fov")
        else:
            found, problems = focal_length_from_exif(exifs[index], width, height)
            if found is not None:
                camera = Camera(*found, *centre, width, height, "exif")
                if problems:
                    warnings.warn(f"Image {index}: a part of its EXIF data was ignored: {problems}.", stacklevel=3)
            else:
                length = _focal_length(assumed, max(width, height))
                camera = Camera(length, length, *centre, width, height, "assumed")
                unknown.append(f"{index} ({problems})" if problems else f"{index}")
        if camera.source in ("intrinsics", "focal_length"):
            _warn_if_implausible(camera, index)
        cameras.append(camera)
    if unknown:
        warnings.warn(
            f"The focal length of {len(unknown)} of {count} image(s) is not known: {', '.join(unknown)}. A field of "
            f"view of {assumed:g} degrees across the longer side is assumed; where that is wrong, so are all depths, "
            "by one factor. Pass `focal_length` (pixels), `fov` (horizontal, degrees) or `intrinsics`, or images with "
            "EXIF data.",
            stacklevel=3,
        )
    return cameras


def resolve_camera(
    size: tuple[int, int],
    exif: Image.Exif | None = None,
    intrinsics: Any = None,
    focal_length: Any = None,
    fov: Any = None,
    assumed_fov: float = DEFAULT_ASSUMED_FOV,
) -> Camera:
    """[`resolve_cameras`] for one image of `size` (height, width) in pixels."""
    return resolve_cameras([size], [exif], intrinsics, focal_length, fov, assumed_fov)[0]


def per_image(value: Any, count: int, name: str) -> list[Any]:
    """`value` for each of `count` images: itself for all, or, if it is a list, tuple, array or tensor, its entries."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return [value] * count
    # Images may come nested, a list for every conversation, and so may what belongs to them.
    flat = [entry for item in value for entry in (item if isinstance(item, (list, tuple)) else [item])]
    if len(flat) != count:
        raise ValueError(
            f"`{name}` has {len(flat)} entries for {count} image(s). Pass one value for all images, or a list with "
            "one entry for each, None where it is unknown."
        )
    return flat


def _intrinsics_per_image(value: Any, count: int) -> list[Any]:
    """Splits `intrinsics`, where one image's value is itself a list, an array or a tensor."""
    if value is None:
        return [None] * count
    entries = list(value) if isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) else [value]
    shapes = [None if entry is None else tuple(np.shape(_to_array(entry))) for entry in entries]
    if shapes in ([()] * 4, [(3,)] * 3):
        return [value] * count
    if any(entry is not None and np.ndim(_to_array(entry)) == 0 for entry in entries):
        raise ValueError(f"`intrinsics` must be a 3x3 matrix or [fx, fy, cx, cy], in pixels, got {value!r}.")
    if len(entries) != count:
        raise ValueError(
            f"`intrinsics` has {len(entries)} entries for {count} image(s). Pass one 3x3 matrix or [fx, fy, cx, cy] "
            "for all images, or a list with one for each, None where it is unknown."
        )
    return entries


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"`intrinsics` must be a 3x3 matrix or [fx, fy, cx, cy], in pixels, for each image, got {value!r}."
        ) from None


def _intrinsics(value: Any) -> tuple[float, float, float, float]:
    matrix = _to_array(value)
    given = f"got {matrix.tolist()}"
    if not np.isfinite(matrix).all():
        raise ValueError(f"`intrinsics` must be finite, {given}. Pass None for an image whose camera is not known.")
    if matrix.shape == (3, 3):
        if not np.allclose(matrix[2], [0, 0, 1]):
            raise ValueError(f"The last row of a 3x3 `intrinsics` matrix must be [0, 0, 1], {given}.")
        if abs(matrix[1, 0]) > 1e-6 or abs(matrix[0, 1]) > 1e-3 * abs(matrix[0, 0]):
            raise ValueError(f"`intrinsics` must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] without skew, {given}.")
        numbers = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    elif matrix.shape == (4,):
        numbers = list(matrix)
    else:
        raise ValueError(f"`intrinsics` must be a 3x3 matrix or [fx, fy, cx, cy], in pixels, for each image, {given}.")
    if numbers[0] <= 0 or numbers[1] <= 0:
        raise ValueError(f"The focal lengths fx and fy in `intrinsics` must be positive, {given}.")
    fx, fy, cx, cy = (float(number) for number in numbers)
    return fx, fy, cx, cy


def _positive(value: Any, name: str, unit: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number <= 0:
        raise ValueError(
            f"`{name}` must be a finite number above 0, in {unit}, got {value!r}. Pass None for an image where it is "
            "not known."
        )
    return number


def _angle(value: Any, name: str) -> float | None:
    angle = _positive(value, name, "degrees")
    if angle is not None and angle >= 180:
        raise ValueError(f"`{name}` must lie between 0 and 180 degrees, got {value!r}.")
    return angle


def _focal_length(fov: float, side: int) -> float:
    return side / (2 * math.tan(math.radians(fov) / 2))


def _warn_if_implausible(camera: Camera, index: int) -> None:
    size = f"{camera.width}x{camera.height} pixels"
    if camera.fov > WIDEST_PLAUSIBLE_FOV:
        warnings.warn(
            f"Image {index}: a focal length of {camera.fx:g} pixels in an image of {size} is a field of view of "
            f"{camera.fov:.0f} degrees. The focal length must be in pixels of the image as given, not in millimetres "
            "and not divided by the width.",
            stacklevel=4,
        )
    elif not (0 <= camera.cx <= camera.width and 0 <= camera.cy <= camera.height):
        warnings.warn(
            f"Image {index}: the principal point ({camera.cx:g}, {camera.cy:g}) lies outside the image of {size}. "
            "`intrinsics` must be in pixels of the image as given: scale them if they belong to another size.",
            stacklevel=4,
        )
