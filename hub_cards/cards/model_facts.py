"""What a card may say about a checkpoint: read from its files, without loading the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from ...checkpoint_hash import weight_files
from ...recipe_file import Stage, base_of, hub_name, read_recipe

HeadState = Literal["untrained", "trained", "unknown"]

_PARTS = {"depth_head.": "depth head", "lora_": "adapter", ".visual.": "vision tower", "": "language model"}
_WRAPPERS = ("base_model.model.", "modules_to_save.default.")


@dataclass(frozen=True)
class ModelFacts:
    """
    Args:
        config: the model's configuration as JSON has it; of an adapter without one, empty.
        adapter: PEFT's configuration; None for whole weights.
        processor: the processor's configuration, or empty.
        parameters: number by part of the model; empty where nobody counted.
        dtypes: of the weights.
        head: "untrained": every bias of the depth head is as it was drawn. "trained": they are not. "unknown": nobody
            looked.
        stages: the recipe, empty where none is kept.
    """

    config: Mapping[str, Any]
    adapter: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    dtypes: Sequence[str] = ()
    head: HeadState = "unknown"
    stages: Sequence[Stage] = ()

    @property
    def base_model(self) -> str | None:
        """
        The model on the Hub that this one comes from: what the first run began with; of an adapter, what it must be
        put on. None where that is not known. A folder is no such name.
        """
        if self.adapter is None:
            return base_of(self.stages)
        if self.stages:
            return self.stages[-1].get("base_model")
        return hub_name(str(self.adapter.get("base_model_name_or_path") or ""))[0]

    @property
    def head_config(self) -> Mapping[str, Any]:
        """That of the depth head."""
        return self.config.get("depth_config") or {}

    @property
    def canonical_focal_length(self) -> float | None:
        """In pixels; None where the files do not say."""
        return self.config.get("canonical_focal_length") or self.image_processor.get("canonical_focal_length")

    @property
    def image_processor(self) -> Mapping[str, Any]:
        """Settings of the image processor, or empty."""
        return self.processor.get("image_processor") or {}

    @property
    def seen(self) -> str:
        """What the weights and the record say about the head, in a sentence; "" where it is trained."""
        if self.head == "untrained":
            return (
                "**The depth head is untrained**: its biases are still as they were drawn. Its depth, near one metre "
                "everywhere, means nothing before it is trained."
            )
        if self.head == "unknown" and not any("head" in stage.get("trained", ()) for stage in self.stages):
            return "Whether the depth head was trained is not known."
        return ""


def read_facts(checkpoint: Path) -> ModelFacts:
    """
    The facts of a folder that `save_pretrained` wrote: whole weights, or a PEFT adapter.

    Raises:
        FileNotFoundError: there is no such folder, no configuration or no safetensors weights in it.
        ValueError: a file is damaged, or it is no DepthVLM; the message says what to do.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {checkpoint}.")
    config, adapter = _read_json(checkpoint / "config.json"), _read_json(checkpoint / "adapter_config.json")
    if config is None and adapter is None:
        raise FileNotFoundError(
            f"{checkpoint} has no config.json (nor adapter_config.json): it is no checkpoint. Give the folder that "
            "`save_pretrained` or `depthvlm sft` wrote."
        )
    if adapter is None and (config or {}).get("model_type") != "depthvlm":
        raise ValueError(
            f"{checkpoint} is a {(config or {}).get('model_type')!r} checkpoint, not DepthVLM's own layout. "
            f"`depthvlm convert {checkpoint} NEW_FOLDER` writes that; then use the new folder."
        )
    files = weight_files(checkpoint)
    if not files:
        raise FileNotFoundError(f"{checkpoint} holds no .safetensors weights: no other format is pushed.")
    counts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    biases: list[bool] = []
    for name, shape, dtype, tensor in _tensors(files):
        counts[_part_of(name)] += prod(shape)
        dtypes[dtype] += prod(shape)
        if "depth_head." in name and name.endswith(".bias"):
            biases.append(_as_drawn(tensor()))
    head: HeadState = "unknown" if not biases else "untrained" if all(biases) else "trained"
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
        head,
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


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, list[int], str, Any]]:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    part = weights.get_slice(name)
                    yield (
                        name,
                        part.get_shape(),
                        part.get_dtype(),
                        lambda name=name, weights=weights: weights.get_tensor(name),
                    )
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}. Copy or save the checkpoint again.") from None


def _part_of(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return next(part for mark, part in _PARTS.items() if mark in name)


def _as_drawn(bias: Any) -> bool:
    """Whether a bias of the head is what `init_head_layer` makes it, a constant that one step of training moves."""
    import torch

    from ...modeling_depthvlm.depth_heads_depthvlm import ONE_METRE

    one_metre = torch.tensor(ONE_METRE, dtype=bias.dtype)
    return bool((bias == 0).all() or (bias == one_metre).all())
