"""Finished builds, read: only whole ones, and only what their manifest says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .manifest import MANIFEST, PIXEL_CENTRE, read_manifest
from .shard_writer import STATE_FOLDER, BuildError, write_atomically
from .workers import available_cpus

if TYPE_CHECKING:
    from datasets import Dataset

_CHECKED = "checked"  # hashes of shards by name, with size and times of the file; without .json, which means a build


def finished_builds(
    folder: str | Path, split: str | None = None, source: str | None = None
) -> dict[str, dict[str, Any]]:
    """The entries of a folder's manifest, by name.

    Args:
        folder: of `depthvlm bench build`.
        split, source: only those of this split and this source.

    Raises:
        FileNotFoundError: there is no such folder.
        BuildError: no such build is finished there; the message says what there is.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    builds = read_manifest(folder)
    found = {
        name: entry
        for name, entry in sorted(builds.items())
        if split in (None, entry["split"]) and source in (None, entry["source"])
    }
    if found:
        return found
    asked = " ".join(part for part in (source, split) if part) or "any kind"
    under_way = sorted(path.stem for path in (folder / STATE_FOLDER).glob("*.json") if not _is_record(path))
    unfinished = [name for name in under_way if name not in builds]
    problem = f"{folder} has no finished build of {asked}; its {MANIFEST} lists {', '.join(builds) or 'none'}."
    if unfinished:
        problem += f" Begun and not finished: {', '.join(unfinished)}; run the same build command again to go on."
    raise BuildError(problem)


def build_hash(entry: Mapping[str, Any]) -> str:
    """sha256 of a build's shards, by which results know their data; `entry` is of the manifest."""
    hashes = [shard["sha256"] for shard in entry["shards"]]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def shard_paths(folder: str | Path, entry: dict[str, Any], verify: bool = False) -> list[Path]:
    """The Parquet files of a build, in their order.

    Args:
        folder: of the build.
        entry: of the manifest.
        verify: whether to compare the hashes of all bytes too, not the sizes alone. A file whose size and times are
            those at its last check is not read again.

    Raises:
        BuildError: a file is missing or is not what the manifest says; the message names it.
    """
    paths = [Path(folder) / shard["file"] for shard in entry["shards"]]
    for path, shard in zip(paths, entry["shards"], strict=True):
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            found = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
            raise BuildError(
                f"{path} {found}, the manifest says {shard['bytes']} bytes. Copy the build again, or run the same "
                "build command to mend it."
            )
    if verify:
        for path, shard, digest in zip(paths, entry["shards"], _hashes(Path(folder), paths), strict=True):
            if digest != shard["sha256"]:
                raise BuildError(
                    f"The bytes of {path} are not those of the manifest (sha256): it was altered or damaged. Copy it "
                    "again, or run the same build command to mend it."
                )
    return paths


def load_build(
    folder: str | Path, split: str, source: str | None = None, verify: bool = False, **options: Any
) -> Dataset:
    """A finished build as a data set; [`benchmark_features`] describes its columns. Intrinsics of builds that put the
    centre of the first pixel at (0, 0) are brought to (0.5, 0.5).

    Args:
        folder: of `depthvlm bench build`.
        split: "train" or "test".
        source: one source; by default all of that split, one after the other.
        verify: whether to compare the hashes of all files first, see [`shard_paths`].
        options: of `datasets.Dataset.from_parquet` (`cache_dir`, `keep_in_memory`, `columns`).

    Raises:
        FileNotFoundError: there is no such folder.
        BuildError: no such build is finished there, or a file is not what the manifest says.
    """
    from datasets import Dataset, concatenate_datasets

    builds = [
        (entry["parameters"].get("pixel_centre", 0.0), [str(path) for path in shard_paths(folder, entry, verify)])
        for entry in finished_builds(folder, split, source).values()
    ]
    if all(centre == PIXEL_CENTRE for centre, _ in builds):
        return Dataset.from_parquet([path for _, paths in builds for path in paths], split=split, **options)
    parts = [_with_centre(Dataset.from_parquet(paths, split=split, **options), centre) for centre, paths in builds]
    return concatenate_datasets(parts)


def _with_centre(rows: Dataset, centre: float) -> Dataset:
    """The rows of a build whose intrinsics have the centre of the first pixel at `centre`, in today's convention."""
    if centre == PIXEL_CENTRE or "intrinsics" not in rows.column_names:
        return rows
    shift = PIXEL_CENTRE - centre
    moved = [[fx, fy, cx + shift, cy + shift] for fx, fy, cx, cy in rows["intrinsics"]]
    names, feature = rows.column_names, rows.features["intrinsics"]
    return rows.remove_columns("intrinsics").add_column("intrinsics", moved, feature=feature).select_columns(names)


def _hashes(folder: Path, paths: Sequence[Path]) -> list[str]:
    """The sha256 of files of a build: of those that are as they were at their last check, the one found then."""
    record = folder / STATE_FOLDER / _CHECKED
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged: all are read
        known = dict(json.loads(record.read_text(encoding="utf-8")))

    def check(path: Path) -> dict[str, Any]:
        stat = path.stat()
        times = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        found = known.get(path.name)
        if isinstance(found, dict) and found.get("file") == times and "sha256" in found:
            return found
        return {"file": times, "sha256": file_hash(path)}

    with ThreadPoolExecutor(available_cpus()) as pool:
        found = dict(zip([path.name for path in paths], pool.map(check, paths), strict=True))
    if any(known.get(name) != one for name, one in found.items()):
        with suppress(OSError):  # a folder that may not be written to is checked anew each time
            record.parent.mkdir(exist_ok=True)
            write_atomically(record, json.dumps(known | found))
    return [one["sha256"] for one in found.values()]


def _is_record(path: Path) -> bool:
    return path.name.endswith(".parquet.json")


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
