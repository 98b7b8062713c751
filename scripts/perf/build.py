"""
How fast the builder is beside what it cannot do without, and what the paper's 4.4 M images would take.

    python scripts/perf/build.py --images 2000 --rounds 3
    python scripts/perf/build.py --estimate

The synthetic source is files, as a download is: JPEG images and 16-bit PNG depth maps. "Decoding and encoding alone" is
a loop that reads a frame, with its depth map decoded, and encodes the map again, as the builder must. Every round runs
all candidates in turn; a rate counts from the first image on, so that the start of processes is apart from it.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer
from depthvlm.benchmark.build.builder import BuildEvents, run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.records import RowMaker, depth_messages, encode_depth
from depthvlm.benchmark.build.sampling import TRAINING_IMAGES
from depthvlm.benchmark.sources.frames import Frame, FrameRef, Source
from depthvlm.benchmark.synthetic import render_scene
from PIL import Image
from rich.console import Console
from rich.table import Table

SCENES = 16  # different pictures; frames repeat them
TARGETS = {"builder, 1 worker": ("decoding and encoding alone", 0.8), "builder, 2 workers": ("builder, 1 worker", 1.8)}
CORES = 64  # of the machine in the estimate

# Width and height of image and depth map, valid pixels of a map (None: dense), and kilobytes of an image: means of the
# datasets' files at hand for ScanNet++ (12), nuScenes (6) and DDAD (27), and their 0.11 bytes a pixel for other JPEGs;
# for the renderings of Taskonomy and HM3D, which are PNG, 1.2 bytes a pixel are assumed.
SHAPES: dict[str, tuple[tuple[int, int], tuple[int, int], int | None, float]] = {
    "argoverse2": ((1550, 2048), (1550, 2048), 11_500, 349),
    "waymo": ((1920, 1280), (1920, 1280), 25_000, 270),
    "ddad": ((1936, 1216), (1936, 1216), 9_000, 276),
    "nuscenes": ((1600, 900), (1600, 900), 4_000, 145),
    "scannetpp": ((1920, 1440), (256, 192), None, 226),
    "taskonomy": ((512, 512), (512, 512), None, 315),
    "hm3d": ((512, 512), (512, 512), None, 315),
    "matterport3d": ((1280, 1024), (1280, 1024), None, 144),
}
console = Console(width=120)


class SceneFiles(Source):
    """Rendered scenes as files, `root/0.jpg` and `root/0.png`; `root/count` says how many frames there are."""

    name: ClassVar[str] = "synthetic"
    title: ClassVar[str] = "Synthetic scenes"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    depth_range: ClassVar[tuple[float, float]] = (0.1, 60.0)

    def index(self, split: str) -> list[FrameRef]:
        """So many frames of one scene."""
        return [FrameRef(f"{i:06d}", "scene", order=i) for i in range(int((self.root / "count").read_text()))]

    def read(self, ref: FrameRef) -> Frame:
        """The bytes of the image and the decoded depth map."""
        stem = self.root / str(ref.order % SCENES)
        with Image.open(stem.with_suffix(".png")) as picture:
            depth = np.asarray(picture)
        height, width = depth.shape
        camera = (float(width), float(width), width / 2, height / 2)
        return Frame(ref, stem.with_suffix(".jpg").read_bytes(), (width, height), depth, 1000.0, camera)


def open_scenes(name: str, root: str) -> Source:
    """The opener that workers call."""
    return SceneFiles(root)


def millimetres(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A rendered depth map as a sensor would give it, with an error of 2 mm."""
    depth = render_scene(seed, width=size[0], height=size[1]).depth * 1000
    noise = np.random.default_rng(seed).normal(0, 2, depth.shape)
    return np.where(depth > 0, depth + noise, 0).clip(0, 60_000).astype(np.uint16)


def write_scenes(root: Path, size: tuple[int, int], images: int) -> None:
    """The download of `SceneFiles`."""
    for seed in range(SCENES):
        scene = render_scene(seed, width=size[0], height=size[1])
        Image.fromarray(scene.image).save(root / f"{seed}.jpg", quality=90)
        Image.fromarray(millimetres(seed, size)).save(root / f"{seed}.png")
    (root / "count").write_text(str(images))


