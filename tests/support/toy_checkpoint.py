"""A checkpoint folder with a tiny random model, a byte tokenizer and a processor, as `from_pretrained` wants it."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from toy_models import last_layer, toy_config
from toy_tokenizer import build_toy_tokenizer

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMImageProcessor, DepthVLMProcessor


@functools.cache
def _original() -> tempfile.TemporaryDirectory[str]:
    """The one that is copied: made once in a process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="toy_checkpoint_")
    tokenizer = build_toy_tokenizer()
    config = toy_config()
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.pad_token_id = tokenizer.pad_token_id
    for name in ("image", "video", "vision_start", "vision_end"):
        token = f"<|{name}|>" if name.startswith("vision") else f"<|{name}_pad|>"
        setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DepthVLMForConditionalGeneration(config).eval()
        torch.nn.init.normal_(last_layer(model.depth_head).weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder.name)
    image_processor = DepthVLMImageProcessor(min_pixels=64 * 64, max_pixels=128 * 128)
    DepthVLMProcessor(image_processor, tokenizer).save_pretrained(folder.name)
    return folder


def change_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change values of `config.json`, those of parts by their names; the configuration as it then is."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    return config


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write the weights that `change` makes of those that are there."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def leave_out(folder: Path, part: str) -> None:
    """Drop the weights whose names hold `part`."""
    change_weights(folder, lambda weights: {name: tensor for name, tensor in weights.items() if part not in name})


def save_toy_checkpoint(folder: Path) -> Path:
    """Images become at most 128x128 pixels (16 visual tokens) in it; depth varies over the image."""
    return Path(shutil.copytree(_original().name, folder, dirs_exist_ok=True))


def save_foreign_checkpoint(folder: Path, published: bool) -> Path:
    """The same in the published layout, or as a plain Qwen3-VL: with the files that such repositories have."""
    return make_foreign(save_toy_checkpoint(folder), published)


def make_foreign(folder: Path, published: bool = False) -> Path:
    """Rewrite a checkpoint of DepthVLM as one in the published layout, or as a plain Qwen3-VL."""
    config, images, tokenizer = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "processor_config", "tokenizer_config")
    )
    for name in ("auto_map", "depth_config", "silog_lambda", "canonical_focal_length", "depth_prompt_ids"):
        config.pop(name, None)
    weight = config.pop("depth_loss_weight")
    config["text_config"]["max_position_embeddings"] = 4096  # such a repository says nothing of the toy's pixel budget
    config |= {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    if published:
        config |= {"depth_head_type": "dpt", "depth_loss_weight": weight}
    else:
        leave_out(folder, "depth_head.")
    kept = ("size", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    settings = {name: value for name, value in images["image_processor"].items() if name in kept}
    settings |= {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    tokenizer.pop("auto_map", None)
    tokenizer["processor_class"] = "Qwen3VLProcessor"
    for name, content in {"config": config, "preprocessor_config": settings, "tokenizer_config": tokenizer}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for file in (folder / "processor_config.json", *folder.glob("*.py")):
        file.unlink()
    return folder
