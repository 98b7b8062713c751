"""The Waymo Open Dataset's Parquet form (v2): one file a segment and component, with a column for every leaf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .projection import RigidTransform
from .waymo_geometry import WaymoCamera, WaymoShot, WaymoSweep, even_beams

COMPONENTS = ("camera_image", "camera_calibration", "lidar", "lidar_calibration", "lidar_pose", "vehicle_pose")

_TIME_KEY, _CAMERA_KEY, _LASER_KEY = "key.frame_timestamp_micros", "key.camera_name", "key.laser_name"

_INTRINSICS = ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")
_READOUT = ("shutter", "camera_trigger_time", "camera_readout_done_time")


def moments_of(file: Path) -> list[tuple[int, int]]:
    """Time in microseconds and camera number of every image of a `camera_image` file. Raises ValueError, OSError."""
    table = _parquet().read_table(file, columns=[_TIME_KEY, _CAMERA_KEY], use_threads=False)
    return list(zip(table[_TIME_KEY].to_pylist(), table[_CAMERA_KEY].to_pylist(), strict=True))


def cameras_of(folder: Path, segment: str) -> dict[int, WaymoCamera]:
    """The calibration of every camera of a segment, by its number. Raises ValueError, OSError."""
    component = "[CameraCalibrationComponent]"
    names = [f"{component}.intrinsic.{name}" for name in _INTRINSICS]
    mount, readout = f"{component}.extrinsic.transform", f"{component}.rolling_shutter_direction"
    width, height = f"{component}.width", f"{component}.height"
    columns = [_CAMERA_KEY, *names, mount, width, height, readout]
    rows = _rows(folder / "camera_calibration" / f"{segment}.parquet", columns)
    return {
        row[_CAMERA_KEY]: WaymoCamera(
            tuple(row[name] for name in names),
            RigidTransform.from_matrix(row[mount]),
            row[width],
            row[height],
            row[readout],
        )
        for row in rows
    }


def shots_of(folder: Path, segment: str, time: int) -> dict[int, WaymoShot]:
    """Every image of a moment, by its camera's number. Raises ValueError, OSError."""
    component = "[CameraImageComponent]"
    image, pose, moment = (f"{component}.{name}" for name in ("image", "pose.transform", "pose_timestamp"))
    velocity = [f"{component}.velocity.linear_velocity.{axis}" for axis in "xyz"]
    spin = [f"{component}.velocity.angular_velocity.{axis}" for axis in "xyz"]
    readout = [f"{component}.rolling_shutter_params.{name}" for name in _READOUT]
    columns = [_CAMERA_KEY, image, pose, moment, *velocity, *spin, *readout]
    rows = _rows(folder / "camera_image" / f"{segment}.parquet", columns, time)
    return {
        row[_CAMERA_KEY]: WaymoShot(
            row[image],
            RigidTransform.from_matrix(row[pose]),
            np.array([row[name] for name in velocity]),
            np.array([row[name] for name in spin]),
            row[moment],
            *(row[name] for name in readout),
        )
        for row in rows
    }


def points_of(folder: Path, segment: str, time: int) -> NDArray[np.float64]:
    """The first returns of all lidars at a moment, `(n, 3)` metres in the world's frame. Raises ValueError, OSError."""
    file = f"{segment}.parquet"
    component = "[LiDARCalibrationComponent]"
    mount, beams = f"{component}.extrinsic.transform", f"{component}.beam_inclination"
    columns = [_LASER_KEY, mount, f"{beams}.min", f"{beams}.max", f"{beams}.values"]
    lidars = {row[_LASER_KEY]: row for row in _rows(folder / "lidar_calibration" / file, columns)}
    vehicle = "[VehiclePoseComponent].world_from_vehicle.transform"
    poses = _rows(folder / "vehicle_pose" / file, [vehicle], time)
    if not poses:
        raise ValueError(f"vehicle_pose/{file} has no pose at {time}")
    world_from_vehicle = RigidTransform.from_matrix(poses[0][vehicle])
    images = _range_images(folder / "lidar" / file, "[LiDARComponent].range_image_return1", time)
    pixel_poses = _range_images(folder / "lidar_pose" / file, "[LiDARPoseComponent].range_image_return1", time)
    points = [np.zeros((0, 3))]
    for laser in sorted(images):
        if laser not in lidars:
            raise ValueError(f"no calibration of the lidar {laser}")
        row, ranges = lidars[laser], images[laser][..., 0]
        if row[f"{beams}.values"]:
            inclinations = np.array(row[f"{beams}.values"])
        else:
            inclinations = even_beams(row[f"{beams}.min"], row[f"{beams}.max"], len(ranges))
        sweep = WaymoSweep(ranges, inclinations, RigidTransform.from_matrix(row[mount]), pixel_poses.get(laser))
        points.append(sweep.world_points(world_from_vehicle))
    return np.concatenate(points)


def _range_images(file: Path, column: str, time: int) -> dict[int, NDArray[np.float32]]:
    """Those of a moment by the number of their lidar, in their shapes."""
    table = _read(file, [_LASER_KEY, f"{column}.values", f"{column}.shape"], time)
    result: dict[int, NDArray[np.float32]] = {}
    for row, laser in enumerate(table[_LASER_KEY].to_pylist()):
        # Scalars hand out their numbers as an array; a Python list of 700,000 of them would take a second.
        values = table[f"{column}.values"][row].values
        if values is not None:
            result[laser] = values.to_numpy().reshape(table[f"{column}.shape"][row].as_py())
    return result


def _rows(file: Path, columns: list[str], time: int | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _read(file, columns, time).to_pylist()
    return rows


def _read(file: Path, columns: list[str], time: int | None) -> Any:
    filters = None if time is None else [(_TIME_KEY, "=", time)]
    return _parquet().read_table(file, columns=columns, filters=filters, use_threads=False)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('The Parquet form of Waymo needs pyarrow: `pip install "depthvlm[bench]"`.') from error
    return parquet
