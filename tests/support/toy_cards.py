"""A checkpoint with a trained head, and results of it, for the tests of the cards."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from toy_results import make

from depthvlm.checkpoint import checkpoint_hash


def with_trained_head(source: Path, folder: Path) -> Path:
    """A copy whose head's biases are not as they were drawn."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.startswith("depth_head.") and name.endswith(".bias"):
            weights[name] = weights[name] + torch.linspace(0.1, 0.2, weights[name].numel()).to(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def results_of(checkpoint: Path, folder: Path) -> list[Path]:
    """NYUv2 under `depthvlm`, DDAD under `dense` with an option, both of that checkpoint."""
    folder.mkdir(exist_ok=True)
    mine = {"checkpoint": checkpoint_hash(checkpoint)}
    return [
        make(folder, "nyuv2", 0.81237, **mine),
        make(folder, "ddad", 0.65432, protocol="dense", options={"dtype": "float32"}, **mine),
    ]
