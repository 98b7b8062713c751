"""KITTI's raw sweeps as ground truth: the 697 test images of Eigen's split, as evaluated before 2018."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .files import expect_folders, expect_split, read_image, read_split_list, sorted_refs
from .frames import Frame, FrameRef, Source, SourceError
from .kitti import calibration_of, checked_split_files, listed_images, split_projection
from .lidar_files import frame_errors, read_points
from .projection import DEPTH_SCALE, PinholeCamera, RigidTransform, depth_map

_LIDAR_CALIBRATION = "calib_velo_to_cam.txt"


class KittiLidar(Source):
    """
    The raw data of KITTI, one Velodyne sweep an image:

        <date>/<date>_drive_<nnnn>_sync/image_02|image_03/data/<number>.png
        <date>/<date>_drive_<nnnn>_sync/velodyne_points/data/<number>.bin
        <date>/calib_cam_to_cam.txt, calib_velo_to_cam.txt

    This is another set than "kitti", whose improved ground truth accumulates 11 sweeps and leaves out what the stereo
    images contradict: a number on one is not comparable with a number on the other. Depth is made by the rule of the
    published evaluations (`generate_depth_map` of Godard et al. 2017, after KITTI's MATLAB code): points ahead of the
    sensor, z in the rectified camera, the pixel `round(u) - 1, round(v) - 1`, the nearest of several in one. It is
    stored as uint16 / 256 m.

    The raw data has no official split.

    Args:
        root: folder of the download.
        split_files: a text file for "train", "test" or both, such as Eigen's; lines as "kitti" reads them. Frames
            without a sweep are left out, with a warning that counts them.
    """

    name = "kitti-lidar"
    title = "KITTI (lidar)"
    splits = ("train", "test")
    depth_range = (0.001, 80.0)
    sparse = True
    extra = "bench"
    licence = "CC BY-NC-SA 3.0"
    homepage = "https://www.cvlibs.net/datasets/kitti/raw_data.php"

    def __init__(self, root: str | Path, split_files: Mapping[str, str | Path] | None = None):
        super().__init__(root)
        expect_folders(self)
        if not any(self.root.glob(f"*/{_LIDAR_CALIBRATION}")):
            raise SourceError(
                f"{self.title}: expected <date>/{_LIDAR_CALIBRATION} in {self.root}, the root of KITTI's raw data."
            )
        self.split_files = checked_split_files(self, split_files)

    def index(self, split: str) -> list[FrameRef]:
        """The listed frames that have a sweep, see [`Source.index`]."""
        expect_split(self, split)
        if split not in self.split_files:
            raise SourceError(
                f"{self.title}: the raw data has no official {split} split: name a list, such as Eigen's, by "
                f'--option \'split_files={{"{split}": "eigen_{split}_files.txt"}}\'.'
            )
        file = self.split_files[split]
        return sorted_refs(self, split, self._refs(file, read_split_list(self, file)))

    def _refs(self, file: Path, lines: list[str]) -> Iterator[FrameRef]:
        absent = 0
        for drive, camera, number in listed_images(self, file, lines):
            if (self.root / drive[:10] / drive / "velodyne_points" / "data" / f"{number}.bin").is_file():
                yield FrameRef(f"{drive}/{number}/{camera}", drive, camera, int(number))
            else:
                absent += 1
        if absent:
            warnings.warn(
                f"{self.title}: {absent} of the {len(lines)} frames in {file} have no sweep in {self.root}; they are "
                "left out.",
                stacklevel=2,
            )

    def read(self, ref: FrameRef) -> Frame:
        """One image with the depth of its sweep, see [`Source.read`]."""
        drive, number, camera = ref.id.split("/")
        folder = self.root / drive[:10]
        image, size = read_image(folder / drive / camera / "data" / f"{number}.png")
        calibration_file, lidar_file = folder / "calib_cam_to_cam.txt", folder / _LIDAR_CALIBRATION
        calibration, lidar = calibration_of(calibration_file), calibration_of(lidar_file)
        (fx, fy, cx, cy), camera_from_rectified = split_projection(
            calibration, f"P_rect_{camera[-2:]}", calibration_file
        )
        with frame_errors(calibration_file):
            rectify = np.eye(4)
            rectify[:3, :3] = calibration["R_rect_00"].reshape(3, 3)
            rectified = RigidTransform.from_matrix(rectify)
        with frame_errors(lidar_file):
            to_camera = RigidTransform.from_matrix(np.column_stack([lidar["R"].reshape(3, 3), lidar["T"].reshape(3)]))
        points = read_points(folder / drive / "velodyne_points" / "data" / f"{number}.bin", 4)[:, :3]
        seen = camera_from_rectified @ rectified @ to_camera
        pinhole = PinholeCamera(fx, fy, cx, cy, *size)
        columns, rows, metres = pinhole.project(seen.apply(points[points[:, 0] >= 0]))
        depth = depth_map(np.rint(columns) - 1, np.rint(rows) - 1, metres, size)
        return Frame(ref, image, size, depth, DEPTH_SCALE, pinhole.intrinsics)
