"""nuScenes: six cameras and the lidar of every key frame, from its tables, without the devkit (it pins numpy 1)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .files import expect_any_folder, frame_errors, read_image, read_points, read_table
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import DEPTH_SCALE, PinholeCamera, RigidTransform, depth_map

VERSIONS = ("v1.0-trainval", "v1.0-mini")

# The 150 scenes of the official val split, by their numbers (nuscenes-devkit, utils/splits.py). The other 700 of
# v1.0-trainval are its train split.
VAL_SCENES = (
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)

# The mini set has a split of its own, mini_val, in which scenes of the large set's val are for training.
MINI_VAL_SCENES = "103 916"

LIDAR = "LIDAR_TOP"


class NuScenes(Source):
    """nuScenes as downloaded (nuscenes.org), one of its two annotated versions.

        v1.0-trainval/*.json or v1.0-mini/*.json      tables: scene, sample, sample_data, calibrated_sensor, ...
        samples/CAM_*/*.jpg
        samples/LIDAR_TOP/*.pcd.bin                   float32 x, y, z, intensity, ring; metres, lidar frame

    `train` is the official train (700 scenes; 8 of the mini set), `test` the official val (150; 2 of the mini set). Key
    frames are read, six images each, with the key frame's lidar sweep. Every file has a pose of the vehicle at its own
    time, which compensates the motion between lidar and camera. Points have no times of their own. All images come
    undistorted and rectified (nuscenes-devkit, docs/schema_nuscenes.md), so the cameras are pinholes.

    The official train has 28,130 key frames, 168,780 images; the paper's table 9 says 206 k of "the training splits"
    but not how they were chosen. No split of key frames gives that number (train and val have 204,894 images, which
    would train on what is tested), so a build takes all there are, and its manifest says so.

    Of the large version, `sample_data.json` and `ego_pose.json` have 2.6 million rows each: the index takes a minute
    and several GB of memory once, and reading frames needs none of it.

    Args:
        root: Folder of the download.
        version: Folder of the tables; by default the one that is there, the large one if both are.
        pixels: "nearest", the pixel that a point lies in, the centre of the first at (0, 0); or "floor", the rounding
            down of the paper's published extraction, half a pixel from it.
    """

    name = "nuscenes"
    title = "nuScenes"
    depth_range = (0.05, 80.0)
    sparse = True
    licence = "nuScenes terms of use, non-commercial"
    homepage = "https://www.nuscenes.org/nuscenes"

    def __init__(self, root: str | Path, version: str | None = None, pixels: str = "nearest"):
        super().__init__(root)
        if pixels not in ("nearest", "floor"):
            raise SourceError(f"{self.title}: pixels is nearest or floor, got {pixels!r}.")
        self.shift = 0.5 if pixels == "floor" else 0.0
        versions = VERSIONS if version is None else (version,)
        expect_any_folder(self, versions, "scene.json, sample.json, sample_data.json and the other tables")
        self.version = next(name for name in versions if (self.root / name).is_dir())
        self._points = lru_cache(1)(read_points)  # one sweep serves six images

    def _frames(self, split: str) -> Iterable[FrameRef]:
        val = scene_names(MINI_VAL_SCENES if self.version == "v1.0-mini" else VAL_SCENES)
        try:
            names = {row["name"] for row in self._table("scene")}
            return self._refs({name for name in names if (name in val) == (split == "test")})
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"{self.title}: the tables in {self.root / self.version} do not fit together: there is no {error}."
            ) from error

    def _refs(self, wanted: set[str]) -> list[FrameRef]:
        scenes = {row["token"]: row["name"] for row in self._table("scene") if row["name"] in wanted}
        samples = {
            row["token"]: scenes[row["scene_token"]] for row in self._table("sample") if row["scene_token"] in scenes
        }
        channels = {row["token"]: row["channel"] for row in self._table("sensor")}
        mounts = {row["token"]: row for row in self._table("calibrated_sensor")}

        images, sweeps = [], {}
        for row in self._table("sample_data"):
            if not row["is_key_frame"] or row["sample_token"] not in samples:
                continue
            channel = channels[mounts[row["calibrated_sensor_token"]]["sensor_token"]]
            if channel == LIDAR:
                sweeps[row["sample_token"]] = row
            elif channel.startswith("CAM_"):
                images.append((channel, row))
        moments = {row["ego_pose_token"] for row in (*sweeps.values(), *(row for _, row in images))}
        egos = {row["token"]: _pose(row) for row in self._table("ego_pose") if row["token"] in moments}

        refs = []
        for channel, row in images:
            scene, sweep = samples[row["sample_token"]], sweeps.get(row["sample_token"])
            mount = mounts[row["calibrated_sensor_token"]]
            files: dict[str, Any] = {
                "image": row["filename"],
                "size": (row["width"], row["height"]),
                "intrinsics": mount["camera_intrinsic"],
                "poses": (_pose(mount), egos[row["ego_pose_token"]]),
            }
            if sweep is not None:
                files["lidar"] = sweep["filename"]
                files["lidar_poses"] = (_pose(mounts[sweep["calibrated_sensor_token"]]), egos[sweep["ego_pose_token"]])
            moment = row["timestamp"] if sweep is None else sweep["timestamp"]
            refs.append(FrameRef(f"{scene}/{moment}/{channel}", scene, channel, row["timestamp"], files))
        return refs

    def _table(self, name: str) -> Iterable[dict[str, Any]]:
        rows: list[dict[str, Any]] = read_table(self, self.root / self.version / f"{name}.json")
        return rows

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with the projected sweep of its key frame, see [`Source.read`]."""
        image_file = self.root / ref.files["image"]
        if "lidar" not in ref.files:
            raise FrameError(f"{image_file}: its key frame has no {LIDAR}.")
        image, size = read_image(image_file, ref.files["size"], "row of sample_data.json")
        with frame_errors(f"{image_file}, its calibration"):
            (fx, skew, cx), (_, fy, cy), _ = ref.files["intrinsics"]
            if skew != 0:
                raise ValueError(f"its camera_intrinsic has a skew of {skew}")
            camera = PinholeCamera(fx, fy, cx, cy, *size)
            to_camera = _to_world(ref.files["poses"]).inverse() @ _to_world(ref.files["lidar_poses"])
        points = self._points(self.root / ref.files["lidar"], 5)[:, :3]
        columns, rows, metres = camera.project(to_camera.apply(points))
        depth = depth_map(columns - self.shift, rows - self.shift, metres, size)
        return Frame(ref, image, size, depth, DEPTH_SCALE, camera.intrinsics)


def scene_names(runs: str) -> set[str]:
    """Return the names of the scenes in runs of numbers, "3 12-18"."""
    ends = [(run.split("-")[0], run.split("-")[-1]) for run in runs.split()]
    return {f"scene-{number:04d}" for first, last in ends for number in range(int(first), int(last) + 1)}


def _pose(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    return row["rotation"], row["translation"]


def _to_world(poses: tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]) -> RigidTransform:
    """Chain a sensor's pose in the vehicle and the vehicle's in the world."""
    sensor, ego = (RigidTransform.from_quaternion(*pose) for pose in poses)
    return ego @ sensor
