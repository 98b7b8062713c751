"""Measured rows for tables of delta1: one system under one protocol, nothing mixed, nothing partial shown as whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..scoring.statistics import bootstrap_interval
from ..sources import SOURCES, source_class
from .inputs import Measured
from .model import MISSING, PARTIAL_MARK, Cell, Detail, ReportRow

SCORE = "delta1"
PAPER_PROTOCOLS = tuple(
    f"{name}{change}" for name in ("depthvlm", "depthvlm-published") for change in ("", "(depth_type=ray_truth)")
)
_NYU_TRUTH = {"raw": "the sensor's rawDepths", "filled": "the inpainted depths"}

T = TypeVar("T")


@dataclass(frozen=True)
class SetColumn:
    """A set that a table has a column for: its name in results, and its title."""

    key: str
    title: str


def measured_rows(
    measured: Sequence[Measured], sets: Sequence[SetColumn], average: bool
) -> tuple[list[ReportRow], list[str]]:
    """
    The rows of all systems that were measured on one of the sets, and notes.

    A row is one system under one protocol. Where a set has several results that could stand in it (other data, a second
    run), each gets a row of its own. The last cells are the average (where the table has one), the share of failures
    and the parse rate.

    Args:
        measured: results, sorted.
        sets: the table's columns.
        average: whether the table has an average: the mean over all its sets, all of them whole.
    """
    titles = {column.key: column.title for column in sets}
    inside = [item for item in measured if item.set_name in titles]
    names = unique_names({item.system for item in inside})
    notes: list[str] = []
    rows: list[ReportRow] = []
    by_row: dict[tuple[tuple[str, str], tuple[str, str]], dict[str, list[Measured]]] = {}
    for item in inside:
        by_row.setdefault((item.system, item.protocol), {}).setdefault(item.set_name, []).append(item)
    for (system, protocol), by_set in by_row.items():
        label = f"{names[system]} ({protocol[0]} {protocol[1]})"
        kept = {key: _whole_of_one_build(items, label, titles[key], notes) for key, items in by_set.items()}
        common, apart = one_each(kept)
        for key, several in apart.items():
            hashes = sorted({item.result.data_hash[:12] for item in several})
            reason = f"on different data ({', '.join(hashes)})" if len(hashes) > 1 else "on the same data"
            notes.append(
                f"{label}: {len(several)} results for {titles[key]} {reason}; each has a row of its own, and none "
                "enters an average."
            )
        choices = [common] if common else []
        choices += [{key: item} for key, several in apart.items() for item in several]
        for choice in choices:
            mean = _average(choice, sets, label, notes) if average and choice is common else Cell()
            cells = [_cell(choice[column.key]) if column.key in choice else Cell() for column in sets]
            cells += [mean] if average else []
            rows.append(_row(names[system], system, protocol, choice, titles, cells))
        if average and not common:
            notes.append(f"{label}: no average, because no set has one result alone.")
    return rows, [*_partial_notes(rows), *notes, *comparison_notes(inside, titles)]


def one_each(groups: Mapping[str, Sequence[T]]) -> tuple[dict[str, T], dict[str, Sequence[T]]]:
    """What can stand in one row: the keys with one value; and those with several."""
    common = {key: values[0] for key, values in groups.items() if len(values) == 1}
    return common, {key: values for key, values in groups.items() if len(values) > 1}


def comparison_notes(measured: Iterable[Measured], titles: Mapping[str, str]) -> list[str]:
    """What must not be compared: protocols that are not the paper's or differ, and different data of one set."""
    items = list(measured)
    notes = []
    protocols = sorted({item.protocol for item in items})
    listed = ", ".join(f"{name} {digest}" for name, digest in protocols)
    if len(protocols) > 1:
        notes.append(f"Rows under different protocols are not comparable: {listed}.")
    other = sorted({name for name, _ in protocols if name not in PAPER_PROTOCOLS})
    if other:
        notes.append(f"Not the paper's protocol, so not comparable with its rows: {', '.join(other)}.")
    for key, title in titles.items():
        hashes = sorted({item.result.data_hash[:12] for item in items if item.set_name == key})
        if len(hashes) > 1:
            notes.append(
                f"{title}: measured on {len(hashes)} different data ({', '.join(hashes)}); compare rows of one only."
            )
    return notes + _truth_notes(items, titles)


def _truth_notes(items: Sequence[Measured], titles: Mapping[str, str]) -> list[str]:
    """Where the truth that was scored is another than the published one."""
    notes = []
    rays = [key for key in SOURCES if source_class(key).published_depth == "ray"]
    in_z = [
        titles[key]
        for key in rays
        if any(item.set_name == key and item.result.protocol.get("depth_type", "z") == "z" for item in items)
    ]
    if in_z:
        notes.append(
            f"{' and '.join(in_z)}: the paper's labels are distances along the ray, these rows are scored against "
            "z-depth, so they are not comparable with the paper's (--change depth_type=ray_truth is)."
        )
    for item in items:
        if item.set_name == "nyuv2" and item.result.dataset == "nyuv2":
            depth = item.result.build_options.get("depth", "raw")
            notes.append(
                f"{titles['nyuv2']}: measured on {_NYU_TRUTH.get(depth, depth)}; the paper's rows are on depth_bfx of "
                "SUN RGB-D (source nyuv2-sunrgbd)."
            )
    return list(dict.fromkeys(notes))


