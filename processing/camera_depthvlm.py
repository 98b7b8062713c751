# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Pinhole cameras: given, read from EXIF data, or assumed (f of equation 6)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .exif_depthvlm import exif_orientation, focal_length_from_exif, panorama_reason

CAMERA_SOURCES = ("intrinsics", "focal_length", "fov", "exif", "assumed")

# A 30 mm lens on 35 mm film, what most phones and compact cameras are near to, sees 60 degrees across a 4:3 picture.
DEFAULT_ASSUMED_FOV = 60.0

# An angle up to pi is one in radians: in degrees, only a telescope has it.
LARGEST_RADIANS = 3.15
# No pinhole picture is wider than this: a focal length that says so is in another unit or of another image.
WIDEST_PLAUSIBLE_FOV = 150.0


class AssumedCameraWarning(UserWarning):
    """The focal length of an image is not known, and a field of view is assumed."""


@dataclass(frozen=True)
class Camera:
    """Pinhole camera of an upright picture.

    The centre of the first pixel is at (0.5, 0.5), so scaling an image multiplies all four numbers; where a calibration
    puts it at (0, 0), as OpenCV does, add 0.5 to its `cx` and `cy`.

    Args:
        fx: Focal length along the width, in pixels.
        fy: Focal length along the height, in pixels.
        cx: Principal point from the left border, in pixels.
        cy: Principal point from the top border, in pixels.
        width: Width of the image that the numbers belong to, in pixels, after its EXIF orientation.
        height: Height of that image, in pixels.
        source: One of `CAMERA_SOURCES`: where the camera came from.

    Raises:
        ValueError: A size is below one pixel, a focal length is not positive, or the source is unknown.
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
        if not all(map(math.isfinite, numbers)) or not all(1e-3 <= length <= 1e9 for length in numbers[:2]):
            raise ValueError(
                "A camera needs finite numbers and positive focal lengths of 0.001 to 1e9 pixels, got fx, fy, cx, cy = "
                f"{numbers}."
            )

    @property
    def focal_length(self) -> float:
        """Focal length that the method means, along the width, in pixels."""
        return self.fx

    @property
    def fov(self) -> float:
        """Horizontal field of view of a centred camera of this focal length, in degrees."""
        return math.degrees(2 * math.atan(self.width / (2 * self.fx)))

    @property
    def off_centre(self) -> float:
        """Distance of the principal point from the middle, as a share of the width or the height."""
        return max(abs(self.cx / self.width - 0.5), abs(self.cy / self.height - 0.5))

    @property
    def intrinsics(self) -> torch.Tensor:
        """The matrix `[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`, `(3, 3)` float32, in pixels."""
        return torch.tensor([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def scaled_to(self, width: int, height: int) -> "Camera":
        """Return the camera of the same picture resized to `width` x `height` pixels."""
        across, down = width / self.width, height / self.height
        return Camera(
            *(self.fx * across, self.fy * down, self.cx * across, self.cy * down), int(width), int(height), self.source
        )

    def turned(self, orientation: int) -> "Camera":
        """Return the camera of the upright picture, from that of the stored one with an EXIF orientation of 5 to 8."""
        across = self.cy if orientation in (5, 8) else self.height - self.cy
        down = self.cx if orientation in (5, 6) else self.width - self.cx
        return replace(self, fx=self.fy, fy=self.fx, cx=across, cy=down, width=self.height, height=self.width)

    def to_row(self) -> list[float]:
        """Return the seven numbers in which a camera travels through the model, see [`Camera.from_row`]."""
        source = CAMERA_SOURCES.index(self.source)
        return [self.fx, self.fy, self.cx, self.cy, float(self.height), float(self.width), float(source)]

    @classmethod
    def from_row(cls, row: Sequence[float] | torch.Tensor) -> "Camera":
        """Return the camera of a row `(7,)`: fx, fy, cx, cy, height, width, index into `CAMERA_SOURCES`."""
        fx, fy, cx, cy, height, width, source = (float(number) for number in row)
        return cls(fx, fy, cx, cy, round(width), round(height), CAMERA_SOURCES[round(source)])


def resolve_cameras(
    sizes: Sequence[tuple[int, int]],
    exifs: Sequence[Image.Exif | None] | None = None,
    intrinsics: Any = None,
    focal_length: Any = None,
    fov: Any = None,
    assumed_fov: float = DEFAULT_ASSUMED_FOV,
    image_names: Sequence[str] | None = None,
) -> list[Camera]:
    """Return the camera of every image, from the first that knows it.

    These are `intrinsics`, `focal_length`, `fov`, the image's EXIF data, and an assumed field of view. Each of the
    first three is one value for all images or a list with one, or None, for each. Warns of EXIF data that contradict
    themselves or the image, of values that no pinhole camera has, and, once for all images, of unknown focal lengths
    (`AssumedCameraWarning`).

    Args:
        sizes: `(height, width)` of every image in pixels, after its EXIF orientation.
        exifs: The EXIF data of every image, orientation tag included.
        intrinsics: A 3x3 matrix or `[fx, fy, cx, cy]` (tensor, array or list), in pixels of the upright image. Or with
            the size of the picture that they belong to, `[fx, fy, cx, cy, width, height]`, a dictionary of these six
            or a [`Camera`]: they are scaled to the image if that has the same shape. Where EXIF data turn the image by
            a quarter, the size may be that of the stored one, and the camera is turned with it.
        focal_length: In pixels of the image as given, not in millimetres.
        fov: Horizontal field of view in degrees.
        assumed_fov: Field of view in degrees across the longer side where nothing is known.
        image_names: What messages call the images; their numbers by default.

    Raises:
        ValueError: A value is not a finite positive number, not a pinhole matrix, of a picture of another shape, or an
            angle outside 0 to 180 degrees or in radians; the number of values differs from that of images; or an
            image is a panorama without a camera.
    """
    count = len(sizes)
    given = cameras_per_image(count, intrinsics, focal_length, fov)
    assumed = _angle(assumed_fov, "assumed_fov") or DEFAULT_ASSUMED_FOV
    exifs = [None] * count if exifs is None else exifs

    cameras, unknown = [], []
    for index, (height, width) in enumerate(sizes):
        name = image_names[index] if image_names else f"Image {index}"
        matrix, length, angle = (given[key][index] for key in ("intrinsics", "focal_length", "fov"))
        if matrix is not None:
            camera = _camera_of_picture(matrix, width, height, exif_orientation(exifs[index]), name)
        elif length is not None or angle is not None:
            source = "fov" if length is None else "focal_length"
            length = length or width / (2 * math.tan(math.radians(angle) / 2))
            camera = Camera(length, length, width / 2, height / 2, width, height, source)
        else:
            camera, known = _camera_from_exif(exifs[index], width, height, assumed, name)
            unknown += [] if known else [name if image_names else f"{index}"]
        if camera.source in ("intrinsics", "focal_length"):
            _warn_if_implausible(camera, name)
        cameras.append(camera)
    if unknown:
        warnings.warn(
            f"The focal length of {len(unknown)} of {count} image(s) is not known: {', '.join(unknown)}. A field of "
            f"view of {assumed:g} degrees across the longer side is assumed; where that is wrong, so are all depths, "
            "by one factor. Pass `focal_length` (pixels), `fov` (horizontal, degrees) or `intrinsics`, or images with "
            "EXIF data.",
            AssumedCameraWarning,
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
    image_name: str | None = None,
) -> Camera:
    """Return the camera of one image of `size` (height, width): see [`resolve_cameras`]."""
    names = None if image_name is None else [image_name]
    return resolve_cameras([size], [exif], intrinsics, focal_length, fov, assumed_fov, names)[0]


def per_image(value: Any, count: int, name: str) -> list[Any]:
    """Return `value` for each of `count` images: itself for all, or the entries of a list, tuple, array or tensor."""
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


def cameras_per_image(
    count: int, intrinsics: Any = None, focal_length: Any = None, fov: Any = None
) -> dict[str, list[Any]]:
    """Return the checked `intrinsics` (four or six numbers), `focal_length` and `fov` of each image, None if not given.

    See [`resolve_cameras`]; what needs the image's size is not checked.
    """
    matrices = _intrinsics_per_image(intrinsics, count)
    lengths, angles = per_image(focal_length, count, "focal_length"), per_image(fov, count, "fov")
    return {
        "intrinsics": [None if one is None else camera_numbers(one) for one in matrices],
        "focal_length": [_positive(one, "focal_length", "pixels") for one in lengths],
        "fov": [_angle(one, "fov") for one in angles],
    }


def _camera_from_exif(
    exif: Image.Exif | None, width: int, height: int, assumed: float, name: str
) -> tuple[Camera, bool]:
    """Return the camera that EXIF data tell, or an assumed one, and whether the user has been told about it."""
    reason = panorama_reason(exif, width, height)
    if reason is not None:
        raise ValueError(
            f"{name} is a panorama ({reason}), not the picture of a pinhole camera. Cut it into views of at "
            "most 100 degrees and pass the `fov` of each; or pass `focal_length`, `fov` or `intrinsics` with the whole "
            "to have it taken for a pinhole picture all the same."
        )
    found, problems = focal_length_from_exif(exif, width, height)
    lengths = found or (max(width, height) / (2 * math.tan(math.radians(assumed) / 2)),) * 2
    camera = Camera(*lengths, width / 2, height / 2, width, height, "exif" if found else "assumed")
    if problems:
        taken = "taken" if found else "assumed"
        warnings.warn(
            f"{name}: its EXIF data do not tell the focal length for sure: {problems}. {camera.fx:.0f} pixels, "
            f"{camera.fov:.0f} degrees, is {taken}; if it is wrong, so are all depths, by one factor. Pass "
            "`focal_length` (pixels), `fov` (horizontal, degrees) or `intrinsics`.",
            stacklevel=4,
        )
    return camera, bool(found or problems)


def _camera_of_picture(numbers: list[float], width: int, height: int, orientation: int, name: str) -> Camera:
    """Return a given camera at the size of an upright picture; raise if it is not the camera of that picture."""
    fx, fy, cx, cy, *size = numbers
    if size:
        camera = Camera(fx, fy, cx, cy, round(size[0]), round(size[1]), "intrinsics")
        if _same_shape(camera.width, camera.height, width, height):
            return camera.scaled_to(width, height)
        if orientation >= 5 and _same_shape(camera.height, camera.width, width, height):
            return camera.turned(orientation).scaled_to(width, height)
        raise ValueError(
            f"{name}: its `intrinsics` are of a picture of {camera.width}x{camera.height} pixels, and it has "
            f"{width}x{height}, which is another shape. Give the intrinsics of this picture."
        )
    camera = Camera(fx, fy, cx, cy, width, height, "intrinsics")
    stored = replace(camera, width=height, height=width)
    if orientation >= 5 and camera.off_centre > max(0.1, stored.off_centre):
        turned = stored.turned(orientation)
        raise ValueError(
            f"{name}: the principal point ({cx:g}, {cy:g}) in `intrinsics` is that of the stored picture of "
            f"{height}x{width} pixels, which its EXIF orientation turns to {width}x{height}. Give the intrinsics of "
            f"the upright picture, here [{turned.fx:g}, {turned.fy:g}, {turned.cx:g}, {turned.cy:g}], or add the size "
            f"that they belong to: [{fx:g}, {fy:g}, {cx:g}, {cy:g}, {height}, {width}]."
        )
    return camera


def _same_shape(width: int, height: int, other_width: int, other_height: int) -> bool:
    rounding = 1 / min(width, height, other_width, other_height)
    return abs(math.log(width / height * other_height / other_width)) <= max(0.01, rounding)


def _intrinsics_per_image(value: Any, count: int) -> list[Any]:
    """Split `intrinsics`, where one image's value is itself a list, an array or a tensor."""
    if value is None or isinstance(value, (Mapping, Camera)):
        return [value] * count
    entries = list(value) if isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) else [value]
    shapes = [None if entry is None else _to_array(entry).shape for entry in entries]
    if shapes in ([()] * 4, [()] * 6, [(3,)] * 3):
        return [value] * count
    if any(shape == () for shape in shapes):
        raise ValueError(f"{_INTRINSICS}, got {value!r}.")
    if len(entries) != count:
        raise ValueError(
            f"`intrinsics` has {len(entries)} entries for {count} image(s). Pass one camera for all images, or a list "
            "with one for each, None where it is unknown."
        )
    return entries


