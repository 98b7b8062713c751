"""What a report says beyond its tables: errors against distance, paired comparisons, worst images, speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..scoring.metrics import DELTA_THRESHOLD
from ..scoring.results import ImageResult
from ..scoring.statistics import Comparison, paired_bootstrap
from .inputs import Measured
from .model import OUTSIDE_KEY, Report, ReportRow, ReportTable
from .plots import BarSeries, DistanceBins, SpeedPoint, bin_by_distance
from .published import EVALUATION_TABLES, SPEED_TABLE, number_in, published_table, same_name
from .rows import PAPER_PROTOCOLS, SCORE, seconds_per_image, unique_names


@dataclass(frozen=True)
class SameImages:
    """Results that may be compared: one set of one build under one protocol. `systems`: label to result."""

    set_name: str
    protocol: str
    data_hash: str
    systems: dict[str, Measured]

    @property
    def title(self) -> str:
        """Set, protocol and data in words."""
        return f"{self.set_name}, {self.protocol}, data {self.data_hash[:12]}"


@dataclass(frozen=True)
class PairRow:
    """Two systems on the images that both scored. `of`: number of images of the larger result."""

    group: SameImages
    first: str
    second: str
    comparison: Comparison
    of: int


@dataclass(frozen=True)
class WorstImage:
    """An image, its rank among the worst of a system, and the system's label."""

    system: str
    measured: Measured
    image: ImageResult


@dataclass(frozen=True)
class PointRow:
    """A scored point: its number in the picture, column and row, true metres, answer (None for a failure), verdict."""

    number: int
    place: tuple[float, float]
    truth: float
    answer: float | None
    right: bool


@dataclass(frozen=True)
class Bars:
    """What one plot of bars shows: a protocol's rows of a table."""

    title: str
    sets: list[str]
    series: list[BarSeries]


def same_images(measured: Sequence[Measured]) -> list[SameImages]:
    """Results by what may be compared, sorted."""
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for item in measured:
        groups.setdefault((item.set_name, " ".join(item.protocol), item.result.data_hash), []).append(item)
    return [SameImages(*key, systems=_labelled(items)) for key, items in sorted(groups.items())]


def read_lines_of(group: SameImages, notes: list[str]) -> dict[str, list[ImageResult]]:
    """Label to images, of the systems whose lines are there; a note for each of the others."""
    found = {}
    for label, item in group.systems.items():
        try:
            images = item.images
        except ValueError as error:
            notes.append(f"{label} on {group.title}: {error}")
            continue
        if images:
            found[label] = images
        else:
            notes.append(f"{label} on {group.title}: no lines of single images beside {item.path.name}.")
    return found


def distance_bins(lines: Mapping[str, Sequence[ImageResult]]) -> dict[str, DistanceBins]:
    """Errors against distance of each system that has points; a dense protocol keeps none."""
    result = {}
    for label, images in lines.items():
        truth = [metres for image in images for metres in image.truth]
        answers = [math.nan if each is None else each for image in images for each in image.answers]
        if truth:
            result[label] = bin_by_distance(truth, answers)
    return result


