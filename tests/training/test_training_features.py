"""Streams, mixtures, bad samples, compilation, quantisation: the trainer with what TRL offers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig
from toy_training import settings, toy_dataset, toy_row, toy_rows
from transformers import BitsAndBytesConfig
from trl import TrlParser

from depthvlm import DepthSFTConfig, DepthSFTTrainer


def run(checkpoint: str, folder: Path, data: Any, **changes: Any) -> DepthSFTTrainer:
    trainer = DepthSFTTrainer(checkpoint, settings(folder, **changes), train_dataset=data)
    trainer.train()
    return trainer


def assert_same(one: DepthSFTTrainer, other: DepthSFTTrainer, tolerance: float) -> None:
    expected = dict(other.depth_model.named_parameters())
    for name, p in one.depth_model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=tolerance)


def test_a_stream_gives_what_the_data_set_gives(checkpoint: str, tmp_path: Path) -> None:
    rows = toy_rows(4)
    whole = run(checkpoint, tmp_path, toy_dataset(rows))
    stream = run(checkpoint, tmp_path, toy_dataset(rows).to_iterable_dataset())
    assert_same(stream, whole, 1e-6)


def test_loader_workers_change_nothing(checkpoint: str, tmp_path: Path) -> None:
    data = toy_dataset(toy_rows(8))
    assert_same(
        run(checkpoint, tmp_path, data, max_steps=2, dataloader_num_workers=2),
        run(checkpoint, tmp_path, data, max_steps=2),
        0,
    )


def test_a_mixture_with_data_of_other_columns(checkpoint: str, tmp_path: Path) -> None:
    words = toy_dataset([toy_row(i, image=False) for i in range(4)]).select_columns(["messages"])
    mixed = concatenate_datasets([toy_dataset([toy_row(i) for i in range(4)]), words])
    trainer = run(checkpoint, tmp_path, mixed, per_device_train_batch_size=8)
    log = trainer.state.log_history[0]
    assert log["depth_images"] == 4
    assert log["text_loss"] > 0


def test_depth_rows_without_a_reply(checkpoint: str, tmp_path: Path) -> None:
    rows = [toy_row(i) for i in range(4)]
    for row in rows:
        row["messages"] = row["messages"][:1]
    log = run(checkpoint, tmp_path, toy_dataset(rows)).state.log_history[0]
    assert log["text_loss"] == 0
    assert log["loss"] == pytest.approx(log["depth_loss"], abs=1e-6)
    assert log["depth_images"] == 4


def test_bad_samples_are_counted_listed_and_not_replaced(checkpoint: str, tmp_path: Path) -> None:
    data = toy_dataset([toy_row(i) for i in range(4)])
    table = data.with_format("arrow")[:].to_pylist()
    table[2]["images"][0]["bytes"] = table[2]["images"][0]["bytes"][:200]
    broken = type(data).from_list(table, features=data.features)
    with pytest.raises(ValueError, match=r"row 2"):
        run(checkpoint, tmp_path / "stop", broken)
    trainer = run(checkpoint, tmp_path / "skip", broken, on_bad_sample="skip")
    log = trainer.state.log_history[0]
    assert log["skipped_samples"] == 1
    assert log["depth_images"] == 3
    (line,) = (tmp_path / "skip" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 2
    three = run(checkpoint, tmp_path / "three", data.select([0, 1, 3]))
    assert_same(trainer, three, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [["all"], ["head"]])
def test_compiled_is_the_same(checkpoint: str, tmp_path: Path, trainable: list[str]) -> None:
    data = toy_dataset([toy_row(i) for i in range(4)])
    plain = run(checkpoint, tmp_path, data, trainable=trainable)
    compiled = run(
        checkpoint, tmp_path, data, trainable=trainable, torch_compile=True, torch_compile_backend="aot_eager"
    )
    assert_same(compiled, plain, 1e-5)


def test_qlora_trains_adapters_and_the_head(checkpoint: str, tmp_path: Path) -> None:
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, max_steps=2),
        train_dataset=toy_dataset(toy_rows(4)),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert any("modules_to_save.default" in name and "depth_head" in name for name in names)
    assert any("lora_A" in name for name in names)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])}
    assert any("depth_head" in name for name in changed)
    assert any("lora_B" in name for name in changed)


def test_an_evaluation_on_other_data_than_the_runs(checkpoint: str, tmp_path: Path) -> None:
    data = toy_dataset([toy_row(i) for i in range(3)]).rename_column("images", "rgb")
    trainer = DepthSFTTrainer(
        checkpoint, settings(tmp_path, image_column="rgb"), train_dataset=data, eval_dataset=data.select([0])
    )
    alone = trainer.evaluate()
    assert trainer.evaluate(data.select([0]))["eval_depth_loss"] == alone["eval_depth_loss"]
    assert trainer.evaluate(trainer.eval_dataset)["eval_depth_loss"] == alone["eval_depth_loss"]
    both = trainer.evaluate({"one": data, "other": data.to_iterable_dataset()})
    assert both["eval_one_depth_images"] == both["eval_other_depth_images"] == 3
    assert both["eval_one_depth_loss"] == both["eval_other_depth_loss"] != alone["eval_depth_loss"]


def test_resume_without_a_value_means_the_latest(tmp_path: Path) -> None:
    parser = TrlParser((DepthSFTConfig,))
    common = [f"--output_dir={tmp_path}", "--use_cpu", "--bf16=False"]
    (config,) = parser.parse_args_and_config([*common, "--resume_from_checkpoint"])
    assert config.resume_from_checkpoint == "latest"
    (config,) = parser.parse_args_and_config([*common, "--resume_from_checkpoint", "run/checkpoint-3"])
    assert config.resume_from_checkpoint == "run/checkpoint-3"
    (config,) = parser.parse_args_and_config(common)
    assert config.resume_from_checkpoint is None


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("depth_loss_weight", -1.0, "finite number >= 0"),
        ("silog_lambda", 1.5, r"in \[0, 1\]"),
        ("gradient_matching_weight", -0.1, "`gradient_matching_weight` is -0.1, expected a finite number >= 0"),
        ("normal_weight", float("inf"), "`normal_weight` is inf"),
        ("on_bad_sample", "replace", "stop, skip"),
        ("depth_log_images", -2, "number of steps"),
        ("vit_learning_rate", float("nan"), "`vit_learning_rate` is nan"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(tmp_path, **{field: value})


def test_what_would_cut_an_image_is_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length \(10\) would cut an image of row 0"):
        run(checkpoint, tmp_path, toy_dataset([toy_row(0)]), max_length=10)


def test_depth_for_an_image_that_is_not_there(checkpoint: str, tmp_path: Path) -> None:
    row = toy_row(0)
    row["images"] = []
    with pytest.raises(ValueError, match="row 0"):
        run(checkpoint, tmp_path, toy_dataset([row]))


def test_a_depth_map_without_a_valid_pixel(checkpoint: str, tmp_path: Path) -> None:
    from PIL import Image

    row = toy_row(0)
    row["depth"] = [Image.new("I;16", (96, 64))]
    with pytest.raises(ValueError, match=r"row 0.*valid"):
        run(checkpoint, tmp_path, toy_dataset([row]))


def test_a_null_among_focal_lengths(checkpoint: str, tmp_path: Path) -> None:
    rows = [toy_row(0), toy_row(1)]
    rows[1]["focal_length"] = None
    with pytest.raises(ValueError, match=r"row 1.*focal"):
        run(checkpoint, tmp_path, toy_dataset(rows), per_device_train_batch_size=2)
