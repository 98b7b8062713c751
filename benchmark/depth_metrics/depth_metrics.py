"""Metrics of metric depth for `evaluate`: `evaluate.load(<this folder>)`. The formulas are those of `depthvlm`."""

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
from depthvlm.benchmark.scoring.metrics import MetricAccumulator
from depthvlm.benchmark.scoring.protocols import get_protocol

_DESCRIPTION = """\
Depth in metres against measured depth: delta1, delta2, delta3, abs_rel, sq_rel, rmse, rmse_log, log10 and silog, under
a named protocol (valid range, crop, alignment, aggregation). A prediction that is not finite or not positive counts as
wrong in the deltas, is left out of the unbounded metrics, and is counted in `failures`.
"""

_CITATION = """\
@article{yu2026depthvlm,
  title = {Unlocking Dense Metric Depth Estimation in VLMs},
  journal = {arXiv preprint arXiv:2605.15876},
  year = {2026}
}
"""

_INPUTS = """
Args:
    predictions: For each image a map (H, W) or points (n,), z-depth in metres.
    references: The true depth in the same form; 0 or NaN where there is none.
    protocol: Name of a preset of `depthvlm.benchmark.scoring.protocols.PROTOCOLS`, by default "dense".
    source_range: Least and greatest depth in metres that the source counts as measured, for protocols without a
        range of their own.
    changes: Fields of the protocol to change, such as {"alignment": "median"}.

Returns:
    The metrics, averaged over images or pooled over pixels as the protocol says; the counts `images`, `pixels`,
    `failures` and `failed_images`; the `protocol` and its `protocol_hash`.

Examples:
    >>> metric = evaluate.load("depth_metrics")
    >>> metric.compute(predictions=[[1.0, 2.0]], references=[[1.0, 4.0]])["delta1"]
    0.5
"""


class DepthMetrics(evaluate.Metric):
    """Depth metrics over images of any size."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float32")
        points, maps = datasets.Sequence(number), datasets.Sequence(datasets.Sequence(number))
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[datasets.Features({"predictions": kind, "references": kind}) for kind in (maps, points)],
        )
        # Arrays instead of lists of Python floats; the constructor refuses this for anything but scalars.
        info.format = "numpy"
        return info

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one image: a map or points, of any type that numpy understands."""
        super().add(prediction=_float32(prediction), reference=_float32(reference), **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add several images, each a map or points."""
        predictions, references = ([_float32(image) for image in images] for images in (predictions, references))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions: Iterable[Any],
        references: Iterable[Any],
        protocol: str = "dense",
        source_range: tuple[float, float] | None = None,
        changes: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        chosen = get_protocol(protocol, **(changes or {}))
        accumulator = MetricAccumulator()
        for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            name = f"image {index}"
            depth, truth, valid = chosen.prepare(prediction, reference, source_range, name=name)
            accumulator.add(name, depth, truth, valid)
        result = accumulator.compute()
        return {
            **result[chosen.aggregation],
            **result["counts"],
            "protocol": chosen.name,
            "protocol_hash": chosen.hash(),
        }


def _float32(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)
