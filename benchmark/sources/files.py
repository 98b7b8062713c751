"""What the readers share: files that are read whole or refused by name, split lists, and folders that must be there."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from ...processing.depth_maps_depthvlm import ASPECT_TOLERANCE
from .frames import FrameError, FrameRef, Source, SourceError

NO_RENDERING = 65535
"""The uint16 value of Taskonomy's and HM3D's renderings where the mesh has a hole."""

# What Pillow raises for a file that ends early or is damaged, by format.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)

# Markers that cannot occur within the pixels of a JPEG. Near to the end of the file the one of the image's end ends the
# image itself, not a thumbnail: some cameras pad it with zeros.
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_JPEG_PADDING = 64


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises FrameError if it is missing, unreadable or empty."""
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
    """The text of a file in UTF-8. Raises FrameError if it is missing, empty or not text."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{path}: not a text file: {error}.") from error


def read_json(path: Path) -> Any:
    """The contents of a JSON file. Raises FrameError if it is missing or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FrameError(f"{path}: not JSON, it may be truncated: {error}.") from error


def read_numbers(path: Path) -> list[float]:
    """The numbers of a text file, separated by spaces, commas or lines. Raises FrameError if there is anything else."""
    try:
        return [float(word) for word in read_text(path).replace(",", " ").split()]
    except ValueError as error:
        raise FrameError(f"{path}: not only numbers: {error}.") from error


def read_image(path: Path) -> tuple[bytes, tuple[int, int]]:
    """
    The untouched bytes of an image and its width and height in pixels.

    A PNG is checked by its checksums and a JPEG by its end marker, so neither is decoded here; other formats are.

    Raises:
        FrameError: the file is missing, truncated, not an image, or one that viewers turn by its EXIF orientation,
            which would no longer lie over its depth map.
    """
    data = read_bytes(path)
    try:
        with _open(data, path) as image:
            size, orientation = image.size, 1
            if image.format == "PNG" and b"eXIf" not in data:
                image.verify()
            else:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                if image.format != "JPEG" or _END_OF_IMAGE not in data[-_JPEG_PADDING:]:
                    # Decoders take zeros for pixels, and would not notice an end that was never written.
                    if image.format == "JPEG" and data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
                        raise FrameError(f"{path}: the image is truncated: a JPEG without its end.")
                    image.load()
    except UnidentifiedImageError:
        raise FrameError(f"{path}: not an image that Pillow can read; it may be truncated.") from None
    except _BROKEN as error:
        raise FrameError(f"{path}: the image is damaged, perhaps truncated: {error}.") from error
    if orientation not in (0, 1):
        raise FrameError(
            f"{path}: its EXIF orientation is {orientation}, so it is shown turned while its depth map is not. Save "
            "the image upright, with the map and the intrinsics that belong to it."
        )
    return data, size


def read_depth_png(path: Path) -> NDArray[np.uint16]:
    """The raw values `(h, w)` of a 16-bit PNG. Raises FrameError if it is missing, truncated or of another kind."""
    depth, _ = read_depth_png_with_text(path)
    return depth


def read_depth_png_with_text(path: Path) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """The raw values `(h, w)` of a 16-bit PNG, and its text entries. Raises FrameError as `read_depth_png`."""
    try:
        with _open(read_bytes(path), path) as image:
            if image.format != "PNG" or not image.mode.startswith("I;16"):
                raise FrameError(
                    f"{path}: a depth map is a PNG of one channel of 16 bits; this is {image.format} of Pillow mode "
                    f"{image.mode!r}, perhaps a preview."
                )
            return np.asarray(image, dtype=np.uint16), {str(key): value for key, value in image.info.items()}
    except UnidentifiedImageError:
        raise FrameError(f"{path}: not an image that Pillow can read; it may be truncated.") from None
    except _BROKEN as error:
        raise FrameError(f"{path}: the depth map is damaged, perhaps truncated: {error}.") from error


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """True `(h, w)` where a picture is not black. Raises FrameError if it is broken or not of `size`."""
    try:
        with _open(read_bytes(path), path) as image:
            if image.size != size:
                raise FrameError(f"{path}: a mask of {image.size}, but the depth map is {size} (width, height).")
            return np.asarray(image.convert("L")) > 0
    except UnidentifiedImageError:
        raise FrameError(f"{path}: not an image that Pillow can read; it may be truncated.") from None
    except _BROKEN as error:
        raise FrameError(f"{path}: the mask is damaged, perhaps truncated: {error}.") from error


