"""`depthvlm predict` of clips: video files, and folders of frames with `--sequence`."""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..result_records import check_names
from .failures import printable

if TYPE_CHECKING:
    from ..video import ClipPrediction

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


@dataclass
class ClipOptions:
    """What the command was given for clips. See [`depthvlm.predict_video`]; `load` gives the model."""

    focal_length: float | None
    fov: float | None
    intrinsics: list[Any] | None
    every: int
    max_frames: int | None
    model: str
    weights: str
    load: Callable[[], Any]
    depth_range: tuple[float, float] | None
    fps: float
    batch_size: int
    overwrite: bool


def is_video_name(path: Path) -> bool:
    """Whether a file is a video by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def split_clips(arguments: Sequence[str], sequence: bool) -> tuple[list[Path], list[str]]:
    """The clips among the command's arguments, and the others.

    Raises:
        ValueError: `--sequence` is given, and an argument is not a folder.
    """
    clips, others = [], []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir() if sequence else is_video_name(path) and (path.exists() or not glob.has_magic(argument)):
            clips.append(path)
        elif sequence:
            raise ValueError(f"{argument}: --sequence takes folders, each with the frames of one clip.")
        else:
            others.append(argument)
    return clips, others


def check_clips(clips: Sequence[tuple[Path, str]], out: Path, overwrite: bool) -> None:
    """
    See that clips can be read here, and that nothing is in the way of their results.

    Args:
        clips: each clip and what its results are called.

    Raises:
        FileExistsError, ValueError: something is in the way, or a name is too long; the message names it.
        ImportError: PyAV is missing.
    """
    from ..video import ClipFiles
    from ..video_frames import require_av

    require_av()
    for _, stem in clips:
        check_names(ClipFiles.of(out, stem))
        ClipFiles.of(out, stem).check_owner(overwrite)


def predict_clip(
    clip: Path,
    stem: str,
    options: ClipOptions,
    out: Path,
    on_done: Callable[[str], None],
    on_error: Callable[[Path, Exception | str], None],
    console: Console,
) -> None:
    """Predict a clip.

    Args:
        stem: what its results are called.
        on_done: called with the source of the camera of a clip whose files are there, also if its file could be
            decoded only in part.
        on_error: called with a clip of which something could not be done.
    """
    from ..video import INDEPENDENT, ClipFiles, ClipRun, ClipSettings
    from ..video_frames import open_clip

    settings = ClipSettings(options.focal_length, options.fov, options.intrinsics, options.every, options.max_frames)
    try:
        with _progress(console) as progress:
            run = ClipRun(
                open_clip(clip, options.fps),
                ClipFiles.of(out, stem),
                settings,
                options.model,
                options.weights,
                options.load,
                depth_range=options.depth_range,
                batch_size=options.batch_size,
                progress=progress,
            )
            result = run(options.overwrite)
    except (OSError, ValueError) as error:
        on_error(clip, error)
        return
    console.print(_line(clip, result))
    on_done(result.camera.source)
    if result.record["problem"]:
        on_error(clip, result.record["problem"])
    console.print(INDEPENDENT)


def _line(clip: Path, result: "ClipPrediction") -> str:
    record = result.record
    near, far = record["depth_range"].values()
    done = "complete already (--overwrite to redo)" if result.skipped else f"colours {near:.2f} to {far:.2f} m"
    return (
        f"{printable(clip)}  {record['frames']} frames  {done}  focal length {result.camera.fx:.1f} px "
        f"({result.camera.source})  {printable(result.files.video)}"
    )


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), _Frames(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield show


class _Frames(ProgressColumn):
    """Frames done, and frames a second."""

    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:.0f}"
        speed = "" if task.speed is None else f" {task.speed:.2f} frames/s"
        return Text(f"{task.completed:.0f}/{total}{speed}")
