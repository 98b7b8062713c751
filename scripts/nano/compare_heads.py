"""
Train heads on the frozen nano by one budget, and compare the shape of their maps on held-out scenes.

    python scripts/nano/compare_heads.py outputs/heads --page docs/benchmarks/sharp_head.md

Each head is drawn anew and trained by `depthvlm sft` with head.yaml beside this file, on the same scenes in the same
order; then scored by `depthvlm bench eval --protocol dense`. What is finished is not made again, and an interrupted
training goes on from its last checkpoint: run the same command once more. About 15 minutes of one core for a head.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from depthvlm.benchmark.report.inputs import Measured, read_inputs
from depthvlm.benchmark.report.shape import grid_values
from depthvlm.benchmark.scoring.statistics import Interval, bootstrap_interval
from run_ablations import make_start

from depthvlm import load
from depthvlm.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "head.yaml"
SETTINGS = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
STEPS = SETTINGS["max_steps"]
NANO = HERE.parents[1] / "depthvlm" / "nano"
DONE = "trained.json"  # in a checkpoint's folder, written when its training has ended


@dataclass(frozen=True)
class Row:
    """What a row changes in the recipe."""

    title: str
    head: dict[str, Any]  # of `depth_config`
    options: tuple[str, ...] = ()  # of `depthvlm sft`


LOSSES = ("--gradient_matching_weight", "0.5", "--normal_weight", "0.5")
MORE_NORMALS = ("--gradient_matching_weight", "0.5", "--normal_weight", "1.0")
ROWS = {
    "light": Row("`dpt_light`", {}),
    "light_losses": Row("`dpt_light`, dense losses", {}, LOSSES),
    "sharp": Row("`dpt_sharp`", {"head_type": "dpt_sharp"}),
    "sharp_losses": Row("`dpt_sharp`, dense losses", {"head_type": "dpt_sharp"}, LOSSES),
    "sharp_normals": Row("`dpt_sharp`, dense losses, normals twice", {"head_type": "dpt_sharp"}, MORE_NORMALS),
}
# Metrics of `bench eval` with their titles and digits.
METRICS = {
    "delta1": ("delta1", 3),
    "abs_rel": ("AbsRel", 3),
    "boundary_f1": ("boundary F1", 3),
    "edge_width": ("edge width, px", 2),
    "plane_flatness": ("plane flatness, cm", 1),
    "plane_orientation": ("plane orientation, °", 1),
}


def train(out: Path, name: str, steps: int) -> Path:
    """Train a row's head unless it is there, and return its folder."""
    row, folder = ROWS[name], out / name
    if (folder / DONE).is_file():
        return folder
    make_start(NANO, out / "start")
    command = [
        *(sys.executable, "-m", "depthvlm", "sft", "--config", str(RECIPE), *row.options),
        *("--model_name_or_path", str(out / "start"), "--output_dir", str(folder), "--max_steps", str(steps)),
        *("--model_init_kwargs", json.dumps({"depth_config": row.head}), "--resume_from_checkpoint", "latest"),
    ]
    subprocess.run(command, check=True)
    write_json(folder / DONE, {"options": list(row.options), "steps": steps})
    return folder


def score(out: Path, name: str, images: int) -> Measured:
    """Score a row on held-out scenes unless it is scored, and return the result."""
    build, results = out / f"scenes_{images}", out / "results" / name
    if not build.is_dir():
        _bench("build", "synthetic", "--root", ".", "--out", build, "--split", "test", "--num-images", images)
    dense = ("--protocol", "dense", "--metric", "boundary_f1", "--option", "dtype=float32")
    _bench("eval", "-p", f"depthvlm:{out / name}", "-d", build, "-o", results, *dense)
    [measured] = read_inputs([results]).measured
    return measured


def _bench(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "depthvlm", "bench", *map(str, arguments)], check=True)


