"""One shard of a build: its frames read, made into records and written, all of it or nothing."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import file_hash, write_text
from ..sources.frames import FrameError, FrameRef, Source
from .records import RowMaker

# Records of shards, parameters, locks and unfinished files, in the folder of a build. `datasets` passes it over.
STATE_FOLDER = ".state"

# A row group is closed at whichever comes first: what a viewer loads for one page, and what a worker holds.
GROUP_ROWS = 100
GROUP_BYTES = 64 * 2**20

# Columns of few values; the others would be hashed for nothing.
_REPEATED = ("source", "split", "scene", "camera", "depth_type")
_REPEATED_PATHS = [*_REPEATED, "messages.list.element.role", "messages.list.element.content"]

SourceOpener = Callable[..., Source]


class BuildError(Exception):
    """A build that cannot begin or continue; the message says why and what to do. Finished shards stay."""


class TooManyBadFramesError(BuildError):
    """More frames than allowed cannot be used."""


@dataclass(frozen=True)
class ShardTask:
    """The frames of one file."""

    file: str
    refs: tuple[FrameRef, ...]  # in the order of the rows
    points: tuple[int, ...]  # number of points that are sampled of each of them


@dataclass(frozen=True)
class ShardJob:
    """Everything that the shards of a build share; it can be pickled for the workers."""

    opener: SourceOpener  # makes the source, once in every process
    name: str  # an argument of the opener, as the next two
    root: str
    options: str  # keywords, as a JSON object
    out: str  # folder of the build
    plan: str  # hash of the plan, which the records carry
    rows: RowMaker
    schema: pa.Schema
    max_bad: int  # more unusable frames than this in one shard end it


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard's record, beside it as JSON."""

    file: str
    sha256: str
    bytes: int
    rows: int
    points: int
    short: int  # rows with fewer points than planned, because fewer pixels are valid
    plan: str  # hash of the plan it belongs to
    bad: tuple[tuple[str, str], ...] = field(default=())  # id and reason of every frame that could not be used


def write_shard(job: ShardJob, task: ShardTask, advance: Callable[[int], None]) -> ShardRecord:
    """Write one shard and then its record; `advance` is called with 1 for each frame that was read.

    Raises:
        TooManyBadFramesError: More than `job.max_bad` frames of this shard cannot be used.
        BuildError: A reader failed in a way that no bad file explains; the message names the frame.
    """
    folder, bad = Path(job.out), list[tuple[str, str]]()
    temporary = folder / STATE_FOLDER / f"{task.file}.{uuid.uuid4().hex}.tmp"
    rows = points = short = 0
    try:
        with pq.ParquetWriter(
            temporary,
            job.schema,
            compression="NONE",  # what is large is compressed already
            use_dictionary=_REPEATED_PATHS,
            write_statistics=["id", *_REPEATED],
            write_page_index=True,
        ) as file:
            for group in _row_groups(_records(job, task, bad, advance)):
                file.write_table(pa.Table.from_pylist([record for record, _ in group], schema=job.schema))
                rows += len(group)
                points += sum(len(record["points"]) for record, _ in group)
                short += sum(len(record["points"]) < wanted for record, wanted in group)
        digest, size = file_hash(temporary), temporary.stat().st_size
        os.replace(temporary, folder / task.file)
    finally:
        temporary.unlink(missing_ok=True)
    record = ShardRecord(task.file, digest, size, rows, points, short, job.plan, tuple(bad))
    write_text(record_path(folder, task.file), json.dumps(asdict(record), indent=1, sort_keys=True) + "\n")
    return record


def _records(
    job: ShardJob, task: ShardTask, bad: list[tuple[str, str]], advance: Callable[[int], None]
) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the frames of a shard, and yield their records and wanted points; what cannot be used is added to `bad`."""
    source = open_once(job.opener, job.name, job.root, job.options)
    for ref, wanted in zip(task.refs, task.points, strict=True):
        try:
            record = job.rows.row(source.read(ref), ref, wanted)
        except FrameError as error:
            # Reasons are part of the manifest, which is the same on every machine.
            bad.append((ref.id, str(error).replace(job.root.rstrip("/\\") + os.sep, "")))
            check_bad(bad, job.max_bad)
        except MemoryError:
            raise
        except Exception as error:
            raise BuildError(
                f"Reading the frame {ref.id} of {job.name} failed with {type(error).__name__}: {error}. "
                "No unreadable file accounts for that: it is a fault of the reader."
            ) from error
        else:
            yield record, wanted
        advance(1)


def _row_groups(records: Iterable[tuple[dict[str, Any], int]]) -> Iterator[list[tuple[dict[str, Any], int]]]:
    group: list[tuple[dict[str, Any], int]] = []
    size = 0
    for record, wanted in records:
        group.append((record, wanted))
        size += len(record["image"]["bytes"]) + len(record["depth"]["bytes"])
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_record(folder: Path, file: str, plan: str) -> ShardRecord | None:
    """Return the record of a shard of this plan; None if it is missing or of another plan, or the shard is gone."""
    try:
        stored = json.loads(record_path(folder, file).read_text(encoding="utf-8"))
        stored["bad"] = tuple((str(one), str(reason)) for one, reason in stored["bad"])
        record = ShardRecord(**stored)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.plan == plan and (folder / file).is_file() else None


def check_bad(bad: Sequence[tuple[str, str]], max_bad: int) -> None:
    """Raise TooManyBadFramesError, with the first twenty, if there are more than `max_bad`."""
    if len(bad) <= max_bad:
        return
    lines = "".join(f"  {one}: {reason}\n" for one, reason in bad[:20])
    if len(bad) > 20:
        lines += f"  and {len(bad) - 20} more\n"
    raise TooManyBadFramesError(
        f"{len(bad)} frame(s) cannot be used, and --max-bad allows {max_bad}:\n{lines}Mend them, or allow more with "
        "--max-bad; finished shards are kept."
    )


def record_path(folder: Path, file: str) -> Path:
    """Return the path of a shard's record."""
    return folder / STATE_FOLDER / f"{file}.json"


@lru_cache(maxsize=1)
def open_once(opener: SourceOpener, name: str, root: str, options: str) -> Source:
    """Open a source once in a process; options as JSON, since lists and dictionaries cannot be cache keys."""
    return opener(name, root, **json.loads(options))