_INTRINSICS = (
    "`intrinsics` must be a 3x3 matrix or [fx, fy, cx, cy], width and height appended or not, in pixels, for each image"
)


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, Camera):
        value = [value.fx, value.fy, value.cx, value.cy, value.width, value.height]
    elif isinstance(value, Mapping):
        names = ("fx", "fy", "cx", "cy", "width", "height")[: 6 if value.keys() & {"width", "height"} else 4]
        if set(value) - {"source"} != set(names):
            raise ValueError(f"`intrinsics` has the keys {sorted(map(str, value))}, expected {', '.join(names)}.")
        value = [value[name] for name in names]
    elif isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()  # numpy has no bfloat16
    try:
        if np.asarray(value).dtype.kind != "b":
            return np.ma.filled(np.ma.asarray(value, dtype=np.float64), np.nan)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{_INTRINSICS}, got {value!r}.")


def camera_numbers(value: Any) -> list[float]:
    """Return fx, fy, cx, cy and, where they are given, width and height of one image's `intrinsics`."""
    matrix = _to_array(value)
    given = f"got {matrix.tolist()}"
    if not np.isfinite(matrix).all():
        raise ValueError(f"`intrinsics` must be finite, {given}. Pass None for an image whose camera is not known.")
    if matrix.shape == (3, 3):
        if not np.allclose(matrix[2], [0, 0, 1]):
            raise ValueError(f"The last row of a 3x3 `intrinsics` matrix must be [0, 0, 1], {given}.")
        if abs(matrix[1, 0]) > 1e-6 or abs(matrix[0, 1]) > 1e-3 * abs(matrix[0, 0]):
            raise ValueError(f"`intrinsics` must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] without skew, {given}.")
        matrix = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    elif matrix.shape not in ((4,), (6,)):
        raise ValueError(f"{_INTRINSICS}, {given}.")
    numbers = [float(number) for number in matrix]
    if min(numbers[:2]) <= 0 or min(numbers[4:], default=1) < 1:
        raise ValueError(f"The focal lengths fx and fy in `intrinsics` and the size must be positive, {given}.")
    return numbers


def _positive(value: Any, name: str, unit: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (bool, np.bool_, str)) else float(value)
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
    if angle is not None and not LARGEST_RADIANS < angle < 180:
        raise ValueError(
            f"`{name}` must lie between 0 and 180 degrees, and not be in radians (up to pi), got {value!r}. For a "
            "telescope, pass `focal_length` (pixels)."
        )
    return angle


def _warn_if_implausible(camera: Camera, name: str) -> None:
    size = f"{camera.width}x{camera.height} pixels"
    problem = None
    if camera.fov > WIDEST_PLAUSIBLE_FOV:
        problem = (
            f"a focal length of {camera.fx:g} pixels in an image of {size} is a field of view of {camera.fov:.0f} "
            "degrees. The focal length must be in pixels of the image as given, not in millimetres and not divided by "
            "the width."
        )
    elif not (0 <= camera.cx <= camera.width and 0 <= camera.cy <= camera.height):
        problem = (
            f"the principal point ({camera.cx:g}, {camera.cy:g}) lies outside the image of {size}. Scale `intrinsics` "
            "if they belong to another size, or append that size to [fx, fy, cx, cy]."
        )
    if problem:
        warnings.warn(f"{name}: {problem}", stacklevel=4)
