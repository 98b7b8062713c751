"""`depthvlm bench build` and `depthvlm bench inspect`: from the commands' options to files."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failures import expected_failures, fail, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Engine(StrEnum):
    """Engine that writes the shards."""

    processes = "processes"
    ray = "ray"


@expected_failures()
def build(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a dataset, as `bench list` shows them.")],
    root: Annotated[Path, typer.Option(metavar="DIR", help="Its download, in the official layout.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the shards and the manifest go.")],
    split: Annotated[str | None, typer.Option(help="train or test; needed where the source has both.")] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many; by default as in the paper's tables 9 and 10.")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Sampled pixels of an image.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the sampled pixels.")] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What the reader of the source takes besides, text or JSON; several times for more.",
        ),
    ] = None,
    max_bad: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="Stop when more frames cannot be used; by default 1 %, at least 10."),
    ] = None,
    retry_bad: Annotated[
        bool, typer.Option("--retry-bad", help="Make finished shards again that lack a frame.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="W", help="Processes, or shards on Ray at a time; by default one a CPU."),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="processes, or ray for several machines.")] = Engine.processes,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; auto: the running one. Without it a Ray is started here.")
    ] = None,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="By default 50 to 1000, with the number of images.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Also write the released JSON lines, with images and depth maps as files.")
    ] = False,
) -> None:
    """Turn a dataset's download into shards of the benchmark.

    Interrupted, it goes on where it was when called again. The same input and seed give the same bytes, whatever the
    number of workers. Frames that cannot be used are left out and listed in the manifest, none is replaced.
    """
    from rich.console import Console

    from ..benchmark.build.annotations import check_replaceable, write_annotations
    from ..benchmark.build.builder import BuildEvents, run_build
    from ..benchmark.build.plan import plan_build
    from ..benchmark.build.shards import build_name
    from ..benchmark.sources import open_source
    from .options import named_values

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if address is not None and engine is not Engine.ray:
        raise fail("--address is of a Ray cluster: it needs --engine ray.", code=2)
    interrupted = f"Interrupted. Finished shards are in {printable(out)}: run the same command again to go on."
    with expected_failures(interrupted=interrupted):
        options = named_values(option, "--option")
        opened = open_source(source, root, **options)
        if split is None and len(opened.splits) > 1:
            raise fail(f"{source} has the splits {' and '.join(opened.splits)}: choose one with --split.", code=2)
        split = split or opened.splits[0]
        if jsonl:
            check_replaceable(out, build_name(source, split))  # before what may take hours
        plan = plan_build(opened, split, num_images, points, seed, rows_per_shard, options)
        console.print(f"{plan.name}: {plan.images} of {plan.available} frames, {len(plan.tasks)} shards.")
        started = time.perf_counter()
        with _progress(console) as progress:
            bar = progress.add_task("build", total=plan.images)
            before = 0

            def begin(images: int, done: int) -> None:
                nonlocal before
                before = done
                # A new task, so that the rate is of this run.
                progress.reset(bar, total=images, completed=done)

            events = BuildEvents(begin, lambda count: progress.advance(bar, count), progress.console.print)
            entry = run_build(
                plan,
                open_source,
                root,
                out,
                workers=workers,
                engine=engine.value,  # type: ignore[arg-type]
                address=address,
                max_bad=max_bad,
                retry_bad=retry_bad,
                events=events,
            )
        seconds = time.perf_counter() - started
        if jsonl:
            with _progress(console) as progress:
                bar = progress.add_task("jsonl", total=entry["counts"]["rows"])
                path = write_annotations(out, source, split, lambda count: progress.advance(bar, count))
            console.print(f"Released form: {path}")
    _report(entry, out, (plan.images - before) / max(seconds, 1e-9), console)


@expected_failures()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="BUILD_DIR", help="What `bench build` wrote.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page, in one file.")] = Path("inspect.html"),
    samples: Annotated[int, typer.Option(min=1, help="Rows of each source that are shown.")] = 12,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that this command did not write.")
    ] = False,
) -> None:
    """Write a page with statistics and samples of each source, where a wrong scale or projection shows."""
    from rich.console import Console
    from rich.table import Table

    from ..benchmark.build.inspection import write_inspection
    from ..result_records import recorded

    console = Console(highlight=False, markup=False)
    with recorded(out.parent, out.name, [out], str(folder.resolve()), overwrite), _progress(console) as progress:
        bar = progress.add_task("inspect", total=None)
        statistics = write_inspection(folder, out, samples, lambda count: progress.advance(bar, count))
    columns = ("build", "images", "scenes", "cameras", "valid", "metres: min / 5 % / median / 95 % / max", "fx, px")
    table = Table(*columns)
    for name, found in statistics.items():
        metres = " / ".join(f"{value:.3g}" for value in found.metres)
        low, _, high = found.focal_length
        numbers = (str(number) for number in (found.rows, found.scenes, found.cameras))
        table.add_row(name, *numbers, f"{found.valid[1]:.1%}", metres, f"{low:.0f} - {high:.0f}")
    console.print(table)
    typer.echo(f"Page: {printable(out)}")


@contextmanager
def _progress(console: "Console") -> "Iterator[Progress]":
    """Show a bar with rate and remaining time, and nothing where the output is not a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images a second."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} images/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _report(entry: dict[str, Any], out: Path, rate: float, console: "Console") -> None:
    counts = entry["counts"]
    speed = f"; {rate:.1f} images/s" if rate else ""
    console.print(
        f"{counts['rows']} images, {counts['points']} points, {counts['bytes'] / 1e6:,.1f} MB in "
        f"{len(entry['shards'])} shards{speed}. Manifest: {printable(out / 'manifest.json')}"
    )
    for note in entry["notes"]:
        console.print(f"Note: {note}", style="yellow")
    for frame in entry["bad_frames"]:
        typer.secho(printable(f"Not usable: {frame['id']}: {frame['reason']}"), fg="yellow", err=True)
