"""
How well the distance of an object comes out of its box, on synthetic scenes that nano has not seen.

    python scripts/nano/nano_objects.py --scenes 50

Boxes are the true ones of all objects of which at least 200 pixels are seen, in the true depth and in nano's; the
truth is the median distance of the object's own pixels. "median of the box" is what comes out without looking for the
object in its box.
"""

from dataclasses import replace
from typing import Annotated

import numpy as np
import typer
from depthvlm.benchmark.synthetic import render_scene
from nano_depth import HELD_OUT
from rich.console import Console
from rich.table import Table

from depthvlm import load
from depthvlm.grounding import measured

LEAST_PIXELS = 200


def main(scenes: Annotated[int, typer.Option(help="Scenes of each kind, rooms and streets.")] = 50) -> None:
    """Print the median error and the share of objects whose distance is wrong by more than a tenth."""
    network = load()
    table = Table("depth", "distance", "objects", "median error", "wrong by more than 10 %")
    rendered = [render_scene(HELD_OUT + seed, kind=kind) for kind in ("room", "street") for seed in range(scenes)]
    predictions = network.predict([s.image for s in rendered], focal_length=[s.focal_length for s in rendered])
    for name in ("true", "nano's"):
        errors: dict[str, list[float]] = {"measured": [], "median of the box": []}
        for scene, prediction in zip(rendered, predictions, strict=True):
            prediction = replace(prediction, depth=scene.depth) if name == "true" else prediction
            distance = np.linalg.norm(prediction.points, axis=-1)
            rays = np.linalg.norm(prediction.points / prediction.depth[..., None], axis=-1)
            for index, pixels in enumerate(np.bincount(scene.segments[scene.segments >= 0])):
                if pixels < LEAST_PIXELS:
                    continue
                own = scene.segments == index
                y, x = np.nonzero(own)
                box = float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)
                truth = np.median((scene.depth * rays)[own])
                inside = distance[y.min() : y.max() + 1, x.min() : x.max() + 1]
                errors["measured"].append(measured(prediction, "it", box).distance / truth - 1)
                errors["median of the box"].append(np.nanmedian(inside) / truth - 1)
        for way, values in errors.items():
            size = np.abs(values)
            table.add_row(name, way, str(len(size)), f"{np.median(size):.1%}", f"{(size > 0.1).mean():.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
