# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Focal lengths from EXIF data, in three ways that are compared with one another."""

import math
import re
from contextlib import suppress
from typing import Any

from PIL import ExifTags, Image

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

# EXIF 2.32, tag 0xA210: inch (also if it is missing), centimetre; millimetre and micrometre are in wide use.
MILLIMETRES_PER_UNIT = {1: 25.4, 2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}

FILM_DIAGONAL = math.hypot(36.0, 24.0)

# Outside of these fields of view, in degrees, a focal length in EXIF data is a mistake of the software.
PLAUSIBLE_FOV = (0.5, 150.0)

# Two ways to the focal length that differ by more than this do not describe the same picture.
AGREEMENT = 1.1
# No image sensor in use has a diagonal outside of these, in millimetres.
SENSOR_DIAGONALS = (3.0, 70.0)

# Width and height of sensors in millimetres, as the makers' specifications print them (of phones: pixel pitch times
# number of pixels); focal lengths in millimetres of a phone's lens, which tells which of its cameras it was; a pattern
# that is searched in "make model". The first that fits counts.
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

# Cameras whose pictures of 2:1 are whole spheres.
SPHERE_CAMERAS = (
    "theta|insta ?360|arashi vision|gopro (fusion|max)|gear ?360|sm-(c200|r210)|keymission 360|virb 360|qoocam|kandao|"
    "pixpro (sp360|4kvr360|orbit360)|lg-r105|madv|yi (360|vr)|vuze|pilot (era|one)|labpano|trisio|osmo 360"
)


def read_exif(image: Image.Image) -> Image.Exif | None:
    """Return the EXIF data of an image, its XMP data among them as `XMLPacket`; None where it has none.

    Raises:
        ValueError: They are corrupt; the message says how.
    """
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
        xmp = image.info.get("xmp")
        if xmp and Base.XMLPacket not in exif:
            exif[Base.XMLPacket] = xmp
    except Exception as error:  # Pillow's parser raises whatever the corrupt bytes lead to
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return exif if len(exif) > 0 else None


def exif_orientation(exif: Image.Exif | None) -> int:
    """Return the orientation tag, 1 (upright) to 8; 1 where it is missing or not one of these."""
    value = 1 if exif is None else exif.get(Base.Orientation, 1)
    return value if isinstance(value, int) and value in ORIENTATIONS else 1


