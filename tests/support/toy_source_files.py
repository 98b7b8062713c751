"""Image and depth files as datasets store them, written by other means than the readers use."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthvlm.benchmark.sources.frames import Frame, FrameError, FrameRef, Source, SourceError
from PIL import Image


def write_image(path: Path, size: tuple[int, int], **options: object) -> bytes:
    """A colourful picture of `size` (width, height), in the format of its suffix. Returns its bytes."""
    width, height = size
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def png(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


def jpeg(size: tuple[int, int], color: tuple[int, int, int] = (90, 120, 30)) -> bytes:
    """The bytes of a JPEG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "JPEG")
    return stream.getvalue()


def write_depth(path: Path, rows: object, **text: str) -> None:
    """A 16-bit grey PNG of a list of rows, chunk by chunk after the PNG specification."""
    values = np.array(rows, dtype=">u2")
    height, width = values.shape
    lines = np.pad(values.view(np.uint8), ((0, 0), (1, 0))).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))]
    chunks += [(b"tEXt", f"{key}\0{value}".encode("latin-1")) for key, value in text.items()]
    chunks += [(b"IDAT", zlib.compress(lines, 1)), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    )


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def link(target: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def spoil(path: Path, content: str | bytes | float | None) -> None:
    """Deletes a file (None), leaves a share of it (float), or gives it another content."""
    if content is None:
        path.unlink()
    elif isinstance(content, float):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * content)])
    elif isinstance(content, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        write_text(path, content)


def spoils(read: Callable[[], object], folder: Path, *steps: tuple, error: type = FrameError) -> None:
    """Asserts, one spoiled file after the other, an error that `words` match; a step is `(name, content, words)`."""
    for name, content, words in steps:
        spoil(folder / name, content)
        with pytest.raises(error, match=words):
            read()


def fails(source: Source, ref: FrameRef, *words: str) -> None:
    """Asserts that reading is a FrameError whose message has these words."""
    with pytest.raises(FrameError) as caught:
        source.read(ref)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def refuses(source: Source, words: str, place: int = 0) -> None:
    """Asserts that reading a frame of the test split is a FrameError that this expression matches."""
    with pytest.raises(FrameError, match=words):
        frame_of(source, place)


def no_index(words: str, reader: Callable[..., Source], root: Path, split: str = "test", **options: Any) -> None:
    """Asserts that opening a root and listing a split is a SourceError that this expression matches."""
    with pytest.raises(SourceError, match=words):
        reader(root, **options).index(split)


def frame_of(source: Source, place: int = 0, split: str = "test") -> Frame:
    return source.read(source.index(split)[place])


def change(file: Path, edit: Callable[[Any], object]) -> None:
    """Edits a JSON file."""
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def spread(metres: np.ndarray) -> tuple[float, float, float]:
    """Minimum, median and maximum of what is valid."""
    valid = metres[metres > 0]
    return float(valid.min()), float(np.median(valid)), float(valid.max())


def check_frame(
    frame: Frame, image: bytes, image_size: tuple[int, int], shape: tuple[int, int], intrinsics: object = None
) -> None:
    assert (frame.image, frame.image_size, frame.depth.shape) == (image, image_size, shape)
    assert frame.depth.dtype in (np.uint16, np.float32)
    assert intrinsics is None or frame.intrinsics == intrinsics
