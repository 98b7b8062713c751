"""The arrow protocol's images: scaled down to at most 1024 pixels, then one red arrow at the queried pixel."""

from __future__ import annotations

import math

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


def fit_image(image: Image.Image, longest_edge: int | None = LONGEST_EDGE) -> Image.Image:
    """
    An RGB copy of an image, scaled down (bicubic, Pillow's default) if its longest edge is over the limit.

    The copy carries no EXIF data: points are pixels of the image as stored, and a processor must not turn it.

    Args:
        longest_edge: in pixels; None: keep the size.
    """
    size = image.size
    if longest_edge is not None and max(size) > longest_edge:
        scale = longest_edge / max(size)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    return resize_image(image, size)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB copy of an image at `size` (width, height), bicubic, without EXIF data."""
    rgb = image.convert("RGB")
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    rgb.info = {}
    return rgb


def scale_points(points: NDArray[np.float64], size: tuple[int, int], new_size: tuple[int, int]) -> NDArray[np.int64]:
    """
    The pixels of a resized image that hold the given points.

    Args:
        points: `(n, 2)` column and row, in pixels of the stored image, the centre of the top left pixel at (0, 0).
        size: of the stored image, width and height.
        new_size: of the resized one.

    Returns:
        `(n, 2)` column and row of whole pixels, all inside the resized image.

    Raises:
        ValueError: a point is not finite, or lies outside the stored image.
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
    """
    The side from which an arrow points at a pixel: the left, and near a border the first of [`SIDES`] that fits.

    Raises:
        ValueError: the image is too small for an arrow of this length from any side; or an arrow below 3 pixels.
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
    """
    A copy of an RGB image with a pure red arrow, one pixel thick, that points at `pixel` and leaves it unpainted.

    The shape is the one of DepthLM's released evaluation: a shaft of `length` pixels that ends beside the pixel, and a
    head of two strokes at 45 degrees, half as wide to each side. In corners it lies on the diagonal, about as long.

    Args:
        pixel: column and row.
        length: of the arrow in pixels.

    Raises:
        ValueError: the pixel is outside the image, or the image is too small for the arrow.
    """
    if not (0 <= pixel[0] < image.width and 0 <= pixel[1] < image.height):
        raise ValueError(f"Pixel {pixel} is outside the image of {image.width}x{image.height}.")
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for start, end in _lines(pixel, arrow_side(pixel, image.size, length), length):
        draw.line((start, end), fill=RED, width=1)
    return drawn


def _lines(pixel: tuple[int, int], side: str, length: int) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """First and last pixel of the shaft and of both strokes of the head."""
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
