# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Reads the configurations of foreign checkpoints: the published DepthVLM layout and plain Qwen3-VL."""

import json
from typing import Any

from safetensors import safe_open
from transformers.utils.hub import cached_file, cached_files

# The published checkpoints name their heads so; ours say what they are (paper, table 4).
PUBLISHED_HEADS: dict[str, dict[str, Any]] = {
    "dpt": {"head_type": "dpt_light", "feature_source": "vit+llm"},
    "mlp": {"head_type": "mlp", "feature_source": "llm_final"},
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def adopt_config_dict(config_dict: dict[str, Any], path: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the config of a checkpoint with `model_type: qwen3_vl` into one of DepthVLM.

    A published DepthVLM checkpoint says `depth_head_type` and keeps the head's widths in its weights alone, which are
    read from the safetensors header. A plain Qwen3-VL checkpoint says neither, and gets a new head.

    Raises:
        ValueError: when `depth_head_type` is unknown, or the weights of the head it promises are not there.
    """
    config_dict = {**config_dict, "model_type": "depthvlm", "architectures": ["DepthVLMForConditionalGeneration"]}
    published = config_dict.pop("depth_head_type", None)
    if published is None:
        return config_dict
    if published not in PUBLISHED_HEADS:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, expected one of {', '.join(PUBLISHED_HEADS)}."
        )
    shapes = _head_shapes(path, hub_kwargs)
    if not shapes:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, but no `depth_head.*` weight is in it. Use a "
            "complete checkpoint, or remove `depth_head_type` from config.json to start with a new head."
        )
    config_dict["depth_config"] = {**PUBLISHED_HEADS[published], **_head_widths(published, shapes, path)}
    return config_dict


def _head_widths(published: str, shapes: dict[str, list[int]], path: str) -> dict[str, Any]:
    try:
        if published == "mlp":
            return {"hidden_size": shapes["mlp.0.weight"][0]}
        return {
            "features": shapes["scratch.layer1_rn.weight"][0],
            "out_channels": [shapes[f"projects.{k}.weight"][0] for k in range(4)],
        }
    except KeyError as error:
        raise ValueError(
            f"{path}: its config says depth_head_type={published!r}, but the weight `depth_head.{error.args[0]}` of "
            f"such a head is missing. It has: {', '.join(sorted(shapes)[:6])}, ..."
        ) from error


def _head_shapes(path: str, hub_kwargs: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of the `depth_head.*` weights, from the headers of the safetensors files that hold them."""
    prefix = "depth_head."
    optional: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": True,
    }
    if index := cached_file(path, INDEX, **hub_kwargs, **optional):
        with open(index, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        names = sorted({shard for name, shard in weight_map.items() if name.startswith(prefix)})
    else:
        names = [WEIGHTS]
    shapes: dict[str, list[int]] = {}
    files = cached_files(path, names, **hub_kwargs, **optional) if names else None
    for name in files or []:
        with safe_open(name, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (not a dict)
                if key.startswith(prefix):
                    shapes[key.removeprefix(prefix)] = list(weights.get_slice(key).get_shape())
    return shapes
