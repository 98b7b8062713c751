"""Score a predictor on a set: batches of one size, results as they come, resumable, shared over processes."""

from __future__ import annotations

import json
import math
import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...files import write_text
from ..systems.interface import (
    DensePredictor,
    Example,
    PointAnswer,
    PointPredictor,
    PredictorError,
    TokenGrid,
    check_maps,
)
from .consistency import CONSISTENCY, consistency
from .eval_sets import EvalItem, EvalSet
from .metrics import METRICS, ErrorSums, MetricAccumulator
from .protocols import Protocol
from .results import EvaluationError, ImageResult, Result, claim, lines_path, mend, parts_of, read_parts
from .scene_masks import MaskReader, mask_reader
from .shape import pooled_grid
from .statistics import bootstrap_interval
from .tasks import EXTRA_METRICS, make_example, score_answers, score_map

Batch: TypeAlias = list[tuple[EvalItem, Example]]

_PACKAGES = ("depthvlm", "torch", "transformers", "numpy", "pillow", "datasets")
_DECODERS = 2  # threads; decoding releases the interpreter's lock
_AHEAD = 3  # batches decoded before the predictor asks for them


@dataclass(frozen=True)
class LoadedSystem:
    """A system to evaluate."""

    key: str  # on the command line
    name: str  # as in the paper's tables
    predictor: DensePredictor | PointPredictor  # loaded
    options: Mapping[str, Any]  # everything else on which its answers depend


