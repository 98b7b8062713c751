"""The paper's tables with measured rows beside the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .inputs import Inputs, LmmsResult, Measured, TaskScore
from .model import (
    OUTSIDE_KEY,
    PARTIAL_MARK,
    TASKS_KEY,
    Cell,
    Detail,
    Report,
    ReportColumn,
    ReportGroup,
    ReportRow,
    ReportTable,
)
from .numbers import plain, time_text
from .published import (
    BENCHMARK_TABLE,
    EVALUATION_IMAGES_TABLE,
    EVALUATION_TABLES,
    REPORTED_TABLES,
    SPEED_TABLE,
    Column,
    PublishedTable,
    number_in,
    published_table,
    same_name,
)
from .rows import SetColumn, measured_rows, one_each, seconds_per_image, unique_names

REPORT_TITLE = "DepthVLM-Bench: measured rows beside the paper's"
MEASURED_GROUP = "Measured, not in this table of the paper"
LMMS_PROTOCOL = "lmms-eval"
_ANSWER_COLUMNS = (ReportColumn("failures", "Failed"), ReportColumn("parse_rate", "Parsed"))
_SPEED_COLUMNS = (
    ReportColumn("set", "Set"),
    ReportColumn("images_per_second", "Images/s"),
    ReportColumn("device", "Device"),
)
# A 95 % interval of a normal distribution, from lmms-eval's standard error.
_NORMAL_95 = 1.959964


def build_report(inputs: Inputs, tables: Iterable[int] | None = None, date: str = "") -> Report:
    """
    The report of some results.

    Args:
        inputs: what was measured; it may be nothing, then only the paper's rows are there.
        tables: numbers of the paper's tables, of 1, 2, 3 and 8. By default all, and after them what is in no table of
            the paper: other sets, other tasks of lmms-eval.
        date: as it shall be printed; the same inputs and date give the same report.

    Raises:
        ValueError: no such table in a report.
    """
    wanted = REPORTED_TABLES if tables is None else tuple(dict.fromkeys(tables))
    wrong = [number for number in wanted if number not in REPORTED_TABLES]
    if wrong:
        raise ValueError(f"No report of table {wrong[0]}: choose of {', '.join(map(str, REPORTED_TABLES))}.")
    built = []
    for number in wanted:
        table = published_table(number)
        if number in EVALUATION_TABLES:
            built.append(_evaluation_table(table, inputs.measured))
        elif number == BENCHMARK_TABLE:
            built.append(_benchmark_table(table, inputs.lmms))
        else:
            built.append(_speed_table(published_table(SPEED_TABLE), inputs.measured))
    if tables is None:
        built += [table for table in (_outside_table(inputs.measured), _tasks_table(inputs.lmms)) if table.rows]
    return Report(REPORT_TITLE, tuple(built), date)


def _evaluation_table(table: PublishedTable, measured: Sequence[Measured]) -> ReportTable:
    rows, notes = measured_rows(measured, [SetColumn(column.key, column.title) for column in table.scored], True)
    return _with_paper(table, rows, [*notes, *_size_notes(table, measured)], _ANSWER_COLUMNS)


def _benchmark_table(table: PublishedTable, results: Sequence[LmmsResult]) -> ReportTable:
    by_model: dict[tuple[str, str], list[LmmsResult]] = {}
    for result in results:
        by_model.setdefault((result.name, result.model), []).append(result)
    rows: list[ReportRow] = []
    notes: list[str] = []
    for (name, _), files in by_model.items():
        scores: dict[str, list[TaskScore]] = {}
        for column, result in ((column, result) for column in table.columns for result in files):
            score = _task_score(column, result)
            if score is not None and score not in scores.setdefault(column.key, []):
                scores[column.key].append(score)
        common, apart = one_each({key: each for key, each in scores.items() if each})
        titles = {column.key: column.title for column in table.columns}
        notes += [f"{name}: {len(each)} results for {titles[key]}, each in its own row." for key, each in apart.items()]
        choices = [common, *({key: score} for key, each in apart.items() for score in each)]
        rows += [_benchmark_row(name, files, table, choice) for choice in choices if choice]
    parts = [(row.name, detail) for row in rows for detail in row.details if detail.partial]
    notes += [
        f"{PARTIAL_MARK} Partial, not a score: {name} on {part.set_name}, {part.partial}." for name, part in parts
    ]
    if rows:
        sources = [(column.title, column.lmms_eval) for column in table.columns if column.lmms_eval]
        notes += [f"{title}: {source.note}" for title, source in sources if source.note]
    return _with_paper(table, rows, notes)


def _task_score(column: Column, result: LmmsResult) -> TaskScore | None:
    source = column.lmms_eval
    return None if source is None else result.tasks.get(source.task, {}).get(source.metric)


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
        value, partial = score.value * source.factor, score.partial()
        error = None if score.stderr is None else _NORMAL_95 * score.stderr * source.factor
        interval = None if error is None else (value - error, value + error)
        digits = 0 if source.factor == 1000 else 1
        cells.append(Cell(f"{value:.{digits}f}{PARTIAL_MARK if partial else ''}", value, interval))
        done, original = score.effective or 0, score.original or 0
        metrics = {source.metric: value}
        details.append(Detail(column.title, original, done, partial, metrics, interval, 0, 0, None, ""))
    versions = sorted({result.version for result in files if result.version})
    return ReportRow(name, "measured", tuple(cells), LMMS_PROTOCOL, ", ".join(versions), "", name, tuple(details))


def _speed_table(table: PublishedTable, measured: Sequence[Measured]) -> ReportTable:
    titles = _set_titles()
    names = unique_names({item.system for item in measured})
    rows: list[ReportRow] = []
    notes: list[str] = []
    in_words: list[str] = []
    for item in measured:
        seconds = seconds_per_image(item)
        if seconds is None:
            continue
        mark = PARTIAL_MARK if item.partial() else ""
        speed = item.result.speed
        cells = [Cell(), Cell(), Cell(), Cell(f"{time_text(seconds)}{mark}", seconds)]
        cells += [Cell(titles.get(item.set_name, item.set_name)), Cell(plain(1 / seconds), 1 / seconds)]
        cells += [Cell(str(speed.get("device") or "-"))]
        name, key = item.system
        rows.append(ReportRow(names[item.system], "measured", tuple(cells), *item.protocol, key, name))
        if mark:
            notes.append(f"{PARTIAL_MARK} {rows[-1].label} on {item.set_name}: timed on {item.partial()}.")
        if item.result.parse_rate is not None:
            in_words.append(item.result.name)
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


def _outside_table(measured: Sequence[Measured]) -> ReportTable:
    inside = {column.key for column in published_table(EVALUATION_IMAGES_TABLE).columns}
    sets = [SetColumn(name, name) for name in sorted({item.set_name for item in measured} - inside)]
    rows, notes = measured_rows(measured, sets, False)
    columns = (*(ReportColumn(each.key, each.title) for each in sets), *_ANSWER_COLUMNS)
    return ReportTable(
        OUTSIDE_KEY,
        "Sets that are in no table of the paper",
        "delta1 (higher is better); no average, because the sets are no benchmark together.",
        "",
        "System",
        columns,
        (ReportGroup("", tuple(rows)),) if rows else (),
        tuple(notes),
    )


def _tasks_table(results: Sequence[LmmsResult]) -> ReportTable:
    known = {column.lmms_eval.task for column in published_table(BENCHMARK_TABLE).columns if column.lmms_eval}
    rows, notes = [], []
    for result in results:
        for task, scores in sorted(result.tasks.items()):
            if task in known or task in result.parts:
                continue
            for metric, score in sorted(scores.items()):
                partial = score.partial()
                mark = PARTIAL_MARK if partial else ""
                interval = None
                if score.stderr is not None:
                    interval = (score.value - _NORMAL_95 * score.stderr, score.value + _NORMAL_95 * score.stderr)
                count = "-" if score.effective is None else str(score.effective)
                cells = (Cell(task), Cell(metric), Cell(f"{score.value:.4g}{mark}", score.value, interval), Cell(count))
                rows.append(ReportRow(result.name, "measured", cells, LMMS_PROTOCOL, result.version))
                notes += [f"{PARTIAL_MARK} {result.name} on {task}: {partial}."] if partial else []
    columns = tuple(map(ReportColumn, ("task", "metric", "score", "samples"), ("Task", "Metric", "Score", "Samples")))
    return ReportTable(
        TASKS_KEY,
        "Tasks of lmms-eval that are in no table of the paper",
        "In lmms-eval's own scale. Tasks that only make up a group are left out.",
        "",
        "System",
        columns,
        (ReportGroup("", tuple(rows)),) if rows else (),
        tuple(dict.fromkeys(notes)),
    )


def _with_paper(
    table: PublishedTable, rows: Sequence[ReportRow], notes: Iterable[str], extra: Sequence[ReportColumn] = ()
) -> ReportTable:
    """The paper's rows as they are, each followed by the measured rows of the same system; then the others."""
    waiting = list(rows)
    groups = []
    for group in table.groups:
        shown: list[ReportRow] = []
        for row in group.rows:
            cells = tuple(Cell(text, number_in(text)) for text in row.cells) + (Cell(),) * len(extra)
            shown.append(ReportRow(row.name, "paper", cells))
            names = {same_name(name) for name in (row.name, *row.also)}
            same = [each for each in waiting if same_name(each.system) in names]
            waiting = [each for each in waiting if each not in same]
            shown += same
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


def _size_notes(table: PublishedTable, measured: Sequence[Measured]) -> list[str]:
    """Where a set was measured on another number of images than the paper's."""
    sizes = published_table(EVALUATION_IMAGES_TABLE)
    differing = []
    for column in table.scored:
        printed = sizes.cell("Images", column.key)
        counts = {item.result.images for item in measured if item.set_name == column.key} - {number_in(printed)}
        if counts:
            differing.append(f"{column.title} {' and '.join(map(str, sorted(counts)))} ({printed})")
    return [f"Images of the measured sets, and in the paper: {', '.join(differing)}."] if differing else []


def _set_titles() -> dict[str, str]:
    return {column.key: column.title for column in published_table(EVALUATION_IMAGES_TABLE).columns}
