"""Clips: metric depth of every frame of a video file or of a folder of frames, in constant memory.

Frames are predicted independently: nothing ties a frame's depth to that of the frame before. What a clip shares is its
camera, the unit of its 16-bit depth and its range of colours.
"""

from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import BUNDLED_MODEL, weights_identity
from .processing.image_processing_depthvlm import names_keywords
from .video_frames import open_clip
from .video_run import ClipFiles, ClipPrediction, ClipRun, ClipSettings, Progress
from .visualize import DepthRange

if TYPE_CHECKING:
    from .inference import DepthPredictor


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
    batch_size: int = 4,
    overwrite: bool = False,
    stem: str | None = None,
    progress: Progress | None = None,
) -> ClipPrediction:
    """Metric depth of every frame of a clip: 16-bit PNGs, a side-by-side video and JSON, in constant memory.

    Frames are predicted independently. Interrupted at any moment, it goes on from the frames that are there.

    ```python
    import depthvlm

    result = depthvlm.predict_video("clip.mp4", "results", focal_length=1450)
    print(result.record["frames"], result.record["depth_range"], result.files.video)
    ```

    Args:
        clip: a video file, or a folder of images that are its frames.
        out: the folder for the results.
        model, device, dtype: see [`load`]; or what it returned.
        focal_length, fov, intrinsics: the camera of all frames, of the upright frame (see
            [`DepthPredictor.predict_iter`]). None: EXIF data of a folder's first image, or an assumed field of view,
            with a warning.
        depth_range: metres of the first and the last colour. None: percentiles 1 and 99 of all pixels of the clip.
        every: take every n-th frame.
        max_frames: take at most that many frames.
        fps: frames a second of a folder; a video file has its own times.
        batch_size: frames in a batch.
        overwrite: do all of it again.
        stem: what the results are called. None: the clip's name without suffix.
        progress: called with the pass (`predict`, `measure`, `video`), the frames done and, if known, their number.

    Raises:
        ImportError: PyAV is missing.
        FileNotFoundError: there is no such clip.
        FileExistsError: a file is there that is no result of an earlier run.
        ValueError: the clip cannot be read, a frame has another size than the first, an option is out of its range,
            or `out` holds frames that were made with other settings.
    """
    from .inference import DepthPredictor, load

    settings = ClipSettings(
        focal_length, fov, None if intrinsics is None else np.asarray(intrinsics, float).tolist(), every, max_frames
    )
    name = model.name if isinstance(model, DepthPredictor) else BUNDLED_MODEL if model is None else str(model)
    run = ClipRun(
        open_clip(clip, fps),
        ClipFiles.of(Path(out), stem or Path(clip).resolve().stem),
        settings,
        name,
        cache(lambda: model if isinstance(model, DepthPredictor) else load(model, device, dtype)),
        weights=_identity(name),
        depth_range=None if depth_range is None else DepthRange(*depth_range),
        batch_size=batch_size,
        progress=progress or (lambda *_: None),
    )
    return run(overwrite)


def _identity(model: str) -> str | None:
    """See `weights_identity`; None of a loaded model whose files are not at hand."""
    try:
        return weights_identity(model)
    except OSError:
        return None
