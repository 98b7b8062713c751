"""iBims-1: a hundred laser-scanned indoor images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .files import (
    expect_folders,
    find_split_file,
    pinhole,
    read_depth_png,
    read_image,
    read_mask,
    read_numbers,
    read_split_list,
)
from .frames import Frame, FrameRef, Source
from .projection import from_opencv

_NAME = re.compile(r"(.+)_(\d+)")


class IBims1(Source):
    """iBims-1 as downloaded, `ibims1_core_raw.zip` unpacked and `imagelist.txt` beside it or in it.

    The root is the folder of `ibims1_core_raw/`, or that folder itself:

        imagelist.txt                   100 names, such as corridor_01
        rgb/<name>.png                  640x480
        depth/<name>.png                uint16, raw * 50 / 65535 metres, 0: none
        calib/<name>.txt                fx, fy, cx, cy
        mask_invalid/<name>.png         not black where depth was measured
        mask_transp/<name>.png          not black where nothing is transparent

    `test` is all of it. A frame's mask is where both masks are not black. Scenes are what the names begin with.
    """

    name = "ibims1"
    title = "iBims-1"
    splits = ("test",)
    depth_range = (0.005, 25.0)
    licence = "research; see the dataset's page"
    homepage = "https://www.asg.ed.tum.de/lmf/ibims1/"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self)
        self._folder = "ibims1_core_raw" if (self.root / "ibims1_core_raw").is_dir() else "."
        expect_folders(
            self,
            *(f"{self._folder}/{name}".removeprefix("./") for name in ("rgb", "depth", "calib")),
            hint="It is in ibims1_core_raw.zip; ibims1_core_mat.zip is not read.",
        )

    def _frames(self, split: str) -> Iterable[FrameRef]:
        hint = "It is a download of its own, beside ibims1_core_raw.zip."
        path = find_split_file(self, ["imagelist.txt"], dict.fromkeys((".", self._folder)), hint)
        for name in read_split_list(self, path):
            match = _NAME.fullmatch(name)
            scene, number = match.groups() if match else (name, "0")
            yield FrameRef(name, scene=scene, order=int(number))

    def read(self, ref: FrameRef) -> Frame:
        """Read one image, see [`Source.read`]."""
        folder, file = self.root / self._folder, f"{ref.id}.png"
        image, image_size = read_image(folder / "rgb" / file)
        depth = read_depth_png(folder / "depth" / file)
        size = (depth.shape[1], depth.shape[0])
        mask = read_mask(folder / "mask_invalid" / file, size) & read_mask(folder / "mask_transp" / file, size)
        calibration = folder / "calib" / f"{ref.id}.txt"
        intrinsics = from_opencv(pinhole(read_numbers(calibration), calibration))
        return Frame(ref, image, image_size, depth, 65535 / 50, intrinsics, mask)
