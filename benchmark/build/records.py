"""One frame of a source as one record of the benchmark."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from ...processing import DEPTH_PROMPT, DEPTH_REPLY, DEPTH_SYSTEM_PROMPT
from ...processing.depth_maps_depthvlm import PNG_SCALE_KEY
from ...processing.images_depthvlm import open_raster
from ..sources.frames import Frame, FrameError, FrameRef
from .sampling import sample_points

if TYPE_CHECKING:
    from datasets import Features

# After PNG's filters a depth map is runs and noise: looking for longer matches takes zlib five times as long and saves
# nothing on NYUv2, KITTI and sparse lidar maps, and a tenth on ScanNet++'s.
PNG_COMPRESSION = {"compress_level": 4, "compress_type": zlib.Z_RLE}

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "PPM": ".ppm", "WEBP": ".webp"}


def benchmark_features() -> Features:
    """Return the columns of a record.

    Pixels and intrinsics are those of the image as stored, points those of the depth map. `depth` is z-depth: raw value
    / `depth_scale` = metres, 0 where there is none, in a 16-bit PNG or a float32 TIFF. Depth metres out of
    `depth_range` are 0. Intrinsics take the centre of the top left pixel as (0.5, 0.5).
    """
    from datasets import Features, Image, List, Value

    number, integer, text = Value("float64"), Value("int32"), Value("string")
    return Features(
        {
            "id": text,
            "source": text,
            "split": text,
            "scene": text,
            "camera": text,
            "image": Image(),
            "depth": Image(),
            "depth_scale": number,
            "depth_type": text,
            "depth_range": List(number, length=2),
            "intrinsics": List(number, length=4),
            "focal_length": number,
            "width": integer,
            "height": integer,
            "depth_width": integer,
            "depth_height": integer,
            "points": List({"column": integer, "row": integer, "depth": number}),
            "messages": List({"role": text, "content": text}),
        }
    )


def depth_messages() -> list[dict[str, str]]:
    """Return the conversation of every record: the paper's system text, prompt and constant reply."""
    said = (("system", DEPTH_SYSTEM_PROMPT), ("user", DEPTH_PROMPT), ("assistant", DEPTH_REPLY))
    return [{"role": role, "content": content} for role, content in said]


def encode_depth(depth: NDArray[np.uint16] | NDArray[np.float32], scale: float) -> tuple[bytes, str]:
    """Encode a depth map `(h, w)` without loss, and return its suffix.

    It is a 16-bit PNG that names its scale, or, for float32 metres, which 16 bits would round, a TIFF of Pillow's mode
    F.
    """
    stream = io.BytesIO()
    if depth.dtype == np.uint16:
        text = PngInfo()
        text.add_text(PNG_SCALE_KEY, repr(float(scale)))
        Image.fromarray(depth).save(stream, "PNG", pnginfo=text, **PNG_COMPRESSION)
        return stream.getvalue(), ".png"
    return _float_tiff(depth.astype(np.float32, copy=False)), ".tif"


def _float_tiff(depth: NDArray[Any]) -> bytes:
    """Encode float32 `(h, w)` as a TIFF of one deflated strip."""
    # Not by Pillow: its libtiff leaves a byte of uninitialised memory before the directory where the strip's length is
    # odd, so that the same map would not always give the same file.
    height, width = depth.shape
    strip = zlib.compress(np.ascontiguousarray(depth, "<f4").tobytes(), 6)
    offset = 8 + len(strip) + len(strip) % 2
    long, short = 4, 3
    tags = (
        (256, long, width),
        (257, long, height),
        (258, short, 32),  # bits of a sample
        (259, short, 8),  # deflate
        (262, short, 1),  # 0 is black
        (273, long, 8),  # where the strip begins
        (277, short, 1),  # samples of a pixel
        (278, long, height),  # rows of the strip
        (279, long, len(strip)),
        (339, short, 3),  # IEEE floats
    )
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    body = strip.ljust(offset - 8, b"\0") + struct.pack("<H", len(tags)) + directory + bytes(4)
    return struct.pack("<2sHI", b"II", 42, offset) + body


