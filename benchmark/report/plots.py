"""Plots of a report as SVG, and the numbers in them: bars per set, error against distance, speed against accuracy."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..scoring.metrics import ErrorSums
from ..scoring.results import ImageResult
from .inputs import Measured, unique_names
from .model import Report, ReportRow, ReportTable, time_text
from .published import EVALUATION_TABLES, SPEED_TABLE, number_in, published_table, same_name
from .tables import OUTSIDE_KEY, PAPER_PROTOCOLS, SCORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DISTANCE_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, np.inf)
# Labels beside points, in points of type: their size, the distance of two lines, and how far one may reach.
_LABEL_SIZE, _LABEL_HEIGHT, _LABEL_WIDTH = 7, 8, 90
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c564b", "#595959", "#b3b300")
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,  # a name with $ in it is no formula
    "svg.hashsalt": "depthvlm",  # the same plot gives the same bytes
    "svg.fonttype": "path",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "path.simplify": True,
}


@dataclass(frozen=True)
class BarSeries:
    """One system in the bars."""

    label: str  # in the legend
    scores: Mapping[str, float]  # delta1 of the measured sets
    intervals: Mapping[str, tuple[float, float]]  # 95 % intervals
    published: Mapping[str, float]  # the paper's scores of the same system, lines across the bars
    partial: frozenset[str] = frozenset()  # sets that were not scored to the end; their bars are hatched


@dataclass(frozen=True)
class Bars:
    """Bars of one plot: the rows of a table under one protocol."""

    title: str
    sets: list[str]
    series: list[BarSeries]


@dataclass(frozen=True)
class SpeedPoint:
    """A system on one set: seconds for an image, delta1, and the label beside it; `published` for the paper's."""

    system: str
    label: str
    seconds: float
    score: float
    published: bool = False


def bars_of(report: Report) -> list[Bars]:
    """Return one plot for each protocol of table 1 (or 2, if only that exists) and of the sets outside."""
    tables = {table.key: table for table in report.tables}
    keys = [*[str(number) for number in EVALUATION_TABLES if str(number) in tables][:1], OUTSIDE_KEY]
    return [
        _bars(tables[key], protocol)
        for key in keys
        if key in tables
        for protocol in dict.fromkeys((row.protocol, row.protocol_hash) for row in tables[key].measured)
    ]


def _bars(table: ReportTable, protocol: tuple[str, str]) -> Bars:
    places = {
        column.title: place
        for place, column in enumerate(table.columns)
        if column.key not in ("average", "failures", "parse_rate")
    }
    paper = _paper_rows(table)
    series: list[BarSeries] = []
    names: list[str] = []
    for row in table.measured:
        if (row.protocol, row.protocol_hash) != protocol:
            continue
        cells = {title: row.cells[place] for title, place in places.items()}
        printed = paper.get(same_name(row.system)) if row.protocol in PAPER_PROTOCOLS else None
        published = {} if printed is None else {title: printed.cells[place].value for title, place in places.items()}
        names.append(row.name)
        twins = names.count(row.name)
        series.append(
            BarSeries(
                row.name + (f" ({twins})" if twins > 1 else ""),
                {title: cell.value for title, cell in cells.items() if cell.value is not None},
                {title: cell.interval for title, cell in cells.items() if cell.interval is not None},
                {title: value for title, value in published.items() if value is not None},
                frozenset(detail.set_name for detail in row.details if detail.partial),
            )
        )
    shown = [title for title in places if any(title in each.scores for each in series)]
    return Bars(f"{table.heading}: {' '.join(protocol)}", shown, series)


def _paper_rows(table: ReportTable) -> dict[str, ReportRow]:
    """Return the paper's rows by each name of their system; sets outside have none."""
    rows = {row.name: row for row in table.rows if row.origin == "paper"}
    printed = published_table(int(table.key)).rows() if table.key.isdigit() else ()
    return {same_name(name): rows[row.name] for row in printed for name in (row.name, *row.also)}


