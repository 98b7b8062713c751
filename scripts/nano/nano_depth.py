"""
How well a model measures synthetic scenes that it has not seen, beside the best constant.

    python scripts/nano/nano_depth.py --model depthvlm/nano --scenes 500

Scenes are rendered at 256x192 pixels with fields of view of 45 to 80 degrees from held-out seeds; the model is told the
focal length. delta1 is the share of pixels with max(p / g, g / p) < 1.25; sky has no depth and does not count.
"""

from typing import Annotated

import numpy as np
import typer
from depthvlm.benchmark.synthetic import render_scene
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depthvlm import DepthPredictor, load

HELD_OUT = 1_000_000_000
CONSTANTS = np.geomspace(0.5, 80, 400)


def main(
    model: Annotated[str | None, typer.Option(help="Checkpoint; the bundled nano by default.")] = None,
    scenes: Annotated[int, typer.Option(help="Scenes of each kind.")] = 250,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: bits of the weights.")] = None,
) -> None:
    """Print delta1 and abs_rel for rooms, streets and both."""
    network = load(model, dtype=dtype, quantize=quantize)
    table = Table(
        "scenes", "images", "delta1, mean of images", "delta1, pooled pixels", "abs_rel", "best constant", "its delta1"
    )
    for name, pairs in predict_scenes(network, scenes, batch_size).items():
        table.add_row(name, str(len(pairs)), *_scores(pairs))
    weights = f", {quantize} weights" if quantize else ""
    Console(width=120).print(f"{network.name}, {dtype}{weights}, {scenes} scenes of each kind", table)


def predict_scenes(
    network: DepthPredictor, scenes: int, batch_size: int
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """For "room", "street" and "both" and every scene: predicted and true metres, where there is a truth."""
    kinds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"room": [], "street": []}
    for kind, pairs in kinds.items():
        for start in track(range(0, scenes, batch_size), description=kind):
            seeds = range(HELD_OUT + start, HELD_OUT + min(start + batch_size, scenes))
            rendered = [render_scene(seed, kind=kind) for seed in seeds]  # type: ignore[arg-type]
            predictions = network.predict(
                [scene.image for scene in rendered],
                focal_length=[scene.focal_length for scene in rendered],
                batch_size=batch_size,
            )
            for scene, prediction in zip(rendered, predictions, strict=True):
                valid = scene.depth > 0
                pairs.append((prediction.depth[valid], scene.depth[valid]))
    return kinds | {"both": kinds["room"] + kinds["street"]}


def delta1(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean over images of the share of pixels with max(p / g, g / p) < 1.25."""
    return float(np.mean([np.mean(np.maximum(p / g, g / p) < 1.25) for p, g in pairs]))


def _scores(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    hits = [np.maximum(p / g, g / p) < 1.25 for p, g in pairs]
    errors = [np.abs(p - g) / g for p, g in pairs]
    truth = np.sort(np.concatenate([g for _, g in pairs]))
    within = np.searchsorted(truth, CONSTANTS * 1.25) - np.searchsorted(truth, CONSTANTS / 1.25, side="right")
    best = int(within.argmax())
    return [
        f"{delta1(pairs):.4f}",
        f"{np.concatenate(hits).mean():.4f}",
        f"{np.mean([e.mean() for e in errors]):.4f}",
        f"{CONSTANTS[best]:.2f} m",
        f"{within[best] / truth.size:.3f}",
    ]


if __name__ == "__main__":
    typer.run(main)
