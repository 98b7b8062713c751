"""Tables of a report: the paper's with measured rows beside the published ones, and what is outside of them.

A measured row is one system under one protocol. Nothing is mixed, and nothing partial is shown as whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ..scoring.statistics import bootstrap_interval
from ..sources import SOURCES, source_class
from .inputs import Inputs, LmmsResult, Measured, TaskScore, unique_names
from .model import (
    MISSING,
    PARTIAL_MARK,
    Cell,
    Detail,
    Report,
    ReportColumn,
    ReportGroup,
    ReportRow,
    ReportTable,
    percent,
    plain,
    time_text,
)
from .published import (
    BENCHMARK_TABLE,
    EVALUATION_IMAGES_TABLE,
    EVALUATION_TABLES,
    REPORTED_TABLES,
    PublishedTable,
    number_in,
    published_table,
    same_name,
)
from .shape import shape_tables

SCORE = "delta1"
OUTSIDE_KEY = "outside"
TASKS_KEY = "tasks"
REPORT_TITLE = "DepthVLM-Bench: measured rows beside the paper's"
MEASURED_GROUP = "Measured, not in this table of the paper"
LMMS_PROTOCOL = "lmms-eval"
PAPER_PROTOCOLS = tuple(
    f"{name}{change}" for name in ("depthvlm", "depthvlm-published") for change in ("", "(depth_type=ray_truth)")
)

_NYU_TRUTH = {"raw": "the sensor's rawDepths", "filled": "the inpainted depths"}
# From lmms-eval's standard error to the 95 % interval of a normal distribution.
_NORMAL_95 = 1.959964

T = TypeVar("T")


_ANSWER_COLUMNS = (ReportColumn("failures", "Failed"), ReportColumn("parse_rate", "Parsed"))
_SPEED_COLUMNS = (
    ReportColumn("set", "Set"),
    ReportColumn("images_per_second", "Images/s"),
    ReportColumn("device", "Device"),
)


def build_report(inputs: Inputs, tables: Iterable[int] | None = None, date: str = "") -> Report:
    """Build the report of some results.

    Args:
        inputs: What was measured; without anything only the paper's rows are there.
        tables: Numbers of the paper's tables, of 1, 2, 3 and 8. By default all of them, and after them the sets and
            tasks of lmms-eval that are in no table of the paper, and the shape of maps.
        date: Date to be printed; the same inputs and date give the same report.

    Raises:
        ValueError: A report does not have such a table.
    """
    wanted = REPORTED_TABLES if tables is None else tuple(dict.fromkeys(tables))
    wrong = [number for number in wanted if number not in REPORTED_TABLES]
    if wrong:
        raise ValueError(f"A report has no table {wrong[0]}: choose from {', '.join(map(str, REPORTED_TABLES))}.")
    built = []
    for number in wanted:
        table = published_table(number)
        if number in EVALUATION_TABLES:
            titles = {column.key: column.title for column in table.scored}
            rows, notes = _measured_rows(inputs.measured, titles, average=True)
            notes += _size_notes(table, inputs.measured)
            built.append(_with_paper(table, rows, notes, _ANSWER_COLUMNS))
        elif number == BENCHMARK_TABLE:
            built.append(_benchmark_table(table, inputs.lmms))
        else:
            built.append(_speed_table(table, inputs.measured))
    if tables is None:
        built += [table for table in (_outside_table(inputs.measured), _tasks_table(inputs.lmms)) if table.rows]
        built += shape_tables(inputs.measured)
    return Report(REPORT_TITLE, tuple(built), date)


def _outside_table(measured: Sequence[Measured]) -> ReportTable:
    sets = {name: name for name in sorted({item.set_name for item in measured} - set(_set_titles()))}
    rows, notes = _measured_rows(measured, sets, average=False)
    title = "Sets that are in no table of the paper"
    caption = "delta1 (higher is better); no average, because the sets are no benchmark together."
    columns = (*(ReportColumn(name, name) for name in sets), *_ANSWER_COLUMNS)
    return _outside_paper(OUTSIDE_KEY, title, caption, columns, rows, notes)


def _outside_paper(
    key: str, title: str, caption: str, columns: Iterable[ReportColumn], rows: list[ReportRow], notes: list[str]
) -> ReportTable:
    groups = (ReportGroup("", tuple(rows)),) if rows else ()
    return ReportTable(key, title, caption, "", "System", tuple(columns), groups, tuple(dict.fromkeys(notes)))


def _benchmark_table(table: PublishedTable, results: Sequence[LmmsResult]) -> ReportTable:
    by_model: dict[tuple[str, str], list[LmmsResult]] = {}
    for result in results:
        by_model.setdefault((result.name, result.model), []).append(result)
    rows: list[ReportRow] = []
    notes: list[str] = []
    for (name, _), files in by_model.items():
        scores: dict[str, list[TaskScore]] = {}
        for column, result in ((column, result) for column in table.columns for result in files):
            source = column.lmms_eval
            score = None if source is None else result.tasks.get(source.task, {}).get(source.metric)
            if score is not None and score not in scores.get(column.key, []):
                scores.setdefault(column.key, []).append(score)
        choices, apart = _one_each(scores)
        titles = {column.key: column.title for column in table.columns}
        notes += [f"{name}: {len(each)} results for {titles[key]}, each in its own row." for key, each in apart.items()]
        rows += [_benchmark_row(name, files, table, choice) for choice in choices]
    notes += [
        f"{PARTIAL_MARK} Partial, not a score: {row.name} on {part.set_name}, {part.partial}."
        for row in rows
        for part in row.details
        if part.partial
    ]
    if rows:
        notes += [
            f"{each.title}: {each.lmms_eval.note}" for each in table.columns if each.lmms_eval and each.lmms_eval.note
        ]
    return _with_paper(table, rows, notes)


def _benchmark_row(
    name: str, files: Sequence[LmmsResult], table: PublishedTable, choice: Mapping[str, TaskScore]
) -> ReportRow:
    cells: list[Cell] = []
    details: list[Detail] = []
    for column in table.columns:
        source, score = column.lmms_eval, choice.get(column.key)
        if source is None or score is None:
            cells.append(Cell())
            continue
        value, interval = score.value * source.factor, _normal_interval(score, source.factor)
        digits = 0 if source.factor == 1000 else 1
        cells.append(Cell(f"{value:.{digits}f}{PARTIAL_MARK if score.partial else ''}", value, interval))
        done, original, metrics = score.effective or 0, score.original or 0, {source.metric: value}
        details.append(Detail(column.title, original, done, score.partial, metrics, interval, 0, 0, None, ""))
    versions = ", ".join(sorted({result.version for result in files if result.version}))
    return ReportRow(name, "measured", tuple(cells), LMMS_PROTOCOL, versions, "", name, tuple(details))


def _normal_interval(score: TaskScore, factor: float = 1.0) -> tuple[float, float] | None:
    if score.stderr is None:
        return None
    value, error = score.value * factor, _NORMAL_95 * score.stderr * factor
    return value - error, value + error


def _tasks_table(results: Sequence[LmmsResult]) -> ReportTable:
    known = {column.lmms_eval.task for column in published_table(BENCHMARK_TABLE).columns if column.lmms_eval}
    rows: list[ReportRow] = []
    notes: list[str] = []
    for result in results:
        for task, scores in sorted(result.tasks.items()):
            if task in known or task in result.parts:
                continue
            for metric, score in sorted(scores.items()):
                text = f"{score.value:.4g}{PARTIAL_MARK if score.partial else ''}"
                count = MISSING if score.effective is None else str(score.effective)
                cells = (Cell(task), Cell(metric), Cell(text, score.value, _normal_interval(score)), Cell(count))
                rows.append(ReportRow(result.name, "measured", cells, LMMS_PROTOCOL, result.version))
                notes += [f"{PARTIAL_MARK} {result.name} on {task}: {score.partial}."] if score.partial else []
    title = "Tasks of lmms-eval that are in no table of the paper"
    caption = "In lmms-eval's own scale. Tasks that only make up a group are left out."
    columns = (ReportColumn(name.lower(), name) for name in ("Task", "Metric", "Score", "Samples"))
    return _outside_paper(TASKS_KEY, title, caption, columns, rows, notes)


def _speed_table(table: PublishedTable, measured: Sequence[Measured]) -> ReportTable:
    titles, names = _set_titles(), unique_names(measured)
    rows: list[ReportRow] = []
    notes: list[str] = []
    in_words: list[str] = []
    for item in measured:
        seconds = item.seconds_per_image
        if seconds is None:
            continue
        mark = PARTIAL_MARK if item.partial else ""
        latency, rate = Cell(f"{time_text(seconds)}{mark}", seconds), Cell(plain(1 / seconds), 1 / seconds)
        device = Cell(str(item.result.speed.get("device") or MISSING))
        cells = (Cell(), Cell(), Cell(), latency, Cell(titles.get(item.set_name, item.set_name)), rate, device)
        name, key = item.system
        rows.append(ReportRow(names[item.system], "measured", cells, *item.protocol, key, name))
        if mark:
            notes.append(f"{PARTIAL_MARK} {rows[-1].label} on {item.set_name}: timed on {item.partial}.")
        if item.result.parse_rate is not None:
            in_words.append(name)
    if in_words:
        notes.append(
            f"{', '.join(dict.fromkeys(in_words))}: answers single points, so the time is that of the scored points of "
            "an image, not of a map."
        )
    if rows:
        notes.append(
            "Measured: time in the predictor for the median image of the set, at its own size and in batches; the "
            "paper: one map of 256x192 pixels, end to end. They are not the same measurement."
        )
    return _with_paper(table, rows, notes, _SPEED_COLUMNS)


def _with_paper(
    table: PublishedTable, rows: Sequence[ReportRow], notes: Iterable[str], extra: Sequence[ReportColumn] = ()
) -> ReportTable:
    """Place each measured row behind the paper's row of the same system, and the others at the end."""
    waiting = list(rows)
    groups = []
    for group in table.groups:
        shown: list[ReportRow] = []
        for row in group.rows:
            cells = tuple(Cell(text, number_in(text)) for text in row.cells) + (Cell(),) * len(extra)
            names = {same_name(name) for name in (row.name, *row.also)}
            same = [each for each in waiting if same_name(each.system) in names]
            waiting = [each for each in waiting if each not in same]
            shown += [ReportRow(row.name, "paper", cells), *same]
        groups.append(ReportGroup(group.title, tuple(shown)))
    groups += [ReportGroup(MEASURED_GROUP, tuple(waiting))] if waiting else []
    return ReportTable(
        str(table.number),
        table.title,
        table.caption,
        table.source,
        table.row_title,
        (*(ReportColumn(each.key, each.title, each.group) for each in table.columns), *extra),
        tuple(groups),
        (*dict.fromkeys(notes), *table.notes),
    )


