"""Rigid transforms, interpolated ego poses, cameras with lens distortion, range images, and lidar points as a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files import import_errors
from .frames import Intrinsics

Array: TypeAlias = NDArray[np.float64]

DEPTH_SCALE = 256.0

# A rotation matrix whose rows are further from orthonormal than this is not one: its transpose is not its inverse.
ROTATION_TOLERANCE = 1e-4


def from_opencv(intrinsics: Intrinsics) -> Intrinsics:
    """Bring fx, fy, cx, cy with the centre of the top left pixel at (0, 0), as OpenCV has it, to (0.5, 0.5)."""
    fx, fy, cx, cy = intrinsics
    return fx, fy, cx + 0.5, cy + 0.5


def rotation_class() -> Any:
    """Import `scipy.spatial.transform.Rotation`. Raises ImportError, with the remedy, without SciPy."""
    with import_errors("Lidar projection", "SciPy"):
        from scipy.spatial.transform import Rotation
    return Rotation


@dataclass(frozen=True, eq=False)
class RigidTransform:
    """Points of one frame of reference in another: `rotation @ point + translation`."""

    rotation: Array  # `(3, 3)`, float64
    translation: Array  # `(3,)` metres, float64

    @classmethod
    def from_quaternion(cls, quaternion: ArrayLike, translation: ArrayLike) -> RigidTransform:
        """Make it from a quaternion `w, x, y, z`, normalised here, and metres. Raises ValueError if it is 0."""
        rotation = rotation_class().from_quat(quaternion, scalar_first=True).as_matrix()
        return cls(rotation, np.asarray(translation, np.float64).reshape(3))

    @classmethod
    def from_matrix(cls, matrix: ArrayLike) -> RigidTransform:
        """Make it from `(3, 4)`, `(4, 4)` or their 12 or 16 numbers. Raises ValueError if they are no rotation."""
        rows = np.asarray(matrix, np.float64).reshape(-1, 4)
        if rows.shape[0] not in (3, 4):
            raise ValueError(f"a rigid transform has 12 or 16 numbers, not {rows.size}")
        rotation = rows[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=ROTATION_TOLERANCE) or np.linalg.det(rotation) < 0:
            raise ValueError(f"not a rotation: {rotation.tolist()}")
        return cls(rotation, rows[:3, 3])

    def __matmul__(self, first: RigidTransform) -> RigidTransform:
        """Chain two transforms, `first` and then this one."""
        return RigidTransform(self.rotation @ first.rotation, self.apply(first.translation[None])[0])

    def inverse(self) -> RigidTransform:
        """Return the inverse transform."""
        return RigidTransform(self.rotation.T, -self.rotation.T @ self.translation)

    def apply(self, points: ArrayLike) -> Array:
        """Transform points `(n, 3)` of any float type, in metres: `(n, 3)` float64."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.translation


