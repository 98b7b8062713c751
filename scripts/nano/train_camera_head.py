"""
Train the camera head of nano alone, on feature maps that are computed once and kept.

    python scripts/nano/train_camera_head.py runs/nano-camera --cache runs/camera-maps

The rest of the model is frozen, so that its maps of a picture never change: an epoch over them takes seconds, where
rendering and the vision pass take minutes. Cameras are withheld by the collator of `depthvlm sft`, and the loss is its
loss; that command, with scripts/nano/camera_head.yaml, trains the same head and sees every scene once.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from camera_scenes import camera_scene
from depthvlm.modeling_depthvlm.camera_head_depthvlm import CameraHead, camera_nll
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import init_head_layer
from depthvlm.processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from depthvlm.training.collator import DepthDataCollator
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save
from torch import Tensor

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMProcessor
from depthvlm.checkpoint import resolve_model_path
from depthvlm.files import atomic_write

BLOCKS = ((490_000_000, 6_000), (491_000_000, 14_400))  # first seed and number of scenes; a file each
PROMPT = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, {"role": "user", "content": DEPTH_PROMPT}]
BATCH = 24
WARMUP = 100  # steps

Maps = dict[str, Tensor]  # by the size in tokens: "5x6.maps" (N, 4, 30, hidden_size) float16, "5x6.labels" (N,)


def maps_of(model: Any, processor: Any, first: int, count: int) -> Maps:
    """Return the maps that the depth head reads of scenes whose cameras are withheld, and the labels of these."""
    collate = DepthDataCollator(processor, camera_withheld=1.0)
    found: dict[str, list[Tensor]] = {}
    for start in track(range(first, first + count, 16), description=f"scenes from {first}"):
        scenes = [camera_scene(seed) for seed in range(start, min(start + 16, first + count))]
        inputs = collate(
            [
                {"messages": PROMPT, "images": [Image.fromarray(picture)], "focal_length": scene.focal_length}
                for scene, picture, _ in scenes
            ]
        )
        labels = inputs.pop("camera_labels")
        for features, label in zip(model.depth_features(**inputs), labels, strict=True):
            size = "{}x{}".format(*features.grid)
            found.setdefault(f"{size}.maps", []).append(features.maps.flatten(1, 2).half())
            found.setdefault(f"{size}.labels", []).append(label)
    return {name: torch.stack(parts) for name, parts in found.items()}


def train(head: CameraHead, maps: Maps, epochs: int, learning_rate: float, weight_decay: float) -> None:
    """Train a head; the batches of an epoch hold images of one size each."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    counts = {name.removesuffix(".labels"): len(labels) for name, labels in maps.items() if name.endswith(".labels")}
    steps = epochs * sum(count // BATCH for count in counts.values())
    rng, step = np.random.default_rng(0), 0
    for epoch in range(epochs):
        batches = []
        for size, count in counts.items():
            order = rng.permutation(count)
            batches += [(size, order[start : start + BATCH]) for start in range(0, count - BATCH + 1, BATCH)]
        rng.shuffle(batches)  # type: ignore[arg-type]
        total = 0.0
        for size, chosen in track(batches, description=f"epoch {epoch + 1}", transient=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            height, width = map(int, size.split("x"))
            estimate = head(list(maps[f"{size}.maps"][chosen].float().unbind(1)), (height, width))
            loss = camera_nll(estimate, maps[f"{size}.labels"][chosen]) / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, total = step + 1, total + loss.item()
        print(f"epoch {epoch + 1}: negative log-likelihood {total / len(batches):.3f}", flush=True)


def main(
    out: Annotated[Path, typer.Argument(help="New folder of the checkpoint.")],
    cache: Annotated[Path, typer.Option(help="Folder of the maps, which are computed where they are missing.")],
    epochs: Annotated[int, typer.Option()] = 20,
    learning_rate: Annotated[float, typer.Option()] = 2e-3,
    weight_decay: Annotated[float, typer.Option()] = 0.1,
) -> None:
    """Train the camera head and save the model with it."""
    if out.exists():
        raise typer.BadParameter(f"{out} exists: give a new folder.")
    start = resolve_model_path("depthvlm-nano")
    processor = DepthVLMProcessor.from_pretrained(start)
    model = DepthVLMForConditionalGeneration.from_pretrained(
        start, dtype=torch.float32, depth_config={"predict_fov": True}
    )
    maps: Maps = {}
    for first, count in BLOCKS:
        file = cache / f"{first}_{count}.safetensors"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as stream:
                stream.write(save(maps_of(model.eval(), processor, first, count)))
        for name, part in load_file(file).items():
            maps[name] = torch.cat([maps[name], part]) if name in maps else part
    torch.manual_seed(0)
    head = CameraHead(4, model.config.text.hidden_size, model.config.head.features)
    head.apply(init_head_layer)
    train(head, maps, epochs, learning_rate, weight_decay)
    model.depth_head.camera.load_state_dict(head.state_dict())
    model.bfloat16().save_pretrained(out)  # as the bundled nano
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
