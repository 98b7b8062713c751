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
"""The focal length in pixels from a picture's EXIF data, and its orientation."""

import math
from typing import Any

from PIL import ExifTags, Image

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# EXIF 2.32, tag 0xA210: inch (also when the tag is missing), centimetre; millimetre and micrometre are in wide use.
MILLIMETRES_PER_UNIT = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}

FILM_DIAGONAL = math.hypot(36.0, 24.0)

# Outside of these horizontal fields of view, in degrees, a focal length in EXIF data is a mistake of the software.
PLAUSIBLE_FOV = (0.5, 170.0)


def read_exif(image: Image.Image) -> Image.Exif | None:
    """The EXIF data of an image, None where it has none. Raises ValueError, with the reason, if they are corrupt."""
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
    except Exception as error:  # Pillow's parser raises whatever the corrupt bytes lead to
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return exif if len(exif) > 0 else None


def exif_orientation(exif: Image.Exif | None) -> int:
    """The orientation tag, 1 (upright) to 8; 1 where it is missing or not one of these."""
    value = 1 if exif is None else exif.get(ExifTags.Base.Orientation, 1)
    return value if value in ORIENTATIONS else 1


def focal_length_from_exif(
    exif: Image.Exif | None, width: int, height: int
) -> tuple[tuple[float, float] | None, str | None]:
    """
    The focal lengths along the width and the height of an upright picture, in pixels.

    First the 35 mm equivalent, by the diagonal rule `f = f35 * sqrt(W^2 + H^2) / sqrt(36^2 + 24^2)`, which holds at
    any size and in any orientation; else the focal length in millimetres times the focal-plane resolution.

    Args:
        exif (`PIL.Image.Exif`, *optional*): The EXIF data, with the orientation tag as the file has it.
        width (`int`): Width of the upright picture, in pixels.
        height (`int`): Height of the upright picture, in pixels.

    Returns:
        `tuple[tuple[float, float] | None, str | None]`: the focal lengths, None where the EXIF data do not tell them;
        and what was wrong with the data, None if nothing was.
    """
    if exif is None:
        return None, None
    tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    problems: list[str] = []

    def number(tag: ExifTags.Base) -> float | None:
        value = tags.get(tag)
        if value is None or value == 0:  # the standard writes 0 for unknown
            return None
        parsed = _to_float(value)
        if parsed is None or not math.isfinite(parsed) or parsed <= 0:
            problems.append(f"EXIF {tag.name} is {value!r}")
            return None
        return parsed

    # A picture cropped after it was taken has kept the lens, not the frame that the tags describe.
    taken = number(ExifTags.Base.ExifImageWidth), number(ExifTags.Base.ExifImageHeight)
    turned = exif_orientation(exif) >= 5
    ratio = 1.0
    if taken[0] is not None and taken[1] is not None:
        now = (height, width) if turned else (width, height)
        ratios = now[0] / taken[0], now[1] / taken[1]
        swapped = now[1] / taken[0], now[0] / taken[1]
        # Software that turned the pixels may have left the two dimensions as they were.
        ratios = min(ratios, swapped, key=lambda pair: abs(math.log(pair[0] / pair[1])))
        if abs(math.log(ratios[0] / ratios[1])) > max(0.02, 1 / min(width, height)):  # or the rounding of a side
            problems.append(f"EXIF says {taken[0]:g}x{taken[1]:g} pixels, so the picture was cropped")
            return None, _join(problems)
        ratio = ratios[0]

    equivalent = number(ExifTags.Base.FocalLengthIn35mmFilm)
    if equivalent is not None:
        length = equivalent * math.hypot(width, height) / FILM_DIAGONAL
        if _plausible(length, width):
            return (length, length), _join(problems)
        problems.append(f"EXIF FocalLengthIn35mmFilm is {equivalent:g} mm, which no lens has")

    millimetres = number(ExifTags.Base.FocalLength)
    if millimetres is None:
        return None, _join(problems)
    across, down = number(ExifTags.Base.FocalPlaneXResolution), number(ExifTags.Base.FocalPlaneYResolution)
    across, down = across or down, down or across
    if across is None or down is None:
        problems.append(
            f"EXIF has a focal length of {millimetres:g} mm but neither its 35 mm equivalent nor a resolution"
        )
        return None, _join(problems)
    unit = tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2)
    if unit not in MILLIMETRES_PER_UNIT:
        problems.append(f"EXIF FocalPlaneResolutionUnit is {unit!r}, not 2 (inch) to 5")
        return None, _join(problems)
    scale = ratio * millimetres / MILLIMETRES_PER_UNIT[unit]
    lengths = (down * scale, across * scale) if turned else (across * scale, down * scale)
    if not (_plausible(lengths[0], width) and _plausible(lengths[1], height)):
        problems.append(f"EXIF FocalLength and its resolution give {lengths[0]:.4g} pixels, which no lens has")
        return None, _join(problems)
    return lengths, _join(problems)


def _to_float(value: Any) -> float | None:
    try:
        return None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _plausible(length: float, side: int) -> bool:
    fov = math.degrees(2 * math.atan(side / (2 * length)))
    return PLAUSIBLE_FOV[0] <= fov <= PLAUSIBLE_FOV[1]


def _join(problems: list[str]) -> str | None:
    return "; ".join(problems) or None