class EgoPoses:
    """Vehicle poses (ego to world) at measured times.

    Args:
        times: `(n,)` integers in any one unit.
        quaternions: `(n, 4)` as `w, x, y, z`.
        translations: `(n, 3)` metres.

    Raises:
        ValueError: No pose at all, or arrays of unequal lengths.
    """

    def __init__(self, times: ArrayLike, quaternions: ArrayLike, translations: ArrayLike):
        self.times, first = np.unique(np.asarray(times, np.int64), return_index=True)
        quaternions, translations = np.asarray(quaternions, np.float64), np.asarray(translations, np.float64)
        count = np.size(times)
        if count == 0 or quaternions.shape != (count, 4) or translations.shape != (count, 3):
            raise ValueError(f"{count} times with quaternions {quaternions.shape}, translations {translations.shape}")
        self.quaternions, self.translations = quaternions[first], translations[first]

    def at(self, time: int) -> RigidTransform:
        """Return the pose at `time`: a measured one, or between two of them slerp of the rotation and a straight line.

        Raises:
            ValueError: Before the first pose or after the last.
        """
        after = int(np.searchsorted(self.times, time))
        if after < self.times.size and self.times[after] == time:
            return RigidTransform.from_quaternion(self.quaternions[after], self.translations[after])
        if not 0 < after < self.times.size:
            raise ValueError(f"no pose at {time}: the poses cover {self.times[0]} to {self.times[-1]}")
        from scipy.spatial.transform import Slerp

        pair = slice(after - 1, after + 1)
        start, end = (int(moment) for moment in self.times[pair])
        # Nanoseconds since 1970 have no exact float64: only their differences may become floats.
        fraction = (time - start) / (end - start)
        rotations = rotation_class().from_quat(self.quaternions[pair], scalar_first=True)
        before, behind = self.translations[pair]
        return RigidTransform(Slerp([0.0, 1.0], rotations)(fraction).as_matrix(), before + fraction * (behind - before))


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera as the datasets' calibrations have it, with a lens where `distortion` is given.

    Its axes: x right, y down, z forward. It counts pixels as OpenCV does, so that whole numbers are pixels of a map.
    """

    fx: float  # pixels, as the next three; the centre of the top left pixel at (0, 0)
    fy: float
    cx: float
    cy: float
    width: int  # pixels
    height: int
    # k1, k2, p1, p2, k3 of OpenCV's model (its documentation, "Camera Calibration and 3D Reconstruction"), radial and
    # tangential
    distortion: tuple[float, float, float, float, float] | None = None

    @property
    def intrinsics(self) -> Intrinsics:
        """fx, fy, cx, cy: the pinhole part, as a [`Frame`] has it: the centre of the top left pixel at (0.5, 0.5)."""
        return from_opencv((self.fx, self.fy, self.cx, self.cy))

    @cached_property
    def largest_radius_squared(self) -> float:
        """Limit of the lens as (x² + y²) / z²: it still maps outwards below.

        The model's polynomial turns back beyond it, and would fold points that the camera never sees into its image.
        """
        if self.distortion is None:
            return np.inf
        k1, k2, _, _, k3 = self.distortion
        # Where d/dr of r (1 + k1 r² + k2 r⁴ + k3 r⁶) is 0.
        roots = np.polynomial.Polynomial([1, 3 * k1, 5 * k2, 7 * k3]).trim().roots()
        turns = [root.real for root in np.atleast_1d(roots) if abs(root.imag) < 1e-9 and root.real > 0]
        return min(turns, default=np.inf)

    def project(self, points: NDArray[np.floating]) -> tuple[Array, Array, Array]:
        """Project points `(n, 3)` of the camera's own frame, in metres.

        Returns:
            Column, row (pixels, also outside of the image) and z-depth (metres), `(n,)` each; NaN for a point behind
            the camera, and column and row NaN for one beyond what the lens maps.
        """
        points = np.asarray(points, np.float64)
        depth = np.where(points[:, 2] > 0, points[:, 2], np.nan)
        with np.errstate(over="ignore"):
            x, y = points[:, 0] / depth, points[:, 1] / depth
            if self.distortion is not None:
                x, y = self._distort(x, y)
            return self.fx * x + self.cx, self.fy * y + self.cy, depth

    def _distort(self, x: Array, y: Array) -> tuple[Array, Array]:
        assert self.distortion is not None
        k1, k2, p1, p2, k3 = self.distortion
        squared = x * x + y * y
        squared = np.where(squared < self.largest_radius_squared, squared, np.nan)
        radial = 1 + squared * (k1 + squared * (k2 + squared * k3))
        return (
            x * radial + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * radial + p1 * (squared + 2 * y * y) + 2 * p2 * x * y,
        )


def depth_map(
    columns: NDArray[np.floating],
    rows: NDArray[np.floating],
    depth: NDArray[np.floating],
    size: Sequence[int],
    scale: float = DEPTH_SCALE,
) -> NDArray[np.uint16]:
    """Turn projected points into a sparse map; of several in one pixel the nearest stays.

    Args:
        columns: `(n,)` pixels, the centre of the top left pixel at (0, 0); NaN is no point.
        rows: `(n,)` likewise.
        depth: `(n,)` metres.
        size: Width and height of the map in pixels.
        scale: Units in a metre.

    Returns:
        `(height, width)` uint16, rounded, 0 where there is no point. What would round to 0 or above 65535 is dropped.
    """
    width, height = size
    inside = (columns >= -0.5) & (columns < width - 0.5) & (rows >= -0.5) & (rows < height - 0.5)
    raw = np.rint(depth[inside] * scale)
    kept = (raw >= 1) & (raw <= np.iinfo(np.uint16).max)
    raw = raw[kept].astype(np.uint16)
    across = np.floor(columns[inside][kept] + 0.5).astype(np.int64)
    down = np.floor(rows[inside][kept] + 0.5).astype(np.int64)
    # Sorted by pixel and then by depth, the first of every pixel is its nearest.
    pixels = down * width + across
    order = np.lexsort((raw, pixels))
    taken, first = np.unique(pixels[order], return_index=True)
    result = np.zeros(height * width, np.uint16)
    result[taken] = raw[order][first]
    return result.reshape(height, width)


def lidar_depth_map(
    points: NDArray[np.floating], to_camera: RigidTransform, camera: PinholeCamera, scale: float = DEPTH_SCALE
) -> NDArray[np.uint16]:
    """Return the depth map `(height, width)` of lidar points `(n, 3)` that `to_camera` brings to the camera's frame."""
    return depth_map(*camera.project(to_camera.apply(points)), (camera.width, camera.height), scale)


