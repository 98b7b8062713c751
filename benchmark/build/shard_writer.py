"""One shard of a build: its frames read, made into rows and written, all of it or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import write_text
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
    """A build that cannot begin or go on; the message says why and what to do. What is finished stays."""


class TooManyBadFramesError(BuildError):
    """More frames than allowed cannot be used."""


@dataclass(frozen=True)
class ShardTask:
    """The frames of one file.

    Args:
        file: its name.
        refs: the frames, in the order of the rows.
        points: how many are sampled of each of them.
    """

    file: str
    refs: tuple[FrameRef, ...]
    points: tuple[int, ...]


@dataclass(frozen=True)
class ShardJob:
    """Everything that the shards of a build share; it can be pickled for the workers.

    Args:
        opener: makes the source, once in every process.
        name, root, options: its arguments; the options, which are keywords, as a JSON object.
        out: folder of the build.
        plan: hash of the plan, which the records carry.
        rows: makes the rows.
        schema: of the file.
        max_bad: more unusable frames than this in one shard end it.
    """

    opener: SourceOpener
    name: str
    root: str
    options: str
    out: str
    plan: str
    rows: RowMaker
    schema: pa.Schema
    max_bad: int


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard's record, beside it as JSON.

    Args:
        file, sha256, bytes: of the Parquet file.
        rows, points: in it.
        short: rows with fewer points than planned, because fewer pixels are valid.
        bad: id and reason of every frame that could not be used.
        plan: hash of the plan it belongs to.
    """

    file: str
    sha256: str
    bytes: int
    rows: int
    points: int
    short: int
    plan: str
    bad: tuple[tuple[str, str], ...] = field(default=())


def write_shard(job: ShardJob, task: ShardTask, advance: Callable[[int], None]) -> ShardRecord:
    """Write one shard and then its record, each first under a temporary name.

    Args:
        job: what all shards share.
        task: the shard.
        advance: called with 1 for each frame that was read.

    Raises:
        TooManyBadFramesError: more than `job.max_bad` frames of this shard cannot be used.
        BuildError: a reader failed in a way that no bad file explains; the message names the frame.
    """
    source = open_once(job.opener, job.name, job.root, job.options)
    folder = Path(job.out)
    temporary = folder / STATE_FOLDER / f"{task.file}.{uuid.uuid4().hex}.tmp"
    bad: list[tuple[str, str]] = []
    rows = points = short = 0
    try:
        with HashedFile(temporary) as file:
            with _ShardFile(file, job.schema) as shard:
                for ref, wanted in zip(task.refs, task.points, strict=True):
                    try:
                        row = job.rows.row(source.read(ref), ref, wanted)
                    except FrameError as error:
                        bad.append((ref.id, _without_root(str(error), job.root)))
                        check_bad(bad, job.max_bad)
                    except MemoryError:
                        raise
                    except Exception as error:
                        raise BuildError(
                            f"Reading the frame {ref.id} of {job.name} failed with {type(error).__name__}: {error}. "
                            "No unreadable file accounts for that: it is a fault of the reader."
                        ) from error
                    else:
                        shard.add(row)
                        rows += 1
                        points += len(row["points"])
                        short += len(row["points"]) < wanted
                    advance(1)
            digest, size = file.sha256.hexdigest(), file.tell()
        os.replace(temporary, folder / task.file)
    finally:
        temporary.unlink(missing_ok=True)
    record = ShardRecord(task.file, digest, size, rows, points, short, job.plan, tuple(bad))
    write_text(record_path(folder, task.file), json.dumps(asdict(record), indent=1, sort_keys=True) + "\n")
    return record


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
    lines = [f"  {one}: {reason}" for one, reason in bad[:20]]
    if len(bad) > len(lines):
        lines.append(f"  and {len(bad) - len(lines)} more")
    raise TooManyBadFramesError(
        "\n".join(
            [
                f"{len(bad)} frame(s) cannot be used, and --max-bad allows {max_bad}:",
                *lines,
                "Mend them, or allow more with --max-bad; finished shards are kept.",
            ]
        )
    )


def record_path(folder: Path, file: str) -> Path:
    """Return the path of a shard's record."""
    return folder / STATE_FOLDER / f"{file}.json"


class HashedFile(io.FileIO):
    """A new file that hashes what is written to it, from beginning to end."""

    def __init__(self, path: Path):
        super().__init__(path, "wb")
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write and hash all of `data`."""
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        written = 0
        while written < len(view):
            written += super().write(view[written:]) or 0
        return written


class _ShardFile:
    """A Parquet file that takes row after row."""

    def __init__(self, file: HashedFile, schema: pa.Schema):
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression="NONE",  # what is large is compressed already
            use_dictionary=_REPEATED_PATHS,
            write_statistics=["id", *_REPEATED],
            write_page_index=True,
        )

    def __enter__(self) -> _ShardFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row["image"]["bytes"]) + len(row["depth"]["bytes"])
        if len(self._rows) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0


@lru_cache(maxsize=1)
def open_once(opener: SourceOpener, name: str, root: str, options: str) -> Source:
    """Open a source once in a process; options as JSON, since lists and dictionaries cannot be cache keys."""
    return opener(name, root, **json.loads(options))


def _without_root(reason: str, root: str) -> str:
    """Reasons are part of the manifest, which is the same on every machine."""
    return reason.replace(root.rstrip("/\\") + os.sep, "")
