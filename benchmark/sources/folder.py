"""A plain folder of images and their depth maps: your own data, and which files in it form pairs."""

from __future__ import annotations

import json
import math
import re
import unicodedata
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...processing import resolve_camera
from ...processing.depth_maps_depthvlm import PNG_SCALE_KEY, load_array, read_depth
from .files import (
    expect_folders,
    pinhole,
    read_depth_png_with_text,
    read_image,
    read_numbers,
    read_split_list,
    same_shape,
)
from .frames import Frame, FrameError, FrameRef, Intrinsics, Source, SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff", ".pgm", ".pfm", ".exr")

IMAGE_FOLDERS = ("rgb", "images", "image", "color", "colour")
DEPTH_FOLDERS = ("depth", "depths")

_IMAGE_WORD, _DEPTH_WORD = "rgb|color|colour|image", "(?:sync_)?depth"
_SECONDS = re.compile(r"\d+\.\d+")

MAX_DIFFERENCE = 0.02
"""Seconds between an image and its depth map that are named by their times, as in TUM's `associate.py`."""

LAYOUTS = (
    "the folders rgb/ (or images/, image/, color/, colour/) and depth/ (or depths/), in it or in each of its scenes; "
    "or files named *_rgb.* (or color, image) and *_depth.*, with _, . or - between; or name two folders by --option "
    "images=DIR --option depths=DIR"
)

_OTHERS = re.compile(r"[^A-Za-z0-9/_.\-]")


class _NoScaleError(FrameError):
    """Integers without a unit: of one map, but as a rule of all."""


