"""Waymo Open Dataset (perception): five rolling-shutter cameras with the returns of five lidars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .files import check_image, expect_any_folder, frame_errors, split_folder
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import DEPTH_SCALE, Array, RigidTransform, depth_map, rotation_class
from .waymo_files import (
    COMPONENTS,
    WaymoCamera,
    WaymoShot,
    parquet_images,
    parquet_moment,
    read_record,
    record_moment,
    record_places,
)

CAMERA_NAMES = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}

# Values of RollingShutterReadOutDirection; 0 (unknown) and 5 (global shutter) have no readout.
TOP_TO_BOTTOM, LEFT_TO_RIGHT, BOTTOM_TO_TOP, RIGHT_TO_LEFT = 1, 2, 3, 4

# Waymo's cameras look along x, with y to the left and z up.
_PINHOLE_FROM_WAYMO = RigidTransform(np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]), np.zeros(3))

# A step brings a point nearer to its own time by a factor of five, even at 20 m/s and 5 m beside the car.
_STEPS = 5

OFFICIAL_SPLITS = {"train": "training", "test": "validation"}

_LAYOUT = "segment-*.tfrecord (v1), or camera_image/<segment>.parquet and its neighbours (v2)"


class Waymo(Source):
    """The perception dataset as downloaded (waymo.com/open), in either form.

        training|validation/**/segment-<name>_with_camera_labels.tfrecord          v1: `Frame` records
        training|validation/camera_image|camera_calibration|lidar|lidar_calibration|
            lidar_pose|vehicle_pose/<name>.parquet                                 v2: components

    `train` is the official training (798 segments), `test` the official validation (202). Both forms give the same
    frames under the same ids. The components of v2 are not sorted by time in their files, so a frame there costs a
    search of seconds (waymo-open-dataset, issue 841), and v1 a seek.

    Depth is the first return of all five lidars: in the world from the pose of each pixel of the top lidar and the
    vehicle's pose for the others, and from there in the camera, at the time at which the image line that sees the point
    was read. The images come with their lens distortion (k1, k2, p1, p2, k3 of OpenCV's model), which the projection
    follows; the intrinsics are the pinhole part.
    """

    name = "waymo"
    title = "Waymo"
    depth_range = (0.05, 70.0)
    published_depth = "ray"
    sparse = True
    licence = "Waymo Dataset License Agreement for Non-Commercial Use"
    homepage = "https://waymo.com/open"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_any_folder(self, OFFICIAL_SPLITS.values(), _LAYOUT)
        # One moment serves five cameras.
        self._parquet = lru_cache(1)(parquet_moment)
        self._record = lru_cache(1)(lambda file, place: record_moment(read_record(file, *place)))

    def _frames(self, split: str) -> Iterable[FrameRef]:
        folder = split_folder(self, split, OFFICIAL_SPLITS, _LAYOUT)
        if (folder / "camera_image").is_dir():
            return self._parquet_refs(folder)
        return self._record_refs(folder)

    def _record_refs(self, folder: Path) -> Iterator[FrameRef]:
        for file in sorted(folder.rglob("*.tfrecord")):
            segment = file.stem.removeprefix("segment-").removesuffix("_with_camera_labels")
            try:
                places = record_places(file)
            except (OSError, ValueError) as error:
                raise SourceError(f"{self.title}: {file} is damaged, or no TFRecord file: {error}.") from error
            name = file.relative_to(self.root).as_posix()
            for number, place in enumerate(places):
                files: dict[str, Any] = {"file": name, "place": place}
                yield from (_ref(segment, number, camera, files) for camera in CAMERA_NAMES.values())

    def _parquet_refs(self, folder: Path) -> Iterator[FrameRef]:
        for name in COMPONENTS:
            if not (folder / name).is_dir():
                raise SourceError(f"{self.title}: expected the component {name}/ in {folder}, beside camera_image/.")
        for file in sorted((folder / "camera_image").glob("*.parquet")):
            try:
                images = parquet_images(file)
            except (OSError, ValueError) as error:
                raise SourceError(f"{self.title}: {file} is damaged: {error}.") from error
            numbers = {time: number for number, time in enumerate(sorted({time for time, _ in images}))}
            for time, camera in images:
                if camera in CAMERA_NAMES:
                    yield _ref(file.stem, numbers[time], CAMERA_NAMES[camera], {"folder": folder.name, "time": time})

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with the returns that it sees, see [`Source.read`]."""
        if "time" in ref.files:
            folder, segment, time = self.root / ref.files["folder"], ref.scene, ref.files["time"]
            name = f"{folder}, segment {segment} at {time}"
            with frame_errors(name):
                moment = self._parquet(folder, segment, time)
        else:
            file, place = self.root / ref.files["file"], ref.files["place"]
            name = f"{file}, record {ref.order}"
            with frame_errors(name):
                moment = self._record(file, place)
        number = next(key for key, camera in CAMERA_NAMES.items() if camera == ref.camera)
        if number not in moment.shots or number not in moment.cameras:
            raise FrameError(f"{name}: no image or no calibration of the camera {ref.camera}.")
        if not moment.points.size:
            raise FrameError(f"{name}: no lidar returns: this copy of the data has its lidar left out.")
        camera, shot = moment.cameras[number], moment.shots[number]
        size = (camera.width, camera.height)
        check_image(shot.image, f"{name}, {ref.camera}", size)
        depth = depth_map(*project_shot(moment.points, camera, shot), size)
        return Frame(ref, shot.image, size, depth, DEPTH_SCALE, camera.pinhole.intrinsics)


def _ref(segment: str, number: int, camera: str, files: dict[str, Any]) -> FrameRef:
    return FrameRef(f"{segment}/{number:03d}/{camera}", segment, camera, number, files)


def project_shot(points: Array, camera: WaymoCamera, shot: WaymoShot) -> tuple[Array, Array, Array]:
    """Project points `(n, 3)` in metres, each from the vehicle's place when its line of the image was read.

    The middle of a line's exposure runs from half a shutter after the trigger to half a shutter before the readout is
    done; the vehicle moves on from its pose with constant velocity and spin (dataset.proto, CameraImage).

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
