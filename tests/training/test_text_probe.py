"""The text probe: nothing moved, and a divergence computed by hand."""

import math
from pathlib import Path

import pytest
import torch
from depthvlm.training.callbacks import TextProbe, _coarse_kl, probe_prompt
from toy_checkpoint import save_toy_checkpoint
from toy_training import settings, toy_dataset, toy_row, toy_rows

from depthvlm import DepthSFTTrainer, DepthVLMForConditionalGeneration, DepthVLMProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy_checkpoint(tmp_path_factory.mktemp("toy")))


def test_divergence_by_hand() -> None:
    # Four tokens, of which two are kept: (1/2, 1/4 | 1/4) against (1/4, 1/4 | 1/2).
    base = torch.tensor([[0.5, 0.25]]).log()
    now = torch.tensor([[0.25, 0.25]]).log()
    assert _coarse_kl(base, now).item() == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), abs=1e-6)
    assert _coarse_kl(base, base).item() == pytest.approx(0, abs=1e-6)


def test_the_last_reply_is_left_out() -> None:
    row = toy_row(3)
    messages = probe_prompt(row, 0)
    assert [message["role"] for message in messages] == ["user"]
    assert [part["type"] for part in messages[0]["content"]] == ["image", "text"]
    with pytest.raises(ValueError, match="Example 7 of the text probe is no conversation"):
        probe_prompt({"text": "no conversation"}, 7)


def test_the_base_model_agrees_with_itself_and_another_does_not(checkpoint: str, tmp_path: Path) -> None:
    model = DepthVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = [toy_row(i, image=i % 2 == 0) for i in range(4)]
    probe = TextProbe(rows, DepthVLMProcessor.from_pretrained(checkpoint), tmp_path / "probe.safetensors", 6)
    probe.remember(model)
    assert probe.compare(model) == {"text_probe_match": 1.0, "text_probe_kl": pytest.approx(0, abs=1e-5)}
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * 0.3)
    moved = probe.compare(model)
    assert moved["text_probe_match"] < 1
    assert moved["text_probe_kl"] > 0.01


def test_every_evaluation_logs_it(checkpoint: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    toy_dataset([toy_row(i) for i in range(3)]).save_to_disk(probe)
    data = toy_dataset(toy_rows(4))
    changes = {"text_probe": str(probe), "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = DepthSFTTrainer(
        checkpoint, settings(tmp_path / "run", learning_rate=0.5, **changes), train_dataset=data, eval_dataset=data
    )
    trainer.train()
    logged = [log["eval_text_probe_kl"] for log in trainer.state.log_history if "eval_text_probe_kl" in log]
    assert len(logged) == 2
    assert logged[1] > 0
    assert (tmp_path / "run" / "text_probe.safetensors").is_file()
