"""Folders of builds: their manifest, locks and parameters, and the reading of finished builds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ...files import file_hash, write_text
from .shard_writer import STATE_FOLDER, BuildError

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "manifest.json"
FORMAT = 1

# Where intrinsics have the centre of the first pixel; builds whose parameters do not say it have it at 0.
PIXEL_CENTRE = 0.5


_CHECKED = "checked"  # hashes of shards by name, with size and times of the file; without .json, which means a build

CANONICAL_FOCAL_LENGTH = 1000.0  # pixels; images of this focal length are not resized


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_name(source: str, split: str) -> str:
    """Return the name of a build in its folder: "ddad-test"."""
    return f"{source}-{split}"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the finished builds of a folder by their names, empty if there is none.

    Raises:
        BuildError: The manifest is damaged, or of a format that this version does not know.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, builds = content["format"], content["builds"]
        if version == FORMAT:
            for entry in builds.values():
                _check_entry(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BuildError(f"{path} is damaged ({reason}). Delete it and run its builds again to have it anew.") from None
    if version != FORMAT:
        raise BuildError(f"{path} has the format {version}, this version reads {FORMAT}: use the one that built it.")
    return builds


def _check_entry(entry: Any) -> None:
    """Raise KeyError, TypeError or ValueError where an entry lacks what a reader of a build needs."""
    texts = [entry[key] for key in ("source", "split", "title", "licence")]
    parameters, counts, shards = entry["parameters"], entry["counts"], entry["shards"]
    texts += [shard[key] for shard in shards for key in ("file", "sha256")]
    numbers = [counts["rows"], *(shard[key] for shard in shards for key in ("bytes", "rows"))]
    if not isinstance(parameters, dict) or "seed" not in parameters:
        raise ValueError("the parameters of a build are missing")
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise ValueError("something is of the wrong type")
    if not shards:
        raise ValueError("a build without shards")


def add_to_manifest(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Add a finished build, or replace its older version; builds of other names stay."""
    with FileLock(folder / STATE_FOLDER / "manifest.lock"):
        builds = read_manifest(folder) | {name: dict(entry)}
        content = {"format": FORMAT, "builds": builds}
        write_text(folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def build_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock that keeps a second process from the same build. A killed process loses it.

    Raises:
        BuildError: Another process has it.
    """
    lock = FileLock(folder / STATE_FOLDER / f"{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BuildError(
            f"Another process is building {name} in {folder}. Wait for it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_parameters(folder: Path, name: str, parameters: Mapping[str, Any], files: Sequence[str] = ()) -> None:
    """Check that a build continues as it began, or begins without any of its `files`, with its parameters noted.

    Raises:
        BuildError: It was begun with others, or a file is there that no build wrote; the message says which.
    """
    path = folder / STATE_FOLDER / f"{name}.json"
    finished = None if path.is_file() else read_manifest(folder).get(name)
    if goes_on(path, parameters, f"{name} in {folder}", BuildError, finished and finished["parameters"]):
        return
    if there := [file for file in files if os.path.lexists(folder / file)]:
        raise BuildError(
            f"{folder} has {', '.join(there[:5])}, which no build wrote: choose another --out, or move it away."
        )
    write_text(path, json.dumps(dict(parameters), indent=1, sort_keys=True) + "\n")


def goes_on(
    path: Path, asked: Mapping[str, Any], what: str, error: type[Exception], begun: dict[str, Any] | None = None
) -> bool:
    """Tell whether a run was begun, by its settings in a file or as given, and raise `error` if they differ now."""
    now: dict[str, Any] = json.loads(json.dumps(dict(asked), default=str))  # where a tuple is a list
    if path.is_file():
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as reason:
            raise error(f"{path} is damaged ({reason}). Delete it, or choose another --out.") from None
    if begun is None:
        return False
    differing = [key for key in sorted(now | begun) if now.get(key) != begun.get(key)]
    if differing:
        lines = "".join(f"  {key}: {begun.get(key)!r} there, {now.get(key)!r} now\n" for key in differing)
        raise error(
            f"{what} was begun with other parameters:\n{lines}Run it with those to go on, or choose another --out."
        )
    return True


def finished_builds(
    folder: str | Path, split: str | None = None, source: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return the entries of a folder's manifest by name, those of one split or source where it is given.

    Raises:
        FileNotFoundError: There is no such folder.
        BuildError: No such build is finished there; the message says what there is.
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
    begun = sorted(path.stem for path in (folder / STATE_FOLDER).glob("*.json"))  # and the records of shards
    unfinished = [name for name in begun if name not in builds and not name.endswith(".parquet")]
    problem = f"{folder} has no finished build of {asked}; its {MANIFEST} lists {', '.join(builds) or 'none'}."
    if unfinished:
        problem += f" Begun and not finished: {', '.join(unfinished)}; run the same build command again to go on."
    raise BuildError(problem)


def build_hash(entry: Mapping[str, Any]) -> str:
    """Hash a build's shards, to identify the data of results; `entry` is from the manifest."""
    hashes = [shard["sha256"] for shard in entry["shards"]]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def shard_paths(folder: str | Path, entry: dict[str, Any], verify: bool = False) -> list[Path]:
    """Return the Parquet files of a build, in their order.

    Args:
        folder: Folder of the build.
        entry: Entry of the manifest.
        verify: Compare the hashes of all bytes too, not the sizes alone. A file whose size and times are
            those at its last check is not read again.

    Raises:
        BuildError: A file is missing or is not what the manifest says; the message names it.
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


def read_rows(path: Path, places: Sequence[int], columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the records of a shard at these places, undecoded; only the row groups that hold one are read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        begin = 0
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if here := [place - begin for place in places if begin <= place < end]:
                yield from file.read_row_group(group, columns).take(here).to_pylist()
            begin = end


def load_build(
    folder: str | Path, split: str, source: str | None = None, verify: bool = False, **options: Any
) -> Dataset:
    """Load a finished build as a data set; [`benchmark_features`] describes its columns.

    Intrinsics of builds that put the centre of the first pixel at (0, 0) are brought to (0.5, 0.5).

    Args:
        folder: Folder of `depthvlm bench build`.
        split: "train" or "test".
        source: One source; by default all of that split, one after the other.
        verify: Compare the hashes of all files first, see [`shard_paths`].
        options: Arguments of `datasets.Dataset.from_parquet` (`cache_dir`, `keep_in_memory`, `columns`).

    Raises:
        FileNotFoundError: There is no such folder.
        BuildError: No such build is finished there, or a file is not what the manifest says.
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


def raw_images(split: str, folder: str) -> Dataset:
    """Load a build with the canonical focal length for every image, so that training leaves images and metres alone.

    This is table 7's "raw mixed-source": images are trained on at their own size.

    Raises:
        FileNotFoundError, BuildError: See [`load_build`].
    """
    data = load_build(folder, split).remove_columns(["intrinsics", "focal_length"])
    return data.add_column("focal_length", [CANONICAL_FOCAL_LENGTH] * len(data))


def _with_centre(rows: Dataset, centre: float) -> Dataset:
    """Convert intrinsics that have the centre of the first pixel at `centre` to today's convention."""
    if centre == PIXEL_CENTRE or "intrinsics" not in rows.column_names:
        return rows
    shift = PIXEL_CENTRE - centre
    moved = [[fx, fy, cx + shift, cy + shift] for fx, fy, cx, cy in rows["intrinsics"]]
    names, feature = rows.column_names, rows.features["intrinsics"]
    return rows.remove_columns("intrinsics").add_column("intrinsics", moved, feature=feature).select_columns(names)


def _hashes(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Hash files of a build; those that are as they were at their last check keep the hash found then."""
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
            write_text(record, json.dumps(known | found) + "\n")
    return [one["sha256"] for one in found.values()]
