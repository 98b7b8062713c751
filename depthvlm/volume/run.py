"""A run: list, plan, compare with what is there, and stream the shards that are missing through Ray Data."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from ..checkpoint import resolve_model_path, split_revision, weights_identity
from ..result_records import fingerprint
from . import manifest
from .cluster import connected, require_ray, task_resources, worker_resources
from .plan import PlanSummary, write_plan
from .sources import Listing
from .stages import CHUNK_BATCHES, Job, Predict, encode, prepare, write
from .storage import STATE, Storage

_PLAN = f"{STATE}/plan.parquet"


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        sources: See `Listing`.
        out: Folder of the results, or its URL.
        model: Folder or Hub name of a model.
        camera: `focal_length`, `fov` or `intrinsics` for all images.
        formats: Files of each image; None: shards in parquet.
        device: `auto`, `cpu` or `cuda`.
        dtype: See `load`.
        allow_untrained_head: See `load`.
        batch_size: Images in a batch.
        shard_rows: Images of a shard.
        max_image_pixels: A larger image is an error.
        image_column: See `Listing`.
        split: See `Listing`.
        workers: Number of workers with the model; None: see `worker_resources`.
        address: Address of a cluster; None: one on this machine.
    """

    sources: Sequence[str]
    out: str
    model: str
    camera: dict[str, Any]
    formats: tuple[str, ...] | None = None
    device: str = "auto"
    dtype: str = "auto"
    allow_untrained_head: bool = False
    batch_size: int = 4
    shard_rows: int = 256
    max_image_pixels: int = 250_000_000
    image_column: str | None = None
    split: str | None = None
    workers: int | None = None
    address: str | None = None


