"""`depthvlm predict` for clips: video files, and folders of frames with `--sequence`."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..clip_files import ClipFiles, ClipSettings
from ..result_records import check_names
from ..video import ClipRun
from ..video_frames import open_clip, require_av
from .failures import printable
from .predict_report import Report

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


def is_video(path: Path | str) -> bool:
    """Return whether a file is a video by its suffix."""
    return isinstance(path, Path) and path.suffix.lower() in VIDEO_SUFFIXES


def split_clips(arguments: Sequence[str], sequence: bool) -> tuple[list[Path], list[str]]:
    """Return the clips among the command's arguments, and the others.

    Raises:
        ValueError: `--sequence` is given, and an argument is not a folder.
    """
    clips, others = [], []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir() if sequence else is_video(path) and (path.exists() or not glob.has_magic(argument)):
            clips.append(path)
        elif sequence:
            raise ValueError(f"{argument}: --sequence takes folders, each with the frames of one clip.")
        else:
            others.append(argument)
    return clips, others


def check_clips(clips: Sequence[tuple[Path, str]], out: Path, overwrite: bool) -> None:
    """Check that clips can be read, and that no existing file blocks their results.

    Args:
        clips: Each clip and the name of its results.
        out: Folder for the results.
        overwrite: See `ClipFiles.check_owner`.

    Raises:
        FileExistsError, ValueError: A file blocks the results, or a name is too long; the message names it.
        ImportError: PyAV is missing.
    """
    for _, stem in clips:
        require_av()
        check_names(ClipFiles.of(out, stem))
        ClipFiles.of(out, stem).check_owner(overwrite)


def predict_clip(
    clip: Path, files: ClipFiles, settings: ClipSettings, fps: float, overwrite: bool, report: Report, **options: Any
) -> None:
    """Predict a clip, and report it.

    Args:
        clip: A video file, or a folder of frames.
        files: Paths of its results.
        settings: Camera and choice of frames.
        fps: Frames per second of a folder.
        overwrite: Redo everything.
        report: Receives the outcome; both done and failed for a clip that could be decoded only in part.
        **options: Options of `ClipRun`.
    """
    try:
        with report.progress("frames") as progress:
            run = ClipRun(open_clip(clip, fps), files, settings, progress=progress, **options)
            result = run(overwrite)
    except (OSError, ValueError) as error:
        report.add_failure(clip, error)
        return
    record, camera = result.record, result.camera
    near, far = record["depth_range"].values()
    done = "complete already (--overwrite to redo)" if result.skipped else f"colours {near:.2f} to {far:.2f} m"
    report.console.print(
        f"{printable(clip)}  {record['frames']} frames  {done}  focal length {camera.fx:.1f} px ({camera.source})  "
        f"{printable(files.video)}"
    )
    report.add(camera.source)
    if record["problem"]:
        report.add_failure(clip, record["problem"])
    report.console.print(record["note"])
