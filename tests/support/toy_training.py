"""Small RGB-D data sets and training settings for the tests of the trainer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

from depthvlm import DepthSFTConfig

SCALE = 1000.0
FEATURES = Features(
    {
        "messages": [{"role": Value("string"), "content": Value("string")}],
        "images": List(Image()),
        "depth": List(Image()),
        "depth_scale": Value("float64"),
        "focal_length": Value("float64"),
    }
)


def toy_row(index: int, *, image: bool = True, depth: bool = True, size: tuple[int, int] = (96, 64)) -> dict[str, Any]:
    """A conversation about an image of random colours, and a slanted plane as its depth; all from the index."""
    rng = np.random.default_rng(index)
    width, height = size
    metres = np.linspace(1 + index % 3, 4 + index % 5, width)[None, :] + np.linspace(0, 1, height)[:, None]
    row: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": f"What is number {index}?"},
            {"role": "assistant", "content": "It is " + "so " * (1 + index % 4) + "big."},
        ],
        "images": [],
        "depth": None,
        "depth_scale": SCALE,
        "focal_length": None,
    }
    if image:
        row["images"] = [Pictures.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))]
        row["focal_length"] = 1000.0
        row["depth"] = [None]
    if image and depth:
        row["depth"] = [Pictures.fromarray((metres * SCALE).astype(np.uint16))]
    return row


def toy_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of all kinds: two in four with depth, one with an image alone, one of text alone."""
    kinds = [{}, {"depth": False}, {}, {"image": False}]
    return [toy_row(start + i, **kinds[i % 4]) for i in range(count)]


def save_toy_lines(folder: Path) -> None:
    """Eight rows of all kinds as `rgbd.jsonl`, their images and depth maps in `files/`."""
    (folder / "files").mkdir()
    lines = []
    for index, row in enumerate(toy_rows(8)):
        names: dict[str, list[str | None]] = {"images": [], "depth": []}
        for column, values in names.items():
            for value in row[column] or []:
                name = None if value is None else f"files/{index}_{column}.png"
                values.append(name)
                if value is not None:
                    value.save(folder / name)
        lines.append(json.dumps(row | names))
    (folder / "rgbd.jsonl").write_text("\n".join(lines))


def toy_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """The rows with images as encoded files, as a data set on disk has them."""
    return Dataset.from_list(rows, features=FEATURES)


def setting_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short run on a CPU: plain gradient descent without clipping, so that weights show gradients."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    return values | changes


def settings(folder: Path, **changes: Any) -> DepthSFTConfig:
    """The same, as a configuration."""
    return DepthSFTConfig(**setting_values(folder, **changes))
