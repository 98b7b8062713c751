"""A page that shows what a build holds: statistics of each source, and samples as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .inspect_pictures import RowPictures, color_gradient, decode_metres, row_pictures
from .shard_writer import write_atomically
from .shards import finished_builds, shard_paths

# Depth maps that the share of valid pixels is measured on; everything else is of all rows.
MEASURED_MAPS = 100

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
    """What a build holds, of all its rows but for `valid`.

    Args:
        rows, scenes, cameras, points: numbers.
        valid: least, mean and greatest share of valid pixels, of up to `MEASURED_MAPS` depth maps.
        metres: least, 5 %, median, 95 % and greatest depth of the sampled points.
        focal_length: least, median and greatest, pixels.
        fov: least, median and greatest horizontal field of view, degrees.
        image_sizes, depth_sizes, encodings: how often each occurs, the most frequent first.
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
    """Writes a page about all builds of a folder, self-contained.

    Args:
        folder: of `depthvlm bench build`.
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
    write_atomically(Path(out), page + "\n".join(parts) + "\n</body></html>")
    return statistics


def build_statistics(paths: list[Path], counts: list[int]) -> BuildStatistics:
    """Statistics of a build.

    Args:
        paths: of its shards.
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
    """Rows evenly spaced over all shards, of which only the row groups that hold them are read."""
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
