"""Images given on the command line, and the names of their results."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

_MOST_NAMED = 5  # number of names in a message


@dataclass
class FoundImages:
    """Images found for the arguments of the command line.

    Attributes:
        images: Paths, and the texts of URLs, each once, in the order of the arguments.
        passed_over: Files in folders that are not images, by kind.
        linked: Files that are the same as one of `images` under another name, with that image.
    """

    images: list[Path | str] = field(default_factory=list)
    passed_over: dict[str, list[Path]] = field(default_factory=dict)
    linked: list[tuple[Path, Path]] = field(default_factory=list)


def find_images(arguments: Iterable[str]) -> list[Path | str]:
    """Return the images given by files, folders, patterns and URLs: see `look_for_images`."""
    return look_for_images(arguments).images


def look_for_images(arguments: Iterable[str]) -> FoundImages:
    """Find the images given by files, folders, patterns and URLs, in that order, each once.

    A folder stands for the images directly in it, by suffix and without hidden files; a pattern that the shell has not
    expanded is expanded here (`**` includes subfolders). A missing file stays in the list and fails when it is read.

    Raises:
        ValueError: A folder or a pattern has no image; the message names sub-folders that have some.
    """
    found = FoundImages()
    seen: dict[Path | str, Path] = {}
    for argument in arguments:
        if is_url(argument):
            if argument not in seen:
                seen[argument] = Path(argument)
                found.images.append(argument)
            continue
        path = Path(argument)
        if path.is_dir():
            files = _images_in(path, found.passed_over)
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
        if not files:
            raise ValueError(
                f"{argument}: no images there{_images_below(path)}. Give image files, folders that hold some, or "
                "patterns like 'a/*.jpg'."
            )
        for file in files:
            real = file.resolve()
            if real not in seen:
                seen[real] = file
                found.images.append(file)
            elif os.path.abspath(file) != os.path.abspath(seen[real]):
                found.linked.append((file, seen[real]))
    return found


def is_url(argument: str) -> bool:
    """Return whether an argument is a URL rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", argument) is not None


def _images_in(folder: Path, passed_over: dict[str, list[Path]]) -> list[Path]:
    """Return the images directly in a folder; its other files are added to `passed_over`."""
    images = []
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            if file.is_symlink() and not file.exists():
                passed_over.setdefault("broken links", []).append(file)
            continue
        if file.name.startswith("."):
            passed_over.setdefault("hidden", []).append(file)
        elif _is_image_name(file):
            images.append(file)
        else:
            passed_over.setdefault("no images", []).append(file)
    return images


def _images_below(folder: Path) -> str:
    """Return a hint that names the sub-folders with images; empty without any."""
    counts: dict[Path, int] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = sum(_is_image_name(Path(name)) and not name.startswith(".") for name in files)
        if images:
            counts[Path(place)] = images
        if len(counts) == _MOST_NAMED:
            break
    named = ", ".join(f"{place} ({images})" for place, images in counts.items())
    return f", but in {named}" if named else ""


def result_stems(images: Sequence[Path | str]) -> list[str]:
    """Return a name for the results of each image: its own without suffix, or a longer one if names clash.

    `a/x.png` and `b/x.png` give `a_x` and `b_x`; `x.png` and `x.jpg` give `x_png` and `x_jpg`. Letter case is ignored,
    as in the file systems of Windows and macOS.
    """
    paths = [image if isinstance(image, Path) else path_of_url(image) for image in images]
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(path.stem.casefold(), []).append(index)
    stems = [path.stem for path in paths]
    taken: set[str] = set()
    for group in groups.values():
        for naming in ("{stem}", "{folder}_{stem}", "{stem}_{suffix}", "{folder}_{stem}_{suffix}"):
            names = [_fill(naming, paths[index]) for index in group]
            if len({name.casefold() for name in names}) == len(names):
                break
        for index, name in zip(group, names, strict=True):
            number = 2
            stems[index] = name
            while stems[index].casefold() in taken:
                stems[index] = f"{name}_{number}"
                number += 1
            taken.add(stems[index].casefold())
    return stems


def path_of_url(url: str) -> Path:
    """Return the path of a URL; "image" for a `data:` URL."""
    parts = urlsplit(url)
    return Path("image") if parts.scheme == "data" else Path(unquote(f"{parts.netloc}{parts.path}").rstrip("/"))


def _fill(naming: str, path: Path) -> str:
    return naming.format(stem=path.stem, suffix=path.suffix.lstrip("."), folder=path.resolve().parent.name)


def _is_image_name(path: Path) -> bool:
    from .processing.images_depthvlm import raster_suffixes

    return path.suffix.lower() in raster_suffixes()
