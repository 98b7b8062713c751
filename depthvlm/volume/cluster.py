"""A Ray cluster to run on: connect to one, or start one on this machine; count its workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CPUS_OF_A_WORKER = 0.9


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
        return workers or gpus, {"num_gpus": 1}
    count = workers or max(1, int(cpus) // 2)
    # One CPU at least is left for reading, preparing and writing, without which the workers would wait for ever. With
    # a whole one, as tasks have, Ray Data would prepare and predict in turn in one process.
    share = int(max(0.0, min(_CPUS_OF_A_WORKER, (cpus - 1) / count)) * 100) / 100
    return count, {"num_cpus": share}
