"""KITTI: the annotated depth of the depth-prediction benchmark, and the lidar of the object benchmark."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import expect_split, read_depth_png, read_image, read_split_list, read_text, sorted_refs
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .lidar_files import expect_any_folder, frame_errors, read_points
from .projection import DEPTH_SCALE, PinholeCamera, RigidTransform, from_opencv, lidar_depth_map

OFFICIAL_SPLITS = {"train": "train", "test": "val"}

_DRIVE = re.compile(r"(\d{4}_\d{2}_\d{2})_drive_\d{4}_sync")
_PATH = re.compile(r"(image_0[23])/(?:data/)?(\d{10})\.")
_COLUMNS = re.compile(r"\s(\d{1,10})\s+([lr])$")
_SIDES = {"l": "image_02", "r": "image_03"}
_ANNOTATED = "<drive>/proj_depth/groundtruth/image_02/<number>.png"


class Kitti(Source):
    """
    The depth-prediction benchmark as downloaded (`data_depth_annotated.zip`), beside the raw data it belongs to:

        train|val/<date>_drive_<nnnn>_sync/proj_depth/groundtruth/image_02|image_03/<number>.png
        <date>/<date>_drive_<nnnn>_sync/image_02|image_03/data/<number>.png
        <date>/calib_cam_to_cam.txt

    `train` is the official train, `test` the official val. Depth is the official, improved one (11 sweeps accumulated;
    uint16 / 256 m, 0 where there is none); "kitti-lidar" reads the single sweeps, which are another set.
    The images are rectified; intrinsics are those of `P_rect_02` or `P_rect_03`.

    The object benchmark is read too, where the root has its layout: `training/image_2`, `training/velodyne`,
    `training/calib`; see [`read_object_frame`]. It has no official val split: all of it is `train`.

    Args:
        root: folder of the download.
        split_files: for other splits, such as Eigen's, a text file for "train", "test" or both; a split without a file
            is then refused. A line names one image, as in the lists of Eigen's split in use: by its paths, or
            `<date>/<drive> <number> l`; in the object layout, by its number. Frames of the list that the benchmark has
            not annotated are left out, with a warning that counts them (45 of Eigen's 697).
    """

    name = "kitti"
    title = "KITTI"
    splits = ("train", "test")
    depth_range = (0.001, 80.0)
    sparse = True
    extra = "bench"
    licence = "CC BY-NC-SA 3.0"
    homepage = "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction"

    def __init__(self, root: str | Path, split_files: Mapping[str, str | Path] | None = None):
        super().__init__(root)
        expect_any_folder(self, ["train", "val", "training/velodyne"], _ANNOTATED)
        self.is_object = (self.root / "training" / "velodyne").is_dir()
        self.split_files = checked_split_files(self, split_files)

    def index(self, split: str) -> list[FrameRef]:
        """All frames with annotated depth, or with a sweep in the object layout; see [`Source.index`]."""
        expect_split(self, split)
        if self.split_files and split not in self.split_files:
            raise SourceError(f"{self.title}: split files were given, but none for the {split} split.")
        listed = read_split_list(self, self.split_files[split]) if self.split_files else None
        if self.is_object:
            return sorted_refs(self, split, self._object_refs(split, listed))
        if listed is not None:
            return sorted_refs(self, split, self._listed_refs(self.split_files[split], listed))
        folder = self.root / OFFICIAL_SPLITS[split]
        if not folder.is_dir():
            raise SourceError(f"{self.title}: the {split} split needs {folder}, with the files {_ANNOTATED}.")
        maps = (file for camera in _SIDES.values() for file in folder.glob(f"*/proj_depth/groundtruth/{camera}/*.png"))
        return sorted_refs(self, split, (_ref(folder.name, file.parts[-5], file.parts[-2], file.stem) for file in maps))

    def _listed_refs(self, file: Path, lines: list[str]) -> Iterator[FrameRef]:
        absent = 0
        for drive, camera, number in listed_images(self, file, lines):
            refs = [_ref(folder, drive, camera, number) for folder in OFFICIAL_SPLITS.values()]
            there = [ref for ref in refs if (self.root / ref.files["depth"]).is_file()]
            absent += not there
            yield from there[:1]
        if absent:
            warnings.warn(
                f"{self.title}: {absent} of the {len(lines)} frames in {file} have no annotated depth in train/ or "
                f"val/ of {self.root}; they are left out.",
                stacklevel=2,
            )

    def _object_refs(self, split: str, listed: list[str] | None) -> Iterator[FrameRef]:
        if listed is None and split != "train":
            raise SourceError(f"{self.title}: the object benchmark has no official {split} split: pass `split_files`.")
        names = listed or [file.stem for file in (self.root / "training" / "image_2").glob("*.png")]
        for name in names:
            yield FrameRef(f"object/{name}", name, "image_2", int(name) if name.isdecimal() else 0)

    def read(self, ref: FrameRef) -> Frame:
        """One image with its depth, see [`Source.read`]."""
        if self.is_object:
            folder, name = self.root / "training", ref.id.rpartition("/")[2]
            files = (
                folder / "image_2" / f"{name}.png",
                folder / "velodyne" / f"{name}.bin",
                folder / "calib" / f"{name}.txt",
            )
            return read_object_frame(*files, ref)
        image, size = read_image(self.root / ref.files["image"])
        depth_file = self.root / ref.files["depth"]
        depth = read_depth_png(depth_file)
        if (depth.shape[1], depth.shape[0]) != size:
            raise FrameError(
                f"{depth_file}: {depth.shape[1]}x{depth.shape[0]} pixels, its image has {size[0]}x{size[1]}."
            )
        calibration = self.root / ref.files["calibration"]
        inner, _ = split_projection(calibration_of(calibration), f"P_rect_{ref.camera[-2:]}", calibration)
        return Frame(ref, image, size, depth, DEPTH_SCALE, from_opencv(inner))


def read_object_frame(image_file: Path, velodyne_file: Path, calibration_file: Path, ref: FrameRef) -> Frame:
    """
    A frame of the object benchmark: its sweep projected into the left colour camera by `P2 R0_rect Tr_velo_to_cam`.

    The sweep is synchronised with the image by the rig, and has no times of its own.

    Raises:
        FrameError: a file is missing, truncated or not what it should be.
    """
    image, size = read_image(image_file)
    calibration = calibration_of(calibration_file)
    (fx, fy, cx, cy), camera_from_rectified = split_projection(calibration, "P2", calibration_file)
    with frame_errors(calibration_file):
        rectify = np.eye(4)
        rectify[:3, :3] = calibration["R0_rect"].reshape(3, 3)
        rectified = RigidTransform.from_matrix(rectify) @ RigidTransform.from_matrix(calibration["Tr_velo_to_cam"])
    points = read_points(velodyne_file, 4)[:, :3]
    camera = PinholeCamera(fx, fy, cx, cy, *size)
    depth = lidar_depth_map(points, camera_from_rectified @ rectified, camera)
    return Frame(ref, image, size, depth, DEPTH_SCALE, camera.intrinsics)


def checked_split_files(source: Source, split_files: Mapping[str, str | Path] | None) -> dict[str, Path]:
    """The split files of a reader by split. Raises SourceError if they are no mapping, or a split is unknown."""
    if not isinstance(split_files or {}, Mapping):
        raise SourceError(
            f'{source.title}: split_files is a file for each split, such as {{"test": "eigen.txt"}}, got '
            f"{split_files!r}."
        )
    for split in split_files or {}:
        expect_split(source, split)
    return {split: Path(file) for split, file in (split_files or {}).items()}


def listed_images(source: Source, file: Path, lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Drive, camera folder and number of each line of a split file. Raises SourceError for a line without them."""
    for line in lines:
        drive, path, columns = _DRIVE.search(line), _PATH.search(line), _COLUMNS.search(line)
        if drive is not None and path is not None:
            yield drive.group(), path[1], path[2]
        elif drive is not None and columns is not None:
            yield drive.group(), _SIDES[columns[2]], columns[1].zfill(10)
        else:
            raise SourceError(f"{source.title}: {file} names no drive, frame and camera in its line {line!r}.")


def split_projection(
    calibration: Mapping[str, NDArray[np.float64]], key: str, file: Path
) -> tuple[tuple[float, float, float, float], RigidTransform]:
    """
    A rectified projection matrix `K [I | t]` as fx, fy, cx, cy in pixels and the shift from camera 0 to its own camera.

    Raises:
        FrameError: no such matrix, or not of that form.
    """
    with frame_errors(file):
        matrix = calibration[key].reshape(3, 4)
        (fx, skew, cx), (zero, fy, cy), last = matrix[:, :3].tolist()
        if skew or zero or last != [0, 0, 1] or fx <= 0 or fy <= 0:
            raise ValueError(f"{key} is not a rectified projection: {matrix.tolist()}")
        shift = np.linalg.solve(matrix[:, :3], matrix[:, 3]).astype(np.float64)
    return (fx, fy, cx, cy), RigidTransform(np.eye(3), shift)


def _ref(folder: str, drive: str, camera: str, number: str) -> FrameRef:
    date = drive[:10]
    files = {
        "image": f"{date}/{drive}/{camera}/data/{number}.png",
        "depth": f"{folder}/{drive}/proj_depth/groundtruth/{camera}/{number}.png",
        "calibration": f"{date}/calib_cam_to_cam.txt",
    }
    return FrameRef(f"{drive}/{number}/{camera}", drive, camera, int(number), files)


def calibration_of(file: Path) -> dict[str, NDArray[np.float64]]:
    """The lines `name: numbers` of a calibration file; a line of words, such as a date, is none of them."""
    result = {}
    for line in read_text(file).splitlines():
        name, _, values = line.partition(":")
        try:
            result[name.strip()] = np.array([float(value) for value in values.split()])
        except ValueError:
            continue
    return result
