"""
How well a model answers questions about synthetic scenes that it has not seen, kind by kind.

    python scripts/nano/nano_words.py --model depthvlm/nano --scenes 500
    make nano && python scripts/nano/nano_words.py outputs/nano/stage*    # words and depth, as the paper's table 6

Questions with one right answer ("closed") count when the reply is that answer, word for word; distances when they are
within 25 % of the truth. Beside it: the best constant reply to each kind of question. Scenes are drawn from held-out
seeds as in training, with a camera and light of their own; the model is told the focal length. Greedy decoding.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from depthvlm.benchmark.synthetic.dialogues import KINDS, Question, is_right
from depthvlm.benchmark.synthetic.samples import draw_scene, held_out_questions
from depthvlm.processing import DEPTH_SYSTEM_PROMPT
from nano_depth import delta1, predict_scenes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depthvlm import DepthPredictor, load


def main(
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="One a row, with words and depth.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint; the bundled nano by default.")] = None,
    scenes: Annotated[int, typer.Option(help="Held-out scenes, with three questions about each.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Questions per batch.")] = 24,
    show: Annotated[int, typer.Option(help="Print so many questions with their replies.")] = 0,
) -> None:
    """Print the share of right answers to every kind of question, and to all closed ones; or a table of checkpoints."""
    console, asked = Console(width=120), held_out_questions(scenes)
    if checkpoints:
        closed = sum(question.closed for _, question in asked)
        conditions = f"float32, {closed} closed questions and {len(asked) - closed} distances in {scenes} scenes"
        console.print(f"{conditions}, 250 scenes of each kind for depth", _compare(checkpoints, asked, batch_size))
        return
    network = load(model, dtype="float32")
    answered = ask(network, asked, batch_size)
    for question, reply in answered[:show]:
        console.print(f"{question.question} [{question.answer}] {reply}", markup=False)
    table = Table("questions", "asked", "right", "best constant reply")
    for kind in KINDS:
        _add_row(table, kind, [(q, r) for q, r in answered if q.kind == kind])
    _add_row(table, "all closed", [(q, r) for q, r in answered if q.closed])
    console.print(f"{network.name}, float32, {scenes} scenes", table)


def _compare(checkpoints: list[Path], asked: list[tuple[int, Question]], batch_size: int) -> Table:
    table = Table("after", "closed questions", "distances", "delta1, rooms", "delta1, streets", "delta1, both")
    for checkpoint in checkpoints:
        network = load(checkpoint, dtype="float32")
        answered = ask(network, asked, batch_size)
        shares = [share_right([(q, r) for q, r in answered if q.closed is closed]) for closed in (True, False)]
        depth = [delta1(pairs) for pairs in predict_scenes(network, 250, batch_size).values()]
        table.add_row(checkpoint.name, *(f"{score:.3f}" for score in (*shares, *depth)))
    return table


def ask(network: DepthPredictor, asked: list[tuple[int, Question]], batch_size: int) -> list[tuple[Question, str]]:
    """Every question, given with the seed of its scene, and the model's reply."""
    replies: list[str] = []
    for start in track(range(0, len(asked), batch_size), description="questions"):
        replies += _replies(network, asked[start : start + batch_size])
    return [(question, reply) for (_, question), reply in zip(asked, replies, strict=True)]


def share_right(answered: list[tuple[Question, str]]) -> float:
    """The share of right answers."""
    return sum(is_right(question, reply) for question, reply in answered) / max(len(answered), 1)


def _replies(network: DepthPredictor, asked: list[tuple[int, Question]]) -> list[str]:
    processor, scenes = network.processor, [draw_scene(seed) for seed, _ in asked]
    conversations = [
        [
            {"role": "system", "content": DEPTH_SYSTEM_PROMPT},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]},
        ]
        for _, question in asked
    ]
    inputs = processor(
        images=[[scene.image] for scene in scenes],
        text=[processor.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations],
        focal_length=[scene.focal_length for scene in scenes],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    made = network.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _add_row(table: Table, name: str, answered: list[tuple[Question, str]]) -> None:
    offered = Counter(question.answer for question, _ in answered)
    best = max(sum(is_right(question, reply) for question, _ in answered) for reply in offered) if offered else 0
    table.add_row(name, str(len(answered)), f"{share_right(answered):.3f}", f"{best / max(len(answered), 1):.3f}")


if __name__ == "__main__":
    typer.run(main)
