"""Where in the image the points of an annotation line lie, read rightly and as published."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from .error_sums import Array

Coordinates: TypeAlias = Literal["depth", "published"]


def point_pixels(
    pixel_coords: ArrayLike,
    depth_size: tuple[int, int],
    image_size: tuple[int, int],
    coordinates: Coordinates = "depth",
) -> Array:
    """
    Where in the image the points of an annotation line lie.

    Args:
        pixel_coords: `(n, 2)`, column and row; they are pixels of the depth map.
        depth_size, image_size: width and height in pixels.
        coordinates: "depth" aligns the two pictures: `(c + 0.5) * image / depth - 0.5`. "published" takes the numbers
            for pixels of the image, as the paper's released evaluation does; where the depth map is smaller, its points
            all lie in the top left of the image. Its truth is another too, see [`published_truth`].

    Returns:
        `(n, 2)` float64, column and row in pixels of the image, the centre of the first pixel at (0, 0).

    Raises:
        ValueError: the points are not `(n, 2)` or lie outside the map that they are read in.
    """
    if coordinates not in get_args(Coordinates):
        raise ValueError(f'`coordinates` must be "depth" or "published", got {coordinates!r}.')
    points = _points(pixel_coords)
    size = depth_size if coordinates == "depth" else image_size
    if points.size and not ((points >= 0).all() and (points < size).all()):
        raise ValueError(f"`pixel_coords` has points outside the map of {size[0]}x{size[1]} pixels (width x height).")
    if coordinates == "published":
        return points
    return (points + 0.5) * (np.asarray(image_size) / np.asarray(depth_size)) - 0.5


def published_truth(
    depth: ArrayLike,
    pixel_coords: ArrayLike,
    listed: ArrayLike,
    image_size: tuple[int, int],
    canonical_size: tuple[int, int] | None = None,
) -> Array:
    """
    The truth against which the paper's released evaluation compares at "published" coordinates.

    It brings both the points, as if they were pixels of the image, and the depth map (nearest neighbour) to the
    canonical size, and reads the map there; where that has no depth, it takes the listed one.

    Args:
        depth: metres `(h, w)`, 0 where there is none or out of the source's range.
        pixel_coords: `(n, 2)`, column and row.
        listed: `(n,)` metres of the annotation line.
        image_size, canonical_size: width and height in pixels; the canonical size is the image's by default.

    Returns:
        `(n,)` float64 in metres; 0 for a point that comes to lie outside, which that evaluation leaves out.
    """
    metres, points = np.asarray(depth, dtype=np.float64), _points(pixel_coords)
    canonical = np.asarray(canonical_size or image_size)
    places = np.rint(points * (canonical / np.asarray(image_size))).astype(np.int64)
    inside = ((places >= 0) & (places < canonical)).all(axis=1)
    height, width = metres.shape
    columns, rows = (np.where(inside[:, None], places, 0) * np.array([width, height]) // canonical).T
    found = metres[rows, columns]
    return np.where(inside, np.where(found > 0, found, np.asarray(listed, dtype=np.float64)), 0.0)


def _points(pixel_coords: ArrayLike) -> Array:
    points = np.asarray(pixel_coords, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"`pixel_coords` must be (n, 2), column and row, got {points.shape}.")
    return points
