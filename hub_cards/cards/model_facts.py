"""Facts for a model card: from the files of a checkpoint, and results of `depthvlm bench eval` that are its own.

The model is not loaded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...checkpoint import checkpoint_hash, weight_files
from ...modeling_depthvlm.backbones_depthvlm import own_family
from ...recipe_file import Stage, base_of, hub_name, read_recipe
from .card_text import table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ...benchmark.scoring.results import Result

HeadState = Literal["untrained", "trained", "unknown"]

TASK = "depth-estimation"
# The metrics of a result that go on the card, in this order, as far as the result has them.
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
_PARTS = {"depth_head.": "depth head", "lora_": "adapter", ".visual.": "vision tower", "": "language model"}
_WRAPPERS = ("base_model.model.", "modules_to_save.default.")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a checkpoint."""

    config: Mapping[str, Any]  # the model's configuration as JSON has it; empty for an adapter without one
    adapter: Mapping[str, Any] | None = None  # PEFT's configuration; None for whole weights
    processor: Mapping[str, Any] = field(default_factory=dict)  # the processor's configuration, or empty
    # number of parameters by part of the model; empty where they were not counted
    parameters: Mapping[str, int] = field(default_factory=dict)
    dtypes: Sequence[str] = ()  # dtypes of the weights, the most frequent one first
    # "untrained" if every bias of the depth head is as it was initialised, "trained" if one is not, "unknown" if the
    # weights were not read
    head: HeadState = "unknown"
    stages: Sequence[Stage] = ()  # the training recipe, empty where none is kept

    @property
    def base_model(self) -> str | None:
        """The Hub name of the model that the first run began with, or, for an adapter, that it applies to.

        None where it is not known; a folder is not such a name.
        """
        if self.adapter is None:
            return base_of(self.stages)
        if self.stages:
            return self.stages[-1].get("base_model")
        return hub_name(str(self.adapter.get("base_model_name_or_path") or ""))[0]

    @property
    def canonical_focal_length(self) -> float | None:
        """The canonical focal length in pixels; None where the files do not say."""
        return self.config.get("canonical_focal_length") or self.image_processor.get("canonical_focal_length")

    @property
    def image_processor(self) -> Mapping[str, Any]:
        """Settings of the image processor, or empty."""
        return self.processor.get("image_processor") or {}

    @property
    def seen(self) -> str:
        """A sentence about what weights and recipe say of the head; "" where it is trained."""
        if self.head == "untrained":
            return (
                "**The depth head is untrained**: its biases are still as they were drawn. Its depth, near one metre "
                "everywhere, means nothing before it is trained."
            )
        if self.head == "unknown" and not any("head" in stage.get("trained", ()) for stage in self.stages):
            return "Whether the depth head was trained is not known."
        return ""


def read_facts(checkpoint: Path) -> ModelFacts:
    """Return the facts of a folder that `save_pretrained` wrote: whole weights, or a PEFT adapter.

    Raises:
        FileNotFoundError: The folder, its configuration or its safetensors weights are missing.
        ValueError: A file is damaged, or the checkpoint is not a DepthVLM; the message says what to do.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {checkpoint}.")
    config, adapter = _read_json(checkpoint / "config.json"), _read_json(checkpoint / "adapter_config.json")
    if config is None and adapter is None:
        raise FileNotFoundError(
            f"{checkpoint} has no config.json (nor adapter_config.json): it is no checkpoint. Give the folder that "
            "`save_pretrained` or `depthvlm sft` wrote."
        )
    if adapter is None and own_family((config or {}).get("model_type")) is None:
        raise ValueError(
            f"{checkpoint} is a {(config or {}).get('model_type')!r} checkpoint, not DepthVLM's own layout. "
            f"`depthvlm convert {checkpoint} NEW_FOLDER` writes that; then use the new folder."
        )
    files = weight_files(checkpoint)
    if not files:
        raise FileNotFoundError(f"{checkpoint} holds no .safetensors weights: no other format is pushed.")
    counts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    initial: list[bool] = []
    for name, weights in _tensors(files):
        part = weights.get_slice(name)
        counts[_part_of(name)] += prod(part.get_shape())
        dtypes[part.get_dtype()] += prod(part.get_shape())
        if "depth_head." in name and ".projectors." not in name and name.endswith(".bias"):
            initial.append(_is_initial(weights.get_tensor(name)))
    processor = _read_json(checkpoint / "processor_config.json")
    if processor is None:
        image_processor = _read_json(checkpoint / "preprocessor_config.json")
        processor = {} if image_processor is None else {"image_processor": image_processor}
    return ModelFacts(
        config or {},
        adapter,
        processor,
        {part: counts[part] for part in _PARTS.values() if counts[part]},
        [dtype for dtype, _ in dtypes.most_common()],
        "unknown" if not initial else "untrained" if all(initial) else "trained",
        read_recipe(checkpoint),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Copy or save the checkpoint again.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings but a {type(values).__name__}: save the checkpoint again.")
    return values


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yield the name of each tensor with the open file that holds it."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    yield name, weights
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}. Copy or save the checkpoint again.") from None


def _part_of(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return next(part for mark, part in _PARTS.items() if mark in name)


def _is_initial(bias: Any) -> bool:
    """Say whether a bias of the head is the constant of `init_head_layer`, which one step of training moves."""
    import torch

    from ...modeling_depthvlm.depth_heads_depthvlm import ONE_METRE

    one_metre = torch.tensor(ONE_METRE, dtype=bias.dtype)
    return bool((bias == 0).all() or (bias == one_metre).all())


def read_results(files: Sequence[Path], checkpoint: Path) -> list[Result]:
    """Return the results of `depthvlm bench eval` in these files, all of one checkpoint, sorted by set and protocol.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is not such a summary, belongs to another model or does not name its model, or two are of
            the same set under the same protocol.
    """
    if not files:
        return []
    results = [_read_result(Path(file)) for file in files]
    wanted = checkpoint_hash(checkpoint)
    again = f"Score this one: depthvlm bench eval --predictor depthvlm:{checkpoint} --data BUILD --out results"
    seen: dict[tuple[str, ...], Path] = {}
    for file, result in zip(files, results, strict=True):
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
        seen[key] = file
    return sorted(results, key=lambda r: (r.protocol["name"], r.dataset, r.split))


def _read_result(file: Path) -> Result:
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


def _scores(result: Result) -> dict[str, float]:
    """Return a result's metrics in the aggregation of its protocol."""
    return result.metrics[result.protocol["aggregation"]]


