"""The two forms of the Waymo Open Dataset's files, TFRecord (v1) and Parquet (v2), read without TensorFlow."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import import_errors
from .projection import Array, PinholeCamera, RigidTransform, even_beams, sweep_points

# Every TFRecord (tensorflow.org/tutorials/load_data/tfrecord): uint64 length, uint32 checksum of it, the data, uint32
# checksum of them.
_HEADER, _FOOTER = 12, 4

SCHEMA = {
    "Frame": "context=1:Context pose=3:Transform images=4:CameraImage* lasers=5:Laser*",
    "Context": "camera_calibrations=2:CameraCalibration* laser_calibrations=3:LaserCalibration*",
    "Transform": "transform=1:double*",
    "CameraCalibration": "name=1:int32 intrinsic=2:double* extrinsic=3:Transform width=4:int32 height=5:int32 "
    "rolling_shutter_direction=6:int32",
    "LaserCalibration": "name=1:int32 beam_inclinations=2:double* beam_inclination_min=3:double "
    "beam_inclination_max=4:double extrinsic=5:Transform",
    "CameraImage": "name=1:int32 image=2:bytes pose=3:Transform velocity=4:Velocity pose_timestamp=5:double "
    "shutter=6:double camera_trigger_time=7:double camera_readout_done_time=8:double",
    "Velocity": "v_x=1:float v_y=2:float v_z=3:float w_x=4:double w_y=5:double w_z=6:double",
    "Laser": "name=1:int32 ri_return1=2:RangeImage",
    "RangeImage": "range_image_compressed=2:bytes range_image_pose_compressed=4:bytes",
    "MatrixFloat": "data=1:bytes shape=2:Shape",  # packed floats
    "Shape": "dims=1:int32*",
}
"""Messages of waymo_open_dataset/dataset.proto, with the fields that are read: `name=number:type`, `*` if repeated."""

COMPONENTS = ("camera_image", "camera_calibration", "lidar", "lidar_calibration", "lidar_pose", "vehicle_pose")
"""Folders of the Parquet form: one file a segment and component, with a column for every leaf."""
_TIME, _CAMERA, _LASER = "key.frame_timestamp_micros", "key.camera_name", "key.laser_name"


@dataclass(frozen=True, eq=False)
class WaymoCamera:
    """A camera's calibration."""

    # f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3 in pixels, the left edge of the first pixel at 0
    intrinsics: tuple[float, ...]
    vehicle_from_camera: RigidTransform  # its mount; Waymo's axes
    width: int  # of its images, in pixels
    height: int
    readout: int  # value of RollingShutterReadOutDirection

    @property
    def pinhole(self) -> PinholeCamera:
        """The same camera with the centre of the first pixel at (0, 0), and its lens."""
        fx, fy, cx, cy, k1, k2, p1, p2, k3 = self.intrinsics
        return PinholeCamera(fx, fy, cx - 0.5, cy - 0.5, self.width, self.height, (k1, k2, p1, p2, k3))


@dataclass(frozen=True, eq=False)
class WaymoShot:
    """An image, and the vehicle's motion while it was taken."""

    image: bytes  # JPEG
    world_from_vehicle: RigidTransform  # pose at `pose_time`
    velocity: Array  # `(3,)` m/s in the world's frame
    # `(3,)` rad/s in the vehicle's frame. (dataset.proto speaks of the world's for both; only this reading gives the
    # pixels in the tests of Waymo's own camera model.)
    spin: Array
    pose_time: float  # seconds since 1970, as `trigger_time` and `readout_done_time`
    shutter: float  # exposure of a line in seconds
    trigger_time: float  # begin of the first line's exposure
    readout_done_time: float  # end of the last line's readout


@dataclass(frozen=True, eq=False)
class Moment:
    """All images and lidar points `(n, 3)` (metres, world frame) of one moment, by camera number."""

    cameras: dict[int, WaymoCamera]
    shots: dict[int, WaymoShot]
    points: Array


def record_places(file: Path) -> list[tuple[int, int]]:
    """List offset and length of the data of a TFRecord file's records, also of a last one that is cut off.

    Raises:
        ValueError: A length that no record has: the file is damaged or not a TFRecord file.
        OSError: The file cannot be read.
    """
    end, places, position = file.stat().st_size, [], 0
    # Between two headers lie megabytes that nobody needs here.
    with file.open("rb", buffering=0) as stream:
        while position < end:
            stream.seek(position)
            header = stream.read(_HEADER)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else 0
            if not 0 < length < 2**31:
                raise ValueError(f"no record at byte {position} of {end}")
            places.append((position + _HEADER, length))
            position += _HEADER + length + _FOOTER
    if not places:
        raise ValueError("the file is empty")
    return places


