"""A plain folder of images and their depth maps: anybody's own data."""

from __future__ import annotations

import json
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...processing import resolve_camera
from ...processing.depth_maps_depthvlm import PNG_SCALE_KEY, load_array, read_depth
from .files import (
    expect_folders,
    expect_split,
    pinhole,
    read_depth_png_with_text,
    read_image,
    read_numbers,
    read_split_list,
    same_shape,
    sorted_refs,
)
from .folder_layout import find_pairs
from .frames import Frame, FrameError, FrameRef, Source, SourceError

_OTHERS = re.compile(r"[^A-Za-z0-9/_.\-]")


class _NoScaleError(FrameError):
    """Integers without a unit: of one map, but as a rule of all."""


class RGBDFolder(Source):
    """
    Images and depth maps of any sizes with the same stems, in sub-folders too (a sub-folder is a scene):

        rgb/<stem>.jpg and depth/<stem>.png      or images/, image/, color/, colour/ and depths/; in the root, or
                                                 in each scene's folder
        <stem>_rgb.jpg and <stem>_depth.png      or color, colour, image; "_", "." or "-" between; or rgb_<stem>.jpg and
                                                 depth_<stem>.png (or sync_depth_<stem>.png)
        intrinsics.json                          of the image in pixels: [fx, fy, cx, cy], a 3x3 or 4x4 matrix or
                                                 {"fx": ..., "fy": ..., "cx": ..., "cy": ...}, with "width"
                                                 and "height" where they are of another size; one for all, or
                                                 {"<stem>": one of these, ...}
        intrinsics.txt                           or: fx, fy, cx, cy or a matrix for all; the centre of the first pixel
                                                 is at (0.5, 0.5), so add 0.5 to cx and cy of OpenCV
        depth.json                               {"depth_scale": 1000}, and "invalid": a raw value that means none
        splits/train.txt, splits/test.txt        stems, one a line

    Names that are times in seconds (TUM) are paired as TUM's `associate.py` does it: the nearest within 0.02 s. Other
    files, and hidden ones, are passed over; the build's notes count and name them.

    Depth is z-depth in a form that `depthvlm.processing.read_depth` reads: PNG, TIFF and PGM of 16 bits, float TIFF,
    PFM, `.npy` and `.npz`. Integers need the scale, from `depth.json`, the argument or the PNG's own text entry
    `depth_scale`; floats are metres without it. 0 is none. Without the folder `splits/` both splits are all frames, so
    keep training and test data in different folders or list them.

    Args:
        root: the folder.
        depth_scale: raw value / scale = metres, where `depth.json` does not say it: 1000 for millimetres.
        images, depths: two folders in the root that have other names than these.
    """

    name = "folder"
    title = "RGB-D folder"
    splits = ("train", "test")
    depth_range = (0.001, 1000.0)
    licence = "your own"

    def __init__(
        self,
        root: str | Path,
        depth_scale: float | None = None,
        images: str | None = None,
        depths: str | None = None,
    ):
        super().__init__(root)
        expect_folders(self)
        self._folders = (images, depths)
        self._depth_scale, self._invalid = self._depth_settings(depth_scale)
        self._intrinsics, self._shared_by_all = self._read_intrinsics()

    def index(self, split: str) -> list[FrameRef]:
        """All pairs of a split, see [`Source.index`]. An image without a depth map is an error that [`read`] raises."""
        expect_split(self, split)
        pairs = find_pairs(self.root, *self._folders)
        self.notes = pairs.notes
        stems = list(pairs.images)
        if (self.root / "splits").is_dir():
            path = self.root / "splits" / f"{split}.txt"
            stems = list(dict.fromkeys(read_split_list(self, path)))
            unknown = [stem for stem in stems if stem not in pairs.images]
            if unknown:
                raise SourceError(
                    f"{self.title}: {len(unknown)} stems of {path} have no image in {pairs.place}, the first is "
                    f"{unknown[0]!r}. Stems are paths below that folder, without an ending."
                )
        refs = []
        ids = _frame_ids(sorted(pairs.images))
        for order, stem in enumerate(sorted(stems)):
            files = {"stem": stem, "image": pairs.images[stem], "depth": pairs.depths.get(stem, "")}
            refs.append(FrameRef(ids[stem], scene=ids[stem].rpartition("/")[0], order=order, files=files))
        self._try_scale(next((ref.files["depth"] for ref in refs if ref.files["depth"]), None))
        return sorted_refs(self, split, refs)

    def read(self, ref: FrameRef) -> Frame:
        """One pair, see [`Source.read`]."""
        if not ref.files["depth"]:
            raise FrameError(f"{self.root / ref.files['image']}: has no depth map with the stem {ref.files['stem']!r}.")
        path = self.root / ref.files["image"]
        image, (width, height) = read_image(path)
        depth, scale = self._read_depth(self.root / ref.files["depth"])
        rows, columns = depth.shape
        if not same_shape(depth.shape, (width, height)):
            raise FrameError(
                f"{self.root / ref.files['depth']}: {columns}x{rows} pixels do not have the aspect ratio of the image, "
                f"{width}x{height}."
            )
        return Frame(ref, image, (width, height), depth, scale, self._camera(ref.files["stem"], (width, height)))

    def _read_depth(self, path: Path) -> tuple[NDArray[np.uint16] | NDArray[np.float32], float]:
        """The map and its scale: uint16 as it is stored, in a PNG or `.npy`; all else as float32 metres, scale 1."""
        raw: NDArray[Any] | None = None
        stored = None
        if path.suffix.lower() == ".png":
            raw, text = read_depth_png_with_text(path)
            stored = text.get(PNG_SCALE_KEY)
        elif path.suffix.lower() == ".npy":
            try:
                raw = load_array(path)
            except (OSError, ValueError) as error:
                raise FrameError(f"{path}: the depth map cannot be read, it may be truncated: {error}.") from error
        scale = self._depth_scale if stored is None else _number(stored)
        if stored is not None and (scale is None or self._depth_scale not in (None, scale)):
            raise FrameError(
                f"{path}: its text entry {PNG_SCALE_KEY} is {stored!r}, but the scale given is {self._depth_scale}."
            )
        if raw is not None and raw.dtype == np.uint16 and raw.ndim == 2 and scale is not None:
            return (raw if self._invalid is None else np.where(raw == self._invalid, np.uint16(0), raw)), scale
        try:
            metres = read_depth(path if raw is None else raw, scale)
        except (OSError, ValueError) as error:
            if scale is None and "depth_scale" in str(error):
                raise _NoScaleError(
                    f"{path}: integers need a scale, 1000 for millimetres: write "
                    '{"depth_scale": 1000} into depth.json, or pass depth_scale.'
                ) from None
            raise FrameError(f"{path}: {error}") from error
        if self._invalid is not None:
            metres[metres == np.float32(self._invalid / (scale or 1))] = 0
        return metres, 1.0

    def _try_scale(self, depth: str | None) -> None:
        """Raises SourceError where a folder's first map is of integers and nothing says their scale."""
        if self._depth_scale is not None or depth is None:
            return
        try:
            self._read_depth(self.root / depth)
        except _NoScaleError as error:
            raise SourceError(f"{self.title}: {error}") from error
        except FrameError:
            return  # `read` will say so, of that frame alone

    def _camera(self, stem: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
        path, value = self.root / "intrinsics.json", self._intrinsics
        if not self._shared_by_all:
            if stem not in value:
                raise FrameError(f"{path}: has no intrinsics for {stem!r}.")
            value = value[stem]
        camera = pinhole(_four(value), path)
        if not isinstance(value, dict) or not value.keys() & {"width", "height"}:
            return camera
        try:
            of_image = resolve_camera((size[1], size[0]), intrinsics=[*camera, value["width"], value["height"]])
        except (KeyError, ValueError) as error:
            raise FrameError(f"{path}: {stem!r}: {error}") from error
        return of_image.fx, of_image.fy, of_image.cx, of_image.cy

    def _read_intrinsics(self) -> tuple[Any, bool]:
        """The camera of all images and True, or what `intrinsics.json` holds by stem and False."""
        table, text = self.root / "intrinsics.json", self.root / "intrinsics.txt"
        try:
            if table.is_file():
                value = json.loads(table.read_text(encoding="utf-8"))
                if isinstance(value, dict) and "fx" not in value:
                    return value, False
                pinhole(_four(value), table)
                return value, True
            if text.is_file():
                return pinhole(read_numbers(text), text), True
        except (FrameError, ValueError) as error:
            raise SourceError(f"{self.title}: the intrinsics cannot be read: {error}") from error
        raise SourceError(
            f"{self.title}: depth without intrinsics: expected intrinsics.json or intrinsics.txt in {self.root}, with "
            "fx, fy, cx, cy of the images in pixels."
        )

    def _depth_settings(self, depth_scale: float | None) -> tuple[float | None, float | None]:
        path, invalid, written = self.root / "depth.json", None, None
        if path.is_file():
            try:
                settings = dict(json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise SourceError(f"{self.title}: {path} is not a JSON object: {error}.") from error
            written, invalid = settings.pop("depth_scale", None), settings.pop("invalid", None)
            if settings:
                names = ", ".join(settings)
                raise SourceError(f"{self.title}: {path} has {names}; only depth_scale and invalid are read.")
            if invalid is not None and not isinstance(invalid, (int, float)):
                raise SourceError(f'{self.title}: "invalid" of {path} must be a number, got {invalid!r}.')
        for value, origin in ((depth_scale, "the argument depth_scale"), (written, f"depth_scale of {path}")):
            if value is not None and _number(value) is None:
                raise SourceError(f"{self.title}: {origin} must be a finite number above 0, got {value!r}.")
        if depth_scale is not None and written is not None and depth_scale != written:
            raise SourceError(f"{self.title}: {path} says depth_scale = {written}, but {depth_scale} was given.")
        return _number(written if depth_scale is None else depth_scale), invalid


def _frame_ids(stems: Iterable[str]) -> dict[str, str]:
    """
    An id of letters, digits and `/_.-` for each stem: accents are taken away, other characters become "_".

    Stems that come to be alike are told apart by a checksum of their names.
    """
    plain = {}
    for stem in stems:
        letters = "".join(one for one in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(one))
        plain[stem] = "/".join("_" if part.strip(".") == "" else part for part in _OTHERS.sub("_", letters).split("/"))
    counts = Counter(plain.values())
    checksums = {stem: zlib.crc32(stem.encode("utf-8", "surrogateescape")) for stem in plain}
    return {
        stem: one if stem == one or counts[one] == 1 else f"{one}-{checksums[stem]:08x}" for stem, one in plain.items()
    }


def _number(value: Any) -> float | None:
    """A finite number above 0; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _four(value: Any) -> Any:
    return [value.get(name) for name in ("fx", "fy", "cx", "cy")] if isinstance(value, dict) else value
