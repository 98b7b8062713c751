"""Which files of a folder are an image and its depth map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .frames import SourceError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".npy", ".npz", ".tif", ".tiff", ".pgm", ".pfm")

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


@dataclass
class Pairs:
    """
    Files of images and of their depth maps.

    Args:
        images, depths: by stem, relative to the root.
        place: where stems begin, in words.
        notes: what was passed over, counted and named.
    """

    images: dict[str, str]
    depths: dict[str, str]
    place: str
    notes: list[str] = field(default_factory=list)


def find_pairs(root: Path, images: str | None = None, depths: str | None = None) -> Pairs:
    """
    The pairs of a folder in one of the layouts that `LAYOUTS` names.

    Args:
        root: the folder.
        images, depths: two folders in it that are not named so.

    Raises:
        SourceError: it has none of the layouts, or two that differ, or two files of one stem.
    """
    if (images is None) != (depths is None):
        raise SourceError("RGB-D folder: images and depths are two folders: give both options, or none.")
    files = _Files(root)
    if images is not None and depths is not None:
        for name in (images, depths):
            if not (root / name).is_dir():
                raise SourceError(f"RGB-D folder: there is no folder {root / name}.")
        return files.pairs([(root, root / images, root / depths)], f"{root / images}")
    if (found := _siblings(root)) is not None:
        return files.pairs([found], f"{found[1]}")
    below = sorted(path for path in root.rglob("*") if path.is_dir() and not path.name.startswith("."))
    scenes = [pair for folder in below if (pair := _siblings(folder))]
    if scenes:
        return files.pairs(scenes, f"{scenes[0][1].name}/ of the scenes of {root}")
    return files.named(f"{root}")


def associate(images: dict[str, float], depths: dict[str, float]) -> dict[str, str]:
    """
    The depth map of each image by their times in seconds, as TUM's `associate.py` does it: of all couples nearer than
    `MAX_DIFFERENCE` the nearest first, each file once.
    """
    ordered = sorted(depths.items(), key=lambda item: item[1])
    couples = []
    start = 0
    for stem, time in sorted(images.items(), key=lambda item: item[1]):
        while start < len(ordered) and ordered[start][1] <= time - MAX_DIFFERENCE:
            start += 1
        for other, moment in ordered[start:]:
            if moment >= time + MAX_DIFFERENCE:
                break
            couples.append((abs(time - moment), stem, other))
    found: dict[str, str] = {}
    taken = set()
    for _, stem, other in sorted(couples):
        if stem not in found and other not in taken:
            found[stem] = other
            taken.add(other)
    return found


def _siblings(folder: Path) -> tuple[Path, Path, Path] | None:
    """A folder, and the one of images and the one of depth maps in it. Raises SourceError if there are more."""
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


class _Files:
    """The files of a root, and what of them is passed over."""

    def __init__(self, root: Path):
        self.root = root
        self.passed: dict[str, list[str]] = {}

    def pairs(self, folders: Iterable[tuple[Path, Path, Path]], place: str) -> Pairs:
        """Pairs of the same stems below two folders, or of stems that differ by a word or by a time."""
        images: dict[str, str] = {}
        depths: dict[str, str] = {}
        lonely: list[str] = []
        for scene, image_folder, depth_folder in folders:
            prefix = "" if scene == self.root else scene.relative_to(self.root).as_posix() + "/"
            first = self._stems(image_folder, IMAGE_SUFFIXES, prefix)
            second = self._stems(depth_folder, DEPTH_SUFFIXES, prefix)
            _pair_by_words(first, second)
            lonely += _pair_by_times(first, second)
            images |= first
            depths |= second
        pairs = self._result(images, depths, place)
        if lonely:
            pairs.notes.append(
                f"{len(lonely)} images have no depth map within {MAX_DIFFERENCE} s, {lonely[0]} first: passed over."
            )
        return pairs

    def named(self, place: str) -> Pairs:
        """Pairs of files that say by a word in their names which they are."""
        images: dict[str, str] = {}
        depths: dict[str, str] = {}
        for path in self._visible(self.root):
            suffix, parent = path.suffix.lower(), path.relative_to(self.root).parent.as_posix()
            for word, suffixes, found in (
                (_IMAGE_WORD, IMAGE_SUFFIXES, images),
                (_DEPTH_WORD, DEPTH_SUFFIXES, depths),
            ):
                stem = _without_word(path.stem, word)
                if stem is None:
                    continue
                if suffix in suffixes:
                    self._add(found, stem if parent == "." else f"{parent}/{stem}", path)
                else:
                    self._pass(f"{suffix or 'without an ending'}", path)
                break
        if not images or not depths:
            passed = f" There are {', '.join(sorted(self.passed))}." if self.passed else ""
            raise SourceError(f"RGB-D folder: expected in {self.root} {LAYOUTS}.{passed}")
        return self._result(images, depths, place)

    def _stems(self, folder: Path, suffixes: tuple[str, ...], prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self._visible(folder):
            if path.suffix.lower() in suffixes:
                self._add(found, prefix + path.relative_to(folder).with_suffix("").as_posix(), path)
            else:
                self._pass(path.suffix.lower() or "without an ending", path)
        if not found:
            others = f", but of {', '.join(sorted(self.passed))}: convert them" if self.passed else ""
            raise SourceError(f"RGB-D folder: {folder} has no files of {', '.join(suffixes)}{others}.")
        return found

    def _visible(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                if path.is_file():
                    self._pass("hidden", path)
            elif path.is_file():
                yield path

    def _add(self, found: dict[str, str], stem: str, path: Path) -> None:
        file = path.relative_to(self.root).as_posix()
        if stem in found:
            raise SourceError(f"RGB-D folder: {found[stem]} and {file} in {self.root} have the same stem.")
        found[stem] = file

    def _pass(self, kind: str, path: Path) -> None:
        self.passed.setdefault(kind, []).append(path.relative_to(self.root).as_posix())

    def _result(self, images: dict[str, str], depths: dict[str, str], place: str) -> Pairs:
        notes = []
        if self.passed:
            kinds = Counter({kind: len(files) for kind, files in self.passed.items()})
            listed = ", ".join(f"{count} {kind} ({self.passed[kind][0]})" for kind, count in kinds.most_common())
            notes.append(f"{kinds.total()} files are passed over: {listed}.")
        alone = [depths[stem] for stem in depths if stem not in images]
        if alone:
            notes.append(f"{len(alone)} depth maps have no image, {alone[0]} first.")
        return Pairs(images, depths, place, notes)


def _without_word(stem: str, word: str) -> str | None:
    """What is left of a name without `_rgb` at its end or `rgb_` at its beginning; None if it has neither."""
    match = re.fullmatch(rf"(?:(?:{word})[._-](?P<a>.+)|(?P<b>.+)[._-](?:{word}))", stem, re.IGNORECASE)
    return None if match is None else match["a"] or match["b"]


def _pair_by_words(images: dict[str, str], depths: dict[str, str]) -> None:
    """Gives files that have no partner, and whose names differ by a word such as `.color`, the stem without it."""
    for mine, other, word in ((images, depths, _IMAGE_WORD), (depths, images, _DEPTH_WORD)):
        for stem in [stem for stem in mine if stem not in other]:
            parent, slash, name = stem.rpartition("/")
            bare = _without_word(name, word)
            if bare is not None and (key := parent + slash + bare) not in mine:
                mine[key] = mine.pop(stem)


def _pair_by_times(images: dict[str, str], depths: dict[str, str]) -> list[str]:
    """
    Gives depth maps the stem of their image where both are named by times.

    Returns:
        The files of images that have no partner, which are taken out; none where no image has one.
    """
    times = [
        {
            stem: float(name)
            for stem in mine
            if stem not in other and _SECONDS.fullmatch(name := stem.rpartition("/")[2])
        }
        for mine, other in ((images, depths), (depths, images))
    ]
    found = associate(*times)
    for stem, partner in found.items():
        depths[stem] = depths.pop(partner)
    return [images.pop(stem) for stem in times[0] if stem not in found] if found else []
