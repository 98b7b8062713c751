"""Files and folders of downloads: read whole, or refused with an error that names them."""

from __future__ import annotations

import json
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ...processing.depth_maps_depthvlm import ASPECT_TOLERANCE
from ...processing.images_depthvlm import open_raster
from .frames import FrameError, Intrinsics, Source, SourceError

# What Pillow raises for a file that ends early or is damaged, by format.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)
# What numpy, pyarrow, zipfile and zlib raise for files that are missing, truncated or something else.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)

# Markers that cannot occur within the pixels of a JPEG. The end marker counts near the end of the file, where it is not
# a thumbnail's; some cameras pad it with zeros.
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_JPEG_PADDING = 64


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file. Raises FrameError if it is missing, unreadable or empty."""
    try:
        if path.exists() and not path.is_file():
            raise FrameError(f"{path}: cannot be read: not a file but a folder, a pipe or a device.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise FrameError(f"{path}: no such file.") from None
    except OSError as error:
        raise FrameError(f"{path}: cannot be read: {error.strerror}.") from error
    if not data:
        raise FrameError(f"{path}: the file is empty.")
    return data


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises FrameError if it is missing, empty or not text."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{path}: not a text file: {error}.") from error


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises FrameError if it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FrameError(f"{path}: not JSON, it may be truncated: {error}.") from error


def read_table(source: Source, path: Path) -> Any:
    """Return the contents of a JSON file that the index needs. Raises SourceError if it is missing or not JSON."""
    try:
        return read_json(path)
    except FrameError as error:
        raise SourceError(f"{source.title}: {error}") from error


def read_numbers(path: Path) -> list[float]:
    """Return the numbers of a text file, separated by spaces, commas or lines. Raises FrameError for anything else."""
    try:
        return [float(word) for word in read_text(path).replace(",", " ").split()]
    except ValueError as error:
        raise FrameError(f"{path}: not only numbers: {error}.") from error


def read_points(path: Path, values: int) -> NDArray[np.float32]:
    """Return the points `(n, values)` of a file of little-endian float32. Raises FrameError if missing or cut off."""
    data = read_bytes(path)
    if len(data) % (4 * values):
        raise FrameError(f"{path}: {len(data)} bytes are not whole points of {values} float32; it may be truncated.")
    return np.frombuffer(data, "<f4").reshape(-1, values)


def read_image(
    path: Path, size: tuple[int, int] | None = None, calibration: str = "calibration"
) -> tuple[bytes, tuple[int, int]]:
    """Return the untouched bytes of an image, with its width and height in pixels; see [`check_image`]."""
    data = read_bytes(path)
    return data, check_image(data, path, size, calibration)


def check_image(
    data: bytes, path: Path | str, size: tuple[int, int] | None = None, calibration: str = "calibration"
) -> tuple[int, int]:
    """Return the width and height of an encoded image in pixels.

    A PNG is checked by its checksums and a JPEG by its end marker, so neither is decoded here; other formats are.

    Args:
        data: The encoded image.
        path: Its file, or words, for the error message.
        size: Width and height that the image must have; None for any.
        calibration: Name of the file that states that size, for the error message.

    Raises:
        FrameError: The image is truncated, none, not of `size`, or one that viewers turn by its EXIF orientation, which
            would no longer lie over its depth map.
    """
    with open_picture(data, path) as image:
        found, orientation = image.size, 1
        if image.format == "PNG" and b"eXIf" not in data:
            image.verify()
        else:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.format != "JPEG" or _END_OF_IMAGE not in data[-_JPEG_PADDING:]:
                # Decoders take zeros for pixels, and would not notice an end that was never written.
                if image.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
                    raise FrameError(f"{path}: the image is truncated: a JPEG without its end.")
                image.load()
    if orientation not in (0, 1):
        raise FrameError(
            f"{path}: its EXIF orientation is {orientation}, so it is shown turned while its depth map is not. Save "
            "the image upright, with the map and the intrinsics that belong to it."
        )
    if size is not None and found != tuple(size):
        raise FrameError(f"{path}: {found[0]}x{found[1]} pixels, but its {calibration} says {size[0]}x{size[1]}.")
    return found


def read_depth_png(path: Path, hole: int | None = None) -> NDArray[np.uint16]:
    """Return the raw values `(h, w)` of a 16-bit PNG, 0 where they are `hole`. Raises FrameError for another kind."""
    depth, _ = read_depth_png_with_text(path)
    return depth if hole is None else np.where(depth == hole, np.uint16(0), depth)


def read_depth_png_with_text(path: Path) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """Return the raw values `(h, w)` of a 16-bit PNG and its text entries. Raises FrameError for another kind."""
    with open_picture(read_bytes(path), path, "depth map") as image:
        if image.format != "PNG" or not image.mode.startswith("I;16"):
            raise FrameError(
                f"{path}: a depth map is a PNG of one channel of 16 bits; this is {image.format} of Pillow mode "
                f"{image.mode!r}, perhaps a preview."
            )
        return np.asarray(image, dtype=np.uint16), {str(key): value for key, value in image.info.items()}


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where a picture is not black, `(h, w)`. Raises FrameError if it is broken or not of `size`."""
    with open_picture(read_bytes(path), path, "mask") as image:
        if image.size != size:
            raise FrameError(f"{path}: a mask of {image.size}, but the depth map is {size} (width, height).")
        return np.asarray(image.convert("L")) > 0


