"""
Memory and arithmetic of a training step, estimated from the configuration alone: no weights, no device.

Symbols, per sample unless said otherwise: T tokens of the sequence, n visual tokens (pixels / stride^2), h and I the
width and MLP width of the LLM, L its layers, Q and K the widths of all its query and of its key heads, V its
vocabulary; the same with a small v for the ViT, which sees 4 n patches. w bytes a stored weight, c bytes a computed
number: 4 and 2 for float32 weights under bfloat16 autocast, 2 and 2 for bfloat16 throughout. B samples.

What is not counted: the CUDA context (0.5 to 1 GB), cuDNN's work space, fragmentation, communication buffers.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..modeling_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMForConditionalGeneration
from ..modeling_depthvlm.depth_heads_depthvlm import DepthHead, build_depth_head
from ..modeling_depthvlm.losses_depthvlm import silog_per_image
from .optimizer import CHOICES, PARTS, part_of

# The fused LM head of TRL works on tiles of at most this many tokens by this many words.
TILE_TOKENS, TILE_WORDS = 4096, 32768
FLOAT32 = 4
HEAD_GRID = (4, 6)  # tokens on which a head is measured; what it keeps and does grows with their number


def count_parameters(config: DepthVLMConfig) -> dict[str, int]:
    """Parameters of each of [`PARTS`], tied ones once, counted on the meta device."""
    return dict(_count_parameters(config.to_json_string(use_diff=False)))


@lru_cache(maxsize=8)
def _count_parameters(config_json: str) -> tuple[tuple[str, int], ...]:
    with torch.device("meta"):
        model = DepthVLMForConditionalGeneration(DepthVLMConfig(**json.loads(config_json)))
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return tuple((part, counts[part]) for part in PARTS)


def trained_parameters(config: DepthVLMConfig, trainable: str) -> dict[str, int]:
    """Trained parameters of each part for `"head"`, `"head+llm"` or `"all"`."""
    return {part: count if part in CHOICES[trainable] else 0 for part, count in count_parameters(config).items()}


def lora_parameters(config: DepthVLMConfig, rank: int) -> int:
    """Parameters of a LoRA adapter on the seven linear layers of every LLM layer: r (in + out) each."""
    h, i, q, k = _llm_widths(config)
    pairs = ((h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h))
    return config.text.num_hidden_layers * rank * sum(a + b for a, b in pairs)


def estimate_memory(
    config: DepthVLMConfig,
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
    """
    Peak memory of a training step on one device, by what it is for.

    - `weights`: w (all parameters), over the shards.
    - `gradients`: w_t (trained parameters), over the shards.
    - `optimizer`: `optimizer_bytes` times the trained parameters, over the shards.
    - `working_weights`: what stands beside the stored weights. Unsharded, with c < w: autocast's copies of the trained
      weights, c each. Sharded: two gathered layers, and what is in no layer (embeddings, mergers, head), c each.
    - `llm_activations`, when anything but the head is trained: without checkpointing B T L A with, a token and layer,
      `A = h (2 (4 + w) + x c) + (4 + c) (Q + K) + 5 c Q + 4 c I`; x is 5 where autocast casts the input of every linear
      layer anew (c < w), else 2. With checkpointing B T (L w h + A): every layer's input, and one layer in full.
    - `vit_activations`, when the ViT is trained: likewise over 4 B n patches with `A_v = h_v (2 w + 9 c) + 2 c I_v`.
    - `head_activations`, when the head is trained: see [`head_activations`].
    - `text_loss`, when the LLM is trained: TRL's fused LM head, with s scored tokens a batch: 4 s h, a tile of
      c min(s, 4096) 32768, and the float32 gradient 4 V h of its weight unless that is frozen.

    Args:
        batch_size: samples of a micro-batch.
        tokens: T, image tokens included.
        pixels: of a sample's images, as the model sees them.
        trained: trained parameters of each part, those of adapters included (more parts than these are not looked at).
        dtype_bytes, compute_bytes: w and c.
        trained_bytes: w_t, where trained weights are stored in another dtype (adapters).
        optimizer_bytes: 8 for AdamW in float32 (two moments), 4 in bfloat16, 2 in 8 bits.
        scored_tokens: tokens of a sample with a label; by default those that are not of an image.
        shards: devices over which FSDP2 or ZeRO-3 splits weights, gradients and optimiser; 1 for DDP.

    Returns:
        Bytes by name, and their `total`.
    """
    counts = count_parameters(config)
    every, learnt = sum(counts.values()), sum(trained.values())
    w, c, w_t = dtype_bytes, compute_bytes, dtype_bytes if trained_bytes is None else trained_bytes
    visual = pixels / config.input_stride**2
    scored = batch_size * (max(tokens - visual, 0) if scored_tokens is None else scored_tokens)
    h, i, q, k = _llm_widths(config)
    layers = config.text.num_hidden_layers
    wide = config.vision
    back_through_llm = any(trained.get(part) for part in ("llm", "merger", "vit"))
    stream = max(w, c)  # what runs along the residual connections
    casts = 5 if c < w else 2
    layer = h * (2 * (FLOAT32 + stream) + casts * c) + (FLOAT32 + c) * (q + k) + 5 * c * q + 4 * c * i
    block = wide.hidden_size * (2 * stream + 9 * c) + 2 * c * wide.intermediate_size

    def kept(length: float, depth: int, width: int, full: float) -> float:
        return length * (depth * stream * width + full) if gradient_checkpointing else length * depth * full

    sizes: dict[str, float] = {
        "weights": w * every / shards,
        "gradients": w_t * learnt / shards,
        "optimizer": optimizer_bytes * learnt / shards,
        "working_weights": c * _unsharded(config, counts) if shards > 1 else c * learnt * (c < w_t),
        "llm_activations": kept(batch_size * tokens, layers, h, layer) * back_through_llm,
        "vit_activations": kept(batch_size * 4 * visual, wide.depth, wide.hidden_size, block)
        * bool(trained.get("vit")),
        "head_activations": 0.0,
        "text_loss": 0.0,
    }
    if trained.get("head"):
        sizes["head_activations"] = batch_size * visual * head_activations(config, c)
    if back_through_llm:
        whole_llm = trained.get("llm", 0) >= counts["llm"]
        sizes["text_loss"] = FLOAT32 * scored * h + c * min(scored, TILE_TOKENS) * TILE_WORDS
        sizes["text_loss"] += FLOAT32 * config.text.vocab_size * h * whole_llm
    result = {name: round(size) for name, size in sizes.items()}
    return {**result, "total": sum(result.values())}


def head_activations(config: DepthVLMConfig, compute_bytes: int) -> float:
    """Bytes that the depth head and its loss keep for the backward pass, per visual token: see [`measure_head`]."""
    return _measured(config, compute_bytes < FLOAT32)[0]


def head_flops(config: DepthVLMConfig) -> float:
    """Operations of the depth head's forward, per visual token: see [`measure_head`]."""
    return _measured(config, False)[1]


