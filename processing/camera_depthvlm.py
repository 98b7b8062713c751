# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Pinhole cameras: given, read from EXIF data in three ways that are compared, or assumed (f of equation 6)."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

CAMERA_SOURCES = ("intrinsics", "focal_length", "fov", "exif", "assumed", "predicted")

# A 30 mm lens on 35 mm film, close to most phones and compact cameras, sees 60 degrees across a 4:3 picture.
DEFAULT_ASSUMED_FOV = 60.0

# An angle of at most pi is taken for radians: in degrees, only a telescope has it.
LARGEST_RADIANS = 3.15
# No pinhole picture is wider than this: such a focal length is in another unit or belongs to another image.
WIDEST_PLAUSIBLE_FOV = 150.0

Base = ExifTags.Base
Pair = tuple[float, float]

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# EXIF 2.32, tag 0xA210: inch (also the default), centimetre; millimetre and micrometre are widely used.
MILLIMETRES_PER_UNIT = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}

FILM_DIAGONAL = math.hypot(36.0, 24.0)

# Outside of these fields of view, in degrees, a focal length in EXIF data is a mistake of the software.
PLAUSIBLE_FOV = (0.5, 150.0)

# Two estimates of the focal length that differ by more than this do not describe the same picture.
AGREEMENT = 1.1
# No image sensor in use has a diagonal outside of these, in millimetres.
SENSOR_DIAGONALS = (3.0, 70.0)

# Width and height of sensors in millimetres, as the makers' specifications print them (of phones: pixel pitch times
# number of pixels); focal lengths in millimetres of a phone's lens, which tells which of its cameras it was; a pattern
# searched in "make model". The first match counts.
SENSORS: tuple[tuple[float, float, tuple[float, ...], str], ...] = (
    (36.0, 24.0, (), r"canon eos-1ds|canon eos-1d [xc]|canon eos (5d|6d|r[13568](m\d)?\b|ra?\b|rp\b)"),
    (27.9, 18.6, (), "canon eos-1d"),
    (22.3, 14.9, (), "canon eos|canon powershot g1 x mark iii"),
    (18.7, 14.0, (), "canon powershot g1 x"),
    (13.2, 8.8, (), "canon powershot g[3579] x"),
    (7.44, 5.58, (), r"canon powershot (g([79]|1[0-6])|s(9[05]|1[0-2]0))\b"),
    (6.17, 4.55, (), r"canon powershot sx(1|[2-7]0|[2-7]\d0)\b"),
    (35.9, 23.9, (), r"nikon (d[3-6][sx]?|d6[01]0|d7[058]0|d8[015]0[ea]?|df|z ?[5-9](_[23])?|z ?f)\b"),
    (23.5, 15.6, (), r"nikon (d\d+[a-z]*|z ?[35]0(_2)?|z ?fc|coolpix a)\b"),
    (13.2, 8.8, (), "nikon 1 "),
    (6.17, 4.55, (), r"coolpix (p[569]\d0|p1[01]00|b\d00)\b"),
    (35.8, 23.9, (), r"sony (ilce-[179]|ilca-99|slt-a99|dslr-a(850|900)|dsc-rx1(r|rm2)?\b|zv-e1\b)"),
    (23.5, 15.6, (), "sony (ilce|ilca|slt|dslr|nex|zv-e10)"),
    (13.2, 8.8, (), "sony (dsc-rx10|zv-1)"),
    (43.8, 32.9, (), "fujifilm gfx"),
    (8.8, 6.6, (), r"fujifilm (finepix )?(x[123]0|x-s1|xf1|xq[12])\b"),
    (23.6, 15.6, (), "fujifilm (finepix )?(x-?pro|x-[aehmst]|x100|x70)"),
    (17.3, 13.0, (), r"(olympus|om digital).* (e-(m|p|pl|pm|\d)|om-)"),
    (17.3, 13.0, (), r"panasonic (dmc|dc)-(g|gf|gh|gm|gx|l)\d"),
    (35.6, 23.8, (), r"panasonic dc-s\d"),
    (13.2, 8.8, (), r"panasonic (dmc|dc)-(fz(1000|2000|2500)|[tz][sz]?[12]00|lx1[05]\b)"),
    (43.8, 32.8, (), "(pentax|ricoh).* 645"),
    (35.9, 24.0, (), r"(pentax|ricoh).* k-1\b"),
    (23.5, 15.6, (), r"(pentax|ricoh).* k-?[\dmprsx]|ricoh gr(?! digital)"),
    (23.5, 15.7, (), r"samsung nx\d"),
    (36.0, 24.0, (), r"leica (m9|m1[01]|m \(typ|m mono|q|sl)"),
    (43.8, 32.9, (), "hasselblad (x1d|x2d|907x)"),
    (13.2, 8.8, (), "dji fc(6310|3411)|hasselblad l1d"),
    (6.17, 4.55, (), r"dji fc(2\d\d|300|330|7[23]03)"),
    (4.03, 3.02, (1.54, 1.57, 6.0, 6.6, 7.5, 9.0), "apple iphone"),
    (4.55, 3.41, (3.85, 4.28), "apple iphone"),
    (4.89, 3.67, (3.99, 4.15), "apple iphone"),
    (5.64, 4.23, (2.22, 4.2, 4.25), "apple iphone"),
    (6.85, 5.14, (5.1,), "apple iphone"),
    (7.66, 5.75, (5.7,), "apple iphone"),
    (8.06, 6.05, (5.96,), "apple iphone"),
    (9.84, 7.38, (6.765, 6.86), "apple iphone"),
    (4.57, 3.43, (3.97,), r"lge nexus 5\b"),
    (6.27, 4.72, (4.67,), "lge nexus 5x|huawei nexus 6p|google pixel"),
    (5.64, 4.23, (4.38, 4.44, 4.46), "google pixel"),
    (9.79, 7.37, (6.81, 6.9), "google pixel"),
    (5.64, 4.23, (4.2, 4.25, 4.3, 4.32), "samsung sm-g9[3-7]"),
    (7.26, 5.44, (5.4,), "samsung sm-g9[89]"),
)

