"""Frames of video files for lmms-eval: which ones, their times, and files that cannot be read whole."""

from pathlib import Path

import av
import numpy as np
import pytest
from depthvlm.benchmark.lmms.videos import read_frames


def clip(path: Path, frames: int) -> str:
    """A film of 5 frames a second, the k-th of them grey of brightness 20 k (modulo 256)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(("wanted", "chosen"), [(4, [0, 3, 7, 10]), (2, [0, 10]), (1, [0]), (32, list(range(11)))])
def test_frames_are_evenly_spaced_and_named(tmp_path: Path, wanted: int, chosen: list[int]) -> None:
    frames, metadata = read_frames(clip(tmp_path / "film.mp4", 11), wanted)
    assert frames.shape == (len(chosen), 48, 64, 3)
    assert frames.mean((1, 2, 3)) == pytest.approx([20 * k for k in chosen], abs=3)
    assert list(metadata["frames_indices"]) == chosen
    assert metadata["total_num_frames"] == 11
    assert metadata["fps"] == 5
    assert metadata["duration"] == pytest.approx(2.2)


def test_a_file_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"film\.mkv does not say how many frames"):
        read_frames(clip(tmp_path / "film.mkv", 5), 4)


def test_a_file_that_ends_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    clip(path, 40)
    whole = path.read_bytes()
    path.write_bytes(whole[: (whole.index(b"movi") + whole.index(b"idx1")) // 2])  # half of the frames
    with pytest.raises(ValueError, match="ends before"):
        read_frames(str(path), 40)
