"""Frames of video files, decoded by PyAV, which brings its own FFmpeg."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.video_utils import VideoMetadata, load_video


def read_frames(path: str, num_frames: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Read evenly spaced frames of a file, including the first and the last; all if it has fewer than `num_frames`.

    Returns:
        RGB frames as uint8 `(frames, H, W, 3)`, and their metadata in the form of a processor's `video_metadata`, from
        which Qwen3-VL writes the time of each frame into the prompt.

    Raises:
        ValueError: The file does not say how many frames it has, or has fewer than it says.
    """

    def evenly(metadata: VideoMetadata, **_: Any) -> NDArray[np.int64]:
        total = metadata.total_num_frames
        if total < 1:
            raise ValueError(f"{path} does not say how many frames it has: write it again, as MP4, with `ffmpeg -i`.")
        return np.linspace(0, total - 1, min(total, num_frames)).round().astype(int)

    # The documentation of `load_video` allows a local path; its annotation leaves `str` out.
    frames, metadata = load_video(path, backend="pyav", sample_indices_fn=evenly)  # type: ignore[arg-type]
    if len(frames) != len(metadata.frames_indices):
        raise ValueError(f"{path} says that it has {metadata.total_num_frames} frames, but ends before: cut off.")
    known = {name: getattr(metadata, name) for name in ("total_num_frames", "fps", "frames_indices", "duration")}
    return frames, known
