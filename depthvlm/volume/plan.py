"""The plan of a run: fixed slices of the listing, as a parquet file that Ray Data streams."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..inputs import is_url, result_stems
from .sources import Entry

_ENTRY = pa.struct([("location", pa.string()), ("first", pa.int64()), ("rows", pa.int64())])
PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("first", pa.int64()),  # number of the chunk's first image in the listing
        ("entries", pa.list_(_ENTRY)),
        ("stems", pa.list_(pa.string())),  # names of the images' files
    ]
)
_SHARDS_A_GROUP = 16


@dataclass(frozen=True)
class PlanSummary:
    """The size of a plan.

    Attributes:
        images: Number of images.
        shards: Number of shards.
        sha256: Hash of the listing: equal for equal names, rows and order.
    """

    images: int
    shards: int
    sha256: str


def write_plan(path: Path, entries: Iterable[Entry], shard_rows: int, chunk_rows: int) -> PlanSummary:
    """Write the chunks of all shards, in order, with memory for a few shards.

    Args:
        path: The file to write.
        entries: The listing.
        shard_rows: Images of a shard; the last one has fewer.
        chunk_rows: Images that are grouped by size with each other; a divisor of `shard_rows`.

    Raises:
        ValueError: The listing is empty, or `chunk_rows` does not divide `shard_rows`.
    """
    if shard_rows % chunk_rows:
        raise ValueError(f"A shard of {shard_rows} images does not consist of whole chunks of {chunk_rows}.")
    digest, images, shards, waiting = hashlib.sha256(), 0, 0, list[dict[str, Any]]()
    with pq.ParquetWriter(path, PLAN_SCHEMA, compression="zstd") as writer:
        for shard, slices in enumerate(_slices(entries, shard_rows)):
            chunks = list(_chunks(shard, slices, shard_rows, chunk_rows))
            for chunk in chunks:
                digest.update(json.dumps(chunk["entries"]).encode())
            waiting += chunks
            shards, images = shard + 1, images + sum(one.rows for one in slices)
            if shards % _SHARDS_A_GROUP == 0:
                writer.write_table(pa.Table.from_pylist(waiting, PLAN_SCHEMA))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, PLAN_SCHEMA))
    if not images:
        raise ValueError("There are no images to predict: the tables have no rows.")
    return PlanSummary(images, shards, digest.hexdigest())


def _slices(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Yield consecutive entries of `size` images together, dividing tables where necessary."""
    group: list[Entry] = []
    free = size
    for entry in entries:
        first, rows = entry.first, entry.rows
        while rows:
            taken = min(rows, free)
            group.append(Entry(entry.location, first, taken))
            first, rows, free = first + taken, rows - taken, free - taken
            if not free:
                yield group
                group, free = [], size
    if group:
        yield group


def _chunks(shard: int, entries: list[Entry], shard_rows: int, chunk_rows: int) -> Iterator[dict[str, Any]]:
    first = shard * shard_rows
    stems = _stems(entries, first)
    for chunk in _slices(entries, chunk_rows):
        rows = sum(one.rows for one in chunk)
        stored = [{"location": one.location, "first": one.first, "rows": one.rows} for one in chunk]
        begin = first - shard * shard_rows
        yield {"shard": shard, "first": first, "entries": stored, "stems": stems[begin : begin + rows]}
        first += rows


def _stems(entries: list[Entry], first: int) -> list[str]:
    """Return the names of the files of a shard's images: of image files their own, of rows their numbers."""
    places = [one.location for one in entries if one.first < 0]
    named = iter(result_stems([place if is_url(place) else Path(place) for place in places]))
    stems: list[str] = []
    for one in entries:
        begin = first + len(stems)
        stems += [next(named)] if one.first < 0 else [f"{begin + offset:09d}" for offset in range(one.rows)]
    return stems
