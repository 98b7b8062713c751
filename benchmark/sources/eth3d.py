"""ETH3D: high-resolution photographs with laser-scanned depth."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import downloaded_scenes, expect_folders, read_bytes, read_image
from .frames import Frame, FrameError, FrameRef, Source, SourceError

# fmt: off
TRAINING_SCENES = (
    "courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground", "relief",
    "relief_2", "terrace", "terrains",
)
# fmt: on
"""The high-resolution multi-view scenes whose ground truth is public: 454 images."""

_CALIBRATION = "dslr_calibration_jpg"


class ETH3D(Source):
    """ETH3D's high-resolution multi-view training set as downloaded.

    The archives `multi_view_training_dslr_jpg` and `*_dslr_depth` are unpacked over each other:

        <scene>/images/dslr_images/DSC_0286.JPG                 6048x4032, as the lens distorts it
        <scene>/ground_truth_depth/dslr_images/DSC_0286.JPG     float32 metres, little-endian, row by row, inf: none
        <scene>/dslr_calibration_jpg/cameras.txt, images.txt    COLMAP, THIN_PRISM_FISHEYE

    `test` is that whole official training set, 13 scenes with 454 images; the truth of the official test set is not
    public. The depth maps were rendered into the distorted photographs, so those are the images here: over the
    undistorted ones, which are of another size, the maps would be shifted by up to tens of pixels. The intrinsics are
    fx, fy, cx, cy of the distorted camera, exact at the centre; its distortion is not part of a [`Frame`].
    """

    name = "eth3d"
    title = "ETH3D"
    splits = ("test",)
    depth_range = (0.01, 50.0)
    licence = "Creative Commons; see the dataset's page"
    homepage = "https://www.eth3d.net/datasets"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self)
        if not any((self.root / scene / _CALIBRATION).is_dir() for scene in TRAINING_SCENES):
            raise SourceError(
                f"{self.title}: expected folders like {TRAINING_SCENES[0]}/{_CALIBRATION}/ in {self.root}. Unpack "
                "multi_view_training_dslr_jpg and the scenes' dslr_depth archives into it."
            )

    def _frames(self, split: str) -> Iterable[FrameRef]:
        scenes = downloaded_scenes(self, TRAINING_SCENES, lambda scene: self.root / scene / _CALIBRATION)
        return [ref for scene in scenes for ref in self._scene(scene)]

    def read(self, ref: FrameRef) -> Frame:
        """Read one image, see [`Source.read`]."""
        name, (width, height, fx, fy, cx, cy) = ref.files
        image, image_size = read_image(self.root / ref.scene / "images" / name, (width, height), "camera")
        depth = _read_raster(self.root / ref.scene / "ground_truth_depth" / name, width, height)
        return Frame(ref, image, image_size, depth, 1.0, (fx, fy, cx, cy))

    def _scene(self, scene: str) -> list[FrameRef]:
        cameras = self._cameras(scene)
        refs: list[FrameRef] = []
        path = self.root / scene / _CALIBRATION / "images.txt"
        lines = iter(self._lines(path))
        for line in lines:
            if not line or line.startswith("#"):
                continue
            # IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; the line after it lists keypoints and may be empty.
            words = line.split()
            next(lines, None)
            if len(words) != 10 or words[8] not in cameras:
                raise SourceError(f"{self.title}: {path}: no known camera in {line!r}.")
            stem = Path(words[9]).stem
            number = re.search(r"\d+$", stem)
            order = int(number.group()) if number else len(refs)
            refs.append(FrameRef(f"{scene}/{stem}", scene, "", order, (words[9], cameras[words[8]])))
        return refs

    def _cameras(self, scene: str) -> dict[str, tuple[float, ...]]:
        """Return width, height, fx, fy, cx, cy by CAMERA_ID."""
        cameras: dict[str, tuple[float, ...]] = {}
        path = self.root / scene / _CALIBRATION / "cameras.txt"
        for line in self._lines(path):
            if not line or line.startswith("#"):
                continue
            try:
                identifier, _, width, height, fx, fy, cx, cy, *_ = line.split()
                cameras[identifier] = (int(width), int(height), float(fx), float(fy), float(cx), float(cy))
            except ValueError as error:
                raise SourceError(f"{self.title}: {path}: not a camera: {line!r}.") from error
        return cameras

    def _lines(self, path: Path) -> list[str]:
        if not path.is_file():
            raise SourceError(f"{self.title}: the calibration file {path} is missing.")
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]


def _read_raster(path: Path, width: int, height: int) -> NDArray[np.float32]:
    """Read metres `(height, width)`, 0 where there is none."""
    data = read_bytes(path)
    wanted = 4 * width * height
    if len(data) != wanted:
        raise FrameError(
            f"{path}: a raster of {width}x{height} float32 values has {wanted} bytes, the file has {len(data)}. It may "
            "be truncated, or belong to another image."
        )
    depth = np.frombuffer(data, "<f4").reshape(height, width)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32, copy=False)