# Cameras whose 2:1 pictures are full spheres.
SPHERE_CAMERAS = (
    "theta|insta ?360|arashi vision|gopro (fusion|max)|gear ?360|sm-(c200|r210)|keymission 360|virb 360|qoocam|kandao|"
    "pixpro (sp360|4kvr360|orbit360)|lg-r105|madv|yi (360|vr)|vuze|pilot (era|one)|labpano|trisio|osmo 360"
)


class AssumedCameraWarning(UserWarning):
    """The focal length of an image is not known, and a field of view is assumed."""


_unsaid: ContextVar[type[Warning] | None] = ContextVar("unsaid", default=None)


@contextmanager
def unsaid(category: type[Warning]) -> Iterator[None]:
    """Suppress this package's warnings of a category in this thread; `warnings.catch_warnings` affects all threads."""
    token = _unsaid.set(category)
    try:
        yield
    finally:
        _unsaid.reset(token)


def warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Warn as `warnings.warn` does, unless [`unsaid`] suppresses the category."""
    left_out = _unsaid.get()
    if left_out is None or not issubclass(category, left_out):
        warnings.warn(message, category, stacklevel=stacklevel + 1)


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
        source: Origin of the camera, one of `CAMERA_SOURCES`.
        focal_spread: Standard deviation of the logarithm of the focal length, where a model predicted it; else None.

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
    focal_spread: float | None = None

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
        """Focal length used by the method, along the width, in pixels."""
        return self.fx

    @property
    def fov(self) -> float:
        """Horizontal field of view of a centred camera of this focal length, in degrees."""
        return math.degrees(2 * math.atan(self.width / (2 * self.fx)))

    @property
    def fov_spread(self) -> float | None:
        """Standard deviation of `fov` in degrees, where a model predicted it; else None."""
        if self.focal_spread is None:
            return None
        # tan(fov / 2) is inversely proportional to the focal length, so d fov = -sin(fov) * d log(focal length).
        return math.degrees(math.sin(math.radians(self.fov)) * self.focal_spread)

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
        numbers = (self.fx * across, self.fy * down, self.cx * across, self.cy * down)
        return Camera(*numbers, int(width), int(height), self.source, self.focal_spread)

    def turned(self, orientation: int) -> "Camera":
        """Return the camera of the upright picture, given that of the stored one with an EXIF orientation of 5 to 8."""
        across = self.cy if orientation in (5, 8) else self.height - self.cy
        down = self.cx if orientation in (5, 6) else self.width - self.cx
        return replace(self, fx=self.fy, fy=self.fx, cx=across, cy=down, width=self.height, height=self.width)

    def to_row(self) -> list[float]:
        """Return the camera as the seven numbers that pass through the model, see [`Camera.from_row`]."""
        source = CAMERA_SOURCES.index(self.source)
        return [self.fx, self.fy, self.cx, self.cy, float(self.height), float(self.width), float(source)]

    @classmethod
    def from_row(cls, row: Sequence[float] | torch.Tensor) -> "Camera":
        """Return the camera of a row `(7,)`: fx, fy, cx, cy, height, width, index into `CAMERA_SOURCES`.

        A row `(8,)`, of a model that predicts cameras, ends with `focal_spread`, NaN where the camera was given.
        """
        fx, fy, cx, cy, height, width, source, *rest = (float(number) for number in row)
        spread = next((number for number in rest if math.isfinite(number)), None)
        return cls(fx, fy, cx, cy, round(width), round(height), CAMERA_SOURCES[round(source)], spread)


def resolve_cameras(
    sizes: Sequence[tuple[int, int]],
    exifs: Sequence[Image.Exif | None] | None = None,
    intrinsics: Any = None,
    focal_length: Any = None,
    fov: Any = None,
    assumed_fov: float = DEFAULT_ASSUMED_FOV,
    image_names: Sequence[str] | None = None,
) -> list[Camera]:
    """Return the camera of every image, from the first source that has it.

    These are `intrinsics`, `focal_length`, `fov`, the image's EXIF data, and an assumed field of view. Each of the
    first three is one value for all images or a list with one, or None, for each. Warns about EXIF data that contradict
    themselves or the image, about values that no pinhole camera has, and, once for all images, about unknown focal
    lengths (`AssumedCameraWarning`).

    Args:
        sizes: `(height, width)` of every image in pixels, after its EXIF orientation.
        exifs: The EXIF data of every image, orientation tag included.
        intrinsics: A 3x3 matrix or `[fx, fy, cx, cy]` (tensor, array or list), in pixels of the upright image. With the
            size of the picture that they belong to, `[fx, fy, cx, cy, width, height]`, a dictionary of these six or a
            [`Camera`], they are scaled to the image if it has the same shape. If EXIF data rotate the image by a
            quarter turn, the size may be that of the stored one; the camera is then rotated too.
        focal_length: In pixels of the image as given, not in millimetres.
        fov: Horizontal field of view in degrees.
        assumed_fov: Field of view in degrees across the longer side if nothing is known.
        image_names: Names of the images in messages; their numbers by default.

    Raises:
        ValueError: A value is not a finite positive number, not a pinhole matrix, belongs to a picture of another
            shape, or is an angle outside 0 to 180 degrees or in radians; the number of values differs from that of
            images; or an image is a panorama without a camera.
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
            camera = camera_of_picture(matrix, width, height, exif_orientation(exifs[index]), name)
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
        warn(
            f"The focal length of {len(unknown)} of {count} image(s) is not known: {', '.join(unknown)}. A field of "
            f"view of {assumed:g} degrees across the longer side is assumed; where that is wrong, so are all depths, "
            "by one factor, unless the model has a camera head. Pass `focal_length` (pixels), `fov` (horizontal, "
            "degrees) or `intrinsics`, or images with EXIF data.",
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
    # Images and their values may be nested, a list for every conversation.
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
    """Return the camera from EXIF data, or an assumed one, and whether the user has been warned about it."""
    reason = panorama_reason(exif, width, height)
    if reason is not None:
        raise ValueError(
            f"{name} is a panorama ({reason}), not the picture of a pinhole camera. depthvlm.predict cuts it into "
            "views with `camera='equirectangular'` (--panorama). Elsewhere, cut it into views of at most 100 degrees "
            "and pass the `fov` of each; or pass `focal_length`, `fov` or `intrinsics` with the whole to have it taken "
            "for a pinhole picture all the same."
        )
    found, problems = focal_length_from_exif(exif, width, height)
    lengths = found or (max(width, height) / (2 * math.tan(math.radians(assumed) / 2)),) * 2
    camera = Camera(*lengths, width / 2, height / 2, width, height, "exif" if found else "assumed")
    if problems:
        taken = "taken" if found else "assumed"
        warn(
            f"{name}: its EXIF data do not tell the focal length for sure: {problems}. {camera.fx:.0f} pixels, "
            f"{camera.fov:.0f} degrees, is {taken}; if it is wrong, so are all depths, by one factor. Pass "
            "`focal_length` (pixels), `fov` (horizontal, degrees) or `intrinsics`.",
            stacklevel=4,
        )
    return camera, bool(found or problems)


def camera_of_picture(numbers: list[float], width: int, height: int, orientation: int, name: str) -> Camera:
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
    """Split `intrinsics` per image, as one image's value is itself a list, an array or a tensor."""
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
    """Return fx, fy, cx, cy and, if given, width and height from one image's `intrinsics`."""
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
        warn(f"{name}: {problem}", stacklevel=4)


def read_exif(image: Image.Image) -> Image.Exif | None:
    """Return the EXIF data of an image, including its XMP data as `XMLPacket`; None if it has none.

    Raises:
        ValueError: They are corrupt; the message says how.
    """
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
        xmp = image.info.get("xmp")
        if xmp and Base.XMLPacket not in exif:
            exif[Base.XMLPacket] = xmp
    except Exception as error:  # Pillow's parser may raise anything on corrupt bytes
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return exif if len(exif) > 0 else None


def exif_orientation(exif: Image.Exif | None) -> int:
    """Return the orientation tag, 1 (upright) to 8; 1 if it is missing or invalid."""
    value = 1 if exif is None else exif.get(Base.Orientation, 1)
    return value if isinstance(value, int) and value in ORIENTATIONS else 1


def panorama_reason(exif: Image.Exif | None, width: int, height: int) -> str | None:
    """Return why a picture is a panorama, which no pinhole camera takes, according to its data; else None."""
    if exif is None:
        return None
    xmp = exif.get(Base.XMLPacket, b"")
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    projection = re.search(r"GPano:ProjectionType\s*(?:=\s*[\"']|>)\s*([\w-]+)", text)
    if projection and projection[1].lower() not in ("rectilinear", "perspective"):
        return f"its GPano data say {projection[1]!r}"
    camera = _camera_name(exif)
    if re.search(SPHERE_CAMERAS, camera, re.IGNORECASE) and abs(width / height - 2) <= 0.02:
        return f"it is 2:1 ({width}x{height}) and was taken by a 360-degree camera ({camera})"
    if exif.get_ifd(ExifTags.IFD.Exif).get(Base.CustomRendered) == 6 and camera.startswith("apple"):
        return "its EXIF CustomRendered says panorama"
    return None


def focal_length_from_exif(
    exif: Image.Exif | None, width: int, height: int
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the focal lengths along the width and the height of an upright picture, in pixels.

    There are three estimates: the 35 mm equivalent, by the diagonal rule `f = f35 * sqrt(W^2 + H^2) / 43.27` of
    CIPA; the focal length in millimetres with the focal-plane resolution; and the same with the sensor of a known
    camera. They are compared with one another, and with what is possible for a sensor and a lens.

    Args:
        exif: The EXIF data, with the file's orientation tag.
        width: Width of the upright picture, in pixels.
        height: Its height, in pixels.

    Returns:
        The focal lengths, or None if the EXIF data do not give them; and the problem with the data, or None.
    """
    if exif is None:
        return None, None
    reader = _Reader(exif, width, height)
    return reader.focal_lengths(), "; ".join(reader.problems) or None


class _Reader:
    """Tags of one picture, and their problems. Focal lengths are pairs along the upright width and height."""

    def __init__(self, exif: Image.Exif, width: int, height: int) -> None:
        self.tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
        with suppress(Exception):  # missing or corrupt: Pillow may raise anything
            self.tags |= exif.get_ifd(ExifTags.IFD.Interop)
        self.camera = _camera_name(exif)
        self.width, self.height = width, height
        self.long, self.short = max(width, height), min(width, height)
        self.turned = exif_orientation(exif) >= 5
        self.problems: list[str] = []
        self.side = math.nan  # millimetres

    def focal_lengths(self) -> Pair | None:
        """Return the best supported pair, or None if there is no reliable one."""
        zoom = max(1.0, self.number(Base.DigitalZoomRatio, 0.01, 1000) or 1.0)
        frame = self.frame()
        if frame is None:
            return None
        millimetres = self.millimetres()
        sensor = self.sensor(millimetres)
        by_sensor = self.by_sensor(millimetres, sensor, zoom)
        by_plane = self.by_plane(millimetres, frame, zoom)
        by_film = self.by_film(millimetres, zoom, by_sensor or by_plane)
        ways = {
            "FocalLengthIn35mmFilm": by_film,
            "FocalLength with the focal-plane resolution": by_plane,
            f"FocalLength with the known sensor of {self.camera}": by_sensor,
        }
        known = {name: pair for name, pair in ways.items() if pair is not None}
        if by_plane and len(known) == 1 and not self.trusts_plane_alone(by_plane[0], self.side, frame[0]):
            return None
        if not known:
            if millimetres and not self.problems:
                self.problems.append(
                    f"EXIF has a focal length of {millimetres:g} mm but neither its 35 mm equivalent nor a resolution, "
                    f"and the sensor of {self.camera or 'the camera'} is not known"
                )
            return None
        # A camera that crops to 16:9 or 1:1 usually keeps the 35 mm equivalent of its whole sensor.
        whole_shapes = (4 / 3, 3 / 2) if sensor is None else (sensor[0] / sensor[1],)
        whole = any(abs(self.long / self.short / shape - 1) < 0.03 for shape in whole_shapes)
        order = [pair for pair in (by_film if whole else None, by_sensor, by_plane, by_film) if pair is not None]
        supported = [pair for pair in order if sum(_agree(pair, other) for other in known.values()) > 1]
        if supported:
            chosen = supported[0]
        elif by_film and by_sensor:  # a part of the sensor may have been read out, never more than all of it
            chosen = by_film if by_film[0] > by_sensor[0] else by_sensor
        else:
            chosen = by_film or by_sensor or order[0]
        if chosen is by_film and by_plane:  # only the equivalent is rounded to millimetres
            rounding = 0.5 / _to_float(self.tags[Base.FocalLengthIn35mmFilm])
            chosen = by_plane if abs(by_plane[0] / by_film[0] - 1) <= rounding else by_film
        if not all(_agree(chosen, pair) for pair in known.values()):
            listed = ", ".join(f"{pair[0]:.0f} by {name}" for name, pair in known.items())
            self.problems.append(f"its EXIF data disagree on the focal length in pixels: {listed}")
        elif len(known) == 1 and by_film:
            self.check_crop(by_film)
        return chosen

    def number(self, tag: ExifTags.Base, low: float, high: float) -> float | None:
        """Return a tag's value; None if it is missing, 0 or x/0 (unknown), or not within `low` and `high`."""
        value = self.tags.get(tag)
        if value is None or value == 0 or getattr(value, "denominator", 1) == 0:
            return None
        number = _to_float(value)
        if not low <= number <= high:
            self.problems.append(f"EXIF {tag.name} is {value!r}")
            return None
        return number

    def frame(self) -> tuple[float, float, bool] | None:
        """Return the size that the focal-plane resolution refers to, along the upright width and height.

        The third entry is whether the file's x axis is the upright y axis. None for a picture of another shape, as it
        was cropped.
        """
        taken = self.number(Base.ExifImageWidth, 1, 1e6), self.number(Base.ExifImageHeight, 1, 1e6)
        if None in taken:
            taken = self.number(Base.ImageWidth, 1, 1e6), self.number(Base.ImageLength, 1, 1e6)
        original = self.number(Base.RelatedImageWidth, 1, 1e6), self.number(Base.RelatedImageLength, 1, 1e6)
        found = float(self.width), float(self.height), self.turned
        for width, height in (taken, original):
            if width is None or height is None:
                continue
            # Software that rotated the pixels may not have swapped the two dimensions.
            upright, turned = (width, height, False), (height, width, True)
            best = min((turned, upright) if self.turned else (upright, turned), key=self.stretch)
            if self.stretch(best) <= max(0.02, 1 / self.short):  # rounding of a side
                found = best
            elif (width, height) == taken:
                self.problems.append(f"EXIF says {width:g}x{height:g} pixels, so the picture was cropped")
                return None
        return found

    def stretch(self, size: tuple[float, float, bool]) -> float:
        """Return by how much the shape of `size` differs from the picture's."""
        return abs(math.log(self.width / size[0] * size[1] / self.height))

    def millimetres(self) -> float | None:
        """Return FocalLength, or None if no lens has such a value."""
        millimetres = self.number(Base.FocalLength, 0.1, 10000)
        limits = self.tags.get(Base.LensSpecification)
        if millimetres is None or not isinstance(limits, tuple) or len(limits) < 2:
            return millimetres
        shortest, longest = _to_float(limits[0]), _to_float(limits[1])
        # Converters between lens and camera range from 0.64 to 2.
        if shortest <= longest and not 0.6 * shortest <= millimetres <= 2.1 * longest:
            self.problems.append(
                f"EXIF FocalLength is {millimetres:g} mm, LensSpecification {shortest:g} to {longest:g} mm"
            )
            return None
        return millimetres

    def sensor(self, millimetres: float | None) -> Pair | None:
        """Return width and height in millimetres of a known camera's sensor."""
        for width, height, lenses, pattern in SENSORS:
            near = not lenses or (millimetres and any(abs(millimetres - lens) < 0.015 for lens in lenses))
            if near and re.search(pattern, self.camera):
                return width, height
        return None

    def by_sensor(self, millimetres: float | None, sensor: Pair | None, zoom: float) -> Pair | None:
        """Return the pair from a known sensor; a picture of another shape covers one whole side of it."""
        if millimetres is None or sensor is None:
            return None
        length = millimetres * zoom * max(self.long / sensor[0], self.short / sensor[1])
        return (length, length) if self.is_plausible(length) else None

    def by_plane(self, millimetres: float | None, frame: tuple[float, float, bool], zoom: float) -> Pair | None:
        """Return the pair from the focal-plane resolution."""
        across = self.number(Base.FocalPlaneXResolution, 1e-9, 1e9)
        down = self.number(Base.FocalPlaneYResolution, 1e-9, 1e9)
        across, down = across or down, down or across
        if millimetres is None or across is None or down is None:
            return None
        unit = self.tags.get(Base.FocalPlaneResolutionUnit, 2)
        if not isinstance(unit, int) or unit not in MILLIMETRES_PER_UNIT:
            self.problems.append(f"EXIF FocalPlaneResolutionUnit is {unit!r}, not 2 (inch) to 5")
            return None
        along = (down, across) if frame[2] else (across, down)
        sides = [frame[i] / along[i] * MILLIMETRES_PER_UNIT[unit] for i in (0, 1)]
        lengths = (millimetres * zoom / sides[0] * self.width, millimetres * zoom / sides[1] * self.height)
        if not _is_sensor(math.hypot(*sides)) or not self.is_plausible(lengths[0]):
            self.problems.append(
                f"EXIF FocalLength and its resolution give {lengths[0]:.0f} pixels and a sensor of {sides[0]:.3g} x "
                f"{sides[1]:.3g} mm, which no camera has"
            )
            return None
        self.side = sides[0]
        return lengths

    def trusts_plane_alone(self, length: float, side: float, pixels: float) -> bool:
        """Return whether an unconfirmed focal-plane resolution can apply to the whole picture, and note it."""
        given = f"EXIF FocalLength and its resolution give {length:.0f} pixels and a sensor {side:.3g} mm wide"
        # Sensors under 13 mm have smaller pixels: such a resolution refers to the picture before it was reduced.
        if side * self.long / self.width < 13 and side / pixels > 0.0036:
            self.problems.append(f"{given}, with pixels of {side / pixels * 1000:.1f} µm, as only larger ones have")
            return False
        self.problems.append(f"{given}, which nothing else in them confirms")
        return True

    def by_film(self, millimetres: float | None, zoom: float, other: Pair | None) -> Pair | None:
        """Return the pair from the 35 mm equivalent, which only some cameras write with the digital zoom."""
        equivalent = self.number(Base.FocalLengthIn35mmFilm, 0.1, 65535)
        if equivalent is None:
            return None
        length = equivalent * math.hypot(self.width, self.height) / FILM_DIAGONAL
        if not self.is_plausible(length):
            self.problems.append(f"EXIF FocalLengthIn35mmFilm is {equivalent:g} mm, which no lens has")
            return None
        factors = [factor for factor in dict.fromkeys((1.0, zoom)) if self.is_plausible(length * factor)]
        if millimetres is not None:
            diagonals = {factor: FILM_DIAGONAL * millimetres * zoom / (equivalent * factor) for factor in factors}
            factors = [factor for factor in factors if _is_sensor(diagonals[factor])]
            if not factors:
                self.problems.append(
                    f"EXIF FocalLengthIn35mmFilm is {equivalent:g} mm and FocalLength {millimetres:g} mm, as with a "
                    f"sensor of {diagonals[1.0]:.3g} mm, which no camera has"
                )
                return None
        if other is not None:
            factors.sort(key=lambda factor: abs(math.log(length * factor / other[0])))
        elif len(factors) > 1 and zoom > AGREEMENT:
            self.problems.append(
                f"EXIF DigitalZoomRatio is {zoom:g}, and nothing tells whether FocalLengthIn35mmFilm has it in it, as "
                f"is taken here: {length:.0f} pixels, or else {length * zoom:.0f}"
            )
        return length * factors[0], length * factors[0]

    def check_crop(self, lengths: Pair) -> None:
        """Note by how much the focal length differs if it is that of the whole 4:3 sensor, where that matters."""
        factor = max(self.long, self.short * 4 / 3) * 1.25 / math.hypot(self.long, self.short)
        if factor > AGREEMENT:
            self.problems.append(
                f"EXIF FocalLengthIn35mmFilm gives {lengths[0]:.0f} pixels by the diagonal, and "
                f"{lengths[0] * factor:.0f} if the picture of {self.width}x{self.height} was cut from a 4:3 one"
            )

    def is_plausible(self, length: float) -> bool:
        """Return whether a lens can have this focal length."""
        return PLAUSIBLE_FOV[0] <= math.degrees(2 * math.atan2(self.long / 2, length)) <= PLAUSIBLE_FOV[1]


def _camera_name(exif: Image.Exif) -> str:
    """Return make and model in lower case, without padding; the model alone where it repeats the make."""
    texts = (exif.get(tag) for tag in (Base.Make, Base.Model))
    make, model = (text.replace("\0", " ").lower().split() if isinstance(text, str) else [] for text in texts)
    return " ".join(model if model and model[0] in make else make + model)


def _agree(one: Pair, other: Pair) -> bool:
    return max(one[0] / other[0], other[0] / one[0]) <= AGREEMENT


def _is_sensor(diagonal: float) -> bool:
    return SENSOR_DIAGONALS[0] <= diagonal <= SENSOR_DIAGONALS[1]


def _to_float(value: Any) -> float:
    """Return a finite number, or NaN if `value` is not one."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
