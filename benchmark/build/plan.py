"""The plan of a build, made before anything is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ..sources.frames import FrameRef, Source
from .sampling import POINTS_PER_IMAGE, default_images, points_per_image, sample_frames
from .shard_writer import BuildError, ShardTask
from .shards import PIXEL_CENTRE, build_name

# Rows of a shard: enough shards for sixteen workers, and files of half a gigabyte where there are many images.
FEWEST_ROWS, MOST_ROWS, USUAL_SHARDS = 50, 1000, 16

# Without a limit of the user's: this share of the frames may be unusable, and at least so many.
BAD_SHARE, FEWEST_BAD = 0.01, 10

_ID = re.compile(r"(?!\.{1,2}(/|$))[\w.-]+(/(?!\.{1,2}(/|$))[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class BuildPlan:
    """The shards that a build will write and their frames: the same for the same frames and parameters."""

    source: type[Source]  # class of the source, for its name and terms
    split: str  # "train" or "test"
    # the request, and hashes of the frames chosen for it; a build goes on only with the same
    parameters: dict[str, Any]
    available: int  # frames that the source lists
    tasks: tuple[ShardTask, ...]
    notes: tuple[str, ...] = ()  # files that the source passed over; no part of the hash

    @property
    def name(self) -> str:
        """Name of the build: "ddad-test"."""
        return build_name(self.source.name, self.split)

    @property
    def depth_range(self) -> tuple[float, float]:
        """Metres that count as measured."""
        low, high = self.parameters["depth_range"]
        return low, high

    @property
    def images(self) -> int:
        """Number of frames that will be read."""
        return sum(len(task.refs) for task in self.tasks)

    @property
    def default_max_bad(self) -> int:
        """Number of frames that may be unusable by default: 1 %, at least 10."""
        return max(FEWEST_BAD, int(BAD_SHARE * self.images))

    @property
    def hash(self) -> str:
        """Hash of everything that affects the bytes, except the files themselves."""
        return _hash([json.dumps(self.parameters, sort_keys=True)])


def plan_build(
    source: Source,
    split: str,
    num_images: int | None = None,
    points: int = POINTS_PER_IMAGE,
    seed: int = 0,
    rows_per_shard: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> BuildPlan:
    """Choose frames and assign them to shards, by scene and then by time, so that neighbours are near. Decodes nothing.

    Args:
        source: An opened source.
        split: One of its splits.
        num_images: Number of images, all where there are fewer; by default that of the paper's tables 9 and 10, or all.
        points: Sampled pixels of an image; see [`points_per_image`] for small evaluation sets. Unused, like
            the seed, where the source has its own points.
        seed: Seed of the points.
        rows_per_shard: Rows of a shard; by default 50 to 1000, such that there are sixteen shards or more.
        options: Arguments of the source besides its root, as JSON has them.

    Raises:
        SourceError: No such split, or it is empty.
        BuildError: An argument is out of its range, or two frames have one id.
    """
    for name, value in (("num_images", num_images), ("points", points), ("rows_per_shard", rows_per_shard)):
        if value is not None and value < 1:
            raise BuildError(f"{name} must be at least 1, got {value}.")
    refs = source.index(split)
    wanted = default_images(source.name, split) if num_images is None else num_images
    chosen = sorted(sample_frames(refs, wanted), key=attrgetter("scene", "order", "camera", "id"))
    _check_ids(chosen, source.name)
    counts = points_per_image(source.name, split, len(chosen), points, oversample=num_images is None)
    if source.has_points:
        counts = [0] * len(chosen)
    size = rows_per_shard or min(MOST_ROWS, max(FEWEST_ROWS, -(-len(chosen) // USUAL_SHARDS)))
    starts = range(0, len(chosen), size)
    tasks = tuple(
        ShardTask(
            f"{build_name(source.name, split)}-{number:05d}-of-{len(starts):05d}.parquet",
            tuple(chosen[start : start + size]),
            tuple(counts[start : start + size]),
        )
        for number, start in enumerate(starts)
    )
    parameters = {
        "source": source.name,
        "split": split,
        "options": dict(sorted((options or {}).items())),
        "num_images": wanted,
        "points": None if source.has_points else points,
        "points_of_set": None if source.has_points else sum(counts),
        "seed": None if source.has_points else seed,
        "rows_per_shard": size,
        "depth_range": list(source.depth_range),
        "pixel_centre": PIXEL_CENTRE,
        "frames_sha256": _hash(f"{ref.id}\t{ref.scene}\t{ref.camera}" for ref in chosen),
    }
    return BuildPlan(type(source), split, parameters, len(refs), tasks, tuple(source.notes))


def _check_ids(refs: Sequence[FrameRef], source: str) -> None:
    for ref in refs:
        if not _ID.fullmatch(ref.id):
            raise BuildError(f"The reader of {source} has a frame {ref.id!r}: ids are of letters, digits and /_-.")
    if len({ref.id for ref in refs}) < len(refs):
        twice = next(one for one, count in Counter(ref.id for ref in refs).items() if count > 1)
        raise BuildError(f"The reader of {source} has two frames {twice!r}: ids must be unique in a split.")


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
