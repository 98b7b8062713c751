"""A report as text for a terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .inputs import REPORT_KIND
from .model import MISSING, PARTIAL_MARK, Cell, Detail, Report, ReportColumn, ReportRow, ReportTable, percent
from .shape import SHAPE_KEYS
from .tables import SCORE

TEXT_WIDTH = 120
DETAIL_TITLES = ("Set", "Images", "Score", "95 % interval", "abs_rel", "RMSE", "Failed", "Parsed", "Data")
CSV_FIELDS = (
    *("table", "group", "system", "from", "protocol", "protocol_hash", "column", "text", "value", "low", "high"),
    *("images", "of_images", "partial", "failures", "pixels", "parse_rate", "data_hash"),
)

_NAME_WIDTH = 22  # first column, if the others leave room: a protocol with its hash
# Headings with which nine sets fit into 120 columns.
_SHORT_TITLES = {
    "argoverse2": "Argo2",
    "nuscenes": "nuSc.",
    "scannetpp": "ScN++",
    "sunrgbd": "SUN",
    "ibims1": "iBims",
    "scienceqa": "SciQA",
    "ocrbench": "OCRB.",
    "countbench": "Count",
    "images_per_second": "img/s",
    "forward_passes": "Fwd.",
    "latency": "Latency",
}


def to_rich(report: Report) -> RenderableType:
    """Return the report for a terminal of 120 columns, measured rows in bold."""
    parts: list[RenderableType] = [Text(report.title + (f" ({report.date})" if report.date else ""), style="bold")]
    for table in report.tables:
        parts += ["", Text(table.heading, style="bold cyan"), Text(table.caption, style="dim"), _rich_table(table)]
        if details := detail_rows(table):
            parts += [Padding(_rich_details(details), (0, 0, 0, 2))]
        parts += [Text(f"- {note}", style="yellow") for note in table.notes]
        parts += [Text(f"Paper rows: {table.source}.", style="dim")] if table.source else []
    return Group(*parts)


def to_text(report: Report, width: int = TEXT_WIDTH) -> str:
    """Return the report as plain text, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(to_rich(report))
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