def measure_head(head: DepthHead, maps: int, hidden_size: int, autocast: bool = False) -> tuple[float, float]:
    """
    Run a head on tensors without data, and count: what autograd keeps, and the operations.

    Args:
        head: any [`DepthHead`], made under the same `FakeTensorMode` or on a CPU.
        maps: feature maps that it takes.
        hidden_size: their width.
        autocast: whether its arithmetic is in bfloat16.

    Returns:
        `tuple[float, float]`: bytes that stay for the backward pass, the loss included, and floating point operations
        of the forward, a multiplication with an addition as two; both per visual token.
    """
    height, width = HEAD_GRID
    weights = {parameter.untyped_storage()._cdata for parameter in head.parameters()}
    shapes = {parameter.shape for parameter in head.parameters()}
    shapes |= {shape[1::-1] for shape in shapes if shape[:2].numel() == shape.numel()}  # as a product takes them
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        key, is_cast = tensor.untyped_storage()._cdata, tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if key not in weights and not is_cast:  # autocast's copies of weights are counted with these
            kept[key] = tensor
        return tensor

    features = [torch.empty(1, height * width, hidden_size) for _ in range(maps)]
    truth = torch.empty(1, height * head.stride, width * head.stride)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        FlopCounterMode(display=False) as counter,
    ):
        depth = head(features, HEAD_GRID)
        silog_per_image(depth, truth)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return size / (height * width), counter.get_total_flops() / (height * width)


