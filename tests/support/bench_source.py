"""A source of small made-up frames whose depth is known by hand, and which can be told to fail."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from depthvlm.benchmark.sources.frames import Frame, FrameError, FrameRef, Source, SourceError
from PIL import Image

IMAGE_SIZE = (64, 48)
DEPTH_SHAPE = (24, 32)
INTRINSICS = (50.0, 51.0, 32.0, 24.0)


class ToySource(Source):
    """
    Frames of `root/toy.json`: `scenes`, `cameras` and `frames` of each say which; `float`: depth as float32; and
    ids to go wrong: `fail` (unreadable), `bug` (the reader raises), `empty` (no depth), `die` (the process is killed,
    at the first try alone). `sleep`: seconds a frame takes.

    Depth of the frame of order o is `1000 + 100 o + 10 column + row` millimetres, but for masked pixels (the first
    row), ones without depth (column 0) and, in column 1, 60 m, out of range.
    """

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy <frames>"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    depth_range: ClassVar[tuple[float, float]] = (0.5, 50.0)
    licence: ClassVar[str] = "made up"

    def __init__(self, root: str | Path, farther: int = 0):
        super().__init__(root)
        self.settings: dict[str, Any] = json.loads((self.root / "toy.json").read_text())
        self.farther = farther

    def index(self, split: str) -> list[FrameRef]:
        if split not in self.splits:
            raise SourceError(f"toy has no split {split!r}")
        get = self.settings.get
        return [
            FrameRef(f"{scene}/{camera}_{order:03d}", scene, camera, order)
            for scene in (f"scene{i}" for i in range(get("scenes", 2)))
            for camera in get("cameras", ["left", "right"])
            for order in range(get("frames", 4))
        ]

    def read(self, ref: FrameRef) -> Frame:
        if self.settings.get("sleep"):
            (self.root / f"pid-{os.getpid()}").touch()
            time.sleep(self.settings["sleep"])
        for problem in ("fail", "bug", "empty", "die"):
            if ref.id in self.settings.get(problem, []):
                self._go_wrong(problem, ref)
        depth = toy_depth(ref.order + self.farther)
        if ref.id in self.settings.get("empty", []):
            depth = np.zeros_like(depth)
        mask = np.ones(DEPTH_SHAPE, dtype=bool)
        mask[0] = False
        scale = 1000.0
        if self.settings.get("float"):
            depth, scale = np.where(depth > 0, depth / np.float32(1000) + np.float32(1e-5), np.nan), 1.0
            depth = depth.astype(np.float32)
        return Frame(ref, toy_image(ref.id), IMAGE_SIZE, depth, scale, INTRINSICS, mask)

    def _go_wrong(self, problem: str, ref: FrameRef) -> None:
        if problem == "fail":
            raise FrameError(f"{self.root / ref.id}.png is truncated")
        if problem == "bug":
            raise KeyError("calibration")
        if problem == "die":
            marker = self.root / f"died-{ref.order}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)


class ToySource654(ToySource):
    """The same under the name of a small evaluation set."""

    name: ClassVar[str] = "nyuv2"


def toy_depth(order: int) -> np.ndarray:
    """Millimetres `(24, 32)`."""
    rows, columns = np.indices(DEPTH_SHAPE)
    depth = (1000 + 100 * order + 10 * columns + rows).astype(np.uint16)
    depth[:, 0], depth[:, 1] = 0, 60_000
    return depth


def toy_image(name: str) -> bytes:
    """A JPEG of its own for every frame."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE[1], IMAGE_SIZE[0], 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def open_toy(name: str, root: str | Path, **options: Any) -> Source:
    """The opener that workers call."""
    return {"toy": ToySource, "nyuv2": ToySource654}[name](root, **options)


def make_toy(root: Path, **settings: Any) -> Path:
    """Writes the download of a toy source, or changes its settings."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "toy.json").write_text(json.dumps(settings))
    return root


def build_files(folder: Path) -> dict[str, bytes]:
    """Every file of a build by its path, but for locks and for records of when something was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    paths = [path for path in files if path.parent.name != ".depthvlm"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
