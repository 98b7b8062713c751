"""`depthvlm bench report`: from result files to tables and a page."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import expected_failures, fail, printable

if TYPE_CHECKING:
    from ..benchmark.report.inputs import Inputs
    from ..benchmark.report.model import Report


class ReportFormat(StrEnum):
    """Form of the printed tables."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    json = "json"


@expected_failures()
def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...",
            help="Results of `bench eval` and *_results.json of lmms-eval, or folders of them; none: the paper alone.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        list[int] | None,
        typer.Option(
            metavar="1|2|3|8",
            help="Of the paper; may be repeated.",
            show_default="all, and what is in none",
            min=1,
        ),
    ] = None,
    format: Annotated[ReportFormat, typer.Option(help="What is printed.")] = ReportFormat.text,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write report.html with plots, report.md, report.csv and report.json."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUILD_DIR", help="Builds with the images of the worst results; may be repeated."),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Worst images of each system and set on the page.")] = 6,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="System to compare with.", show_default="the best on each set"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in --out that this command did not write.")
    ] = False,
    date: Annotated[str, typer.Option(help="To be printed; without it the same results give the same bytes.")] = "",
) -> None:
    """Print measured rows beside the published ones of the paper's tables 1, 2, 3 and 8.

    Rows under different protocols or on different data are never mixed, and a partial result is marked as one.
    """
    from rich.console import Console

    from ..benchmark.report.formats import FORMATS, to_rich, to_text
    from ..benchmark.report.inputs import read_inputs
    from ..benchmark.report.tables import build_report

    if out is None and (data or baseline is not None):
        raise fail("--data and --baseline are for the page: give --out too.", code=2)
    inputs = read_inputs(results or [])
    built = build_report(inputs, table or None, date)
    files = [] if out is None else _write(built, inputs, out, data or [], worst, baseline, overwrite)
    if format is ReportFormat.text:
        console = Console(highlight=False, markup=False, emoji=False)
        if console.is_terminal:
            console.print(to_rich(built))
        else:
            typer.echo(to_text(built), nl=False)
    else:
        typer.echo(FORMATS[format.value](built), nl=False)
    for path in inputs.unfinished:
        typer.secho(
            f"Not finished, so not in the report: {printable(path)}; run its `bench eval` again.", fg="yellow", err=True
        )
    for path in inputs.passed_over:
        typer.secho(f"Passed over, no result: {printable(path)}", fg="yellow", err=True)
    for path in files:
        typer.echo(f"Written: {printable(path)}", err=True)


def _write(
    built: "Report",
    inputs: "Inputs",
    out: Path,
    data: list[Path],
    worst: int,
    baseline: str | None,
    overwrite: bool,
) -> list[Path]:
    from ..benchmark.report.formats import to_csv, to_json, to_markdown
    from ..benchmark.report.page import to_page
    from ..files import write_text
    from ..result_records import recorded

    texts = {
        "report.html": to_page(built, inputs, data, worst, baseline),
        "report.md": to_markdown(built),
        "report.csv": to_csv(built),
        "report.json": to_json(built),
    }
    files = [out / name for name in texts]
    with recorded(out, "report", files, str(out.resolve()), overwrite):
        for path, text in zip(files, texts.values(), strict=True):
            write_text(path, text)
    return files