def panorama_reason(exif: Image.Exif | None, width: int, height: int) -> str | None:
    """Return why its data say that a picture is a panorama, which no pinhole camera takes; None where they do not."""
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

    There are three ways to it: the 35 mm equivalent, by the diagonal rule `f = f35 * sqrt(W^2 + H^2) / 43.27` of
    CIPA; the focal length in millimetres with the focal-plane resolution; and the same with the sensor of a known
    camera. They are held against one another, and against what a sensor and a lens can be.

    Args:
        exif: The EXIF data, with the orientation tag as the file has it.
        width: Width of the upright picture, in pixels.
        height: Its height, in pixels.

    Returns:
        The focal lengths, None where the EXIF data do not tell them; and what was wrong with the data, None if nothing
        was.
    """
    if exif is None:
        return None, None
    reader = _Reader(exif, width, height)
    return reader.focal_lengths(), "; ".join(reader.problems) or None


class _Reader:
    """Tags of one picture, and what is wrong with them. Focal lengths are pairs along the upright width, height."""

    def __init__(self, exif: Image.Exif, width: int, height: int) -> None:
        self.tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
        with suppress(Exception):  # missing or corrupt, Pillow raises whatever that leads to
            self.tags |= exif.get_ifd(ExifTags.IFD.Interop)
        self.camera = _camera_name(exif)
        self.width, self.height = width, height
        self.long, self.short = max(width, height), min(width, height)
        self.turned = exif_orientation(exif) >= 5
        self.problems: list[str] = []
        self.side = math.nan  # millimetres

    def focal_lengths(self) -> Pair | None:
        """Return the pair that is best supported, None where there is none to rely on."""
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
        # A camera that crops to 16:9 or 1:1 mostly keeps the 35 mm equivalent of its whole sensor.
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
        if chosen is by_film and by_plane:  # the equivalent is rounded to millimetres, the other is not
            rounding = 0.5 / _to_float(self.tags[Base.FocalLengthIn35mmFilm])
            chosen = by_plane if abs(by_plane[0] / by_film[0] - 1) <= rounding else by_film
        if not all(_agree(chosen, pair) for pair in known.values()):
            listed = ", ".join(f"{pair[0]:.0f} by {name}" for name, pair in known.items())
            self.problems.append(f"its EXIF data disagree on the focal length in pixels: {listed}")
        elif len(known) == 1 and by_film:
            self.check_crop(by_film)
        return chosen

    def number(self, tag: ExifTags.Base, low: float, high: float) -> float | None:
        """Return a tag's value; None where it is missing, 0 or x/0 (unknown), or not within `low` and `high`."""
        value = self.tags.get(tag)
        if value is None or value == 0 or getattr(value, "denominator", 1) == 0:
            return None
        number = _to_float(value)
        if not low <= number <= high:
            self.problems.append(f"EXIF {tag.name} is {value!r}")
            return None
        return number

    def frame(self) -> tuple[float, float, bool] | None:
        """Return the size that the focal-plane resolution counts, along the upright width and height.

        Third is whether the file's x axis is the upright y axis. None for a picture of another shape: it was cropped.
        """
        taken = self.number(Base.ExifImageWidth, 1, 1e6), self.number(Base.ExifImageHeight, 1, 1e6)
        if None in taken:
            taken = self.number(Base.ImageWidth, 1, 1e6), self.number(Base.ImageLength, 1, 1e6)
        original = self.number(Base.RelatedImageWidth, 1, 1e6), self.number(Base.RelatedImageLength, 1, 1e6)
        found = float(self.width), float(self.height), self.turned
        for width, height in (taken, original):
            if width is None or height is None:
                continue
            # Software that turned the pixels may have left the two dimensions as they were.
            upright, turned = (width, height, False), (height, width, True)
            best = min((turned, upright) if self.turned else (upright, turned), key=self.stretch)
            if self.stretch(best) <= max(0.02, 1 / self.short):  # the rounding of a side
                found = best
            elif (width, height) == taken:
                self.problems.append(f"EXIF says {width:g}x{height:g} pixels, so the picture was cropped")
                return None
        return found

    def stretch(self, size: tuple[float, float, bool]) -> float:
        """Return by how much the shape of `size` differs from the picture's."""
        return abs(math.log(self.width / size[0] * size[1] / self.height))

    def millimetres(self) -> float | None:
        """Return FocalLength, None where the lens cannot have it."""
        millimetres = self.number(Base.FocalLength, 0.1, 10000)
        limits = self.tags.get(Base.LensSpecification)
        if millimetres is None or not isinstance(limits, tuple) or len(limits) < 2:
            return millimetres
        shortest, longest = _to_float(limits[0]), _to_float(limits[1])
        # Converters between lens and camera reach from 0.64 to 2.
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
        """Return the pair by a known sensor, of which a picture of another shape has one whole side."""
        if millimetres is None or sensor is None:
            return None
        length = millimetres * zoom * max(self.long / sensor[0], self.short / sensor[1])
        return (length, length) if self.is_plausible(length) else None

    def by_plane(self, millimetres: float | None, frame: tuple[float, float, bool], zoom: float) -> Pair | None:
        """Return the pair by the focal-plane resolution."""
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
        """Return whether an unconfirmed focal-plane resolution can be that of the whole picture, and note it."""
        given = f"EXIF FocalLength and its resolution give {length:.0f} pixels and a sensor {side:.3g} mm wide"
        # Sensors under 13 mm have smaller pixels: with these, the resolution is that of a picture before its reduction.
        if side * self.long / self.width < 13 and side / pixels > 0.0036:
            self.problems.append(f"{given}, with pixels of {side / pixels * 1000:.1f} µm, as only larger ones have")
            return False
        self.problems.append(f"{given}, which nothing else in them confirms")
        return True

    def by_film(self, millimetres: float | None, zoom: float, other: Pair | None) -> Pair | None:
        """Return the pair by the 35 mm equivalent, which some cameras write with the digital zoom and some without."""
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
        """Note by how much the focal length differs if it is that of the whole 4:3 sensor, where that is much."""
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
    """Return a finite number; NaN where `value` is none."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
