"""A page that shows what a build holds: statistics of each source, and samples as pictures that show a wrong scale."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...files import write_text
from ...processing.images_depthvlm import open_raster
from .shards import finished_builds, read_rows, shard_paths

# Depth maps that the share of valid pixels is measured on; everything else is of all rows.
MEASURED_MAPS = 100

PICTURE_WIDTH = 480  # pixels
LABELLED_POINTS = 12
GAP = 7  # pixels between a point and its label
_OUTLINE = 2
_FONT_SIZE = 12
SPARSE_SHARE = 0.1  # below this share of valid pixels each is drawn larger
_COLORS = matplotlib.colormaps["turbo_r"]


@dataclass(frozen=True)
class BuildStatistics:
    """Contents of a build, measured on all its records but for `valid`."""

    rows: int
    scenes: int
    cameras: int
    points: int
    # least, mean and greatest share of valid pixels, of up to `MEASURED_MAPS` depth maps
    valid: tuple[float, float, float]
    metres: tuple[float, ...]  # least, 5 %, median, 95 % and greatest depth of the sampled points
    focal_length: tuple[float, ...]  # least, median and greatest, pixels
    fov: tuple[float, ...]  # least, median and greatest horizontal field of view, degrees
    image_sizes: list[tuple[str, int]]  # each with its number, the most frequent first, as the next two
    depth_sizes: list[tuple[str, int]]
    encodings: list[tuple[str, int]]


def write_inspection(
    folder: str | Path,
    out: str | Path,
    samples: int = 12,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, BuildStatistics]:
    """Write a page about all builds of a folder, self-contained, with so many samples of each, evenly spaced.

    Returns:
        The statistics of each build, by its name.

    Raises:
        FileNotFoundError: There is no such folder.
        BuildError: No build is finished there, or a shard is not what the manifest says.
    """
    statistics, builds = {}, []
    for name, entry in finished_builds(folder).items():
        paths = shard_paths(folder, entry)
        counts = [shard["rows"] for shard in entry["shards"]]
        statistics[name], shown = build_statistics(paths, counts), []
        for row in _picked_rows(paths, counts, samples):
            shown.append((row, row_pictures(row)))
            advance(1)
        builds.append((entry, statistics[name], shown))
    title = f"DepthVLM-Bench: {', '.join(statistics)}"
    template = Path(__file__).with_name("inspection_page.html.jinja")
    write_text(out, render(template, title=title, gradient=color_gradient(), builds=builds))
    return statistics


def render(template: Path, **values: Any) -> str:
    """Fill a template of a page; a value that is missing is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def build_statistics(paths: list[Path], counts: list[int]) -> BuildStatistics:
    """Compute the statistics of a build from the paths of its shards and their numbers of rows."""
    names = ["scene", "camera", "depth_scale", "focal_length", "width", "height", "depth_width", "depth_height"]
    table = pa.concat_tables([pq.read_table(path, columns=[*names, "points"]) for path in paths])
    points = pc.struct_field(pc.list_flatten(table["points"]), "depth").to_numpy()
    fx, width = table["focal_length"].to_numpy(), table["width"].to_numpy()
    shares = [
        np.count_nonzero(decode_metres(row)) / (row["depth_width"] * row["depth_height"])
        for row in _picked_rows(paths, counts, MEASURED_MAPS, ["depth", "depth_scale", "depth_width", "depth_height"])
    ]
    scales = table["depth_scale"].to_pylist()

    def quantiles(values: np.ndarray, *percentages: int) -> tuple[float, ...]:
        return tuple(np.percentile(values, percentages).tolist())

    def sizes(*sides: str) -> list[tuple[str, int]]:
        found = zip(*(table[side].to_pylist() for side in sides), strict=True)
        return Counter(f"{width}x{height}" for width, height in found).most_common()

    return BuildStatistics(
        rows=table.num_rows,
        scenes=len(table["scene"].unique()),
        cameras=len(table["camera"].unique()),
        points=len(points),
        valid=(float(min(shares)), float(np.mean(shares)), float(max(shares))),
        metres=quantiles(points, 0, 5, 50, 95, 100),
        focal_length=quantiles(fx, 0, 50, 100),
        fov=quantiles(np.degrees(2 * np.arctan(width / (2 * fx))), 0, 50, 100),
        image_sizes=sizes("width", "height"),
        depth_sizes=sizes("depth_width", "depth_height"),
        encodings=Counter("float32" if s == 1 else f"uint16 / {s:g}" for s in scales).most_common(),
    )