def seconds_per_image(item: Measured) -> float | None:
    """Time in the predictor for one image, of the median image where that was kept; None where it was not taken."""
    rate, seconds = item.result.speed.get("images_per_second"), item.result.speed.get("seconds")
    if rate:
        return 1 / rate
    return seconds / item.result.done if seconds and item.result.done else None


def _whole_of_one_build(items: list[Measured], label: str, title: str, notes: list[str]) -> list[Measured]:
    """Without the partial results of data that one complete result covers."""
    complete = [item for item in items if item.result.complete]
    if len(items) > 1 and len(complete) == 1 and len({item.result.data_hash for item in items}) == 1:
        rest = "; ".join(item.partial() for item in items if not item.result.complete)
        notes.append(f"{label}: a partial result for {title} ({rest}) is left out, a complete one is there.")
        return complete
    return items


def _cell(item: Measured) -> Cell:
    value = _metrics(item).get(SCORE)
    mark = "" if item.result.complete else PARTIAL_MARK
    if value is None:
        return Cell(MISSING + mark)
    return Cell(f"{value:.3f}{mark}", value, item.result.confidence.get(SCORE))


def _average(choice: Mapping[str, Measured], sets: Sequence[SetColumn], label: str, notes: list[str]) -> Cell:
    missing = [column.title for column in sets if column.key not in choice]
    there = [(column.title, choice[column.key]) for column in sets if column.key in choice]
    unfinished = [title for title, item in there if not item.result.complete or SCORE not in _metrics(item)]
    if missing or unfinished:
        reasons = [f"not measured: {', '.join(missing)}"] if missing else []
        reasons += [f"partial: {', '.join(unfinished)}"] if unfinished else []
        notes.append(f"{label}: no average; {'; '.join(reasons)}.")
        return Cell()
    value = math.fsum(_metrics(item)[SCORE] for item in choice.values()) / len(choice)
    return Cell(f"{value:.3f}", value, _average_interval(choice))


def _average_interval(choice: Mapping[str, Measured]) -> tuple[float, float] | None:
    """By bootstrap over the images of each set; None where the lines of one are not there."""
    if not all(item.images for item in choice.values()):
        return None
    values, strata, weights = {}, {}, {}
    pooled = next(iter(choice.values())).result.protocol["aggregation"] == "pixels"
    for key, item in choice.items():
        for image in item.images:
            name = f"{key}\0{image.id}"
            values[name], strata[name] = image.metrics[SCORE], key
            weights[name] = float(image.pixels)
    found = bootstrap_interval(values, weights if pooled else None, strata, mean_of="strata")
    return found.low, found.high


def _row(
    name: str,
    system: tuple[str, str],
    protocol: tuple[str, str],
    choice: Mapping[str, Measured],
    titles: Mapping[str, str],
    cells: Sequence[Cell],
) -> ReportRow:
    results = [item.result for item in choice.values()]
    pixels = sum(result.pixels for result in results)
    share = sum(result.failures for result in results) / pixels if pixels else None
    rates = [(result.parse_rate, result.pixels) for result in results if result.parse_rate is not None]
    weight = sum(count for _, count in rates)
    parsed = sum(rate * count for rate, count in rates) / weight if weight else None
    details = tuple(
        Detail(
            set_name=title,
            images=choice[set_key].result.images,
            done=choice[set_key].result.done,
            partial=choice[set_key].partial(),
            metrics=_metrics(choice[set_key]),
            interval=choice[set_key].result.confidence.get(SCORE),
            failures=choice[set_key].result.failures,
            pixels=choice[set_key].result.pixels,
            parse_rate=choice[set_key].result.parse_rate,
            data_hash=choice[set_key].result.data_hash,
        )
        for set_key, title in titles.items()
        if set_key in choice
    )
    return ReportRow(
        name, "measured", (*cells, percent(share), percent(parsed)), *protocol, system[1], system[0], details
    )


def percent(share: float | None) -> Cell:
    """A share as a cell in per cent."""
    return Cell() if share is None else Cell(f"{100 * share:.1f}%", share)


def _metrics(item: Measured) -> dict[str, float]:
    metrics = item.result.metrics.get(item.result.protocol["aggregation"], {})
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def _partial_notes(rows: Iterable[ReportRow]) -> list[str]:
    parts = [
        f"{row.label} on {detail.set_name}: {detail.partial}"
        for row in rows
        for detail in row.details
        if detail.partial
    ]
    return [f"{PARTIAL_MARK} Partial, not a score of the set: {part}." for part in parts]


def unique_names(systems: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Each system's name, with its key where two systems have the same."""
    names = [name for name, _ in systems]
    return {(name, key): f"{name} [{key}]" if names.count(name) > 1 else name for name, key in systems}