def numbers(measured: Measured) -> dict[str, Interval]:
    """Return a row's metrics and worst harmonics by name, each with its 95 % interval over images."""
    found = {}
    for key in METRICS:
        values = {image.id: image.metrics[key] for image in measured.images if key in image.metrics}
        if values:  # a map without edges has no width of edges
            found[key] = bootstrap_interval(values)
    for way, ratios in measured.result.grid.items():
        worst = max(range(len(ratios)), key=ratios.__getitem__)
        found[f"grid_{way}"] = bootstrap_interval(*grid_values(measured.images, way, worst))
    return found


def table(found: dict[str, dict[str, Interval]], heads: dict[str, int]) -> str:
    """Return the table of all rows."""
    columns = METRICS | {"grid_x": ("worst harmonic across", 2), "grid_y": ("worst harmonic down", 2)}
    titles = [title for title, _ in columns.values()]
    lines = [f"| head | parameters | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for name, values in found.items():
        cells = [
            f"{one.estimate:.{places}f} ({one.low:.{places}f} to {one.high:.{places}f})"
            if (one := values.get(key))
            else "–"
            for key, (_, places) in columns.items()
        ]
        lines.append(f"| {ROWS[name].title} | {heads[name] / 1e3:.0f} k | {' | '.join(cells)} |")
    return "\n".join(lines)


def against_first(found: dict[str, dict[str, Interval]]) -> str:
    """Return the table of ratios to the first row."""
    [first, *others] = found
    keys = ("boundary_f1", "edge_width", "plane_flatness", "plane_orientation")
    lines = [f"| head, over {ROWS[first].title} | delta1 | {' | '.join(METRICS[key][0] for key in keys)} |"]
    lines.append("|---" * (2 + len(keys)) + "|")
    for name in others:
        difference = found[name]["delta1"].estimate - found[first]["delta1"].estimate
        pairs = [(found[name].get(key), found[first].get(key)) for key in keys]
        cells = [f"{one.estimate / other.estimate:.2f}x" if one and other else "–" for one, other in pairs]
        lines.append(f"| {ROWS[name].title} | {difference:+.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions(page: Path | None, only: list[str], steps: int, images: int) -> str:
    """Return the head of the page: the command, and what its numbers depend on."""
    options = [f"--page {page}"] if page else []
    options += [f"--steps {steps}"] if steps != STEPS else []
    options += [f"--only {name}" for name in only]
    passes = steps * SETTINGS["per_device_train_batch_size"] / SETTINGS["dataset_generator_kwargs"]["scenes"]
    text = (HERE / "head_conditions.md").read_text(encoding="utf-8")
    return text.format(
        command=" ".join(["python scripts/nano/compare_heads.py outputs/heads", *options]),
        steps=steps,
        scenes="the same scenes in the same order" + (f", in {passes:g} passes" if passes > 1 else ""),
        images=images,
        torch=torch.__version__.partition("+")[0],
    )


def main(
    out: Annotated[Path, typer.Argument(help="Folder of all that is made.")],
    page: Annotated[Path | None, typer.Option(help="File of the report; by default heads.md in OUT.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Rows: {', '.join(ROWS)}. All by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = STEPS,
    images: Annotated[int, typer.Option(min=2, help="Held-out scenes, half of them rooms.")] = 200,
) -> None:
    """Train and score what is missing, then write the page."""
    if unknown := [name for name in only or () if name not in ROWS]:
        raise typer.BadParameter(f"There is no row {', '.join(unknown)}: choose from {', '.join(ROWS)}.")
    out.mkdir(parents=True, exist_ok=True)
    found, heads = {}, {}
    for name in only or ROWS:
        folder = train(out, name, steps)
        if read_json(folder / DONE)["steps"] != steps:
            raise typer.BadParameter(f"{folder} was trained for another number of steps: give another folder.")
        found[name] = numbers(score(out, name, images))
        heads[name] = sum(parameter.numel() for parameter in load(folder).model.depth_head.parameters())
    left = ", ".join(row.title for name, row in ROWS.items() if name not in found)
    tables = f"{table(found, heads)}\n\n{against_first(found)}\n" + (f"\nNot trained: {left}.\n" if left else "")
    write_text(page or out / "heads.md", f"{conditions(page, only or [], steps, images)}\n{tables}")


if __name__ == "__main__":
    typer.run(main)
