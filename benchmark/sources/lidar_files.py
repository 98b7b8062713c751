"""What the readers of driving datasets share: errors that name a file, point files, and sweeps that are used again."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .files import expect_folders, read_bytes, read_image, read_json
from .frames import FrameError, Source, SourceError

T = TypeVar("T")

# What numpy, pyarrow, zipfile and zlib raise for files that are missing, truncated or something else.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)


@contextmanager
def frame_errors(file: object) -> Iterator[None]:
    """What is raised inside for unreadable data becomes a FrameError that names `file`: its path, or words."""
    try:
        yield
    except FileNotFoundError as error:
        raise FrameError(f"{file}: {'no such file' if isinstance(file, Path) else error}.") from error
    except _UNREADABLE as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise FrameError(f"{file}: truncated, or not what was expected: {reason}.") from error


def read_image_of(file: Path, size: tuple[int, int], calibration: str) -> bytes:
    """The bytes of an image. Raises FrameError if it is missing, broken or not of the `size` in its calibration."""
    data, found = read_image(file)
    if found != size:
        raise FrameError(f"{file}: {found[0]}x{found[1]} pixels, but its {calibration} says {size[0]}x{size[1]}.")
    return data


def read_points(file: Path, values: int) -> NDArray[np.float32]:
    """The points `(n, values)` of a raw file of little-endian float32. Raises FrameError if missing or cut off."""
    data = read_bytes(file)
    if len(data) % (4 * values):
        raise FrameError(f"{file}: {len(data)} bytes are not whole points of {values} float32; it may be truncated.")
    return np.frombuffer(data, "<f4").reshape(-1, values)


def read_table(source: Source, file: Path) -> Any:
    """A JSON file that the index needs. Raises SourceError if it is missing or not JSON."""
    try:
        return read_json(file)
    except FrameError as error:
        raise SourceError(f"{source.title}: {error}") from error


def expect_any_folder(source: Source, names: list[str], layout: str) -> None:
    """Raises SourceError, with the `layout` of the files in them, if the root has none of these folders."""
    expect_folders(source)
    if not any((source.root / name).is_dir() for name in names):
        raise SourceError(
            f"{source.title}: expected the folder {' or '.join(f'{name}/' for name in names)} in {source.root}, the "
            f"root of the download, with the files {layout}."
        )


class Recent(Generic[T]):
    """
    The last few results of a slow read: one sweep serves all cameras of its moment.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = 1):
        self._limit = limit
        self._results: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """The result kept under `key`, or that of `read`, which is then kept."""
        if key not in self._results:
            result = read()
            while len(self._results) >= self._limit:
                self._results.popitem(last=False)
            self._results[key] = result
        return self._results[key]
