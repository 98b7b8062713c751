"""
What averaging over views (`refine=N`) brings on synthetic scenes that the model has not seen.

    python scripts/nano/compare_refinement.py --scenes 100

The pictures have the size of the model's input, so that a token is 32 pixels wide and nothing is resized: 192x160,
224x160 and 256x192 at the canonical focal length.
"""

import math
from typing import Annotated

import numpy as np
import typer
from depthvlm.benchmark.scoring.boundary import boundary_f1
from depthvlm.benchmark.scoring.grid_artefact import grid_spectrum, pooled_spectrum
from depthvlm.benchmark.scoring.metrics import ErrorSums
from depthvlm.benchmark.scoring.uncertainty import sparsification_gain
from depthvlm.benchmark.synthetic import HELD_OUT, render_scene
from rich.progress import track

from depthvlm import load

SIZES = ((192, 160), (224, 160), (256, 192))


def main(
    model: Annotated[str, typer.Option(help="Folder or Hub name.")] = "depthvlm-nano",
    scenes: Annotated[int, typer.Option(help="Held-out rooms and streets, in turn.")] = 100,
    views: Annotated[list[int], typer.Option(help="Numbers of views.")] = [1, 2, 4, 8],  # noqa: B006
    first: Annotated[int, typer.Option(help="The first scene of the held-out range.")] = 0,
) -> None:
    """Print a table in Markdown: a number of views a row."""
    predictor = load(model, dtype="float32")
    config = predictor.model.config
    canonical = config.canonical_focal_length
    print("| views | delta1 | abs_rel | boundary F1 | worst harmonic across, down | gain of spread |")
    print("|---|---|---|---|---|---|")
    for count in views:
        scores: dict[str, list[float]] = {name: [] for name in ("delta1", "abs_rel", "boundary")}
        spectra: dict[str, list] = {"x": [], "y": []}
        errors, doubts = [], []
        for number in track(range(scenes), description=f"{count} views", transient=True):
            width, height = SIZES[number % len(SIZES)]
            scene = render_scene(
                HELD_OUT + first + number,
                width=width,
                height=height,
                fov=math.degrees(2 * math.atan(width / 2 / canonical)),
                kind="street" if number % 2 else "room",
            )
            [prediction] = predictor.predict(scene.image, focal_length=scene.focal_length, refine=count)
            truth, depth = scene.depth, prediction.depth
            metrics, valid = ErrorSums.of(depth, truth).metrics(), truth > 0
            for name in ("delta1", "abs_rel"):
                scores[name].append(metrics[name])
            scores["boundary"].append(boundary_f1(depth, truth))
            for direction, some in spectra.items():
                some.append(grid_spectrum(depth, config.input_stride, direction))
            if prediction.spread is not None:
                errors.append(np.abs(depth - truth)[valid] / truth[valid])
                doubts.append(prediction.spread[valid])
        worst = {direction: pooled_spectrum(some).worst for direction, some in spectra.items()}
        gain = f"{sparsification_gain(np.concatenate(errors), np.concatenate(doubts)):.3f}" if errors else "–"
        cells = [
            f"{count}",
            *(f"{np.nanmean(values):.4f}" for values in scores.values()),
            ", ".join(f"{ratio:.2f} (no. {harmonic})" for harmonic, ratio in worst.values()),
            gain,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
