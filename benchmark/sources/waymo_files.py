"""The two forms of the Waymo Open Dataset's files, TFRecord (v1) and Parquet (v2), read without TensorFlow."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import import_errors
from .projection import PinholeCamera, RigidTransform, even_beams, sweep_points

# Every TFRecord (tensorflow.org/tutorials/load_data/tfrecord): uint64 length, uint32 checksum of it, the data, uint32
# checksum of them.
_HEADER, _FOOTER = 12, 4

Message = dict[int, list[int | memoryview]]
"""Values of every field of a protocol buffer, by its number, in their order: integers of varints, bytes of the rest."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types (protobuf.dev/programming-guides/encoding)

COMPONENTS = ("camera_image", "camera_calibration", "lidar", "lidar_calibration", "lidar_pose", "vehicle_pose")
"""Folders of the Parquet form: one file a segment and component, with a column for every leaf."""
_TIME, _CAMERA, _LASER = "key.frame_timestamp_micros", "key.camera_name", "key.laser_name"


@dataclass(frozen=True, eq=False)
class WaymoCamera:
    """A camera's calibration.

    Args:
        intrinsics: f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3 in pixels, the left edge of the first pixel at 0.
        vehicle_from_camera: its mount; Waymo's axes.
        width: width of its images in pixels.
        height: height of its images in pixels.
        readout: value of RollingShutterReadOutDirection.
    """

    intrinsics: tuple[float, ...]
    vehicle_from_camera: RigidTransform
    width: int
    height: int
    readout: int

    @property
    def pinhole(self) -> PinholeCamera:
        """The same camera with the centre of the first pixel at (0, 0), and its lens."""
        fx, fy, cx, cy, k1, k2, p1, p2, k3 = self.intrinsics
        return PinholeCamera(fx, fy, cx - 0.5, cy - 0.5, self.width, self.height, (k1, k2, p1, p2, k3))


@dataclass(frozen=True, eq=False)
class WaymoShot:
    """An image, and the vehicle's motion while it was taken.

    Args:
        image: JPEG bytes.
        world_from_vehicle: pose at `pose_time`.
        velocity: `(3,)` m/s in the world's frame.
        spin: `(3,)` rad/s in the vehicle's frame. (dataset.proto speaks of the world's for both; only this reading
            gives the pixels in the tests of Waymo's own camera model.)
        pose_time: seconds since 1970, as `trigger_time` and `readout_done_time`.
        shutter: exposure of a line in seconds.
        trigger_time: begin of the first line's exposure.
        readout_done_time: end of the last line's readout.
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
class Moment:
    """All images and lidar points `(n, 3)` (metres, world frame) of one moment, by camera number."""

    cameras: dict[int, WaymoCamera]
    shots: dict[int, WaymoShot]
    points: NDArray[np.float64]


def record_places(file: Path) -> list[tuple[int, int]]:
    """List offset and length of the data of a TFRecord file's records, also of a last one that is cut off.

    Raises:
        ValueError: a length that no record has: the file is damaged or not a TFRecord file.
        OSError: the file cannot be read.
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


def read_record(file: Path, offset: int, length: int) -> Message:
    """Read the message of one record. Raises EOFError if the file ends early, OSError if it cannot be read."""
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(length)
    if len(data) < length:
        raise EOFError(f"the record at byte {offset} has {length} bytes, and only {len(data)} are there")
    return read_message(data)


def record_moment(frame: Message) -> Moment:
    """Return the moment of a `Frame` of dataset.proto, whose field numbers stand here.

    Raises:
        ValueError, zlib.error: a part of it is not what it should be.
    """
    context, cameras, shots = submessage(frame, 1), {}, {}
    for one in submessages(context, 2):
        intrinsics = tuple(floats(one, 2, "<f8").tolist())
        if len(intrinsics) != 9:
            raise ValueError(f"a camera calibration of {len(intrinsics)} numbers, not 9")
        size = integer(one, 4), integer(one, 5)
        cameras[integer(one, 1)] = WaymoCamera(intrinsics, _transform(one, 3), *size, integer(one, 6))
    for one in submessages(frame, 4):
        motion = submessage(one, 4)
        velocity = np.array([_number(motion, field, "<f4") for field in (1, 2, 3)])
        spin = np.array([_number(motion, field, "<f8") for field in (4, 5, 6)])
        times = (_number(one, field, "<f8") for field in (5, 6, 7, 8))
        shots[integer(one, 1)] = WaymoShot(raw(one, 2), _transform(one, 3), velocity, spin, *times)

    calibrations = {integer(one, 1): one for one in submessages(context, 3)}
    vehicle = _transform(frame, 3)
    points = [np.zeros((0, 3))]
    for laser in submessages(frame, 5):
        # Frames are also shared without their lidar: the message is there and empty.
        if 2 not in laser or 2 not in (image := submessage(laser, 2)):
            continue
        if (name := integer(laser, 1)) not in calibrations:
            raise ValueError(f"no calibration of the lidar {name}")
        one, ranges = calibrations[name], _matrix(image, 2)[..., 0]
        beams = floats(one, 2, "<f8").astype(np.float64)
        if beams.size == 0:
            beams = even_beams(_number(one, 3, "<f8"), _number(one, 4, "<f8"), len(ranges))
        poses = _matrix(image, 4) if 4 in image else None
        points.append(sweep_points(ranges, beams, _transform(one, 5), vehicle, poses))
    return Moment(cameras, shots, np.concatenate(points))


