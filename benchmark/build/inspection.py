"""A page that shows what a build holds: statistics of each source, and samples as pictures that show a wrong scale."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
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
from .shards import finished_builds, shard_paths

# Depth maps that the share of valid pixels is measured on; everything else is of all rows.
MEASURED_MAPS = 100

PICTURE_WIDTH = 480  # pixels
LABELLED_POINTS = 12
GAP = 7  # pixels between a point and its label
_OUTLINE = 2
_FONT_SIZE = 12
SPARSE_SHARE = 0.1  # below this share of valid pixels each is drawn larger
_COLORS = matplotlib.colormaps["turbo_r"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: 3px 12px; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.sample { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; margin: 1.5em 0; }
.sample img { width: 100%; display: block; }
.sample p { grid-column: 1 / -1; margin: 0; }
.bar { display: inline-block; width: 160px; height: 10px; margin: 0 6px; }
.note { color: #a40; }
"""


@dataclass(frozen=True)
class BuildStatistics:
    """Contents of a build, measured on all its records but for `valid`.

    Args:
        rows, scenes, cameras, points: numbers.
        valid: least, mean and greatest share of valid pixels, of up to `MEASURED_MAPS` depth maps.
        metres: least, 5 %, median, 95 % and greatest depth of the sampled points.
        focal_length: least, median and greatest, pixels.
        fov: least, median and greatest horizontal field of view, degrees.
        image_sizes, depth_sizes, encodings: each with its number, the most frequent first.
    """

    rows: int
    scenes: int
    cameras: int
    points: int
    valid: tuple[float, float, float]
    metres: tuple[float, ...]
    focal_length: tuple[float, ...]
    fov: tuple[float, ...]
    image_sizes: list[tuple[str, int]]
    depth_sizes: list[tuple[str, int]]
    encodings: list[tuple[str, int]]


def write_inspection(
    folder: str | Path,
    out: str | Path,
    samples: int = 12,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, BuildStatistics]:
    """Write a page about all builds of a folder, self-contained.

    Args:
        folder: folder of `depthvlm bench build`.
        out: the HTML file.
        samples: rows of each build that are shown, evenly spaced.
        advance: called with 1 for each of them.

    Returns:
        The statistics of each build, by its name.

    Raises:
        FileNotFoundError: there is no such folder.
        BuildError: no build is finished there, or a shard is not what the manifest says.
    """
    statistics, parts = {}, []
    for name, entry in finished_builds(folder).items():
        paths = shard_paths(folder, entry)
        counts = [shard["rows"] for shard in entry["shards"]]
        statistics[name] = build_statistics(paths, counts)
        parts.append(_section(entry, statistics[name]))
        for row in _picked_rows(paths, counts, samples):
            parts.append(_sample(row, row_pictures(row)))
            advance(1)
    title = f"DepthVLM-Bench: {', '.join(statistics)}"
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        "<p>Left: the image with its points in metres. Middle: depth in colour, logarithmic from end to end of its "
        "bar, black where there is none. Right: depth over the image; edges that do not meet: a wrong projection; "
        "metres that cannot be: a wrong scale.</p>\n"
    )
    write_text(out, page + "\n".join(parts) + "\n</body></html>\n")
    return statistics


def build_statistics(paths: list[Path], counts: list[int]) -> BuildStatistics:
    """Compute the statistics of a build.

    Args:
        paths: paths of its shards.
        counts: their numbers of rows.
    """
    names = ["scene", "camera", "depth_scale", "focal_length", "width", "height", "depth_width", "depth_height"]
    table = pa.concat_tables([pq.read_table(path, columns=[*names, "points"]) for path in paths])
    points = pc.struct_field(pc.list_flatten(table["points"]), "depth").to_numpy()
    fx, width = table["focal_length"].to_numpy(), table["width"].to_numpy()
    shares = [
        np.count_nonzero(decode_metres(row)) / (row["depth_width"] * row["depth_height"])
        for row in _picked_rows(paths, counts, MEASURED_MAPS, ["depth", "depth_scale", "depth_width", "depth_height"])
    ]
    scales = table["depth_scale"].to_pylist()
    return BuildStatistics(
        rows=table.num_rows,
        scenes=len(table["scene"].unique()),
        cameras=len(table["camera"].unique()),
        points=len(points),
        valid=(float(min(shares)), float(np.mean(shares)), float(max(shares))),
        metres=_quantiles(points, (0, 5, 50, 95, 100)),
        focal_length=_quantiles(fx, (0, 50, 100)),
        fov=_quantiles(np.degrees(2 * np.arctan(width / (2 * fx))), (0, 50, 100)),
        image_sizes=_sizes(table["width"], table["height"]),
        depth_sizes=_sizes(table["depth_width"], table["depth_height"]),
        encodings=Counter("float32" if s == 1 else f"uint16 / {s:g}" for s in scales).most_common(),
    )