@contextmanager
def open_picture(data: bytes, name: Path | str, kind: str = "image") -> Iterator[Image.Image]:
    """Open an encoded picture; what Pillow raises for it, also later, becomes a FrameError that names it."""
    try:
        with open_raster(data, str(name)) as image:
            yield image
    except UnidentifiedImageError:
        raise FrameError(f"{name}: not an image that Pillow can read; it may be truncated.") from None
    except _BROKEN as error:
        raise FrameError(f"{name}: the {kind} is damaged, perhaps truncated: {error}.") from error


@contextmanager
def frame_errors(file: object) -> Iterator[None]:
    """Turn what is raised inside for unreadable data into a FrameError that names `file`, a path or words."""
    try:
        yield
    except FileNotFoundError as error:
        raise FrameError(f"{file}: {'no such file' if isinstance(file, Path) else error}.") from error
    except _UNREADABLE as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise FrameError(f"{file}: truncated, or not what was expected: {reason}.") from error


@contextmanager
def import_errors(title: str, package: str) -> Iterator[None]:
    """Say how to install a package whose import inside fails. Raises ImportError."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{title} needs {package}: `pip install "depthvlm[bench]"`.') from error


def same_shape(depth: Sequence[int], image: tuple[int, int]) -> bool:
    """Compare the aspect ratios of a map and its image, as far as rounding a resized side allows.

    Args:
        depth: Height and width of the map.
        image: Width and height of the image.
    """
    tolerance = max(ASPECT_TOLERANCE, 1 / min(depth))
    return abs(math.log(depth[1] / depth[0]) - math.log(image[0] / image[1])) <= tolerance


def pinhole(values: Sequence[Any], path: Path) -> Intrinsics:
    """Return fx, fy, cx, cy of four numbers, or of a 3x3 or 4x4 matrix, flat or nested, that a file holds.

    Raises:
        FrameError: It is neither, the focal lengths are not positive, a number is not finite, or the matrix is skewed.
    """
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.size == 4:
        fx, fy, cx, cy = numbers.ravel().tolist()
    elif numbers.size in (9, 16):
        matrix = numbers.reshape(math.isqrt(numbers.size), -1)
        fx, fy, cx, cy = matrix[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        if matrix[0, 1] != 0 or matrix[1, 0] != 0 or matrix[2, :3].tolist() != [0, 0, 1]:
            raise FrameError(f"{path}: not the matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}.")
    else:
        raise FrameError(f"{path}: intrinsics are fx, fy, cx, cy or a 3x3 matrix, got {values!r}.")
    if not all(map(math.isfinite, (fx, fy, cx, cy))) or fx <= 0 or fy <= 0:
        raise FrameError(f"{path}: intrinsics must be finite, fx and fy above 0, got {fx}, {fy}, {cx}, {cy}.")
    return fx, fy, cx, cy


def expect_folders(source: Source, *names: str, hint: str = "") -> None:
    """Raise SourceError that names the first of these folders of the root that is missing."""
    if not source.root.is_dir():
        raise SourceError(f"{source.title}: there is no folder {source.root}.")
    for name in names:
        if not (source.root / name).is_dir():
            message = f"{source.title}: expected the folder {name}/ in {source.root}, the root of the download. {hint}"
            raise SourceError(message.rstrip())


def expect_any_folder(source: Source, names: Iterable[str], layout: str) -> None:
    """Raise SourceError, with the `layout` of the files in them, if the root has none of these folders."""
    expect_folders(source)
    if not any((source.root / name).is_dir() for name in names):
        raise SourceError(
            f"{source.title}: expected the folder {' or '.join(f'{name}/' for name in names)} in {source.root}, the "
            f"root of the download, with the files {layout}."
        )


def split_folder(source: Source, split: str, folders: Mapping[str, str], layout: str) -> Path:
    """Return the folder of a split. Raises SourceError, with the `layout` of the files in it, if it is missing."""
    folder = source.root / folders[split]
    if not folder.is_dir():
        raise SourceError(f"{source.title}: the {split} split needs {folder}, with the files {layout}.")
    return folder


def find_split_file(source: Source, names: Iterable[str], folders: Iterable[str], hint: str) -> Path:
    """Return the first of these files in one of these folders of the root. Raises SourceError that names them."""
    names, places = list(names), [source.root / folder for folder in folders]
    for path in (place / name for name in names for place in places):
        if path.is_file():
            return path
    raise SourceError(
        f"{source.title}: the split file {' or '.join(names)} is not in {' or '.join(map(str, places))}. {hint}"
    )


def read_split_list(source: Source, path: Path) -> list[str]:
    """Return the names that a split file lists, one a line. Raises SourceError if it is missing or lists none."""
    if not path.is_file():
        raise SourceError(f"{source.title}: the split file {path} is missing.")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise SourceError(f"{source.title}: the split file {path} is empty.")
    return names


def read_split_mat(source: Source, path: Path, variable: str, hint: str) -> NDArray[Any]:
    """Return a variable of a MATLAB split file, squeezed. Raises SourceError that names the file."""
    with import_errors(source.title, "scipy"):
        from scipy.io import loadmat
    if not path.is_file():
        raise SourceError(f"{source.title}: the split file {path} is missing. {hint}")
    try:
        return np.atleast_1d(loadmat(path, variable_names=[variable], squeeze_me=True)[variable])
    except KeyError:
        raise SourceError(f"{source.title}: the split file {path} has no variable {variable!r}.") from None
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise SourceError(f"{source.title}: the split file {path} cannot be read: {error}.") from error


def downloaded_scenes(
    source: Source, scenes: Iterable[str], folder: Callable[[str], Path], hint: str = ""
) -> list[str]:
    """Return those of a split's scenes whose folder exists; a part of a dataset is an ordinary download.

    Warns with the number of missing scenes. Raises SourceError if none exists.
    """
    scenes = list(scenes)
    found = [scene for scene in scenes if folder(scene).is_dir()]
    missing = sorted(set(scenes).difference(found))
    if not found:
        example = f" Expected, for one, {folder(missing[0])}." if missing else ""
        problem = f"none of the {len(scenes)} scenes of the split is in {source.root}.{example} {hint}"
        raise SourceError(f"{source.title}: {problem}".rstrip())
    if missing:
        warnings.warn(
            f"{source.title}: {len(missing)} of the {len(scenes)} scenes of the split are not in {source.root} (the "
            f"first is {missing[0]}); the others are used.",
            stacklevel=4,
        )
    return found
