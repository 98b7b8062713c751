"""SUN RGB-D: single frames of four depth cameras."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import expect_folders, pinhole, read_depth_png, read_image, read_numbers, read_split_mat
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import from_opencv

_SPLIT_FILE = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"


def rotate_bits(raw: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return millimetres of SUN RGB-D's depth maps, whose 16 bits are rotated to the left by 3.

    Dividing by 8000 instead agrees only below 8.192 m: beyond, the lowest 3 bits of the file are not 0.
    """
    return (raw >> np.uint16(3)) | (raw << np.uint16(13))


class SunRGBD(Source):
    """SUN RGB-D as downloaded (`SUNRGBD.zip` and `SUNRGBDtoolbox.zip` of rgbd.cs.princeton.edu).

        SUNRGBD/<sensor>/.../<frame>/image/*.jpg        one file
        SUNRGBD/<sensor>/.../<frame>/depth_bfx/*.png    one file, uint16 with rotated bits, see [`rotate_bits`]
        SUNRGBD/<sensor>/.../<frame>/intrinsics.txt     3x3 of both
        SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat    `alltrain` and `alltest`, folders as the authors' disk had them

    `train` is alltrain (5285), `test` alltest (5050). Depth is `depth_bfx`, whose holes the authors filled, as in the
    paper; the raw `depth` beside it is not read. The camera is the sensor: kv1, kv2, realsense or xtion. A scene is a
    sequence of `sun3ddata`; every other frame was taken on its own.
    """

    name = "sunrgbd"
    title = "SUN RGB-D"
    depth_range = (0.005, 8.0)
    licence = "none stated; research"
    homepage = "https://rgbd.cs.princeton.edu/"

    def __init__(self, root: str | Path):
        super().__init__(root)
        expect_folders(self, "SUNRGBD")

    def _frames(self, split: str) -> Iterable[FrameRef]:
        path, variable = self.root / _SPLIT_FILE, f"all{split}"
        for cell in read_split_mat(self, path, variable, "It is in SUNRGBDtoolbox.zip, beside SUNRGBD.zip."):
            _, found, listed = str(cell).partition("SUNRGBD/")
            parts = [part for part in listed.split("/") if part]
            if not found or len(parts) < 2:
                raise SourceError(f"{self.title}: {variable} of {path} lists {str(cell)!r}, not a folder of SUNRGBD/.")
            folder = "/".join(parts)
            scene = folder.rpartition("/")[0] if parts[1] == "sun3ddata" else folder
            yield FrameRef(folder, scene=scene, camera=parts[0])

    def read(self, ref: FrameRef) -> Frame:
        """Read one frame, see [`Source.read`]."""
        frame = self._as_stored(ref)
        return replace(frame, depth=rotate_bits(frame.depth.astype(np.uint16)), depth_scale=1000.0)

    def _as_stored(self, ref: FrameRef) -> Frame:
        """Return the frame with the depth map as the file has it."""
        folder = self.root / "SUNRGBD" / ref.id
        image, image_size = read_image(_only_file(folder / "image", (".jpg", ".png")))
        path = folder / "intrinsics.txt"
        depth = read_depth_png(_only_file(folder / "depth_bfx", (".png",)))
        return Frame(ref, image, image_size, depth, 8000.0, from_opencv(pinhole(read_numbers(path), path)))


class NYUv2OfSunRGBD(SunRGBD):
    """NYUv2 as the paper scored it: the frames `kv1/NYUdata` of SUN RGB-D, in the layout of [`SunRGBD`].

    `train` and `test` are theirs in `allsplit.mat`. Depth is `depth_bfx` / 8000, as published. Its holes are filled,
    and because the bits of the file are rotated, the division wraps beyond 8.191 m: 9.870 m comes out as 1.678 m. It is
    for comparisons with the paper's numbers alone; "nyuv2" has the sensor's own depth, and "sunrgbd" the same maps with
    corrected bits.
    """

    name = "nyuv2-sunrgbd"
    title = "NYUv2 (SUN RGB-D)"
    depth_range = (0.005, 10.0)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        return [ref for ref in super()._frames(split) if ref.id.startswith("kv1/NYUdata/")]

    def read(self, ref: FrameRef) -> Frame:
        """Read one frame, see [`Source.read`]; float32 metres, because elsewhere a scale of 8000 means rotated bits."""
        frame = self._as_stored(ref)
        return replace(frame, depth=(frame.depth / np.float32(8000)).astype(np.float32), depth_scale=1.0)


def _only_file(folder: Path, suffixes: tuple[str, ...]) -> Path:
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    except OSError:
        raise FrameError(f"{folder}: no such folder.") from None
    if len(files) != 1:
        raise FrameError(f"{folder}: expected one file ({', '.join(suffixes)}), found {len(files)}.")
    return files[0]