def read_record(file: Path, offset: int, length: int) -> Any:
    """Read the `Frame` of one record. Raises EOFError or ValueError if it is damaged, OSError if it cannot be read."""
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    if len(data) < length:
        raise EOFError(f"the record at byte {offset} has {length} bytes, and only {len(data)} are there")
    return _parse("Frame", data)


def record_moment(frame: Any) -> Moment:
    """Return the moment of a `Frame`.

    Raises:
        ValueError, zlib.error: A part of it is not what it should be.
    """
    cameras, shots = {}, {}
    for one in frame.context.camera_calibrations:
        if len(one.intrinsic) != 9:
            raise ValueError(f"a camera calibration of {len(one.intrinsic)} numbers, not 9")
        lens, mount = tuple(one.intrinsic), RigidTransform.from_matrix(one.extrinsic.transform)
        cameras[one.name] = WaymoCamera(lens, mount, one.width, one.height, one.rolling_shutter_direction)
    for one in frame.images:
        v, pose = one.velocity, RigidTransform.from_matrix(one.pose.transform)
        velocity, spin = np.array([v.v_x, v.v_y, v.v_z]), np.array([v.w_x, v.w_y, v.w_z])
        times = one.pose_timestamp, one.shutter, one.camera_trigger_time, one.camera_readout_done_time
        shots[one.name] = WaymoShot(one.image, pose, velocity, spin, *times)

    calibrations = {one.name: one for one in frame.context.laser_calibrations}
    vehicle = RigidTransform.from_matrix(frame.pose.transform)
    points = [np.zeros((0, 3))]
    for laser in frame.lasers:
        # Frames are also shared without their lidar: the message is there and empty.
        image = laser.ri_return1
        if not image.range_image_compressed:
            continue
        if laser.name not in calibrations:
            raise ValueError(f"no calibration of the lidar {laser.name}")
        one, ranges = calibrations[laser.name], _matrix(image.range_image_compressed)[..., 0]
        beams = np.array(one.beam_inclinations)
        if beams.size == 0:
            beams = even_beams(one.beam_inclination_min, one.beam_inclination_max, len(ranges))
        poses = _matrix(image.range_image_pose_compressed) if image.range_image_pose_compressed else None
        mount = RigidTransform.from_matrix(one.extrinsic.transform)
        points.append(sweep_points(ranges, beams, mount, vehicle, poses))
    return Moment(cameras, shots, np.concatenate(points))


def _matrix(compressed: bytes) -> NDArray[np.float32]:
    """Decompress a `MatrixFloat`, in its shape."""
    matrix = _parse("MatrixFloat", zlib.decompress(compressed))
    return np.frombuffer(matrix.data, "<f4").reshape(matrix.shape.dims).astype(np.float32, copy=False)


def _parse(name: str, data: bytes) -> Any:
    with import_errors("The TFRecord form of Waymo", "protobuf"):
        from google.protobuf.message import DecodeError
    try:
        return _messages()[name].FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


@cache
def _messages() -> dict[str, Any]:
    return message_classes(SCHEMA)


