"""Clips: metric depth of every frame of a video file or of a folder of frames, in constant memory.

Frames are predicted independently: unless they are steadied, the depth of a frame does not depend on the previous one.
All frames of a clip share the camera, the unit of the 16-bit depth and the colour range.
"""

import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import BUNDLED_MODEL, weights_identity
from .clip_files import ClipFiles, ClipPrediction, ClipSettings
from .export import UINT16_MAX, read_png16, write_png16_values
from .files import atomic_write, file_hash, remove_partial_files, write_json
from .prediction import depth_summary
from .processing import Camera, resolve_camera
from .processing.camera_depthvlm import AssumedCameraWarning
from .processing.image_processing_depthvlm import names_keywords
from .video_frames import Frame, ImageSequence, VideoFile, open_clip
from .video_steady import FrameWriter, SteadyWriter, depending_frames
from .video_writer import SideBySide, write_video
from .visualize import DepthRange

if TYPE_CHECKING:
    from .inference import DepthPredictor

INDEPENDENT = "Frames are predicted independently: nothing ties the depth of one to that of the next."
STEADY = "Frames are steadied: the depth of static points is averaged with that in the frames before."
_PERCENTILES = (1.0, 99.0)
FRAMES_FOR_CAMERA = 8

Progress = Callable[[str, int, int | None], None]


@names_keywords
def predict_video(
    clip: str | PathLike[str],
    out: str | PathLike[str],
    model: "str | PathLike[str] | DepthPredictor | None" = None,
    *,
    device: str = "auto",
    dtype: Any = "auto",
    focal_length: float | None = None,
    fov: float | None = None,
    intrinsics: Any = None,
    depth_range: tuple[float, float] | None = None,
    every: int = 1,
    max_frames: int | None = None,
    fps: float = 30.0,
    steady: int | None = None,
    batch_size: int = 4,
    overwrite: bool = False,
    stem: str | None = None,
    progress: Progress | None = None,
) -> "ClipPrediction":
    """Predict metric depth of every frame of a clip: 16-bit PNGs, a side-by-side video and JSON.

    Frames are predicted in constant memory, independently unless `steady` is given. After an interruption, a clip
    continues from the finished frames.

    Examples:
        >>> import depthvlm
        >>> result = depthvlm.predict_video("clip.mp4", "results", focal_length=1450)
        >>> print(result.record["frames"], result.record["depth_range"], result.files.video)

    Args:
        clip: A video file, or a folder of images that are its frames.
        out: The folder for the results.
        model: See [`load`], or its return value.
        device: See [`load`].
        dtype: See [`load`].
        focal_length: Camera of all frames, in pixels of the upright frame. Without any camera option, EXIF data of a
            folder's first image are used, or a field of view is assumed, with a warning.
        fov: Horizontal field of view of all frames in degrees.
        intrinsics: 3x3 matrix or `[fx, fy, cx, cy]` in pixels of the upright frame.
        depth_range: Metres of the first and the last colour. None: percentiles 1 and 99 of all pixels of the clip.
        every: Take every n-th frame.
        max_frames: Take at most that many frames.
        fps: Frames per second of a folder; a video file has its own times.
        steady: Average the depth of static points with the frames before, and with this number of frames after (0:
            none). None: every frame as it is predicted alone.
        batch_size: Frames in a batch.
        overwrite: Redo everything.
        stem: Name of the results. None: the clip's name without suffix.
        progress: Called with the pass (`predict`, `measure`, `video`), the frames done and, if known, their number.

    Raises:
        ImportError: PyAV is missing.
        FileNotFoundError: There is no such clip.
        FileExistsError: A file exists that is not a result of an earlier run.
        ValueError: The clip cannot be read, a frame has another size than the first, an option is out of its range,
            or `out` holds frames made with other settings.
    """
    from .inference import DepthPredictor, load

    name = model.name if isinstance(model, DepthPredictor) else BUNDLED_MODEL if model is None else str(model)
    try:
        weights = weights_identity(name)
    except OSError:  # a loaded model whose files are not available
        weights = None
    intrinsics = None if intrinsics is None else np.asarray(intrinsics, float).tolist()
    run = ClipRun(
        source=open_clip(clip, fps),
        files=ClipFiles.of(Path(out), stem or Path(clip).resolve().stem),
        settings=ClipSettings(focal_length, fov, intrinsics, every, max_frames, steady),
        model=name,
        weights=weights,
        load=cache(lambda: model if isinstance(model, DepthPredictor) else load(model, device, dtype)),
        depth_range=depth_range,
        batch_size=batch_size,
        progress=progress or (lambda *_: None),
    )
    return run(overwrite)