def _set_titles() -> dict[str, str]:
    return {column.key: column.title for column in published_table(EVALUATION_IMAGES_TABLE).columns}


# --- Measured rows of delta1


def _measured_rows(
    measured: Sequence[Measured], titles: Mapping[str, str], average: bool
) -> tuple[list[ReportRow], list[str]]:
    """Return the rows of all systems measured on one of these sets, with an average if all are whole, and notes."""
    inside = [item for item in measured if item.set_name in titles]
    names = unique_names(inside)
    notes: list[str] = []
    rows: list[ReportRow] = []
    by_row: dict[tuple[tuple[str, str], tuple[str, str]], dict[str, list[Measured]]] = {}
    for item in inside:
        by_row.setdefault((item.system, item.protocol), {}).setdefault(item.set_name, []).append(item)
    for (system, protocol), by_set in by_row.items():
        label = f"{names[system]} ({protocol[0]} {protocol[1]})"
        kept = {key: _whole_of_one_build(items, label, titles[key], notes) for key, items in by_set.items()}
        choices, apart = _one_each(kept)
        for key, several in apart.items():
            hashes = _hashes(several)
            reason = f"on different data ({', '.join(hashes)})" if len(hashes) > 1 else "on the same data"
            notes.append(
                f"{label}: {len(several)} results for {titles[key]} {reason}; each has a row of its own, and none "
                "enters an average."
            )
        together = len(apart) < len(kept)
        for place, choice in enumerate(choices):
            cells = [_score_cell(choice.get(key)) for key in titles]
            if average:
                cells.append(_average(choice, titles, label, notes) if together and place == 0 else Cell())
            rows.append(_row(names[system], choice, titles, cells))
        if average and not together:
            notes.append(f"{label}: no average, because no set has one result alone.")
    partial = [
        f"{PARTIAL_MARK} Partial, not a score of the set: {row.label} on {detail.set_name}: {detail.partial}."
        for row in rows
        for detail in row.details
        if detail.partial
    ]
    return rows, [*partial, *notes, *_comparison_notes(inside, titles)]


