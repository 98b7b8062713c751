"""
What the camera head brings on synthetic scenes that the model has not seen: assumed, predicted and given cameras.

    python scripts/nano/compare_cameras.py runs/nano-camera --scenes 600

Writes the tables of docs/benchmarks/camera_head.md.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from camera_scenes import camera_scene
from depthvlm.benchmark.scoring.metrics import ErrorSums
from depthvlm.benchmark.synthetic import HELD_OUT
from rich.progress import track
from scipy.stats import bootstrap, norm

from depthvlm import Prediction, load
from depthvlm.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "camera_head.md"
START, END = "<!-- tables: scripts/nano/compare_cameras.py -->", "<!-- end of tables -->"
BATCH = 16


def interval(values: Sequence[float], statistic: Callable[..., Any], digits: int) -> str:
    """Return a statistic with its 95 % interval by bootstrap over images."""
    found = bootstrap((np.asarray(values),), statistic, n_resamples=2000, method="percentile", rng=0)
    low, high = found.confidence_interval
    return f"{statistic(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def row(name: str, predictions: Sequence[Prediction], scenes: Sequence[Any]) -> str:
    """Return a row of the table of cameras."""
    fields = [abs(one.camera.fov - fov) for one, (_, _, fov) in zip(predictions, scenes, strict=True)]
    sums = [
        ErrorSums.of(one.depth, scene.depth).metrics() for one, (scene, _, _) in zip(predictions, scenes, strict=True)
    ]
    cells = [
        interval(fields, np.median, 2),
        *(interval([one[key] for one in sums], np.mean, 3) for key in ("delta1", "abs_rel")),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def calibration(predictions: Sequence[Prediction], scenes: Sequence[Any]) -> list[str]:
    """Return the table of how often the true focal length lies within one and two predicted standard deviations."""
    lines = ["| images | within 1 spread | within 2 spreads | median spread, degrees |", "|---|---|---|---|"]
    ideal = [f"{norm.cdf(n) - norm.cdf(-n):.3f}" for n in (1, 2)]
    spreads = np.array([one.camera.fov_spread for one in predictions], dtype=float)
    errors = np.array(
        [math.log(one.camera.fx / scene.focal_length) for one, (scene, _, _) in zip(predictions, scenes, strict=True)]
    )
    ratios = np.abs(errors) / np.array([one.camera.focal_spread for one in predictions], dtype=float)
    halves = spreads <= np.median(spreads)
    for name, chosen in {"all": halves | True, "the surer half": halves, "the other half": ~halves}.items():
        shares = [interval(ratios[chosen] < n, np.mean, 3) for n in (1, 2)]
        lines.append(f"| {name} | {' | '.join(shares)} | {np.median(spreads[chosen]):.1f} |")
    return [*lines, f"| a normal distribution | {' | '.join(ideal)} | – |"]


def main(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a checkpoint with a camera head.")],
    scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 600,
    first: Annotated[int, typer.Option(help="The first scene of the held-out range.")] = 600_000,
) -> None:
    """Print the tables, and write them into the page."""
    predictor = load(model, dtype="float32")
    assumed_fov = predictor.processor.image_processor.assumed_fov
    shown = [camera_scene(seed) for seed in track(range(HELD_OUT + first, HELD_OUT + first + scenes), "scenes")]
    pictures = [picture for _, picture, _ in shown]
    longer = [max(picture.shape[:2]) for picture in pictures]

    def predict(focal_lengths: Sequence[float] | None) -> list[Prediction]:
        return predictor.predict(pictures, focal_length=focal_lengths, batch_size=BATCH)

    predicted = predict(None)
    assert all(one.camera.source == "predicted" for one in predicted)
    cameras = {
        f"assumed: {assumed_fov:g} degrees across the longer side": predict(
            [side / (2 * math.tan(math.radians(assumed_fov) / 2)) for side in longer]
        ),
        "predicted": predicted,
        "predicted, and a second pass at its size": predict([one.camera.fx for one in predicted]),
        "given": predict([scene.focal_length for scene, _, _ in shown]),
    }
    lines = [
        "| camera | median error of the field of view, degrees | delta1 | AbsRel |",
        "|---|---|---|---|",
        *(row(name, found, shown) for name, found in cameras.items()),
        "",
        f"{scenes} scenes from seed {HELD_OUT + first} on, each with its 95 % interval by bootstrap over images.",
        "",
        *calibration(predicted, shown),
    ]
    print("\n".join(lines))
    page = PAGE.read_text(encoding="utf-8")
    inserted = "\n".join([START, "", *lines, "", END])
    after, places = re.subn(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: inserted, page, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{PAGE} has {places} places for the tables, expected one.")
    write_text(PAGE, after)


if __name__ == "__main__":
    typer.run(main)