def evaluate(
    system: LoadedSystem,
    eval_set: EvalSet,
    protocol: Protocol,
    out: str | Path,
    batch_size: int = 8,
    limit: int | None = None,
    extra: Sequence[str] = (),
    masks: str | Path | None = None,
) -> Result | None:
    """Score one system on one set under one protocol.

    The summary is written to `OUT/ROW/SOURCE-SPLIT/PROTOCOL.json`, with one line per image beside it. Called again
    after an interruption, it scores what is missing. Under `accelerate launch` every process scores its part and each
    image is scored once; all processes must see the folder `out`.

    Args:
        system: The loaded system.
        eval_set: The images with their truth.
        protocol: The conventions of the evaluation.
        out: Folder of results.
        batch_size: Largest number of images of one size that the predictor gets at once.
        limit: Score only so many images, evenly spaced; the result then says so.
        extra: Metrics of `EXTRA_METRICS`, for a dense protocol, or `CONSISTENCY`.
        masks: Folder of iBims-1's annotations of planes and edges, see [`mask_reader`].

    Returns:
        The result on the main process, None on the others.

    Raises:
        EvaluationError: The files in `out` belong to another run, or a process's part cannot be seen.
        PredictorError: The predictor answered with something other than one map, or one list of answers, per image.
        ValueError: The protocol does not fit the set, an extra metric is unknown, or a picture cannot be read.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    _check(system, protocol, limit, batch_size, extra)
    state = PartialState()
    summary = result_path(out, system, eval_set, protocol, limit)
    wanted = list(range(len(eval_set)))
    if limit is not None and limit < len(wanted):
        wanted = [i * len(wanted) // limit for i in range(limit)]
    reader = mask_reader(eval_set.source, masks) if protocol.points is None else None
    settings: dict[str, Any] = {
        "row": system.key,
        "options": dict(system.options),
        "checkpoint": system.predictor.checkpoint(),  # a folder may hold another model when the run goes on
        "data_hash": eval_set.hash,
        "protocol": protocol.to_dict() | {"description": ""},
        "limit": limit,
        "extra": sorted(extra),
    }
    if protocol.points is None:  # runs of versions without the metrics of shape do not go on
        settings["shape"] = "masks" if reader else "maps"
    shared: list[Any] = [None]
    if state.is_main_process:
        try:
            claim(summary, settings)
            shared = [set(read_parts(summary))]
        except EvaluationError as error:  # all processes must stop, not this one alone
            shared = [error]
    shared = broadcast_object_list(shared)
    if isinstance(shared[0], EvaluationError):
        raise shared[0]
    done: set[str] = shared[0]

    missing = [index for index in wanted if eval_set.ids[index] not in done]
    batches = _batches(missing, eval_set.sizes, batch_size)[state.process_index :: state.num_processes]
    part = summary.with_suffix(f".part{state.process_index}.jsonl")
    mend(part)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with part.open("a", encoding="utf-8") as file, Progress(*columns, disable=not state.is_main_process) as bar:
        task = bar.add_task(f"{system.key} on {eval_set.source}", total=sum(map(len, batches)))
        for results in _score(system.predictor, eval_set, protocol, batches, extra, reader):
            file.write("".join(result.to_json() + "\n" for result in results))
            file.flush()
            bar.advance(task, len(results))
    state.wait_for_everyone()
    result = None
    if state.is_main_process:
        results = _all_results(summary, [eval_set.ids[index] for index in wanted])
        result = _summarise(system, eval_set, protocol, results, limit)
        write_text(lines_path(summary), "".join(one.to_json() + "\n" for one in results))
        result.save(summary)
        for part in parts_of(summary):
            part.unlink()
    state.wait_for_everyone()
    return result


def result_path(
    out: str | Path, system: LoadedSystem, eval_set: EvalSet, protocol: Protocol, limit: int | None = None
) -> Path:
    """Return the path of the summary that [`evaluate`] writes."""
    row = "".join(c if c.isalnum() or c in "-_." else "_" for c in system.key)
    name = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in protocol.name)
    ending = "" if limit is None or limit >= len(eval_set) else f"-first{limit}"
    return Path(out) / row / f"{eval_set.source}-{eval_set.split}" / f"{name}{ending}.json"


def _check(system: LoadedSystem, protocol: Protocol, limit: int | None, batch_size: int, extra: Sequence[str]) -> None:
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}.")
    unknown = set(extra) - {*EXTRA_METRICS, CONSISTENCY}
    if unknown:
        raise ValueError(f"Unknown metric {', '.join(sorted(unknown))}: choose from {', '.join(EXTRA_METRICS)}.")
    if extra and protocol.points is not None:
        raise ValueError(
            f"{', '.join(extra)} are metrics of dense maps: choose a dense protocol, not {protocol.name!r}."
        )
    if protocol.points is None and isinstance(system.predictor, PointPredictor):
        raise ValueError(
            f"{system.key!r} answers about points; the protocol {protocol.name!r} scores whole maps. Choose `depthvlm`."
        )


def _batches(indices: Sequence[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Group the indices of images of one size, in their order."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_size.setdefault(sizes[index], []).append(index)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


def _score(
    predictor: DensePredictor | PointPredictor,
    eval_set: EvalSet,
    protocol: Protocol,
    batches: Sequence[Sequence[int]],
    extra: Sequence[str],
    reader: MaskReader | None,
) -> Iterator[list[ImageResult]]:
    with ThreadPoolExecutor(_DECODERS) as decoders, ThreadPoolExecutor(1) as scorer:
        pending: deque[Future[list[ImageResult]]] = deque()
        for batch in _decoded(decoders, eval_set, protocol, batches, reader):
            examples = [example for _, example in batch]
            started = time.perf_counter()
            answers: Any = predictor.predict(examples)
            seconds = (time.perf_counter() - started) / len(batch)
            _check_answers(predictor, answers, examples)
            tokens: list[TokenGrid | None] = [None] * len(batch)
            further: list[dict[str, float]] = [{} for _ in batch]
            if protocol.points is None and isinstance(predictor, DensePredictor):
                tokens = [predictor.token_grid(example) for example in examples]
                if CONSISTENCY in extra:
                    further = consistency(predictor, examples, answers)
            # In another thread: maps are scored while the predictor works on the next batch.
            pending.append(scorer.submit(_score_batch, batch, answers, protocol, extra, seconds, tokens, further))
            while len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _score_batch(
    batch: Batch,
    answers: Sequence[Any],
    protocol: Protocol,
    extra: Sequence[str],
    seconds: float,
    tokens: Sequence[TokenGrid | None],
    further: Sequence[Mapping[str, float]],
) -> list[ImageResult]:
    results = []
    for (item, example), answer, grid, more in zip(batch, answers, tokens, further, strict=True):
        if isinstance(answer, np.ndarray):
            result = score_map(item, example, answer, protocol, extra, grid)
        else:
            result = score_answers(item, example, answer, protocol)
        known = {name: value for name, value in more.items() if not math.isnan(value)}
        results.append(replace(result, seconds=seconds, metrics=result.metrics | known))
    return results


def _decoded(
    pool: ThreadPoolExecutor,
    eval_set: EvalSet,
    protocol: Protocol,
    batches: Sequence[Sequence[int]],
    reader: MaskReader | None,
) -> Iterator[Batch]:
    def load(index: int) -> tuple[EvalItem, Example]:
        item = eval_set.read(index)
        item = replace(item, masks=reader(item)) if reader else item
        return item, make_example(item, eval_set, protocol)

    rest = iter(batches)
    ahead = deque([pool.submit(load, i) for i in batch] for batch in islice(rest, _AHEAD))
    while ahead:
        yield [future.result() for future in ahead.popleft()]
        ahead.extend([pool.submit(load, i) for i in batch] for batch in islice(rest, 1))


def _check_answers(predictor: DensePredictor | PointPredictor, answers: Any, examples: Sequence[Example]) -> None:
    name = predictor.name or type(predictor).__name__
    if isinstance(predictor, DensePredictor):
        answers[:] = check_maps(answers, examples, name)
        return
    counts = None if answers is None else [len(one) for one in answers]
    expected = [len(example.points) for example in examples]
    if counts != expected or not all(isinstance(a, PointAnswer) for one in answers for a in one):
        raise PredictorError(f"The predictor {name!r} gave {counts} answers for {expected} points.")


def _all_results(summary: Path, ids: Sequence[str]) -> list[ImageResult]:
    found = read_parts(summary)
    unseen = [image for image in ids if image not in found]
    if unseen:
        raise EvaluationError(
            f"{len(unseen)} of {len(ids)} images have no result in {summary.parent}, {unseen[0]!r} first: --out must "
            "be a folder that all processes see. Start again to score them."
        )
    return [found[image] for image in ids]


def _summarise(
    system: LoadedSystem, eval_set: EvalSet, protocol: Protocol, results: Sequence[ImageResult], limit: int | None
) -> Result:
    """Return the summary of the scored images."""
    images = MetricAccumulator()
    for result in results:
        extra = {name: value for name, value in result.metrics.items() if name not in METRICS}
        images.add_sums(result.id, ErrorSums(**result.sums), extra)  # type: ignore[arg-type]
    scores = images.compute()
    pixels = images.pixels() if protocol.aggregation == "pixels" else None
    interval = bootstrap_interval(images.values("delta1"), pixels)
    texts = [text for result in results for text in result.texts]
    answered = [answer is not None for result in results if result.texts for answer in result.answers]
    seconds = [result.seconds for result in results]
    return Result(
        row=system.key,
        name=system.name,
        dataset=eval_set.source,
        split=eval_set.split,
        data_hash=eval_set.hash,
        protocol=protocol.to_dict() | {"hash": protocol.hash()},
        images=len(eval_set),
        done=len(results),
        pixels=int(scores["counts"]["pixels"]),
        failures=int(scores["counts"]["failures"]),
        metrics={
            kind: {name: value for name, value in scores[kind].items() if not math.isnan(value)}
            for kind in ("images", "pixels")
        },
        confidence={"delta1": (interval.low, interval.high)},
        parse_rate=sum(answered) / len(answered) if texts else None,
        speed={
            "seconds": math.fsum(seconds),
            "images_per_second": 1 / median(seconds) if median(seconds) > 0 else None,
            "device": _device(),
        },
        environment=_environment(),
        limit=None if limit is None or limit >= len(eval_set) else limit,
        checkpoint=system.predictor.checkpoint(),
        options=json.loads(json.dumps({k: v for k, v in system.options.items() if k != "model"}, default=str)),
        build_options=eval_set.options,
        grid=pooled_grid([result.grid for result in results]),
    )


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'' if count == 1 else 's'}"


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
