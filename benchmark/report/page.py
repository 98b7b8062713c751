"""A report as one HTML page with plots and pictures, self-contained."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .analysis import (
    PairRow,
    PointRow,
    WorstImage,
    bars_of,
    compare_systems,
    distance_bins,
    read_lines_of,
    same_images,
    speed_points,
    worst_images,
    worst_points,
)
from .formats import DETAIL_TITLES, detail_rows
from .inputs import Inputs
from .model import Cell, Report
from .pictures import build_images, picture_uri
from .plots import plot_bars, plot_distance, plot_speed

TEMPLATE = Path(__file__).with_name("report_page.html.jinja")
LISTED_POINTS = 20


def to_page(
    report: Report,
    inputs: Inputs,
    data: Iterable[str | Path] = (),
    worst: int = 6,
    baseline: str | None = None,
) -> str:
    """
    The page.

    Args:
        report: its tables.
        inputs: what they were made of; the lines beside the results are read here.
        data: folders of builds, for the pictures of the worst images.
        worst: number of images of each system on each set.
        baseline: name of the system that the others are compared with; by default the best on each set.

    Returns:
        HTML; the same arguments give the same text.

    Raises:
        FileNotFoundError: there is no such folder as one of `data`.
        ValueError: no measured system has the name of the baseline, or a folder of `data` holds no finished build.
    """
    from jinja2 import Environment, StrictUndefined

    names = sorted({item.result.name for item in inputs.measured})
    if baseline is not None and baseline not in names:
        raise ValueError(f"No measured system is called {baseline!r}: there are {', '.join(names) or 'none'}.")
    notes: list[str] = []
    distance: list[dict[str, str]] = []
    pairs: list[PairRow] = []
    worst_of: list[tuple[str, list[WorstImage]]] = []
    for group in same_images(inputs.measured):
        lines = read_lines_of(group, notes)
        bins = distance_bins(lines)
        if bins:
            distance.append({"title": group.title, "uri": _svg_uri(plot_distance(bins))})
        pairs += compare_systems(group, lines, baseline, notes)
        worst_of.append((group.title, worst_images(group, lines, worst)))
    points = speed_points(inputs.measured)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
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
        worst=_worst_sections(worst_of, data, notes),
        speed=_svg_uri(plot_speed(points)) if points else "",
        notes=notes,
    )


def _worst_sections(
    worst_of: Sequence[tuple[str, Sequence[WorstImage]]], data: Iterable[str | Path], notes: list[str]
) -> list[dict[str, Any]]:
    """One section for each system on each set."""
    folders = list(data)
    wanted: dict[str, set[str]] = {}
    for item in (item for _, items in worst_of for item in items):
        wanted.setdefault(item.measured.result.data_hash, set()).add(item.image.id)
    found = build_images(folders, wanted) if folders else {}
    missing = sum(len(ids) for ids in wanted.values()) - len(found)
    if folders and missing:
        notes.append(f"No pictures of {missing} of the worst images: no build given with --data holds their data.")
    sections: dict[tuple[str, str], dict[str, Any]] = {}
    for title, items in worst_of:
        for item in items:
            section = sections.setdefault((title, item.system), {"title": title, "system": item.system, "images": []})
            points = worst_points(item.image, LISTED_POINTS)
            data_of = found.get((item.measured.result.data_hash, item.image.id))
            section["images"].append(
                {
                    "id": item.image.id,
                    "summary": _summary(item),
                    "points": points,
                    "picture": _picture(data_of, points, item, notes),
                }
            )
    return list(sections.values())


def _picture(data: bytes | None, points: Sequence[PointRow], item: WorstImage, notes: list[str]) -> str:
    if data is None:
        return ""
    try:
        return picture_uri(data, [point for point in points if not math.isnan(point.place[0])])
    except OSError as error:
        notes.append(f"No picture of {item.image.id}: {error}")
        return ""


def _summary(item: WorstImage) -> str:
    error = item.image.metrics.get("abs_rel", math.nan)
    words = f"delta1 {item.image.metrics['delta1']:.3f}, "
    words += "no answer" if math.isnan(error) else f"abs_rel {error:.3f}"
    return f"{words}, {item.image.pixels} pixels, {item.image.failures} failed"


def _interval(cell: Cell) -> str:
    if cell.interval is None or cell.value is None:
        return ""
    digits = 3 if abs(cell.value) <= 1 else 1
    return f"{cell.interval[0]:.{digits}f} to {cell.interval[1]:.{digits}f}"


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
