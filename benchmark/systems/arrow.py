"""The arrow protocol: a red arrow in an image of at most 1024 pixels, the question, and metres read from the reply."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ARROW_LENGTH = 20
"""Pixels; section B of the paper. DepthLM's own is 5."""
LONGEST_EDGE = 1024
"""Pixels to which larger images are scaled before the arrow is drawn; section B of the paper."""
RED = (255, 0, 0)

# From the tip to the tail, in the order of preference: the first that lies wholly inside the image is drawn.
SIDES: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "upper left": (-1, -1),
    "lower left": (-1, 1),
    "upper right": (1, -1),
    "lower right": (1, 1),
}

ARROW_PROMPT = (
    "Given this image, how far is the point pointed by the red arrow from the camera? Output the thinking process in "
    "<think> </think> and final answer (the meter number only, without the unit) in <answer> </answer> tags."
)
"""DepthLM's question, which the paper asks all VLMs of table 1."""

_UNITS = (
    (r"km|kilomet(?:er|re)s?", 1000.0),
    (r"cm|centimet(?:er|re)s?", 0.01),
    (r"mm|millimet(?:er|re)s?", 0.001),
    (r"m|met(?:er|re)s?", 1.0),
    (r"ft|foot|feet", 0.3048),
    (r"inch(?:es)?", 0.0254),
)
_UNIT = "|".join(words for words, _ in _UNITS)
_UNIT_OF_METRES = re.compile(_UNITS[3][0], re.IGNORECASE)
# A number is a whole run of digits and what may stand between them, so that "1,000", "1.2.3" or "12:30" is seen as one.
_MEASURE = re.compile(
    r"(?P<minus>[-\u2212\u2013]\s*|\bminus\s+)?"
    r"(?<![\w.,:'\u2019])(?P<number>\d[\d.,:'\u2019]*(?<![.,:'\u2019])|\.\d+)(?P<exponent>e[-+]?\d+)?"
    rf"(?:[\s-]*(?P<unit>{_UNIT})(?![\w/^\u00b2\u00b3]))?",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
# Groups of thousands. After a comma they are read so in millimetres and centimetres alone, where 1.2 would be no depth.
_APOSTROPHES = re.compile(r"\d{1,3}(?:['\u2019]\d{3})+(?:\.\d+)?")
_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SMALL_UNITS = re.compile(rf"{_UNITS[1][0]}|{_UNITS[2][0]}", re.IGNORECASE)
# Joins the numbers before and after it to a range, a tolerance, a list, a product or feet with inches.
_JOINED = re.compile(
    rf"\d(?:[\s-]*(?:{_UNIT}))?\s*(?:[-\u2212\u2013\u2014~/,x\u00d7\u00b1]|\+/-|\+-|\bto\b|\band\b|\bor\b)?\s*$",
    re.IGNORECASE,
)
_ABOUT = r"(?:(?:about|around|approximately|approx|roughly|circa)\b|[~\u2248.\s])*"
# Words that may stand before a bare number that is an answer.
_LEADS = re.compile(rf"(?:^|[:=]|\b(?:is|be|answer|depth|distance)\b){_ABOUT}$", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_THOUGHT = re.compile(r"<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def fit_image(image: Image.Image, longest_edge: int | None = LONGEST_EDGE) -> Image.Image:
    """Return an RGB copy of an image, scaled down (bicubic, Pillow's default) if its longest edge is over the limit.

    The copy carries no EXIF data: points are pixels of the image as stored, and a processor must not turn it.
    """
    size = image.size
    if longest_edge is not None and max(size) > longest_edge:
        scale = longest_edge / max(size)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    return resize_image(image, size)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an RGB copy of an image at `size` (width, height), bicubic, without EXIF data."""
    rgb = image.convert("RGB")
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    rgb.info = {}
    return rgb


def scale_points(points: NDArray[np.float64], size: tuple[int, int], new_size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the pixels of a resized image that hold the given points.

    Args:
        points: `(n, 2)` columns and rows in pixels of the stored image, the centre of the top left pixel at (0, 0).
        size: Width and height of the stored image.
        new_size: Width and height of the resized image.

    Returns:
        `(n, 2)` columns and rows of whole pixels, all inside the resized image.

    Raises:
        ValueError: A point is not finite, or lies outside the stored image.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"Points are (n, 2) columns and rows, got an array of shape {points.shape}.")
    inside = np.isfinite(points).all(1) & (points >= -0.5).all(1) & (points <= np.subtract(size, 0.5)).all(1)
    if not inside.all():
        column, row = points[np.flatnonzero(~inside)[0]]
        raise ValueError(f"The point at column {column:g}, row {row:g} is outside the image of {size[0]}x{size[1]}.")
    pixels = np.floor((points + 0.5) * (np.array(new_size) / np.array(size))).astype(np.int64)
    return np.minimum(pixels, np.array(new_size) - 1)


def arrow_side(pixel: tuple[int, int], size: tuple[int, int], length: int = ARROW_LENGTH) -> str:
    """Return the side from which an arrow points at a pixel: the left, or near a border the first of `SIDES` that fits.

    Raises:
        ValueError: The image is too small for an arrow of this length from any side, or the length is below 3 pixels.
    """
    if length < 3:
        raise ValueError(f"An arrow needs at least 3 pixels, got {length}.")
    for side in SIDES:
        columns, rows = zip(*(point for line in _lines(pixel, side, length) for point in line), strict=True)
        if min(columns) >= 0 and min(rows) >= 0 and max(columns) < size[0] and max(rows) < size[1]:
            return side
    raise ValueError(
        f"An image of {size[0]}x{size[1]} is too small for an arrow of {length} pixels at column {pixel[0]}, "
        f"row {pixel[1]}. Use larger images or a shorter arrow."
    )


def draw_arrow(image: Image.Image, pixel: tuple[int, int], length: int = ARROW_LENGTH) -> Image.Image:
    """Return a copy of an RGB image with a red arrow, one pixel thick, beside a pixel (column, row) that it points at.

    The shape is the one of DepthLM's released evaluation: a shaft of `length` pixels that ends beside the pixel, and a
    head of two strokes at 45 degrees, half as wide to each side. In corners the arrow lies on the diagonal and is about
    as long.

    Raises:
        ValueError: The pixel is outside the image, or the image is too small for the arrow.
    """
    if not (0 <= pixel[0] < image.width and 0 <= pixel[1] < image.height):
        raise ValueError(f"Pixel {pixel} is outside the image of {image.width}x{image.height}.")
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for start, end in _lines(pixel, arrow_side(pixel, image.size, length), length):
        draw.line((start, end), fill=RED, width=1)
    return drawn


def _lines(pixel: tuple[int, int], side: str, length: int) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Return the first and the last pixel of the shaft and of both strokes of the head."""
    (column, row), (right, down) = pixel, SIDES[side]

    def at(across: int, along: int) -> tuple[int, int]:
        return column + across, row + along

    if right and down:
        reach = round(length / math.sqrt(2))
        return (
            (at(right, down), at(reach * right, reach * down)),
            (at(2 * right, down), at(reach * right, down)),
            (at(right, 2 * down), at(right, reach * down)),
        )
    half = length // 2
    tail = half + 1
    return (
        (at(right, down), at(length * right, length * down)),
        (at(2 * right + down, 2 * down + right), at(tail * right + half * down, tail * down + half * right)),
        (at(2 * right - down, 2 * down - right), at(tail * right - half * down, tail * down - half * right)),
    )


def parse_metres(text: str) -> float:
    """Read metres from a reply; NaN if they cannot be read without guessing.

    1. Thoughts do not count: text between `<think>` and `</think>`, before a lone `</think>` (some templates open it in
       the prompt), and after a `<think>` that never ends (a reply cut short).
    2. If there is an `<answer>...</answer>`, the last one decides and nothing else is read; else the last `boxed{...}`
       of LaTeX; else all that is left.
    3. A number with a unit decides. Several are allowed only if all are the same length: repeated, or in another unit
       as far as the digits tell ("2.5 m (8.2 ft)"; then the metres count).
    4. A single bare number is an answer in metres if only "about", "answer:", "it is" and the like lead to it and
       nothing follows: "3.2", "answer: 3.2", not "2 chairs" or "region 1".

    The units are m, cm, mm, km, ft, feet and inches, written out in American or British spelling, in any case. "1'200"
    is 1200, and so is "1,200" in millimetres and centimetres.

    These are NaN: two different lengths; zero and negative numbers ("-2 m", "- 2 m", "minus 2 m"); inf and nan; any
    other comma in a number ("1,000" and "1,5" mean different numbers in different countries); times ("12:30 m");
    ranges, tolerances, lists, fractions and compounds ("2-3 m", "between 2 and 3 meters", "2 m +/- 0.5 m", "1/2 m",
    "5 feet 6 inches"); other units (yards, m/s).
    """
    text = _THOUGHT.sub(" ", text)
    text = re.split(r"</think>", text, flags=re.IGNORECASE)[-1]
    text = re.split(r"<think>", text, flags=re.IGNORECASE)[0]
    answers = _ANSWER.findall(text) or _BOXED.findall(text)
    text = _LATEX.sub(r"\1", answers[-1] if answers else text)
    text = re.sub(r"\\[,;! ]", " ", re.sub(r"[*`$]", "", text))
    found = list(_MEASURE.finditer(text))
    lengths = [match for match in found if match["unit"]]
    if lengths:
        if any(_JOINED.search(text[: match.start()]) for match in lengths) or not _are_one(lengths):
            return math.nan
        return _metres(next((match for match in lengths if _UNIT_OF_METRES.fullmatch(match["unit"])), lengths[0]))
    if len(found) != 1:
        return math.nan
    # Words of an answer lead to a bare number, and nothing but a full stop follows it.
    is_alone = _LEADS.search(text[: found[0].start()]) and not text[found[0].end() :].strip(" \t\r\n.")
    return _metres(found[0]) if is_alone else math.nan


def _are_one(lengths: Sequence[re.Match[str]]) -> bool:
    """Check that all are one length: the same number in the same unit, or as near in another as their digits tell."""
    first = lengths[0]
    for other in lengths[1:]:
        difference = abs(_metres(first) - _metres(other))
        rounding = 0.0 if _factor(first) == _factor(other) else _half_a_digit(first) + _half_a_digit(other)
        if not difference <= rounding + 1e-9:
            return False
    return True


def _half_a_digit(match: re.Match[str]) -> float:
    """Return by how many metres a number that was rounded to its last digit may be off."""
    return 0.5 * 10.0 ** -len(match["number"].partition(".")[2]) * _factor(match)


def _factor(match: re.Match[str]) -> float:
    """Return the length of the unit in metres."""
    if not match["unit"]:
        return 1.0
    return next(factor for words, factor in _UNITS if re.fullmatch(words, match["unit"], re.IGNORECASE))


def _metres(match: re.Match[str]) -> float:
    """Return a measure in metres; NaN if it is not a plain positive finite number."""
    number = match["number"]
    if _APOSTROPHES.fullmatch(number):
        number = re.sub(r"['\u2019]", "", number)
    elif _COMMAS.fullmatch(number) and match["unit"] and _SMALL_UNITS.fullmatch(match["unit"]):
        number = number.replace(",", "")
    if match["minus"] or not _PLAIN_NUMBER.fullmatch(number):
        return math.nan
    metres = float(number + (match["exponent"] or "")) * _factor(match)
    return metres if 0 < metres < math.inf else math.nan
