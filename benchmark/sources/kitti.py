"""KITTI: annotated depth, the lidar of the object benchmark, and the raw sweeps of Eigen's split."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import (
    expect_any_folder,
    expect_folders,
    frame_errors,
    read_depth_png,
    read_image,
    read_points,
    read_split_list,
    read_text,
    split_folder,
)
from .frames import Frame, FrameError, FrameRef, Intrinsics, Source, SourceError
from .projection import DEPTH_SCALE, PinholeCamera, RigidTransform, depth_map, from_opencv, lidar_depth_map

OFFICIAL_SPLITS = {"train": "train", "test": "val"}

_DRIVE = re.compile(r"(\d{4}_\d{2}_\d{2})_drive_\d{4}_sync")
_PATH = re.compile(r"(image_0[23])/(?:data/)?(\d{10})\.")
_COLUMNS = re.compile(r"\s(\d{1,10})\s+([lr])$")
_SIDES = {"l": "image_02", "r": "image_03"}
_LIDAR_CALIBRATION = "calib_velo_to_cam.txt"
_ANNOTATED = "<drive>/proj_depth/groundtruth/image_02/<number>.png"


class Kitti(Source):
    """The depth-prediction benchmark as downloaded (`data_depth_annotated.zip`), beside the raw data it belongs to.

        train|val/<date>_drive_<nnnn>_sync/proj_depth/groundtruth/image_02|image_03/<number>.png
        <date>/<date>_drive_<nnnn>_sync/image_02|image_03/data/<number>.png
        <date>/calib_cam_to_cam.txt

    `train` is the official train, `test` the official val. Depth is the official, improved one (11 sweeps accumulated;
    uint16 / 256 m, 0 where there is none); "kitti-lidar" reads the single sweeps, which are another set.
    The images are rectified; intrinsics are those of `P_rect_02` or `P_rect_03`.

    The object benchmark is read too, where the root has its layout: `training/image_2`, `training/velodyne`,
    `training/calib`, whose sweeps are projected by `P2 R0_rect Tr_velo_to_cam`. It has no official val split: all of it
    is `train`.

    Args:
        root: Folder of the download.
        split_files: For other splits, such as Eigen's, a text file for "train", "test" or both; a split without a file
            is then refused. A line names one image, as in the lists of Eigen's split in use: by its paths, or
            `<date>/<drive> <number> l`; in the object layout, by its number. Frames of the list that the benchmark has
            not annotated are left out, with a warning that counts them (45 of Eigen's 697).
    """

    name = "kitti"
    title = "KITTI"
    depth_range = (0.001, 80.0)
    sparse = True
    licence = "CC BY-NC-SA 3.0"
    homepage = "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction"

    def __init__(self, root: str | Path, split_files: Mapping[str, str | Path] | None = None):
        super().__init__(root)
        expect_any_folder(self, ["train", "val", "training/velodyne"], _ANNOTATED)
        self.is_object = (self.root / "training" / "velodyne").is_dir()
        self.split_files = checked_split_files(self, split_files)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        if self.split_files and split not in self.split_files:
            raise SourceError(f"{self.title}: split files were given, but none for the {split} split.")
        listed = read_split_list(self, self.split_files[split]) if self.split_files else None
        if self.is_object:
            return self._object_refs(split, listed)
        if listed is not None:
            missing = "annotated depth in train/ or val/ of"
            return listed_frames(self, self.split_files[split], listed, self._annotated, missing)
        folder = split_folder(self, split, OFFICIAL_SPLITS, _ANNOTATED)
        maps = (file for camera in _SIDES.values() for file in folder.glob(f"*/proj_depth/groundtruth/{camera}/*.png"))
        return [_ref(file.parts[-5], file.stem, file.parts[-2], folder.name) for file in maps]

    def _annotated(self, drive: str, number: str, camera: str) -> FrameRef | None:
        refs = [_ref(drive, number, camera, folder) for folder in OFFICIAL_SPLITS.values()]
        return next((ref for ref in refs if self._depth_file(ref).is_file()), None)

    def _depth_file(self, ref: FrameRef) -> Path:
        folder, number = self.root / ref.files / ref.scene, ref.id.split("/")[1]
        return folder / "proj_depth" / "groundtruth" / ref.camera / f"{number}.png"

    def _object_refs(self, split: str, listed: list[str] | None) -> Iterator[FrameRef]:
        if listed is None and split != "train":
            raise SourceError(f"{self.title}: the object benchmark has no official {split} split: pass `split_files`.")
        names = listed or [file.stem for file in (self.root / "training" / "image_2").glob("*.png")]
        for name in names:
            yield FrameRef(f"object/{name}", name, "image_2", int(name) if name.isdecimal() else 0)

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with its depth, see [`Source.read`]."""
        if self.is_object:
            return self._read_object(ref)
        image, size = read_image(_image_file(self.root, ref))
        depth_file = self._depth_file(ref)
        depth = read_depth_png(depth_file)
        if (depth.shape[1], depth.shape[0]) != size:
            raise FrameError(
                f"{depth_file}: {depth.shape[1]}x{depth.shape[0]} pixels, its image has {size[0]}x{size[1]}."
            )
        calibration = self.root / ref.scene[:10] / "calib_cam_to_cam.txt"
        inner, _ = split_projection(calibration_of(calibration), f"P_rect_{ref.camera[-2:]}", calibration)
        return Frame(ref, image, size, depth, DEPTH_SCALE, from_opencv(inner))

    def _read_object(self, ref: FrameRef) -> Frame:
        """Project a sweep, which the rig synchronised with the image, to the left colour camera."""
        folder, name = self.root / "training", ref.id.rpartition("/")[2]
        image, size = read_image(folder / "image_2" / f"{name}.png")
        calibration_file = folder / "calib" / f"{name}.txt"
        calibration = calibration_of(calibration_file)
        (fx, fy, cx, cy), camera_from_rectified = split_projection(calibration, "P2", calibration_file)
        with frame_errors(calibration_file):
            rectified = _rotation(calibration["R0_rect"]) @ RigidTransform.from_matrix(calibration["Tr_velo_to_cam"])
        points = read_points(folder / "velodyne" / f"{name}.bin", 4)[:, :3]
        camera = PinholeCamera(fx, fy, cx, cy, *size)
        depth = lidar_depth_map(points, camera_from_rectified @ rectified, camera)
        return Frame(ref, image, size, depth, DEPTH_SCALE, camera.intrinsics)


class KittiLidar(Source):
    """The raw data of KITTI, one Velodyne sweep an image: the truth before 2018.

        <date>/<date>_drive_<nnnn>_sync/image_02|image_03/data/<number>.png
        <date>/<date>_drive_<nnnn>_sync/velodyne_points/data/<number>.bin
        <date>/calib_cam_to_cam.txt, calib_velo_to_cam.txt

    This set differs from "kitti", whose improved ground truth accumulates 11 sweeps and leaves out what the stereo
    images contradict: a number on one is not comparable with a number on the other. Depth is made by the rule of the
    published evaluations (`generate_depth_map` of Godard et al. 2017, after KITTI's MATLAB code): points ahead of the
    sensor, z in the rectified camera, the pixel `round(u) - 1, round(v) - 1`, the nearest of several in one. It is
    stored as uint16 / 256 m.

    The raw data has no official split.

    Args:
        root: Folder of the download.
        split_files: A text file for "train", "test" or both, such as Eigen's; lines as "kitti" reads them. Frames
            without a sweep are left out, with a warning that counts them.
    """

    name = "kitti-lidar"
    title = "KITTI (lidar)"
    depth_range = (0.001, 80.0)
    sparse = True
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

    def _frames(self, split: str) -> Iterable[FrameRef]:
        if split not in self.split_files:
            raise SourceError(
                f"{self.title}: the raw data has no official {split} split: name a list, such as Eigen's, by "
                f'--option \'split_files={{"{split}": "eigen_{split}_files.txt"}}\'.'
            )
        file = self.split_files[split]
        return listed_frames(self, file, read_split_list(self, file), self._swept, "sweep in")

    def _swept(self, drive: str, number: str, camera: str) -> FrameRef | None:
        ref = _ref(drive, number, camera)
        return ref if self._sweep_file(ref).is_file() else None

    def _sweep_file(self, ref: FrameRef) -> Path:
        return self.root / ref.scene[:10] / ref.scene / "velodyne_points" / "data" / f"{ref.id.split('/')[1]}.bin"

    def read(self, ref: FrameRef) -> Frame:
        """Read one image with the depth of its sweep, see [`Source.read`]."""
        image, size = read_image(_image_file(self.root, ref))
        folder = self.root / ref.scene[:10]
        calibration_file, lidar_file = folder / "calib_cam_to_cam.txt", folder / _LIDAR_CALIBRATION
        calibration, lidar = calibration_of(calibration_file), calibration_of(lidar_file)
        projection = f"P_rect_{ref.camera[-2:]}"
        (fx, fy, cx, cy), camera_from_rectified = split_projection(calibration, projection, calibration_file)
        with frame_errors(calibration_file):
            rectified = _rotation(calibration["R_rect_00"])
        with frame_errors(lidar_file):
            to_camera = RigidTransform.from_matrix(np.column_stack([lidar["R"].reshape(3, 3), lidar["T"].reshape(3)]))
        points = read_points(self._sweep_file(ref), 4)[:, :3]
        seen = camera_from_rectified @ rectified @ to_camera
        pinhole = PinholeCamera(fx, fy, cx, cy, *size)
        columns, rows, metres = pinhole.project(seen.apply(points[points[:, 0] >= 0]))
        depth = depth_map(np.rint(columns) - 1, np.rint(rows) - 1, metres, size)
        return Frame(ref, image, size, depth, DEPTH_SCALE, pinhole.intrinsics)


def checked_split_files(source: Source, split_files: Mapping[str, str | Path] | None) -> dict[str, Path]:
    """Return the split files of a reader by split. Raises SourceError if they are no mapping, or a split is unknown."""
    if not isinstance(split_files or {}, Mapping):
        raise SourceError(
            f'{source.title}: split_files is a file for each split, such as {{"test": "eigen.txt"}}, got '
            f"{split_files!r}."
        )
    for split in split_files or {}:
        source.check_split(split)
    return {split: Path(file) for split, file in (split_files or {}).items()}


def listed_frames(
    source: Source,
    file: Path,
    lines: list[str],
    find: Callable[[str, str, str], FrameRef | None],
    missing: str,
) -> Iterator[FrameRef]:
    """Find the frames that the lines of a split file name.

    Args:
        source: Reader, for its messages.
        file: Split file.
        lines: Its lines.
        find: Returns the frame of a drive, number and camera folder, or None; those are counted in a warning.
        missing: The file that a missing frame lacks in the root, for that warning.

    Raises:
        SourceError: A line names no drive, frame and camera.
    """
    absent = 0
    for line in lines:
        drive, path, columns = _DRIVE.search(line), _PATH.search(line), _COLUMNS.search(line)
        if drive is not None and path is not None:
            camera, number = path[1], path[2]
        elif drive is not None and columns is not None:
            camera, number = _SIDES[columns[2]], columns[1].zfill(10)
        else:
            raise SourceError(f"{source.title}: {file} names no drive, frame and camera in its line {line!r}.")
        ref = find(drive.group(), number, camera)
        if ref is None:
            absent += 1
        else:
            yield ref
    if absent:
        warnings.warn(
            f"{source.title}: {absent} of the {len(lines)} frames in {file} have no {missing} {source.root}; they are "
            "left out.",
            stacklevel=3,
        )


def split_projection(
    calibration: Mapping[str, NDArray[np.float64]], key: str, file: Path
) -> tuple[Intrinsics, RigidTransform]:
    """Split a rectified projection matrix `K [I | t]` into fx, fy, cx, cy in pixels and the shift from camera 0.

    Raises:
        FrameError: No such matrix, or not of that form.
    """
    with frame_errors(file):
        matrix = calibration[key].reshape(3, 4)
        (fx, skew, cx), (zero, fy, cy), last = matrix[:, :3].tolist()
        if skew or zero or last != [0, 0, 1] or fx <= 0 or fy <= 0:
            raise ValueError(f"{key} is not a rectified projection: {matrix.tolist()}")
        shift = np.linalg.solve(matrix[:, :3], matrix[:, 3]).astype(np.float64)
    return (fx, fy, cx, cy), RigidTransform(np.eye(3), shift)


def _ref(drive: str, number: str, camera: str, folder: str = "") -> FrameRef:
    return FrameRef(f"{drive}/{number}/{camera}", drive, camera, int(number), folder)


def _image_file(root: Path, ref: FrameRef) -> Path:
    drive, number, camera = ref.id.split("/")
    return root / drive[:10] / drive / camera / "data" / f"{number}.png"


def _rotation(matrix: NDArray[np.float64]) -> RigidTransform:
    return RigidTransform.from_matrix(np.column_stack([matrix.reshape(3, 3), np.zeros(3)]))


def calibration_of(file: Path) -> dict[str, NDArray[np.float64]]:
    """Return the lines `name: numbers` of a calibration file, without lines of words such as a date."""
    result = {}
    for line in read_text(file).splitlines():
        name, _, values = line.partition(":")
        try:
            result[name.strip()] = np.array([float(value) for value in values.split()])
        except ValueError:
            continue
    return result
