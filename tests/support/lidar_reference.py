"""Projection as `shared/data/README.md` did it, in a few lines of its own: one point after another."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from scipy.spatial.transform import Rotation


class Reference(NamedTuple):
    """`count`, `least`, `median` and `largest` metres of the points in view, and the `depth` map, in 1/256 m."""

    count: int
    least: float
    median: float
    largest: float
    depth: np.ndarray


def matrix(quaternion, translation) -> np.ndarray:
    """4x4 of a quaternion w, x, y, z and metres."""
    w, *xyz = quaternion
    result = np.eye(4)
    result[:3, :3] = Rotation.from_quat([*xyz, w]).as_matrix()
    result[:3, 3] = translation
    return result


def check_reference(frame, known, focal_length, count, least, median, largest) -> None:
    """Asserts the numbers of a sample, and that a frame has the map of its reference."""
    assert frame.intrinsics[0] == pytest.approx(focal_length, abs=0.05)
    assert known.count == count
    assert (known.least, known.median) == pytest.approx((least, median), abs=0.006)
    assert known.largest == pytest.approx(largest, abs=0.06)
    np.testing.assert_array_equal(frame.depth, known.depth)


def reference(points, to_camera, intrinsics, size, nearest: float = 0.0) -> Reference:
    """
    Points `(n, 3)` through a 4x4 and a pinhole. In view: 0 <= column < width, 0 <= row < height, deeper than `nearest`.
    """
    fx, fy, cx, cy = intrinsics
    cx, cy = cx - 0.5, cy - 0.5  # here, whole numbers are pixels
    x, y, z = (np.c_[np.asarray(points, float), np.ones(len(points))] @ to_camera.T)[:, :3].T
    front = z > 0
    x, y, z = x[front], y[front], z[front]
    columns, rows = fx * x / z + cx, fy * y / z + cy
    seen = z[(columns >= 0) & (columns < size[0]) & (rows >= 0) & (rows < size[1]) & (z > nearest)]
    depth = np.zeros((size[1], size[0]), np.uint16)
    close = (np.abs(columns) <= size[0]) & (np.abs(rows) <= size[1])
    columns, rows, z = columns[close], rows[close], z[close]
    for column, row, metres in zip(columns.tolist(), rows.tolist(), z.tolist(), strict=True):
        pixel = math.floor(row + 0.5), math.floor(column + 0.5)
        if 0 <= pixel[0] < size[1] and 0 <= pixel[1] < size[0]:
            raw = round(256 * metres)
            if 0 < raw < 65536 and not 0 < depth[pixel] <= raw:
                depth[pixel] = raw
    return Reference(len(seen), seen.min(), float(np.median(seen)), seen.max(), depth)