class Run:
    """A planned run.

    Args:
        request: What is asked for.

    Raises:
        ImportError: Ray is not installed.
        ValueError: The source holds nothing to predict, or an option does not fit.
        FileExistsError: The folder holds other results.
        OSError: Something cannot be read or written.

    Attributes:
        summary: Size of the plan.
        done: The shards that are complete.
        passed_over: Number of files in folders that are neither images nor tables.
    """

    summary: PlanSummary
    done: manifest.Done

    def __init__(self, request: Request):
        require_ray()
        chunk = request.batch_size * CHUNK_BATCHES
        if request.shard_rows % chunk:
            raise ValueError(
                f"--shard-rows must be a multiple of {CHUNK_BATCHES} times --batch-size, {chunk} here, so that images "
                f"share batches as in a single process; got {request.shard_rows}."
            )
        self.request, self.out = request, Storage(request.out)
        listing = Listing(request.sources, request.image_column, request.split)
        with TemporaryDirectory(prefix="depthvlm-") as folder:
            plan = Path(folder) / "plan.parquet"
            self.summary = write_plan(plan, listing, request.shard_rows, chunk)
            given = [name for name, value in request.camera.items() if value is not None]
            if given and listing.columns and listing.columns.cameras:
                raise ValueError(
                    f"The tables have the column {listing.columns.cameras[0]}, and --{given[0].replace('_', '-')} "
                    "names the camera too: leave one of them out."
                )
            self.passed_over = listing.passed_over
            weights = weights_identity(request.model)
            self.settings = self._settings(weights, listing)
            self.done = manifest.begin(self.out, self.settings)
            self.out.put(plan, _PLAN)
        self.job = Job(
            out=self.out.url,
            made_with=fingerprint(self.settings),
            images=self.summary.images,
            shard_rows=request.shard_rows,
            shards=self.summary.shards,
            columns=listing.columns,
            model=_at_commit(request.model, weights),
            name=request.model,
            device=request.device,
            dtype=request.dtype,
            allow_untrained_head=request.allow_untrained_head,
            camera=tuple(request.camera.items()),
            batch_size=request.batch_size,
            max_image_pixels=request.max_image_pixels,
            formats=request.formats,
        )
        self.save()

    def _settings(self, weights: str, listing: Listing) -> dict[str, Any]:
        request, summary = self.request, self.summary
        columns = listing.columns.names if listing.columns else None
        return {
            "source": {
                "arguments": list(request.sources),
                "split": request.split,
                "columns": columns,
                "images": summary.images,
                "sha256": summary.sha256,
            },
            "model": request.model,
            "weights": weights,
            "dtype": request.dtype,
            **request.camera,
            "formats": None if request.formats is None else list(request.formats),
            "batch_size": request.batch_size,
            "shard_rows": request.shard_rows,
            "max_image_pixels": request.max_image_pixels,
        }

    @property
    def is_complete(self) -> bool:
        """True if all shards are there."""
        return len(self.done.records) == self.summary.shards

    def save(self) -> None:
        """Write the manifest with the shards that are complete."""
        manifest.write_manifest(self.out, self.settings, self.summary.shards, self.done)

    def predict(self, on_shard: Callable[[dict[str, Any]], None], on_start: Callable[[int, str], None]) -> None:
        """Predict what is missing.

        Args:
            on_shard: Called with the record of each shard that is finished.
            on_start: Called with the number of workers and what each takes.

        Raises:
            ConnectionError: There is no such cluster.
            ValueError: The cluster has fewer GPUs than workers, or a worker cannot load the model.
        """
        with connected(self.request.address) as ray:
            count, each = worker_resources(ray.cluster_resources(), self.request.device, self.request.workers)
            on_start(count, "a GPU" if "num_gpus" in each else f"{each['num_cpus']:g} CPUs")
            try:
                for row in self._pipeline(ray, count, each).iter_rows():
                    record = json.loads(row["record"])
                    self.done.add(record)
                    on_shard(record)
            except ray.exceptions.RayError as error:
                raise _cause(error) from None
        self.out.remove_partial_files()

    def _pipeline(self, ray: Any, count: int, each: dict[str, float]) -> Any:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True  # so that consecutive images are those of one shard
        context.enable_progress_bars = False
        finished = frozenset(self.done.records)
        tasks, task, writer = task_resources(ray.cluster_resources(), count, each)
        at_once = {"compute": ray.data.TaskPoolStrategy(size=tasks)}
        job = replace(self.job, device="cuda" if "num_gpus" in each else "cpu")
        return (
            ray.data.read_parquet(self.out.path(_PLAN), filesystem=PyFileSystem(FSSpecHandler(self.out.fs)))
            .map_batches(partial(_missing, finished=finished), batch_format="pyarrow", batch_size=None)
            .repartition(target_num_rows_per_block=1)  # a chunk a task
            .map_batches(prepare, fn_kwargs={"job": job}, batch_size=1, **task, **at_once)
            .map_batches(
                Predict,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                **each,
            )
            .map_batches(encode, fn_kwargs={"job": job}, batch_size=1, **task, **at_once)
            # Chunks, and so blocks, end where shards end: a task gets those of one shard.
            .map_batches(
                write,
                fn_kwargs={"job": job},
                batch_size=job.shard_rows,
                batch_format="pyarrow",
                zero_copy_batch=True,
                **writer,
                **at_once,
            )
        )


def _missing(chunks: Any, finished: frozenset[int]) -> Any:
    """Return the chunks of shards that are not finished."""
    return chunks.filter([shard not in finished for shard in chunks.column("shard").to_pylist()])


def _at_commit(model: str, weights: str) -> str:
    """Return the model with its commit if it is on the Hub, so that every worker loads the same."""
    folder = Path(resolve_model_path(model))
    return str(folder.resolve()) if folder.is_dir() else f"{split_revision(model)[0]}@{weights}"


def _cause(error: Any) -> BaseException:
    """Return the innermost error of a worker; of one that ended as it began, the last line of what it said."""
    if not hasattr(error, "cause"):
        return ValueError(f"A worker ended. {str(error).strip().splitlines()[-1]}")
    cause: BaseException = error
    while isinstance(getattr(cause, "cause", None), BaseException):
        cause = cause.cause  # type: ignore[attr-defined]
    return cause
