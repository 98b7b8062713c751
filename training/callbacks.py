"""Observers of a run: the numbers that are logged, pictures for the trackers, and the text probe."""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset, load_from_disk
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl.data_utils import is_conversational, prepare_multimodal_messages

from ..files import atomic_write
from ..modeling_depthvlm.losses_depthvlm import resize_depth
from ..visualize import colorize, depth_range, scale_bar
from .dense_losses import DenseWeights
from .forward import TOTALS

logger = logging.getLogger(__name__)

# Added by a micro-batch besides `TOTALS`: its shares of the step's loss, and exact sums.
SHARES = (
    *("text_share", "depth_share", "text_nll", "text_tokens", "images", "tokens", "skipped"),
    *("camera_share", "camera_nll", "camera_error", "camera_images"),
)
NAMES = (*SHARES, *TOTALS)

MOST_ROWS = 4  # rows of a picture
TITLE = "depth: image, truth, prediction"

# Number of the base model's likeliest tokens kept for the text probe; all other tokens count as one.
KEPT_TOKENS = 128


class DepthMeter:
    """Sums of one mode (training or evaluation), on the device, gathered over ranks when they are logged.

    `text_loss` and `depth_loss` of training are means over optimiser steps, so that
    `loss = text_loss + alpha * depth_loss` holds for the logged values; those of an evaluation are exact over all its
    tokens and images.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Reset all sums and restart the clock."""
        self.sums = torch.zeros(len(NAMES), dtype=torch.float64)
        self.batches = 0
        self.steps = 0  # optimiser steps
        self.started = time.perf_counter()

    def add(self, totals: Tensor | None, **shares: Tensor | float) -> None:
        """Add a micro-batch: the `TOTALS` of its depth, and `SHARES` by name."""
        device = self.accelerator.device
        # float32 is exact to 16 million a micro-batch; Apple's GPUs have no float64.
        row = torch.stack([torch.as_tensor(shares.get(name, 0.0), device=device).float() for name in SHARES])
        totals = torch.zeros(len(TOTALS), device=device) if totals is None else totals.to(device)
        self.sums = self.sums.to(device) if device.type != "mps" else self.sums
        self.sums = self.sums + torch.cat([row, totals]).detach().to(self.sums)
        self.batches += 1

    def read(
        self,
        *,
        alpha: float,
        training: bool,
        text: bool,
        dense: DenseWeights = DenseWeights(),  # noqa: B008  # frozen
        camera: float = 0.0,
    ) -> dict[str, float]:
        """Return the numbers since the last call, over all ranks; every rank must call it.

        Args:
            alpha: Weight of the depth loss.
            training: True for losses as means over steps, False for exact ones over the evaluated data.
            text: True if there is a text loss.
            dense: Weights of the losses for dense truth; those that have one are logged, each without its weight, and
                SILog with them.
            camera: Weight of the camera head's loss.

        Returns:
            Numbers by name; none if there was no batch.
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
            if camera:
                numbers["camera_loss"] = sums["camera_share"] / ranks / steps / camera
            numbers["images_per_second"] = sums["images"] / elapsed
            numbers["tokens"] = sums["tokens"]
        else:
            if text:
                numbers["text_loss"] = sums["text_nll"] / max(1, sums["text_tokens"])
            if images:
                depth = sums["silog"] + sum(weight * sums[name] for name, weight in vars(dense).items())
                numbers["depth_loss"] = depth / images
            if sums["camera_images"]:
                numbers["camera_loss"] = sums["camera_nll"] / sums["camera_images"]
            numbers["loss"] = numbers.get("text_loss", 0.0) + alpha * numbers.get("depth_loss", 0.0)
            numbers["loss"] += camera * numbers.get("camera_loss", 0.0)
        if images:
            if dense.names:
                numbers |= {name: sums[name] / images for name in ("silog", *dense.names)}
            numbers["delta1"] = sums["delta1"] / images
            numbers["abs_rel"] = sums["abs_rel"] / images
            numbers["valid_pixels"] = sums["valid_pixels"] / max(1, sums["pixels"])
        if sums["camera_images"]:
            numbers["camera_error"] = sums["camera_error"] / sums["camera_images"]
        numbers["depth_images"] = images
        numbers["skipped_samples"] = sums["skipped"]
        return numbers


class LearningRates(TrainerCallback):
    """The learning rate of every named group of the optimiser in the logged step."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the rates before the scheduler moves on."""
        groups = kwargs["optimizer"].param_groups
        self.values = {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups if "name" in group}


