"""The memory of a training step, estimated on the meta device and on tensors without data."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations import moe

from ..modeling_depthvlm import DepthVLMConfigMixin
from ..modeling_depthvlm.backbones_depthvlm import family_of
from ..modeling_depthvlm.losses_depthvlm import silog_per_image
from .forward import TILE_WORDS
from .optimizer import PARTS, part_of

FLOAT32 = 4  # bytes
MEASURED_GRID = (8, 8)  # visual tokens in measured layers; their activations grow with that number
RECURRENT_TOKENS = 320  # for layers that work in chunks of 64 and keep a state for each
TILE_TOKENS = 4096  # tokens per tile of TRL's fused LM head


def count_parameters(config: DepthVLMConfigMixin) -> dict[str, int]:
    """Count the parameters of each of [`PARTS`], tied ones once, on the meta device."""
    counts = Counter(dict.fromkeys(PARTS, 0))
    for name, parameter in model_without_data(config).named_parameters():
        counts[part_of(name)] += parameter.numel()
    return dict(counts)


def model_without_data(config: DepthVLMConfigMixin) -> Any:
    """Return the model of a configuration on the meta device; it is cached and must not be modified."""
    return _model_without_data(config.to_json_string(use_diff=False))


@lru_cache(maxsize=8)
def _model_without_data(config_json: str) -> Any:
    values = json.loads(config_json)
    family = family_of(values, "The model")
    config = family.config(**values)
    for part in (config, config.text, config.vision):
        part._attn_implementation = "sdpa"  # like FlashAttention, it keeps no scores
    with torch.device("meta"):
        return family.model(config)


def estimate_memory(
    config: DepthVLMConfigMixin,
    *,
    batch_size: int,
    tokens: int,
    pixels: int,
    trained: Mapping[str, int],
    dtype_bytes: float = 4,
    compute_bytes: int = 2,
    trained_bytes: float | None = None,
    optimizer_bytes: float = 8,
    gradient_checkpointing: bool = True,
    scored_tokens: int | None = None,
    shards: int = 1,
) -> dict[str, int]:
    """Estimate the peak memory of a training step on one device, without weights and without a device.

    Weights, gradients and optimiser are counted. The activations that one layer of the LLM, one block of the ViT and
    the head keep for the backward pass are measured on tensors without data, see [`measure_activations`].
    `working_weights` come on top of the stored ones: autocast's copies of the trained weights, or, if sharded, two
    gathered layers and all weights outside layers. `text_loss` is TRL's fused LM head: states of the scored tokens, one
    tile of logits, and the float32 gradient of its weight. Not counted are the CUDA context, work space, fragmentation
    and communication buffers.

    Args:
        config: Configuration of the model.
        batch_size: Samples of a micro-batch.
        tokens: Tokens of a sample, image tokens included.
        pixels: Pixels of a sample's images, as the model sees them.
        trained: Number of trained parameters of each part, including adapters.
        dtype_bytes: Bytes of a stored weight.
        compute_bytes: Bytes of a computed number, 2 under bfloat16 autocast.
        trained_bytes: Bytes of a stored trained weight, if it differs (adapters).
        optimizer_bytes: Bytes of the optimiser for each trained weight: 8 for AdamW in float32, 2 in 8 bits.
        gradient_checkpointing: True if LLM and ViT keep only the inputs of their layers, plus one full layer.
        scored_tokens: Tokens of a sample with a label; by default all tokens that are not of an image.
        shards: Devices over which FSDP2 or ZeRO-3 splits weights, gradients and optimiser; 1 for DDP.

    Returns:
        Bytes by name, and their `total`.
    """
    counts = count_parameters(config)
    learnt, whole_llm = sum(trained.values()), trained.get("llm", 0) >= counts["llm"]
    weight_bytes = dtype_bytes if trained_bytes is None else trained_bytes
    visual = batch_size * pixels / config.input_stride**2
    scored = batch_size * tokens - visual if scored_tokens is None else batch_size * scored_tokens
    text, vision = config.text, config.vision
    stream = max(dtype_bytes, compute_bytes)  # bytes of a number along the residual connections
    kept = measure_activations(config, compute_bytes < FLOAT32, dtype_bytes < FLOAT32)

    def layers(length: float, depth: int, width: int, part: str) -> float:
        inputs_and_one = depth * stream * width + kept[f"{part}_largest"]
        return length * (inputs_and_one if gradient_checkpointing else depth * kept[part])

    sizes = {
        "weights": dtype_bytes * sum(counts.values()) / shards,
        "gradients": weight_bytes * learnt / shards,
        "optimizer": optimizer_bytes * learnt / shards,
        "working_weights": compute_bytes * learnt * (compute_bytes < weight_bytes),
        **dict.fromkeys(("llm_activations", "vit_activations", "head_activations", "text_loss"), 0.0),
    }
    if shards > 1:
        sizes["working_weights"] = compute_bytes * _unsharded(config, counts)
    if any(trained.get(part) for part in ("llm", "merger", "vit")):  # gradients pass through the LLM
        width = text.hidden_size
        sizes["llm_activations"] = layers(batch_size * tokens, text.num_hidden_layers, width, "llm")
        sizes["text_loss"] = FLOAT32 * scored * width + compute_bytes * min(scored, TILE_TOKENS) * TILE_WORDS
        sizes["text_loss"] += FLOAT32 * text.vocab_size * width * whole_llm
    if trained.get("vit"):
        patches = visual * vision.spatial_merge_size**2
        sizes["vit_activations"] = layers(patches, vision.depth, vision.hidden_size, "vit")
    if trained.get("head"):
        sizes["head_activations"] = visual * kept["head"]
    result = {name: round(size) for name, size in sizes.items()}
    return {**result, "total": sum(result.values())}


def _unsharded(config: DepthVLMConfigMixin, counts: Mapping[str, int]) -> int:
    """Return the weights that one device holds unsharded: two LLM layers, and all weights outside layers."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in _layers(model_without_data(config))["llm"]]
    return 2 * max(layers) + counts["llm"] - sum(layers) + counts["merger"] + counts["head"]


