"""Frames of a clip: from a video file, decoded by PyAV, or from a folder of images in natural order.

Frames are read one at a time, upright and with square pixels; nothing is kept.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .inputs import find_images, result_stems
from .processing.camera_depthvlm import exif_orientation
from .processing.images_depthvlm import open_image, open_raster, upright_image

if TYPE_CHECKING:
    import av

_TRANSPOSE = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class Frame:
    """A frame of a clip, decoded but not yet converted.

    Attributes:
        name: Name of its depth map, without suffix; alphabetical order is the clip's order.
        ticks: Time since the first frame, in the source's `time_base`.
        source: The decoded frame, or the file to read.
        stretch: Display aspect ratio (width over height) of a stored pixel.
    """

    name: str
    ticks: int
    source: Any
    stretch: Fraction = Fraction(1)

    def picture(self) -> Image.Image:
        """Return the upright picture, RGB.

        Raises:
            ValueError: An image file cannot be read; the message names it.
        """
        if isinstance(self.source, Path):
            try:
                return upright_image(open_image(self.source, reduce=False))[0]
            except ValueError as error:
                message = str(error)
                raise ValueError(message if str(self.source) in message else f"{self.source}: {message}") from error
        picture = self.source.to_image()
        if self.stretch != 1:  # anamorphic: stored narrower or wider than it is shown
            width = max(1, round(picture.width * self.stretch))
            picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
        turn = round(self.source.rotation / 90) * 90 % 360
        return picture.transpose(_TRANSPOSE[turn]) if turn else picture


def require_av() -> Any:
    """Return PyAV.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f'Clips need PyAV ({error}): pip install "depthvlm[video]", or `pip install av` alone beside a CPU build '
            "of torch."
        ) from error
    av.logging.set_level(None)  # relevant errors are raised and reported here
    return av


def open_clip(path: str | PathLike[str], fps: float = 30.0) -> "VideoFile | ImageSequence":
    """Open a clip from a video file or from a folder of images.

    Args:
        path: The file or folder.
        fps: Frames per second of a folder; a video file has its own times.

    Raises:
        ImportError: PyAV is missing.
        FileNotFoundError: There is no such file or folder.
        ValueError: It is not a video, has no decodable frame, or a folder's images differ in size.
    """
    require_av()
    path = Path(path)
    if path.is_dir():
        return ImageSequence(path, fps)
    if not path.is_file():
        raise FileNotFoundError(f"There is no video file or folder of frames {str(path)!r}.")
    return VideoFile(path)


