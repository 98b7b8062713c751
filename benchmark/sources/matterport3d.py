"""Matterport3D: undistorted views of a tripod's three cameras."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .files import (
    downloaded_scenes,
    expect_folders,
    find_split_file,
    pinhole,
    read_depth_png,
    read_image,
    read_split_list,
)
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import from_opencv

_PARAMETERS = "undistorted_camera_parameters"


class Matterport3D(Source):
    """Matterport3D as downloaded, its archives unpacked into one folder per house.

    The houses (github.com/niessner/Matterport, `data_organization.md`) are in the root, its `scans/` or `v1/scans/`:

        <house>/undistorted_color_images/<panorama>_i<camera>_<yaw>.jpg     1280x1024
        <house>/undistorted_depth_images/<panorama>_d<camera>_<yaw>.png     uint16, / 4000 metres, 0: none
        <house>/undistorted_camera_parameters/<house>.conf
        scenes_train.txt, scenes_test.txt       of that repository's tasks/benchmark/, in the root or in splits/

    `train` is the official train (61 houses), `test` the official test (18); val is left out. The `.conf` counts rows
    from the bottom, so cy is height - 1 - cy from the top: 509.202 of the first camera of one house is 513.798 there,
    as `matterport_camera_intrinsics` says too, with the first pixel at (0, 0).
    """

    name = "matterport3d"
    title = "Matterport3D"
    depth_range = (0.01, 10.0)
    licence = "Matterport3D terms of use, academic"
    homepage = "https://niessner.github.io/Matterport/"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self)
        nested = [folder for folder in ("v1/scans", "scans") if (self.root / folder).is_dir()]
        self._houses = nested[0] if nested else "."

    def _frames(self, split: str) -> Iterable[FrameRef]:
        hint = "It is in tasks/benchmark/ of github.com/niessner/Matterport."
        path = find_split_file(self, [f"scenes_{split}.txt"], dict.fromkeys((".", "splits", self._houses)), hint)
        houses = read_split_list(self, path)
        found = downloaded_scenes(self, houses, lambda house: self.root / self._houses / house / _PARAMETERS)
        return [ref for house in found for ref in self._house(house)]

    def read(self, ref: FrameRef) -> Frame:
        """Read one image, see [`Source.read`]."""
        image_name, depth_name, (fx, fy, cx, from_bottom) = ref.files
        folder = self.root / self._houses / ref.scene
        image, image_size = read_image(folder / "undistorted_color_images" / image_name)
        depth = read_depth_png(folder / "undistorted_depth_images" / depth_name)
        return Frame(ref, image, image_size, depth, 4000.0, from_opencv((fx, fy, cx, image_size[1] - 1 - from_bottom)))

    def _house(self, house: str) -> list[FrameRef]:
        path = self.root / self._houses / house / _PARAMETERS / f"{house}.conf"
        if not path.is_file():
            raise SourceError(f"{self.title}: the camera parameters {path} are missing.")
        intrinsics, refs = None, list[FrameRef]()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            try:
                if words[:1] == ["intrinsics_matrix"]:
                    intrinsics = pinhole([float(word) for word in words[1:]], path)
                elif words[:1] == ["scan"]:
                    if intrinsics is None:
                        raise FrameError("an image before the first intrinsics_matrix")
                    depth, image = words[1:3]
                    panorama, kind, yaw = Path(depth).stem.rsplit("_", 2)
                    camera = kind.removeprefix("d")
                    frame_id = f"{house}/{panorama}_{camera}_{yaw}"
                    refs.append(FrameRef(frame_id, house, camera, len(refs), (image, depth, intrinsics)))
            except (ValueError, FrameError) as error:
                raise SourceError(f"{self.title}: line {number} of {path} cannot be read: {error}.") from error
        return refs
