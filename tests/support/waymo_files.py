"""Waymo frames in both native forms, encoded here from the documentation of the formats alone."""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from toy_source_files import jpeg

SIZE = (96, 64)
COMPONENTS = {
    "camera_image": "CameraImageComponent",
    "camera_calibration": "CameraCalibrationComponent",
    "lidar": "LiDARComponent",
    "lidar_calibration": "LiDARCalibrationComponent",
    "lidar_pose": "LiDARPoseComponent",
    "vehicle_pose": "VehiclePoseComponent",
}


def shift(x: float, y: float, z: float) -> np.ndarray:
    result = np.eye(4)
    result[:3, 3] = x, y, z
    return result


@dataclass
class Lidar:
    name: int
    ranges: Any
    mount: np.ndarray = field(default_factory=lambda: np.eye(4))
    beams: Any = None
    limits: tuple[float, float] = (0.0, 0.0)
    poses: Any = None


@dataclass
class Camera:
    name: int = 1
    intrinsics: tuple[float, ...] = (80.0, 80.0, 48.5, 32.5, 0.0, 0.0, 0.0, 0.0, 0.0)
    mount: np.ndarray = field(default_factory=lambda: np.eye(4))
    size: tuple[int, int] = SIZE
    readout: int = 5
    image: bytes = jpeg(SIZE)
    pose: np.ndarray = field(default_factory=lambda: np.eye(4))
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    times: tuple[float, float, float, float] = (100.0, 0.0, 100.0, 100.0)  # pose, shutter, trigger, readout done


@dataclass
class Moment:
    cameras: list[Camera]
    lidars: list[Lidar]
    pose: np.ndarray = field(default_factory=lambda: np.eye(4))
    time: int = 1553735853462203


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def block(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def doubles(number: int, values) -> bytes:
    return b"".join(varint(number << 3 | 1) + struct.pack("<d", value) for value in np.ravel(values))


def range_image(array) -> bytes:
    array = np.asarray(array, "<f4")
    shape = b"".join(whole(1, size) for size in array.shape)
    return zlib.compress(block(1, array.tobytes()) + block(2, shape))


def channels(ranges) -> np.ndarray:
    """Range, intensity, elongation, no-label zone."""
    ranges = np.asarray(ranges, np.float32)
    return np.stack([ranges, ranges * 0 + 0.5, ranges * 0, ranges * 0 - 1], axis=-1)


def frame_record(moment: Moment) -> bytes:
    """A serialized `Frame` of dataset.proto."""
    context = block(1, b"1024_3580_000_3600_000")
    images = lasers = b""
    for one in moment.cameras:
        calibration = whole(1, one.name) + doubles(2, one.intrinsics) + block(3, doubles(1, one.mount))
        calibration += whole(4, one.size[0]) + whole(5, one.size[1]) + whole(6, one.readout)
        context += block(2, calibration)
        motion = b"".join(
            varint(number << 3 | 5) + struct.pack("<f", part) for number, part in enumerate(one.velocity, 1)
        )
        motion += b"".join(doubles(number, part) for number, part in enumerate(one.spin, 4))
        image = whole(1, one.name) + block(2, one.image) + block(3, doubles(1, one.pose)) + block(4, motion)
        images += block(4, image + b"".join(doubles(number, part) for number, part in enumerate(one.times, 5)))
    for one in moment.lidars:
        beams = (
            doubles(2, one.beams) if one.beams is not None else doubles(3, one.limits[0]) + doubles(4, one.limits[1])
        )
        context += block(3, whole(1, one.name) + beams + block(5, doubles(1, one.mount)))
        image = block(2, range_image(channels(one.ranges))) + block(3, zlib.compress(b""))
        image += block(4, range_image(one.poses)) if one.poses is not None else b""
        lasers += block(5, whole(1, one.name) + block(2, image))
    return block(1, context) + whole(2, moment.time) + block(3, doubles(1, moment.pose)) + images + lasers


def write_records(file, records) -> None:
    """A TFRecord file; nobody reads its checksums."""
    file.parent.mkdir(parents=True, exist_ok=True)
    framed = (struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0) for record in records)
    file.write_bytes(b"".join(framed))


def write_parquet(folder, segment: str, moments: list[Moment]) -> None:
    """The components of a segment, in the columns of the v2 dataset."""
    tables: dict[str, list[dict]] = {name: [] for name in COMPONENTS}
    first = moments[0]
    for one in first.cameras:
        intrinsic = zip(("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3"), one.intrinsics, strict=True)
        row = {"key.camera_name": one.name, "extrinsic.transform": one.mount.ravel().tolist()}
        row |= {f"intrinsic.{name}": value for name, value in intrinsic}
        row |= {"width": one.size[0], "height": one.size[1], "rolling_shutter_direction": one.readout}
        tables["camera_calibration"].append(row)
    for one in first.lidars:
        low, high = one.limits if one.beams is None else (min(one.beams), max(one.beams))
        row = {"key.laser_name": one.name, "extrinsic.transform": one.mount.ravel().tolist()}
        row |= {"beam_inclination.min": low, "beam_inclination.max": high}
        row["beam_inclination.values"] = None if one.beams is None else list(one.beams)
        tables["lidar_calibration"].append(row)
    for moment in moments:
        time = {"key.frame_timestamp_micros": moment.time}
        tables["vehicle_pose"].append(time | {"world_from_vehicle.transform": moment.pose.ravel().tolist()})
        for one in moment.cameras:
            row = time | {"key.camera_name": one.name, "image": one.image, "pose.transform": one.pose.ravel().tolist()}
            for kind, values in (("linear", one.velocity), ("angular", one.spin)):
                row |= {f"velocity.{kind}_velocity.{axis}": part for axis, part in zip("xyz", values, strict=True)}
            names = ("shutter", "camera_trigger_time", "camera_readout_done_time")
            row |= {"pose_timestamp": one.times[0]}
            row |= {f"rolling_shutter_params.{name}": part for name, part in zip(names, one.times[1:], strict=True)}
            tables["camera_image"].append(row)
        for one in moment.lidars:
            key = time | {"key.laser_name": one.name}
            tables["lidar"].append(key | flat("range_image_return1", channels(one.ranges)))
            if one.poses is not None:
                tables["lidar_pose"].append(key | flat("range_image_return1", np.asarray(one.poses, np.float32)))
    for name, rows in tables.items():
        prefix = f"[{COMPONENTS[name]}]."
        names = dict.fromkeys(key for row in rows for key in row)
        columns = {key if key.startswith("key.") else prefix + key: [row.get(key) for row in rows] for key in names}
        (folder / name).mkdir(parents=True, exist_ok=True)
        arrays = {
            key: pa.array(values, pa.list_(pa.float32())) if key.endswith("return1.values") else pa.array(values)
            for key, values in columns.items()
        }
        parquet.write_table(pa.table(arrays), folder / name / f"{segment}.parquet", row_group_size=2)


def flat(name: str, array: np.ndarray) -> dict:
    return {f"{name}.values": array.ravel().tolist(), f"{name}.shape": list(array.shape)}