def input_image(patches: Tensor, grid_thw: Sequence[int], image_processor: Any) -> np.ndarray:
    """Return the picture that the model saw, rebuilt from its patches.

    Args:
        patches (`(h * w, channels * temporal * patch * patch)`): Patches of one image, in the order of merged 2x2
            blocks.
        grid_thw: Row of `image_grid_thw` for the image.
        image_processor: Processor of the model, for its mean, deviation and patch size.

    Returns:
        `(height, width, 3)` uint8.
    """
    _, rows, columns = (int(n) for n in grid_thw)
    merge, side = image_processor.merge_size, image_processor.patch_size
    x = patches.float().cpu().view(rows // merge, columns // merge, merge, merge, 3, -1, side, side)[..., 0, :, :]
    x = x.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, columns * side, 3)
    x = x * torch.tensor(image_processor.image_std) + torch.tensor(image_processor.image_mean)
    return (x.clamp(0, 1) * 255).round().byte().numpy()


def picture_grid(
    inputs: dict[str, Any], depth_labels: Sequence[Tensor | None], prediction: Sequence[Tensor], image_processor: Any
) -> Image.Image | None:
    """Draw one row for each image with depth, at most four: image, truth, prediction, and their scale in metres."""
    grids = inputs["image_grid_thw"].tolist()
    patches = inputs["pixel_values"].split([t * h * w for t, h, w in grids])
    rows: list[np.ndarray] = []
    for index, truth in enumerate(depth_labels):
        if truth is None or len(rows) == MOST_ROWS:
            continue
        image = input_image(patches[index], grids[index], image_processor)
        height, width = image.shape[:2]
        truth = truth.float().cpu()[None, None]
        nearest = torch.nn.functional.interpolate(truth, size=(height, width), mode="nearest")[0, 0]
        seen = resize_depth(prediction[index].float().cpu()[None], (height, width))[0]
        limits = depth_range(nearest.numpy(), seen.numpy())
        colored = [colorize(depth.numpy(), limits) for depth in (nearest, seen)]
        bar = np.asarray(scale_bar(height, limits))
        rows.append(np.concatenate([image, *colored, bar], axis=1))
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return Image.fromarray(np.concatenate(padded))


