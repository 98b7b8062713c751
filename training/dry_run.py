"""The report of `depthvlm sft --dry-run`: trained parts, the first batch decoded, an estimate of memory."""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLVisionBlock

from ..modeling_depthvlm import DepthVLMConfig
from ..modeling_depthvlm.backbones_depthvlm import family_of
from ..modeling_depthvlm.depth_heads_depthvlm import build_depth_head
from ..modeling_depthvlm.losses_depthvlm import silog_per_image, valid_depth
from ..processing import CAMERA_SOURCES
from .depth_checks import FirstLook
from .forward import TILE_WORDS
from .optimizer import PARTS, part_of

ROWS_SHOWN = 4
BATCHES_LOOKED_AT = 8  # for signs of wrong depth: small batches have too few images to tell
IGNORED = -100
MIB, GIB = 2**20, 2**30
FLOAT32 = 4  # bytes
MEASURED_GRID = (8, 8)  # visual tokens of the layers that are measured; what they keep grows with that number
TILE_TOKENS = 4096  # of TRL's fused LM head at a time


def describe(trainer: Any) -> Group:
    """Describe what a trainer that has been built, and not run, would train.

    Args:
        trainer: [`DepthSFTTrainer`] whose first batch is loaded; its model does not run.

    Returns:
        Text for `rich.print`: parts, steps, the first batch with its trained text between `>>` and `<<`, images with
        their depth and cameras, memory.
    """
    batches = iter(trainer.get_train_dataloader())
    batch = next(batches)
    parts = _heading("What is trained"), _parts(trainer), _steps(trainer)
    rows = _heading("The first batch, on this process"), *_rows(trainer, batch), _images(trainer, batch)
    signs = _signs(chain([batch], islice(batches, BATCHES_LOOKED_AT - 1)))
    return Group(*parts, *rows, *signs, _heading("Estimate for this batch, on one device"), *_estimate(trainer, batch))


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _parts(trainer: Any) -> Table:
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in trainer.model.named_parameters():
        counts[part_of(name)][not parameter.requires_grad] += parameter.numel()
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rates = trainer.args.group_learning_rates()
    table = _table("part", "trained", "frozen", "peak learning rate")
    for part, (trained, frozen) in counts.items():
        rate = trainer.args.learning_rate if rates.get(part) is None else rates[part]
        table.add_row(part, f"{trained:,}", f"{frozen:,}", f"{rate:g}" if trained and part != "all" else "")
    return table


def _steps(trainer: Any) -> Text:
    args, processes = trainer.args, trainer.accelerator.num_processes
    local, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    lines = [
        f"Global batch: {local} a device x {accumulated} accumulated x {processes} devices "
        f"= {local * accumulated * processes} examples",
        f"Steps: {args.max_steps}" if args.max_steps > 0 else f"Epochs: {args.num_train_epochs:g}",
        f"Optimiser: {_value(args.optim)}, {_value(args.lr_scheduler_type)} schedule, warmup {args.warmup_steps:g}"
        f"{' of the steps' if 0 < args.warmup_steps < 1 else ' steps'}, gradients clipped at {args.max_grad_norm:g}",
    ]
    if trainer.depth_enabled:
        weight = trainer.depth_loss_weight
        lines.append(
            f"Loss: {weight:g} x depth loss (stage 1: no text)"
            if trainer.head_alone
            else f"Loss: text loss + {weight:g} x depth loss"
        )
    else:
        lines.append("Loss: text loss alone (no depth in the data, or a depth loss weight of 0)")
    return Text("\n".join(lines))


def _value(option: Any) -> str:
    return str(getattr(option, "value", option))


def _rows(trainer: Any, batch: dict[str, Any]) -> list[Text]:
    """Return the text of the first rows, with trained text between `>>` and `<<`."""
    count, length = batch["input_ids"].shape
    shown = Text(f"{count} rows of {length} tokens; trained text stands between >> and <<.")
    names = batch["batch_info"].rows if "batch_info" in batch else ()
    texts = [shown]
    for index in range(min(count, ROWS_SHOWN)):
        text = Text(f"{names[index] if index < len(names) else f'row {index}'}: ", style="bold")
        mask = batch["attention_mask"][index].bool()
        text.append_text(_decode(trainer, batch["input_ids"][index][mask], batch["labels"][index][mask]))
        texts.append(text)
    if count > ROWS_SHOWN:
        texts.append(Text(f"... and {count - ROWS_SHOWN} more"))
    return texts


def _decode(trainer: Any, ids: Tensor, labels: Tensor) -> Text:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    image = trainer.depth_model.config.image_token_id if trainer.depth_enabled else None
    tokens = list(zip(ids.tolist(), (labels != IGNORED).tolist(), strict=True))
    text = Text(style="not bold")
    for (is_image, is_trained), group in groupby(tokens, key=lambda token: (token[0] == image, token[1])):
        run = [token for token, _ in group]
        words = f"{tokenizer.decode(run[:1])} x {len(run)}" if is_image else tokenizer.decode(run)
        text.append(f">>{words}<<" if is_trained else words, style="green" if is_trained else "dim")
    return text


