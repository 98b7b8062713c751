"""The side-by-side video of a clip: picture, depth in colour, and one scale bar in metres."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .files import atomic_write
from .video_frames import require_av
from .visualize import DepthRange, colorize, scale_bar

if TYPE_CHECKING:
    import av

MAX_WIDTH, MAX_HEIGHT = 4096, 1080  # limit of hardware decoders; the PNG frames keep every pixel
_BAR_HEIGHTS = (96, 720)  # so that two full HD pictures and the bar stay within MAX_WIDTH
_MPEG4_MAX_DENOMINATOR = 65535  # limit of MPEG-4 part 2's time base
_BT709 = 1


class SideBySide:
    """A layout with the picture on the left, its depth in colour, and the scale bar on the right, in even sizes.

    Args:
        size: `(width, height)` of the pictures in pixels; larger ones are scaled to fit `MAX_WIDTH` x `MAX_HEIGHT`.
        limits: Depths in metres of the first and the last colour, for all frames.
    """

    def __init__(self, size: tuple[int, int], limits: DepthRange):
        self.limits = limits
        width, height = size
        widest_bar = scale_bar(_bar_height(height), limits).width
        scale = min(1.0, MAX_HEIGHT / height, (MAX_WIDTH - widest_bar) / (2 * width))
        self.pane = (max(1, round(width * scale)), max(1, round(height * scale)))
        self.bar = scale_bar(_bar_height(self.pane[1]), limits)
        self.size = (_even(2 * self.pane[0] + self.bar.width), _even(max(self.pane[1], self.bar.height)))

    def draw(self, picture: Image.Image, depth: NDArray[np.floating]) -> Image.Image:
        """Return the frame for a picture and its depth `(H, W)` in metres."""
        canvas = Image.new("RGB", self.size, "white")
        colors = Image.fromarray(colorize(depth, self.limits))
        if picture.size != self.pane:
            picture = picture.resize(self.pane, Image.Resampling.LANCZOS)
            colors = colors.resize(self.pane, Image.Resampling.BOX)  # averages without overshooting colours
        canvas.paste(picture, (0, 0))
        canvas.paste(colors, (self.pane[0], 0))
        canvas.paste(self.bar, (2 * self.pane[0], (self.size[1] - self.bar.height) // 2))
        return canvas


class VideoWriter:
    """An open MP4 file for RGB frames with times: H.264 if this PyAV supports it, else MPEG-4."""

    def __init__(
        self, container: "av.container.OutputContainer", size: tuple[int, int], time_base: Fraction, rate: Fraction
    ):
        av = require_av()
        self._av = av
        self._container = container
        self.codec = "libx264" if "libx264" in av.codec.codecs_available else "mpeg4"
        options = {"crf": "18", "preset": "veryfast"} if self.codec == "libx264" else {"qscale": "3"}
        if self.codec == "mpeg4" and time_base.denominator > _MPEG4_MAX_DENOMINATOR:
            self.time_base = Fraction(1, 60_000)
        else:
            self.time_base = time_base
        self._source_time_base = time_base
        self._duration = max(1, round(1 / rate / self.time_base))  # players show the last frame this long
        self._last = -1
        stream: Any = container.add_stream(self.codec, rate=rate.limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        context = stream.codec_context
        context.time_base = self.time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        self._stream = stream

    def write(self, image: Image.Image, ticks: int) -> None:
        """Add a frame, `ticks` of the time base after the first."""
        frame = self._av.VideoFrame.from_image(image).reformat(format="yuv420p", dst_colorspace="ITU709")
        self._last = max(self._last + 1, round(ticks * self._source_time_base / self.time_base))
        frame.pts, frame.time_base, frame.duration = self._last, self.time_base, self._duration
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the frames buffered in the encoder."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def write_video(path: Path, size: tuple[int, int], time_base: Fraction, rate: Fraction) -> Iterator[VideoWriter]:
    """Write a video that appears at `path` if the block succeeds, and is removed if it fails.

    Args:
        path: The file.
        size: `(width, height)` in pixels, even.
        time_base: Seconds per tick of the frames' times.
        rate: Frames per second, on average.
    """
    av = require_av()
    with atomic_write(path) as file, av.open(file, "w", format="mp4") as container:
        writer = VideoWriter(container, size, time_base, rate)
        yield writer
        writer.finish()


def _bar_height(height: int) -> int:
    shortest, tallest = _BAR_HEIGHTS
    return min(max(height, shortest), tallest)


def _even(side: int) -> int:
    return side + side % 2
