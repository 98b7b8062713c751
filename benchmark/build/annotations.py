"""A finished build in the released form: JSON lines, and the images and depth maps that they name, as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...files import atomic_write
from ...result_records import ResultRecord, recorded
from .shard_writer import BuildError
from .shards import CANONICAL_FOCAL_LENGTH, build_name, finished_builds, shard_paths

# `datasets` passes over folders with such names; among the files of another it would take the build for a folder of
# images.
FILES_FOLDER = "__files__"


def write_annotations(
    folder: str | Path, source: str, split: str, advance: Callable[[int], None] = lambda count: None
) -> Path:
    """Write `SOURCE-SPLIT.jsonl` of a finished build, whose `image` and `depth_path` are relative to the folder.

    The lines have the released keys, and also `id`, `original_fy`, `original_cx` and `original_cy`. `advance` is
    called with 1 for each image.

    Returns:
        The path of the JSON lines.

    Raises:
        BuildError: The build is not finished, or a shard is not what the manifest says; a file is there that no build
            wrote.
    """
    folder = Path(folder)
    name = build_name(source, split)
    entry = finished_builds(folder, split, source)[name]
    path = check_replaceable(folder, name)
    with recorded(folder, path.name, [path], name, overwrite=False), atomic_write(path) as file:
        for row in _rows(shard_paths(folder, entry)):
            line = annotation_line(row, f"{FILES_FOLDER}/{name}/")
            _write(folder / line["image"], row["image"]["bytes"])
            _write(folder / line["depth_path"], row["depth"]["bytes"])
            file.write(json.dumps(line).encode() + b"\n")
            advance(1)
    return path


def check_replaceable(folder: str | Path, name: str) -> Path:
    """Return the path of a build's JSON lines, and check that nothing is there but an earlier build's.

    Raises:
        BuildError: Something else is there.
    """
    path = Path(folder) / f"{name}.jsonl"
    if ResultRecord(path.parent, path.name).in_the_way([path]):
        raise BuildError(
            f"{path} is there, and no build wrote it, or it was changed since: choose another --out, or move it away."
        )
    return path


def annotation_line(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the released line of a record, with this prefix of its files; points are in pixels of the depth map."""
    fx, fy, cx, cy = row["intrinsics"]
    scale = CANONICAL_FOCAL_LENGTH / fx
    texts = {message["role"]: message["content"] for message in row["messages"]}
    return {
        "id": row["id"],
        "scene_id": row["scene"],
        "image": f"{prefix}image/{row['image']['path']}",
        "depth_path": f"{prefix}depth/{row['depth']['path']}",
        "depth_scale": row["depth_scale"],
        "original_rgb_size": [row["width"], row["height"]],
        "original_depth_size": [row["depth_width"], row["depth_height"]],
        "original_fx": fx,
        "original_fy": fy,
        "original_cx": cx,
        "original_cy": cy,
        "canonical_fx": CANONICAL_FOCAL_LENGTH,
        "canonical_size": [round(row["width"] * scale), round(row["height"] * scale)],
        "prompt": texts["user"],
        "solution": texts["assistant"],
        "pixel_coords": [[point["column"], point["row"]] for point in row["points"]],
        "depth": [point["depth"] for point in row["points"]],
        "depth_type": row["depth_type"],
    }


def _rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)