def eval_results(results: Sequence[Result]) -> list[EvalResult]:
    """Return the entries of the card's `model-index`. Partial results have none."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK,
            task_name="Metric depth estimation",
            dataset_type=result.dataset,
            dataset_name=f"DepthVLM-Bench: {result.dataset}",
            # The Hub groups by this: without the protocol here, two protocols would be one entry.
            dataset_config=f"{result.dataset}, protocol {result.protocol['name']}",
            dataset_split=result.split,
            dataset_revision=result.data_hash,
            dataset_args={
                "images": result.done,
                "pixels": result.pixels,
                "failures": result.failures,
                "aggregation": result.protocol["aggregation"],
                **({"options": result.options} if result.options else {}),
            },
            metric_type=metric,
            metric_name=f"{METRICS[metric]} ({result.protocol['name']})",
            metric_value=_scores(result)[metric],
            metric_args={"protocol": result.protocol["name"], "protocol_hash": result.protocol["hash"]},
        )
        for result in results
        if result.complete
        for metric in METRICS
        if metric in _scores(result)
    ]


def results_table(results: Sequence[Result]) -> str:
    """Return a Markdown table with a row for each result, partial ones marked; values have three decimals."""
    columns = [metric for metric in METRICS if any(metric in _scores(result) for result in results)]
    rows = []
    for result in results:
        scores, interval = _scores(result), result.confidence.get("delta1")
        rows.append(
            [
                result.dataset,
                result.split,
                f"`{result.protocol['name']}`",
                f"{result.done}" if result.complete else f"{result.done} of {result.images}, **partial**",
                str(result.pixels),
                *(f"{scores[metric]:.3f}" if metric in scores else "" for metric in columns),
                f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
                str(result.failures),
            ]
        )
    header = ["set", "split", "protocol", "images", "pixels", *(METRICS[m] for m in columns), "δ1, 95 %", "failures"]
    return table(header, rows)


def protocols_of(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each protocol, with its hash and what its fields say."""
    lines = []
    for key, protocol in {str(result.protocol["hash"]): result.protocol for result in results}.items():
        ends = protocol["min_depth"], protocol["max_depth"]
        low, high = ("the source's bound" if end is None else f"{end} m" for end in ends)
        parts = [
            "all valid pixels" if protocol["points"] is None else f"{protocol['points']} points an image",
            f"valid depth from {low} to {high}",
            "mean over images" if protocol["aggregation"] == "images" else "all pixels pooled",
            f"alignment: {protocol['alignment']}",
            f"crop: {protocol['crop']}" if protocol["crop"] else "",
            "answers clipped to the valid range" if protocol["clip"] else "",
            "distance along the ray" if protocol["depth_type"] == "ray" else "depth along the optical axis",
            "coordinates as published" if protocol["coordinates"] != "depth" else "",
        ]
        lines.append(f"`{protocol['name']}` ({key}): {'; '.join(filter(None, parts))}.")
    return lines


def conditions_of(results: Sequence[Result]) -> list[str]:
    """Return the conditions of the measurements, each once."""
    lines = []
    for result in results:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(result.environment.items()))
        options = ", ".join(f"{name}={value}" for name, value in sorted(result.options.items()))
        line = f"{result.speed.get('device', 'device not recorded')}; {versions or 'versions not recorded'}"
        lines.append(line + (f"; options {options}" if options else ""))
    return list(dict.fromkeys(lines))
