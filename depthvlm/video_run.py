"""One clip on its way to its files: predict what is missing, measure, draw the video. `depthvlm.video` is its API."""

import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .export import read_png16, write_png16, write_png16_values
from .files import atomic_write, file_hash, remove_partial_files, write_json
from .processing import Camera, resolve_camera
from .video_frames import Frame, FrameSource
from .video_writer import SideBySide, write_video
from .visualize import DepthRange

if TYPE_CHECKING:
    from .inference import DepthPredictor

INDEPENDENT = "Frames are predicted independently: nothing ties the depth of one to that of the next."
_PERCENTILES = (1.0, 99.0)
_UINT16_VALUES = 65536

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class ClipSettings:
    """What a clip is predicted with; frames of other settings are never mixed.

    Attributes:
        focal_length, fov, intrinsics: the camera of all frames, at most one of them: pixels, degrees (horizontal), a
            3x3 matrix or `[fx, fy, cx, cy]` in pixels, of the upright frame.
        every: take every n-th frame.
        max_frames: take at most that many.
    """

    focal_length: float | None = None
    fov: float | None = None
    intrinsics: list[Any] | None = None
    every: int = 1
    max_frames: int | None = None

    @property
    def camera(self) -> dict[str, Any]:
        """The camera options that are given."""
        options = {"focal_length": self.focal_length, "fov": self.fov, "intrinsics": self.intrinsics}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class ClipFiles:
    """Where the results of a clip go: a folder of 16-bit PNGs, the side-by-side video, one line of JSON for every
    frame, the clip's JSON, and what takes the latter's place while the clip is not finished."""

    depth: Path
    video: Path
    frames: Path
    record: Path
    unfinished: Path

    @classmethod
    def of(cls, out: Path, stem: str) -> "ClipFiles":
        """For a clip called `stem`."""
        names = ("_depth", "_depth.mp4", "_frames.jsonl", ".json", ".unfinished.json")
        return cls(*(out / f"{stem}{name}" for name in names))

    @property
    def whole(self) -> tuple[Path, Path]:
        """The files whose sizes the record notes."""
        return self.video, self.frames

    def earlier_record(self) -> dict[str, Any] | None:
        """What an earlier run has recorded, finished or not; None without one.

        Raises:
            ValueError: there is a file of that name which is no record of a clip.
        """
        record = _read_json(self.record) or _read_json(self.unfinished)
        if record is not None and "every" not in record:
            raise ValueError(f"{self.record} is not the record of a clip: choose another --out, or move it away.")
        return record

    def check_owner(self, overwrite: bool) -> None:
        """See that nothing is in the way that this program did not write.

        Args:
            overwrite: whether a video and lines of JSON may be replaced. Other records and other PNGs never are.

        Raises:
            FileExistsError, ValueError: something is there; the message names it.
        """
        record = self.earlier_record()
        if record is None and any(self.depth.glob("*.png")):
            raise ValueError(
                f"{self.depth} holds PNG files, but no record says of which clip: choose another --out, or "
                "move them away."
            )
        sizes = None if record is None else record.get("sizes", {})
        for path in () if overwrite else self.whole:
            size = path.stat().st_size if path.exists() else None
            if os.path.lexists(path) and (sizes is None or size not in (0, sizes.get(path.name, size))):
                raise FileExistsError(
                    f"{path} was not written by depthvlm, or was changed since: choose another --out, move it away, "
                    "or replace it with --overwrite."
                )


@dataclass(frozen=True)
class ClipPrediction:
    """The prediction of a clip: its files, and what its JSON says (`record`).

    Attributes:
        files: where the results are.
        record: number of frames, camera, unit, range of colours, and what could not be read (`problem`).
        skipped: whether all was there already.
    """

    files: ClipFiles
    record: dict[str, Any]
    skipped: bool = False

    @property
    def camera(self) -> Camera:
        """The camera of all frames."""
        return Camera(**self.record["camera"], source=self.record["focal_source"])


