"""Lines, progress bars and summary of `depthvlm predict`."""

import errno
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE, PUBLISHED_MODEL_NOTE
from ..inputs import FoundImages
from ..lens import Lens
from ..prediction import Prediction
from .failures import explain, is_expected, printable, show_fault
from .predict_images import Job, Settings, predict_images

_MOST_NAMED = 5  # number of names in a message
_LAYOUT = "\n\t"


class DiskFull(Exception):
    """The disk is full, so prediction stops."""

    def __init__(self, reason: OSError):
        self.reason = reason


class Report:
    """The console of a run, and the outcomes of its images and clips.

    Attributes:
        console: The console.
        done: Number of finished images and clips.
        failed: Name and reason of each image or clip that failed.
    """

    def __init__(self) -> None:
        self.console = Console(soft_wrap=True, highlight=False, markup=False)
        self.done = 0
        self.failed: list[tuple[str, str]] = []
        self._focal_sources: dict[str, int] = {}

    def add(self, focal_source: str) -> None:
        """Count a finished image or clip."""
        self.done += 1
        self._focal_sources[focal_source] = self._focal_sources.get(focal_source, 0) + 1

    def add_failure(self, item: Path | str, error: Exception | str) -> None:
        """Record the error of an image or a clip; show the traceback of a bug in this program."""
        name, reason = printable(item), error if isinstance(error, str) else explain(error)
        if isinstance(error, Exception) and not is_expected(error):
            reason = f"{type(error).__name__}: {reason}"
            show_fault(error)
        # One line per failure, whatever the message holds.
        self.failed.append((name, " ".join(printable(reason.replace(str(item), name), _LAYOUT).split())))

    def is_readable(self, path: Path | str) -> bool:
        """Return whether a file exists and can be opened; count it as failed if not."""
        from ..processing.images_depthvlm import require_file

        if not isinstance(path, Path):
            return True
        try:
            require_file(path)
            with open(path, "rb"):
                return True
        except FileNotFoundError:
            self.add_failure(path, f"There is no image file {str(path)!r}.")
        except (OSError, ValueError) as error:
            self.add_failure(path, error)
        return False

    def tell_failures(self, begin: str = "") -> None:
        """Print a line for each failure so far."""
        for item, reason in self.failed:
            typer.secho(f"{begin}{item}: {reason}", fg="red", err=True)

    def tell_of(self, found: FoundImages) -> None:
        """Print the files in folders that are not images, and the duplicate images."""
        if found.passed_over:
            kinds = [f"{len(files)} {kind} ({_named(files)})" for kind, files in found.passed_over.items()]
            self.console.print(f"Passed over: {'; '.join(kinds)}.", style="yellow")
        for link, file in found.linked[:_MOST_NAMED]:
            self.console.print(
                f"{printable(link)} is the same file as {printable(file)}: predicted once.", style="yellow"
            )
        if len(found.linked) > _MOST_NAMED:
            self.console.print(f"... and {len(found.linked) - _MOST_NAMED} more of such.", style="yellow")

    def tell_what_is_there(self, jobs: list[Job], overwrite: bool) -> None:
        """Print which results are skipped, redone (and why), or only extended."""
        if skipped := sum(not job.is_due for job in jobs):
            self.console.print(f"Skipped {skipped} complete (--overwrite to redo).")
        if overwrite:
            return
        again = [job for job in jobs if job.depth_due and job.differences()]
        if again:
            reasons = ", ".join(dict.fromkeys(reason for job in again for reason in job.differences()))
            self.console.print(
                f"Doing {len(again)} again: earlier results were made with another {reasons}.", style="yellow"
            )
            written = {path for job in again for path in job.due_files().values()}
            stale = [path for job in again for path in job.record.outdated(job.fingerprint) if path not in written]
            if stale:
                names = ", ".join(printable(path) for path in stale[:_MOST_NAMED])
                more = f" and {len(stale) - _MOST_NAMED} more" if len(stale) > _MOST_NAMED else ""
                self.console.print(f"Note: {names}{more} stay as they were made before.", style="yellow")
        if added := sum(not job.depth_due and bool(job.prompts_due) for job in jobs):
            self.console.print(f"Adding replies to {added} whose depth is complete.")

    def load(
        self,
        model: str | None,
        device: str,
        dtype: str,
        allow_untrained_head: bool,
        compile: bool = False,
        quantize: str | None = None,
    ) -> Any:
        """Load the model and print a description of it."""
        from transformers.utils import logging as transformers_logging

        from .. import inference

        started = time.perf_counter()
        if model is None:
            transformers_logging.disable_progress_bar()  # it loads instantly
            self.console.print(f"Model: {BUNDLED_MODEL_NOTE} (choose another with --model).", style="yellow")
            self.console.print(f"For photographs: {PUBLISHED_MODEL_NOTE}", style="yellow")
        options: dict[str, Any] = {
            "allow_untrained_head": allow_untrained_head,
            "compile": compile,
            "quantize": quantize,
        }
        loaded = inference.load(model or BUNDLED_MODEL, device, dtype, **options)
        parameters = loaded.model.num_parameters() / 1e6
        weights = "" if quantize is None else f" with {quantize} weights"
        self.console.print(
            f"Loaded {loaded.name}: {parameters:,.1f} M parameters, {loaded.model.dtype}{weights} "
            f"on {loaded.model.device}, in {time.perf_counter() - started:.1f} s".replace("torch.", "")
        )
        return loaded

    def predict_all(self, predictor: Any, jobs: list[Job], settings: Settings, batch_size: int) -> None:
        """Predict and write all images, with one line each.

        Raises:
            DiskFull: The disk is full.
        """
        counted: set[str] = set()
        total = len(jobs) * max(1, len(settings.prompts))
        steps = 0

        with self.progress("images") as show:

            def advance() -> None:
                nonlocal steps
                steps += 1
                show("predict", steps, total)

            def failed(job: Job, error: Exception) -> None:
                self.add_failure(job.image, error)
                advance()
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(error)

            def done(job: Job, prediction: Prediction) -> None:
                if job.stem not in counted:
                    counted.add(job.stem)
                    self.add(prediction.camera.source)
                    self.console.print(_line(job, prediction))
                if prediction.text is not None:
                    asked = f"{prediction.prompt}  " if len(settings.prompts) > 1 else ""
                    self.console.print(f"  {printable(asked + prediction.text, keep=_LAYOUT)}")
                advance()

            show("predict", 0, total)
            predict_images(predictor, jobs, settings, batch_size, done, failed)

    @contextmanager
    def progress(self, unit: str) -> Iterator[Callable[[str, int, int | None], None]]:
        """Show a bar for each pass if the output is a terminal; call the result with pass, done and total."""

        class Rate(ProgressColumn):
            """Column with the number done and the rate per second."""

            def render(self, task: Task) -> Text:
                total = "?" if task.total is None else f"{task.total:.0f}"
                speed = "" if task.speed is None else f" {task.speed:.2f} {unit}/s"
                return Text(f"{task.completed:.0f}/{total}{speed}")

        columns = (TextColumn("{task.description}"), BarColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}

            def show(name: str, done: int, total: int | None) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=total)
                bars.update(tasks[name], completed=done, total=total)

            yield show

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Show each warning once, as a line without its place in the code."""
        shown: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in shown:
                shown.add(str(message))
                self.console.print(f"Warning: {printable(message, _LAYOUT)}", style="yellow")

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show
            yield

    def sum_up(self, out: Path, order: Sequence[Path | str]) -> None:
        """Print the sources of the focal lengths, the number done, and the failures, in this order."""
        if self.done:
            sources = ", ".join(f"{count} {source}" for source, count in sorted(self._focal_sources.items()))
            self.console.print(f"Focal lengths: {sources}.")
            if "assumed" in self._focal_sources:
                self.console.print(
                    "For true metres give --focal-length, --fov or --intrinsics where it is assumed.", style="yellow"
                )
        self.console.print(f"{self.done} done, {len(self.failed)} failed. Results: {printable(out.resolve())}")
        places = {printable(path): index for index, path in enumerate(order)}
        self.failed.sort(key=lambda failure: places.get(failure[0], len(places)))
        self.tell_failures("Failed: ")


def _named(files: Sequence[Path]) -> str:
    names = ", ".join(printable(file.name) for file in files[:_MOST_NAMED])
    return f"{names}, ..." if len(files) > _MOST_NAMED else names


def _line(job: Job, prediction: Prediction) -> str:
    depth = " / ".join("-" if value is None else f"{value:.2f}" for value in prediction.summary().values())
    camera = prediction.camera
    image, made = printable(job.image), prediction.calibration
    line = f"{image}  {depth} m (min / median / max)  focal length {camera.fx:.1f} px ({camera.source})"
    if not isinstance(camera, Lens) and camera.fov_spread is not None:
        line += f"\n  field of view {camera.fov:.0f} degrees +- {camera.fov_spread:.0f}, predicted by the model"
    if made is None:
        return line
    rejected = ", ".join(f"{x:g},{y:g},{metres:g}" for x, y, metres in made.rejected[:_MOST_NAMED])
    return (
        f"{line}\n  calibrated by {made.model}: factor {made.factor:.4g}, shift {made.shift:.3g} m; median error "
        f"{made.error_before:.1%} before, {made.error_after:.1%} after; used {made.used} of "
        f"{made.used + len(made.rejected)} known distances" + (f", rejected {rejected}" if rejected else "")
    )
