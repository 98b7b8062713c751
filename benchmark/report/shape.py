"""Tables of a report about the shape of maps: edges, planes, order, token grid and consistency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..scoring.consistency import SCALES
from ..scoring.ordinal import BANDS, NEAR_METRES, ordinal_names
from ..scoring.results import ImageResult
from ..scoring.shape import DIRECTIONS, spectra_of
from ..scoring.statistics import bootstrap_interval
from .inputs import Measured, unique_names
from .model import PARTIAL_MARK, Cell, ReportColumn, ReportGroup, ReportRow, ReportTable

SHAPE_KEYS = ("edges", "planes", "order", "grid", "consistency")

_WAYS = {"x": "Across", "y": "Down"}


@dataclass(frozen=True)
class _Column:
    key: str
    title: str
    cell: Callable[[Measured], Cell]


def shape_tables(measured: Sequence[Measured]) -> list[ReportTable]:
    """Return the tables of the results that have such metrics, without columns and tables that would be empty.

    Each number is the mean over the images that have it, with its 95 % interval by bootstrap over these images; that of
    the grid is the ratio of sums over the images.
    """
    edges = [
        _metric("boundary_f1", "Boundary F1", 3),
        _metric("edge_width", "Width, px", 2),
        _metric("edge_shown", "Shown, %", 1, 100),
        _metric("dbe_accuracy", "DBE acc., px", 2),
        _metric("dbe_completeness", "DBE com., px", 2),
    ]
    planes = [_metric("plane_flatness", "Flatness, cm", 2), _metric("plane_orientation", "Orientation, °", 2)]
    titles = [f"{low:g} to {high:g}" if math.isfinite(high) else f"above {low:g}" for low, high in BANDS]
    titles += ["all", f"within {NEAR_METRES:g} m", "near by"]
    order = [_metric(name, title, 1, 100) for name, title in zip(ordinal_names(), titles, strict=True)]
    grid = [
        _Column(f"grid_{way}_{place}", f"{_WAYS[way]}, {place}", _grid(way, place == "first"))
        for way in DIRECTIONS
        for place in ("first", "worst")
    ]
    views = [_metric("mirror", "Mirrored", 1, 100)]
    for factor in SCALES:
        views += [_metric(f"scale_median_{factor:g}", f"{factor:g}x, drift", 2, 100)]
        views += [_metric(f"scale_std_{factor:g}", f"{factor:g}x, spread", 2, 100)]
    texts = {
        "edges": (
            "Depth edges",
            "Boundary F1 (higher is better); width of edges from 10 % to 90 %, over the true edges that the map shows "
            "by half at least; their share; accuracy and completeness of iBims-1's DBE (lower is better).",
            edges,
        ),
        "planes": ("Planes", "Flatness and orientation of iBims-1's PE (lower is better).", planes),
        "order": (
            "Order in depth",
            "Share of pairs of points whose order is wrong in per cent, by the ratio of their true depths (lower is "
            f"better); both points within {NEAR_METRES:g} m; at most 1/16 of the image's longer side apart.",
            order,
        ),
        "grid": (
            "Token grid",
            "Power of the second difference of log depth at the harmonics of the token grid over that beside them "
            "(1: no grid), at the first and at the worst harmonic, across the picture and down it.",
            grid,
        ),
        "consistency": (
            "Consistency",
            "Mean change of log depth in per cent when the picture is mirrored; median (drift) and standard deviation "
            "(spread) of it at other sizes of the picture (0 is best).",
            views,
        ),
    }
    tables = [_table(key, *texts[key], measured) for key in SHAPE_KEYS]
    return [table for table in tables if table.rows]


def _table(key: str, title: str, caption: str, columns: Sequence[_Column], measured: Sequence[Measured]) -> ReportTable:
    names = unique_names(measured)
    found = [(item, [column.cell(item) for column in columns]) for item in measured]
    found = [(item, cells) for item, cells in found if any(cell.value is not None for cell in cells)]
    kept = [index for index in range(len(columns)) if any(cells[index].value is not None for _, cells in found)]
    rows, notes = [], []
    for item, cells in found:
        done = f"{item.set_name}, {item.result.done} images{PARTIAL_MARK if item.partial else ''}"
        shown = (Cell(done), *(cells[index] for index in kept))
        rows.append(ReportRow(names[item.system], "measured", shown, *item.protocol, item.system[1], item.system[0]))
        if item.partial:
            where = f"{rows[-1].label} on {item.set_name}: {item.partial}"
            notes.append(f"{PARTIAL_MARK} Partial, not a score of the set: {where}.")
    heads = (ReportColumn("set", "Set"), *(ReportColumn(columns[i].key, columns[i].title) for i in kept))
    groups = (ReportGroup("", tuple(rows)),) if rows else ()
    return ReportTable(key, title, caption, "", "System", heads, groups, tuple(dict.fromkeys(notes)))


def _metric(name: str, title: str, digits: int, factor: float = 1.0) -> _Column:
    def cell(item: Measured) -> Cell:
        value = item.result.metrics["images"].get(name)
        if value is None:
            return Cell()
        values = {image.id: factor * image.metrics[name] for image in item.images if name in image.metrics}
        return _cell(factor * value, values, None, digits)

    return _Column(name, title, cell)


def _grid(way: str, first: bool) -> Callable[[Measured], Cell]:
    def cell(item: Measured) -> Cell:
        ratios = item.result.grid.get(way)
        if not ratios:
            return Cell()
        index = 0 if first else int(np.argmax(ratios))
        values, weights = grid_values(item.images, way, index)
        return _cell(ratios[index], values, weights, 2, "" if first else f", harmonic {index + 1}")

    return cell


def grid_values(images: Sequence[ImageResult], way: str, index: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the ratio of a harmonic of each image, and the weights by which their mean is the ratio of sums."""
    with_grid = [image for image in images if way in image.grid]
    spectra = spectra_of([image.grid for image in with_grid], way)
    values, weights = {}, {}
    for image, spectrum in zip(with_grid, spectra, strict=True):
        if index < len(spectrum.power) and spectrum.around[index] > 0:
            values[image.id] = float(spectrum.ratios[index])
            weights[image.id] = float(spectrum.around[index] / spectrum.around.mean())
    return values, weights


def _cell(
    value: float, values: dict[str, float], weights: dict[str, float] | None, digits: int, remark: str = ""
) -> Cell:
    if not values:  # without lines of single images
        return Cell(f"{value:.{digits}f}{remark}", value)
    found = bootstrap_interval(values, weights)
    text = f"{value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f}{remark})"
    return Cell(text, value, (found.low, found.high))