def sweep_points(
    ranges: NDArray[np.float32],
    inclinations: Array,
    vehicle_from_lidar: RigidTransform,
    world_from_vehicle: RigidTransform,
    poses: NDArray[np.float32] | None = None,
) -> Array:
    """Return the points `(n, 3)` of a range image in metres in the world, each from the pose of its own time if given.

    Args:
        ranges: `(h, w)` metres; not above 0 where there is no return.
        inclinations: `(h,)` radians from the lowest beam to the highest.
        vehicle_from_lidar: Mount of the lidar.
        world_from_vehicle: Pose of the vehicle, for a lidar without `poses`.
        poses: `(h, w, 6)` roll, pitch, yaw, x, y, z of the vehicle in the world when the pixel was measured.

    Raises:
        ValueError: Arrays of sizes that do not fit together.
    """
    height, width = ranges.shape
    if inclinations.shape != (height,):
        raise ValueError(f"a range image of {height} rows with {inclinations.size} beams")
    if poses is not None and poses.shape != (height, width, 6):
        raise ValueError(f"a range image {height}x{width} with poses {poses.shape}")
    rows, columns = np.nonzero(ranges > 0)
    distance = ranges[rows, columns].astype(np.float64)
    # The first row is the highest beam; columns go clockwise, and the middle one looks along the vehicle's x.
    inclination = inclinations[::-1][rows]
    yaw = np.arctan2(vehicle_from_lidar.rotation[1, 0], vehicle_from_lidar.rotation[0, 0])
    azimuth = np.pi * (1 - (2 * columns + 1) / width) - yaw
    flat = distance * np.cos(inclination)
    points = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(inclination)], axis=1)
    points = vehicle_from_lidar.apply(points)
    if poses is None:
        return world_from_vehicle.apply(points)
    moved = poses[rows, columns].astype(np.float64)
    roll, pitch, yaw = moved[:, :3].T
    x, y, z = points.T
    y, z = _turned(y, z, roll)
    z, x = _turned(z, x, pitch)
    x, y = _turned(x, y, yaw)
    return np.stack([x, y, z], axis=1) + moved[:, 3:]


def even_beams(low: float, high: float, height: int) -> Array:
    """Return inclinations `(height,)` for a lidar of which only the limits are given: the middles of equal steps."""
    return low + (np.arange(height) + 0.5) / height * (high - low)


def _turned(first: Array, second: Array, angle: Array) -> tuple[Array, Array]:
    """Turn coordinates along two axes from the first towards the second."""
    cos, sin = np.cos(angle), np.sin(angle)  # for 170,000 pixels a fifth of the time of SciPy's `from_euler`
    return cos * first - sin * second, sin * first + cos * second
