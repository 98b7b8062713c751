"""Who writes the shards: this process, a pool of processes, or a Ray cluster. All write the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from .shard_writer import BuildError, ShardJob, ShardRecord, ShardTask, write_shard

Advance = Callable[[int], None]

POLL_SECONDS = 0.2
RAY_RETRIES = 3

# Of a worker process: what all its shards share.
_state: dict[str, Any] = {}


class _Stopped(Exception):
    """The build ends, so this worker's shard is of no use any more."""


def available_cpus() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(job: ShardJob, tasks: Sequence[ShardTask], workers: int, advance: Advance) -> Iterator[ShardRecord]:
    """Writes shards in this process (one worker) or in a pool.

    Args:
        job, tasks: what to write.
        workers: number of processes.
        advance: called now and then with the number of frames read since.

    Yields:
        The record of each shard as it is finished.

    Raises:
        BuildError: see [`write_shard`]; or a worker was killed.
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
    """Writes shards as tasks of a Ray cluster, or of a Ray started here and ended afterwards.

    Every node sees `job.root` and `job.out` under the same paths and has this package. A shard whose worker dies is
    made again, up to three times.

    Args:
        job, tasks: what to write.
        workers: shards in the making at a time; by default as many as the cluster has processors.
        address: of the cluster; None: the one this process is connected to, or a new one on this machine.
        advance: called with the number of frames of each finished shard.

    Yields:
        The record of each shard as it is finished.

    Raises:
        ImportError: Ray is not installed.
        BuildError: see [`write_shard`]; the cluster cannot be reached; or workers died too often.
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
    """Ends this process when the one that started it is gone, even killed: nobody would read what it writes."""
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
