"""Atomic writes, JSON files, and hashes of files."""

import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Names from earlier versions lack the thread's number.
_PARTIAL_NAME = re.compile(r"\.[0-9a-f]{8}\.(?P<node>[0-9a-f]{8})\.(?P<process>\d+)(\.\d+)?\.part")
_STALE = 24 * 3600  # seconds after which a partial file counts as abandoned


@contextmanager
def atomic_write(path: str | Path, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` if the block succeeds, and is removed if it fails.

    Leftovers of killed processes are removed by `remove_partial_files`.

    Args:
        path: The file; its folder must exist.
        sync: Wait until the bytes are on the disk, so that they survive a power failure.

    Raises:
        OSError: The file cannot be written; the message names `path`.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, sync: bool = False) -> None:
    """Write a text file in UTF-8 atomically, creating its folder if necessary. See `atomic_write`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, sync) as file:
        file.write(text.encode(errors="backslashreplace"))  # undecodable bytes of file names become JSON escapes


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON atomically (without NaN, which JSON lacks)."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is not JSON, or not an object; the message names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file that can be read: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} where a JSON object is expected.")
    return content


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(path: Path) -> Path:
    """Return the temporary name under which this thread writes the file for `path`."""
    parts = (_digest(path.name), _digest(platform.node()), os.getpid(), threading.get_native_id())
    return path.with_name(f".{'.'.join(map(str, parts))}.part")


def remove_partial_files(folder: Path) -> None:
    """Remove files of `partial_path` that killed processes have left in a folder."""
    for path in folder.glob(".*.part"):
        parts = _PARTIAL_NAME.fullmatch(path.name)
        if parts and (_is_gone(parts["node"], int(parts["process"])) or _age(path) > _STALE):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_gone(node: str, process: int) -> bool:
    """Return whether a process of this machine has ended; false for a process of another machine."""
    if node != _digest(platform.node()) or os.name == "nt":  # where signal 0 would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return process == os.getpid()  # in containers every run may get the same number


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
