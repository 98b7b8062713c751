"""The pictures that a tracker gets, and the text probe."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from depthvlm.training.callbacks import TextProbe, _coarse_kl, input_image, picture_grid, probe_prompt
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import settings, toy_dataset, toy_row, toy_rows

from depthvlm import DepthSFTTrainer, DepthVLMForConditionalGeneration, DepthVLMProcessor


def test_the_image_is_read_back_from_its_patches(checkpoint: str) -> None:
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    features = processor.image_processor(Image.fromarray(picture), focal_length=1000.0, return_tensors="pt")
    grid = features["image_grid_thw"][0].tolist()
    assert grid == [1, 4, 6]  # 64x96 pixels of 16x16: nothing was resized
    np.testing.assert_array_equal(input_image(features["pixel_values"], grid, processor.image_processor), picture)


def test_truth_and_prediction_share_one_range(checkpoint: str) -> None:
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    features = processor.image_processor(Image.new("RGB", (96, 64)), focal_length=1000.0, return_tensors="pt")
    truth = torch.linspace(1, 9, 96).expand(64, 96)
    grid = picture_grid(dict(features), [truth], [truth.clone()], processor.image_processor)
    assert grid is not None
    pixels = np.asarray(grid)[:64]
    np.testing.assert_array_equal(pixels[:, 96:192], pixels[:, 192:288])
    half = picture_grid(dict(features), [truth], [truth / 2], processor.image_processor)
    pixels = np.asarray(half)[:64]
    # 4.5 m stands in the middle of the truth and at the end of the prediction, in the same colour.
    where = int((4.5 - 1) / 8 * 95)
    assert np.abs(pixels[0, 96 + where].astype(int) - pixels[0, 192 + 95].astype(int)).max() < 12
    assert picture_grid(dict(features), [None], [truth], processor.image_processor) is None


def test_tensorboard_gets_a_picture_every_so_many_steps(checkpoint: str, tmp_path: Path) -> None:
    rows = [toy_row(i) for i in range(4)] + toy_rows(4)
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, max_steps=4, depth_log_images=2, report_to="tensorboard"),
        train_dataset=toy_dataset(rows),
    )
    trainer.train()
    logs = EventAccumulator(next(str(f.parent) for f in tmp_path.rglob("events.out.tfevents.*")), {"images": 0})
    logs.Reload()
    (tag,) = logs.Tags()["images"]
    assert [event.step for event in logs.Images(tag)] == [0, 2]


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
