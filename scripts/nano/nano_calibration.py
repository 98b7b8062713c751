"""
How much known distances improve the bundled nano on synthetic scenes that it has not seen.

    python scripts/nano/nano_calibration.py --scenes 50

Scenes are rendered as for `nano_depth.py`. Known distances are true depths of random pixels, one in ten of them times
10 (with fewer than 10: none); errors are those of all pixels. In the second half the model is told a focal length that
is wrong by a factor of 1.4, as an assumed one may be.
"""

from typing import Annotated

import numpy as np
import typer
from depthvlm.benchmark.synthetic import render_scene
from nano_depth import HELD_OUT, delta1
from rich.console import Console
from rich.table import Table

from depthvlm import load
from depthvlm.calibration import POINTS_NEEDED

COUNTS = (1, 3, 10, 30, 100, 1000)


def main(scenes: Annotated[int, typer.Option(help="Scenes of each kind, rooms and streets.")] = 50) -> None:
    """Print delta1 and the median relative error for every model of calibration and number of known distances."""
    network = load()
    rendered = [render_scene(HELD_OUT + seed, kind=kind) for kind in ("room", "street") for seed in range(scenes)]
    table = Table("focal length", "known distances", "not calibrated", *POINTS_NEEDED, title="delta1 (median error)")
    for times in (1.0, 1.4):
        predictions = network.predict(
            [scene.image for scene in rendered], focal_length=[scene.focal_length * times for scene in rendered]
        )
        for count in COUNTS:
            row = [_score([(p.depth, scene.depth) for p, scene in zip(predictions, rendered, strict=True)])]
            for model, needed in POINTS_NEEDED.items():
                maps = []
                for seed, (prediction, scene) in enumerate(zip(predictions, rendered, strict=True)):
                    if count < needed:
                        break
                    random = np.random.default_rng(seed)
                    y, x = random.permutation(np.argwhere(scene.depth > 0))[:count].T
                    known = scene.depth[y, x] * np.where(np.arange(count) % 10 == 9, 10, 1)
                    points = np.column_stack([x + 0.5, y + 0.5, known])
                    try:
                        maps.append((prediction.calibrate(points, model).depth, scene.depth))
                    except ValueError:  # three points at one depth
                        maps.append((prediction.depth, scene.depth))
                row.append(_score(maps) if maps else "-")
            table.add_row("true" if times == 1 else f"x {times}", str(count), *row)
    Console(width=120).print(table)


def _score(maps: list[tuple[np.ndarray, np.ndarray]]) -> str:
    pairs = [(depth[truth > 0], truth[truth > 0]) for depth, truth in maps]
    error = np.mean([np.median(np.abs(p - g) / g) for p, g in pairs])
    return f"{delta1([(np.maximum(p, 1e-6), g) for p, g in pairs]):.3f} ({error:.1%})"


if __name__ == "__main__":
    typer.run(main)