@dataclass
class ClipRun:
    """Processing of one clip in three passes: predict missing frames, measure, draw the video.

    Attributes:
        source: The clip.
        files: Paths of the results.
        settings: Camera and choice of frames.
        model: Name of the model.
        weights: Identity of the model's weights, or None if unknown.
        load: Function that loads the model, called when a frame must be predicted.
        depth_range: Metres of the first and the last colour, None for percentiles of the clip.
        batch_size: Frames in a batch.
        progress: See [`predict_video`].

    Raises:
        ValueError: An option is out of its range.
    """

    source: VideoFile | ImageSequence
    files: ClipFiles
    settings: ClipSettings
    model: str
    weights: str | None
    load: "Callable[[], DepthPredictor]"
    depth_range: tuple[float, float] | None
    batch_size: int
    progress: Progress

    def __post_init__(self) -> None:
        settings, limits, path = self.settings, self.depth_range, self.source.path
        if settings.every < 1 or self.batch_size < 1 or (settings.max_frames is not None and settings.max_frames < 1):
            raise ValueError(
                f"every, max_frames and batch_size must be at least 1, got {settings.every}, {settings.max_frames} and "
                f"{self.batch_size}."
            )
        if settings.steady is not None and settings.steady < 0:
            raise ValueError(f"steady is a number of frames to look ahead, 0 or more, got {settings.steady}.")
        if len(settings.camera) > 1:
            raise ValueError(f"{' and '.join(settings.camera)} both name the camera: give one of them.")
        if limits is not None and not 0 <= limits[0] < limits[1] < np.inf:
            raise ValueError(f"The range of colours must be 0 <= near < far, in metres, got {tuple(limits)}.")
        self.identity = {
            "source": str(path.resolve()),
            "source_sha256": file_hash(path) if path.is_file() else None,  # for a folder: a hash per image
            "model": self.model,
            "weights": self.weights,
            **asdict(settings),
        }
        self.drawn = {"depth_range_given": limits and list(limits), "frame_rate": float(self.source.rate)}

    def __call__(self, overwrite: bool = False) -> ClipPrediction:
        """Do the remaining work. Raises ValueError as [`predict_video`] does."""
        state = self._earlier_run(overwrite)
        if self._is_complete(state):
            return ClipPrediction(self.files, state, skipped=True)
        self.files.depth.mkdir(parents=True, exist_ok=True)
        for folder in (self.files.depth, self.files.depth.parent):
            remove_partial_files(folder)
        for path in self._outdated_frames(self._noted_frames()):
            path.unlink()
        if self.settings.steady is not None:
            total = self._total() if self.source.files else state.get("frames")
            for path in depending_frames(self.source, self.files.depth, self.settings, total):
                path.unlink()
        camera = {name: state[name] for name in ("camera", "focal_source")} if state else self._camera_record()
        write_json(self.files.unfinished, self.identity | camera)
        self.files.record.unlink(missing_ok=True)

        frames = self._predict(Camera(**camera["camera"], source=camera["focal_source"]))
        problem = self.source.problem
        scale, histogram = self._measure(frames)
        limits = range_of(histogram, scale) if self.depth_range is None else DepthRange(*self.depth_range)
        codec, duration = self._draw(frames, limits, scale)
        clipped = int(histogram[-1]) if scale == 256 else 0
        if clipped:
            warnings.warn(
                f"{clipped} pixels of the clip are beyond {UINT16_MAX / scale:.1f} m, the most that a 16-bit PNG "
                "holds, and are clipped to it.",
                stacklevel=2,
            )
        width, height = self.source.size
        record = {
            **self.identity,
            "width": width,
            "height": height,
            **camera,
            "frames": frames,
            "duration": duration,
            **self.drawn,
            "depth_range": limits._asdict(),
            "unit": "metres",
            "depth_scale": scale,
            "clipped_pixels": clipped,
            "video_codec": codec,
            "note": INDEPENDENT if self.settings.steady is None else STEADY,
            "problem": problem,
            "files": {name: getattr(self.files, name).name for name in ("depth", "video", "frames")},
            "sizes": {path.name: path.stat().st_size for path in self.files.whole},
        }
        write_json(self.files.record, record)
        self.files.unfinished.unlink()
        return ClipPrediction(self.files, record)

    def _outdated_frames(self, noted: dict[str, dict[str, Any]]) -> list[Path]:
        """Return the frames that were truncated, or whose source image was replaced; see `_noted_frames`."""
        files = self.source.files
        images = dict(zip(self.source.names(len(files), 1), files, strict=True))
        found = []
        for path in self.files.depth.glob("*.png"):
            size, line, image = path.stat().st_size, noted.get(path.stem), images.get(path.stem)
            is_as_noted = line is None or (
                size == line["bytes"] and (image is None or file_hash(image) == line["image_sha256"])
            )
            if not size or not is_as_noted:
                found.append(path)
        return found

    def _noted_frames(self) -> dict[str, dict[str, Any]]:
        """Return the lines of an earlier run by frame name; empty if they cannot be read."""
        try:
            lines = [json.loads(line) for line in self.files.frames.read_text(encoding="utf-8").splitlines()]
            return {line["frame"]: line for line in lines if line["bytes"] and "image_sha256" in line}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _earlier_run(self, overwrite: bool) -> dict[str, Any]:
        """Return the record of an earlier run with the same settings; else delete it and return an empty one."""
        self.files.check_owner(overwrite)
        record = self.files.earlier_record()
        if record is None:
            return {}
        if overwrite:
            for path in (*self.files[1:], *self.files.depth.glob("*.png")):
                path.unlink(missing_ok=True)
            return {}
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
        sizes, noted = record.get("sizes", {}), self._noted_frames()
        whole = (path.is_file() and path.stat().st_size == sizes.get(path.name) for path in self.files.whole)
        names = self.source.names(record["frames"], self.settings.every)
        return (
            all(whole)
            and all(name in noted and self._png(name).is_file() for name in names)
            and not self._outdated_frames(noted)
        )

    def _camera_record(self) -> dict[str, Any]:
        width, height = self.source.size
        options = self.settings.camera
        assumed = {} if options else {"assumed_fov": self.load().processor.image_processor.assumed_fov}
        with warnings.catch_warnings():
            # The model's processor warns about a given camera; an assumed one is reported once for all frames below.
            warnings.simplefilter("ignore")
            camera = resolve_camera((height, width), self.source.exif, **options, **assumed)
        if camera.source == "assumed" and self.load().model.depth_head.camera is not None:
            camera = self._estimated_camera(camera)
        if camera.source == "assumed":
            warnings.warn(
                f"The focal length of {self.source.path} is not known. A field of view of {assumed['assumed_fov']:g} "
                "degrees across the longer side is assumed for all its frames; where that is wrong, so are all "
                "depths, by one factor. Give the focal length in pixels, the horizontal field of view or the "
                "intrinsics.",
                AssumedCameraWarning,
                stacklevel=3,
            )
        numbers = asdict(camera)
        source = numbers.pop("source")
        if camera.focal_spread is None:
            del numbers["focal_spread"]
        return {"camera": numbers, "focal_source": source}

    def _estimated_camera(self, assumed: Camera) -> Camera:
        """Return the camera with the median focal length among the model's estimates from the first frames."""
        pictures = [frame.picture() for frame in itertools.islice(self._taken(), FRAMES_FOR_CAMERA)]
        found = self.load().predict(pictures, batch_size=self.batch_size)
        pinholes = (one.camera for one in found if isinstance(one.camera, Camera))  # no lens is given
        cameras = sorted(pinholes, key=lambda camera: camera.fx)
        return cameras[len(cameras) // 2] if cameras else assumed

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
        """Write the depth of frames without one, and return the total number of frames."""
        # A camera from EXIF data or an assumed one applies to all frames.
        options = self.settings.camera or {"intrinsics": [camera.fx, camera.fy, camera.cx, camera.cy]}
        frames, count = self._taken(), 0
        ahead = self.settings.steady
        writer = FrameWriter(self._png) if ahead is None else SteadyWriter(self._png, ahead, camera)
        while batch := list(itertools.islice(frames, self.batch_size)):
            missing = [not self._png(frame.name).exists() for frame in batch]
            if any(missing):
                # The whole batch, as in the interrupted run, so that rounding is the same.
                pictures = [frame.picture() for frame in batch]
                for frame, picture in zip(batch, pictures, strict=True):
                    if picture.size != self.source.size:
                        raise ValueError(
                            f"{self.source.path}: frame {frame.name} has {picture.width}x{picture.height} pixels, the "
                            f"first one {self.source.size[0]}x{self.source.size[1]}: cut the clip there."
                        )
                predictions = self.load().predict(pictures, batch_size=len(pictures), **options)
                for frame, picture, prediction, is_missing in zip(batch, pictures, predictions, missing, strict=True):
                    if is_missing:
                        writer.add(frame, picture, prediction.depth)
                    else:
                        writer.skip(frame)
            else:
                writer.skip(batch[-1])
            count += len(batch)
            self.progress("predict", count, self._total())
        writer.close()
        return count

    def _measure(self, frames: int) -> tuple[int, NDArray[np.int64]]:
        """Return the unit of all depth PNGs and how often each of the 65536 values occurs.

        A frame beyond 65.535 m makes 1/256 m the unit of all frames: the others are then rewritten.
        """
        histograms: dict[int, NDArray[np.int64]] = {}
        for index, name in enumerate(self.source.names(frames, self.settings.every)):
            values, scale = read_png16(self._png(name))
            histogram = histograms.setdefault(scale, np.zeros(UINT16_MAX + 1, np.int64))
            histogram += np.bincount(values.ravel(), minlength=UINT16_MAX + 1)
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
        """Write the video and the line of every frame; return the codec and the time of the last frame in seconds."""
        board = SideBySide(self.source.size, limits)
        rate = self.source.rate / self.settings.every
        time = 0.0
        with (
            atomic_write(self.files.frames) as lines,
            write_video(self.files.video, board.size, self.source.time_base, rate) as video,
        ):
            for index, frame in enumerate(itertools.islice(self._taken(), frames)):
                values, _ = read_png16(self._png(frame.name))
                depth = values / np.float64(scale)
                time = round(float(frame.ticks * self.source.time_base), 6)
                video.write(board.draw(frame.picture(), depth), frame.ticks)
                line = {
                    "frame": frame.name,
                    "time": time,
                    **{name: value and round(value, 6) for name, value in depth_summary(depth).items()},
                    "bytes": self._png(frame.name).stat().st_size,
                    "image_sha256": file_hash(frame.source) if isinstance(frame.source, Path) else None,
                }
                lines.write((json.dumps(line) + "\n").encode())
                self.progress("video", index + 1, frames)
        return video.codec, time


def range_of(histogram: NDArray[np.int64], scale: int) -> DepthRange:
    """Return the colour range, percentiles of valid pixels, from the histogram of the 16-bit PNGs' values.

    Args:
        histogram: `(65536,)`; its first entry, pixels without depth, does not count.
        scale: Metres = value / scale.
    """
    counts = np.cumsum(histogram[1:])
    if counts[-1] == 0:
        return DepthRange(0.0, 1.0)
    near, far = (float(np.searchsorted(counts, counts[-1] * p / 100) + 1) / scale for p in _PERCENTILES)
    return DepthRange(near, max(far, near + 1e-3))
