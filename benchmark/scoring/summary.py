"""From the images of a run to its summary: means, pooled pixels, intervals, speed, environment."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from ..systems.interface import DensePredictor, PointPredictor
from .eval_sets import EvalSet
from .metrics import MetricAccumulator
from .protocols import Protocol
from .results import ImageResult, Result
from .statistics import bootstrap_interval
from .tasks import image_row

_PACKAGES = ("depthvlm", "torch", "transformers", "numpy", "pillow", "datasets")


@dataclass(frozen=True)
class System:
    """
    What is evaluated.

    Args:
        row: key of the system, as on the command line.
        name: as in the paper's tables.
        predictor: loaded.
        options: everything else that its answers depend on.
    """

    row: str
    name: str
    predictor: DensePredictor | PointPredictor
    options: Mapping[str, Any]


def summarise(
    system: System,
    eval_set: EvalSet,
    protocol: Protocol,
    results: Sequence[ImageResult],
    limit: int | None = None,
) -> Result:
    """The summary of images that were scored."""
    rows = MetricAccumulator(image_row(result) for result in results)
    scores = rows.compute()
    pixels = rows.pixels() if protocol.aggregation == "pixels" else None
    interval = bootstrap_interval(rows.values("delta1"), pixels)
    texts = [text for result in results for text in result.texts]
    answered = [answer is not None for result in results if result.texts for answer in result.answers]
    seconds = [result.seconds for result in results]
    return Result(
        row=system.row,
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
