"""Waymo's range images as points, and its rolling-shutter cameras, from what dataset.proto documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .projection import PinholeCamera, RigidTransform, rotation_class

CAMERA_NAMES = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}

# Values of RollingShutterReadOutDirection; 0 (unknown) and 5 (global shutter) have no readout.
TOP_TO_BOTTOM, LEFT_TO_RIGHT, BOTTOM_TO_TOP, RIGHT_TO_LEFT = 1, 2, 3, 4

# Waymo's cameras look along x, with y to the left and z up.
_PINHOLE_FROM_WAYMO = RigidTransform(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.zeros(3))

# A step brings a point nearer to its own time by a factor of five, even at 20 m/s and 5 m beside the car.
_STEPS = 5


@dataclass(frozen=True, eq=False)
class WaymoCamera:
    """
    A camera's calibration.

    Args:
        intrinsics: f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3 in pixels, the left edge of the first pixel at 0.
        vehicle_from_camera: its mount; Waymo's axes.
        width, height: of its images in pixels.
        readout: value of RollingShutterReadOutDirection.
    """

    intrinsics: tuple[float, ...]
    vehicle_from_camera: RigidTransform
    width: int
    height: int
    readout: int

    @property
    def pinhole(self) -> PinholeCamera:
        """The same with the centre of the first pixel at (0, 0), and its lens."""
        fx, fy, cx, cy, k1, k2, p1, p2, k3 = self.intrinsics
        return PinholeCamera(fx, fy, cx - 0.5, cy - 0.5, self.width, self.height, (k1, k2, p1, p2, k3))


@dataclass(frozen=True, eq=False)
class WaymoShot:
    """
    An image, and how the vehicle moved while it was taken.

    Args:
        image: JPEG bytes.
        world_from_vehicle: pose at `pose_time`.
        velocity: `(3,)` m/s in the world's frame.
        spin: `(3,)` rad/s in the vehicle's frame. (dataset.proto speaks of the world's for both; only this reading
            gives the pixels in the tests of Waymo's own camera model.)
        pose_time, trigger_time, readout_done_time: seconds since 1970.
        shutter: exposure of a line in seconds.
    """

    image: bytes
    world_from_vehicle: RigidTransform
    velocity: NDArray[np.float64]
    spin: NDArray[np.float64]
    pose_time: float
    shutter: float
    trigger_time: float
    readout_done_time: float


@dataclass(frozen=True, eq=False)
class WaymoSweep:
    """
    The first returns of one lidar.

    Args:
        ranges: `(h, w)` metres; not above 0 where there is no return.
        inclinations: `(h,)` radians from the lowest beam to the highest.
        vehicle_from_lidar: its mount.
        poses: `(h, w, 6)` roll, pitch, yaw, x, y, z of the vehicle in the world when the pixel was measured; None for
            a lidar whose points are given in the frame of the vehicle's pose.
    """

    ranges: NDArray[np.float32]
    inclinations: NDArray[np.float64]
    vehicle_from_lidar: RigidTransform
    poses: NDArray[np.float32] | None = None

    def world_points(self, world_from_vehicle: RigidTransform) -> NDArray[np.float64]:
        """
        The returns `(n, 3)` in metres in the world's frame, each from the pose of its own time where it has one.

        Raises:
            ValueError: arrays of sizes that do not fit together.
        """
        height, width = self.ranges.shape
        if self.inclinations.shape != (height,):
            raise ValueError(f"a range image of {height} rows with {self.inclinations.size} beams")
        if self.poses is not None and self.poses.shape != (height, width, 6):
            raise ValueError(f"a range image {height}x{width} with poses {self.poses.shape}")
        rows, columns = np.nonzero(self.ranges > 0)
        distance = self.ranges[rows, columns].astype(np.float64)
        # The first row is the highest beam; columns go clockwise, and the middle one looks along the vehicle's x.
        inclination = self.inclinations[::-1][rows]
        yaw = np.arctan2(self.vehicle_from_lidar.rotation[1, 0], self.vehicle_from_lidar.rotation[0, 0])
        azimuth = np.pi * (1 - (2 * columns + 1) / width) - yaw
        flat = distance * np.cos(inclination)
        points = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(inclination)], axis=1)
        points = self.vehicle_from_lidar.apply(points)
        if self.poses is None:
            return world_from_vehicle.apply(points)
        poses = self.poses[rows, columns].astype(np.float64)
        roll, pitch, yaw = poses[:, :3].T
        x, y, z = points.T
        y, z = _turned(y, z, roll)
        z, x = _turned(z, x, pitch)
        x, y = _turned(x, y, yaw)
        return np.stack([x, y, z], axis=1) + poses[:, 3:]


def _turned(
    first: NDArray[np.float64], second: NDArray[np.float64], angle: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates along two axes after a turn from the first towards the second."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * first - sin * second, sin * first + cos * second


def even_beams(low: float, high: float, height: int) -> NDArray[np.float64]:
    """Inclinations `(height,)` of a lidar of which only the limits are given: the middles of equal steps."""
    return low + (np.arange(height) + 0.5) / height * (high - low)


def project_shot(
    points: NDArray[np.float64], camera: WaymoCamera, shot: WaymoShot
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """
    Where a camera sees points of the world, each from where the vehicle was when that line of the image was read.

    The middle of a line's exposure runs from half a shutter after the trigger to half a shutter before the readout is
    done; the vehicle moves on from its pose with constant velocity and spin (dataset.proto, CameraImage).

    Args:
        points: `(n, 3)` metres.

    Returns:
        Column, row (pixels, the centre of the top left pixel at (0, 0)) and z-depth (metres) of those that are near the
        image or in it.
    """
    pinhole = camera.pinhole
    camera_from_vehicle = _PINHOLE_FROM_WAYMO @ camera.vehicle_from_camera.inverse()
    vehicle_from_world = shot.world_from_vehicle.inverse()
    columns, rows, depth = pinhole.project((camera_from_vehicle @ vehicle_from_world).apply(points))
    near = (np.abs(columns - camera.width / 2) < camera.width) & (np.abs(rows - camera.height / 2) < camera.height)
    columns, rows, depth = columns[near], rows[near], depth[near]
    if camera.readout not in (TOP_TO_BOTTOM, LEFT_TO_RIGHT, BOTTOM_TO_TOP, RIGHT_TO_LEFT):
        return columns, rows, depth

    vehicle, velocity = vehicle_from_world.apply(points[near]), vehicle_from_world.rotation @ shot.velocity
    first = shot.trigger_time - shot.pose_time + shot.shutter / 2
    duration = shot.readout_done_time - shot.trigger_time - shot.shutter
    for _ in range(_STEPS):
        if camera.readout in (LEFT_TO_RIGHT, RIGHT_TO_LEFT):
            part = (columns + 0.5) / camera.width
        else:
            part = (rows + 0.5) / camera.height
        if camera.readout in (BOTTOM_TO_TOP, RIGHT_TO_LEFT):
            part = 1 - part
        # A point that a step has moved behind the camera has no line; it stays where the middle one would see it.
        later = first + duration * np.clip(np.where(np.isfinite(part), part, 0.5), 0, 1)[:, None]
        moved = rotation_class().from_rotvec(-later * shot.spin).apply(vehicle - later * velocity)
        columns, rows, depth = pinhole.project(camera_from_vehicle.apply(moved))
    return columns, rows, depth
