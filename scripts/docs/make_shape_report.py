"""
Measures the shape of depthvlm-nano's maps on held-out scenes, and writes the page that docs/ shows.

    python scripts/docs/make_shape_report.py --work outputs/shape

Edges, planes, order, grid and consistency are those of `depthvlm bench eval --protocol dense`. The token grid is also
looked for in the model's own maps, harmonic by harmonic, beside the truth at the same period. What is scored in the
folder `--work` is kept: a run that was interrupted goes on.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from depthvlm.benchmark.report.formats import to_markdown
from depthvlm.benchmark.report.inputs import read_inputs
from depthvlm.benchmark.report.model import Report
from depthvlm.benchmark.report.shape import shape_tables
from depthvlm.benchmark.scoring.eval_sets import EvalItem, EvalSet, open_sets
from depthvlm.benchmark.scoring.grid_artefact import Direction, GridSpectrum, grid_spectrum, pooled_spectrum
from depthvlm.benchmark.scoring.statistics import bootstrap_interval
from depthvlm.processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from rich.progress import track

from depthvlm import DepthPredictor, load

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "nano_shape.md"
STRIDE = 32
TITLE = "The shape of nano's maps on held-out scenes"
INTRODUCTION = """\
{images} held-out synthetic scenes of 256x192 pixels, half rooms and half streets; the bundled weights in float32 on a
CPU (torch {torch}); focal length given; 95 % intervals by bootstrap over images. Written by
`python scripts/docs/make_shape_report.py --images {images}`; [Score a model](../bench_eval.md#shape-of-a-map) says
what each number is. Widths and distances are in pixels of these small pictures: they do not compare with numbers on
640x480."""
GRID = """\
## Token grid in the model's own maps

The same scenes at the size of the model's input, where a token has {stride} pixels, before the map is resized to the
picture. The truth, which has no grid, is read with the period that a token has in the picture. A ratio of 1 means no
grid; at the first harmonic that of the truth lies below 1, because depth edges have more power at higher frequencies.
"""


def main(
    work: Annotated[Path, typer.Option(help="Folder of the build and the results.")] = Path("outputs/shape"),
    images: Annotated[int, typer.Option(help="Synthetic scenes, half of them rooms.")] = 200,
    out: Annotated[Path, typer.Option(help="The page.")] = DOCS,
) -> None:
    """Build, evaluate, look for the grid, write."""
    build, results = work / "build", work / "results"
    _bench("build", "synthetic", "--root", ".", "--out", build, "--split", "test", "--num-images", images)
    dense = ("--protocol", "dense", "--metric", "boundary_f1", "--consistency")
    _bench("eval", "-p", "nano", "-d", build, "-o", results, *dense)
    tables = shape_tables(read_inputs([results]).measured)
    page = to_markdown(Report(TITLE, tuple(tables)))
    first, _, rest = page.partition("\n\n")
    introduction = INTRODUCTION.format(images=images, torch=torch.__version__.split("+")[0])
    grid = GRID.format(stride=STRIDE) + "\n" + _harmonics(open_sets(build)[0])
    out.write_text(f"{first}\n\n{introduction}\n\n{rest}\n{grid}")
    print(f"Wrote {out}")


def _harmonics(scenes: EvalSet) -> str:
    network = load()
    spectra: dict[str, list[GridSpectrum]] = {}
    for index in track(range(len(scenes)), description="own maps"):
        item = scenes.read(index)
        own = _own_map(network, item)
        ways: tuple[tuple[Direction, int], ...] = (("x", 1), ("y", 0))
        for way, axis in ways:
            period = STRIDE * item.depth.shape[axis] / own.shape[axis]
            truth = grid_spectrum(item.depth, period, way, harmonics=STRIDE // 2)
            spectra.setdefault(f"{way} truth", []).append(truth)
            spectrum = grid_spectrum(own, STRIDE, way)
            for key in (way, f"{way} {item.id.partition('/')[0]}"):
                spectra.setdefault(key, []).append(spectrum)
    columns = {"across": "x", "across, rooms": "x room", "across, streets": "x street", "across, truth": "x truth"}
    columns |= {"down": "y", "down, rooms": "y room", "down, streets": "y street", "down, truth": "y truth"}
    lines = ["| harmonic | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    pooled = {key: pooled_spectrum(found).ratios for key, found in spectra.items()}
    for k in range(STRIDE // 2):
        cells = []
        for key in columns.values():
            shown = f"{pooled[key][k]:.2f}" if k < len(pooled[key]) else "-"
            cells.append(f"{shown} ({_interval(spectra[key], k)})" if key in ("x", "y") else shown)
        lines.append(f"| {k + 1} | " + " | ".join(cells) + " |")
    worst = [f"{name} {pooled[key].max():.2f} ({int(pooled[key].argmax()) + 1})" for name, key in columns.items()]
    return "\n".join([*lines, "", f"The worst harmonic of each: {'; '.join(worst)}."]) + "\n"


def _interval(spectra: list[GridSpectrum], k: int) -> str:
    values = {str(number): float(one.ratios[k]) for number, one in enumerate(spectra)}
    weights = {str(number): float(one.around[k] / one.around.mean()) for number, one in enumerate(spectra)}
    found = bootstrap_interval(values, weights)
    return f"{found.low:.2f} to {found.high:.2f}"


def _own_map(network: DepthPredictor, item: EvalItem) -> np.ndarray:
    """The map of a scene at the size of the model's input."""
    turns: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DEPTH_PROMPT}]},
    ]
    text = network.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = network.processor(
        images=[item.image], text=[text], intrinsics=[list(item.intrinsics)], return_tensors="pt"
    ).to(network.model.device)
    with torch.inference_mode():
        return network.model.predict_depth(**inputs).predicted_depth[0].float().cpu().numpy()


def _bench(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "depthvlm", "bench", *map(str, arguments)], check=True)


if __name__ == "__main__":
    typer.run(main)