class Activations(NamedTuple):
    """Bytes kept for the backward pass, and the kinds of layers that could not be measured.

    Args:
        sizes: Bytes by part, as [`measure_activations`] returns them; without the layers in `unmeasured`.
        unmeasured: Classes of layers, with the number of each and the reason.
    """

    sizes: Mapping[str, float]
    unmeasured: tuple[str, ...] = ()


def measure_activations(config: DepthVLMConfigMixin, autocast: bool, half: bool = False) -> dict[str, float]:
    """Measure the bytes kept for the backward pass, on tensors without data.

    The layers are those of the model itself. A model may have several kinds (linear and full attention; dense and a
    mixture of experts): each is measured, and the mean is weighted by their numbers.

    Args:
        config: Configuration of the model.
        autocast: True if it computes in bfloat16.
        half: True if its weights are in bfloat16 too.

    Returns:
        Bytes per token of one layer of the LLM (`llm`: the mean; `llm_largest`), per patch of one block of the ViT
        (`vit`, `vit_largest`), and per visual token of the depth head with its projectors and loss (`head`).
    """
    return dict(_measure(config.to_json_string(use_diff=False), autocast, autocast and half).sizes)


def unmeasured_layers(config: DepthVLMConfigMixin, autocast: bool, half: bool = False) -> tuple[str, ...]:
    """Return the kinds of layers that cannot run without data and that [`measure_activations`] leaves out."""
    return _measure(config.to_json_string(use_diff=False), autocast, autocast and half).unmeasured


def _layers(model: Any) -> dict[str, list[Any]]:
    return {"llm": list(model.model.language_model.layers), "vit": list(model.model.visual.blocks)}


