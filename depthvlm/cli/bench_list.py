"""`depthvlm bench list`: every row, what it needs, and whether it can run here; and every source of data."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..benchmark.sources import source_class, source_names
from ..benchmark.systems import PREFIXES, SYSTEMS, System, can_run

_PIPE_WIDTH = 200


def run(console: Console | None = None) -> None:
    """Print systems and sources. Nothing is loaded, and nothing is asked of the network."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:  # a file or a pipe has no width: 80 columns would fold every cell
            console.width = _PIPE_WIDTH
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row", no_wrap=True)
    for title in ("system", "kind", "tables", "needs", "runs here"):
        table.add_column(title, overflow="fold")
    for key, row in SYSTEMS.items():
        able, remark = can_run(row)
        here = f"{'yes' if able else 'no'}: {remark}" if remark else "yes"
        tables = ", ".join(map(str, row.tables)) or "-"
        table.add_row(key, escape(row.name), row.kind, tables, needs(row), escape(here))
    console.print(table)
    console.print(
        "\nTables: of the paper. Table 3's scores come from lmms-eval (docs/lmms_eval.md), not from `bench eval`.",
        soft_wrap=True,
    )
    console.print("\nBesides:")
    for prefix in PREFIXES.values():
        console.print(f"  {prefix}", soft_wrap=True)
    console.print("\nSources of data, for `depthvlm bench build`:")
    sources = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("source", "dataset", "splits", "metres", "licence"):
        sources.add_column(title, overflow="fold")
    for key in source_names():
        source = source_class(key)
        low, high = source.depth_range
        sources.add_row(key, source.title, ", ".join(source.splits), f"{low:g} to {high:g}", escape(source.licence))
    console.print(sources)


def needs(row: System) -> str:
    """Return packages, environment variables, options and GPU memory of a system, in a few words."""
    requirement = row.requirement
    parts = [*requirement.packages, *requirement.environment, *(f"{name}=" for name in row.required_options)]
    if requirement.gpu_gib:
        parts.append(f"GPU {requirement.gpu_gib:.0f} GiB")
    return ", ".join(parts) or "-"
