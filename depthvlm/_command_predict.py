"""`depthvlm predict`: from the command's options to files."""

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
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

from ._bundled import BUNDLED_MODEL, BUNDLED_MODEL_NOTE
from ._command_predict_video import ClipOptions, is_video_name, predict_clips, split_clips
from ._fail import fail
from .inputs import find_images, read_intrinsics, result_stems
from .prediction import FORMATS, Prediction, output_paths

INTERRUPTED = 130  # what shells give for Ctrl-C
_CAMERAS = ("intrinsics", "focal_length", "fov")


@dataclass
class _Job:
    """An image and where its results go."""

    image: Path
    stem: str
    files: dict[str, Path]
    record_file: Path


@dataclass
class _Outcome:
    """What became of the images."""

    done: int = 0
    focal_sources: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, focal_source: str) -> None:
        """Count an image or a clip that is done."""
        self.done += 1
        self.focal_sources[focal_source] = self.focal_sources.get(focal_source, 0) + 1

    def add_failure(self, item: Path, error: Exception | str) -> None:
        """Keep what was wrong with an image or a clip."""
        self.failed.append((str(item), str(error) or type(error).__name__))


def run(
    images: list[str],
    *,
    model: str | None,
    focal_length: float | None,
    fov: float | None,
    intrinsics: Path | None,
    prompt: str | None,
    out: Path,
    save: str,
    device: str,
    dtype: str,
    batch_size: int,
    max_new_tokens: int,
    overwrite: bool,
    sequence: bool,
    depth_range: tuple[float, float] | None,
    every: int,
    max_frames: int | None,
    fps: float,
) -> None:
    """Predict, write, report. Raises `typer.Exit`: 1 if something failed, 2 for wrong options, 130 for Ctrl-C."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    cameras = {"--focal-length": focal_length, "--fov": fov, "--intrinsics": intrinsics}
    given = [name for name, value in cameras.items() if value is not None]
    if len(given) > 1:
        raise fail(f"{' and '.join(given)} both name the camera: give one of them.", code=2)
    formats = list(dict.fromkeys(name.strip() for name in save.split(",") if name.strip()))
    try:
        output_paths(out, "", formats)
        camera = None if intrinsics is None else read_intrinsics(intrinsics)
        clips, others = split_clips(images, sequence)
        paths = find_images(others)
        clips += [path for path in paths if is_video_name(path)]  # of a pattern
        paths = [path for path in paths if not is_video_name(path)]
        if clips and prompt is not None:
            raise ValueError("--prompt is for images: of a clip, only depth is predicted.")
        if clips and not paths and formats != list(FORMATS):
            raise ValueError("--save is for images: a clip gives 16-bit PNGs, a side-by-side video and JSON.")
    except ValueError as error:
        raise fail(error, code=2) from None

    outcome = _Outcome()
    stems = result_stems([*paths, *clips])
    jobs = [
        _Job(path, stem, output_paths(out, stem, formats), output_paths(out, stem, ["json"])["json"])
        for path, stem in zip(paths, stems, strict=False)
    ]
    jobs = _without_own_results(jobs)
    settings = {
        "focal_length": focal_length,
        "fov": fov,
        "intrinsics": camera,
        "prompt": prompt,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    todo = jobs if overwrite else _not_complete(jobs, model, settings, outcome, console)

    @cache
    def load() -> Any:
        from . import inference

        return _load(inference, model, device, dtype, console)

    try:
        with _warnings_on(console):
            if todo:
                _predict_all(load(), todo, settings, formats, out, outcome, console)
            if clips:
                options = ClipOptions(
                    focal_length=focal_length,
                    fov=fov,
                    intrinsics=None if camera is None else camera.tolist(),
                    every=every,
                    max_frames=max_frames,
                    model=model or BUNDLED_MODEL,
                    load=load,
                    depth_range=depth_range,
                    fps=fps,
                    batch_size=batch_size,
                    overwrite=overwrite,
                )
                named = list(zip(clips, stems[len(paths) :], strict=True))
                predict_clips(named, options, out, outcome.add, outcome.add_failure, console)
    except (ImportError, OSError, ValueError) as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        total = len(todo) + len(clips)
        console.print(f"Interrupted: {outcome.done} of {total} files done, results in {out}. Run it again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    _report(outcome, out, console)
    if outcome.failed:
        raise typer.Exit(1)


def _without_own_results(jobs: list[_Job]) -> list[_Job]:
    """Leave out the pictures of an earlier run, where results lie among the images."""
    results = {path.resolve() for job in jobs for path in job.files.values()}
    return [job for job in jobs if job.image.resolve() not in results]


def _not_complete(
    jobs: list[_Job], model: str | None, settings: dict[str, Any], outcome: _Outcome, console: Console
) -> list[_Job]:
    """The images to do, and a word on those that are done."""
    todo, skipped, made_otherwise = [], 0, 0
    for job in jobs:
        record = _read_record(job)
        source = record.get("source")
        if source is not None and Path(source) != job.image.resolve():
            reason = f"{job.record_file} holds the results of {source}: choose another --out, or --overwrite."
            outcome.failed.append((str(job.image), reason))
        elif all(path.is_file() for path in job.files.values()):
            skipped += 1
            made_otherwise += _made_otherwise(record, model, settings)
        else:
            todo.append(job)
    if skipped:
        console.print(f"Skipped {skipped} complete (--overwrite to redo).")
    if made_otherwise:
        console.print(f"Note: {made_otherwise} of them were made with another model, camera or prompt.", style="yellow")
    return todo


def _read_record(job: _Job) -> dict[str, Any]:
    """The JSON that an earlier run has left, empty if there is none that can be read."""
    try:
        record = json.loads(job.record_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _made_otherwise(record: dict[str, Any], model: str | None, settings: dict[str, Any]) -> bool:
    if not record:
        return False
    if (record.get("model"), record.get("prompt")) != (model or BUNDLED_MODEL, settings["prompt"]):
        return True
    given = {name: settings[name] for name in _CAMERAS if settings[name] is not None}
    if record.get("focal_source") not in (given or ("exif", "assumed")):
        return True
    focal_lengths = {
        "intrinsics": lambda intrinsics: intrinsics.flat[0],
        "focal_length": lambda focal_length: focal_length,
        "fov": lambda fov: record["width"] / (2 * math.tan(math.radians(fov) / 2)),
    }
    return any(
        not math.isclose(record["camera"]["fx"], focal_lengths[name](value), rel_tol=1e-4)
        for name, value in given.items()
    )


def _load(inference: Any, model: str | None, device: str, dtype: str, console: Console) -> Any:
    from transformers.utils import logging as transformers_logging

    started = time.perf_counter()
    if model is None:
        transformers_logging.disable_progress_bar()  # it loads in an instant
        console.print(f"Model: {BUNDLED_MODEL_NOTE} (choose another with --model).", style="yellow")
    depthvlm = inference.load(model or BUNDLED_MODEL, device, dtype)
    parameters = depthvlm.model.num_parameters() / 1e6
    console.print(
        f"Loaded {depthvlm.name}: {parameters:,.1f} M parameters, {depthvlm.model.dtype} on {depthvlm.model.device}, "
        f"in {time.perf_counter() - started:.1f} s".replace("torch.", "")
    )
    return depthvlm


def _predict_all(
    depthvlm: Any,
    jobs: list[_Job],
    settings: dict[str, Any],
    formats: list[str],
    out: Path,
    outcome: _Outcome,
    console: Console,
) -> None:
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predict", total=len(jobs))

        def failed(index: int, error: Exception) -> None:
            outcome.add_failure(jobs[index].image, error)
            progress.advance(task)

        images = [job.image for job in jobs]
        for index, prediction in depthvlm.predict_iter(images, **settings, on_error=failed):
            try:
                prediction.save(out, jobs[index].stem, formats, overwrite=True)
            except (OSError, ValueError) as error:
                failed(index, error)
                continue
            outcome.add(prediction.camera.source)
            progress.console.print(_line(jobs[index], prediction))
            progress.advance(task)


def _line(job: _Job, prediction: Prediction) -> str:
    statistics = prediction.summary()
    depth = " / ".join("-" if value is None else f"{value:.2f}" for value in statistics.values())
    camera = prediction.camera
    line = f"{job.image}  {depth} m (min / median / max)  focal length {camera.fx:.1f} px ({camera.source})"
    return line if prediction.text is None else f"{line}\n  {prediction.text}"


def _report(outcome: _Outcome, out: Path, console: Console) -> None:
    if outcome.done:
        sources = ", ".join(f"{count} {source}" for source, count in sorted(outcome.focal_sources.items()))
        console.print(f"Focal lengths: {sources}.")
        if "assumed" in outcome.focal_sources:
            console.print(
                "For true metres give --focal-length, --fov or --intrinsics where it is assumed.", style="yellow"
            )
    console.print(f"{outcome.done} done, {len(outcome.failed)} failed. Results: {out.resolve()}")
    for image, reason in outcome.failed:
        typer.secho(f"Failed: {image}: {reason}", fg="red", err=True)


@contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    """Show each warning once, as a line rather than with its place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            console.print(f"Warning: {message}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} images/s")
