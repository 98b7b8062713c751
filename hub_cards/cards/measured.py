"""Results of `depthvlm bench eval` for a card: only those of its checkpoint, and nothing that they do not hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint_hash import checkpoint_hash
from .card_text import table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ...benchmark.scoring.results import Result

# Of a result's metrics these go on the card, in this order, as far as it has them.
METRICS = {
    "delta1": "δ1",
    "delta2": "δ2",
    "delta3": "δ3",
    "abs_rel": "AbsRel",
    "rmse": "RMSE (m)",
    "log10": "log10",
    "silog": "SILog",
    "boundary_f1": "boundary F1",
    "point_cloud_f_score": "point cloud F",
}
TASK = "depth-estimation"


def read_results(files: Sequence[Path], checkpoint: Path) -> list[Result]:
    """
    The results in these files, sorted by set and protocol.

    Args:
        files: summaries of `depthvlm bench eval`.
        checkpoint: folder of the model that they must be of, by [`~depthvlm.checkpoint_hash`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is no such summary, is of another model or does not say of which, or two are of the same set
            under the same protocol.
    """
    if not files:
        return []
    results = [_read(Path(file)) for file in files]
    wanted = checkpoint_hash(checkpoint)
    seen: dict[tuple[str, ...], Path] = {}
    for file, result in zip(files, results, strict=True):
        again = f"Score this one: depthvlm bench eval --predictor depthvlm:{checkpoint} --data BUILD --out results"
        if result.checkpoint is None:
            raise ValueError(f"{file} ({result.name!r}) does not say of which checkpoint it is. {again}")
        if result.checkpoint != wanted:
            raise ValueError(
                f"{file} is of another model: it was measured on a checkpoint {result.checkpoint[:12]}, and "
                f"{checkpoint} is {wanted[:12]} (hash of weights and settings). {again}"
            )
        key = (result.dataset, result.split, str(result.protocol["hash"]), str(sorted(result.options.items())))
        if key in seen:
            raise ValueError(f"{seen[key]} and {file} are of the same set under the same protocol: give one of them.")
        seen[key] = Path(file)
    return sorted(results, key=lambda r: (r.protocol["name"], r.dataset, r.split))


def eval_results(results: Sequence[Result]) -> list[EvalResult]:
    """For the card's `model-index`, in the aggregation of the protocol. Partial results are not in it."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK,
            task_name="Metric depth estimation",
            dataset_type=result.dataset,
            dataset_name=f"DepthVLM-Bench: {result.dataset}",
            # What the Hub groups by: without the protocol here, two protocols would be one entry.
            dataset_config=f"{result.dataset}, protocol {result.protocol['name']}",
            dataset_split=result.split,
            dataset_revision=result.data_hash,
            dataset_args=_conditions(result),
            metric_type=metric,
            metric_name=f"{METRICS[metric]} ({result.protocol['name']})",
            metric_value=scores[metric],
            metric_args={"protocol": result.protocol["name"], "protocol_hash": result.protocol["hash"]},
        )
        for result in results
        if result.complete
        for scores in [result.metrics[result.protocol["aggregation"]]]
        for metric in METRICS
        if metric in scores
    ]


def results_table(results: Sequence[Result]) -> str:
    """Markdown: one row a result, partial ones marked; values rounded to three decimals."""
    columns = [metric for metric in METRICS if any(metric in _scores(result) for result in results)]
    rows = []
    for result in results:
        scores = _scores(result)
        images = f"{result.done}" if result.complete else f"{result.done} of {result.images}, **partial**"
        interval = result.confidence.get("delta1")
        rows.append(
            [
                result.dataset,
                result.split,
                f"`{result.protocol['name']}`",
                images,
                str(result.pixels),
                *(f"{scores[metric]:.3f}" if metric in scores else "" for metric in columns),
                f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
                str(result.failures),
            ]
        )
    header = ["set", "split", "protocol", "images", "pixels", *(METRICS[m] for m in columns), "δ1, 95 %", "failures"]
    return table(header, rows)


def protocols_of(results: Sequence[Result]) -> list[str]:
    """A sentence for each protocol, with its hash and what its fields say."""
    found: dict[str, dict[str, Any]] = {str(result.protocol["hash"]): result.protocol for result in results}
    lines = []
    for key, protocol in found.items():
        what = "all valid pixels" if protocol["points"] is None else f"{protocol['points']} points an image"
        ends = [f"{protocol[end]} m" if protocol[end] is not None else "the source's bound" for end in _ENDS]
        mean = "mean over images" if protocol["aggregation"] == "images" else "all pixels pooled"
        parts = [what, f"valid depth from {ends[0]} to {ends[1]}", mean, f"alignment: {protocol['alignment']}"]
        parts += [f"crop: {protocol['crop']}"] if protocol["crop"] else []
        parts += ["answers clipped to the valid range"] if protocol["clip"] else []
        parts += ["distance along the ray"] if protocol["depth_type"] == "ray" else ["depth along the optical axis"]
        parts += ["coordinates as published"] if protocol["coordinates"] != "depth" else []
        lines.append(f"`{protocol['name']}` ({key}): {'; '.join(parts)}.")
    return lines


def conditions_of(results: Sequence[Result]) -> list[str]:
    """Where and with what the results were measured, each once."""
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(result.environment.items()))
        options = ", ".join(f"{name}={value}" for name, value in sorted(result.options.items()))
        line = f"{result.speed.get('device', 'device not recorded')}; {versions or 'versions not recorded'}"
        lines.append(line + (f"; options {options}" if options else ""))
    return list(dict.fromkeys(lines))


_ENDS = ("min_depth", "max_depth")


def _scores(result: Result) -> dict[str, float]:
    return result.metrics[result.protocol["aggregation"]]


def _conditions(result: Result) -> dict[str, Any]:
    return {
        "images": result.done,
        "pixels": result.pixels,
        "failures": result.failures,
        "aggregation": result.protocol["aggregation"],
        **({"options": result.options} if result.options else {}),
    }


def _read(file: Path) -> Result:
    from ...benchmark.scoring.protocols import Protocol
    from ...benchmark.scoring.results import Result

    if not file.is_file():
        raise FileNotFoundError(f"There is no result file {file}: give the JSON that `depthvlm bench eval` wrote.")
    try:
        result = Result.load(file)
        fields = {name: value for name, value in result.protocol.items() if name != "hash"}
        whole = Protocol.from_dict(fields).hash() == result.protocol["hash"]
        numbers = [*_scores(result).values(), *(end for ends in result.confidence.values() for end in ends)]
        finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no result of `depthvlm bench eval` ({reason}).") from None
    if not whole:
        raise ValueError(f"{file}: the fields of its protocol do not give its hash. Score the model again.")
    if not finite or "delta1" not in _scores(result):
        raise ValueError(f"{file} holds a metric that is no finite number, or no delta1: score the model again.")
    return result