def to_markdown(report: Report) -> str:
    """Return the report as GitHub's Markdown."""
    lines = [f"# {_escaped(report.title)}", ""]
    lines += [_escaped(report.date), ""] if report.date else []
    for table in report.tables:
        lines += [f"## {_escaped(table.heading)}", "", _escaped(table.caption), ""]
        header = [table.row_title or "", "From", *(column.title for column in table.columns)]
        rows = []
        for group in table.groups:
            rows += [[f"**{_escaped(group.title)}**", *[""] * (len(header) - 1)]] if group.title else []
            for row in group.rows:
                cells = [_escaped(row.label), row.origin, *(_escaped(cell.text) for cell in row.cells)]
                rows.append([f"**{cell}**" for cell in cells] if row.origin == "measured" else cells)
        lines += _markdown_table([_escaped(title) for title in header], rows)
        if details := detail_rows(table):
            lines += ["", "Measured, set by set:", ""]
            rows = [[label, *cells] for label, several in details for cells in several]
            lines += _markdown_table(["System", *DETAIL_TITLES], [[_escaped(cell) for cell in row] for row in rows])
        lines += ["", *(f"- {_escaped(note)}" for note in table.notes)]
        lines += [*([""] if table.notes else []), f"Paper rows: {_escaped(table.source)}."] if table.source else []
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def to_csv(report: Report) -> str:
    """Return one line for each cell that is there, so that tables with different columns fit into one file."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for table in report.tables:
        for group in table.groups:
            for row in group.rows:
                for column, cell in zip(table.columns, row.cells, strict=True):
                    if cell.text != MISSING:
                        writer.writerow(_csv_line(table, group.title, row, column, cell))
    return stream.getvalue()


def to_json(report: Report) -> str:
    """Return everything as JSON."""
    values = {"kind": REPORT_KIND, **dataclasses.asdict(report)}
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS = {"text": to_text, "markdown": to_markdown, "csv": to_csv, "json": to_json}


def detail_rows(table: ReportTable) -> list[tuple[str, list[list[str]]]]:
    """Return what stands behind each measured row: its label, and a line under `DETAIL_TITLES` for each set."""
    rows = []
    for row in table.measured:
        lines = [_detail_row(detail) for detail in row.details]
        for column, cell in zip(table.columns, row.cells, strict=True):
            if column.key == "average" and cell.value is not None:
                images = str(sum(detail.done for detail in row.details))
                lines.append(["Avg.", images, cell.text, interval_text(cell.interval), *[MISSING] * 5])
        rows += [(row.label, lines)] if lines else []
    return rows


def interval_text(interval: Sequence[float] | None, digits: int = 3) -> str:
    """Return an interval such as "0.790 to 0.806", or "-"."""
    return MISSING if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _detail_row(detail: Detail) -> list[str]:
    score = detail.metrics.get(SCORE, next(iter(detail.metrics.values()), None))
    digits = 3 if score is None or abs(score) <= 1 else 1 if abs(score) <= 100 else 0
    mark = PARTIAL_MARK if detail.partial else ""
    done = f"{detail.done or MISSING}" if detail.done >= detail.images else f"{detail.done} of {detail.images}"
    return [
        detail.set_name,
        f"{done}{mark}",
        MISSING + mark if score is None else f"{score:.{digits}f}{mark}",
        interval_text(detail.interval, digits),
        _number(detail.metrics.get("abs_rel")),
        _number(detail.metrics.get("rmse")),
        f"{detail.failures} of {detail.pixels}" if detail.pixels else MISSING,
        percent(detail.parse_rate),
        detail.data_hash[:12] or MISSING,
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _rich_table(table: ReportTable) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    # Rich narrows a column below its least width and then draws it too wide; a fixed width it keeps.
    fixed = _NAME_WIDTH if table.key in SHAPE_KEYS else None
    shown.add_column(table.row_title, overflow="fold", min_width=_NAME_WIDTH, width=fixed)
    shown.add_column("From", no_wrap=True)
    narrow = len(table.columns) > 6
    for index, column in enumerate(table.columns):
        title = _SHORT_TITLES.get(column.key, column.title) if narrow else column.title
        numeric = any(row.cells[index].value is not None for row in table.rows)
        shown.add_column(Text(title), justify="right" if numeric else "left", overflow="fold")
    for group in table.groups:
        if group.title:
            shown.add_row(Text(group.title, style="italic"))
        for row in group.rows:
            style = "bold" if row.origin == "measured" else ""
            name = Text(row.name, style=style)
            if row.protocol:
                name.append(f"\n{row.protocol} {row.protocol_hash}".rstrip(), style="dim")
            # A change in brackets gets a line of its own.
            cells = (Text(cell.text.replace(" (", "\n("), style=style) for cell in row.cells)
            shown.add_row(name, Text(row.origin), *cells)
    return shown


def _rich_details(details: list[tuple[str, list[list[str]]]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    for index, title in enumerate(("Measured, set by set", *DETAIL_TITLES[1:])):
        shown.add_column(title, justify="right" if 1 <= index <= 7 else "left", overflow="fold", no_wrap=index > 0)
    for label, lines in details:
        shown.add_row(Text(label, style="bold"))
        for cells in lines:
            shown.add_row(Text(f"  {cells[0]}"), *map(Text, cells[1:]))
    return shown


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    safe = html.escape(text, quote=False)
    for mark in "\\`*_[]|":
        safe = safe.replace(mark, "\\" + mark)
    return " ".join(safe.split())


def _csv_line(table: ReportTable, group: str, row: ReportRow, column: ReportColumn, cell: Cell) -> tuple[object, ...]:
    """Return the values of `CSV_FIELDS`; those of a set's details are empty for a cell without any."""
    low, high = cell.interval or (None, None)
    system = (table.key, group, row.name, row.origin, row.protocol, row.protocol_hash)
    detail = next((each for each in row.details if each.set_name == column.title), None)
    names = ("done", "images", "partial", "failures", "pixels", "parse_rate", "data_hash")
    counts = ("" if detail is None else getattr(detail, name) for name in names)
    return (*system, column.key, cell.text, cell.value, low, high, *counts)
