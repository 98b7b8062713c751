"""
Words and depth of nano after each stage of its training, as the paper's table 6 has them of the 4B model.

    make nano && python scripts/nano/nano_stages.py outputs/nano/stage*

Held-out synthetic scenes; the questions are those of `nano_words.py`, the depth that of `nano_depth.py`.
"""

from pathlib import Path
from typing import Annotated

import typer
from depthvlm.benchmark.synthetic.samples import held_out_questions
from nano_depth import delta1, predict_scenes
from nano_words import ask, share_right
from rich.console import Console
from rich.table import Table

from depthvlm import load


def main(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, one a row.")],
    scenes: Annotated[int, typer.Option(help="Scenes that are asked about.")] = 500,
    depth_scenes: Annotated[int, typer.Option(help="Scenes of each kind whose depth is measured.")] = 250,
    batch_size: Annotated[int, typer.Option(help="Questions or images per batch.")] = 24,
) -> None:
    """Print the table."""
    asked = held_out_questions(scenes)
    table = Table("after", "closed questions", "distances", "delta1, rooms", "delta1, streets", "delta1, both")
    for checkpoint in checkpoints:
        network = load(checkpoint, dtype="float32")
        answered = ask(network, asked, batch_size)
        pairs = predict_scenes(network, depth_scenes, batch_size)
        table.add_row(
            checkpoint.name,
            f"{share_right([(q, r) for q, r in answered if q.closed]):.3f}",
            f"{share_right([(q, r) for q, r in answered if not q.closed]):.3f}",
            *(f"{delta1(pairs[kind]):.3f}" for kind in ("room", "street", "both")),
        )
    closed = sum(question.closed for _, question in asked)
    conditions = f"float32, {closed} closed questions and {len(asked) - closed} distances in {scenes} scenes"
    Console(width=120).print(f"{conditions}, {depth_scenes} scenes of each kind for depth", table)


if __name__ == "__main__":
    typer.run(main)
