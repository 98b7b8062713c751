"""The manifest of a run: its settings, its shards with their hashes, and the images that failed.

Each shard has a record of its own, `.depthvlm/shards/NAME.json`, written after the shard by the worker that wrote it:
whatever is killed, a recorded shard is complete. `manifest.json` is put together from the records when a run begins and
when it ends.
"""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..result_records import fingerprint
from .storage import STATE, Storage

MANIFEST = "manifest.json"
RECORDS = f"{STATE}/shards"
DATA = "data"  # folder of the shards, where `datasets` looks first
_VERSION = 1
_RECORDS_AT_ONCE = 32


@dataclass
class Done:
    """The finished shards of a run.

    Attributes:
        records: The record of each shard, by number.
    """

    records: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Add the record of a shard."""
        self.records[record["shard"]] = record

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The images that failed, in the order of the listing."""
        return [one for number in sorted(self.records) for one in self.records[number]["failures"]]

    @property
    def rows(self) -> int:
        """Number of predicted images."""
        return sum(record["rows"] for record in self.records.values())

    @property
    def images(self) -> int:
        """Number of images of these shards."""
        return sum(record["images"] for record in self.records.values())

    @property
    def focal_sources(self) -> Counter[str]:
        """Number of predicted images by the origin of their camera."""
        return sum((Counter(record["focal_sources"]) for record in self.records.values()), Counter[str]())

    @property
    def warnings(self) -> list[str]:
        """The warnings of all shards, each once."""
        return list(dict.fromkeys(text for record in self.records.values() for text in record["warnings"]))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a text for each setting that differs, with both values."""
    names = dict.fromkeys([*before, *now])
    return [
        f"{name}: {json.dumps(before.get(name))} there, {json.dumps(now.get(name))} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def begin(out: Storage, settings: Mapping[str, Any]) -> Done:
    """Compare the settings with an earlier run's, and return the shards that are complete.

    Args:
        out: Folder of the results.
        settings: What determines the results; JSON values.

    Raises:
        FileExistsError: The folder has results of other settings, or files without a manifest.
        ValueError: Its manifest cannot be read.
    """
    content = out.read(MANIFEST)
    if content is None:
        if there := [name for name in out.names() if name != STATE]:
            raise FileExistsError(
                f"{out.url} holds {', '.join(there[:5])}{', ...' if len(there) > 5 else ''} and no {MANIFEST}: it is "
                "not the folder of such a run. Choose another --out."
            )
        return Done()
    try:
        before = json.loads(content)["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out.path(MANIFEST)} cannot be read ({type(error).__name__}: {error}): choose another --out."
        ) from None
    if differing := differences(before, settings):
        raise FileExistsError(
            f"{out.url} holds results of other settings:\n  " + "\n  ".join(differing) + "\nGive the same settings to "
            "go on, or choose another --out. Nothing was predicted."
        )
    return read_done(out, fingerprint(settings))


def read_done(out: Storage, made_with: str) -> Done:
    """Return the shards that are complete and were made with these settings.

    Args:
        out: Folder of the results.
        made_with: Fingerprint of the settings.
    """
    there, done = {f"{DATA}/{name}" for name in out.names(DATA)}, Done()
    with ThreadPoolExecutor(_RECORDS_AT_ONCE, "depthvlm-records") as threads:
        for content in threads.map(out.read, [f"{RECORDS}/{name}" for name in out.names(RECORDS)]):
            record = json.loads(content or b"{}")
            is_ours = record.get("settings") == made_with
            if is_ours and (record["name"] in there or not record["rows"]):  # a store has no empty folders
                done.add(record)
    return done


def write_record(out: Storage, record: Mapping[str, Any]) -> None:
    """Write the record of a shard, after its files."""
    out.write(f"{RECORDS}/{Path(record['name']).name}.json", json.dumps(record, indent=1).encode())


def write_manifest(out: Storage, settings: Mapping[str, Any], shards: int, done: Done) -> None:
    """Write the manifest.

    Args:
        out: Folder of the results.
        settings: Settings of the run.
        shards: Number of shards of the whole run.
        done: Those that are complete.
    """
    kept = ("name", "first", "images", "rows", "bytes", "sha256")
    content = {
        "version": _VERSION,
        "complete": len(done.records) == shards,
        "images": settings["source"]["images"],
        "rows": done.rows,
        "failed": len(done.failures),
        "settings": dict(settings),
        "shards": [{name: done.records[number][name] for name in kept} for number in sorted(done.records)],
        "failures": done.failures,
        "focal_sources": dict(done.focal_sources),
        "warnings": done.warnings,
    }
    out.write(MANIFEST, (json.dumps(content, indent=1) + "\n").encode())
