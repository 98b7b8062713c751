"""Records of written files, which tell complete results from files that must not be replaced.

The record of the results NAME in a folder is `.depthvlm/NAME.json`. It is written twice: before the files, with only
their names, and after them, with their sizes, so that files of a killed run are recognised.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .files import file_hash, remove_partial_files, write_json

FOLDER = ".depthvlm"
_HEAD = 32  # bytes that tell a truncated file from a different one
_LONGEST_NAME = 255  # bytes, in the file systems of Linux, macOS and Windows


class ResultRecord:
    """The record of the results of one name.

    Args:
        folder: Folder of the results.
        name: Start of their names.

    Attributes:
        content: `source` (path), `origin` (inputs and settings of the latest ones), `files` and `replies`.
    """

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.path = folder / FOLDER / f"{name}.json"
        self.content: dict[str, Any] = _read(self.path)

    @property
    def source(self) -> str | None:
        """The input of the results, or None without results."""
        return self.content.get("source")

    @property
    def origin(self) -> dict[str, Any]:
        """Settings of the latest results; empty without results or if their run was killed."""
        return self.content.get("origin", {})

    def is_complete(self, path: Path, origin: str) -> bool:
        """Return whether a file is present and unchanged, and was made from `origin` (see `fingerprint`)."""
        entry = self.content["files"].get(path.name)
        return bool(entry) and entry["origin"] == origin and _size(path) == entry["size"]

    def in_the_way(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of `paths` that exist but were not written by this program, or were changed since."""
        return [path for path in paths if os.path.lexists(path) and not self._is_own(path)]

    def outdated(self, origin: str) -> list[Path]:
        """Return the existing files of earlier results that were not made from `origin`."""
        others = (name for name, entry in self.content["files"].items() if entry and entry["origin"] != origin)
        return [path for name in others if (path := self.folder / name).is_file()]

    def replies(self, origin: str) -> list[dict[str, Any]]:
        """Return the prompts and replies that belong to `origin`."""
        return [reply for reply in self.content["replies"] if reply["origin"] == origin]

    def begin(self, source: str, paths: Sequence[Path]) -> None:
        """Record that `paths` are about to be written."""
        self.content |= {"source": source, "files": self.content["files"] | {path.name: None for path in paths}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def finish(self, paths: Sequence[Path], origin: Mapping[str, Any], reply: Mapping[str, Any] | None = None) -> None:
        """Record that `paths` are written, and a reply to a prompt."""
        made_from = fingerprint(origin)
        entries = {path.name: _entry(path) | {"origin": made_from} for path in paths}
        if reply is not None:
            others = [one for one in self.replies(made_from) if one["prompt"] != reply["prompt"]]
            self.content["replies"] = [*others, {**reply, "origin": made_from}]
        self.content |= {"origin": dict(origin), "files": self.content["files"] | entries}
        write_json(self.path, self.content)

    def forget_replies(self) -> None:
        """Remove all replies."""
        self.content["replies"] = []

    def _is_own(self, path: Path) -> bool:
        if path.name not in self.content["files"] or path.is_symlink() or not path.is_file():
            return False
        entry = self.content["files"][path.name]
        if entry is None:  # the run that should have written it was killed
            return True
        status = path.stat()
        if status.st_size == entry["size"]:
            return status.st_mtime_ns == entry["mtime_ns"] or file_hash(path) == entry["sha256"]
        # A file truncated by a full disk or a power failure keeps its start; another smaller file does not.
        return status.st_size < entry["size"] and entry["head"].startswith(_head(path))


@contextmanager
def recorded(folder: Path, name: str, paths: Sequence[Path], source: str, overwrite: bool) -> Iterator[None]:
    """Record the `paths` in `folder` that the block writes as files of this program.

    Args:
        folder: Folder of the files.
        name: Name of the record.
        paths: Files that the block writes.
        source: Source of the files.
        overwrite: Replace files that this program did not write.

    Raises:
        FileExistsError: Such files exist, and `overwrite` is false; the message names them.
    """
    record = ResultRecord(folder, name)
    there = [path for path in paths if path.is_dir()] if overwrite else record.in_the_way(paths)
    if there:
        raise FileExistsError(
            f"{', '.join(map(str, there))}: there already, and not written by this command, or changed since. Choose "
            "another --out or move it away" + ("." if overwrite else ", or replace it with --overwrite.")
        )
    with prepared_folder(folder):
        record.begin(source, paths)
        try:
            yield
            record.finish(paths, {"source": source})
        except BaseException:
            if not any(path.exists() for path in paths):
                record.path.unlink()
            raise


def own_names(folder: Path) -> set[str]:
    """Return the names of all files in a folder that this program wrote, according to its records."""
    records = (_read(path) for path in (folder / FOLDER).glob("*.json"))
    return {name for record in records for name in record["files"]}


def fingerprint(origin: Mapping[str, Any]) -> str:
    """Return a short hash of the origin of results: input, model, camera, settings."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]


def check_names(paths: Iterable[Path]) -> None:
    """Check that file systems accept the names.

    Raises:
        ValueError: A name is too long.
    """
    for path in paths:
        if len(os.fsencode(path.name)) > _LONGEST_NAME:
            raise ValueError(f"{path.name} would be a name of more than {_LONGEST_NAME} bytes: rename the input.")


@contextmanager
def prepared_folder(folder: Path) -> Iterator[None]:
    """Make a folder for results, check that it is writable, and remove partial files of killed runs.

    If the block writes nothing, no empty folder is left.

    Raises:
        OSError: It cannot be created or written to; the message names it.
    """
    is_new = not folder.exists()
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for each in (folder, folder / FOLDER):
            with tempfile.TemporaryFile(dir=each) as file:
                file.write(b"x")
            remove_partial_files(each)
    except OSError as error:
        raise OSError(f"{folder}: nothing can be written there ({error.strerror}). Choose another folder.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is not empty
            (folder / FOLDER).rmdir()
            if is_new:
                folder.rmdir()


def _read(path: Path) -> dict[str, Any]:
    """Return a record; empty if none can be read, so that no file counts as this program's own."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        content = {"files": {}}
    return {"replies": []} | content


def _entry(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_hash(path),
        "head": _head(path),
    }


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_HEAD).hex()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