def _images(trainer: Any, batch: dict[str, Any]) -> Text:
    """Return a line for every image: its size as given and as the model sees it, its camera, and its depth."""
    if batch.get("cameras") is None:
        return Text("No images.")
    patch = trainer.depth_model.config.vision.patch_size
    canonical = trainer.depth_model.config.canonical_focal_length
    maps = batch.get("depth_labels") or [None] * len(batch["cameras"])
    numbers = (batch[name].tolist() for name in ("cameras", "image_grid_thw", "focal_scale"))
    lines = []
    for index, (camera, (_, rows, columns), scale, depth) in enumerate(zip(*numbers, maps, strict=True)):
        fx, _, _, _, height, width, source = camera
        lines.append(
            f"image {index}: {width:.0f}x{height:.0f}, focal length {fx:.1f} px ({CAMERA_SOURCES[round(source)]}); "
            f"seen as {columns * patch}x{rows * patch} at {scale * canonical:.1f} px; {_depth(depth)}"
        )
    return Text("\n".join(lines))


def _signs(batches: Iterable[dict[str, Any]]) -> list[Text]:
    """Return signs of wrong depth and cameras among the first images with depth, from as many batches as needed."""
    look = FirstLook()
    for batch in batches:
        look.add(batch)
        if look.full:
            break
    return [Text(f"Look again: {sign}", style="bold red") for sign in look.signs()]


def _depth(depth: Tensor | None) -> str:
    if depth is None:
        return "no depth"
    valid = valid_depth(depth)
    if not valid.any():
        return "depth without a valid pixel"
    metres = depth[valid]
    return f"depth {metres.min():.2f} to {metres.max():.2f} m, {100 * valid.float().mean():.1f} % valid"