def _matrix(message: Message, number: int) -> NDArray[np.float32]:
    """Decompress a `MatrixFloat`, in its shape."""
    matrix = read_message(zlib.decompress(raw(message, number)))
    return floats(matrix, 1, "<f4").reshape(integers(submessage(matrix, 2), 1)).astype(np.float32, copy=False)


def _transform(message: Message, number: int) -> RigidTransform:
    return RigidTransform.from_matrix(floats(submessage(message, number), 1, "<f8"))


def _number(message: Message, number: int, dtype: str) -> float:
    """Return the number in a field; 0 for a missing field, as in protocol buffers."""
    values = floats(message, number, dtype)
    return float(values[-1]) if values.size else 0.0


def read_varint(data: memoryview, start: int) -> tuple[int, int]:
    """Return the integer at `start`, and its end. Raises ValueError if the data end before it does."""
    value = shift = 0
    for position in range(start, min(start + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise ValueError(f"no integer at byte {start} of a message of {len(data)}")


def read_message(data: memoryview | bytes) -> Message:
    """Split a message into its fields; those that are messages themselves stay bytes, and nothing is copied.

    Raises:
        ValueError: the data are cut off, or no message.
    """
    data, message, position = memoryview(data), Message(), 0
    while position < len(data):
        tag, position = read_varint(data, position)
        kind, number = tag & 7, tag >> 3
        if kind == _VARINT:
            value, position = read_varint(data, position)
            message.setdefault(number, []).append(value)
            continue
        if kind == _BYTES:
            size, position = read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if number == 0 or position + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {position} of a message of {len(data)}")
        message.setdefault(number, []).append(data[position : position + size])
        position += size
    return message


def submessages(message: Message, number: int) -> list[Message]:
    """Return the messages in a repeated field. Raises ValueError if they are none."""
    return [read_message(_bytes(value)) for value in message.get(number, [])]


def submessage(message: Message, number: int) -> Message:
    """Return the message in a field. Raises ValueError if it is missing."""
    return read_message(_last(message, number))


def integer(message: Message, number: int) -> int:
    """Return the integer in a field, 0 for a missing one."""
    value = message.get(number, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not an integer")
    return value


def integers(message: Message, number: int) -> list[int]:
    """Return the integers of a repeated field, packed or not."""
    found: list[int] = []
    for value in message.get(number, []):
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            one, position = read_varint(value, position)
            found.append(one)
    return found


def floats(message: Message, number: int, dtype: str) -> NDArray[np.floating]:
    """Return the numbers of a repeated field, packed or not, of `dtype` "<f4" or "<f8"."""
    values = [_bytes(value) for value in message.get(number, [])]
    return np.frombuffer(values[0] if len(values) == 1 else b"".join(values), dtype)


def raw(message: Message, number: int) -> bytes:
    """Return the bytes in a field. Raises ValueError if it is missing."""
    return bytes(_last(message, number))


def _last(message: Message, number: int) -> memoryview:
    if number not in message:
        raise ValueError(f"field {number} is missing")
    return _bytes(message[number][-1])


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer where bytes were expected")
    return value


def parquet_images(file: Path) -> list[tuple[int, int]]:
    """Return time in microseconds and camera number of every image of a `camera_image` file."""
    table = _read(file, [_TIME, _CAMERA])
    return list(zip(table[_TIME].to_pylist(), table[_CAMERA].to_pylist(), strict=True))


def parquet_moment(folder: Path, segment: str, time: int) -> Moment:
    """Return one moment of a segment in the components of `folder`.

    Raises:
        ValueError, OSError: a component is not what it should be.
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


def _parquet_points(folder: Path, file: str, time: int) -> NDArray[np.float64]:
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
