"""A Ray cluster to run on: connect to one, or start one on this machine; count its workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TASK_STAGES = 4  # without a model: list, prepare, encode, write


def require_ray() -> Any:
    """Return the package `ray`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('The engine "ray" needs Ray: pip install "depthvlm[ray]"') from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine and end it afterwards; yield the package `ray`.

    Args:
        address: Address of a cluster, `auto` for the one that this machine belongs to; None: start one.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no such cluster.
    """
    ray = require_ray()
    begun_here = not ray.is_initialized()
    if begun_here:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address is None:
            # Ray would report the use of what it starts to its makers; nobody has asked for that.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False}
        # Ray Data makes Ray's core print an error about actors' arguments in every run, although it keeps them.
        level = os.environ.get("RAY_BACKEND_LOG_LEVEL")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConnectionError(f"No Ray cluster can be reached at {address or 'this machine'}: {error}") from error
        finally:
            if level is None:
                del os.environ["RAY_BACKEND_LOG_LEVEL"]
    try:
        yield ray
    finally:
        if begun_here:
            ray.shutdown()


def worker_resources(available: dict[str, float], device: str, workers: int | None) -> tuple[int, dict[str, float]]:
    """Return the number of workers with the model, and what each takes of the cluster.

    Args:
        available: Resources of the cluster, as `ray.cluster_resources()` names them.
        device: `cuda`, `cpu`, or `auto` for GPUs if the cluster has some.
        workers: Number of workers; None: one a GPU, or half as many as there are CPUs.

    Raises:
        ValueError: The cluster has fewer GPUs.
    """
    cpus, gpus = available.get("CPU", 1.0), int(available.get("GPU", 0))
    if device == "cuda" or (device == "auto" and gpus):
        if (workers or 1) > gpus:
            raise ValueError(f"{workers or 1} worker(s) on GPUs are asked for, and the cluster has {gpus}: one a GPU.")
        return workers or gpus, {"num_gpus": 1, "num_cpus": 0}  # else Ray Data takes a CPU, perhaps the last
    count = workers or max(1, int(cpus) // 2)
    # One CPU at least is left for reading, preparing and writing, without which the workers would wait for ever.
    return count, {"num_cpus": _share(0.0, (cpus - 1) / count)}


def task_resources(
    available: dict[str, float], count: int, each: dict[str, float]
) -> tuple[int, dict[str, float], dict[str, float]]:
    """Return the number of tasks that each of the other stages runs at once, and what a task and a writer take.

    Ray Data serves the first stages first. Where CPUs are few, tasks of a whole CPU would run stage after stage:
    nothing would be written before everything is predicted, and a stopped run would have nothing to go on from.

    Args:
        available: Resources of the cluster, as `ray.cluster_resources()` names them.
        count: Number of workers with the model.
        each: What each of them takes.
    """
    left = available.get("CPU", 1.0) - count * each["num_cpus"]
    share = _share(0.02, left / _TASK_STAGES)
    # Ray Data runs neighbours that take the same in turn in one process, and counts their rows in common.
    if share == each["num_cpus"]:
        share -= 0.01
    return max(1, int(left)), {"num_cpus": share}, {"num_cpus": share / 2}


def _share(least: float, cpus: float) -> float:
    """Return a share of one CPU in hundredths, rounded down."""
    return int(max(least, min(1.0, cpus)) * 100) / 100
