"""`depthvlm predict`: from the command's options to files."""

import errno
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

from ..checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE, PUBLISHED_MODEL_NOTE, weights_identity
from ..inputs import FoundImages, look_for_images, result_stems
from ..prediction import DEFAULT_SAVE, Prediction, output_paths
from ..result_records import prepared_folder
from .camera_files import read_cameras
from .failures import INTERRUPTED, explain, fail, is_expected, printable, show_fault
from .predict_clips import ClipOptions, check_clips, is_video_name, predict_clip, split_clips
from .predict_images import Job, Settings, plan, predict_images, without_own_results

_MOST_NAMED = 5  # in a message
_LAYOUT = "\n\t"


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

    def add_failure(self, item: Path | str, error: Exception | str) -> None:
        """Keep what was wrong with an image or a clip. The traceback of a fault of this program is shown."""
        name = printable(item)
        if isinstance(error, Exception):
            reason = explain(error)
            if not is_expected(error):
                reason = f"{type(error).__name__}: {reason}"
                show_fault(error)
        else:
            reason = error
        # One line a failure, whatever the message holds.
        self.failed.append((name, " ".join(printable(reason.replace(str(item), name), _LAYOUT).split())))


def run(
    images: list[str],
    *,
    model: str | None,
    focal_length: float | None,
    fov: float | None,
    intrinsics: Path | None,
    prompts: list[str],
    out: Path,
    save: str | None,
    device: str,
    dtype: str,
    allow_untrained_head: bool,
    batch_size: int,
    max_new_tokens: int,
    max_image_pixels: int,
    overwrite: bool,
    sequence: bool,
    depth_range: tuple[float, float] | None,
    every: int,
    max_frames: int | None,
    fps: float,
) -> None:
    """Predict, write, report. Raises `typer.Exit`: 1 if something failed, 2 for wrong options, 130 for Ctrl-C."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    outcome = _Outcome()
    options = {"--focal-length": focal_length, "--fov": fov, "--intrinsics": intrinsics}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise fail(f"{' and '.join(given)} both name the camera: give one of them.", code=2)
    formats = list(
        dict.fromkeys(name.strip() for name in (DEFAULT_SAVE if save is None else save).split(",") if name.strip())
    )
    try:
        output_paths(out, "", formats)
        for prompt in prompts:
            _check_prompt(prompt)
        clips, others = split_clips(images, sequence)
        found = look_for_images(others)
        clips += [path for path in found.images if isinstance(path, Path) and is_video_name(path)]  # of a pattern
        paths = [path for path in found.images if not (isinstance(path, Path) and is_video_name(path))]
        if clips and prompts:
            raise ValueError("--prompt is for images: of a clip, only depth is predicted.")
        if clips and not paths and save is not None:
            raise ValueError("--save is for images: a clip gives 16-bit PNGs, a side-by-side video and JSON.")
        cameras = [] if intrinsics is None else read_cameras(intrinsics, [*paths, *clips])
    except ValueError as error:
        raise fail(error, code=2) from None
    _tell_of(found, console)
    cameras_of = dict(zip([*paths, *clips], cameras, strict=bool(cameras)))
    paths = without_own_results([path for path in paths if _is_readable(path, outcome)], out)
    clips = [path for path in clips if path.is_dir() or _is_readable(path, outcome)]
    if outcome.failed and (paths or clips):
        for image, reason in outcome.failed:
            typer.secho(f"{image}: {reason}", fg="red", err=True)
    stems = result_stems([*paths, *clips])
    named_clips = list(zip(clips, stems[len(paths) :], strict=True))
    name = model or BUNDLED_MODEL
    settings = Settings(
        model=name,
        weights=weights_identity(name) if paths or clips else "",
        dtype=dtype,
        cameras={
            "focal_length": [focal_length] * len(paths),
            "fov": [fov] * len(paths),
            "intrinsics": [cameras_of.get(path) for path in paths],
        },
        prompts=list(dict.fromkeys(prompts)),
        max_new_tokens=max_new_tokens,
        max_image_pixels=max_image_pixels,
        formats=formats,
        overwrite=overwrite,
    )
    jobs = plan(paths, stems[: len(paths)], out, settings)
    _tell_what_is_there(jobs, overwrite, console)
    todo = [job for job in jobs if job.is_due]

    @cache
    def load() -> Any:
        from .. import inference

        return _load(inference, model, device, dtype, allow_untrained_head, console)

    if clips:
        check_clips(named_clips, out, overwrite)
    if todo or clips:
        _check_options(device, dtype, focal_length, fov, cameras)
    try:
        with prepared_folder(out) if todo or clips else nullcontext(), _warnings_on(console):
            if todo:
                _predict_all(load(), todo, settings, batch_size, outcome, console)
            for (clip, stem), camera in zip(named_clips, map(cameras_of.get, clips), strict=True):
                clip_options = ClipOptions(
                    focal_length=focal_length,
                    fov=fov,
                    intrinsics=None if camera is None else camera.tolist(),
                    every=every,
                    max_frames=max_frames,
                    model=name,
                    weights=settings.weights,
                    load=load,
                    depth_range=depth_range,
                    fps=fps,
                    batch_size=batch_size,
                    overwrite=overwrite,
                )
                predict_clip(clip, stem, clip_options, out, outcome.add, outcome.add_failure, console)
    except KeyboardInterrupt:
        total = len(todo) + len(clips)
        console.print(
            f"Interrupted: {outcome.done} of {total} files done, results in {printable(out)}. Run it again to go on."
        )
        raise typer.Exit(INTERRUPTED) from None
    except _DiskFull as error:
        console.print(f"Stopped: {explain(error.reason)} Run it again to go on.", style="red")
    order = {printable(path): index for index, path in enumerate([*found.images, *clips])}
    outcome.failed.sort(key=lambda failure: order.get(failure[0], len(order)))
    _report(outcome, out, console)
    if outcome.failed:
        raise typer.Exit(1)


class _DiskFull(Exception):
    """Nothing more can be written, so that nothing more is predicted."""

    def __init__(self, reason: OSError):
        self.reason = reason


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError("--prompt is empty: give a question or an instruction.")
    if not prompt.isprintable() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("--prompt holds bytes that are no text: give it in the console's encoding.")
    if special := re.search(r"<\|[a-z_]+\|>", prompt):
        raise ValueError(f"--prompt holds {special[0]}, a mark that is the model's own: leave it out.")


def _check_options(device: str, dtype: str, focal_length: float | None, fov: float | None, cameras: list[Any]) -> None:
    """Raises ValueError for what would be refused once the model is loaded."""
    from ..loading import pick_device, pick_dtype
    from ..processing.camera_depthvlm import cameras_per_image

    pick_device(device)
    pick_dtype(dtype)
    cameras_per_image(1, focal_length=focal_length, fov=fov)
    for camera in cameras:
        cameras_per_image(1, intrinsics=camera)


def _is_readable(path: Path | str, outcome: _Outcome) -> bool:
    """Whether a file is there and can be opened; it is counted as failed if not."""
    from ..processing.images_depthvlm import require_file

    if not isinstance(path, Path):
        return True
    try:
        require_file(path)
        with open(path, "rb"):
            return True
    except FileNotFoundError:
        outcome.add_failure(path, f"There is no image file {str(path)!r}.")
    except (OSError, ValueError) as error:
        outcome.add_failure(path, error)
    return False


def _tell_of(found: FoundImages, console: Console) -> None:
    """Say what folders hold besides, and which images are the same."""
    if found.passed_over:
        kinds = []
        for kind, files in found.passed_over.items():
            names = ", ".join(printable(file.name) for file in files[:_MOST_NAMED])
            kinds.append(f"{len(files)} {kind} ({names}{', ...' if len(files) > _MOST_NAMED else ''})")
        console.print(f"Passed over: {'; '.join(kinds)}.", style="yellow")
    for link, file in found.linked[:_MOST_NAMED]:
        console.print(f"{printable(link)} is the same file as {printable(file)}: predicted once.", style="yellow")
    if len(found.linked) > _MOST_NAMED:
        console.print(f"... and {len(found.linked) - _MOST_NAMED} more of such.", style="yellow")


def _tell_what_is_there(jobs: list[Job], overwrite: bool, console: Console) -> None:
    if skipped := sum(not job.is_due for job in jobs):
        console.print(f"Skipped {skipped} complete (--overwrite to redo).")
    if overwrite:
        return
    again = [job for job in jobs if job.depth_due and job.differences()]
    if again:
        reasons = ", ".join(dict.fromkeys(reason for job in again for reason in job.differences()))
        console.print(f"Doing {len(again)} again: earlier results were made with another {reasons}.", style="yellow")
        written = {path for job in again for path in job.due_files().values()}
        if stale := [path for job in again for path in job.record.outdated(job.fingerprint) if path not in written]:
            names = ", ".join(printable(path) for path in stale[:_MOST_NAMED])
            more = f" and {len(stale) - _MOST_NAMED} more" if len(stale) > _MOST_NAMED else ""
            console.print(f"Note: {names}{more} stay as they were made before.", style="yellow")
    if added := sum(not job.depth_due and bool(job.prompts_due) for job in jobs):
        console.print(f"Adding replies to {added} whose depth is complete.")


def _load(
    inference: Any, model: str | None, device: str, dtype: str, allow_untrained_head: bool, console: Console
) -> Any:
    from transformers.utils import logging as transformers_logging

    started = time.perf_counter()
    if model is None:
        transformers_logging.disable_progress_bar()  # it loads in an instant
        console.print(f"Model: {BUNDLED_MODEL_NOTE} (choose another with --model).", style="yellow")
        console.print(f"For photographs: {PUBLISHED_MODEL_NOTE}", style="yellow")
    depthvlm = inference.load(model or BUNDLED_MODEL, device, dtype, allow_untrained_head=allow_untrained_head)
    parameters = depthvlm.model.num_parameters() / 1e6
    console.print(
        f"Loaded {depthvlm.name}: {parameters:,.1f} M parameters, {depthvlm.model.dtype} on {depthvlm.model.device}, "
        f"in {time.perf_counter() - started:.1f} s".replace("torch.", "")
    )
    return depthvlm


def _predict_all(
    depthvlm: Any, jobs: list[Job], settings: Settings, batch_size: int, outcome: _Outcome, console: Console
) -> None:
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    passes = max(1, len(settings.prompts))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predict", total=len(jobs) * passes)
        counted: set[str] = set()

        def failed(job: Job, error: Exception) -> None:
            outcome.add_failure(job.image, error)
            progress.advance(task)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _DiskFull(error)

        def done(job: Job, prediction: Prediction) -> None:
            if job.stem not in counted:
                counted.add(job.stem)
                outcome.add(prediction.camera.source)
                progress.console.print(_line(job, prediction))
            if prediction.text is not None:
                asked = f"{prediction.prompt}  " if len(settings.prompts) > 1 else ""
                progress.console.print(f"  {printable(asked + prediction.text, keep=_LAYOUT)}")
            progress.advance(task)

        predict_images(depthvlm, jobs, settings, batch_size, done, failed)


def _line(job: Job, prediction: Prediction) -> str:
    statistics = prediction.summary()
    depth = " / ".join("-" if value is None else f"{value:.2f}" for value in statistics.values())
    camera = prediction.camera
    image = printable(job.image)
    return f"{image}  {depth} m (min / median / max)  focal length {camera.fx:.1f} px ({camera.source})"


def _report(outcome: _Outcome, out: Path, console: Console) -> None:
    if outcome.done:
        sources = ", ".join(f"{count} {source}" for source, count in sorted(outcome.focal_sources.items()))
        console.print(f"Focal lengths: {sources}.")
        if "assumed" in outcome.focal_sources:
            console.print(
                "For true metres give --focal-length, --fov or --intrinsics where it is assumed.", style="yellow"
            )
    console.print(f"{outcome.done} done, {len(outcome.failed)} failed. Results: {printable(out.resolve())}")
    for image, reason in outcome.failed:
        typer.secho(f"Failed: {image}: {reason}", fg="red", err=True)


@contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    """Show each warning once, as a line rather than with its place in the code."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            console.print(f"Warning: {printable(message, _LAYOUT)}", style="yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f} images/s")
