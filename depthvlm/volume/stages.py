"""The stages of a run, as Ray Data calls them: prepare on CPUs, predict, encode on CPUs, write.

Prepared batches and predictions travel between them pickled, one batch a row; from `encode` on, one image a row.
"""

import json
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from ..batches import BatchRun, PreparedBatch, batches_by_size
from ..export import write_png16
from ..inference import load
from ..inputs import is_url
from ..loading import load_processor
from ..prediction import Prediction
from ..processing import DepthVLMProcessor
from .reading import Item, read_items
from .shards import write_shard
from .sources import Columns, Entry

_WITH_PICTURE = {"ply", "glb"}  # formats that need the picture's own colours
CHUNK_BATCHES = 8  # batches grouped by size with each other, as in a single process


@dataclass(frozen=True)
class Job:
    """What all stages of a run share.

    Attributes:
        out: Folder or URL of the results.
        made_with: Fingerprint of the settings.
        images: Number of images of the whole run.
        shard_rows: Images of a shard.
        shards: Number of shards.
        columns: Columns of the tables; None without tables.
        model: Model that is loaded, at a commit if it is on the Hub.
        name: Its name in results.
        device: Device of the workers.
        dtype: The dtype.
        allow_untrained_head: See `load`.
        camera: One `focal_length`, `fov` or `intrinsics` for all images; pairs of name and value.
        batch_size: Images in a batch.
        max_image_pixels: A larger image is an error.
        formats: Files of each image, those of `Prediction.save`; None: shards in parquet.
    """

    out: str
    made_with: str
    images: int
    shard_rows: int
    shards: int
    columns: Columns | None
    model: str
    name: str
    device: str
    dtype: str
    allow_untrained_head: bool
    camera: tuple[tuple[str, Any], ...]
    batch_size: int
    max_image_pixels: int
    formats: tuple[str, ...] | None

    @property
    def with_pictures(self) -> bool:
        """True if the pictures must reach the writers."""
        return bool(_WITH_PICTURE.intersection(self.formats or ()))


@dataclass
class Image:
    """One image on its way, without its pixels.

    Attributes:
        index: Its number in the listing.
        id: Its name.
        source: Its file, or its table and row.
        stem: Start of its files' names.
        entry: Where to read it again.
        problem: Why it failed.
        warnings: Warnings about it.
    """

    index: int
    id: str
    source: str
    stem: str
    entry: Entry
    problem: str | None = None
    warnings: list[str] = field(default_factory=list)


def prepare(batch: dict[str, Any], job: Job) -> Iterator[dict[str, list[Any]]]:
    """Read, decode and resize the images of chunks, and yield prepared batches of similar sizes.

    A batch that fails is prepared image by image.

    Args:
        batch: Rows of the plan, see `PLAN_SCHEMA`.
        job: The run.
    """
    for shard, first, stored, stems in zip(
        *(batch[name] for name in ("shard", "first", "entries", "stems")), strict=True
    ):
        entries = [Entry(one["location"], int(one["first"]), int(one["rows"])) for one in stored]
        items = read_items(entries, job.columns)
        places = [
            Entry(entry.location, entry.first + offset if entry.first >= 0 else -1)
            for entry in entries
            for offset in range(entry.rows)
        ]
        images = [
            Image(int(first) + offset, item.id, item.source, str(stem), place, item.problem)
            for offset, (item, stem, place) in enumerate(zip(items, stems, places, strict=True))
        ]
        for group, prepared in _prepared(images, items, job):
            yield {"shard": [int(shard)], "work": [pickle.dumps((group, prepared))]}


def _prepared(
    images: Sequence[Image], items: Sequence[Item], job: Job
) -> Iterator[tuple[list[Image], PreparedBatch | None]]:
    """Yield images with what the model takes of them; None for images that failed."""
    usable = [number for number, item in enumerate(items) if item.problem is None]
    if broken := [image for image in images if image.problem is not None]:
        yield broken, None
    run = _run([items[number] for number in usable], job)
    for batch in batches_by_size([items[number].image for number in usable], job.batch_size):
        group = [images[usable[position]] for position in batch]
        try:
            yield group, _prepare_one(run, batch, group, job)
        except Exception as error:
            if len(batch) == 1:
                _fail(group[0], error, list(batch))
                yield group, None
                continue
            for position, image in zip(batch, group, strict=True):
                try:
                    prepared = _prepare_one(run, {position: batch[position]}, [image], job)
                except Exception as reason:
                    _fail(image, reason, [position])
                    prepared = None
                yield [image], prepared


def _prepare_one(run: BatchRun, batch: dict[int, Any], group: Sequence[Image], job: Job) -> PreparedBatch:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        prepared = run.prepare(batch)
    for warning in caught:
        group[0].warnings.append(_named(str(warning.message), group, list(batch)))
    if not job.with_pictures:
        prepared = replace(prepared, pictures=[None] * len(group))  # type: ignore[list-item]
    return prepared


def _fail(image: Image, error: Exception, numbers: Sequence[int] = ()) -> None:
    image.problem = _named(str(error) or type(error).__name__, [image], numbers)