def _one_each(found: Mapping[str, Sequence[T]]) -> tuple[list[dict[str, T]], dict[str, Sequence[T]]]:
    """Return what stands in each row, and the keys with several values, each of which has a row of its own."""
    common = {key: values[0] for key, values in found.items() if len(values) == 1}
    apart = {key: values for key, values in found.items() if len(values) > 1}
    rows = [common] if common else []
    return rows + [{key: value} for key, values in apart.items() for value in values], apart


def _whole_of_one_build(items: list[Measured], label: str, title: str, notes: list[str]) -> list[Measured]:
    """Leave out the partial results of data that one complete result covers."""
    complete = [item for item in items if item.result.complete]
    if len(items) > 1 and len(complete) == 1 and len(_hashes(items)) == 1:
        rest = "; ".join(item.partial for item in items if item.partial)
        notes.append(f"{label}: a partial result for {title} ({rest}) is left out, a complete one is there.")
        return complete
    return items


def _hashes(items: Iterable[Measured]) -> list[str]:
    return sorted({item.result.data_hash[:12] for item in items})


def _score_cell(item: Measured | None) -> Cell:
    if item is None:
        return Cell()
    value, mark = item.metrics.get(SCORE), PARTIAL_MARK if item.partial else ""
    if value is None:
        return Cell(MISSING + mark)
    return Cell(f"{value:.3f}{mark}", value, item.result.confidence.get(SCORE))