def distance_bins(lines: Mapping[str, Sequence[ImageResult]]) -> dict[str, list[ErrorSums | None]]:
    """Return errors against distance of each system that has points; a dense protocol keeps none."""
    result = {}
    for label, images in lines.items():
        truth = [metres for image in images for metres in image.truth]
        answers = [math.nan if each is None else each for image in images for each in image.answers]
        if truth:
            result[label] = bin_by_distance(truth, answers)
    return result


def bin_by_distance(
    truth: ArrayLike, answers: ArrayLike, edges: Sequence[float] = DISTANCE_EDGES
) -> list[ErrorSums | None]:
    """Return the errors in bins of true depth, None for a bin without a point.

    Args:
        truth: `(n,)` metres of the scored points.
        answers: `(n,)` metres, NaN for a failure.
        edges: Ascending metres; a bin holds its lower edge, and points outside are left out.

    Raises:
        ValueError: Truth and answers differ in number, or a true depth is not above 0.
    """
    g, p = np.asarray(truth, dtype=np.float64), np.asarray(answers, dtype=np.float64)
    if g.shape != p.shape or g.ndim != 1:
        raise ValueError(f"truth and answers must be (n,) both, got {g.shape} and {p.shape}.")
    if not (np.isfinite(g) & (g > 0)).all():
        raise ValueError("A scored point has no true depth above 0 m.")
    bins = [(low <= g) & (g < high) for low, high in pairwise(edges)]
    return [ErrorSums.of(p[inside], g[inside]) if inside.any() else None for inside in bins]


def plot_bars(sets: Sequence[str], series: Sequence[BarSeries]) -> bytes:
    """Plot delta1 of each system on each set with its 95 % interval; a black line across a bar is the paper's score."""
    with _drawing():
        figure, axes = _figure(max(6.0, min(14.0, 1.0 + 0.32 * len(sets) * (len(series) + 1))), 3.4)
        width = 0.8 / len(series)
        for index, each in enumerate(series):
            names = [name for name in sets if name in each.scores]
            x = np.array([sets.index(name) for name in names]) + (index - (len(series) - 1) / 2) * width
            heights = [each.scores[name] for name in names]
            bars = axes.bar(x, heights, width * 0.92, color=_color(index), label=_legend(each.label))
            for bar, name, centre in zip(bars, names, x, strict=True):
                if name in each.partial:
                    bar.set(hatch="////", edgecolor="white")
                if name in each.intervals:
                    axes.vlines(centre, *each.intervals[name], color="#222222", linewidth=1)
                if name in each.published:
                    half = width * 0.46
                    axes.hlines(each.published[name], centre - half, centre + half, color="black", linewidth=2)
        axes.set_xticks(range(len(sets)), list(sets))
        axes.set_ylim(0, 1)
        axes.set_ylabel("delta1")
        axes.grid(axis="y", color="#dddddd")
        _below(axes, len(series))
        return _svg(figure)


def plot_distance(bins: Mapping[str, Sequence[ErrorSums | None]]) -> bytes:
    """Plot delta1 and abs_rel against true depth, a line for each label; below the bins are the numbers of points."""
    with _drawing():
        shown = [index for index, each in enumerate(zip(*bins.values(), strict=True)) if any(each)]
        points = [max(sums.pixels if (sums := each[index]) else 0 for each in bins.values()) for index in shown]
        figure, (left, right) = _figure(2 * max(4.0, 0.8 + 0.52 * len(shown)), 3.6, plots=2)
        edges = [DISTANCE_EDGES[index : index + 2] for index in shown]
        names = [f"{low:g}+" if np.isinf(high) else f"{low:g}-{high:g}" for low, high in edges]
        ticks = [f"{name}\n{count}" for name, count in zip(names, points, strict=True)]
        for place, (label, each) in enumerate(bins.items()):
            scores = [sums.metrics() if (sums := each[index]) else {} for index in shown]
            for axes, metric in ((left, "delta1"), (right, "abs_rel")):
                values = [score.get(metric, math.nan) for score in scores]
                axes.plot(range(len(shown)), values, "o-", color=_color(place), markersize=4, label=_legend(label))
        for axes, title in ((left, "delta1"), (right, "abs_rel (answers alone)")):
            axes.set_xticks(range(len(shown)), ticks, fontsize=7.5)
            axes.set_xlabel("true depth in metres; below it, scored points")
            axes.set_ylabel(title)
            axes.grid(axis="y", color="#dddddd")
        left.set_ylim(-0.02, 1.02)
        right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # points at 0 are seen whole
        _below(left, len(bins), place=-0.3)
        return _svg(figure)