class Rate:
    """Images a second from the first one on."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.done: list[tuple[float, int]] = []  # moments, and images done since the one before

    def advance(self, count: int) -> None:
        """Notes that so many images more are done."""
        if count:
            self.done.append((time.perf_counter(), count))

    @property
    def start(self) -> float:
        """Seconds before the first image."""
        return self.done[0][0] - self.begun

    def per_second(self) -> float:
        """The rate."""
        return sum(count for _, count in self.done[1:]) / (time.perf_counter() - self.done[0][0])


def alone(root: Path) -> Rate:
    """Reads every frame and encodes its depth map, nothing else."""
    source, rate = SceneFiles(root), Rate()
    for ref in source.index("train"):
        frame = source.read(ref)
        encode_depth(np.asarray(frame.depth), frame.depth_scale)
        rate.advance(1)
    return rate


def built(root: Path, workers: int, rows: int) -> Rate:
    """A whole build into a new folder."""
    with tempfile.TemporaryDirectory() as out:
        plan = plan_build(SceneFiles(root), "train", rows_per_shard=rows)
        rate = Rate()
        run_build(plan, open_scenes, root, out, workers=workers, events=BuildEvents(advance=rate.advance))
    return rate


def compare(images: int, size: tuple[int, int], rounds: int) -> None:
    """Print the rates and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        root, rows = Path(folder), max(1, images // 16)
        write_scenes(root, size, images)
        candidates: dict[str, Callable[[], Rate]] = {
            "decoding and encoding alone": lambda: alone(root),
            "builder, 1 worker": lambda: built(root, 1, rows),
            "builder, 2 workers": lambda: built(root, 2, rows),
        }
        starts: dict[str, list[float]] = {name: [] for name in candidates}
        speeds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, run in candidates.items():
                rate = run()
                speeds[name].append(rate.per_second())
                starts[name].append(rate.start)
    table = Table("", "images/s", "ratio", "of", "target", "start, s")
    for name in candidates:
        cells = ["", "", ""]
        if name in TARGETS:
            other, target = TARGETS[name]
            ratios = [a / b for a, b in zip(speeds[name], speeds[other], strict=True)]
            cells = [f"{statistics.median(ratios):.2f}", other, f">= {target}"]
        table.add_row(name, f"{statistics.median(speeds[name]):.1f}", *cells, f"{statistics.median(starts[name]):.2f}")
    console.print(f"{images} images of {size[0]}x{size[1]} pixels, {rounds} rounds, medians", table)


def estimate(repeats: int) -> None:
    """Print what the images of table 9 take: processor time by measurement here, bytes by the sizes in `SHAPES`."""
    table = Table("source", "images", "image kB", "depth kB", "total TB", "CPU ms an image", "core-hours")
    sums = np.zeros(3)
    for source, images in TRAINING_IMAGES.items():
        image_size, depth_size, valid, image_kb = SHAPES[source]
        milliseconds, depth_kb = cost(image_size, depth_size, valid, repeats)
        terabytes, hours = images * (image_kb + depth_kb) / 1e9, images * milliseconds / 3.6e6
        sums += images, terabytes, hours
        sizes = (f"{image_kb:.0f}", f"{depth_kb:.0f}", f"{terabytes:.2f}")
        table.add_row(source, f"{images:,}", *sizes, f"{milliseconds:.1f}", f"{hours:.1f}")
    table.add_row("sum", f"{sums[0]:,.0f}", "", "", f"{sums[1]:.2f}", "", f"{sums[2]:.1f}")
    console.print(table)
    console.print(
        f"{sums[2]:.1f} core-hours / {CORES} cores = {sums[2] / CORES:.2f} hours, and {sums[1]:.2f} TB written in that "
        f"time are {sums[1] * 1e6 / (sums[2] / CORES * 3600):,.0f} MB/s. Reading the download comes on top: lidar "
        "projection, and the disk or network it lies on."
    )


def cost(image: tuple[int, int], depth: tuple[int, int], valid: int | None, repeats: int) -> tuple[float, float]:
    """Processor time of a row in milliseconds, of decoding a dense map included, and kilobytes of its depth."""
    raw = millimetres(0, depth)
    if valid is not None:
        keep = np.zeros(raw.size, dtype=bool)
        keep[np.random.default_rng(0).choice(raw.size, valid, replace=False)] = True
        raw = np.where(keep.reshape(raw.shape), raw, 0).astype(np.uint16)
    stored, stream = encode_depth(raw, 1000.0)[0], io.BytesIO()
    Image.new("RGB", image).save(stream, "JPEG")
    maker = RowMaker("synthetic", "train", SceneFiles.depth_range, 0, depth_messages())
    camera = (1000.0, 1000.0, image[0] / 2, image[1] / 2)

    def once() -> dict[str, Any]:
        decoded = np.asarray(Image.open(io.BytesIO(stored))) if valid is None else raw
        ref = FrameRef("a", "scene")
        return maker.row(Frame(ref, stream.getvalue(), image, decoded, 1000.0, camera), ref, 10)

    once()
    started = time.process_time()
    for _ in range(repeats):
        once()
    return (time.process_time() - started) / repeats * 1000, len(stored) / 1000


def main(
    images: Annotated[int, typer.Option(help="Images of a build.")] = 2000,
    size: Annotated[str, typer.Option(help="Width x height of image and depth map, pixels.")] = "640x480",
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 3,
    only_estimate: Annotated[bool, typer.Option("--estimate", help="Only the estimate for table 9.")] = False,
    repeats: Annotated[int, typer.Option(help="Rows measured for each source of the estimate.")] = 20,
) -> None:
    """Print the ratios, or the estimate."""
    if only_estimate:
        estimate(repeats)
    else:
        width, height = (int(side) for side in size.split("x"))
        compare(images, (width, height), rounds)


if __name__ == "__main__":
    typer.run(main)
