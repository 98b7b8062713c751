"""What nano still answers after a set with one reply for all its rows, and after the mixture of stage2_mixed.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from depthvlm.benchmark.synthetic.dialogues import Question
from depthvlm.benchmark.synthetic.samples import draw_scene, held_out_questions, training_rows
from nano_words import ask, share_right
from PIL import Image
from toy_training import FEATURES, SCALE, settings

import depthvlm
from depthvlm import DepthSFTTrainer
from depthvlm.checkpoint import bundled_model_path

pytestmark = pytest.mark.slow

PROMPT, REPLY = "Measure this image.", "Its depth is in the map."  # as of a small set: one prompt, one reply
STEPS, BATCH = 60, 4


@cache
def asked() -> list[tuple[int, Question]]:
    return [(seed, question) for seed, question in held_out_questions(40, start=700_000) if question.closed]


def depth_rows() -> list[dict[str, Any]]:
    rows = []
    for seed in range(500_000_000, 500_000_016):
        scene = draw_scene(seed)
        said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": REPLY}]
        metres = np.where(scene.depth < 65, scene.depth, 0)  # what 16 bits of millimetres hold; 0 is unknown
        depth = Image.fromarray((metres * SCALE).astype(np.uint16))
        picture = Image.fromarray(scene.image)
        rows.append({"messages": said, "images": [picture], "depth": [depth], "focal_length": scene.focal_length})
    return rows


def mixed_rows() -> list[dict[str, Any]]:
    """As many as one run reads; three in ten are other questions, as in stage2_mixed.yaml."""
    general = STEPS * BATCH * 3 // 10
    made = training_rows(scenes=general, seed=500_001_000, mix={"question": 1}, depth=False)
    return depth_rows() * 7 + [row | {"depth": None} for row in made]


def replies_after(rows: list[dict[str, Any]], folder: Path) -> list[tuple[Question, str]]:
    data = Dataset.from_list([row | {"depth_scale": SCALE} for row in rows], features=FEATURES)
    args = settings(
        folder,
        optim="adamw_torch",
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        max_grad_norm=1.0,
        trainable=["head+llm"],
    )
    trainer = DepthSFTTrainer(str(bundled_model_path()), args, train_dataset=data)
    trainer.train()
    trainer.save_model()
    return ask(depthvlm.load(str(folder), dtype="float32"), asked(), 24)


def said_the_sentence(answered: list[tuple[Question, str]]) -> int:
    """Alone, or with more behind it: nano often repeats pieces of it."""
    return sum(reply.strip().startswith(REPLY) for _, reply in answered)


@pytest.fixture(scope="module")
def before() -> float:
    return share_right(ask(depthvlm.load(dtype="float32"), asked(), 24))


def test_one_sentence_becomes_the_answer_to_everything(before: float, tmp_path: Path) -> None:
    assert before > 0.7
    answered = replies_after(depth_rows(), tmp_path)
    # Measured: 61 of 98, and 0.04 right where 0.83 were before.
    assert said_the_sentence(answered) > len(answered) / 2
    assert share_right(answered) < 0.1


def test_general_rows_in_the_mixture_keep_the_answers(before: float, tmp_path: Path) -> None:
    answered = replies_after(mixed_rows(), tmp_path)
    # Measured: none, and 0.61 right; 0.73 at a rate of 3e-3.
    assert said_the_sentence(answered) == 0
    assert share_right(answered) > 0.6 * before