def _average(choice: Mapping[str, Measured], titles: Mapping[str, str], label: str, notes: list[str]) -> Cell:
    there = [(title, choice[key]) for key, title in titles.items() if key in choice]
    lacking = {
        "not measured": [title for key, title in titles.items() if key not in choice],
        "partial": [title for title, item in there if item.partial or SCORE not in item.metrics],
    }
    if any(lacking.values()):
        reasons = "; ".join(f"{reason}: {', '.join(sets)}" for reason, sets in lacking.items() if sets)
        notes.append(f"{label}: no average; {reasons}.")
        return Cell()
    value = math.fsum(item.metrics[SCORE] for item in choice.values()) / len(choice)
    return Cell(f"{value:.3f}", value, _average_interval(choice))


def _average_interval(choice: Mapping[str, Measured]) -> tuple[float, float] | None:
    """Return the interval by bootstrap over the images of each set; None where a set has no lines of images."""
    if not all(item.images for item in choice.values()):
        return None
    pooled = next(iter(choice.values())).result.protocol["aggregation"] == "pixels"
    images = {f"{key}\0{image.id}": (key, image) for key, item in choice.items() for image in item.images}
    found = bootstrap_interval(
        {name: image.metrics[SCORE] for name, (_, image) in images.items()},
        {name: float(image.pixels) for name, (_, image) in images.items()} if pooled else None,
        {name: key for name, (key, _) in images.items()},
        mean_of="strata",
    )
    return found.low, found.high


def _row(name: str, choice: Mapping[str, Measured], titles: Mapping[str, str], cells: Sequence[Cell]) -> ReportRow:
    items = [(title, choice[key]) for key, title in titles.items() if key in choice]
    results = [item.result for _, item in items]
    pixels = sum(result.pixels for result in results)
    share = sum(result.failures for result in results) / pixels if pixels else None
    rates = [(result.parse_rate, result.pixels) for result in results if result.parse_rate is not None]
    weight = sum(count for _, count in rates)
    parsed = sum(rate * count for rate, count in rates) / weight if weight else None
    same = ("images", "done", "failures", "pixels", "parse_rate", "data_hash")
    details = tuple(
        Detail(
            set_name=title,
            partial=item.partial,
            metrics=item.metrics,
            interval=item.result.confidence.get(SCORE),
            **{name: getattr(item.result, name) for name in same},
        )
        for title, item in items
    )
    shown = (*cells, *(Cell() if part is None else Cell(percent(part), part) for part in (share, parsed)))
    system, key = items[0][1].system
    return ReportRow(name, "measured", shown, *items[0][1].protocol, key, system, details)


def _comparison_notes(items: Sequence[Measured], titles: Mapping[str, str]) -> list[str]:
    """Say what must not be compared: other protocols than the paper's or than each other, other data, other truth."""
    notes = []
    protocols = sorted({item.protocol for item in items})
    if len(protocols) > 1:
        listed = ", ".join(f"{name} {digest}" for name, digest in protocols)
        notes.append(f"Rows under different protocols are not comparable: {listed}.")
    other = sorted({name for name, _ in protocols if name not in PAPER_PROTOCOLS})
    if other:
        notes.append(f"Not the paper's protocol, so not comparable with its rows: {', '.join(other)}.")
    for key, title in titles.items():
        hashes = _hashes(item for item in items if item.set_name == key)
        if len(hashes) > 1:
            notes.append(
                f"{title}: measured on {len(hashes)} different data ({', '.join(hashes)}); compare rows of one only."
            )
    in_z = {item.set_name for item in items if item.result.protocol.get("depth_type", "z") == "z"}
    rays = [titles[key] for key in SOURCES if key in in_z and source_class(key).published_depth == "ray"]
    if rays:
        notes.append(
            f"{' and '.join(rays)}: the paper's labels are distances along the ray, these rows are scored against "
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


def _size_notes(table: PublishedTable, measured: Sequence[Measured]) -> list[str]:
    """Say where a set was measured on another number of images than the paper's."""
    sizes = published_table(EVALUATION_IMAGES_TABLE)
    differing = []
    for column in table.scored:
        printed = sizes.cell("Images", column.key)
        counts = {item.result.images for item in measured if item.set_name == column.key} - {number_in(printed)}
        if counts:
            differing.append(f"{column.title} {' and '.join(map(str, sorted(counts)))} ({printed})")
    return [f"Images of the measured sets, and in the paper: {', '.join(differing)}."] if differing else []
