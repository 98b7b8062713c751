"""NYU Depth V2: the labelled frames."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import expect_folders, import_errors, read_split_mat
from .frames import Frame, FrameError, FrameRef, Source, SourceError
from .projection import from_opencv

_LABELED = "nyu_depth_v2_labeled.mat"
_SPLITS = "splits.mat"
_VARIABLES = {"raw": "rawDepths", "filled": "depths"}

INTRINSICS = (518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)
"""fx, fy, cx, cy of the colour camera at 640x480, the first pixel at (0, 0): `camera_params.m` of the toolbox."""


class NYUv2(Source):
    """NYU Depth V2's labelled frames as downloaded, both files in the root.

        nyu_depth_v2_labeled.mat    HDF5, seen from C: `images` (1449, 3, 640, 480) uint8, `depths` (1449, 640, 480)
                                    float32 metres, `rawDepths` likewise, `scenes` (1, 1449) references to strings
        splits.mat                  `trainNdxs` (795) and `testNdxs` (654), counted from 1

    `train` and `test` are those. The file holds arrays, so the images' bytes are made here: PNG, without loss. The
    paper took these frames from SUN RGB-D: "nyuv2-sunrgbd" reads them there.

    Args:
        root: Folder of the download.
        depth: "raw", `rawDepths`: what the sensor measured, as BTS (Lee et al. 2019) and its successors score it; only
            metres above 0.001 and below 10 count, as the sensor's values end at 10. "filled", `depths`: the authors'
            inpainted maps, which are guesses in holes and far away.
    """

    name = "nyuv2"
    title = "NYUv2"
    depth_range = (0.005, 10.0)
    licence = "none stated; research"
    homepage = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"

    def __init__(self, root: str | Path, depth: str = "raw"):
        super().__init__(root)
        if depth not in _VARIABLES:
            raise SourceError(f"{self.title}: depth is {' or '.join(_VARIABLES)}, got {depth!r}.")
        self.depth = depth
        expect_folders(self)
        if not (self.root / _LABELED).is_file():
            raise SourceError(f"{self.title}: expected the file {_LABELED} in {self.root}.")

    def _frames(self, split: str) -> Iterable[FrameRef]:
        hint = "It is on the dataset's page."
        numbers = read_split_mat(self, self.root / _SPLITS, f"{split}Ndxs", hint).astype(np.int64)
        try:
            with _h5py().File(self.root / _LABELED) as file:
                references = file["scenes"][()].ravel()
                if numbers.size and not 1 <= numbers.min() <= numbers.max() <= references.size:
                    raise SourceError(
                        f"{self.title}: {self.root / _SPLITS} counts from {numbers.min()} to {numbers.max()}, but "
                        f"{_LABELED} has {references.size} frames."
                    )
                scenes = {n: "".join(map(chr, file[references[n - 1]][()].ravel())) for n in numbers.tolist()}
        except (OSError, RuntimeError, KeyError) as error:
            raise SourceError(f"{self.title}: {self.root / _LABELED} cannot be read: {error}.") from error
        return [FrameRef(f"{number:04d}", scene=scene, order=number) for number, scene in scenes.items()]

    def read(self, ref: FrameRef) -> Frame:
        """Read one frame, see [`Source.read`]."""
        path = self.root / _LABELED
        try:
            with _h5py().File(path) as file:
                pixels, depth = file["images"][ref.order - 1], file[_VARIABLES[self.depth]][ref.order - 1]
        except (OSError, RuntimeError, KeyError, IndexError, ValueError) as error:
            raise FrameError(f"{path}: frame {ref.order} cannot be read: {error}.") from error
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.shape[1:] != depth.shape:
            raise FrameError(f"{path}: expected (3, 640, 480) and (640, 480), got {pixels.shape} and {depth.shape}.")
        stream = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0)))
        image.save(stream, "PNG")
        metres = np.ascontiguousarray(depth.T, dtype=np.float32)
        mask = (metres > 1e-3) & (metres < 10) if self.depth == "raw" else None
        return Frame(ref, stream.getvalue(), image.size, metres, 1.0, from_opencv(INTRINSICS), mask)


def _h5py() -> Any:
    with import_errors("NYUv2", "h5py"):
        import h5py
    return h5py
