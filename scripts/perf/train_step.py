"""
What a training step costs: ratios measured in one run, at full 4B width with random weights, forward and backward.

    python scripts/perf/train_step.py --layers 36 --size 192x256
    python scripts/perf/train_step.py --device cuda --size 992x1344 --batch-size 4

Stage 1 against the same step with the frozen LLM in the graph and checkpointing on (what a trainer does that freezes
weights and changes nothing else); stage 2 against a plain SFT step on the same batch and the head's own share; and both
against what the loader delivers.
"""

import io
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration, silog_loss
from depthvlm.processing import DepthVLMProcessor
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.forward import DepthTargets, install_training_forward
from depthvlm.training.optimizer import set_trainable
from forward import build_inputs, build_model, compare, console
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from trl.trainer.utils import add_fused_lm_head

from depthvlm.checkpoint import bundled_model_path


def training_batch(
    model: DepthVLMForConditionalGeneration, size: tuple[int, int], batch_size: int
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Rows of one image in the method's prompt, the last 12 tokens as the reply, and their depth in metres."""
    row = build_inputs(model, size)
    inputs = {name: torch.cat([value] * batch_size) if value.ndim else value for name, value in row.items()}
    labels = inputs["input_ids"].clone()
    labels[:, :-12] = -100
    inputs["labels"] = labels
    depth = [torch.rand(size, device=model.device) * 9 + 1 for _ in range(batch_size)]
    return inputs, depth


class Pictures(Dataset):
    """RGB-D rows of one size, encoded as on disk."""

    def __init__(self, size: tuple[int, int]):
        rng = np.random.default_rng(0)
        smooth = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(size[::-1])
        stream, depth = io.BytesIO(), io.BytesIO()
        smooth.save(stream, "JPEG")
        metres = np.linspace(1000, 9000, size[0] * size[1]).reshape(size)
        Image.fromarray(metres.astype(np.uint16)).save(depth, "PNG")
        self.row = {"images": [{"bytes": stream.getvalue(), "path": None}], "depth_scale": 1000.0}
        self.row |= {"depth": {"bytes": depth.getvalue(), "path": None}, "focal_length": 1000.0}

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.row)


def loader_seconds(size: tuple[int, int], batch_size: int, workers: int, batches: int = 20) -> float:
    """Seconds a batch from a loader with that many workers, decoding included."""
    processor = DepthVLMProcessor.from_pretrained(bundled_model_path())
    processor.image_processor.canonical_focal_length = 1000.0
    loader = iter(DataLoader(Pictures(size), batch_size, collate_fn=DepthDataCollator(processor), num_workers=workers))
    for _ in range(2 * workers):
        next(loader)
    started = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return (time.perf_counter() - started) / batches


def main(
    layers: Annotated[int, typer.Option(help="LLM layers; 36 is the full model.")] = 36,
    size: Annotated[str, typer.Option(help="Height x width of the image in pixels, multiples of 32.")] = "192x256",
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.")] = 1,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Workers of the loader.")] = 2,
) -> None:
    """Print the three comparisons."""
    height, width = (int(side) for side in size.split("x"))
    model = build_model("4b", layers, device, torch.bfloat16).train()
    inputs, depth = training_batch(model, (height, width), batch_size)
    targets = DepthTargets(depth_labels=depth, focal_scale=None, weight=1.0 / batch_size)
    plain_forward = model.forward
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}

    def clear() -> None:
        model.zero_grad(set_to_none=True)  # no gradient stays from one candidate to the next

    def frozen_in_graph() -> None:
        _, prediction = model.run_backbone(True, **without_labels, use_cache=False)
        silog_loss(prediction, depth).backward()

    def with_text_loss() -> None:
        model.forward = plain_forward
        model(**inputs, depth_labels=depth, use_cache=False).loss.backward()
        model.forward = head_forward

    def stage1() -> None:
        model(**inputs, depth_targets=targets, fused_lm_head=True).depth_loss.backward()

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    fused_forward = model.forward
    set_trainable(model, ["head"])

    def checkpointed(run: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
            run()
            model.disable_input_require_grads()
            model.gradient_checkpointing_disable()

        return call

    install_training_forward(model, 0.5, text=False)
    head_forward = model.forward
    name = "frozen LLM in the graph"
    candidates = {
        name: checkpointed(frozen_in_graph),
        f"{name}, text loss": checkpointed(with_text_loss),
        "stage 1": stage1,
    }
    title = f"stage 1, {layers} layers, {size}, batch {batch_size}"
    pairs = {"stage 1": name, f"{name}, text loss": name}
    first = compare(title, candidates, rounds, device, pairs, grad=True, before=clear)

    model.forward = fused_forward
    set_trainable(model, ["head+llm"])
    model.gradient_checkpointing_enable({"use_reentrant": False})

    def plain_sft() -> None:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        (-outputs.log_probs.sum() / (12 * batch_size)).backward()

    def stage2() -> None:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True, depth_targets=targets)
        (outputs.depth_loss - outputs.log_probs.sum() / (12 * batch_size)).backward()

    tokens = (height // 32) * (width // 32)
    hidden = model.config.text.hidden_size
    maps = [torch.randn(batch_size, tokens, hidden, device=device, dtype=model.dtype) for _ in range(4)]
    for feature in maps:
        feature.requires_grad_(True)  # the loss goes on into the LLM

    def head_alone() -> None:
        prediction = model.depth_head(maps, (height // 32, width // 32))
        silog_loss(prediction, depth).backward()

    install_training_forward(model, 0.5, text=True)
    joint_forward = model.forward

    def with_forward(forward: Any, run: Any) -> Any:
        def call() -> None:
            model.forward = forward
            run()

        return call

    second = compare(
        f"stage 2, {layers} layers, {size}, batch {batch_size}",
        {
            "plain SFT": with_forward(fused_forward, plain_sft),
            "head alone": head_alone,
            "stage 2": with_forward(joint_forward, stage2),
        },
        rounds,
        device,
        {"head alone": "plain SFT", "stage 2": "plain SFT"},
        grad=True,
        before=clear,
    )
    sums = [a + b for a, b in zip(second["plain SFT"], second["head alone"], strict=True)]
    ratio = statistics.median(one / both for one, both in zip(second["stage 2"], sums, strict=True))
    console.print(f"stage 2 over plain SFT plus the head's own share: {ratio:.3f}")
    batch = loader_seconds((height, width), batch_size, workers)
    steps = ", ".join(
        f"{name} step {statistics.median(times[name]):.4f} s"
        for name, times in (("stage 1", first), ("stage 2", second))
    )
    console.print(f"loader with {workers} workers: {batch:.4f} s a batch; {steps}")


if __name__ == "__main__":
    typer.run(main)