def message_classes(schema: Mapping[str, str]) -> dict[str, Any]:
    """Return the class of each message of a schema in the form of `SCHEMA`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="waymo.proto")
    for name, fields in schema.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            field, number, kind = re.split("[=:]", text.removesuffix("*"))
            one = message.field.add(name=field, number=int(number))
            one.label = one.LABEL_REPEATED if text.endswith("*") else one.LABEL_OPTIONAL
            one.type = getattr(one, f"TYPE_{kind.upper()}", one.TYPE_MESSAGE)
            if one.type == one.TYPE_MESSAGE:
                one.type_name = f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClassesForFiles([file.name], pool)


def parquet_images(file: Path) -> list[tuple[int, int]]:
    """Return time in microseconds and camera number of every image of a `camera_image` file."""
    table = _read(file, [_TIME, _CAMERA])
    return list(zip(table[_TIME].to_pylist(), table[_CAMERA].to_pylist(), strict=True))


def parquet_moment(folder: Path, segment: str, time: int) -> Moment:
    """Return one moment of a segment in the components of `folder`.

    Raises:
        ValueError, OSError: A component is not what it should be.
    """
    file = f"{segment}.parquet"
    component = "[CameraCalibrationComponent]"
    names = [f"{component}.intrinsic.{name}" for name in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")]
    mount, others = f"{component}.extrinsic.transform", ("width", "height", "rolling_shutter_direction")
    sizes = [f"{component}.{name}" for name in others]
    cameras = {
        one[_CAMERA]: WaymoCamera(
            tuple(one[name] for name in names), RigidTransform.from_matrix(one[mount]), *(one[name] for name in sizes)
        )
        for one in _read(folder / "camera_calibration" / file, [_CAMERA, *names, mount, *sizes]).to_pylist()
    }
    component = "[CameraImageComponent]"
    image, pose = f"{component}.image", f"{component}.pose.transform"
    velocity = [f"{component}.velocity.linear_velocity.{axis}" for axis in "xyz"]
    spin = [f"{component}.velocity.angular_velocity.{axis}" for axis in "xyz"]
    shutter = ("shutter", "camera_trigger_time", "camera_readout_done_time")
    times = [f"{component}.pose_timestamp", *(f"{component}.rolling_shutter_params.{name}" for name in shutter)]
    columns = [_CAMERA, image, pose, *velocity, *spin, *times]
    shots = {
        one[_CAMERA]: WaymoShot(
            one[image],
            RigidTransform.from_matrix(one[pose]),
            np.array([one[name] for name in velocity]),
            np.array([one[name] for name in spin]),
            *(one[name] for name in times),
        )
        for one in _read(folder / "camera_image" / file, columns, time).to_pylist()
    }
    return Moment(cameras, shots, _parquet_points(folder, file, time))


def _parquet_points(folder: Path, file: str, time: int) -> Array:
    """Return the first returns of all lidars at a moment, `(n, 3)` metres in the world's frame."""
    component = "[LiDARCalibrationComponent]"
    mount, beams = f"{component}.extrinsic.transform", f"{component}.beam_inclination"
    columns = [_LASER, mount, f"{beams}.min", f"{beams}.max", f"{beams}.values"]
    lidars = {one[_LASER]: one for one in _read(folder / "lidar_calibration" / file, columns).to_pylist()}
    vehicle = "[VehiclePoseComponent].world_from_vehicle.transform"
    poses = _read(folder / "vehicle_pose" / file, [vehicle], time).to_pylist()
    if not poses:
        raise ValueError(f"vehicle_pose/{file} has no pose at {time}")
    world_from_vehicle = RigidTransform.from_matrix(poses[0][vehicle])
    images = _range_images(folder / "lidar" / file, "[LiDARComponent].range_image_return1", time)
    pixel_poses = _range_images(folder / "lidar_pose" / file, "[LiDARPoseComponent].range_image_return1", time)
    points = [np.zeros((0, 3))]
    for laser in sorted(images):
        if laser not in lidars:
            raise ValueError(f"no calibration of the lidar {laser}")
        one, ranges = lidars[laser], images[laser][..., 0]
        angles = one[f"{beams}.values"] or even_beams(one[f"{beams}.min"], one[f"{beams}.max"], len(ranges))
        transform = RigidTransform.from_matrix(one[mount])
        points.append(sweep_points(ranges, np.array(angles), transform, world_from_vehicle, pixel_poses.get(laser)))
    return np.concatenate(points)


def _range_images(file: Path, column: str, time: int) -> dict[int, NDArray[np.float32]]:
    """Return the range images of a moment by the number of their lidar, in their shapes."""
    table = _read(file, [_LASER, f"{column}.values", f"{column}.shape"], time)
    result: dict[int, NDArray[np.float32]] = {}
    for number, laser in enumerate(table[_LASER].to_pylist()):
        # Scalars hand out their numbers as an array; a Python list of 700,000 of them would take a second.
        values = table[f"{column}.values"][number].values
        if values is not None:
            result[laser] = values.to_numpy().reshape(table[f"{column}.shape"][number].as_py())
    return result


def _read(file: Path, columns: list[str], time: int | None = None) -> Any:
    with import_errors("The Parquet form of Waymo", "pyarrow"):
        from pyarrow import parquet
    filters = None if time is None else [(_TIME, "=", time)]
    return parquet.read_table(file, columns=columns, filters=filters, use_threads=False)
