"""A plain folder of images and their depth maps: anybody's own data."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frames import Frame, FrameError, FrameRef, Source, SourceError
from .files import (
    expect_folders,
    expect_split,
    pinhole,
    read_depth_png_with_text,
    read_image,
    read_numbers,
    read_split_list,
    sorted_refs,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEPTH_SUFFIXES = (".png", ".npy")

# A pair of folders with the same stems, or one folder with stems that end so.
_FOLDERS = (("rgb", "depth"), ("images", "depths"))
_ENDINGS = (("_rgb", "_depth"), ("_color", "_depth"), ("_image", "_depth"))

PNG_SCALE_KEY = "depth_scale"
"""The text entry under which a 16-bit PNG of this package says its scale."""

# A map and its image may differ this much in aspect ratio, for the rounding of a resized side.
_ASPECT_TOLERANCE = 0.02

_ID = re.compile(r"[A-Za-z0-9/_.\-]+")


class _NoScaleError(FrameError):
    """Integers without a unit: of one map, but as a rule of all."""


class RGBDFolder(Source):
    """
    Images and depth maps of any sizes with the same stems, in sub-folders too (a sub-folder is a scene):

        rgb/<stem>.jpg and depth/<stem>.png      or images/ and depths/; or, in the root, <stem>_rgb.jpg (or _color,
                                                 _image) and <stem>_depth.png
        intrinsics.json                          of the image in pixels: [fx, fy, cx, cy], a 3x3 matrix or
                                                 {"fx": ..., "fy": ..., "cx": ..., "cy": ...}; one for all, or
                                                 {"<stem>": one of these, ...}
        intrinsics.txt                           or: fx, fy, cx, cy or a 3x3 matrix for all
        depth.json                               {"depth_scale": 1000}, and "invalid": a raw value that means none
        splits/train.txt, splits/test.txt        stems, one a line

    Depth is z-depth: a 16-bit PNG, or a `.npy` of uint16 or of floats. Integers need the scale, from `depth.json`, the
    argument or the PNG's own text entry `depth_scale`; floats are metres without it. 0 is none. Without the folder
    `splits/` both splits are all frames, so keep training and test data in different folders or list them.

    Args:
        root: the folder.
        depth_scale: raw value / scale = metres, where `depth.json` does not say it: 1000 for millimetres.
    """

    name = "folder"
    title = "RGB-D folder"
    splits = ("train", "test")
    depth_range = (0.001, 1000.0)
    licence = "your own"

    def __init__(self, root: str | Path, depth_scale: float | None = None):
        super().__init__(root)
        expect_folders(self)
        self._depth_scale, self._invalid = self._depth_settings(depth_scale)
        self._intrinsics, self._shared_by_all = self._read_intrinsics()

    def index(self, split: str) -> list[FrameRef]:
        """All pairs of a split, see [`Source.index`]. An image without a depth map is an error that [`read`] raises."""
        expect_split(self, split)
        images, depths, layout = self._pairs()
        stems = list(images)
        if (self.root / "splits").is_dir():
            path = self.root / "splits" / f"{split}.txt"
            stems = list(dict.fromkeys(read_split_list(self, path)))
            unknown = [stem for stem in stems if stem not in images]
            if unknown:
                raise SourceError(
                    f"{self.title}: {len(unknown)} stems of {path} have no image in {layout}, the first is "
                    f"{unknown[0]!r}. Stems are paths below that folder, without an ending."
                )
        refs = []
        for order, stem in enumerate(sorted(stems)):
            files = {"image": images[stem], "depth": depths.get(stem, "")}
            refs.append(FrameRef(stem, scene=stem.rpartition("/")[0], order=order, files=files))
        self._try_scale(next((ref.files["depth"] for ref in refs if ref.files["depth"]), None))
        return sorted_refs(self, split, refs)

    def read(self, ref: FrameRef) -> Frame:
        """One pair, see [`Source.read`]."""
        if not ref.files["depth"]:
            raise FrameError(f"{self.root / ref.files['image']}: has no depth map with the stem {ref.id!r}.")
        path = self.root / ref.files["image"]
        image, (width, height) = read_image(path)
        depth, scale = self._read_depth(self.root / ref.files["depth"])
        rows, columns = depth.shape
        tolerance = max(_ASPECT_TOLERANCE, 1 / min(rows, columns))
        if abs(math.log(columns / rows) - math.log(width / height)) > tolerance:
            raise FrameError(
                f"{self.root / ref.files['depth']}: {columns}x{rows} pixels do not have the aspect ratio of the image, "
                f"{width}x{height}."
            )
        return Frame(ref, image, (width, height), depth, scale, self._camera(ref.id))

    def _read_depth(self, path: Path) -> tuple[NDArray[np.uint16] | NDArray[np.float32], float]:
        """The map and its scale; floats in metres, with the scale 1."""
        stored = None
        if path.suffix.lower() == ".png":
            raw, text = read_depth_png_with_text(path)
            stored = text.get(PNG_SCALE_KEY)
        else:
            raw = _read_npy(path)
        scale = self._depth_scale if stored is None else _number(stored)
        if stored is not None and (scale is None or self._depth_scale not in (None, scale)):
            raise FrameError(
                f"{path}: its text entry {PNG_SCALE_KEY} is {stored!r}, but the scale given is {self._depth_scale}."
            )
        if self._invalid is not None:
            raw = np.where(raw == self._invalid, raw.dtype.type(0), raw)
        if raw.dtype == np.uint16:
            if scale is None:
                raise _NoScaleError(
                    f"{path}: integers need a scale, 1000 for millimetres: write "
                    '{"depth_scale": 1000} into depth.json, or pass depth_scale.'
                )
            return raw, scale
        metres = (raw if scale is None else raw / scale).astype(np.float32)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0)), 1.0

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

    def _camera(self, stem: str) -> tuple[float, float, float, float]:
        path = self.root / "intrinsics.json"
        if self._shared_by_all:
            return self._intrinsics
        if stem not in self._intrinsics:
            raise FrameError(f"{path}: has no intrinsics for {stem!r}.")
        return pinhole(_four(self._intrinsics[stem]), path)

    def _read_intrinsics(self) -> tuple[Any, bool]:
        """The camera of all images and True, or what `intrinsics.json` holds by stem and False."""
        table, text = self.root / "intrinsics.json", self.root / "intrinsics.txt"
        try:
            if table.is_file():
                value = json.loads(table.read_text(encoding="utf-8"))
                if isinstance(value, dict) and "fx" not in value:
                    return value, False
                return pinhole(_four(value), table), True
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

    def _pairs(self) -> tuple[dict[str, str], dict[str, str], Path]:
        """Files of images and of depth maps by stem, relative to the root, and the folder below which stems are."""
        for first, second in _FOLDERS:
            if (self.root / first).is_dir() and (self.root / second).is_dir():
                return self._files(first, IMAGE_SUFFIXES), self._files(second, DEPTH_SUFFIXES), self.root / first
        for image, depth in _ENDINGS:
            if any(self.root.rglob(f"*{image}.*")):
                return self._files(".", IMAGE_SUFFIXES, image), self._files(".", DEPTH_SUFFIXES, depth), self.root
        raise SourceError(
            f"{self.title}: expected in {self.root} the folders rgb/ and depth/ (or images/ and depths/), or files "
            "named *_rgb.* and *_depth.*."
        )

    def _files(self, folder: str, suffixes: tuple[str, ...], ending: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        others = set()
        for path in sorted((self.root / folder).rglob(f"*{ending}.*")):
            if path.suffix.lower() not in suffixes:
                others.add(path.suffix)
                continue
            stem = path.relative_to(self.root / folder).with_suffix("").as_posix().removesuffix(ending)
            file = path.relative_to(self.root).as_posix()
            if stem in found:
                raise SourceError(f"{self.title}: {found[stem]} and {file} in {self.root} have the same stem.")
            if not _ID.fullmatch(stem):
                raise SourceError(f"{self.title}: rename {path}: names are of letters, digits and _-. only.")
            found[stem] = file
        if not found:
            raise SourceError(
                f"{self.title}: {self.root / folder} has no files *{ending} of {', '.join(suffixes)}"
                + (f", but of {', '.join(sorted(others))}: convert them." if others else ".")
            )
        return found


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        from ...processing.depth_maps_depthvlm import load_array

        raw = load_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise FrameError(f"{path}: the depth map cannot be read, it may be truncated: {error}.") from error
    if raw.ndim != 2 or raw.size == 0 or not (raw.dtype == np.uint16 or np.issubdtype(raw.dtype, np.floating)):
        raise FrameError(f"{path}: a depth map is (h, w) of uint16 or floats, got {raw.shape} of {raw.dtype}.")
    return raw


def _number(value: Any) -> float | None:
    """A finite number above 0; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _four(value: Any) -> Any:
    return [value.get(name) for name in ("fx", "fy", "cx", "cy")] if isinstance(value, dict) else value