def _measured(config: DepthVLMConfig, autocast: bool) -> tuple[float, float]:
    return _measure(config.head.to_json_string(use_diff=False), config.text.hidden_size, config.input_stride, autocast)


@lru_cache(maxsize=8)
def _measure(head_json: str, hidden_size: int, stride: int, autocast: bool) -> tuple[float, float]:
    config = DepthHeadConfig(**json.loads(head_json))
    with FakeTensorMode():
        head = build_depth_head(config, hidden_size, stride)
        return measure_head(head, 1 if config.feature_source == "llm_final" else 4, hidden_size, autocast)


def estimate_flops(
    config: DepthVLMConfig,
    *,
    batch_size: int,
    tokens: int,
    pixels: int,
    trained: Mapping[str, int],
    gradient_checkpointing: bool = True,
    scored_tokens: int | None = None,
) -> dict[str, float]:
    """
    Floating point operations of a micro-batch, by part. A multiplication with an addition counts as two.

    Forward, a sample: LLM `2 P T + 2 L Q T^2` (P its parameters without embeddings; causal attention), LM head `2 V h`
    a scored token, ViT with mergers `2 P_v 4 n + 4 L_v h_v (4 n)^2`, mergers counted at n tokens, head per token as
    [`head_flops`]. Times 3 where weights are trained, 2 where gradients only pass through, plus 1 with checkpointing
    (LLM and ViT); a part that nothing before the loss needs gradients of costs its forward alone.

    Returns:
        Operations by name, and their `total`.
    """
    counts = count_parameters(config)
    h, i, q, k = _llm_widths(config)
    layers, wide = config.text.num_hidden_layers, config.vision
    visual = pixels / config.input_stride**2
    patches = 4 * visual
    scored = max(tokens - visual, 0) if scored_tokens is None else scored_tokens
    layer_parameters = h * (2 * q + 2 * k + 3 * i)
    back_through_vit = bool(trained.get("vit"))
    back_through_llm = any(trained.get(part) for part in ("llm", "merger", "vit"))
    whole_llm = trained.get("llm", 0) >= counts["llm"]

    def passes(backward: bool, whole: bool, recomputed: bool) -> int:
        return 1 + backward * (1 + whole) + (backward and recomputed)

    llm = 2 * layers * layer_parameters * tokens + 2 * layers * q * tokens**2
    vit = 2 * counts["vit"] * patches + 4 * wide.depth * wide.hidden_size * patches**2
    merger_rate = passes(bool(trained.get("merger")) or back_through_vit, bool(trained.get("merger")), False)
    flops = {
        "llm": llm * passes(back_through_llm, whole_llm, gradient_checkpointing),
        "lm_head": 2.0 * config.text.vocab_size * h * scored * passes(True, whole_llm, True) * back_through_llm,
        "vit": vit * passes(back_through_vit, back_through_vit, gradient_checkpointing),
        "merger": 2 * counts["merger"] * visual * merger_rate,
        "head": head_flops(config) * visual * passes(bool(trained.get("head")), True, False),
    }
    flops = {name: float(batch_size * value) for name, value in flops.items()}
    return {**flops, "total": sum(flops.values())}


def _llm_widths(config: DepthVLMConfig) -> tuple[int, int, int, int]:
    """h, I, Q, K."""
    text = config.text
    q, k = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    return text.hidden_size, text.intermediate_size, q, k


def _unsharded(config: DepthVLMConfig, counts: Mapping[str, int]) -> int:
    """Weights that one device holds whole at a time: two LLM layers, and all that is in no layer of LLM or ViT."""
    h, i, q, k = _llm_widths(config)
    layer = h * (2 * q + 2 * k + 3 * i)
    outside = counts["llm"] - config.text.num_hidden_layers * layer
    return 2 * layer + outside + counts["merger"] + counts["head"]
