"""The demo's temporary files: whose upload a file is, how much room is left, and when a file goes."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .limits import Limits
from .uploads import result_stem

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # an upload of any other name is served as a download of unknown type


@dataclass
class _Owner:
    """The visitor who uploaded a file: the browser by its cookie, None without cookies, and the tab that used it."""

    visitor: str | None
    session: str | None = None


class Files:
    """Uploads, results and samples in one folder. Every upload and every result has a folder with a random name.

    Args:
        folder: Gradio's temporary folder, which this object fills and sweeps.
        limits: how much is kept, and for how long.
    """

    def __init__(self, folder: str | Path, limits: Limits) -> None:
        self.folder = Path(folder).resolve()
        self.limits = limits
        self._uploads, self._results, self._samples = (self.folder / name for name in ("uploads", "results", "samples"))
        for path in (self._uploads, self._results, self._samples):
            path.mkdir(parents=True, exist_ok=True)
        self._owners: dict[str, _Owner] = {}
        self.arriving = 0  # bytes of uploads that are not whole yet, as the server counts them

    def sample(self, path: str | Path) -> str:
        """Copy a picture that every visitor may measure, and return its new path."""
        return str(shutil.copy2(path, self._samples))

    def room(self, size: int) -> bool:
        """Say whether there is room for so many bytes, besides what is here and what is coming in."""
        return sum(_size(path) for path in _files(self.folder)) + self.arriving + size <= self.limits.disk_bytes

    def keep(self, content: Any, name: str, visitor: str | None) -> str:
        """Write an upload under a name of the server's own choice, and return its path.

        Args:
            content: a binary file.
            name: the file's name at the visitor's. Its letters and a picture's suffix are kept for the results' names.
            visitor: the visitor's cookie.
        """
        suffix = Path(name).suffix.lower()
        folder = self._new(self._uploads)
        path = folder / (result_stem(name) + (suffix if suffix in SUFFIXES else ".bin"))
        self._owners[folder.name] = _Owner(visitor)
        try:
            with open(path, "xb") as file:
                shutil.copyfileobj(content, file)
        except OSError:
            self._forget(folder)
            raise
        return str(path)

    def claim(self, path: str, visitor: str | None, session: str) -> bool:
        """Say whether a visitor may measure this file: a sample, or what the same browser and tab uploaded.

        Args:
            path: what the visitor named.
            visitor: the visitor's cookie. Without cookies, the first tab that names an upload owns it.
            session: the number of the visitor's tab.
        """
        place = Path(path)
        if place.parent == self._samples:
            return place.is_file()
        owner = self._owners.get(place.parent.name)
        if owner is None or place.parent.parent != self._uploads or not place.is_file():
            return False
        if owner.visitor != visitor or owner.session not in (None, session):
            return False
        owner.session = session
        os.utime(place.parent)
        return True

    def serves(self, path: str) -> bool:
        """Say whether a file's address is that of an upload, a result, or a sample."""
        place = Path(os.path.abspath(path))
        kept = (self._uploads, self._results, self._samples)
        return place.is_file() and any(place.is_relative_to(folder) for folder in kept)

    def results(self) -> Path:
        """Make a folder for one picture's results."""
        return self._new(self._results)

    def remove(self, results: Path) -> None:
        """Remove the results of a visit that is over."""
        shutil.rmtree(results, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what has not been used for `kept_seconds`, and uploads that no step has named, earlier."""
        now = time.time()
        for folder in (*self._uploads.iterdir(), *self._results.iterdir()):
            owner = self._owners.get(folder.name)
            unused = owner is not None and owner.session is None
            seconds = min(self.limits.unused_seconds, self.limits.kept_seconds) if unused else self.limits.kept_seconds
            if _age(folder, now) > seconds:
                self._forget(folder)
        for path in _files(self.folder):  # Gradio's own copies, such as those of its components' values
            top = self.folder / path.relative_to(self.folder).parts[0]
            if top not in (self._uploads, self._results, self._samples) and _age(path, now) > self.limits.kept_seconds:
                path.unlink(missing_ok=True)

    def _forget(self, folder: Path) -> None:
        self._owners.pop(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _new(parent: Path) -> Path:
        folder = parent / secrets.token_urlsafe(24)
        folder.mkdir()
        return folder


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed a moment ago
        return 0


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
