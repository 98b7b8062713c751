"""Frames of the Waymo Open Dataset's TFRecord form: field numbers of dataset.proto, and what they hold."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from .projection import RigidTransform
from .protobuf import Message, floats, integer, integers, raw, read_message, submessage, submessages
from .waymo_geometry import WaymoCamera, WaymoShot, WaymoSweep, even_beams


def cameras_of(frame: Message) -> dict[int, WaymoCamera]:
    """The calibration of every camera of a `Frame`, by its number. Raises ValueError if it is not what it should be."""
    result = {}
    for calibration in submessages(submessage(frame, 1), 2):
        intrinsics = tuple(floats(calibration, 2, "<f8").tolist())
        if len(intrinsics) != 9:
            raise ValueError(f"a camera calibration of {len(intrinsics)} numbers, not 9")
        mount = _transform(calibration, 3)
        size = integer(calibration, 4), integer(calibration, 5)
        result[integer(calibration, 1)] = WaymoCamera(intrinsics, mount, *size, integer(calibration, 6))
    return result


def shots_of(frame: Message) -> dict[int, WaymoShot]:
    """Every image of a `Frame`, by its camera's number. Raises ValueError if it is not what it should be."""
    result = {}
    for image in submessages(frame, 4):
        motion = submessage(image, 4)
        velocity = [_number(motion, field, "<f4") for field in (1, 2, 3)]
        spin = [_number(motion, field, "<f8") for field in (4, 5, 6)]
        pose_time, shutter, trigger, done = (_number(image, field, "<f8") for field in (5, 6, 7, 8))
        result[integer(image, 1)] = WaymoShot(
            raw(image, 2), _transform(image, 3), np.array(velocity), np.array(spin), pose_time, shutter, trigger, done
        )
    return result


def points_of(frame: Message) -> NDArray[np.float64]:
    """
    The first returns of all lidars of a `Frame`, `(n, 3)` metres in the world's frame.

    Raises:
        ValueError, zlib.error: a range image is not what it should be.
    """
    calibrations = {integer(one, 1): one for one in submessages(submessage(frame, 1), 3)}
    vehicle = _transform(frame, 3)
    points = [np.zeros((0, 3))]
    for laser in submessages(frame, 5):
        # Frames are also shared without their lidar: the message is there and empty.
        if 2 not in laser or 2 not in (image := submessage(laser, 2)):
            continue
        name = integer(laser, 1)
        if name not in calibrations:
            raise ValueError(f"no calibration of the lidar {name}")
        calibration, ranges = calibrations[name], _matrix(image, 2)[..., 0]
        beams = floats(calibration, 2, "<f8").astype(np.float64)
        if beams.size == 0:
            beams = even_beams(_number(calibration, 3, "<f8"), _number(calibration, 4, "<f8"), len(ranges))
        poses = _matrix(image, 4) if 4 in image else None
        points.append(WaymoSweep(ranges, beams, _transform(calibration, 5), poses).world_points(vehicle))
    return np.concatenate(points)


def _matrix(message: Message, number: int) -> NDArray[np.float32]:
    """A zlib-compressed `MatrixFloat`, in its shape."""
    matrix = read_message(zlib.decompress(raw(message, number)))
    return floats(matrix, 1, "<f4").reshape(integers(submessage(matrix, 2), 1)).astype(np.float32, copy=False)


def _transform(message: Message, number: int) -> RigidTransform:
    return RigidTransform.from_matrix(floats(submessage(message, number), 1, "<f8"))


def _number(message: Message, number: int, dtype: str) -> float:
    """The number in a field; 0 where it is not there, as in protocol buffers."""
    values = floats(message, number, dtype)
    return float(values[-1]) if values.size else 0.0