def _estimate(trainer: Any, batch: dict[str, Any]) -> list[Any]:
    if not trainer.depth_enabled:
        return [Text("None: the model has no depth head.")]
    table = _table("memory", "")
    for name, size in estimate_memory(trainer.model.config, **estimate_settings(trainer, batch)).items():
        table.add_row(name.replace("_", " "), f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB")
    note = (
        "Not counted: the CUDA context (0.5 to 1 GiB), work space, fragmentation. A batch with larger images or longer "
        "text needs more."
    )
    return [table, Text(note)]


def estimate_settings(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of [`estimate_memory`] for a trainer and a batch."""
    args, config = trainer.args, trainer.model.config
    trained = dict.fromkeys(PARTS, 0)
    stored = trained_stored = 0
    for name, parameter in trainer.model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        stored += size
        if parameter.requires_grad:
            trained[part_of(name)] += parameter.numel()
            trained_stored += size
    learnt = sum(trained.values())
    count, length = batch["input_ids"].shape
    grids = batch.get("image_grid_thw")
    pixels = 0 if grids is None else int(grids.prod(-1).sum()) * config.vision.patch_size**2
    trained_bytes = trained_stored / learnt if learnt else 4.0
    half = args.bf16 or args.fp16 or trainer.model.dtype.itemsize == 2
    state = trainer.accelerator.state
    kind = _value(state.distributed_type)
    sharded = kind == "FSDP" or (kind == "DEEPSPEED" and state.deepspeed_plugin.zero_stage == 3)
    return {
        "batch_size": count,
        "tokens": length,
        "pixels": pixels // count,
        "trained": trained,
        "scored_tokens": -(-int((batch["labels"] != IGNORED).sum()) // count),
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        # Adapters and quantised weights are in it: bytes stored for every number of the plain model.
        "dtype_bytes": stored / sum(count_parameters(config).values()),
        "trained_bytes": trained_bytes,
        "compute_bytes": 2 if half else 4,
        "optimizer_bytes": _optimizer_bytes(_value(args.optim), trained_bytes),
        "shards": state.num_processes if sharded else 1,
    }


def _optimizer_bytes(name: str, trained_bytes: float) -> float:
    """Return the bytes of an optimiser's state for each trained parameter: two moments in the dtype of AdamW's."""
    if "8bit" in name:
        return 2.0
    if name.startswith(("sgd", "adafactor")):  # no state without momentum; two vectors for each matrix
        return 0.0
    return 2 * trained_bytes


def count_parameters(config: DepthVLMConfig) -> dict[str, int]:
    """Count the parameters of each of [`PARTS`], tied ones once, on the meta device."""
    return dict(_count_parameters(config.to_json_string(use_diff=False)))


@lru_cache(maxsize=8)
def _count_parameters(config_json: str) -> Mapping[str, int]:
    with torch.device("meta"):
        config = json.loads(config_json)
        family = family_of(config, "The model")
        model = family.model(family.config(**config))
    counts = Counter(dict.fromkeys(PARTS, 0))
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


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
    """Estimate the peak memory of a training step on one device, without weights and without a device.

    Weights, gradients and optimiser are counted. What one layer of the LLM, one block of the ViT and the head keep for
    the backward pass is measured on tensors without data, see [`measure_activations`]. `working_weights` stand beside
    the stored ones: autocast's copies of the trained weights, or, sharded, two gathered layers and all that is in no
    layer. `text_loss` is TRL's fused LM head: states of the scored tokens, one tile of logits, and the float32
    gradient of its weight. Not counted are the CUDA context, work space, fragmentation and communication buffers.

    Args:
        config: Configuration of the model.
        batch_size: Samples of a micro-batch.
        tokens: Tokens of a sample, image tokens included.
        pixels: Pixels of a sample's images, as the model sees them.
        trained: Number of trained parameters of each part, those of adapters included.
        dtype_bytes: Bytes of a stored weight.
        compute_bytes: Bytes of a computed number, 2 under bfloat16 autocast.
        trained_bytes: Bytes of a stored trained weight, if it differs (adapters).
        optimizer_bytes: Bytes of the optimiser for each trained weight: 8 for AdamW in float32, 2 in 8 bits.
        gradient_checkpointing: True if LLM and ViT keep only the inputs of their layers, and one layer in full.
        scored_tokens: Tokens of a sample with a label; by default those that are not of an image.
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

    def layers(length: float, depth: int, width: int, full: float) -> float:
        return length * (depth * stream * width + full) if gradient_checkpointing else length * depth * full

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
        sizes["llm_activations"] = layers(batch_size * tokens, text.num_hidden_layers, width, kept["llm"])
        sizes["text_loss"] = FLOAT32 * scored * width + compute_bytes * min(scored, TILE_TOKENS) * TILE_WORDS
        sizes["text_loss"] += FLOAT32 * text.vocab_size * width * whole_llm
    if trained.get("vit"):
        patches = visual * vision.spatial_merge_size**2
        sizes["vit_activations"] = layers(patches, vision.depth, vision.hidden_size, kept["vit"])
    if trained.get("head"):
        sizes["head_activations"] = visual * kept["head"]
    result = {name: round(size) for name, size in sizes.items()}
    return {**result, "total": sum(result.values())}


def _unsharded(config: DepthVLMConfig, counts: Mapping[str, int]) -> int:
    """Return the weights that one device holds whole at a time: two LLM layers, and all that is in no layer."""
    with torch.device("meta"):
        layer = sum(p.numel() for p in Qwen3VLTextDecoderLayer(config.text, 0).parameters())
    outside = counts["llm"] - config.text.num_hidden_layers * layer
    return 2 * layer + outside + counts["merger"] + counts["head"]


def measure_activations(config: DepthVLMConfig, autocast: bool, half: bool = False) -> dict[str, float]:
    """Measure the bytes that stay for the backward pass, in tensors without data.

    Args:
        config: Configuration of the model.
        autocast: True if its arithmetic is in bfloat16.
        half: True if its weights are in bfloat16 too.

    Returns:
        Bytes per token of one layer of the LLM (`llm`), per patch of one block of the ViT (`vit`), and per visual
        token of the depth head with its loss (`head`).
    """
    return dict(_measure(config.to_json_string(use_diff=False), autocast, autocast and half))


@lru_cache(maxsize=8)
def _measure(config_json: str, autocast: bool, half: bool) -> Mapping[str, float]:
    config = DepthVLMConfig(**json.loads(config_json))
    text, vision = copy.deepcopy(config.text), copy.deepcopy(config.vision)
    text._attn_implementation = vision._attn_implementation = "sdpa"  # it keeps no scores, as FlashAttention
    (rows, columns), stride = MEASURED_GRID, config.input_stride
    count, dtype = rows * columns, torch.bfloat16 if half else torch.float32
    with FakeTensorMode():
        layer, block = Qwen3VLTextDecoderLayer(text, 0), Qwen3VLVisionBlock(vision)
        for parameter in (*layer.parameters(), *block.parameters()):
            parameter.data = parameter.data.to(dtype)
        head = build_depth_head(config.head, text.hidden_size, stride)
        states = torch.empty(1, count, text.hidden_size, dtype=dtype, requires_grad=True)
        patches = torch.empty(count, vision.hidden_size, dtype=dtype, requires_grad=True)
        turns = [torch.empty(1, count, text.head_dim, dtype=dtype)] * 2
        vision_turns = [torch.empty(count, vision.hidden_size // vision.num_heads, dtype=dtype)] * 2
        mask = torch.ones(1, 1, count, count, dtype=torch.bool)
        ends = np.array([0, count])  # read as numbers, which tensors without data do not have
        maps = 1 if config.head.feature_source == "llm_final" else 4
        features = [torch.empty(1, count, text.hidden_size) for _ in range(maps)]
        truth = torch.empty(1, rows * stride, columns * stride)
        calls: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
            "llm": (layer, lambda: layer(states, turns, attention_mask=mask)),
            "vit": (block, lambda: block(patches, cu_seqlens=ends, position_embeddings=vision_turns)),
            "head": (head, lambda: silog_per_image(head(features, MEASURED_GRID), truth)),
        }
        return {name: kept_for_backward(module, call, autocast) / count for name, (module, call) in calls.items()}


def kept_for_backward(module: nn.Module, call: Callable[[], Any], autocast: bool) -> int:
    """Return the bytes that autograd keeps while `call` runs, without weights and autocast's copies of them.

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
