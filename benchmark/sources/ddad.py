"""DDAD: six global-shutter cameras with aggregated Luminar scans, in TRI's DGP format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...processing.depth_maps_depthvlm import load_array
from .files import expect_folders, frame_errors, read_image, read_json, read_table
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import DEPTH_SCALE, PinholeCamera, RigidTransform, lidar_depth_map

# Keys of `scene_splits` in DGP's dataset file.
OFFICIAL_SPLITS = {"train": "0", "test": "1"}

_ROTATION = ("qw", "qx", "qy", "qz")


class Ddad(Source):
    """DDAD as downloaded (github.com/TRI-ML/DDAD, `DDAD.tar`), or any other dataset in the DGP format of scenes.

        ddad.json                                            (or scene_dataset*.json) scenes of each split
        <scene>/scene_<hash>.json                            samples, and the pose of every datum at its own time
        <scene>/calibration/<hash>.json                      intrinsics
        <scene>/rgb/<camera>/<time>.jpg
        <scene>/point_cloud/LIDAR/<time>.npz                 `data`: x, y, z, intensity; metres, lidar frame

    `train` is the official train (150 scenes), `test` the official val (50 scenes). An image takes the point cloud of
    its own sample. Both have a pose (sensor to world) at their own times, which compensates the motion between them;
    points have no times of their own. The cameras are pinholes. Annotations are not read.
    """

    name = "ddad"
    title = "DDAD"
    depth_range = (0.05, 120.0)
    sparse = True
    licence = "CC BY-NC-SA 4.0"
    homepage = "https://github.com/TRI-ML/DDAD"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self)
        found = [self.root / "ddad.json"] if (self.root / "ddad.json").is_file() else []
        found = found or sorted(self.root.glob("scene_dataset*.json"))
        if len(found) != 1:
            raise SourceError(
                f"{self.title}: expected ddad.json in {self.root}, the folder ddad_train_val/ of the download, or one "
                f"scene_dataset*.json, but there are {len(found)} such files."
            )
        self.dataset_file = found[0]
        # One calibration serves a scene, one sweep all cameras of its sample.
        self._calibration, self._points = lru_cache(8)(read_json), lru_cache(1)(read_point_cloud)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        dataset = read_table(self, self.dataset_file)
        try:
            scenes = dataset["scene_splits"][OFFICIAL_SPLITS[split]]["filenames"]
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"{self.title}: {self.dataset_file} lists no scenes of the {split} split: it has no {error} of "
                f"scene_splits/{OFFICIAL_SPLITS[split]}/filenames."
            ) from error
        return [ref for scene in scenes for ref in self._scene_refs(self.root / scene)]

    def _scene_refs(self, file: Path) -> Iterator[FrameRef]:
        scene, folder = read_table(self, file), file.parent.relative_to(self.root).as_posix()
        try:
            data = {entry["key"]: entry for entry in scene["data"]}
            for number, sample in enumerate(scene["samples"]):
                datums = [data[key] for key in sample["datum_keys"]]
                clouds = [entry["datum"]["point_cloud"] for entry in datums if "point_cloud" in entry["datum"]]
                calibration = f"{folder}/calibration/{sample['calibration_key']}.json"
                for entry in datums:
                    if "image" not in entry["datum"]:
                        continue
                    image, camera = entry["datum"]["image"], entry["id"]["name"]
                    name = f"{folder}/{image['filename']}"
                    files = {"image": name, "pose": image["pose"], "calibration": calibration}
                    if clouds:
                        files |= {"lidar": f"{folder}/{clouds[0]['filename']}", "lidar_pose": clouds[0]["pose"]}
                    yield FrameRef(f"{folder}/{number:05d}/{camera}", folder, camera, number, files)
        except (KeyError, TypeError) as error:
            raise SourceError(f"{self.title}: {file} is not a scene of the DGP format: it has no {error}.") from error

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with the projected points of its sample, see [`Source.read`]."""
        image_file, calibration_file = self.root / ref.files["image"], self.root / ref.files["calibration"]
        if "lidar" not in ref.files:
            raise FrameError(f"{image_file}: its sample has no point cloud.")
        calibration = self._calibration(calibration_file)
        image, (width, height) = read_image(image_file)
        with frame_errors(calibration_file):
            inner = calibration["intrinsics"][calibration["names"].index(ref.camera)]
            if inner["skew"] != 0:
                raise ValueError(f"{ref.camera} has a skew of {inner['skew']}, a pinhole camera has none")
            fx, fy, cx, cy = (float(inner[key]) for key in ("fx", "fy", "cx", "cy"))
        camera = PinholeCamera(fx, fy, cx, cy, width, height)
        with frame_errors(f"{image_file}, its pose"):
            to_camera = _pose(ref.files["pose"]).inverse() @ _pose(ref.files["lidar_pose"])
        depth = lidar_depth_map(self._points(self.root / ref.files["lidar"]), to_camera, camera)
        return Frame(ref, image, (width, height), depth, DEPTH_SCALE, camera.intrinsics)


def read_point_cloud(file: Path) -> NDArray[np.float64]:
    """Return the points `(n, 3)` of an `.npz` in metres, lidar frame. Raises FrameError if truncated."""
    with frame_errors(file):
        return np.asarray(load_array(file, "data")[:, :3], np.float64)


def _pose(pose: Mapping[str, Mapping[str, float]]) -> RigidTransform:
    return RigidTransform.from_quaternion(
        [pose["rotation"][key] for key in _ROTATION], [pose["translation"][key] for key in "xyz"]
    )
