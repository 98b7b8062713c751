"""Writing a clip's depth maps: each as it is predicted, or steadied by its neighbours.

The state of the filter is the last PNG that was written, and nothing else, so that an interrupted clip goes on from it
with the same bytes.
"""

import warnings
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .clip_files import ClipSettings
from .ego_motion import Pinhole
from .export import UINT16_MAX, read_png16, write_png16
from .processing import Camera
from .steady import SteadyFrame, steadied
from .video_frames import Frame, ImageSequence, VideoFile


class FrameWriter:
    """Writer of depth maps as they are predicted.

    Attributes:
        png: Function that returns the path of a frame's depth map by its name.
    """

    def __init__(self, png: Callable[[str], Path]):
        self.png = png

    def skip(self, frame: Frame) -> None:
        """Pass a frame whose depth map exists."""

    def add(self, frame: Frame, picture: Image.Image, depth: NDArray[np.floating]) -> None:
        """Write the depth map `(H, W)` in metres of a frame, now or once the frames are there that it waits for."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*the most that a 16-bit PNG holds")
            write_png16(self.png(frame.name), depth)

    def close(self) -> None:
        """Write what still waits."""


class SteadyWriter(FrameWriter):
    """Writer of steadied depth maps; keeps `ahead` frames, and the one before them."""

    def __init__(self, png: Callable[[str], Path], ahead: int, camera: Camera):
        super().__init__(png)
        self.ahead = ahead
        self.camera = Pinhole(
            camera.fx / camera.width, camera.fy / camera.height, camera.cx / camera.width, camera.cy / camera.height
        )
        self._last: tuple[Frame, Image.Image | None] | None = None  # its picture is read when it is needed
        self._waiting: deque[tuple[Frame, Image.Image, SteadyFrame]] = deque()

    def skip(self, frame: Frame) -> None:
        """Pass a frame whose depth map exists: it steadies the next one."""
        self._last = frame, None

    def add(self, frame: Frame, picture: Image.Image, depth: NDArray[np.floating]) -> None:
        """Write the frame that waits longest, once `ahead` frames after it are there."""
        self._waiting.append((frame, picture, SteadyFrame.of(picture, depth)))
        if len(self._waiting) > self.ahead:
            self._write_first()

    def close(self) -> None:
        """Write the frames that still wait: the last of the clip."""
        while self._waiting:
            self._write_first()

    def _write_first(self) -> None:
        frame, picture, now = self._waiting.popleft()
        previous = None
        if self._last is not None:
            last, seen = self._last
            values, scale = read_png16(self.png(last.name))
            previous = SteadyFrame.of(seen or last.picture(), values / np.float64(scale))
        depth = steadied(now, previous, [other for _, _, other in self._waiting], self.camera)
        super().add(frame, picture, depth)
        self._last = frame, picture


def depending_frames(
    source: VideoFile | ImageSequence, folder: Path, settings: ClipSettings, total: int | None
) -> list[Path]:
    """Return the depth maps of a steadied clip that have to be made again because a frame near them is missing.

    They are all that come after the first missing frame, and before it those that look ahead to it.

    Args:
        source: The clip.
        folder: The folder of its depth maps.
        settings: Settings of the clip.
        total: Number of frames, None if it is not known.
    """
    there = {path.stem: path for path in folder.glob("*.png")}
    names = list(source.names(len(source.files) or len(there), settings.every))
    kept = list(takewhile(there.__contains__, names))
    others = [name for name in there if name not in names]
    if source.files and others:  # an image was removed, which those after it were steadied by
        kept = []
    elif len(kept) != total:
        kept = kept[: len(kept) - (settings.steady or 0)]
        # A frame in 1/256 m that fits millimetres was rewritten: it is no longer what the next one was steadied by.
        while kept and _is_rewritten(there[kept[-1]]):
            kept.pop()
    dropped = [name for name in there if name not in kept]
    return [there[name] for name in sorted(dropped, key=others.__contains__)]


def _is_rewritten(path: Path) -> bool:
    values, scale = read_png16(path)
    return scale == 256 and values.max() <= round(UINT16_MAX / 1000 * 256)