def log_picture(trainer: Any, picture: Image.Image) -> None:
    """Send a picture to the run's trackers that accept pictures: TensorBoard, Weights & Biases and Trackio."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image(TITLE, np.asarray(picture), step, dataformats="HWC")
    if "wandb" in trainer.args.report_to:
        import wandb

        if wandb.run is not None:
            wandb.log({TITLE: wandb.Image(picture)})
    if "trackio" in trainer.args.report_to:
        import trackio

        trackio.log({TITLE: trackio.Image(picture)})


class TextProbe:
    """Comparison of a model's replies with those of the model that training started from.

    The base model's greedy replies and the probabilities of its 128 likeliest tokens are written to
    `OUTPUT_DIR/text_probe.safetensors` before the first step, so that a resumed run compares with the same model.

    Args:
        rows: Conversations (`messages`, or conversational `prompt` and `completion`) with `images`; their last replies
            are not read.
        processor: Processor of the model.
        file: File that keeps the base model's replies.
        max_new_tokens: Greatest length of a reply.

    Raises:
        ValueError: If there are no rows, or one is not a conversation.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], processor: Any, file: str | os.PathLike, max_new_tokens: int = 32
    ):
        if not rows:
            raise ValueError("The text probe has no examples: check --text_probe and --text_probe_split.")
        self.prompts = [probe_prompt(row, index) for index, row in enumerate(rows)]
        self.processor = processor
        self.file = Path(file)
        self.max_new_tokens = max_new_tokens

    def remember(self, model: Any, again: bool = False) -> None:
        """Take `model` as the base model, unless the file already holds replies; `again` replaces them."""
        if self.file.exists() and not again:
            return
        tensors: dict[str, Tensor] = {}
        replies = []
        kept = min(KEPT_TOKENS, model.config.get_text_config().vocab_size)
        for index in range(len(self.prompts)):
            inputs = self._inputs(index, model)
            reply = self._generate(model, inputs)
            top = self._log_probs(model, inputs, reply).topk(kept, dim=-1)
            tensors |= {
                f"{index}.reply": reply.cpu(),
                f"{index}.tokens": top.indices.cpu(),
                f"{index}.log_probs": top.values.cpu(),
            }
            replies.append(self.processor.tokenizer.decode(reply, skip_special_tokens=True))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file) as file:
            file.write(save(tensors, {"replies": json.dumps(replies)}))

    def compare(self, model: Any) -> dict[str, float]:
        """Compare `model` with the base model.

        Returns:
            `text_probe_match`, the share of prompts that get exactly the base model's reply, and `text_probe_kl`, the
            mean over the tokens of the base model's replies of KL(base || model) in nats, where all tokens but the
            base model's 128 likeliest count as one: a lower bound of the full divergence.
        """
        matches = tokens = 0
        divergence = 0.0
        with safe_open(self.file, framework="pt") as kept:
            for index in range(len(self.prompts)):
                inputs = self._inputs(index, model)
                reply = kept.get_tensor(f"{index}.reply").to(model.device)
                matches += int(torch.equal(self._generate(model, inputs), reply))
                base = kept.get_tensor(f"{index}.log_probs").to(model.device)
                now = self._log_probs(model, inputs, reply)
                now = now.gather(-1, kept.get_tensor(f"{index}.tokens").to(model.device))
                divergence += _coarse_kl(base, now).sum().item()
                tokens += reply.shape[0]
        return {"text_probe_match": matches / len(self.prompts), "text_probe_kl": divergence / max(1, tokens)}

    def _inputs(self, index: int, model: Any) -> dict[str, Any]:
        inputs = self.processor.apply_chat_template(
            [self.prompts[index]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        kept = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        inputs = {name: inputs[name].to(model.device) for name in kept if name in inputs}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        return inputs

    @torch.no_grad()
    def _generate(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        output = model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens, return_dict_in_generate=False
        )
        return output[0, inputs["input_ids"].shape[1] :]

    @torch.no_grad()
    def _log_probs(self, model: Any, inputs: dict[str, Any], reply: Tensor) -> Tensor:
        """Return the log-probabilities at each token of a reply, `(reply tokens, vocabulary)` float32."""
        ids = torch.cat([inputs["input_ids"], reply[None]], dim=1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            more["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(reply))], dim=1)
        logits = model(**(inputs | more), output_depth=False, use_cache=False, logits_to_keep=len(reply) + 1).logits
        return logits[0, :-1].float().log_softmax(-1)


def probe_rows(name: str, split: str, count: int) -> list[dict[str, Any]]:
    """Return the first `count` rows of a data set: a Hub name, a folder, or the output of `Dataset.save_to_disk`."""
    if (Path(name) / "state.json").is_file():
        return list(load_from_disk(name).take(count))
    return list(load_dataset(name, split=split, streaming=True).take(count))


def probe_prompt(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
    """Return the conversation of a row up to its last reply, with the row's images in it.

    Raises:
        ValueError: If the row is not a conversation.
    """
    row = {key: value for key, value in row.items() if value is not None}
    messages = row.get("messages") or row.get("prompt")
    if not isinstance(messages, list) or not is_conversational({"messages": messages}):
        raise ValueError(
            f"Example {index} of the text probe is no conversation: give `messages`, or `prompt` as a list of messages."
        )
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    images = row.get("images") or ([row["image"]] if "image" in row else [])
    return prepare_multimodal_messages([dict(message) for message in messages], images=list(images))


def _coarse_kl(base: Tensor, now: Tensor) -> Tensor:
    """Return KL(base || now) of each position from log-probabilities of some tokens, with all others as one."""
    rest_base = (1 - base.exp().sum(-1)).clamp(min=0)
    rest_now = (1 - now.exp().sum(-1)).clamp(min=1e-12)
    rest = torch.where(rest_base > 1e-12, rest_base * (rest_base.clamp(min=1e-12).log() - rest_now.log()), 0.0)
    return ((base.exp() * (base - now)).sum(-1) + rest).clamp(min=0)