@lru_cache(maxsize=16)
def _measure(config_json: str, autocast: bool, half: bool) -> Activations:
    model = _model_without_data(config_json)
    config = model.config
    # Copied before the tensors without data, which do not mix with those of the meta device.
    rotary, head = copy.deepcopy(model.model.language_model.rotary_emb), copy.deepcopy(model.depth_head)
    kinds = {
        part: [(copy.deepcopy(alike[0]), len(alike)) for alike in _kinds(layers)]
        for part, layers in _layers(model).items()
    }
    vision, count = config.vision, MEASURED_GRID[0] * MEASURED_GRID[1]
    dtype = torch.bfloat16 if half else torch.float32
    sizes: dict[str, float] = {}
    unmeasured: list[str] = []

    def measure(name: str, module: nn.Module, tokens: int, call: Callable[[], Any]) -> float:
        try:
            return kept_for_backward(module, call, autocast) / tokens
        except Exception as error:  # from torch or transformers, if either cannot run without data
            unmeasured.append(f"{name} ({type(error).__name__}: {str(error).splitlines()[0]})")
            return 0.0

    with FakeTensorMode(), _experts_without_data():
        _give_weights(rotary, dtype)

        def llm_call(layer: Any, tokens: int) -> Any:
            states = torch.empty(1, tokens, config.text.hidden_size, dtype=dtype, requires_grad=True)
            turns = [rotary(states.detach(), torch.zeros(3, 1, tokens, dtype=torch.long))[0]] * 2
            mask = None if _is_recurrent(layer) else torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
            return layer(states, position_embeddings=turns, attention_mask=mask)

        def vit_call(block: Any, tokens: int) -> Any:
            patches = torch.empty(tokens, vision.hidden_size, dtype=dtype, requires_grad=True)
            turns = [torch.empty(tokens, vision.hidden_size // vision.num_heads, dtype=dtype)] * 2
            ends = np.array([0, tokens])  # its values are read, which tensors without data lack
            return block(patches, cu_seqlens=ends, position_embeddings=turns)

        for part, call in (("llm", llm_call), ("vit", vit_call)):
            found = []
            for layer, number in kinds[part]:
                _give_weights(layer, dtype)
                tokens = RECURRENT_TOKENS if _is_recurrent(layer) else count
                size = measure(f"{number} {type(layer).__name__}", layer, tokens, partial(call, layer, tokens))
                found.append((size, number))
            sizes[part] = sum(size * number for size, number in found) / sum(number for _, number in found)
            sizes[f"{part}_largest"] = max(size for size, _ in found)
        _give_weights(head, torch.float32)
        sizes["head"] = measure(type(head).__name__, head, count, partial(_head_loss, config, head))
        for projector in head.projectors:
            name = "a projector of the depth head"
            sizes["head"] += measure(name, projector, count, partial(_projected, config, projector))
    return Activations(sizes, tuple(unmeasured))


def _kinds(layers: list[Any]) -> list[list[Any]]:
    """Return the layers in groups of one class with weights of the same names and shapes."""
    kinds: dict[Any, list[Any]] = {}
    for layer in layers:
        weights = tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
        kinds.setdefault((type(layer), weights), []).append(layer)
    return list(kinds.values())


def _is_recurrent(layer: Any) -> bool:
    """Return whether a layer takes a padding mask, `(batch, tokens)` or None, instead of an attention mask."""
    return getattr(layer, "block_type", None) == "linear_attention"


def _give_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the weights and buffers of a module by tensors of the active mode, without data."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.empty(weight.shape, dtype=dtype)))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(value.shape, dtype=value.dtype))


@contextmanager
def _experts_without_data() -> Iterator[None]:
    """Let experts run without data: torch's grouped product does so only in bfloat16, its fallback always.

    Both keep the same tensors.
    """
    if not hasattr(moe, "_can_use_grouped_mm"):
        yield
        return
    with patch.object(moe, "_can_use_grouped_mm", lambda *_: False):
        yield


def _head_loss(config: DepthVLMConfigMixin, head: Any) -> Tensor:
    """Run the depth head and the loss on one image."""
    (rows, columns), stride = MEASURED_GRID, config.input_stride
    features = [torch.empty(1, rows * columns * each, width) for each, width in head.inputs]
    truth = torch.empty(1, rows * stride, columns * stride)
    return silog_per_image(head(features, MEASURED_GRID), truth)[0]


def _projected(config: DepthVLMConfigMixin, projector: Any) -> Tensor:
    """Run one of the head's own projectors on one image."""
    side, (rows, columns) = config.vision.spatial_merge_size, MEASURED_GRID
    states = torch.empty(rows * columns * side**2, config.vision.hidden_size)
    grid_thw = torch.tensor([[1, rows * side, columns * side]])
    return config.backbone.project(projector, states, grid_thw, config.vision)


def kept_for_backward(module: nn.Module, call: Callable[[], Any], autocast: bool) -> int:
    """Return the bytes that autograd saves while `call` runs, without weights and autocast's copies of them.

    Args:
        module: Module whose weights are not counted.
        call: Function that runs it.
        autocast: True to run it under bfloat16 autocast.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    shapes = {parameter.shape for parameter in module.parameters()}
    shapes |= {shape[1::-1] for shape in shapes if shape[:2].numel() == shape.numel()}  # as a product takes them
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights and not (tensor.dtype == torch.bfloat16 and tensor.shape in shapes):
            kept[key] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        call()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