def _picked_rows(
    paths: list[Path], counts: list[int], wanted: int, columns: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Read records evenly spaced over all shards, of which only the row groups that hold them are read."""
    total = sum(counts)
    wanted = min(wanted, total)
    picked = [(2 * i + 1) * total // (2 * wanted) for i in range(wanted)]
    for path, count, first in zip(paths, counts, accumulate(counts, initial=0), strict=False):
        inside = [row - first for row in picked if first <= row < first + count]
        if not inside:
            continue
        with pq.ParquetFile(path) as file:
            begin = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                here = [row - begin for row in inside if begin <= row < begin + size]
                if here:
                    yield from file.read_row_group(group, columns).take(here).to_pylist()
                begin += size


def _quantiles(values: np.ndarray, percentages: Iterable[int]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, list(percentages)))


def _sizes(widths: pa.ChunkedArray, heights: pa.ChunkedArray) -> list[tuple[str, int]]:
    sizes = zip(widths.to_pylist(), heights.to_pylist(), strict=True)
    return Counter(f"{width}x{height}" for width, height in sizes).most_common()


def _section(entry: dict[str, Any], found: BuildStatistics) -> str:
    low, high = entry["depth_range"]
    metres = " / ".join(f"{value:.3g}" for value in found.metres)
    rows = [
        ("images", f"{found.rows} of {entry['counts']['planned']} planned, {entry['counts']['bad']} unusable"),
        ("scenes, cameras", f"{found.scenes}, {found.cameras}"),
        ("points", f"{found.points}"),
        ("metres of the points: min / 5 % / median / 95 % / max", metres),
        ("metres that count as measured", f"{low:g} to {high:g}"),
        ("valid pixels: least, mean, greatest share", ", ".join(f"{share:.1%}" for share in found.valid)),
        ("focal length: min / median / max, pixels", " / ".join(f"{value:.1f}" for value in found.focal_length)),
        ("horizontal field of view: min / median / max", " / ".join(f"{value:.1f}°" for value in found.fov)),
        ("image sizes", _listed(found.image_sizes)),
        ("depth map sizes", _listed(found.depth_sizes)),
        ("depth encoding", _listed(found.encodings)),
        ("terms of the data", entry["licence"] or "not stated"),
    ]
    cells = "\n".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in entry["notes"])
    return f"<h2>{escape(entry['title'])}, {escape(entry['split'])}</h2>\n<table>{cells}</table>{notes}"


def _listed(counts: list[tuple[str, int]], shown: int = 4) -> str:
    parts = [f"{value} ({count})" for value, count in counts[:shown]]
    return ", ".join(parts) + (f" and {len(counts) - shown} more" if len(counts) > shown else "")


def _sample(row: dict[str, Any], pictures: RowPictures) -> str:
    place = " · ".join(escape(part) for part in (row["id"], row["scene"], row["camera"]) if part)
    sizes = f"{row['width']}x{row['height']} px, depth {row['depth_width']}x{row['depth_height']}"
    bar = f'<span class="bar" style="background: {color_gradient()}"></span>'
    images = "".join(
        f'<img alt="{what}" src="{uri}">'
        for what, uri in (("image", pictures.image), ("depth", pictures.depth), ("overlay", pictures.overlay))
    )
    return (
        f'<div class="sample"><p><b>{place}</b> · {sizes} · fx {row["focal_length"]:.1f} px · '
        f"valid {pictures.valid:.1%} · {pictures.low:.2f} m{bar}{pictures.high:.2f} m</p>{images}</div>"
    )


@dataclass(frozen=True)
class RowPictures:
    """Pictures of one row as data URIs.

    Args:
        image: the image with its points and their metres.
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
    """Decode z-depth `(h, w)` in metres of a record whose files are undecoded, 0 where there is none."""
    with open_raster(row["depth"]["bytes"]) as picture:
        raw = np.asarray(picture)
    return (raw / np.float64(row["depth_scale"])).astype(np.float32)


def row_pictures(row: dict[str, Any]) -> RowPictures:
    """Draw the pictures of a record of a build, its files undecoded."""
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
    """Return the colours, from near to far, as a CSS gradient."""
    rgb = (_COLORS(np.linspace(0, 1, stops))[:, :3] * 255).round().astype(int).tolist()
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


def _data_uri(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def label_corners(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float]]:
    """Place labels to the right of their points, and where that is outside or taken to the left, below or above.

    Args:
        points: column and row of each point.
        sizes: width and height of each label.
        picture: width and height.

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
