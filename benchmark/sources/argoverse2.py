"""Argoverse 2 Sensor Dataset: ring cameras with the sweep of both lidars."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import expect_any_folder, frame_errors, import_errors, read_image, split_folder
from .frames import Frame, FrameError, FrameRef, Source
from .projection import DEPTH_SCALE, EgoPoses, PinholeCamera, RigidTransform, lidar_depth_map

OFFICIAL_SPLITS = {"train": "train", "test": "val"}

# Both lidars turn at 10 Hz: a sweep lasts 0.1 s from the time in its name. An image later than twice that has none.
LATEST_IMAGE_NS = 200_000_000

_QUATERNION = ("qw", "qx", "qy", "qz")
_TRANSLATION = ("tx_m", "ty_m", "tz_m")
_CAMERA = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")
_LAYOUT = "<log>/sensors/cameras/<camera>/<timestamp>.jpg"


class Argoverse2(Source):
    """The Sensor Dataset as downloaded (argoverse.github.io/user-guide/datasets/sensor.html).

        train|val/<log>/sensors/cameras/ring_*/<timestamp_ns>.jpg
        train|val/<log>/sensors/lidar/<timestamp_ns>.feather        x, y, z (float16, metres, egovehicle frame)
        train|val/<log>/calibration/intrinsics.feather, egovehicle_SE3_sensor.feather
        train|val/<log>/city_SE3_egovehicle.feather

    `train` is the official train (700 logs), `test` the official val (150 logs). The seven ring cameras are read; the
    two stereo cameras are monochrome.

    Sweeps are already compensated, each point from its own time (`offset_ns`) to the time in the sweep's name, says the
    guide; from there poses bring them to the time of the image. An image takes the sweep that was being measured at its
    time, the last that began before it. The guide says that all images are undistorted: `k1` to `k3` describe the lens
    before that, and are not applied.
    """

    name = "argoverse2"
    title = "Argoverse 2"
    depth_range = (0.05, 120.0)
    published_depth = "ray"
    sparse = True
    licence = "CC BY-NC-SA 4.0"
    homepage = "https://www.argoverse.org/av2.html"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_any_folder(self, OFFICIAL_SPLITS.values(), _LAYOUT)
        # One log serves many frames, one sweep all cameras of its moment.
        self._calibration, self._poses = lru_cache(8)(read_calibration), lru_cache(8)(_read_poses)
        self._sweep = lru_cache(1)(read_sweep)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        folder = split_folder(self, split, OFFICIAL_SPLITS, _LAYOUT)
        for log in sorted(folder.iterdir()):
            sweeps = _timestamps(log / "sensors" / "lidar", ".feather")
            for camera in sorted((log / "sensors" / "cameras").glob("ring_*")):
                for stamp in _timestamps(camera, ".jpg"):
                    lidar = sweeps[max(bisect_right(sweeps, stamp) - 1, 0)] if sweeps else None
                    frame_id, files = f"{log.name}/{stamp}/{camera.name}", (folder.name, lidar)
                    yield FrameRef(frame_id, log.name, camera.name, stamp, files)

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with its projected sweep, see [`Source.read`]."""
        folder, lidar = ref.files
        log = self.root / folder / ref.scene
        image_file = log / "sensors" / "cameras" / ref.camera / f"{ref.order}.jpg"
        if lidar is None or not -LATEST_IMAGE_NS < ref.order - lidar < LATEST_IMAGE_NS:
            raise FrameError(f"{image_file}: no lidar sweep in {log / 'sensors' / 'lidar'} was measured at its time.")
        cameras = self._calibration(log / "calibration")
        if ref.camera not in cameras:
            raise FrameError(f"{log / 'calibration'}: no calibration of {ref.camera}.")
        camera, ego_from_camera = cameras[ref.camera]
        image, size = read_image(image_file, (camera.width, camera.height), "calibration/intrinsics.feather")

        pose_file = log / "city_SE3_egovehicle.feather"
        poses = self._poses(pose_file)
        with frame_errors(pose_file):
            city_from_camera = poses.at(ref.order) @ ego_from_camera
            camera_from_sweep = city_from_camera.inverse() @ poses.at(lidar)
        points = self._sweep(log / "sensors" / "lidar" / f"{lidar}.feather")
        depth = lidar_depth_map(points, camera_from_sweep, camera)
        return Frame(ref, image, size, depth, DEPTH_SCALE, camera.intrinsics)


def read_sweep(file: Path) -> NDArray[np.float64]:
    """Return the points `(n, 3)` of a sweep in metres, in the egovehicle frame at the time in its name.

    They are float16 in the file and float64 here: float16 arithmetic would add rounding errors, 6 cm at 64 m.

    Raises:
        FrameError: The file is missing, truncated or has no such columns.
    """
    return _stack(_read_columns(file, ("x", "y", "z")), ("x", "y", "z"))


def _timestamps(folder: Path, suffix: str) -> list[int]:
    """Return the times in the names of a folder's files, in order; none where the folder is missing."""
    if not folder.is_dir():
        return []
    return sorted(int(file.stem) for file in folder.iterdir() if file.suffix == suffix and file.stem.isdecimal())


def read_calibration(folder: Path) -> dict[str, tuple[PinholeCamera, RigidTransform]]:
    """Return each camera in a log's folder `calibration`, with its frame in the egovehicle's.

    Raises:
        FrameError: A file is missing, truncated or has no such columns.
    """
    poses_file, cameras_file = folder / "egovehicle_SE3_sensor.feather", folder / "intrinsics.feather"
    mounts = _read_columns(poses_file, ("sensor_name", *_QUATERNION, *_TRANSLATION))
    inner = _read_columns(cameras_file, ("sensor_name", *_CAMERA))
    with frame_errors(poses_file):
        poses = zip(mounts["sensor_name"], _stack(mounts, _QUATERNION), _stack(mounts, _TRANSLATION), strict=True)
        transforms = {name: RigidTransform.from_quaternion(turn, shift) for name, turn, shift in poses}
    with frame_errors(cameras_file):
        result = {}
        for name, numbers in zip(inner["sensor_name"], _stack(inner, _CAMERA).tolist(), strict=True):
            fx, fy, cx, cy, width, height = numbers
            result[name] = PinholeCamera(fx, fy, cx, cy, int(width), int(height)), transforms[name]
        return result


def _read_poses(file: Path) -> EgoPoses:
    table = _read_columns(file, ("timestamp_ns", *_QUATERNION, *_TRANSLATION))
    with frame_errors(file):
        return EgoPoses(table["timestamp_ns"], _stack(table, _QUATERNION), _stack(table, _TRANSLATION))


def _stack(table: dict[str, NDArray[Any]], columns: tuple[str, ...]) -> NDArray[np.float64]:
    return np.stack([table[name].astype(np.float64) for name in columns], axis=1)


def _read_columns(file: Path, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    with import_errors("Argoverse 2", "pyarrow"):
        from pyarrow import feather
    with frame_errors(file):
        table = feather.read_table(file, columns=list(columns), use_threads=False, memory_map=False)
        return {name: table[name].to_numpy() for name in columns}