def _named(text: str, group: Sequence[Image], numbers: Sequence[int] = ()) -> str:
    """Return a message with the images' sources in place of their numbers."""
    for number, image in zip(numbers, group, strict=False):
        text = text.replace(f"Image {number}:", f"{image.source}:").replace(f"Image {number} ", f"{image.source} ")
    return text


@lru_cache(maxsize=1)
def _processor(model: str) -> tuple[Any, DepthVLMProcessor]:
    """Return what prepares images in this process: the configuration in place of the model, and the processor."""
    processor, config = load_processor(model)
    return SimpleNamespace(config=config), processor


def _run(items: Sequence[Item], job: Job) -> BatchRun:
    names = ("focal_length", "fov", "intrinsics")
    cameras = {name: [item.camera.get(name, dict(job.camera).get(name)) for item in items] for name in names}
    return BatchRun(*_processor(job.model), job.name, cameras, None, {}, job.max_image_pixels, None)


class Predict:
    """A worker with the model.

    Args:
        job: The run.
    """

    def __init__(self, job: Job):
        self.job = job
        self.predictor = load(job.model, job.device, job.dtype, allow_untrained_head=job.allow_untrained_head)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Predict prepared batches; of a batch that fails, each image by itself."""
        for shard, work in zip(batch["shard"], batch["work"], strict=True):
            group, prepared = pickle.loads(work)
            yield {"shard": [int(shard)], "work": [pickle.dumps(self._outcomes(group, prepared))]}

    def _outcomes(self, group: list[Image], prepared: PreparedBatch | None) -> list[tuple[Image, Prediction | None]]:
        if prepared is None:
            return [(image, None) for image in group]
        try:
            return list(zip(group, self._predict(prepared), strict=True))
        except Exception as error:
            if len(group) == 1:
                _fail(group[0], error)
                return [(group[0], None)]
        outcomes = []
        for image in group:  # outside the except clause, which would keep the batch in memory
            [(_, alone)] = _prepared([image], read_items([image.entry], self.job.columns), self.job)
            outcomes += self._outcomes([image], alone)
        return outcomes

    def _predict(self, prepared: PreparedBatch) -> list[Prediction]:
        network, processor = self.predictor.model, self.predictor.processor
        run = BatchRun(network, processor, self.job.name, {}, None, {}, self.job.max_image_pixels, None)
        run.warned_assumed = True  # the driver says it once for all
        return run.predict(dict.fromkeys(range(len(prepared.labels))), prepared)


def encode(batch: dict[str, Any], job: Job) -> Iterator[dict[str, list[Any]]]:
    """Encode predictions as the files or the row that is written, one image a row.

    Args:
        batch: Pickled outcomes.
        job: The run.
    """
    for shard, work in zip(batch["shard"], batch["work"], strict=True):
        for image, prediction in pickle.loads(work):
            row = {"index": image.index, "id": image.id, "source": image.source, "warnings": image.warnings}
            if prediction is None:
                row |= {"problem": image.problem}
            else:
                row |= _encoded(prediction, image, job)
            yield {"shard": [int(shard)], "index": [image.index], "row": [pickle.dumps(row)]}


def _encoded(prediction: Prediction, image: Image, job: Job) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": None, "focal_source": prediction.camera.source}
    with TemporaryDirectory(prefix="depthvlm-") as name, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        folder = Path(name)
        if job.formats is not None:
            is_file = image.entry.first < 0 and not is_url(image.source)
            prediction.source = Path(image.source) if is_file else None
            files = prediction.save(folder, image.stem, job.formats)
            row["files"] = {path.name: path.read_bytes() for path in files.values()}
        else:
            written = write_png16(folder / f"{image.stem}.png", prediction.depth)
            camera = prediction.camera
            row |= {
                "depth": {"bytes": (folder / f"{image.stem}.png").read_bytes(), "path": f"{image.stem}.png"},
                **written._asdict(),
                **{key: prediction.record()[key] for key in ("width", "height", "min", "median", "max")},
                "camera": {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy")},
            }
    return row | {"warnings": [*image.warnings, *(str(warning.message) for warning in caught)]}


def write(table: pa.Table, job: Job) -> pa.Table:
    """Write one shard and its record; return the record as JSON.

    Args:
        table: Its images, in any order.
        job: The run.

    Raises:
        RuntimeError: These are not the images of one whole shard.
    """
    shards = table.column("shard").unique().to_pylist()
    order = sorted(range(table.num_rows), key=table.column("index").to_pylist().__getitem__)
    rows = [pickle.loads(table.column("row")[position].as_py()) for position in order]
    first = shards[0] * job.shard_rows
    expected = list(range(first, min(first + job.shard_rows, job.images)))
    if len(shards) != 1 or [row["index"] for row in rows] != expected:
        raise RuntimeError(
            f"The images {rows[0]['index']} to {rows[-1]['index']} of the shards {shards} came together, where shard "
            f"{shards[0]} was expected. Nothing was written of them."
        )
    record = write_shard(job.out, shards[0], job.shards, rows, job.formats is not None, job.made_with)
    return pa.table({"record": [json.dumps(record)]})
