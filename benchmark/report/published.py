"""The numbers of the paper's tables 1 to 10, as printed, with types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLES_FILE = Path(__file__).with_name("published_tables.json")
EVALUATION_TABLES = (1, 2)
BENCHMARK_TABLE = 3
SPEED_TABLE = 8
EVALUATION_IMAGES_TABLE = 10
REPORTED_TABLES = (*EVALUATION_TABLES, BENCHMARK_TABLE, SPEED_TABLE)

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(K|h|s)?(?: \([^)]*\))?")
_FACTORS = {None: 1.0, "s": 1.0, "h": 3600.0, "K": 1000.0}


@dataclass(frozen=True)
class LmmsMetric:
    """
    Where lmms-eval's result files hold a column of table 3.

    Args:
        task, metric: keys in the file's "results"; the metric without its filter (",none").
        factor: from the file's value to the paper's scale.
        note: what is not certain about it, or "".
    """

    task: str
    metric: str
    factor: float
    note: str = ""


@dataclass(frozen=True)
class Column:
    """
    Args:
        key: the set's name on the command line, or another short name.
        title, group: as printed.
        unit: "delta1", "points", "seconds", "images" or "text".
        lmms_eval: for the columns of table 3.
    """

    key: str
    title: str
    unit: str
    group: str = ""
    lmms_eval: LmmsMetric | None = None


@dataclass(frozen=True)
class Row:
    """A row: its name without citations, other names of the same system, and its cells as printed."""

    name: str
    cells: tuple[str, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowGroup:
    """Rows under one heading; the title is "" where there is none."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PublishedTable:
    """
    A table of the paper.

    Args:
        number: in the paper.
        title, caption: in our words.
        source: the paper's title and the table.
        row_title: heading of the first column.
        mean: key of the column that is the mean of the others; None where there is none.
        notes: where the paper disagrees with itself, and what it leaves open.
    """

    number: int
    title: str
    caption: str
    source: str
    row_title: str
    columns: tuple[Column, ...]
    groups: tuple[RowGroup, ...]
    mean: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def scored(self) -> tuple[Column, ...]:
        """The columns without the mean."""
        return tuple(column for column in self.columns if column.key != self.mean)

    def rows(self) -> Iterator[Row]:
        """All rows, in their order."""
        for group in self.groups:
            yield from group.rows

    def cell(self, name: str, column: str) -> str:
        """
        What is printed.

        Raises:
            KeyError: the table has no such row or column.
        """
        index = next((i for i, each in enumerate(self.columns) if each.key == column), None)
        row = next((row for row in self.rows() if row.name == name), None)
        if index is None or row is None:
            raise KeyError(f"table {self.number} has no cell ({name!r}, {column!r})")
        return row.cells[index]


def published_tables() -> dict[int, PublishedTable]:
    """All ten tables by number."""
    return dict(_load())


def published_table(number: int) -> PublishedTable:
    """
    One table.

    Raises:
        ValueError: it is not kept.
    """
    tables = _load()
    if number not in tables:
        raise ValueError(f"No table {number}: the paper's tables {min(tables)} to {max(tables)} are kept.")
    return tables[number]


def number_in(cell: str) -> float | None:
    """
    The number of a printed cell: "0.810", "82.9 (↓ 0.5)" without the change, "800K" as 800000, "13h" and "2.48s" in
    seconds; None for words.
    """
    match = _NUMBER.fullmatch(cell)
    return None if match is None else float(match[1]) * _FACTORS[match[2]]


def same_name(name: str) -> str:
    """A form in which two spellings of a system's name are equal: letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9.]", "", name.casefold())


@cache
def _load() -> dict[int, PublishedTable]:
    tables = json.loads(TABLES_FILE.read_text(encoding="utf-8"))["tables"]
    return {table["number"]: _table(table) for table in tables}


def _table(values: dict[str, Any]) -> PublishedTable:
    columns = tuple(
        Column(**{**column, "lmms_eval": LmmsMetric(**column["lmms_eval"]) if "lmms_eval" in column else None})
        for column in values["columns"]
    )
    groups = tuple(
        RowGroup(
            group["title"],
            tuple(Row(row["name"], tuple(row["cells"]), tuple(row.get("also", ()))) for row in group["rows"]),
        )
        for group in values["groups"]
    )
    return PublishedTable(**{**values, "columns": columns, "groups": groups, "notes": tuple(values["notes"])})
