"""From a dataset's download to shards: a plan executed, resumed where it was interrupted, and put on record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from PIL import Image, features

from .manifest import add_to_manifest, build_lock, check_parameters
from .plan import BuildPlan
from .records import RowMaker, benchmark_features, depth_messages
from .shard_writer import (
    STATE_FOLDER,
    BuildError,
    ShardJob,
    ShardRecord,
    SourceOpener,
    check_bad,
    is_intact,
    open_once,
    read_record,
)
from .workers import available_cpus, in_processes, on_ray

Engine = Literal["processes", "ray"]


class BuildEvents(NamedTuple):
    """What a build tells while it runs.

    Args:
        begin: called once, with the number of images and how many of them finished shards have.
        advance: called with numbers of images read since.
        say: called with a line for the user.
    """

    begin: Callable[[int, int], None] = lambda images, done: None
    advance: Callable[[int], None] = lambda count: None
    say: Callable[[str], None] = lambda line: None


def run_build(
    plan: BuildPlan,
    opener: SourceOpener,
    root: str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    engine: Engine = "processes",
    address: str | None = None,
    max_bad: int | None = None,
    retry_bad: bool = False,
    events: BuildEvents | None = None,
) -> dict[str, Any]:
    """Executes a plan, or what is left of it. The bytes depend on neither workers nor engine nor interruptions.

    Args:
        plan: from [`plan_build`].
        opener: makes the source of its name, `root` and the plan's options in each worker; a function of a module, so
            that it can travel.
        root: folder of the download.
        out: folder of the build; builds of other sources and splits may lie there too.
        workers: processes, or shards on Ray at a time; by default one for each processor.
        engine: "processes", or "ray" for several machines.
        address: of a Ray cluster; by default one is started on this machine.
        max_bad: how many frames may be unusable; by default 1 %, at least 10.
        retry_bad: also makes finished shards again that lack a frame.
        events: what to call on the way.

    Returns:
        The entry of the build in `manifest.json`.

    Raises:
        TooManyBadFramesError: more than `max_bad` frames cannot be used.
        BuildError: the folder holds this build with other parameters, or another process is at it; a reader failed;
            a worker was killed; or no frame at all can be used.
    """
    events = events or BuildEvents()
    if engine not in get_args(Engine):
        raise BuildError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}.")
    allowed = plan.default_max_bad if max_bad is None else max_bad
    if allowed < 0 or (workers is not None and workers < 1):
        raise BuildError(f"max_bad must be at least 0 and workers at least 1, got {max_bad} and {workers}.")
    folder = Path(out).resolve()
    (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    with build_lock(folder, plan.name):
        check_parameters(folder, plan.name, plan.parameters, [task.file for task in plan.tasks])
        _remove_unfinished(folder, plan.name)
        records = _finished(plan, folder, retry_bad, events.say)
        rest = [task for task in plan.tasks if task.file not in records]
        events.begin(plan.images, plan.images - sum(len(task.refs) for task in rest))
        check_bad(_bad(plan, records), allowed)
        if rest:
            job = _job(plan, opener, root, folder, allowed)
            if engine == "ray":
                stream = on_ray(job, rest, workers, address, events.advance)
            else:
                stream = in_processes(job, rest, workers or available_cpus(), events.advance)
            for record in stream:
                records[record.file] = record
                check_bad(_bad(plan, records), allowed)
        if not any(record.rows for record in records.values()):
            raise BuildError(f"None of the {plan.images} frames of {plan.name} can be used. {_reasons(plan, records)}")
        _remove_unfinished(folder, plan.name)
        entry = _entry(plan, records)
        add_to_manifest(folder, plan.name, entry)
    return entry


def _job(plan: BuildPlan, opener: SourceOpener, root: str | Path, folder: Path, max_bad: int) -> ShardJob:
    open_once.cache_clear()  # what an earlier build of this process opened may have changed since
    name = plan.source.name
    rows = RowMaker(name, plan.split, plan.depth_range, plan.parameters["seed"], depth_messages())
    schema = benchmark_features().arrow_schema
    options = json.dumps(plan.parameters["options"])
    return ShardJob(opener, name, str(Path(root).resolve()), options, str(folder), plan.hash, rows, schema, max_bad)


def _finished(plan: BuildPlan, folder: Path, retry_bad: bool, say: Callable[[str], None]) -> dict[str, ShardRecord]:
    """The records of finished shards, whose bytes are what the records say."""
    found = [record for task in plan.tasks if (record := read_record(folder, task.file, plan.hash))]
    if retry_bad:
        found = [record for record in found if not record.bad]
    records = {}
    with ThreadPoolExecutor(available_cpus()) as pool:
        for record, intact in zip(found, pool.map(lambda one: is_intact(folder, one), found), strict=True):
            if intact:
                records[record.file] = record
            else:
                say(f"{record.file} is not what its record says: it is made again.")
    if records:
        say(f"{len(records)} of {len(plan.tasks)} shards are there.")
    return records


def _remove_unfinished(folder: Path, name: str) -> None:
    """What killed workers have left; one that still writes has its file open, and its shard is made again."""
    for begin in (f"{name}-", f".{name}-", f"{name}.jsonl."):
        for path in (folder / STATE_FOLDER).glob(f"{begin}*.tmp"):
            path.unlink(missing_ok=True)


def _bad(plan: BuildPlan, records: dict[str, ShardRecord]) -> list[tuple[str, str]]:
    return [one for task in plan.tasks if task.file in records for one in records[task.file].bad]


def _reasons(plan: BuildPlan, records: dict[str, ShardRecord]) -> str:
    counts = Counter(reason for _, reason in _bad(plan, records))
    return "; ".join(f"{count}: {reason}" for reason, count in counts.most_common(5))


def _entry(plan: BuildPlan, records: dict[str, ShardRecord]) -> dict[str, Any]:
    """What the manifest says of a build; nothing in it tells one machine, or one run, from another."""
    done = [records[task.file] for task in plan.tasks]
    bad = _bad(plan, records)
    refs = [ref for task in plan.tasks for ref in task.refs]
    wanted = plan.parameters["num_images"]
    rows = sum(record.rows for record in done)
    notes = list(plan.notes)
    if wanted is not None and plan.images < wanted:
        notes.append(f"{wanted} images were asked for, the source has {plan.available}: all are taken.")
    if bad:
        notes.append(f"{len(bad)} frame(s) cannot be used: left out, none is replaced.")
    if wanted is not None and rows < wanted:
        notes.append(f"{wanted} images were asked for, {rows} are written.")
    short = sum(record.short for record in done)
    if short:
        notes.append(f"{short} images have fewer valid pixels than points were asked for: all of those are taken.")
    return {
        "source": plan.source.name,
        "title": plan.source.title,
        "split": plan.split,
        "licence": plan.source.licence,
        "homepage": plan.source.homepage,
        "depth_range": list(plan.depth_range),
        "sparse": plan.source.sparse,
        "parameters": plan.parameters,
        "counts": {
            "available": plan.available,
            "planned": plan.images,
            "rows": rows,
            "bad": len(bad),
            "points": sum(record.points for record in done),
            "short_of_points": short,
            "bytes": sum(record.bytes for record in done),
            "scenes": len({ref.scene for ref in refs}),
            "cameras": len({ref.camera for ref in refs}),
        },
        "notes": notes,
        "shards": [
            {"file": one.file, "sha256": one.sha256, "bytes": one.bytes, "rows": one.rows, "points": one.points}
            for one in done
        ],
        "bad_frames": [{"id": one, "reason": reason} for one, reason in bad],
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    """Of what decides about the bytes."""
    return {
        "depthvlm": metadata.version("depthvlm"),
        "numpy": np.__version__,
        "pillow": Image.__version__,
        "pyarrow": pa.__version__,
        "zlib": features.version("zlib"),
    }