def speed_points(measured: Sequence[Measured]) -> list[SpeedPoint]:
    """Return complete results that were timed, and the paper's systems of table 8 with their average of table 1."""
    names = unique_names(measured)
    points = [
        SpeedPoint(f"{names[item.system]} ({item.protocol[0]})", item.set_name, seconds, item.metrics[SCORE])
        for item in measured
        if (seconds := item.seconds_per_image) is not None and SCORE in item.metrics and not item.partial
    ]
    if not points:
        return []
    scores = published_table(EVALUATION_TABLES[0])
    for row in published_table(SPEED_TABLE).rows():
        latency, average = number_in(row.cells[-1]), number_in(scores.cell(row.name, scores.mean or ""))
        if latency is not None and average is not None:
            points.append(SpeedPoint(row.name, f"{row.name}, Avg. (paper)", latency, average, published=True))
    return points


def plot_speed(points: Sequence[SpeedPoint]) -> bytes:
    """Plot delta1 against seconds for an image (logarithmic); the paper's systems are hollow."""
    with _drawing():
        figure, axes = _figure(8.0, 4.0)
        systems = list(dict.fromkeys(point.system for point in points if not point.published))
        colors = ["#595959" if point.published else _color(systems.index(point.system)) for point in points]
        for point, color in zip(points, colors, strict=True):
            face = "white" if point.published else color
            axes.scatter(point.seconds, point.score, 36, facecolors=face, edgecolors=color, linewidths=1.5, zorder=3)
        handles = [axes.scatter([], [], 36, color=_color(index)) for index in range(len(systems))]
        names = [_legend(system) for system in systems]
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=2, frameon=False)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda seconds, _: time_text(seconds))
        axes.set_ylim(-0.03, 1.03)
        axes.margins(x=0.15)
        axes.set_xlabel("time for an image")
        axes.set_ylabel("delta1")
        axes.grid(color="#dddddd")
        _label_points(axes, points, colors)
        return _svg(figure)


def _label_points(axes: Axes, points: Sequence[SpeedPoint], colors: Sequence[str]) -> None:
    """Label each point; labels of points that lie together go one above the other, in the order of their scores."""
    figure_points = 72 / axes.figure.dpi
    placed: list[tuple[float, float]] = []
    for point, color in sorted(zip(points, colors, strict=True), key=lambda pair: (pair[0].score, pair[0].seconds)):
        x, y = axes.transData.transform((point.seconds, point.score)) * figure_points
        lift = y
        while any(abs(x - other) < _LABEL_WIDTH and abs(lift - height) < _LABEL_HEIGHT for other, height in placed):
            lift = max(height for other, height in placed if abs(x - other) < _LABEL_WIDTH) + _LABEL_HEIGHT
        placed.append((x, lift))
        axes.annotate(
            point.label,
            (point.seconds, point.score),
            (7, lift - y),
            textcoords="offset points",
            fontsize=_LABEL_SIZE,
            verticalalignment="center",
            color=color,
        )


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib

    # A user's own settings must not change the picture.
    defaults: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_RC}):
        yield


def _figure(width: float, height: float, plots: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(wspace=0.2)
    return figure, figure.subplots(1, plots)


def _below(axes: Axes, count: int, place: float = -0.14) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0, place), ncols=min(count, 3), frameon=False, borderaxespad=0)


def _svg(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # No date, so that the same plot gives the same bytes.
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    return stream.getvalue()


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _legend(label: str) -> str:
    """Return a label that matplotlib shows: it hides those that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label
