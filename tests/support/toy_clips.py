"""Small video files of synthetic scenes."""

import json
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from depthvlm.benchmark.synthetic.scenes import render_scene
from numpy.typing import NDArray
from PIL import Image

FOCAL = 90.0
SEEDS = (1, 2, 3, 4, 1)


@cache
def scene(seed: int, width: int = 96, height: int = 72) -> NDArray[np.uint8]:
    """The picture `(height, width, 3)` of a scene; odd seeds are streets."""
    return render_scene(seed, kind="street" if seed % 2 else "room", width=width, height=height, fov=60).image


def write_clip(
    path: Path,
    seeds: Sequence[int],
    size: tuple[int, int] = (96, 72),
    times: Sequence[int] | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
) -> Path:
    """A nearly lossless H.264 clip at 25 frames a second, or with these times in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_base = Fraction(1, 25) if times is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "6", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for index, seed in enumerate(seeds):
            frame = av.VideoFrame.from_ndarray(scene(seed, *size), "rgb24")
            frame.pts, frame.time_base = index if times is None else times[index], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode(path: Path) -> tuple[list[Image.Image], list[float]]:
    """Pictures and times of all frames, straight from PyAV."""
    with av.open(str(path)) as container:
        frames = [(frame.to_image(), float(frame.time)) for frame in container.decode(video=0)]
    return [picture for picture, _ in frames], [time for _, time in frames]


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def values_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
