"""The report of `depthvlm sft --dry-run`: trained parts, the first batch decoded, an estimate of memory."""

from collections.abc import Iterable
from itertools import chain, groupby, islice
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..modeling_depthvlm.losses_depthvlm import valid_depth
from ..processing import CAMERA_SOURCES
from .collator import IGNORED
from .depth_checks import FirstLook
from .memory import FLOAT32, count_parameters, estimate_memory, unmeasured_layers
from .optimizer import PARTS, part_of

ROWS_SHOWN = 4
BATCHES_LOOKED_AT = 8  # for signs of wrong depth: small batches have too few images
MIB, GIB = 2**20, 2**30


def describe(trainer: Any) -> Group:
    """Describe what a trainer would train, without running it.

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
        dense = vars(trainer.args.dense_weights()).items()
        parts = [f"{factor:g} x {name.replace('_', ' ')}" for name, factor in dense if factor]
        lines.append(
            f"Loss: {weight:g} x depth loss (stage 1: no text)"
            if trainer.head_alone
            else f"Loss: text loss + {weight:g} x depth loss"
        )
        if trainer.camera_loss_weight:
            lines[-1] += (
                f" + {trainer.camera_loss_weight:g} x camera loss, {args.camera_withheld:.0%} of cameras withheld"
            )
        if parts:
            lines.append(f"Depth loss: {' + '.join(['SILog', *parts])}")
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
    settings, table = estimate_settings(trainer, batch), _table("memory", "")
    for name, size in estimate_memory(trainer.model.config, **settings).items():
        table.add_row(name.replace("_", " "), f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB")
    left_out = unmeasured_layers(
        trainer.model.config, settings["compute_bytes"] < FLOAT32, settings["dtype_bytes"] < FLOAT32
    )
    notes = [Text(f"Not counted, for it cannot be measured without data: {one}", style="bold red") for one in left_out]
    note = (
        "Not counted: the CUDA context (0.5 to 1 GiB), work space, fragmentation. A batch with larger images or longer "
        "text needs more."
    )
    return [table, *notes, Text(note)]


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
        # Including adapters and quantised weights: bytes stored per number of the plain model.
        "dtype_bytes": stored / sum(count_parameters(config).values()),
        "trained_bytes": trained_bytes,
        "compute_bytes": 2 if half else 4,
        "optimizer_bytes": _optimizer_bytes(_value(args.optim), trained_bytes),
        "shards": state.num_processes if sharded else 1,
    }


def _optimizer_bytes(name: str, trained_bytes: float) -> float:
    """Return the bytes of an optimiser's state per trained parameter: for AdamW, two moments in its dtype."""
    if "8bit" in name:
        return 2.0
    if name.startswith(("sgd", "adafactor")):  # no state without momentum; two vectors for each matrix
        return 0.0
    return 2 * trained_bytes
