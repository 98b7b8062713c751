"""Waymo Open Dataset (perception): five rolling-shutter cameras with the returns of five lidars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import waymo_parquet, waymo_records
from .files import expect_split, sorted_refs
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .lidar_files import Recent, expect_any_folder, frame_errors
from .projection import DEPTH_SCALE, depth_map
from .protobuf import read_message
from .tfrecord import read_record, record_places
from .waymo_geometry import CAMERA_NAMES, WaymoCamera, WaymoShot, project_shot

OFFICIAL_SPLITS = {"train": "training", "test": "validation"}

_LAYOUT = "segment-*.tfrecord (v1), or camera_image/<segment>.parquet and its neighbours (v2)"


@dataclass(frozen=True, eq=False)
class Moment:
    """All images and the lidar points `(n, 3)` (metres, world frame) of one moment, by camera number."""

    cameras: dict[int, WaymoCamera]
    shots: dict[int, WaymoShot]
    points: NDArray[np.float64]


class Waymo(Source):
    """
    The perception dataset as downloaded (waymo.com/open), in either form:

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
    splits = ("train", "test")
    depth_range = (0.05, 70.0)
    published_depth = "ray"
    sparse = True
    extra = "bench"
    licence = "Waymo Dataset License Agreement for Non-Commercial Use"
    homepage = "https://waymo.com/open"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_any_folder(self, list(OFFICIAL_SPLITS.values()), _LAYOUT)
        self._moments: Recent[Moment] = Recent()

    def index(self, split: str) -> list[FrameRef]:
        """All images of all moments, see [`Source.index`]."""
        expect_split(self, split)
        folder = self.root / OFFICIAL_SPLITS[split]
        if not folder.is_dir():
            raise SourceError(f"{self.title}: the {split} split needs {folder}, with the files {_LAYOUT}.")
        if (folder / "camera_image").is_dir():
            return sorted_refs(self, split, self._parquet_refs(folder))
        return sorted_refs(self, split, self._record_refs(folder))

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
        for name in waymo_parquet.COMPONENTS:
            if not (folder / name).is_dir():
                raise SourceError(f"{self.title}: expected the component {name}/ in {folder}, beside camera_image/.")
        for file in sorted((folder / "camera_image").glob("*.parquet")):
            try:
                images = waymo_parquet.moments_of(file)
            except (OSError, ValueError) as error:
                raise SourceError(f"{self.title}: {file} is damaged: {error}.") from error
            numbers = {time: number for number, time in enumerate(sorted({time for time, _ in images}))}
            for time, camera in images:
                if camera in CAMERA_NAMES:
                    yield _ref(file.stem, numbers[time], CAMERA_NAMES[camera], {"folder": folder.name, "time": time})

    def read(self, ref: FrameRef) -> Frame:
        """One image with the returns that it sees, see [`Source.read`]."""
        if "time" in ref.files:
            folder, segment, time = self.root / ref.files["folder"], ref.scene, ref.files["time"]
            name = f"{folder}, segment {segment} at {time}"
            with frame_errors(name):
                moment = self._moments.get((segment, time), lambda: _parquet_moment(folder, segment, time))
        else:
            file, place = self.root / ref.files["file"], ref.files["place"]
            name = f"{file}, record {ref.order}"
            with frame_errors(name):
                moment = self._moments.get((file, place), lambda: _record_moment(file, *place))
        number = next(key for key, camera in CAMERA_NAMES.items() if camera == ref.camera)
        if number not in moment.shots or number not in moment.cameras:
            raise FrameError(f"{name}: no image or no calibration of the camera {ref.camera}.")
        if not moment.points.size:
            raise FrameError(f"{name}: no lidar returns: this copy of the data has its lidar left out.")
        camera, shot = moment.cameras[number], moment.shots[number]
        size = (camera.width, camera.height)
        _check_image(shot.image, size, f"{name}, {ref.camera}")
        depth = depth_map(*project_shot(moment.points, camera, shot), size)
        return Frame(ref, shot.image, size, depth, DEPTH_SCALE, camera.pinhole.intrinsics)


def _ref(segment: str, number: int, camera: str, files: dict[str, Any]) -> FrameRef:
    return FrameRef(f"{segment}/{number:03d}/{camera}", segment, camera, number, files)


def _record_moment(file: Path, offset: int, length: int) -> Moment:
    frame = read_message(read_record(file, offset, length))
    return Moment(waymo_records.cameras_of(frame), waymo_records.shots_of(frame), waymo_records.points_of(frame))


def _parquet_moment(folder: Path, segment: str, time: int) -> Moment:
    return Moment(
        waymo_parquet.cameras_of(folder, segment),
        waymo_parquet.shots_of(folder, segment, time),
        waymo_parquet.points_of(folder, segment, time),
    )


def _check_image(image: bytes, size: tuple[int, int], name: str) -> None:
    from ...processing.images_depthvlm import open_raster

    with frame_errors(name), open_raster(image, name) as opened:
        found = opened.size
    if found != size:
        raise FrameError(f"{name}: {found[0]}x{found[1]} pixels, but its calibration says {size[0]}x{size[1]}.")
    if b"\xff\xd9" not in image[-64:]:
        raise FrameError(f"{name}: the image is truncated: its JPEG has no end marker.")
