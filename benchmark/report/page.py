"""A report as one self-contained HTML page: tables, plots, paired comparisons, and the worst images."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ...processing.images_depthvlm import open_raster
from ..build.inspection import data_uri, draw_labels, render
from ..build.shard_writer import BuildError
from ..build.shards import build_hash, finished_builds, read_rows, shard_paths
from ..scoring.metrics import DELTA_THRESHOLD
from ..scoring.results import ImageResult
from ..scoring.statistics import Interval, paired_bootstrap
from .formats import DETAIL_TITLES, detail_rows, interval_text
from .inputs import Inputs, SameImages, same_images
from .model import Cell, Report
from .plots import bars_of, distance_bins, plot_bars, plot_distance, plot_speed, speed_points
from .tables import SCORE

LISTED_POINTS = 20
PICTURE_WIDTH = 420  # pixels

_RIGHT, _WRONG, _FAILED = "#1a9850", "#d73027", "#777777"


@dataclass(frozen=True)
class PairRow:
    """Two systems on the images that both scored; `of` is the number of images of the larger result."""

    group: SameImages
    first: str
    second: str
    comparison: Interval
    of: int


@dataclass(frozen=True)
class PointRow:
    """A scored point of a picture."""

    number: int  # in the picture, from 1
    place: tuple[float, float]  # column and row
    truth: float  # metres
    answer: float | None  # metres, None for a failure
    right: bool


def to_page(
    report: Report, inputs: Inputs, data: Iterable[str | Path] = (), worst: int = 6, baseline: str | None = None
) -> str:
    """Return the page as HTML; the same arguments give the same text.

    Args:
        report: The tables.
        inputs: The results they were made of, with the lines beside them.
        data: Folders of builds, for the pictures of the worst images.
        worst: Number of images of each system on each set.
        baseline: Name of the system that the others are compared with; by default the best on each set.

    Raises:
        FileNotFoundError: A folder of `data` does not exist.
        ValueError: No measured system has the name of the baseline, or a folder of `data` holds no finished build.
    """
    names = sorted({item.result.name for item in inputs.measured})
    if baseline is not None and baseline not in names:
        raise ValueError(f"No measured system is called {baseline!r}: there are {', '.join(names) or 'none'}.")
    notes: list[str] = []
    distance: list[dict[str, str]] = []
    pairs: list[PairRow] = []
    worst_of: list[tuple[SameImages, str, list[ImageResult]]] = []
    for group in same_images(inputs.measured):
        lines = group.lines(notes)
        if bins := distance_bins(lines):
            distance.append({"title": group.title, "uri": _svg_uri(plot_distance(bins))})
        pairs += compare_systems(group, lines, baseline, notes)
        worst_of += [(group, label, worst_images(images, worst)) for label, images in lines.items()]
    points = speed_points(inputs.measured)
    return render(
        Path(__file__).with_name("report_page.html.jinja"),
        report=report,
        detail_titles=DETAIL_TITLES,
        detail_rows=detail_rows,
        interval=_interval,
        bars=[
            {"title": bars.title, "uri": _svg_uri(plot_bars(bars.sets, bars.series))}
            for bars in bars_of(report)
            if bars.sets
        ],
        distance=distance,
        pairs=pairs,
        worst=_worst_sections(worst_of, list(data), notes),
        speed=_svg_uri(plot_speed(points)) if points else "",
        notes=notes,
    )


def compare_systems(
    group: SameImages, lines: Mapping[str, Sequence[ImageResult]], baseline: str | None, notes: list[str]
) -> list[PairRow]:
    """Compare every system with `baseline` where that exists, else with the one with the best score.

    Two systems are compared on the images that both scored; images are resampled together.
    """
    if len(lines) < 2:
        return []
    scores = {label: {image.id: image.metrics[SCORE] for image in images} for label, images in lines.items()}
    named = [label for label in scores if baseline is not None and group.systems[label].result.name == baseline]
    best = max(scores, key=lambda label: (group.systems[label].result.score(SCORE), label))
    second = named[0] if named else best
    rows = []
    for first in scores:
        common = scores[first].keys() & scores[second].keys()
        if first == second:
            continue
        if not common:
            notes.append(f"{first} and {second} on {group.title}: no image in common.")
            continue
        pooled = group.systems[first].result.protocol["aggregation"] == "pixels"
        pixels = {image.id: float(image.pixels) for image in lines[first] if image.id in common}
        comparison = paired_bootstrap(
            {name: scores[first][name] for name in common},
            {name: scores[second][name] for name in common},
            weights=pixels if pooled else None,
        )
        rows.append(PairRow(group, first, second, comparison, max(len(scores[first]), len(scores[second]))))
    return rows


def worst_images(images: Sequence[ImageResult], count: int) -> list[ImageResult]:
    """Return the images with the lowest delta1, among equals those with the larger abs_rel."""
    return sorted(images, key=lambda one: (one.metrics[SCORE], -one.metrics.get("abs_rel", math.inf), one.id))[:count]


def worst_points(image: ImageResult, count: int) -> list[PointRow]:
    """Return the scored points of an image, failures and then the largest ratios first, numbered from 1."""
    rows = []
    places = image.points or [(math.nan, math.nan)] * len(image.truth)
    for place, truth, answer in zip(places, image.truth, image.answers, strict=True):
        usable = answer if answer is not None and math.isfinite(answer) and answer > 0 else None
        ratio = math.inf if usable is None else max(usable / truth, truth / usable)
        rows.append((ratio, (float(place[0]), float(place[1])), truth, usable))
    rows.sort(key=lambda row: -row[0])
    return [
        PointRow(number, place, truth, usable, ratio < DELTA_THRESHOLD)
        for number, (ratio, place, truth, usable) in enumerate(rows[:count], start=1)
    ]


def build_images(folders: Iterable[str | Path], wanted: Mapping[str, set[str]]) -> dict[tuple[str, str], bytes]:
    """Return the encoded images that are there by data hash and id; only row groups that hold one are read.

    `wanted` has the ids of images by the data hash of a result. Builds of other data are skipped.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder has no finished build, or a shard differs from the manifest.
        ImportError: Pyarrow is missing.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError('Pictures out of a build need pyarrow: pip install "depthvlm[bench]"') from None

    try:
        builds = [(folder, entry) for folder in folders for entry in finished_builds(folder).values()]
        shards = [(build_hash(entry), path) for folder, entry in builds for path in shard_paths(folder, entry)]
    except BuildError as error:
        raise ValueError(str(error)) from None
    found: dict[tuple[str, str], bytes] = {}
    for digest, path in shards:
        ids = {name for name in wanted.get(digest, set()) if (digest, name) not in found}
        if ids:
            names = pq.read_table(path, columns=["id"])["id"].to_pylist()
            places = [place for place, name in enumerate(names) if name in ids]
            found |= {(digest, row["id"]): row["image"]["bytes"] for row in read_rows(path, places, ["id", "image"])}
    return found


