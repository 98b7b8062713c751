"""Data of the demo's visitors, within limits: uploads, files of results, conversations.

An upload may be anything: it becomes a picture with its camera, or an error message.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from ...processing import Camera, resolve_camera
from ...processing.camera_depthvlm import exif_orientation, read_exif

if TYPE_CHECKING:
    from ...conversation import Conversation

FORMATS = ("JPEG", "PNG", "WEBP")  # decoders with a well-kept C library; no vector or document format
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # an upload of any other name is served as a download of unknown type


@dataclass(frozen=True)
class Limits:
    """Limits of what the demo's visitors may ask of the machine."""

    file_bytes: int = 20 * 2**20  # greatest size of an upload
    # greatest width times height of a picture, read from its header before anything is decoded
    image_pixels: int = 25_000_000
    request_seconds: float = 60.0  # time for one request from its turn on; waiting in the queue does not count
    new_tokens: int = 256  # greatest length of a reply
    question_characters: int = 2000  # greatest length of a question
    conversation_tokens: int = 4096  # greatest length of a conversation with its image, in tokens
    request_bytes: int = 2**16  # greatest size of a request that is not an upload
    upload_seconds: float = 60.0  # time for the body of a request to arrive
    waiting: int = 64  # requests for the model in the queue; more are told to come back
    kept_seconds: int = 1800  # time after their last use until uploads, results and conversations are removed
    unused_seconds: int = 120  # time until an upload that no step has named is removed
    live_caches: int = 4  # conversations whose image and key-value cache stay in memory; older ones encode it again
    sessions: int = 128  # visitors whose conversations are remembered at a time
    disk_bytes: int = 4 * 2**30  # size of the temporary folder from which on uploads are refused


def open_upload(path: str, limits: Limits) -> Image.Image:
    """Return the picture of an upload. Its size is checked before its pixels are decoded.

    Raises:
        ValueError: It is not a picture of one of `FORMATS`, is too large, or cannot be decoded.
    """
    image = _open_header(path, limits)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, MemoryError):  # Pillow's words may quote the file: not for a page
        raise ValueError("This picture cannot be decoded: it may be damaged.") from None
    return image


