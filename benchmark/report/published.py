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
    """Place of a column of table 3 in lmms-eval's result files."""

    task: str  # key in the file's "results"
    metric: str  # key in the task, without its filter (",none")
    factor: float  # from the file's value to the paper's scale
    note: str = ""  # a remark on its uncertainty


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str  # name of the set on the command line, or another short name
    title: str  # as printed
    unit: str  # "delta1", "points", "seconds", "images" or "text"
    group: str = ""  # as printed
    lmms_eval: LmmsMetric | None = None  # in table 3


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str  # without citations
    cells: tuple[str, ...]  # as printed
    also: tuple[str, ...] = ()  # other names of the same system


@dataclass(frozen=True)
class RowGroup:
    """Rows under one heading; the title is "" where there is none."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper."""

    number: int
    title: str  # in our words, as the caption
    caption: str
    source: str  # the paper's title and the table
    row_title: str  # heading of the first column
    columns: tuple[Column, ...]
    groups: tuple[RowGroup, ...]
    mean: str | None = None  # key of the column that is the mean of the others
    notes: tuple[str, ...] = ()  # contradictions in the paper, and open questions

    @property
    def scored(self) -> tuple[Column, ...]:
        """The columns without the mean."""
        return tuple(column for column in self.columns if column.key != self.mean)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in their order."""
        for group in self.groups:
            yield from group.rows

    def cell(self, name: str, column: str) -> str:
        """Return a cell as printed.

        Raises:
            KeyError: The table has no such row or column.
        """
        for row in self.rows():
            for each, cell in zip(self.columns, row.cells, strict=True):
                if (row.name, each.key) == (name, column):
                    return cell
        raise KeyError(f"table {self.number} has no cell ({name!r}, {column!r})")


@cache
def published_tables() -> dict[int, PublishedTable]:
    """Return all ten tables by number."""
    tables = json.loads(TABLES_FILE.read_text(encoding="utf-8"))["tables"]
    return {table["number"]: _table(table) for table in tables}


def published_table(number: int) -> PublishedTable:
    """Return one table.

    Raises:
        ValueError: There is no table of this number.
    """
    tables = published_tables()
    if number not in tables:
        raise ValueError(f"No table {number}: the paper's tables {min(tables)} to {max(tables)} are kept.")
    return tables[number]


def number_in(cell: str) -> float | None:
    """Return the number of a printed cell, or None for words.

    "0.810" is 0.81; "82.9 (↓ 0.5)" counts without the change, "800K" as 800000, "13h" and "2.48s" in seconds.
    """
    match = _NUMBER.fullmatch(cell)
    return None if match is None else float(match[1]) * _FACTORS[match[2]]


def same_name(name: str) -> str:
    """Return a form in which two spellings of a system's name are equal: letters, digits and dots in lower case."""
    return re.sub(r"[^a-z0-9.]", "", name.casefold())


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