def picture_uri(data: bytes, points: Sequence[PointRow]) -> str:
    """Return a JPEG as a data URI: the image, `PICTURE_WIDTH` wide, with its points.

    A point is green within 25 %, red beyond, and a grey cross for a failure.

    Raises:
        OSError: The bytes are no image that Pillow can read.
    """
    with open_raster(data) as opened:
        # Small ones are enlarged too, so that their points do not lie over each other.
        size = (PICTURE_WIDTH, max(1, round(opened.height * PICTURE_WIDTH / opened.width)))
        across, down = size[0] / opened.width, size[1] / opened.height
        picture = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    places = [((point.place[0] + 0.5) * across - 0.5, (point.place[1] + 0.5) * down - 0.5) for point in points]
    for point, (x, y) in reversed(list(zip(points, places, strict=True))):
        if point.answer is None:
            for color, width in (("white", 4), (_FAILED, 2)):
                draw.line((x - 4, y - 4, x + 4, y + 4), fill=color, width=width)
                draw.line((x - 4, y + 4, x + 4, y - 4), fill=color, width=width)
        else:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_RIGHT if point.right else _WRONG, outline="white")
    draw_labels(draw, places, [str(point.number) for point in points], size)
    return data_uri(picture, "JPEG")


def _worst_sections(
    worst: Sequence[tuple[SameImages, str, Sequence[ImageResult]]], folders: Sequence[str | Path], notes: list[str]
) -> list[dict[str, Any]]:
    """Return one section for each system on each set."""
    wanted: dict[str, set[str]] = {}
    for group, _, images in worst:
        wanted.setdefault(group.data_hash, set()).update(image.id for image in images)
    found = build_images(folders, wanted) if folders else {}
    missing = sum(map(len, wanted.values())) - len(found)
    if folders and missing:
        notes.append(f"No pictures of {missing} of the worst images: no build given with --data holds their data.")
    return [
        {
            "title": group.title,
            "system": label,
            "images": [_worst_image(image, found.get((group.data_hash, image.id)), notes) for image in images],
        }
        for group, label, images in worst
        if images
    ]


def _worst_image(image: ImageResult, data: bytes | None, notes: list[str]) -> dict[str, Any]:
    points = worst_points(image, LISTED_POINTS)
    picture = ""
    if data is not None:
        try:
            picture = picture_uri(data, [point for point in points if not math.isnan(point.place[0])])
        except OSError as error:
            notes.append(f"No picture of {image.id}: {error}")
    abs_rel = image.metrics.get("abs_rel", math.nan)
    answer = "no answer" if math.isnan(abs_rel) else f"abs_rel {abs_rel:.3f}"
    summary = f"delta1 {image.metrics[SCORE]:.3f}, {answer}, {image.pixels} pixels, {image.failures} failed"
    return {"id": image.id, "summary": summary, "points": points, "picture": picture}


def _interval(cell: Cell) -> str:
    if cell.interval is None or cell.value is None:
        return ""
    return interval_text(cell.interval, 3 if abs(cell.value) <= 1 else 1)


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