def camera_of(path: str, focal_length: float | None, limits: Limits) -> Camera:
    """Return the camera of an upload, read from its header alone.

    Args:
        path: The upload.
        focal_length: Pixels. One that equals that of the EXIF data, or the assumed one, to a tenth of a pixel was
            not typed by the visitor. None: from EXIF data, or else assumed.
        limits: Limits of the upload.

    Raises:
        ValueError: See `open_upload`; or the focal length is not a positive number.
    """
    image = _open_header(path, limits)
    try:
        exif = read_exif(image)
    except ValueError:  # corrupt: said when the picture is measured
        exif = None
    turned = exif_orientation(exif) >= 5
    size = (image.width, image.height) if turned else (image.height, image.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page shows the source instead
        known = resolve_camera(size, exif)
        if focal_length is None or math.isclose(focal_length, known.fx, abs_tol=0.1):
            return known
        return resolve_camera(size, exif, focal_length=focal_length)


def result_stem(path: str) -> str:
    """Return the stem of the downloads: the upload's name in plain letters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_")[:60] or "picture"


def _open_header(path: str, limits: Limits) -> Image.Image:
    if not os.path.isfile(path):
        raise ValueError("This picture is kept no longer. Give it again.")
    if os.path.getsize(path) > limits.file_bytes:
        raise ValueError(f"This file is larger than {limits.file_bytes / 2**20:g} MB, the most that is taken here.")
    size = "more than 178 million"  # Pillow's own limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            image: Any = Image.open(path, formats=FORMATS)
        if image.width * image.height <= limits.image_pixels:
            return image
        size = f"{image.width}x{image.height}"
    except UnidentifiedImageError:
        raise ValueError("This is not a picture that can be read here. Give a JPEG, PNG or WebP file.") from None
    except Image.DecompressionBombError:
        pass
    except (OSError, SyntaxError, ValueError):
        raise ValueError("This picture cannot be read: it may be damaged.") from None
    raise ValueError(
        f"This picture has {size} pixels; at most {limits.image_pixels / 1e6:g} million are taken. Make it smaller."
    )


@dataclass
class _Owner:
    """The visitor who uploaded a file: the browser by its cookie, None without cookies, and the tab that used it."""

    visitor: str | None
    session: str | None = None


class Files:
    """Uploads, results and samples in one folder. Every upload and every result has a folder with a random name.

    Args:
        folder: Gradio's temporary folder, which this object fills and sweeps.
        limits: How much is kept, and for how long.
    """

    def __init__(self, folder: str | Path, limits: Limits) -> None:
        self.folder = Path(folder).resolve()
        self.limits = limits
        self._kept = self._uploads, self._results, self._samples = tuple(
            self.folder / name for name in ("uploads", "results", "samples")
        )
        for path in self._kept:
            path.mkdir(parents=True, exist_ok=True)
        self._owners: dict[str, _Owner] = {}
        self.arriving = 0  # bytes of uploads that are not whole yet, as the server counts them

    def sample(self, path: str | Path) -> str:
        """Copy a picture that every visitor may measure, and return its new path."""
        return str(shutil.copy2(path, self._samples))

    def room(self, size: int) -> bool:
        """Say whether there is room for so many bytes, besides what is here and what is coming in."""
        here = sum(state.st_size for _, state in self._files())
        return here + self.arriving + size <= self.limits.disk_bytes

    def keep(self, content: Any, name: str, visitor: str | None) -> str:
        """Write an upload under a name of the server's own choice, and return its path.

        Args:
            content: A binary file.
            name: The visitor's name for it. Its letters and a picture's suffix are kept for the results' names.
            visitor: The visitor's cookie.
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
            path: The path that the visitor named.
            visitor: The visitor's cookie. Without cookies, the first tab that names an upload owns it.
            session: The number of the visitor's tab.
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
        return place.is_file() and any(place.is_relative_to(folder) for folder in self._kept)

    def results(self) -> Path:
        """Make a folder for one picture's results."""
        return self._new(self._results)

    def sweep(self) -> None:
        """Remove what has not been used for `kept_seconds`, and uploads that no step has named, earlier."""
        now = time.time()
        for folder in (*self._uploads.iterdir(), *self._results.iterdir()):
            owner = self._owners.get(folder.name)
            unused = owner is not None and owner.session is None
            seconds = min(self.limits.unused_seconds, self.limits.kept_seconds) if unused else self.limits.kept_seconds
            state = _stat(folder)
            if state is not None and now - state.st_mtime > seconds:
                self._forget(folder)
        for path, state in self._files():  # Gradio's own copies, such as those of its components' values
            top = self.folder / path.relative_to(self.folder).parts[0]
            if top not in self._kept and now - state.st_mtime > self.limits.kept_seconds:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        # Not `rglob`, which fails where a folder is removed meanwhile.
        paths = [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]
        return [(path, state) for path in paths if (state := _stat(path)) is not None]

    def _forget(self, folder: Path) -> None:
        self._owners.pop(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _new(parent: Path) -> Path:
        folder = parent / secrets.token_urlsafe(24)
        folder.mkdir()
        return folder


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # removed a moment ago
        return None


@dataclass(eq=False)
class Visit:
    """A visitor's last picture and the conversation about it."""

    photo: str  # the path of the picture
    focal_length: float | None  # in pixels, where the visitor typed it
    camera: Camera  # the picture's camera
    results: Path  # the folder of its files; the depth map is in it from the start
    stem: str  # what the files' names begin with
    messages: list[dict[str, str]] = field(default_factory=list)  # the questions and replies so far
    conversation: Conversation | None = None  # the picture with its key-value cache, where it is in memory
    seen: float = field(default_factory=time.monotonic)  # when the visitor last used it, on the monotonic clock

    def release(self) -> None:
        """Give back the memory of the picture and of the cache; the messages stay."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            self.messages = conversation.messages
            conversation.release()


class Visits:
    """All visits, the last used one last: a few with their picture in memory, the oldest ended when there are too many.

    Args:
        limits: How many are remembered, how many of them in memory, and for how long.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._visits: dict[Visit, None] = {}
        self._lock = threading.Lock()

    def used(self, visit: Visit) -> None:
        """Note that a visit has just been used."""
        with self._lock:
            visit.seen = time.monotonic()
            self._visits.pop(visit, None)
            self._visits[visit] = None
            visits = list(self._visits)
        for old in visits[: max(0, len(visits) - self.limits.live_caches)]:
            old.release()
        for old in visits[: max(0, len(visits) - self.limits.sessions)]:
            self.end(old)

    def end(self, visit: Visit) -> None:
        """Forget a visit that is over, and remove its files."""
        with self._lock:
            known = visit in self._visits
            self._visits.pop(visit, None)
        if known:
            visit.release()
            visit.messages = []
            shutil.rmtree(visit.results, ignore_errors=True)

    def sweep(self) -> None:
        """End the visits that have not been used for `kept_seconds`."""
        oldest = time.monotonic() - self.limits.kept_seconds
        with self._lock:
            late = [visit for visit in self._visits if visit.seen < oldest]
        for visit in late:
            self.end(visit)

    def __iter__(self) -> Iterator[Visit]:
        with self._lock:
            return iter(list(self._visits))

    def __contains__(self, visit: Visit | None) -> bool:
        return visit in self._visits

    def __len__(self) -> int:
        return len(self._visits)
