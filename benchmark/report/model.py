"""The report as data, before it becomes text, Markdown, CSV, JSON or a page, and its numbers in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MISSING = "-"
PARTIAL_MARK = "*"


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str = MISSING  # a partial score carries the mark "*"
    value: float | None = None  # None where there is none
    interval: tuple[float, float] | None = None  # lower and upper end at 95 %


@dataclass(frozen=True)
class Detail:
    """Counts, metrics and data behind one measured score."""

    set_name: str  # title in the paper where the set has one
    images: int  # in the set
    done: int  # scored
    partial: str  # scored part of the set in words, "" for all of it
    metrics: dict[str, float]  # in the protocol's aggregation
    interval: tuple[float, float] | None  # delta1's, at 95 %
    failures: int  # scored pixels without an answer
    pixels: int  # scored
    parse_rate: float | None  # share of a VLM's replies that could be read; None for maps
    data_hash: str  # hash of the set's manifest


@dataclass(frozen=True)
class ReportRow:
    """A row of a table."""

    name: str  # with the key where two systems share the name
    origin: Literal["paper", "measured"]
    cells: tuple[Cell, ...]  # one for each column
    protocol: str = ""  # measured rows alone have this and the fields below
    protocol_hash: str = ""
    key: str = ""  # on the command line
    system: str = ""  # name as in the paper's tables
    details: tuple[Detail, ...] = ()  # one for each measured set

    @property
    def label(self) -> str:
        """Name, and for a measured row its protocol and hash."""
        protocol = f"{self.protocol} {self.protocol_hash}".strip()
        return f"{self.name} ({protocol})" if protocol else self.name


@dataclass(frozen=True)
class ReportColumn:
    """A column: `key` of a set or another short name; `title` and `group` as printed."""

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
    """A table."""

    key: str  # "1", "2", "3", "8", OUTSIDE_KEY, TASKS_KEY or one of SHAPE_KEYS
    title: str
    caption: str
    source: str  # source of the paper's rows, "" without any
    row_title: str  # heading of the first column
    columns: tuple[ReportColumn, ...]
    groups: tuple[ReportGroup, ...]
    notes: tuple[str, ...] = ()  # remarks without which the numbers could be misread

    @property
    def heading(self) -> str:
        """The number in the paper and the title, or the title alone."""
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
    """Tables in their order; `date` is given by the user, so that the same results give the same bytes."""

    title: str
    tables: tuple[ReportTable, ...]
    date: str = ""


def percent(share: float | None) -> str:
    """Return a share in per cent."""
    return MISSING if share is None else f"{100 * share:.1f}%"


def plain(value: float) -> str:
    """Return a positive number to three digits, never as a power of ten: "0.25", "17.7", "10,600"."""
    return f"{float(f'{value:.3g}'):,.12f}".rstrip("0").rstrip(".")


def time_text(seconds: float) -> str:
    """Return a time as the paper prints them, "0.42s", and below a tenth of a second "62.1ms" or "94.8µs"."""
    for limit, factor, unit in ((0.1, 1.0, "s"), (1e-4, 1e3, "ms"), (0.0, 1e6, "µs")):
        if seconds >= limit:
            return f"{plain(seconds * factor)}{unit}"
    raise ValueError(f"A time is not negative, got {seconds}.")