def compare_systems(
    group: SameImages, lines: Mapping[str, Sequence[ImageResult]], baseline: str | None, notes: list[str]
) -> list[PairRow]:
    """
    Every system against one: `baseline` where it is there, else the one with the best score.

    They are compared on the images that both scored; images are resampled together.
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
            pixels if pooled else None,
        )
        rows.append(PairRow(group, first, second, comparison, max(len(scores[first]), len(scores[second]))))
    return rows


def worst_images(group: SameImages, lines: Mapping[str, Sequence[ImageResult]], count: int) -> list[WorstImage]:
    """The images of each system with the lowest delta1, among equals those with the larger abs_rel."""

    def badness(image: ImageResult) -> tuple[float, float, str]:
        error = image.metrics.get("abs_rel", math.inf)
        return image.metrics[SCORE], -(math.inf if math.isnan(error) else error), image.id

    return [
        WorstImage(label, group.systems[label], image)
        for label, images in lines.items()
        for image in sorted(images, key=badness)[:count]
    ]


def worst_points(image: ImageResult, count: int) -> list[PointRow]:
    """The scored points of an image, failures and then the largest ratios first, numbered from 1."""
    rows = []
    places = image.points or [(math.nan, math.nan)] * len(image.truth)
    for place, truth, answer in zip(places, image.truth, image.answers, strict=True):
        usable = answer if answer is not None and math.isfinite(answer) and answer > 0 else None
        ratio = math.inf if usable is None else max(usable / truth, truth / usable)
        rows.append((ratio, (float(place[0]), float(place[1])), truth, usable))
    order = sorted(range(len(rows)), key=lambda index: (-rows[index][0], index))[:count]
    return [
        PointRow(number, rows[index][1], rows[index][2], rows[index][3], rows[index][0] < DELTA_THRESHOLD)
        for number, index in enumerate(order, start=1)
    ]


def bars_of(report: Report) -> list[Bars]:
    """One plot for each protocol of table 1 (or 2, where that alone is asked for) and of the sets outside."""
    tables = {table.key: table for table in report.tables}
    shown = next((tables[str(number)] for number in EVALUATION_TABLES if str(number) in tables), None)
    result = []
    for table in (shown, tables.get(OUTSIDE_KEY)):
        if table is None:
            continue
        for protocol in dict.fromkeys((row.protocol, row.protocol_hash) for row in table.measured):
            result.append(_bars(table, protocol))
    return result


def speed_points(measured: Sequence[Measured]) -> list[SpeedPoint]:
    """Complete results that were timed, and the paper's systems of table 8 with their average of table 1."""
    points = []
    names = unique_names({item.system for item in measured})
    for item in measured:
        seconds = seconds_per_image(item)
        score = item.result.metrics.get(item.result.protocol["aggregation"], {}).get(SCORE)
        if seconds is not None and score is not None and item.result.complete:
            points.append(SpeedPoint(f"{names[item.system]} ({item.protocol[0]})", item.set_name, seconds, score))
    if not points:
        return []
    scores = published_table(EVALUATION_TABLES[0])
    for row in published_table(SPEED_TABLE).rows():
        latency, average = number_in(row.cells[-1]), number_in(scores.cell(row.name, scores.mean or ""))
        if latency is not None and average is not None:
            points.append(SpeedPoint(row.name, f"{row.name}, Avg. (paper)", latency, average, published=True))
    return points


def _labelled(items: Sequence[Measured]) -> dict[str, Measured]:
    """A label for each, told apart by the system's key, and then by a number."""
    names = [item.result.name for item in items]
    labels: dict[str, Measured] = {}
    for item in items:
        name = item.result.name
        wanted = name if names.count(name) == 1 else f"{name} [{item.result.row}]"
        label, number = wanted, 2
        while label in labels:
            label, number = f"{wanted} ({number})", number + 1
        labels[label] = item
    return labels


def _bars(table: ReportTable, protocol: tuple[str, str]) -> Bars:
    sets = [column for column in table.columns if column.key not in ("average", "failures", "parse_rate")]
    places = {column.key: index for index, column in enumerate(table.columns)}
    paper = _paper_rows(table)
    series: list[BarSeries] = []
    names: list[str] = []
    for row in table.measured:
        if (row.protocol, row.protocol_hash) != protocol:
            continue
        cells = {column.title: row.cells[places[column.key]] for column in sets}
        printed = paper.get(same_name(row.system)) if row.protocol in PAPER_PROTOCOLS else None
        published = {} if printed is None else {each.title: printed.cells[places[each.key]].value for each in sets}
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
    shown = [column.title for column in sets if any(column.title in each.scores for each in series)]
    return Bars(f"{table.heading}: {' '.join(protocol)}", shown, series)


def _paper_rows(table: ReportTable) -> dict[str, ReportRow]:
    """The paper's rows by each name of their system; sets outside have none."""
    rows = {row.name: row for row in table.rows if row.origin == "paper"}
    number = int(table.key) if table.key.isdigit() else None
    printed = list(published_table(number).rows()) if number else []
    return {same_name(name): rows[row.name] for row in printed for name in (row.name, *row.also)}
