"""Shards: rows in a parquet file, or the files of `depthvlm predict` in a folder; with a record of what is in them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import file_hash
from .manifest import DATA, write_record
from .storage import Storage

_GROUP_BYTES = 64 * 2**20  # of a row group: what a reader holds for one row
_MOST_WARNINGS = 20  # kept of a shard


def schema() -> pa.Schema:
    """Return the columns of a shard; `datasets` decodes `depth` to a 16-bit picture."""
    from datasets import Features, Image, Value

    camera = {name: Value("float64") for name in ("fx", "fy", "cx", "cy")}
    return Features(
        {
            "index": Value("int64"),
            "id": Value("string"),
            "source": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "depth": Image(),
            "depth_scale": Value("int32"),
            "clipped_pixels": Value("int64"),
            "camera": camera,
            "focal_source": Value("string"),
            "min": Value("float64"),
            "median": Value("float64"),
            "max": Value("float64"),
        }
    ).arrow_schema


def shard_name(shard: int, shards: int, as_folder: bool) -> str:
    """Return the name of a shard's file or folder."""
    return f"{DATA}/train-{shard:05d}-of-{shards:05d}{'' if as_folder else '.parquet'}"


def write_shard(
    out: str, shard: int, shards: int, rows: Sequence[dict[str, Any]], as_folder: bool, made_with: str
) -> dict[str, Any]:
    """Write a shard under a temporary name, rename it, then write its record; return the record.

    Args:
        out: Folder or URL of the results.
        shard: Its number.
        shards: Number of shards of the run.
        rows: Its images in order, see `stages.encode`; those with a `problem` go to the record alone.
        as_folder: Write the images' `files` to a folder, in place of a parquet file.
        made_with: Fingerprint of the settings.
    """
    storage, name = Storage(out), shard_name(shard, shards, as_folder)
    good = [row for row in rows if row["problem"] is None]
    with TemporaryDirectory(prefix="depthvlm-") as folder:
        place = Path(folder) / Path(name).name
        if as_folder:
            sha256, size = _write_files(place, good)
        else:
            _write_parquet(place, good)
            sha256, size = file_hash(place), place.stat().st_size
        storage.put(place, name)
    texts = list(dict.fromkeys(text for row in rows for text in row["warnings"]))
    more = (
        [f"... and {len(texts) - _MOST_WARNINGS} more such warnings in {name}."] if len(texts) > _MOST_WARNINGS else []
    )
    record = {
        "shard": shard,
        "name": name,
        "settings": made_with,
        "first": rows[0]["index"],
        "images": len(rows),
        "rows": len(good),
        "bytes": size,
        "sha256": sha256,
        "focal_sources": dict(Counter(row["focal_source"] for row in good)),
        "failures": [
            {"index": row["index"], "id": row["id"], "source": row["source"], "reason": row["problem"]}
            for row in rows
            if row["problem"] is not None
        ],
        "warnings": texts[:_MOST_WARNINGS] + more,
    }
    write_record(storage, record)
    return record


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = schema()
    with pq.ParquetWriter(path, columns, compression="NONE", write_page_index=True) as writer:  # PNG is compressed
        group, size = list[dict[str, Any]](), 0
        for row in rows:
            group.append({name: row[name] for name in columns.names})
            size += len(row["depth"]["bytes"])
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, columns))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, columns))


def _write_files(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """Write the files of all images; return a hash of their names and hashes, and their bytes."""
    folder.mkdir()
    digest, size = hashlib.sha256(), 0
    for row in rows:
        for name, content in row["files"].items():
            (folder / name).write_bytes(content)
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
            size += len(content)
    return digest.hexdigest(), size
