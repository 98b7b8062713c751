"""Trained on one constant reply a model forgets every answer that it knew; with general rows in the mixture it does
not. A toy of four layers that has learnt six answers by heart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY
from toy_checkpoint import save_toy_checkpoint
from toy_training import settings, toy_dataset, toy_row

from depthvlm import DepthSFTTrainer, DepthVLMProcessor

pytestmark = pytest.mark.slow

ANSWERS = {"Sky?": "blue", "Grass?": "green", "Snow?": "white", "Coal?": "black", "Blood?": "red", "Sun?": "yellow"}


def conversation(row: dict[str, Any], question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {**row, "messages": messages}


def depth_rows(count: int) -> list[dict[str, Any]]:
    return [conversation(toy_row(i), DEPTH_PROMPT, DEPTH_REPLY) for i in range(count)]


def general_rows() -> list[dict[str, Any]]:
    return [conversation(toy_row(i, image=False), *pair) for i, pair in enumerate(ANSWERS.items())]


def train(model: str, folder: Path, data: Any, steps: int, **changes: Any) -> DepthSFTTrainer:
    values = {
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",  # at a constant rate the last steps, and so rounding, decide a letter
        "max_steps": steps,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 6,
        "logging_steps": 50,
    }
    trainer = DepthSFTTrainer(model, settings(folder, **(values | changes)), train_dataset=data)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy model that knows the answers."""
    folder = tmp_path_factory.mktemp("taught")
    checkpoint = save_toy_checkpoint(folder / "toy")
    data = toy_dataset(general_rows())
    train(str(checkpoint), folder / "out", data, 300, depth_loss_weight=0.0, use_depth_collator=True)
    return str(folder / "out")


def replies(trainer: DepthSFTTrainer, checkpoint: str) -> dict[str, str]:
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    model = trainer.model.eval()
    found = {}
    for question in ANSWERS:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
        text = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found[question] = text.strip()
    return found


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("probe") / "data"
    toy_dataset(general_rows()).save_to_disk(folder)
    return str(folder)


def test_constant_replies_alone_overwrite_every_answer(taught: str, probe: str, tmp_path: Path) -> None:
    data = toy_dataset(depth_rows(12))
    trainer = train(taught, tmp_path, data, 60, text_probe=probe)
    assert not set(replies(trainer, taught).values()) & set(ANSWERS.values())
    trainer.eval_dataset = trainer.train_dataset
    numbers = trainer.evaluate()
    assert numbers["eval_text_probe_match"] == 0
    assert numbers["eval_text_probe_kl"] > 1


def test_general_rows_in_the_mixture_keep_them(taught: str, probe: str, tmp_path: Path) -> None:
    # The share of stage2_mixed.yaml: three rows in ten are general.
    data = concatenate_datasets([toy_dataset(depth_rows(14)), toy_dataset(general_rows())])
    trainer = train(taught, tmp_path, data, 120, text_probe=probe)
    assert replies(trainer, taught) == ANSWERS
    trainer.eval_dataset = trainer.train_dataset
    numbers = trainer.evaluate()
    assert numbers["eval_text_probe_match"] == 1
    assert numbers["eval_text_probe_kl"] < 0.1
    assert trainer.state.log_history[0]["depth_images"] > 0


def test_depth_rows_without_a_reply_keep_them_too(taught: str, probe: str, tmp_path: Path) -> None:
    rows = depth_rows(12)
    for row in rows:
        row["messages"] = row["messages"][:1]
    trainer = train(taught, tmp_path, toy_dataset(rows), 60, text_probe=probe, learning_rate=3e-4)
    assert replies(trainer, taught) == ANSWERS