class VideoFile:
    """The first video stream of a file.

    Attributes:
        path: The file or, for an `ImageSequence`, the folder.
        files: Images of an `ImageSequence`; empty for a video file.
        size: `(width, height)` of an upright frame in pixels.
        exif: EXIF data of the first frame, None for a video file.
        time_base: Seconds per tick of `Frame.ticks`.
        rate: Frames per second, on average.
        expected: Number of frames, or None if unknown. For a video file it is only an estimate.
        problem: Problem with the file in the last complete run through `frames`.
    """

    exif: Image.Exif | None = None
    files: Sequence[Path] = ()

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            self.time_base = Fraction(stream.time_base or Fraction(1, 90_000))
            self.stretch = Fraction(stream.sample_aspect_ratio or 1)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 30)
            if stream.duration is not None:
                self.length: Fraction | None = stream.duration * self.time_base
            else:
                self.length = None if container.duration is None else Fraction(container.duration, 1_000_000)
            self.expected = stream.frames or (None if self.length is None else round(self.length * self.rate)) or None
        first = next(self.frames(), None)
        if first is None:
            raise ValueError(f"{path} has a video stream, but no frame of it can be decoded ({self.problem}).")
        self.size = first.picture().size

    def frames(self) -> Iterator[Frame]:
        """Yield all decodable frames, from the first; undecodable ones are counted for `problem`."""
        av = require_av()
        self.problem = None
        undecodable, damaged, index, first_tick, last_tick = 0, 0, 0, 0, -1
        reason = ""
        with self._open() as container:
            packets = container.demux(container.streams.video[0])
            while True:
                try:
                    decoded = next(packets).decode()
                except (StopIteration, av.error.EOFError):
                    break
                except av.error.FFmpegError as error:
                    undecodable, reason = undecodable + 1, error.strerror or str(error)
                    continue
                for frame in decoded:
                    ticks = self._ticks(frame, index)
                    if index == 0:
                        first_tick = ticks
                    # Players and encoders need increasing times, which a broken file may lack.
                    last_tick = max(last_tick + 1, ticks - first_tick)
                    yield Frame(f"{index:06d}", last_tick, frame, self.stretch)
                    index += 1
                    damaged += frame.is_corrupt
        end = (last_tick * self.time_base + 1 / self.rate) if index else Fraction(0)
        if undecodable:
            self.problem = f"{undecodable} part(s) of the file cannot be decoded ({reason}); {index} frames can"
        elif damaged:
            self.problem = f"{damaged} of {index} frames are damaged: the decoder has made up a part of them"
        # A truncated file may just end; its header gives the full length.
        elif self.length is not None and end < self.length - max(Fraction(1, 2), 3 / self.rate):
            self.problem = (
                f"the file says that it is {float(self.length):.2f} s long, but its frames end at {float(end):.2f} s "
                f"({index} frames): it may be truncated"
            )

    def names(self, count: int, every: int) -> Iterator[str]:
        """Return the names of the first `count` frames taken, every `every`-th of all: numbers in the file."""
        return (f"{index * every:06d}" for index in range(count))

    def _open(self) -> "av.container.InputContainer":
        av = require_av()
        try:
            container = av.open(str(self.path))
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path} is not a video that can be read: {error.strerror}.") from None
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.path} has no video stream.")
        return container

    def _ticks(self, frame: "av.VideoFrame", index: int) -> int:
        if frame.pts is None:
            return round(index / self.rate / self.time_base)
        return round(frame.pts * (frame.time_base or self.time_base) / self.time_base)


class ImageSequence:
    """The images in a folder, in natural order (`2.png` before `10.png`). Attributes: see `VideoFile`."""

    problem: str | None = None  # an image that cannot be read is an error

    def __init__(self, path: Path, fps: float):
        if not fps > 0:
            raise ValueError(f"Frames a second must be above 0, got {fps}.")
        self.path = path
        self.files: Sequence[Path] = natural_sorted([Path(file) for file in find_images([str(path)])])
        self.expected: int | None = len(self.files)
        self.rate = Fraction(fps).limit_denominator(1001)
        self.time_base = 1 / self.rate
        picture, self.exif = upright_image(open_image(self.files[0], reduce=False))
        self.size = picture.size
        for file in self.files[1:]:
            if (size := _upright_size(file)) != self.size:
                raise ValueError(
                    f"{file} has {size[0]}x{size[1]} pixels, but the first frame, {self.files[0].name}, has "
                    f"{self.size[0]}x{self.size[1]}. The frames of a sequence are taken by one camera: give them one "
                    "size, or predict the folder as single images (without --sequence)."
                )
        self._names = result_stems(self.files)

    def frames(self) -> Iterator[Frame]:
        """Yield all frames; the files are opened by `Frame.picture`."""
        for index, (name, file) in enumerate(zip(self._names, self.files, strict=True)):
            yield Frame(name, index, file)

    def names(self, count: int, every: int) -> Iterator[str]:
        """Return the names of the first `count` frames taken: those of the files without suffix."""
        return iter(self._names[::every][:count])


def natural_sorted(paths: Sequence[Path]) -> list[Path]:
    """Sort paths with the numbers in their names in numerical order."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", path.name.casefold())
        return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]

    return sorted(paths, key=lambda path: (key(path), path.name))


def _upright_size(file: Path) -> tuple[int, int]:
    try:
        with open_raster(file) as image:
            # Pillow also looks for a PNG's EXIF data after its pixels, and would decode them all.
            has_exif = image.format != "PNG" or "exif" in image.info
            turned = has_exif and exif_orientation(image.getexif()) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception as error:  # Pillow may raise anything on corrupt bytes
        raise ValueError(f"{file} is not an image that can be read ({error}): remove or repair it.") from None
