"""Pictures of a row, small enough for a page, in which a wrong scale or projection shows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .picture_labels import draw_labels

PICTURE_WIDTH = 480  # pixels
LABELLED_POINTS = 12
SPARSE_SHARE = 0.1  # below this share of valid pixels each is drawn larger
_COLORS = matplotlib.colormaps["turbo_r"]


@dataclass(frozen=True)
class RowPictures:
    """Pictures of one row as data URIs.

    Args:
        image: with its points and their metres.
        depth: in colour, black where there is none.
        overlay: depth over the grey image.
        low, high: metres at the ends of the colours, which run logarithmically.
        valid: share of valid pixels of the map.
    """

    image: str
    depth: str
    overlay: str
    low: float
    high: float
    valid: float


def decode_metres(row: dict[str, Any]) -> NDArray[np.float32]:
    """Z-depth `(h, w)` in metres of a row whose files are undecoded, 0 where there is none."""
    from ...processing.images_depthvlm import open_raster

    with open_raster(row["depth"]["bytes"]) as picture:
        raw = np.asarray(picture)
    return (raw / np.float64(row["depth_scale"])).astype(np.float32)


def row_pictures(row: dict[str, Any]) -> RowPictures:
    """The pictures of a row of a build, its files undecoded."""
    from ...processing.images_depthvlm import open_raster

    metres = decode_metres(row)
    valid = metres[metres > 0]
    low, high = float(valid.min()), float(valid.max())
    share = valid.size / metres.size
    with open_raster(row["image"]["bytes"]) as opened:
        size = (PICTURE_WIDTH, max(1, round(PICTURE_WIDTH * opened.height / opened.width)))
        image = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small = _shrink(metres, size)
    if share < SPARSE_SHARE:
        small = _grow(small)
    colors = Image.fromarray(_colored(small, low, high)).resize(size, Image.Resampling.NEAREST)
    there = Image.fromarray(np.where(small > 0, np.uint8(255), np.uint8(0))).resize(size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGB")
    overlay = Image.composite(Image.blend(grey, colors, 0.6), grey, there)
    return RowPictures(
        _data_uri(_with_points(image, row, low, high), "JPEG"),
        _data_uri(colors, "PNG"),
        _data_uri(overlay, "JPEG"),
        low,
        high,
        share,
    )


def color_gradient(stops: int = 16) -> str:
    """The colours, from near to far, as a CSS gradient."""
    rgb = (_COLORS(np.linspace(0, 1, stops))[:, :3] * 255).round().astype(int).tolist()
    return f"linear-gradient(to right, {', '.join(f'rgb({r},{g},{b})' for r, g, b in rgb)})"


def _shrink(metres: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The nearest depth in each pixel of a picture of `size` (width, height), where the map is larger than that."""
    height, width = min(metres.shape[0], size[1]), min(metres.shape[1], size[0])
    rows, columns = np.nonzero(metres)
    cells = rows * height // metres.shape[0] * width + columns * width // metres.shape[1]
    nearest = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(nearest, cells, metres[rows, columns])
    return np.where(np.isfinite(nearest), nearest, np.float32(0)).reshape(height, width)


def _grow(metres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every valid pixel 3x3 pixels large, the nearer over the farther."""
    padded = np.pad(np.where(metres > 0, metres, np.inf), 1, constant_values=np.inf)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).min(axis=(2, 3))
    return np.where(np.isfinite(around), around, 0).astype(np.float32)


def _colored(metres: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(divide="ignore"):
        place = (np.log(metres) - np.log(low)) / max(np.log(high / low), 1e-6)
    colors = (_COLORS(np.clip(place, 0, 1))[..., :3] * 255).round().astype(np.uint8)
    return np.where(metres[..., None] > 0, colors, np.uint8(0))


def _with_points(image: Image.Image, row: dict[str, Any], low: float, high: float) -> Image.Image:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    points = row["points"]
    depth = np.array([[point["depth"] for point in points]], dtype=np.float32)
    across, down = image.width / row["depth_width"], image.height / row["depth_height"]
    places = [((point["column"] + 0.5) * across, (point["row"] + 0.5) * down) for point in points]
    for (x, y), color in zip(places, _colored(depth, low, high)[0].tolist(), strict=True):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tuple(color), outline="white")
    texts = [f"{point['depth']:.2f}" for point in points[:LABELLED_POINTS]]
    draw_labels(draw, places[:LABELLED_POINTS], texts, image.size)
    return image


def _data_uri(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
