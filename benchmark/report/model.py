"""The report as data, before it becomes text, Markdown, CSV, JSON or a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MISSING = "-"
PARTIAL_MARK = "*"
OUTSIDE_KEY = "outside"
TASKS_KEY = "tasks"


@dataclass(frozen=True)
class Cell:
    """
    Args:
        text: as shown; "-" where there is nothing. A partial score carries the mark "*".
        value: the number; None where there is none.
        interval: lower and upper end of its 95 % interval.
    """

    text: str = MISSING
    value: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Detail:
    """
    What stands behind one measured score.

    Args:
        set_name: the set, its title in the paper where it has one.
        images, done: that were to be scored, and that were.
        partial: how much was scored, in words; "" for all of it.
        metrics: name to value in the protocol's aggregation.
        interval: of delta1.
        failures, pixels: scored pixels without an answer, and all scored pixels.
        parse_rate: share of a VLM's replies that could be read; None for maps.
        data_hash: of the set's manifest.
    """

    set_name: str
    images: int
    done: int
    partial: str
    metrics: dict[str, float]
    interval: tuple[float, float] | None
    failures: int
    pixels: int
    parse_rate: float | None
    data_hash: str


@dataclass(frozen=True)
class ReportRow:
    """
    Args:
        name: of the system, with its key where two share a name.
        origin: "paper" or "measured".
        cells: one for each column of the table.
        protocol, protocol_hash: of a measured row, else "".
        key: of a measured system on the command line, else "".
        system: its name as in the paper's tables.
        details: one for each measured set.
    """

    name: str
    origin: Literal["paper", "measured"]
    cells: tuple[Cell, ...]
    protocol: str = ""
    protocol_hash: str = ""
    key: str = ""
    system: str = ""
    details: tuple[Detail, ...] = ()

    @property
    def label(self) -> str:
        """Name, and for a measured row its protocol and hash."""
        protocol = f"{self.protocol} {self.protocol_hash}".strip()
        return f"{self.name} ({protocol})" if protocol else self.name


@dataclass(frozen=True)
class ReportColumn:
    """`key` of a set or another short name; `title` and `group` as printed."""

    key: str
    title: str
    group: str = ""


@dataclass(frozen=True)
class ReportGroup:
    """Rows under one heading."""

    title: str
    rows: tuple[ReportRow, ...]


@dataclass(frozen=True)
class ReportTable:
    """
    Args:
        key: "1", "2", "3", "8", "outside" (sets that no table of the paper has) or "tasks" (of lmms-eval, likewise).
        source: of the paper's rows; "" without any.
        notes: what a reader must know to read the numbers right.
    """

    key: str
    title: str
    caption: str
    source: str
    row_title: str
    columns: tuple[ReportColumn, ...]
    groups: tuple[ReportGroup, ...]
    notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """ "Table 1. ...", or the title."""
        return f"Table {self.key}. {self.title}" if self.key.isdigit() else self.title

    @property
    def rows(self) -> list[ReportRow]:
        """All rows."""
        return [row for group in self.groups for row in group.rows]

    @property
    def measured(self) -> list[ReportRow]:
        """The measured rows."""
        return [row for row in self.rows if row.origin == "measured"]


@dataclass(frozen=True)
class Report:
    """Tables in their order; `date` is as given by the user, so that the same results give the same bytes."""

    title: str
    tables: tuple[ReportTable, ...]
    date: str = ""
