"""
Makes depthvlm-nano from nothing: its tokenizer, its weights, its processor.

    torchrun --nproc-per-node 2 scripts/make_nano.py --out runs/nano

A Qwen3-VL-shaped model of 5.0 M parameters with the paper's depth head, trained on procedural scenes with the joint
loss of equation 5, data-parallel over as many processes as `torchrun` starts (plain `python` is one). Interrupted, it
goes on from its last saved state. Two CPU cores are enough.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the renderer's small products only lose by threads
# Each grid size has kernels of its own; the default cache of 1,024 would compile them again and again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "65536")

import numpy as np
import torch
import typer
from depthvlm.benchmark.synthetic import render_scene
from depthvlm.modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.processing import DEPTH_REPLY, DepthVLMProcessor
from init_nano import build_processor, depth_messages, nano_config
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset
from transformers import get_cosine_schedule_with_warmup

HELD_OUT = 1_000_000_000  # seeds from here on are for evaluation: training never sees them
ASPECTS = (4 / 3, 4 / 3, 3 / 2, 16 / 9, 1.0)


class SceneBatches(IterableDataset):
    """Endless batches of one grid size each, ready for the model; every scene is new."""

    def __init__(
        self, processor: DepthVLMProcessor, focal_length: float, batch_size: int, first_batch: int, first_seed: int
    ):
        self.processor = processor
        self.focal_length = focal_length
        self.batch_size = batch_size
        self.first_batch = first_batch
        self.first_seed = first_seed
        prompt, bare = depth_messages(), depth_messages(system=False)
        template = processor.apply_chat_template
        self.with_reply = template([*prompt, {"role": "assistant", "content": DEPTH_REPLY}], tokenize=False)
        self.reply_length = len(processor.tokenizer(DEPTH_REPLY + "<|im_end|>\n").input_ids)
        # Depth sees only what stands before and in the image, so most batches need no more text than that.
        self.prefixes = [template(m, tokenize=False).split("<|vision_end|>")[0] for m in (prompt, prompt, prompt, bare)]

    def camera(self, rng: np.random.Generator) -> tuple[float, tuple[int, int], tuple[int, int]]:
        """Field of view in degrees, size of the image, and the grid of tokens that the model will see."""
        fov = rng.uniform(45, 80)
        spread = 2 * math.tan(math.radians(fov / 2))
        width = round(spread * self.focal_length * rng.choice([1.0, 1.0, rng.uniform(1.0, 1.9)]))
        height = round(width / rng.choice(ASPECTS))
        scale = self.focal_length * spread / width
        return fov, (width, height), (round(height * scale / 32), round(width * scale / 32))

    def sample(self, seed: int, grid: tuple[int, int]) -> dict[str, Any]:
        rng = np.random.default_rng([7, seed])
        fov, (width, height), own_grid = self.camera(rng)
        while own_grid != grid:
            fov, (width, height), own_grid = self.camera(rng)
        scene = render_scene(seed, width=width, height=height, fov=fov)
        return {
            "image": _jitter(scene.image, rng),
            "depth": scene.depth,
            "focal_length": float(scene.intrinsics[0, 0]),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in itertools.count(self.first_batch):
            # Drawn from the batch's number alone: all processes have the same size to do, and none waits for another.
            grid = self.camera(np.random.default_rng([8, index]))[2]
            first = self.first_seed + (index - self.first_batch) * self.batch_size
            yield self.collate([self.sample(first + i, grid) for i in range(self.batch_size)], index)

    def collate(self, samples: list[dict[str, Any]], index: int) -> dict[str, Any]:
        reply = index % 4 == 0
        text = self.with_reply if reply else self.prefixes[index % len(self.prefixes)]
        batch = self.processor(
            images=[[sample["image"]] for sample in samples],
            text=[text] * len(samples),
            focal_length=[sample["focal_length"] for sample in samples],
            depth_maps=[sample["depth"] for sample in samples],
            return_tensors="pt",
        )
        if reply:
            labels = batch["input_ids"].clone()
            labels[:, : -self.reply_length] = -100
            batch["labels"] = labels
        return dict(batch)


def _jitter(image: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Gamma and white balance, mildly: no light must be a cue for distance."""
    tone = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.3) * rng.uniform(0.9, 1.1, 3)
    table = (tone.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1))


def _save_state(folder: Path, step: int, seed: int, tensors: dict[str, torch.Tensor]) -> None:
    temporary = folder / "state.tmp"
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, temporary, {"step": str(step), "seed": str(seed)}
    )
    os.replace(temporary, folder / "state.safetensors")


def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the training state.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6200,
    batch_size: Annotated[int, typer.Option(help="Images per step, of all processes together.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1.5e-3,
    save_every: Annotated[int, typer.Option(help="Steps between two saved states.")] = 250,
    threads: Annotated[int, typer.Option(help="Threads of the model; the scenes are rendered by one more.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Train nano, resuming from `--out` where a state lies there."""
    out.mkdir(parents=True, exist_ok=True)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        distributed.init_process_group("gloo")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    processor, prompt_ids = build_processor()
    config: DepthVLMConfig = nano_config(processor.tokenizer, prompt_ids)
    model = DepthVLMForConditionalGeneration(config).train()
    # The ViT attends image by image, over a hundred patches at most: plain products beat the fused kernel's backward.
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(
        optimizer, num_warmup_steps=round(0.04 * steps), num_training_steps=steps
    )
    parameters = dict(model.named_parameters())

    done = 0
    state = out / "state.safetensors"
    if state.exists():
        done = _load_state(state, parameters, optimizer)
        for _ in range(done):
            schedule.step()
        print(f"Resuming at step {done} of {steps}.")

    network = DistributedDataParallel(model) if world > 1 else model
    first_seed = 150_000 * rank + done * (batch_size // world)  # no scene twice, and none of the held-out ones
    scenes = SceneBatches(processor, config.canonical_focal_length, batch_size // world, done, first_seed)
    loader = iter(DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=4))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    log = (out / "log.jsonl").open("a")
    recent: list[float] = []
    started = time.monotonic()
    with Progress(*columns, disable=rank > 0) as progress:
        task = progress.add_task("nano", total=steps, completed=done)
        for step in range(done + 1, steps + 1):
            batch = next(loader)
            kept = {} if "labels" in batch else {"logits_to_keep": 1}
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(**batch, **kept)
            if not torch.isfinite(outputs.loss):
                raise RuntimeError(f"The loss is {outputs.loss.item()} at step {step}: lower --lr and resume.")
            outputs.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            recent.append(outputs.depth_loss.item())
            if rank == 0 and (step % 25 == 0 or step == steps):
                rate = (step - done) * batch_size / (time.monotonic() - started)
                row = {"step": step, "depth_loss": float(np.mean(recent)), "images_per_second": round(rate, 1)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                recent.clear()
                progress.update(task, completed=step, description=f"nano: depth loss {row['depth_loss']:.3f}")
            if rank == 0 and (step % save_every == 0 or step == steps):
                _save_state(out, step, seed, _state_tensors(parameters, optimizer))

    if rank:
        return
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(out / "checkpoint")
    processor.save_pretrained(out / "checkpoint")
    print(f"Wrote {out / 'checkpoint'}")


def _state_tensors(parameters: dict, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"model.{name}": p.detach() for name, p in parameters.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    return tensors


def _load_state(state: Path, parameters: dict, optimizer: torch.optim.Optimizer) -> int:
    tensors = load_file(state)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return int(next(iter(moments.values()))["step"])


if __name__ == "__main__":
    typer.run(train)
