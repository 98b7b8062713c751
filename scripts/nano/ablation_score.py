"""
How a checkpoint measures and answers on held-out scenes, image by image; `make ablations` runs it for every row.

    python scripts/nano/ablation_score.py outputs/ablations/runs/ours_0/stage2 scores.json --words
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from ablation_rows import NANO_FOCAL_LENGTH, full_settings, recipe
from depthvlm.benchmark.scoring.metrics import ErrorSums
from depthvlm.benchmark.synthetic import HELD_OUT, SyntheticScene, draw_scene, held_out_questions
from depthvlm.benchmark.synthetic.dialogues import is_right
from nano_words import ask
from rich.progress import track

from depthvlm import DepthPredictor, load
from depthvlm.files import write_json

FULL = full_settings()
FIRST = 20_000_000  # of the held-out seeds: other scenes than those that the pages about nano score
BATCH = 12
METRICS = ("delta1", "abs_rel")


def held_out_scenes(kind: str, count: int) -> Iterator[SyntheticScene]:
    """Yield the first held-out scenes of a kind, drawn as those of training: with cameras and light of their own."""
    rows = recipe(2)["dataset_generator_kwargs"]
    seed = HELD_OUT + FIRST
    while count:
        scene = draw_scene(seed, NANO_FOCAL_LENGTH, rows["group"], tuple(rows["sizes"]))
        seed += 1
        if scene.kind == kind:
            count -= 1
            yield scene


def depth_scores(network: DepthPredictor, count: int, raw: bool) -> dict[str, dict[str, float]]:
    """Return delta1 and AbsRel of every image, by "room/SEED" and "street/SEED".

    Args:
        network: Model that predicts.
        count: Scenes of each kind.
        raw: Name the canonical focal length for every image, as in training on raw images.
    """
    scores: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for kind in ("room", "street"):
        scenes = list(track(held_out_scenes(kind, count), total=count, description=f"{kind}s drawn"))
        predictions = network.predict(
            [scene.image for scene in scenes],
            focal_length=[NANO_FOCAL_LENGTH if raw else scene.focal_length for scene in scenes],
            batch_size=BATCH,
        )
        for scene, prediction in zip(scenes, predictions, strict=True):
            values = ErrorSums.of(prediction.depth, scene.depth).metrics()
            for metric in METRICS:
                scores[metric][f"{kind}/{scene.seed}"] = values[metric]
    return scores


def word_scores(network: DepthPredictor, scenes: int) -> dict[str, dict[str, int]]:
    """Return, by the scene's seed, how many closed questions were asked and how many answered word for word."""
    asked = [(seed, question) for seed, question in held_out_questions(scenes, FIRST) if question.closed]
    found: dict[str, dict[str, int]] = {"asked": {}, "right": {}}
    for (seed, _), (question, reply) in zip(asked, ask(network, asked, 2 * BATCH), strict=True):
        for key, one in (("asked", 1), ("right", int(is_right(question, reply)))):
            found[key][str(seed)] = found[key].get(str(seed), 0) + one
    return found


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="JSON file of its scores.")],
    held_out: Annotated[int, typer.Option(help="Held-out scenes of each kind.")] = FULL.held_out,
    questions: Annotated[
        int, typer.Option(help="Held-out scenes with up to three questions about each.")
    ] = FULL.questions,
    raw: Annotated[bool, typer.Option(help="Trained on raw images: give all of them one focal length.")] = False,
    words: Annotated[bool, typer.Option(help="Ask closed questions too.")] = False,
) -> None:
    """Write the scores of a checkpoint."""
    torch.set_num_threads(1)
    network = load(str(checkpoint), dtype="float32")
    result: dict[str, Any] = {"scores": depth_scores(network, held_out, raw)}
    if words:
        result["words"] = word_scores(network, questions)
    write_json(out, result | {"cpu_seconds": time.process_time()})


if __name__ == "__main__":
    typer.run(main)
