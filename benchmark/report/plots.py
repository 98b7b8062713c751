"""Plots of a report as SVG: bars per set, error against distance, speed against accuracy."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..scoring import metrics
from .numbers import time_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DISTANCE_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, np.inf)
# Of the labels beside points, in points of type: their size, the distance of two lines, and how far one may reach.
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
    """
    One system in the bars.

    Args:
        label: in the legend.
        scores: set to delta1, of the sets that it was measured on.
        intervals: set to the ends of the 95 % interval.
        published: set to the paper's score of the same system, drawn as a line across the bar.
        partial: sets that were not scored to the end; their bars are hatched.
    """

    label: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    published: Mapping[str, float]
    partial: frozenset[str] = frozenset()


@dataclass(frozen=True)
class DistanceBins:
    """
    Errors in bins of true depth.

    Args:
        edges: metres, one more than there are bins; a bin holds its lower edge.
        points: scored points in each bin.
        failures: those without an answer; they are wrong in `delta1` and not in `abs_rel`.
        delta1, abs_rel: NaN in a bin without a point, or, for abs_rel, without an answer.
    """

    edges: NDArray[np.float64]
    points: NDArray[np.int64]
    failures: NDArray[np.int64]
    delta1: NDArray[np.float64]
    abs_rel: NDArray[np.float64]


@dataclass(frozen=True)
class SpeedPoint:
    """A system on one set: seconds for an image, delta1, and what stands beside it; `published`: the paper's."""

    system: str
    label: str
    seconds: float
    score: float
    published: bool = False


def bin_by_distance(truth: ArrayLike, answers: ArrayLike, edges: Sequence[float] = DISTANCE_EDGES) -> DistanceBins:
    """
    Error against distance.

    Args:
        truth: `(n,)` metres of the scored points.
        answers: `(n,)` metres, NaN for a failure.
        edges: metres, rising; points outside are left out.

    Raises:
        ValueError: truth and answers differ in number, or a true depth is not above 0.
    """
    g, p, bounds = (np.asarray(values, dtype=np.float64) for values in (truth, answers, edges))
    if g.shape != p.shape or g.ndim != 1:
        raise ValueError(f"truth and answers must be (n,) both, got {g.shape} and {p.shape}.")
    if not (np.isfinite(g) & (g > 0)).all():
        raise ValueError("A scored point has no true depth above 0 m.")
    places = np.searchsorted(bounds, g, side="right") - 1
    count = len(bounds) - 1
    points, failures = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    delta1, abs_rel = np.full(count, np.nan), np.full(count, np.nan)
    for index in range(count):
        inside = places == index
        points[index] = np.count_nonzero(inside)
        if points[index]:
            failures[index] = metrics.failures(p[inside], g[inside])
            delta1[index] = metrics.delta1(p[inside], g[inside])
            abs_rel[index] = metrics.abs_rel(p[inside], g[inside])
    return DistanceBins(bounds, points, failures, delta1, abs_rel)


def plot_bars(sets: Sequence[str], series: Sequence[BarSeries]) -> bytes:
    """delta1 of each system on each set with its 95 % interval; the paper's score as a black line across the bar."""
    with _drawing():
        figure, axes = _figure(max(6.0, min(14.0, 1.0 + 0.32 * len(sets) * (len(series) + 1))), 3.4)
        width = 0.8 / len(series)
        for index, each in enumerate(series):
            places = [place for place, name in enumerate(sets) if name in each.scores]
            x = np.array(places) + (index - (len(series) - 1) / 2) * width
            names = [sets[place] for place in places]
            heights = np.array([each.scores[name] for name in names])
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


def plot_distance(bins: Mapping[str, DistanceBins]) -> bytes:
    """delta1 and abs_rel against true depth, one line for each label; the numbers of points stand below the bins."""
    with _drawing():
        together = np.sum([each.points for each in bins.values()], axis=0)
        most = np.max([each.points for each in bins.values()], axis=0)
        shown = np.flatnonzero(together)
        figure, (left, right) = _figures(2 * max(4.0, 0.8 + 0.52 * len(shown)), 3.6)
        edges = next(iter(bins.values())).edges
        ticks = [f"{_bin_name(edges[i], edges[i + 1])}\n{most[i]}" for i in shown]
        for index, (label, each) in enumerate(bins.items()):
            for axes, values in ((left, each.delta1), (right, each.abs_rel)):
                axes.plot(
                    range(len(shown)), values[shown], "o-", color=_color(index), markersize=4, label=_legend(label)
                )
        for axes, title in ((left, "delta1"), (right, "abs_rel (answers alone)")):
            axes.set_xticks(range(len(shown)), ticks, fontsize=7.5)
            axes.set_xlabel("true depth in metres; below it, scored points")
            axes.set_ylabel(title)
            axes.grid(axis="y", color="#dddddd")
        left.set_ylim(-0.02, 1.02)
        right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # points at 0 are seen whole
        _below(left, len(bins), place=-0.3)
        return _svg(figure)


def plot_speed(points: Sequence[SpeedPoint]) -> bytes:
    """delta1 against seconds for an image (logarithmic); the paper's systems hollow."""
    with _drawing():
        figure, axes = _figure(8.0, 4.0)
        systems = list(dict.fromkeys(point.system for point in points if not point.published))
        for point in points:
            color = "#595959" if point.published else _color(systems.index(point.system))
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
        _label_points(axes, points, [_color(systems.index(p.system)) if not p.published else "#595959" for p in points])
        return _svg(figure)


def _label_points(axes: Axes, points: Sequence[SpeedPoint], colors: Sequence[str]) -> None:
    """A label beside each point; of points that lie together, one above the other, in the order of their scores."""
    order = sorted(range(len(points)), key=lambda index: (points[index].score, points[index].seconds))
    figure_points = 72 / axes.figure.dpi
    placed: list[tuple[float, float]] = []
    for index in order:
        point = points[index]
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
            color=colors[index],
        )


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib

    # A user's own settings must not change the picture.
    defaults: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_RC}):
        yield


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _figures(width: float, height: float) -> tuple[Figure, tuple[Axes, Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(wspace=0.2)
    return figure, (left, right)


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
    """A label that matplotlib shows: it hides those that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _bin_name(low: float, high: float) -> str:
    return f"{low:g}+" if np.isinf(high) else f"{low:g}-{high:g}"
