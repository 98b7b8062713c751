"""`depthvlm predict --engine ray`: from the command's options to a run on a cluster, and its outcome on the console."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from .failures import INTERRUPTED, explain, fail, printable

_RAY_ONLY = ("address", "workers", "shard_rows", "image_column", "split")
_SUPPORTED = {
    *("images", "model", "revision", "token", "focal_length", "fov", "intrinsics", "out", "formats", "device", "dtype"),
    *("allow_untrained_head", "batch_size", "max_image_pixels", "engine", *_RAY_ONLY),
}
_MOST_NAMED = 20  # failures on the console; the manifest has all


def check_engine(context: typer.Context, engine: str) -> None:
    """Refuse options of the other engine, and several processes that would all do the same.

    Raises:
        typer.Exit: One is given, or a token for a cluster elsewhere, or a launcher has started this process.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if "LOCAL_RANK" in os.environ and processes != "1":
        raise fail(
            f"A launcher has started {processes} processes of `depthvlm predict`, which would all predict the same "
            "images. Start it without a launcher: --engine ray uses all GPUs.",
            code=2,
        )
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if engine == "ray":
        wrong = [name for name in given if name not in _SUPPORTED]
        advice = "leave it out, or predict without --engine ray."
    else:
        wrong = [name for name in given if name in _RAY_ONLY]
        advice = "add --engine ray, or leave it out."
    if engine == "ray" and {"token", "address"} <= {*given}:
        raise fail("--token is for this machine alone: set HF_TOKEN on the cluster's nodes.", code=2)
    if wrong:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise fail(f"{names}: not for --engine {engine}: {advice}", code=2)


def predict_ray(
    sources: Sequence[str],
    out: str,
    intrinsics: Path | None,
    formats: str | None,
    **options: Any,
) -> None:
    """Predict on a Ray cluster.

    Args:
        sources: See `Listing`.
        out: Folder or URL of the results.
        intrinsics: A file with one camera for all images; those of single images are columns of tables.
        formats: Files of each image, separated by commas; None: shards in parquet.
        **options: `focal_length` and `fov`, and other fields of `Request`.

    Raises:
        typer.Exit: An image failed, an option is wrong, or the run was interrupted.
    """
    from ..camera_files import read_camera
    from ..prediction import output_paths
    from ..processing.camera_depthvlm import cameras_per_image
    from ..volume.run import Request, Run
    from .predict_clips import is_video
    from .predict_report import Report

    report = Report()
    camera = {name: options.pop(name) for name in ("focal_length", "fov")}
    try:
        if options["device"] not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device with --engine ray is auto, cpu or cuda, got {options['device']!r}.")
        if clips := [one for one in sources if is_video(Path(one))]:
            raise ValueError(f"{clips[0]} is a video: predict it without --engine ray.")
        chosen = None if formats is None else tuple(dict.fromkeys(part.strip() for part in formats.split(",")))
        if chosen is not None:
            output_paths(Path(), "", chosen)
        lens = None if intrinsics is None else read_camera(intrinsics)
        if lens is not None and not lens.is_pinhole:
            raise ValueError(
                f"{intrinsics}: with --engine ray cameras are pinholes, and this is one of the model {lens.model!r}. "
                "Predict without --engine ray, or undistort the pictures first."
            )
        matrix = None if lens is None else [float(number) for number in lens.numbers]
        cameras_per_image(1, **camera, intrinsics=None if matrix is None else [matrix])
        request = Request(sources, out, camera=camera | {"intrinsics": matrix}, formats=chosen, **options)
        run = Run(request)
    except ValueError as error:
        raise fail(error, code=2) from None
    if run.passed_over:
        report.console.print(f"Passed over: {run.passed_over} files that are no images.", style="yellow")
    shards, images = run.summary.shards, run.summary.images
    report.console.print(f"{images} images in {shards} shard(s) of {request.shard_rows}.")
    if run.done.records:
        report.console.print(f"Skipped {len(run.done.records)} complete shard(s), {run.done.images} images.")
    try:
        if not run.is_complete:
            _predict(run, report)
    except KeyboardInterrupt:
        report.console.print(
            f"Interrupted: {len(run.done.records)} of {shards} shards are complete in {printable(run.out.url)}. Give "
            "the same command again to go on."
        )
        raise typer.Exit(INTERRUPTED) from None
    except (OSError, ValueError) as error:
        raise fail(f"{explain(error)} Complete shards are kept: give the same command again to go on.") from None
    finally:
        run.save()
    _sum_up(run, report)
    if run.done.failures:
        raise typer.Exit(1)


def _predict(run: Any, report: Any) -> None:
    images = run.summary.images
    with report.progress("images") as show:

        def finished(record: dict[str, Any]) -> None:
            failed = f", {len(record['failures'])} failed" if record["failures"] else ""
            report.console.print(f"{record['name']}: {record['rows']} images{failed}")
            show("predict", run.done.images, images)

        def started(workers: int, each: str) -> None:
            report.console.print(f"Predicting with {workers} worker(s), each with {each}.")
            show("predict", run.done.images, images)

        run.predict(finished, started)


def _sum_up(run: Any, report: Any) -> None:
    for text in run.done.warnings[:_MOST_NAMED]:
        report.console.print(f"Warning: {printable(text)}", style="yellow")
    sources = run.done.focal_sources
    if sources:
        counted = ", ".join(f"{count} {source}" for source, count in sorted(sources.items()))
        report.console.print(f"Focal lengths: {counted}.")
    if "assumed" in sources:
        report.console.print(
            "For true metres give --focal-length, --fov or --intrinsics, or columns of these names in parquet tables, "
            "where it is assumed.",
            style="yellow",
        )
    failures = run.done.failures
    report.console.print(f"{run.done.rows} done, {len(failures)} failed. Results: {printable(run.out.url)}")
    for one in failures[:_MOST_NAMED]:
        reason = " ".join(printable(one["reason"]).removeprefix(f"{one['source']}:").split())
        typer.secho(f"Failed: {printable(one['source'])}: {reason}", fg="red", err=True)
    if len(failures) > _MOST_NAMED:
        place = printable(run.out.path("manifest.json"))
        typer.secho(f"... and {len(failures) - _MOST_NAMED} more: see {place}.", fg="red", err=True)