def _open(data: bytes, path: Path) -> Image.Image:
    from ...processing.images_depthvlm import open_raster

    return open_raster(data, str(path))


def same_shape(depth: Sequence[int], image: tuple[int, int]) -> bool:
    """
    Whether a map and its image have one aspect ratio, as far as rounding a resized side allows.

    Args:
        depth: height and width of the map.
        image: width and height of the image.
    """
    tolerance = max(ASPECT_TOLERANCE, 1 / min(depth))
    return abs(math.log(depth[1] / depth[0]) - math.log(image[0] / image[1])) <= tolerance


def pinhole(values: Sequence[Any], path: Path) -> tuple[float, float, float, float]:
    """
    fx, fy, cx, cy of four numbers, or of a 3x3 or 4x4 matrix, flat or nested, that a file holds.

    Raises:
        FrameError: it is neither, the focal lengths are not positive, a number is not finite, or the matrix is skewed.
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
    """Raises SourceError that names the first of these folders of the root that is not there."""
    if not source.root.is_dir():
        raise SourceError(f"{source.title}: there is no folder {source.root}.")
    for name in names:
        if not (source.root / name).is_dir():
            raise SourceError(
                f"{source.title}: expected the folder {name}/ in {source.root}, the root of the download."
                + (f" {hint}" if hint else "")
            )


def expect_split(source: Source, split: str) -> None:
    """Raises SourceError if the source has no such split."""
    if split not in source.splits:
        raise SourceError(f"{source.title} has the splits {', '.join(source.splits)}, not {split!r}.")


def find_split_file(source: Source, names: Iterable[str], folders: Iterable[str], hint: str) -> Path:
    """The first of these files that is in one of these folders of the root. Raises SourceError that names them."""
    names, folders = list(names), list(folders)
    for name in names:
        for folder in folders:
            if (source.root / folder / name).is_file():
                return source.root / folder / name
    raise SourceError(
        f"{source.title}: the split file {' or '.join(names)} is not in "
        f"{' or '.join(str(source.root / folder) for folder in folders)}. {hint}"
    )


def read_split_list(source: Source, path: Path, hint: str = "") -> list[str]:
    """The names that a split file lists, one a line. Raises SourceError if it is missing or lists none."""
    if not path.is_file():
        raise SourceError(f"{source.title}: the split file {path} is missing." + (f" {hint}" if hint else ""))
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise SourceError(f"{source.title}: the split file {path} is empty.")
    return names


def downloaded_scenes(
    source: Source, scenes: Iterable[str], folder: Callable[[str], Path], hint: str = ""
) -> list[str]:
    """
    Those of a split's scenes whose folder is there; a part of a dataset is an ordinary download.

    Warns with the number of scenes that are not. Raises SourceError if none is.
    """
    scenes = list(scenes)
    found = [scene for scene in scenes if folder(scene).is_dir()]
    missing = sorted(set(scenes).difference(found))
    if not found:
        example = f" Expected, for one, {folder(missing[0])}." if missing else ""
        raise SourceError(
            f"{source.title}: none of the {len(scenes)} scenes of the split is in {source.root}.{example}"
            + (f" {hint}" if hint else "")
        )
    if missing:
        warnings.warn(
            f"{source.title}: {len(missing)} of the {len(scenes)} scenes of the split are not in {source.root} (the "
            f"first is {missing[0]}); the others are used.",
            stacklevel=3,
        )
    return found


def sorted_refs(source: Source, split: str, refs: Iterable[FrameRef]) -> list[FrameRef]:
    """Sorted by id. Raises SourceError if there are none."""
    result = sorted(refs, key=attrgetter("id"))
    if not result:
        raise SourceError(f"{source.title}: the split {split!r} has no frames in {source.root}.")
    return result