class ClipRun:
    """One clip on its way to its files, in three passes: predict what is missing, measure, draw the video.

    Args:
        source: the clip.
        files: where the results go.
        settings: camera and choice of frames.
        model: name of the model.
        load: loads it; called once a frame has to be predicted.
        weights: what tells the model's weights from others, None where that is not known.
        depth_range: metres of the first and the last colour, None for percentiles of the clip.
        batch_size: frames in a batch.
        progress: see [`predict_video`].

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        source: FrameSource,
        files: ClipFiles,
        settings: ClipSettings,
        model: str,
        load: "Callable[[], DepthPredictor]",
        *,
        weights: str | None,
        depth_range: DepthRange | None,
        batch_size: int,
        progress: Progress,
    ):
        if settings.every < 1 or batch_size < 1 or (settings.max_frames is not None and settings.max_frames < 1):
            raise ValueError(
                f"every, max_frames and batch_size must be at least 1, got {settings.every}, {settings.max_frames} and "
                f"{batch_size}."
            )
        if len(settings.camera) > 1:
            raise ValueError(f"{' and '.join(settings.camera)} both name the camera: give one of them.")
        if depth_range is not None and not 0 <= depth_range.near < depth_range.far < np.inf:
            raise ValueError(f"The range of colours must be 0 <= near < far, in metres, got {tuple(depth_range)}.")
        self.source, self.files, self.settings, self.load = source, files, settings, load
        self.depth_range, self.batch_size, self.progress = depth_range, batch_size, progress
        self.identity = {
            "source": str(source.path.resolve()),
            "source_sha256": file_hash(source.path) if source.path.is_file() else None,  # a folder: of each image
            "model": model,
            "weights": weights,
            **asdict(settings),
        }
        self.drawn = {"depth_range_given": depth_range and list(depth_range), "frame_rate": float(source.rate)}

    def __call__(self, overwrite: bool = False) -> ClipPrediction:
        """Do what is not done yet. Raises ValueError as [`predict_video`] does."""
        before = self._earlier_run(overwrite)
        if before is not None and self._is_complete(before):
            return ClipPrediction(self.files, before, skipped=True)
        self.files.depth.mkdir(parents=True, exist_ok=True)
        for folder in (self.files.depth, self.files.depth.parent):
            remove_partial_files(folder)
        for path in self._outdated_frames(self._noted_frames()):
            path.unlink()
        state = before or {}
        if "camera" not in state:
            state = self.identity | self._camera_record()
        write_json(self.files.unfinished, self.identity | {name: state[name] for name in ("camera", "focal_source")})
        self.files.record.unlink(missing_ok=True)

        frames = self._predict(Camera(**state["camera"], source=state["focal_source"]))
        problem = self.source.problem()
        scale, histogram = self._measure(frames)
        limits = self.depth_range or range_of(histogram, scale)
        codec, duration = self._draw(frames, limits, scale)
        clipped = int(histogram[-1]) if scale == 256 else 0
        if clipped:
            warnings.warn(
                f"{clipped} pixels of the clip are beyond {(_UINT16_VALUES - 1) / scale:.1f} m, the most that a 16-bit "
                "PNG holds, and are clipped to it.",
                stacklevel=2,
            )
        width, height = self.source.size
        record = self.identity | {
            "width": width,
            "height": height,
            "camera": state["camera"],
            "focal_source": state["focal_source"],
            "frames": frames,
            "duration": duration,
            **self.drawn,
            "depth_range": limits._asdict(),
            "unit": "metres",
            "depth_scale": scale,
            "clipped_pixels": clipped,
            "video_codec": codec,
            "note": INDEPENDENT,
            "problem": problem,
            "files": {name: getattr(self.files, name).name for name in ("depth", "video", "frames")},
            "sizes": {path.name: path.stat().st_size for path in self.files.whole},
        }
        write_json(self.files.record, record)
        self.files.unfinished.unlink()
        return ClipPrediction(self.files, record)

    def _outdated_frames(self, noted: dict[str, dict[str, Any]]) -> list[Path]:
        """Frames that were cut off, or whose image of a folder was replaced; `noted`: see `_noted_frames`."""
        images, found = self._images(), []
        for path in self.files.depth.glob("*.png"):
            size, row = path.stat().st_size, noted.get(path.stem)
            is_as_noted = row is None or (
                size == row["bytes"]
                and (path.stem not in images or file_hash(images[path.stem]) == row["image_sha256"])
            )
            if not size or not is_as_noted:
                found.append(path)
        return found

    def _noted_frames(self) -> dict[str, dict[str, Any]]:
        """The lines of an earlier run by the frames' names; empty where they cannot be read."""
        try:
            rows = [json.loads(line) for line in self.files.frames.read_text(encoding="utf-8").splitlines()]
            return {row["frame"]: row for row in rows if row["bytes"] and "image_sha256" in row}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _images(self) -> dict[str, Path]:
        """The image of each frame of a folder; none of a video file."""
        files = getattr(self.source, "files", [])
        return dict(zip(self.source.names(len(files), 1), files, strict=True)) if files else {}

    def _earlier_run(self, overwrite: bool) -> dict[str, Any] | None:
        """What an earlier run of the same settings has recorded; None, and nothing left of it, to start anew."""
        self.files.check_owner(overwrite)
        record = self.files.earlier_record()
        if record is None:
            return None
        if overwrite:
            for path in (self.files.record, self.files.unfinished, self.files.video, self.files.frames):
                path.unlink(missing_ok=True)
            for path in self.files.depth.glob("*.png"):
                path.unlink()
            return None
        other = [name for name, value in self.identity.items() if record.get(name) != value]
        if other:
            differences = "; ".join(f"{name}: {record.get(name)} there, {self.identity[name]} now" for name in other)
            raise ValueError(
                f"{self.files.depth} holds frames that were made otherwise ({differences}). Choose another --out, or "
                "--overwrite to do them again."
            )
        return record

    def _is_complete(self, record: dict[str, Any]) -> bool:
        if any(record.get(name) != value for name, value in self.drawn.items()) or "frames" not in record:
            return False
        if self.source.path.is_dir() and record["frames"] != self._total():  # images were added
            return False
        sizes = record.get("sizes", {})
        whole = (path.is_file() and path.stat().st_size == sizes.get(path.name) for path in self.files.whole)
        noted = self._noted_frames()
        names = self.source.names(record["frames"], self.settings.every)
        return (
            all(whole)
            and all(name in noted and self._png(name).is_file() for name in names)
            and not self._outdated_frames(noted)
        )

    def _camera_record(self) -> dict[str, Any]:
        width, height = self.source.size
        options = self.settings.camera
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's processor warns of a given camera; of an assumed one: below
            assumed_fov = {} if options else {"assumed_fov": self.load().processor.image_processor.assumed_fov}
            camera = resolve_camera((height, width), self.source.exif, **options, **assumed_fov)
        if camera.source == "assumed":
            degrees = f"{assumed_fov['assumed_fov']:g}"
            warnings.warn(
                f"The focal length of {self.source.path} is not known. A field of view of {degrees} degrees across "
                "the longer side is assumed for all its frames; where that is wrong, so are all depths, by one factor. "
                "Give the focal length in pixels, the horizontal field of view or the intrinsics.",
                stacklevel=3,
            )
        numbers = asdict(camera)
        return {"focal_source": numbers.pop("source"), "camera": numbers}

    def _taken(self) -> Iterator[Frame]:
        every, most = self.settings.every, self.settings.max_frames
        return itertools.islice(self.source.frames(), 0, None if most is None else most * every, every)

    def _total(self) -> int | None:
        expected, most = self.source.expected, self.settings.max_frames
        taken = None if expected is None else -(-expected // self.settings.every)
        return taken if most is None else most if taken is None else min(taken, most)

    def _png(self, name: str) -> Path:
        return self.files.depth / f"{name}.png"

    def _predict(self, camera: Camera) -> int:
        """Write the depth of the frames that have none; the number of all."""
        options = self.settings.camera
        if not options:  # found in EXIF data or assumed, once for all frames
            options = {"intrinsics": [camera.fx, camera.fy, camera.cx, camera.cy]}
        count = 0
        for batch in _batches(self._taken(), self.batch_size):
            missing = [not self._png(frame.name).exists() for frame in batch]
            if any(missing):
                # The whole batch, as the run that was interrupted would have done: its frames' rounding is the same.
                pictures = [frame.picture() for frame in batch]
                for frame, picture in zip(batch, pictures, strict=True):
                    if picture.size != self.source.size:
                        raise ValueError(
                            f"{self.source.path}: frame {frame.name} has {picture.width}x{picture.height} pixels, the "
                            f"first one {self.source.size[0]}x{self.source.size[1]}: cut the clip there."
                        )
                predictions = self.load().predict(pictures, batch_size=len(pictures), **options)
                for frame, prediction, is_missing in zip(batch, predictions, missing, strict=True):
                    if is_missing:
                        with warnings.catch_warnings():
                            warnings.filterwarnings("ignore", message=".*the most that a 16-bit PNG holds")
                            write_png16(self._png(frame.name), prediction.depth)
            count += len(batch)
            self.progress("predict", count, self._total())
        return count

    def _measure(self, frames: int) -> tuple[int, NDArray[np.int64]]:
        """The unit of all depth PNGs and how often each of the 65536 values occurs.

        One frame that reaches beyond 65.535 m makes 1/256 m the unit of all: the others are then written again.
        """
        histograms: dict[int, NDArray[np.int64]] = {}
        for index, name in enumerate(self.source.names(frames, self.settings.every)):
            values, scale = read_png16(self._png(name))
            histogram = histograms.setdefault(scale, np.zeros(_UINT16_VALUES, np.int64))
            histogram += np.bincount(values.ravel(), minlength=_UINT16_VALUES)
            self.progress("measure", index + 1, frames)
        if len(histograms) == 1:
            return histograms.popitem()
        for name in self.source.names(frames, self.settings.every):
            values, scale = read_png16(self._png(name))
            if scale != 256:
                coarse = np.where(values > 0, np.maximum(np.round(values * (256 / scale)), 1), 0)
                write_png16_values(self._png(name), coarse.astype(np.uint16), 256)
        return self._measure(frames)

    def _draw(self, frames: int, limits: DepthRange, scale: int) -> tuple[str, float]:
        """Write the video and the line of every frame; the codec and the time of the last frame in seconds."""
        board = SideBySide(self.source.size, limits)
        rate = self.source.rate / self.settings.every
        time = 0.0
        with (
            atomic_write(self.files.frames) as lines,
            write_video(self.files.video, board.size, self.source.time_base, rate) as video,
        ):
            for index, frame in enumerate(itertools.islice(self._taken(), frames)):
                values, _ = read_png16(self._png(frame.name))
                time = float(frame.ticks * self.source.time_base)
                video.write(board.draw(frame.picture(), values.astype(np.float32) / scale), frame.ticks)
                row = {
                    "frame": frame.name,
                    "time": round(time, 6),
                    **_statistics(values, scale),
                    "bytes": self._png(frame.name).stat().st_size,
                    "image_sha256": file_hash(frame.source) if isinstance(frame.source, Path) else None,
                }
                lines.write((json.dumps(row) + "\n").encode())
                self.progress("video", index + 1, frames)
        return video.codec, round(time, 6)


def range_of(histogram: NDArray[np.int64], scale: int, percentiles: tuple[float, float] = _PERCENTILES) -> DepthRange:
    """The range of colours from how often each value of the 16-bit PNGs occurs: percentiles of the valid pixels.

    Args:
        histogram: `(65536,)`; its first entry, pixels without depth, does not count.
        scale: metres = value / scale.
    """
    counts = np.cumsum(histogram[1:])
    if counts[-1] == 0:
        return DepthRange(0.0, 1.0)
    near, far = (float(np.searchsorted(counts, counts[-1] * p / 100) + 1) / scale for p in percentiles)
    return DepthRange(near, max(far, near + 1e-3))


def _statistics(values: NDArray[np.uint16], scale: int) -> dict[str, float | None]:
    valid = values[values > 0]
    if not valid.size:
        return {"min": None, "median": None, "max": None}
    numbers = {"min": valid.min(), "median": np.median(valid), "max": valid.max()}
    return {name: round(float(value) / scale, 6) for name, value in numbers.items()}


def _batches(frames: Iterator[Frame], size: int) -> Iterator[Sequence[Frame]]:
    while batch := list(itertools.islice(frames, size)):
        yield batch


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not the record of a clip ({error}): choose another --out, or move it away."
        ) from None
    return record if isinstance(record, dict) else {}