@dataclass(frozen=True)
class RowMaker:
    """Maker of records from frames."""

    source: str  # name of the source on the command line
    split: str  # "train" or "test"
    depth_range: tuple[float, float]  # metres that count as measured, inclusive
    seed: int | None  # seed of the points; None where the frames bring theirs
    messages: Sequence[dict[str, str]]  # [`depth_messages`]

    def row(self, frame: Frame, ref: FrameRef, points: int) -> dict[str, Any]:
        """Make the record of a frame, as Arrow takes it, with so many sampled points, or those that the frame brings.

        Raises:
            FrameError: Its image is not what the reader says, its camera is invalid, no pixel has depth, or it has no
                point.
            ValueError: The depth, its scale or mask are not as [`Frame`] says, a fault of the reader.
        """
        suffix = _check_image(frame)
        fx, fy, *_ = frame.intrinsics
        if not all(math.isfinite(number) for number in frame.intrinsics) or min(fx, fy) <= 0:
            raise FrameError(f"its camera has fx, fy, cx, cy = {frame.intrinsics}, not finite with positive fx and fy")
        _check_depth(frame)
        valid = _valid(frame, self.depth_range)
        if not valid.any():
            low, high = self.depth_range
            raise FrameError(f"none of its {valid.size} pixels has depth within {low:g} to {high:g} m")
        depth = np.where(valid, frame.depth, frame.depth.dtype.type(0))
        encoded, depth_suffix = encode_depth(depth, frame.depth_scale)
        if frame.points is None:
            columns, rows = sample_points(valid, points, self.seed, self.source, self.split, ref.id).T
            metres = depth[rows, columns].astype(np.float64) / frame.depth_scale
        else:
            if not len(frame.points):
                raise FrameError("it brings no point to be scored")
            columns, rows = frame.points[:, :2].astype(np.int64).T
            metres = frame.points[:, 2]
        return {
            "id": ref.id,
            "source": self.source,
            "split": self.split,
            "scene": ref.scene,
            "camera": ref.camera,
            "image": {"bytes": frame.image, "path": ref.id + suffix},
            "depth": {"bytes": encoded, "path": ref.id + depth_suffix},
            "depth_scale": float(frame.depth_scale),
            "depth_type": "z_depth",
            "depth_range": list(self.depth_range),
            "intrinsics": [float(number) for number in frame.intrinsics],
            "focal_length": float(fx),
            "width": frame.image_size[0],
            "height": frame.image_size[1],
            "depth_width": depth.shape[1],
            "depth_height": depth.shape[0],
            "points": [
                {"column": column, "row": row, "depth": value}
                for column, row, value in zip(columns.tolist(), rows.tolist(), metres.tolist(), strict=True)
            ],
            "messages": self.messages,
        }


def _valid(frame: Frame, depth_range: tuple[float, float]) -> NDArray[np.bool_]:
    """Tell where `frame.metres(depth_range)` is not 0."""
    if frame.depth.dtype != np.uint16:
        return frame.metres(depth_range) > 0
    low, high = _raw_range(frame.depth_scale, depth_range)
    valid = (frame.depth >= low) & (frame.depth <= high)
    return valid if frame.mask is None else valid & frame.mask


@lru_cache(maxsize=16)
def _raw_range(scale: float, depth_range: tuple[float, float]) -> tuple[np.uint16, np.uint16]:
    """Return the least and greatest raw value that count as measured; comparing these is quicker than making metres."""
    values = np.arange(2**16, dtype=np.uint16)[None]
    found = np.flatnonzero(Frame(FrameRef("", ""), b"", (1, 1), values, scale, (1, 1, 0, 0)).metres(depth_range))
    return (np.uint16(found[0]), np.uint16(found[-1])) if len(found) else (np.uint16(1), np.uint16(0))


def _check_depth(frame: Frame) -> None:
    depth, scale, mask, points = frame.depth, frame.depth_scale, frame.mask, frame.points
    if depth.ndim != 2 or (mask is not None and mask.shape != depth.shape):
        shape = None if mask is None else mask.shape
        raise ValueError(f"depth must be (h, w) and mask of its shape, got {depth.shape} and {shape}")
    whole = depth.dtype == np.uint16 and 0 < scale < math.inf
    if not whole and not (depth.dtype == np.float32 and scale == 1):
        raise ValueError(f"depth must be uint16, or float32 with depth_scale 1, got {depth.dtype} with {scale!r}")
    if points is not None and (points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all()):
        raise ValueError(f"points must be (n, 3), column, row and metres, all finite, got {points.shape}")


def _check_image(frame: Frame) -> str:
    """Return the suffix for an image's file, from its header; its pixels stay undecoded."""
    try:
        with open_raster(frame.image) as image:
            size, kind = image.size, image.format or ""
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise FrameError(f"its image of {len(frame.image)} bytes cannot be read: {error}") from error
    if size != tuple(frame.image_size):
        expected = "x".join(str(side) for side in frame.image_size)
        raise FrameError(f"its image has {size[0]}x{size[1]} pixels (width x height), its camera is for {expected}")
    return _SUFFIXES.get(kind, "." + kind.lower())
