"""From a dataset's download to shards: a plan executed, resumed where it was interrupted, and recorded."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from PIL import Image, features

from ...files import file_hash
from .plan import BuildPlan
from .records import RowMaker, benchmark_features, depth_messages
from .shard_writer import (
    STATE_FOLDER,
    BuildError,
    ShardJob,
    ShardRecord,
    ShardTask,
    SourceOpener,
    check_bad,
    open_once,
    read_record,
    write_shard,
)
from .shards import add_to_manifest, available_cpus, build_lock, check_parameters

Advance = Callable[[int], None]
Engine = Literal["processes", "ray"]


POLL_SECONDS = 0.2
RAY_RETRIES = 3

# State of a worker process that all its shards share.
_state: dict[str, Any] = {}


class BuildEvents(NamedTuple):
    """Callbacks of a running build."""

    # called once, with the number of images and how many of them finished shards have
    begin: Callable[[int, int], None] = lambda images, done: None
    advance: Callable[[int], None] = lambda count: None  # called with numbers of images read since
    say: Callable[[str], None] = lambda line: None  # called with a line for the user


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
    """Execute a plan, or the rest of it. The bytes depend on neither workers nor engine nor interruptions.

    Args:
        plan: From [`plan_build`].
        opener: Makes the source of its name, `root` and the plan's options in each worker; a function of a module, so
            that it can travel.
        root: Folder of the download.
        out: Folder of the build; builds of other sources and splits may be there too.
        workers: Processes, or shards on Ray at a time; by default one for each processor.
        engine: "processes", or "ray" for several machines.
        address: Address of a Ray cluster; by default one is started on this machine.
        max_bad: Number of frames that may be unusable; by default 1 %, at least 10.
        retry_bad: Also rebuilds finished shards that lack a frame.
        events: Callbacks.

    Returns:
        The entry of the build in `manifest.json`.

    Raises:
        TooManyBadFramesError: More than `max_bad` frames cannot be used.
        BuildError: The folder holds this build with other parameters, or another process builds it; a reader failed;
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
            counts = Counter(reason for _, reason in _bad(plan, records)).most_common(5)
            reasons = "; ".join(f"{count}: {reason}" for reason, count in counts)
            raise BuildError(f"None of the {plan.images} frames of {plan.name} can be used. {reasons}")
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
    """Return the records of finished shards whose bytes are what the records say."""
    found = [record for task in plan.tasks if (record := read_record(folder, task.file, plan.hash))]
    if retry_bad:
        found = [record for record in found if not record.bad]
    with ThreadPoolExecutor(available_cpus()) as pool:
        hashes = list(pool.map(lambda record: file_hash(folder / record.file), found))
    records = {record.file: record for record, digest in zip(found, hashes, strict=True) if record.sha256 == digest}
    for record in found:
        if record.file not in records:
            say(f"{record.file} is not what its record says: it is made again.")
    if records:
        say(f"{len(records)} of {len(plan.tasks)} shards are there.")
    return records


def _remove_unfinished(folder: Path, name: str) -> None:
    """Remove what killed workers left; one that still writes has its file open, and its shard is made again."""
    for path in (folder / STATE_FOLDER).glob(f"{name}-*.tmp"):
        path.unlink(missing_ok=True)


def _bad(plan: BuildPlan, records: dict[str, ShardRecord]) -> list[tuple[str, str]]:
    return [one for task in plan.tasks if task.file in records for one in records[task.file].bad]


def _entry(plan: BuildPlan, records: dict[str, ShardRecord]) -> dict[str, Any]:
    """Make a build's entry of the manifest; nothing in it tells one machine, or one run, from another."""
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
        # Of what affects the output bytes.
        "versions": {
            "depthvlm": metadata.version("depthvlm"),
            "numpy": np.__version__,
            "pillow": Image.__version__,
            "pyarrow": pa.__version__,
            "zlib": features.version("zlib"),
        },
    }


class _Stopped(Exception):
    """The build ends, so this worker's shard is of no use any more."""


def in_processes(job: ShardJob, tasks: Sequence[ShardTask], workers: int, advance: Advance) -> Iterator[ShardRecord]:
    """Write shards in this process (one worker) or in a pool; `advance` is called with the number of frames since.

    Yields:
        The record of each shard as it is finished.

    Raises:
        BuildError: See [`write_shard`]; or a worker was killed.
    """
    if workers == 1:
        for task in tasks:
            yield write_shard(job, task, advance)
        return
    # Forking would copy locks that threads of this process hold.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), context, initializer=_begin_worker, initargs=(job, counter, stop)
    )
    try:
        waiting: set[Future[ShardRecord]] = {pool.submit(_write_in_worker, task) for task in tasks}
        seen = 0
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            read = counter.value
            advance(read - seen)
            seen = read
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise BuildError(
            "A worker process was killed, perhaps because memory ran out. Finished shards are kept: run the same "
            "command again to go on, with fewer --workers if it happens again."
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def on_ray(
    job: ShardJob, tasks: Sequence[ShardTask], workers: int | None, address: str | None, advance: Advance
) -> Iterator[ShardRecord]:
    """Write shards as tasks of a Ray cluster, or of a Ray started here and ended afterwards.

    Every node sees `job.root` and `job.out` under the same paths and has this package. A shard whose worker dies is
    retried, up to three times.

    Args:
        job: Settings that all shards share.
        tasks: Shards to write.
        workers: Shards in progress at a time; by default as many as the cluster has processors.
        address: Address of the cluster; None: the one this process is connected to, or a new one on this machine.
        advance: Called with the number of frames of each finished shard.

    Yields:
        The record of each shard as it is finished.

    Raises:
        ImportError: Ray is not installed.
        BuildError: See [`write_shard`]; the cluster cannot be reached; or workers died too often.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('The engine "ray" needs Ray: pip install "depthvlm[ray]"') from error

    begun_here = not ray.is_initialized()
    if begun_here:
        _connect(ray, workers, address)
    try:
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        shared = ray.put(job)
        remote = ray.remote(num_cpus=1, max_retries=RAY_RETRIES)(_write_on_ray)
        rest = list(reversed(tasks))
        running: dict[Any, ShardTask] = {}
        while rest or running:
            while rest and len(running) < limit:
                task = rest.pop()
                running[remote.remote(shared, task)] = task
            ready, _ = ray.wait(list(running), num_returns=1)
            task = running.pop(ready[0])
            try:
                record = ray.get(ready[0])
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
                raise BuildError(
                    f"The worker of {task.file} died {RAY_RETRIES + 1} times, perhaps because memory ran out. Finished "
                    "shards are kept: run the same command again to go on, with fewer --workers if it happens again."
                ) from None
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, BuildError) else error) from None
            advance(len(task.refs))
            yield record
    finally:
        if begun_here:
            ray.shutdown()


def _connect(ray: Any, workers: int | None, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address is None:
        # Ray would report the use of what it starts to its makers; nobody has asked for that.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = "local"
        options |= {"num_cpus": workers or available_cpus(), "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BuildError(f"No Ray cluster can be reached at {address}: {error}") from error


def _write_on_ray(job: ShardJob, task: ShardTask) -> ShardRecord:
    return write_shard(job, task, lambda count: None)


def _begin_worker(job: ShardJob, counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state.update(job=job, counter=counter, stop=stop)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even killed: nobody would read what it writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _write_in_worker(task: ShardTask) -> ShardRecord:
    return write_shard(_state["job"], task, _advance_in_worker)


def _advance_in_worker(count: int) -> None:
    if _state["stop"].is_set():
        raise _Stopped
    with _state["counter"].get_lock():
        _state["counter"].value += count