class RGBDFolder(Source):
    """Images and depth maps of any sizes with the same stems, in sub-folders too (a sub-folder is a scene).

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

    Names that are times in seconds (TUM) are paired as by TUM's `associate.py`: the nearest within 0.02 s. Other
    files, and hidden ones, are skipped; the build's notes count and name them.

    Depth is z-depth in a form that `depthvlm.processing.read_depth` reads: PNG, TIFF and PGM of 16 bits, float TIFF,
    PFM, OpenEXR, `.npy` and `.npz`. Integers need the scale, from `depth.json`, the argument or the PNG's own text
    entry `depth_scale`; floats are metres without it. 0 is none. Without the folder `splits/` both splits are all
    frames, so keep training and test data in different folders or list them.

    Args:
        root: The folder.
        depth_scale: Raw value / scale = metres, where `depth.json` does not say it: 1000 for millimetres.
        images, depths: Two folders in the root that have other names than these.
    """

    name = "folder"
    title = "RGB-D folder"
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

    def _frames(self, split: str) -> Iterable[FrameRef]:
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
        ids, stems = _frame_ids(sorted(pairs.images)), sorted(stems)
        depths = [pairs.depths.get(stem, "") for stem in stems]
        self._try_scale(next(filter(None, depths), None))
        for order, (stem, depth) in enumerate(zip(stems, depths, strict=True)):
            files = {"stem": stem, "image": pairs.images[stem], "depth": depth}
            yield FrameRef(ids[stem], scene=ids[stem].rpartition("/")[0], order=order, files=files)

    def read(self, ref: FrameRef) -> Frame:
        """Read one pair, see [`Source.read`]."""
        stem, image_file, depth_file = ref.files["stem"], self.root / ref.files["image"], self.root / ref.files["depth"]
        if not ref.files["depth"]:
            raise FrameError(f"{image_file}: has no depth map with the stem {stem!r}.")
        image, size = read_image(image_file)
        depth, scale = self._read_depth(depth_file)
        if not same_shape(depth.shape, size):
            sizes = f"{depth.shape[1]}x{depth.shape[0]} pixels do not have the aspect ratio of the image"
            raise FrameError(f"{depth_file}: {sizes}, {size[0]}x{size[1]}.")
        return Frame(ref, image, size, depth, scale, self._camera(stem, size))

    def _read_depth(self, path: Path) -> tuple[NDArray[np.uint16] | NDArray[np.float32], float]:
        """Return the map and its scale: uint16 as stored, in a PNG or `.npy`; all else as float32 metres, scale 1."""
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
        """Raise SourceError where a folder's first map is of integers and nothing says their scale."""
        if self._depth_scale is not None or depth is None:
            return
        try:
            self._read_depth(self.root / depth)
        except _NoScaleError as error:
            raise SourceError(f"{self.title}: {error}") from error
        except FrameError:
            return  # `read` will say so, of that frame alone

    def _camera(self, stem: str, size: tuple[int, int]) -> Intrinsics:
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
        """Return the camera of all images and True, or what `intrinsics.json` holds by stem and False."""
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
    """Make an id of letters, digits and `/_-.` of each stem, with a checksum where two would be the same."""
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
    """Return a finite number above 0, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _four(value: Any) -> Any:
    return [value.get(name) for name in ("fx", "fy", "cx", "cy")] if isinstance(value, dict) else value


def find_pairs(root: Path, images: str | None = None, depths: str | None = None) -> Pairs:
    """Find the pairs of a folder in one of the layouts that `LAYOUTS` names, or in two folders of it.

    Raises:
        SourceError: It has none of the layouts, or two that differ, or two files of one stem.
    """
    if (images is None) != (depths is None):
        raise SourceError("RGB-D folder: images and depths are two folders: give both options, or none.")
    pairs = Pairs(root)
    if images is not None and depths is not None:
        for name in (images, depths):
            if not (root / name).is_dir():
                raise SourceError(f"RGB-D folder: there is no folder {root / name}.")
        pairs.add_folders([(root, root / images, root / depths)])
        return pairs
    below = sorted(path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("."))
    at_top = _siblings(root)
    if scenes := [at_top] if at_top else [found for folder in below if (found := _siblings(folder))]:
        pairs.add_folders(scenes)
    else:
        pairs.add_named()
    return pairs


class Pairs:
    """Files of images and depth maps by stem, relative to the root, with notes on what was skipped."""

    def __init__(self, root: Path):
        self.root = root
        self.place = f"{root}"
        """Folder that stems are relative to, in words."""
        self.images: dict[str, str] = {}
        self.depths: dict[str, str] = {}
        self._passed: dict[str, list[str]] = {}
        self._lonely: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Files that were skipped, counted and named."""
        notes = []
        if self._passed:
            kinds = sorted(self._passed.items(), key=lambda item: -len(item[1]))
            listed = ", ".join(f"{len(files)} {kind} ({files[0]})" for kind, files in kinds)
            notes.append(f"{sum(len(files) for _, files in kinds)} files are passed over: {listed}.")
        if alone := [self.depths[stem] for stem in self.depths if stem not in self.images]:
            notes.append(f"{len(alone)} depth maps have no image, {alone[0]} first.")
        if self._lonely:
            count, file = len(self._lonely), self._lonely[0]
            notes.append(f"{count} images have no depth map within {MAX_DIFFERENCE} s, {file} first: passed over.")
        return notes

    def add_folders(self, folders: list[tuple[Path, Path, Path]]) -> None:
        """Pair files of the same stems below two folders of a scene, or of stems that differ by a word or a time."""
        top, first, _ = folders[0]
        self.place = f"{first}" if top == self.root else f"{first.name}/ of the scenes of {self.root}"
        for scene, image_folder, depth_folder in folders:
            prefix = "" if scene == self.root else scene.relative_to(self.root).as_posix() + "/"
            images = self._stems(image_folder, IMAGE_SUFFIXES, prefix)
            depths = self._stems(depth_folder, DEPTH_SUFFIXES, prefix)
            _pair_by_words(images, depths)
            self._lonely += _pair_by_times(images, depths)
            self.images |= images
            self.depths |= depths

    def add_named(self) -> None:
        """Pair files that say by a word in their names which they are."""
        kinds = ((_IMAGE_WORD, IMAGE_SUFFIXES, self.images), (_DEPTH_WORD, DEPTH_SUFFIXES, self.depths))
        for path in self._visible(self.root):
            parent = path.relative_to(self.root).parent
            for word, suffixes, found in kinds:
                if (stem := _without_word(path.stem, word)) is None:
                    continue
                if path.suffix.lower() in suffixes:
                    self._add(found, (parent / stem).as_posix(), path)
                else:
                    self._pass(path)
                break
        if not self.images or not self.depths:
            passed = f" There are {', '.join(sorted(self._passed))}." if self._passed else ""
            raise SourceError(f"RGB-D folder: expected in {self.root} {LAYOUTS}.{passed}")

    def _stems(self, folder: Path, suffixes: tuple[str, ...], prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self._visible(folder):
            if path.suffix.lower() in suffixes:
                self._add(found, prefix + path.relative_to(folder).with_suffix("").as_posix(), path)
            else:
                self._pass(path)
        if not found:
            others = f", but of {', '.join(sorted(self._passed))}: convert them" if self._passed else ""
            raise SourceError(f"RGB-D folder: {folder} has no files of {', '.join(suffixes)}{others}.")
        return found

    def _visible(self, folder: Path) -> Iterator[Path]:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                self._pass(path, "hidden")
            else:
                yield path

    def _add(self, found: dict[str, str], stem: str, path: Path) -> None:
        file = path.relative_to(self.root).as_posix()
        if stem in found:
            raise SourceError(f"RGB-D folder: {found[stem]} and {file} in {self.root} have the same stem.")
        found[stem] = file

    def _pass(self, path: Path, kind: str | None = None) -> None:
        kind = kind or path.suffix.lower() or "without an ending"
        self._passed.setdefault(kind, []).append(path.relative_to(self.root).as_posix())


def _siblings(folder: Path) -> tuple[Path, Path, Path] | None:
    """Return a folder with those of images and of depth maps in it. Raises SourceError if there are more."""
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    depths = [folder / name for name in DEPTH_FOLDERS if (folder / name).is_dir()]
    if not images or not depths:
        return None
    if len(images) > 1 or len(depths) > 1:
        names = ", ".join(f"{path.name}/" for path in (*images, *depths))
        raise SourceError(
            f"RGB-D folder: {folder} has {names}: name the two that belong together by --option images=DIR --option "
            "depths=DIR."
        )
    return folder, images[0], depths[0]


def _without_word(stem: str, word: str) -> str | None:
    """Return a name without `_rgb` at its end or `rgb_` at its beginning; None if it has neither."""
    match = re.fullmatch(rf"(?:(?:{word})[._-](?P<a>.+)|(?P<b>.+)[._-](?:{word}))", stem, re.IGNORECASE)
    return None if match is None else match["a"] or match["b"]


def _pair_by_words(images: dict[str, str], depths: dict[str, str]) -> None:
    """Give files that have no partner, and whose names differ by a word such as `.color`, the stem without it."""
    for mine, other, word in ((images, depths, _IMAGE_WORD), (depths, images, _DEPTH_WORD)):
        for stem in [stem for stem in mine if stem not in other]:
            parent, slash, name = stem.rpartition("/")
            bare = _without_word(name, word)
            if bare is not None and (key := parent + slash + bare) not in mine:
                mine[key] = mine.pop(stem)


def _pair_by_times(images: dict[str, str], depths: dict[str, str]) -> list[str]:
    """Give depth maps the stem of the image nearest in time, and take out the images that have none, if any has one."""
    times, others = (
        {stem: float(name) for stem in mine if stem not in other and _SECONDS.fullmatch(name := stem.split("/")[-1])}
        for mine, other in ((images, depths), (depths, images))
    )
    ordered = sorted((time, stem) for stem, time in others.items())
    moments = [time for time, _ in ordered]
    couples = [
        (abs(time - moments[i]), stem, ordered[i][1])
        for stem, time in times.items()
        for i in range(bisect_right(moments, time - MAX_DIFFERENCE), bisect_left(moments, time + MAX_DIFFERENCE))
    ]
    found: dict[str, str] = {}
    for _, stem, partner in sorted(couples):
        if stem not in found and partner in depths:
            found[stem] = partner
            depths[stem] = depths.pop(partner)
    return [images.pop(stem) for stem in times if stem not in found] if found else []