def _picked_rows(
    paths: list[Path], counts: list[int], wanted: int, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Read records evenly spaced over all shards."""
    total = sum(counts)
    wanted = min(wanted, total)
    picked = [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]
    for path, count, first in zip(paths, counts, accumulate(counts, initial=0), strict=False):
        if inside := [row - first for row in picked if first <= row < first + count]:
            yield from read_rows(path, inside, columns)


@dataclass(frozen=True)
class RowPictures:
    """Pictures of one row as data URIs."""

    image: str  # the image with its points and their metres
    depth: str  # in colour, black where there is none
    overlay: str  # depth over the grey image
    low: float  # metres at the ends of the colours, which run logarithmically, as `high`
    high: float
    valid: float  # share of valid pixels of the map


def decode_metres(row: dict[str, Any]) -> NDArray[np.float32]:
    """Decode z-depth `(h, w)` in metres of a record whose files are undecoded, 0 where there is none."""
    with open_raster(row["depth"]["bytes"]) as picture:
        raw = np.asarray(picture)
    return (raw / np.float64(row["depth_scale"])).astype(np.float32)


def row_pictures(row: dict[str, Any]) -> RowPictures:
    """Draw the pictures of a record of a build, its files undecoded."""
    metres = decode_metres(row)
    valid = metres[metres > 0]
    low, high = float(valid.min()), float(valid.max())
    with open_raster(row["image"]["bytes"]) as opened:
        size = (PICTURE_WIDTH, max(1, round(PICTURE_WIDTH * opened.height / opened.width)))
        image = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small = _shrink(metres, size)
    if valid.size < SPARSE_SHARE * metres.size:
        small = _grow(small)
    colors = Image.fromarray(_colored(small, low, high)).resize(size, Image.Resampling.NEAREST)
    there = Image.fromarray(np.where(small > 0, np.uint8(255), np.uint8(0))).resize(size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGB")
    overlay = Image.composite(Image.blend(grey, colors, 0.6), grey, there)
    marked = _with_points(image, row, low, high)
    return RowPictures(
        data_uri(marked, "JPEG"),
        data_uri(colors, "PNG"),
        data_uri(overlay, "JPEG"),
        low,
        high,
        valid.size / metres.size,
    )


def color_gradient() -> str:
    """Return the colours, from near to far, as a CSS gradient."""
    rgb = (_COLORS(np.linspace(0, 1, 16))[:, :3] * 255).round().astype(int).tolist()
    return f"linear-gradient(to right, {', '.join(f'rgb({r},{g},{b})' for r, g, b in rgb)})"


def _shrink(metres: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Keep the nearest depth in each pixel of a picture of `size` (width, height), where the map is larger."""
    height, width = min(metres.shape[0], size[1]), min(metres.shape[1], size[0])
    rows, columns = np.nonzero(metres)
    cells = rows * height // metres.shape[0] * width + columns * width // metres.shape[1]
    nearest = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(nearest, cells, metres[rows, columns])
    return np.where(np.isfinite(nearest), nearest, np.float32(0)).reshape(height, width)


def _grow(metres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw every valid pixel 3x3 pixels large, the nearer over the farther."""
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


def data_uri(image: Image.Image, kind: str) -> str:
    """Return a picture as a JPEG or PNG in a data URI."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def label_corners(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float]]:
    """Place labels to the right of their points, and where that is outside or taken to the left, below or above.

    Args:
        points: Column and row of each point.
        sizes: Width and height of each label.
        picture: Width and height.

    Returns:
        Left and top of each label, inside the picture where it fits at all. Where no side is free, labels overlap.
    """
    taken: list[tuple[float, float, float, float]] = []
    corners = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        beside = [(x + GAP, y - height / 2), (x - GAP - width, y - height / 2)]
        around = [(x - width / 2, y + GAP), (x - width / 2, y - GAP - height)]
        diagonal = [(left, y + down) for left, _ in beside for down in (GAP, -GAP - height)]
        boxes = []
        for left, top in (*beside, *around, *diagonal):
            # A little outside is moved in; it may then touch its own point, but can be read.
            left_in = min(max(left, 0.0), max(picture[0] - width, 0.0))
            top_in = min(max(top, 0.0), max(picture[1] - height, 0.0))
            moved = abs(left_in - left) + abs(top_in - top)
            boxes.append((moved > height / 2, (left_in, top_in, left_in + width, top_in + height)))
        free = [box for far, box in boxes if not far and not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else next((box for far, box in boxes if not far), boxes[0][1])
        taken.append(chosen)
        corners.append((chosen[0], chosen[1]))
    return corners


def draw_labels(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], texts: Sequence[str], picture: tuple[int, int]
) -> None:
    """Write texts, white outlined in black, beside `points` (column and row) of a picture of this width and height."""
    font = ImageFont.load_default(_FONT_SIZE)
    boxes = [draw.textbbox((0, 0), text, font, stroke_width=_OUTLINE) for text in texts]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    for (x, y), text, (left, top, _, _) in zip(label_corners(points, sizes, picture), texts, boxes, strict=True):
        draw.text((x - left, y - top), text, "white", font, stroke_width=_OUTLINE, stroke_fill="black")


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
