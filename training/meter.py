"""Sums of what is logged, kept on the device and gathered over ranks once, when they are logged."""

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from .targets import TOTALS

# What a micro-batch adds besides `TOTALS`: its shares of the step's loss, and exact sums.
SHARES = ("text_share", "depth_share", "text_nll", "text_tokens", "images", "tokens", "skipped")
NAMES = (*SHARES, *TOTALS)


class DepthMeter:
    """
    The numbers of one mode (training or evaluation) since they were last logged.

    `text_loss` and `depth_loss` of training are means over optimiser steps, so that
    `loss = text_loss + alpha * depth_loss` holds for what is logged; those of an evaluation are exact over all of its
    tokens and images.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Forget everything, and start the clock."""
        self.sums = torch.zeros(len(NAMES), dtype=torch.float64)
        self.batches = 0
        self.steps = 0  # optimiser steps
        self.started = time.perf_counter()

    def add(self, totals: Tensor | None, **shares: Tensor | float) -> None:
        """Add a micro-batch: `TOTALS` of its depth, and `SHARES` by name."""
        device = self.accelerator.device
        # Counted in float32: exact to 16 million a micro-batch; Apple's GPUs have no float64.
        row = torch.stack([torch.as_tensor(shares.get(name, 0.0), device=device).float() for name in SHARES])
        totals = torch.zeros(len(TOTALS), device=device) if totals is None else totals.to(device)
        self.sums = self.sums.to(device) if device.type != "mps" else self.sums
        self.sums = self.sums + torch.cat([row, totals]).detach().to(self.sums)
        self.batches += 1

    def read(self, *, alpha: float, training: bool, text: bool) -> dict[str, float]:
        """
        The numbers since the last call, over all ranks; every rank must call it. Empty where there was no batch.

        Args:
            alpha: depth loss weight.
            training: whether the losses are means over steps or exact over what was evaluated.
            text: whether there is a text loss.
        """
        if self.batches == 0:
            return {}
        elapsed = time.perf_counter() - self.started
        reduced = self.accelerator.reduce(self.sums.float(), reduction="sum")
        sums = dict(zip(NAMES, reduced.tolist(), strict=True))
        steps = max(1, self.steps)
        self.reset()
        numbers: dict[str, float] = {}
        images = sums["depth_images"]
        if training:
            ranks = self.accelerator.num_processes
            if text:
                numbers["text_loss"] = sums["text_share"] / ranks / steps
            if alpha:
                numbers["depth_loss"] = sums["depth_share"] / ranks / steps / alpha
            numbers["images_per_second"] = sums["images"] / elapsed
            numbers["tokens"] = sums["tokens"]
        else:
            if text:
                numbers["text_loss"] = _ratio(sums["text_nll"], sums["text_tokens"])
            if images:
                numbers["depth_loss"] = _ratio(sums["silog"], images)
            numbers["loss"] = numbers.get("text_loss", 0.0) + alpha * numbers.get("depth_loss", 0.0)
        if images:
            numbers["delta1"] = sums["delta1"] / images
            numbers["abs_rel"] = sums["abs_rel"] / images
            numbers["valid_pixels"] = _ratio(sums["valid_pixels"], sums["pixels"])
        numbers["depth_images"] = images
        numbers["skipped_samples"] = sums["skipped"]
        return numbers


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0


class LearningRates(TrainerCallback):
    """The learning rate of every named group of the optimiser, as it was in the step that is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the scheduler moves on."""
        groups = kwargs["optimizer"].param_groups
        self.values = {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups if "name" in group}
