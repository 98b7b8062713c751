"""A folder on a disk or in an object store, in which files appear whole or not at all."""

import uuid
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

STATE = ".depthvlm"  # records, the plan and unfinished files; `datasets` passes over it
_PARTIAL = f"{STATE}/partial"


class Storage:
    """A folder for results.

    Args:
        url: Path of the folder, or its URL for fsspec.

    Attributes:
        url: The path, absolute, or the URL.
    """

    def __init__(self, url: str):
        self.fs, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.url = self._root if self.is_local else self.fs.unstrip_protocol(self._root)

    def path(self, name: str) -> str:
        """Return the path of a file for `fs`."""
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is none."""
        try:
            return self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file: under a temporary name first."""
        partial = self._partial()
        self.fs.pipe_file(partial, content)
        self._rename(partial, name)

    def put(self, local: Path, name: str) -> None:
        """Copy a local file, or a folder without sub-folders, here; it replaces an earlier one of this name."""
        partial = self._partial()
        if not local.is_dir():
            self.fs.put_file(str(local), partial)
            self._rename(partial, name)
            return
        self.fs.makedirs(partial, exist_ok=True)
        for file in sorted(local.iterdir()):
            self.fs.put_file(str(file), f"{partial}/{file.name}")
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)
        self._rename(partial, name, recursive=True)

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of what is directly in a folder here; empty if there is no such folder."""
        path = self.path(folder).rstrip("/")
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def remove_partial_files(self) -> None:
        """Remove what killed processes have left."""
        if self.fs.exists(self.path(_PARTIAL)):
            self.fs.rm(self.path(_PARTIAL), recursive=True)

    def _partial(self) -> str:
        self.fs.makedirs(self.path(_PARTIAL), exist_ok=True)
        return self.path(f"{_PARTIAL}/{uuid.uuid4().hex}")

    def _rename(self, partial: str, name: str, **kwargs: Any) -> None:
        target = self.path(name)
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.fs.mv(partial, target, **kwargs)
