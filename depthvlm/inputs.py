"""Images and cameras given on the command line, and the names of their results."""

import glob
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

_MOST_NAMED = 5  # number of names in a message
_CAMERA_FILE = (
    "Give a 3x3 matrix or fx, fy, cx, cy in pixels, with or without width and height, as .json, .npy or text."
)
_CAMERA_SUFFIXES = (".json", ".txt", ".csv", ".npy")
# Besides DepthVLM's own: ROS (camera_matrix), Open3D (intrinsic_matrix), nerfstudio (fl_x, w).
_CAMERA_KEYS = ("camera", "intrinsics", "K", "camera_matrix", "intrinsic_matrix", "data")
_CAMERA_NUMBERS = (("fx", "fl_x"), ("fy", "fl_y"), ("cx",), ("cy",))
_SIZES = (("width", "w", "image_width"), ("height", "h", "image_height"))
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2", "D", "distortion", "distortion_coefficients")


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


def read_cameras(path: Path, images: Sequence[Path | str]) -> list[NDArray[np.float64]]:
    """Return the camera of each image: from one file for all, or one for each.

    Args:
        path: A file for `read_intrinsics`, for all images; a `.json` file with an object of cameras by image name
            (`{"a.jpg": [fx, fy, cx, cy], ...}`); or a folder with a file for each image, `a.json`, `a.txt`, `a.csv` or
            `a.npy` for `a.jpg`.
        images: Paths, or the texts of URLs.

    Raises:
        ValueError: A camera cannot be read, or an image has none; the message names it.
    """
    paths = [image if isinstance(image, Path) else path_of_url(image) for image in images]
    if path.is_dir():
        files = [[path / f"{image.stem}{suffix}" for suffix in _CAMERA_SUFFIXES] for image in paths]
        found = [next((file for file in candidates if file.is_file()), None) for candidates in files]
        _require_all(path, paths, found, f"a file such as {files[0][0].name}" if files else "")
        return [read_intrinsics(file) for file in found if file is not None]
    by_name = _cameras_by_name(path)
    if by_name is None:
        return [read_intrinsics(path)] * len(images)
    keys = [next((key for key in (str(image), image.name, image.stem) if key in by_name), None) for image in paths]
    _require_all(path, paths, keys, f'an entry such as "{paths[0].name}"' if paths else "")
    return [_checked_camera(partial(by_name.get, key), f"{path}, {key}") for key in keys if key]


def _require_all(path: Path, images: Sequence[Path], found: Sequence[object], expected: str) -> None:
    missing = [str(image) for image, one in zip(images, found, strict=True) if one is None]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise ValueError(
            f"{path} has no camera for {', '.join(missing[:_MOST_NAMED])}{more}: each image needs one, {expected}."
        )


def _cameras_by_name(path: Path) -> dict[str, object] | None:
    """Return the object of a `.json` file with cameras by image name; None for any other file."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # `read_intrinsics` reports it
        return None
    names = {*_CAMERA_KEYS, *(name for names in _CAMERA_NUMBERS for name in names)}
    one_camera = not isinstance(content, dict) or not content or content.keys() & names
    return None if one_camera else content


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """Read a camera from a file, in pixels of the upright picture; warn of distortion coefficients.

    `.json`: a matrix, four, six or nine numbers, or an object with them under `intrinsics`, `K` or `camera`, or with
    `fx`, `fy`, `cx` and `cy`, and optionally with `width` and `height` (as in the JSON of `depthvlm predict`, ROS,
    Open3D and nerfstudio). `.npy`: an array. Anything else: a text file of numbers.

    Returns:
        A 3x3 matrix, `(4,)` for fx, fy, cx, cy, or `(6,)` for these with the width and height of their picture.

    Raises:
        ValueError: The file cannot be read as one of these.
    """
    return _checked_camera(lambda: _camera_values(path), str(path))


def _camera_values(path: Path) -> object:
    from .processing.depth_maps_depthvlm import load_array
    from .processing.images_depthvlm import require_file

    require_file(path)
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    if path.suffix.lower() == ".npy":
        return load_array(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        return json.loads(text)
    return [float(number) for number in text.replace(",", " ").split()]


def _checked_camera(read: Callable[[], object], label: str) -> NDArray[np.float64]:
    from .processing.camera_depthvlm import camera_numbers

    try:
        content = read()
        size = _size_in(content)
        values = np.asarray(_camera_in(content), dtype=np.float64).squeeze()
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{label}: no camera can be read from it ({reason}). {_CAMERA_FILE}") from None
    if values.size == 9:
        values = values.reshape(3, 3)
        if not values[:2, 2].any() and values[2, :2].any():  # Open3D writes column by column
            values = values.T
    if values.shape not in ((3, 3), (4,), (6,)):
        raise ValueError(f"{label}: holds an array of shape {values.shape}. {_CAMERA_FILE}")
    if isinstance(content, Mapping) and any(np.any(content.get(name) or 0) for name in _DISTORTION):
        warnings.warn(
            f"{label}: the distortion coefficients are not used: a pinhole has none. Undistort the pictures first.",
            stacklevel=3,
        )
    if size is None or values.shape == (6,):
        return values
    try:
        return np.array([*camera_numbers(values), *size])
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _camera_in(content: Any) -> Any:
    """Return the numbers of a camera within an object."""
    if not isinstance(content, Mapping):
        return content
    for name in _CAMERA_KEYS:
        if name in content:
            return _camera_in(content[name])
    return [_first(content, names) for names in _CAMERA_NUMBERS]


def _size_in(content: Any) -> list[float] | None:
    """Return the width and height nearest to the numbers of a camera."""
    if not isinstance(content, Mapping):
        return None
    inner = next((_size_in(content[name]) for name in _CAMERA_KEYS if name in content), None)
    if inner is not None or not any(name in content for names in _SIZES for name in names):
        return inner
    return [float(_first(content, names)) for names in _SIZES]


def _first(content: Mapping[str, Any], names: Sequence[str]) -> Any:
    return content[next((name for name in names if name in content), names[0])]
