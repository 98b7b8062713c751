"""Motion of the camera between two frames of a clip, from their pictures and one depth map: direct image alignment.

The pose is the one at which the other picture, looked up where the depth map says that each pixel went, differs least
from this one (Steinbruecker et al., "Real-time visual odometry from dense RGB-D images", 2011; the robust weights are
those of Kerl et al., "Robust odometry estimation for RGB-D cameras", 2013). Only numpy is needed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

LONGEST_SIDE = 96  # pixels of the finest level
_LEVELS = ((0.25, 12), (0.5, 8), (1.0, 6))  # share of the finest level's size, and steps
_MIN_OVERLAP = 0.3  # share of the pixels that both frames must see


class Motion(NamedTuple):
    """Motion between two frames.

    Attributes:
        pose: `(4, 4)`, takes points of this camera to the other one; x right, y down, z forward, metres.
        correlation: Pearson correlation of the aligned pictures; -1 where they hardly overlap.
    """

    pose: Array
    correlation: float


class Pinhole(NamedTuple):
    """Intrinsics as shares of the picture's width and height, so that they hold at every size."""

    fx: float
    fy: float
    cx: float
    cy: float

    def rays(self, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Return x/z and y/z of the pixel centres of a map `(H, W)`."""
        height, width = shape
        x = ((np.arange(width) + 0.5) / width - self.cx) / self.fx
        y = ((np.arange(height) + 0.5) / height - self.cy) / self.fy
        x, y = np.meshgrid(x, y)
        return x, y


def resized(
    values: NDArray[np.floating], shape: tuple[int, int], how: Image.Resampling = Image.Resampling.BOX
) -> Array:
    """Resize a map `(H, W)`; smaller ones are averages."""
    if values.shape == shape:
        return values.astype(np.float64)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(shape[::-1], how), np.float64)


def shape_within(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Return `(H, W)` scaled down to a longest side of at most `longest` pixels."""
    scale = min(1.0, longest / max(shape))
    return max(2, round(shape[0] * scale)), max(2, round(shape[1] * scale))


def moved(depth: Array, pose: Array, camera: Pinhole) -> tuple[Array, Array, Array]:
    """Return column, row and z-depth in the other frame of every pixel of a depth map `(H, W)` in metres."""
    x, y = camera.rays(depth.shape)  # type: ignore[arg-type]
    points = np.tensordot(pose[:3, :3], np.stack([x * depth, y * depth, depth]), 1) + pose[:3, 3, None, None]
    z = np.maximum(points[2], 1e-6)
    height, width = depth.shape
    column = (points[0] / z * camera.fx + camera.cx) * width - 0.5
    row = (points[1] / z * camera.fy + camera.cy) * height - 0.5
    return column, row, z


def sample(values: Array, column: Array, row: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Interpolate a map `(H, W)` bilinearly; also return where the position lies inside it."""
    height, width = values.shape
    inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
    column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    left, top = np.minimum(column.astype(int), width - 2), np.minimum(row.astype(int), height - 2)
    x, y = column - left, row - top
    upper = values[top, left] * (1 - x) + values[top, left + 1] * x
    lower = values[top + 1, left] * (1 - x) + values[top + 1, left + 1] * x
    return upper * (1 - y) + lower * y, inside


def difference(picture: Array, other: Array, column: Array, row: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return `other`, looked up and brought to the brightness and contrast of `picture`, less `picture`."""
    found, inside = sample(other, column, row)
    if not inside.any():
        return np.zeros_like(picture), inside
    mean, target = found[inside].mean(), picture[inside].mean()
    gain = picture[inside].std() / max(found[inside].std(), 1e-6)
    return (found - mean) * gain + target - picture, inside


def camera_motion(picture: Array, other: Array, depth: Array, camera: Pinhole, start: Array | None = None) -> Motion:
    """Estimate the motion of the camera from one frame to another.

    Args:
        picture: Grey values `(H, W)`.
        other: Grey values `(H, W)` of the other frame.
        depth: z-depth `(H, W)` of `picture` in metres.
        camera: The camera of both.
        start: Pose to start from, by default none.
    """
    pose = np.eye(4) if start is None else start
    logs = np.log(depth)
    for share, steps in _LEVELS:
        shape = shape_within(picture.shape, round(share * max(picture.shape)))
        here, there, near = resized(picture, shape), resized(other, shape), np.exp(resized(logs, shape))
        jacobian = _jacobian(here, near, camera)
        for _ in range(steps):
            column, row, _z = moved(near, pose, camera)
            residual, inside = difference(here, there, column, row)
            if inside.mean() < _MIN_OVERLAP:
                return Motion(np.eye(4), -1.0)
            spread = 1.4826 * np.median(np.abs(residual[inside])) + 1e-3
            weights = (inside / (1 + (residual / (2 * spread)) ** 2)).ravel()
            normal = jacobian.T @ (jacobian * weights[:, None])
            normal += (1e-6 * np.trace(normal) / 6 + 1e-9) * np.eye(6)  # a picture without texture moves nowhere
            step = -np.linalg.solve(normal, jacobian.T @ (weights * residual.ravel()))
            pose = pose @ _exponential(step)
            if np.abs(step).max() < 1e-5:
                break
    column, row, _z = moved(near, pose, camera)
    residual, inside = difference(here, there, column, row)
    if inside.mean() < _MIN_OVERLAP:
        return Motion(np.eye(4), -1.0)
    return Motion(pose, _correlation(here[inside], (residual + here)[inside]))


def _correlation(one: Array, other: Array) -> float:
    if min(one.std(), other.std()) < 1e-9:  # a picture of one colour matches only another such picture
        return float(one.std() < 1e-9 and other.std() < 1e-9 and abs(one.mean() - other.mean()) < 1)
    return float(np.corrcoef(one, other)[0, 1])


def _jacobian(picture: Array, depth: Array, camera: Pinhole) -> Array:
    """Return the derivative `(H * W, 6)` of the grey values by a small motion: translation, then rotation."""
    x, y = camera.rays(picture.shape)  # type: ignore[arg-type]
    by_row, by_column = np.gradient(picture)
    gx = by_column * camera.fx * picture.shape[1]
    gy = by_row * camera.fy * picture.shape[0]
    along = gx * x + gy * y
    parts = (gx / depth, gy / depth, -along / depth, -along * y - gy, along * x + gx, gy * x - gx * y)
    return np.stack(parts, -1).reshape(-1, 6)


def _exponential(step: Array) -> Array:
    """Return the pose of a small translation and rotation vector (Rodrigues)."""
    turn = step[3:]
    angle = max(float(np.linalg.norm(turn)), 1e-12)
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    pose = np.eye(4)
    pose[:3, :3] += np.sin(angle) / angle * cross + (1 - np.cos(angle)) / angle**2 * cross @ cross
    pose[:3, 3] = step[:3]
    return pose
