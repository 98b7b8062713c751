"""The trainer against TRL's own, against the model's own loss, and against itself cut into pieces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from depthvlm.training.optimizer import part_of
from peft import LoraConfig, PeftModel
from toy_training import setting_values, settings, toy_dataset, toy_row, toy_rows
from trl import SFTConfig, SFTTrainer

from depthvlm import (
    DepthSFTConfig,
    DepthSFTTrainer,
    DepthVLMForConditionalGeneration,
    DepthVLMProcessor,
    silog_loss,
)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def load(folder: str | Path) -> DepthVLMForConditionalGeneration:
    return DepthVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def depth_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    keys = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "focal_scale")
    return {key: batch[key] for key in keys}


def changed_parts(trainer: Any, checkpoint: str) -> set[str]:
    before = dict(load(checkpoint).named_parameters())
    return {part_of(name) for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}


def trained(checkpoint: str, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DepthSFTTrainer:
    trainer = DepthSFTTrainer(checkpoint, settings(folder, **changes), train_dataset=toy_dataset(rows))
    trainer.train()
    return trainer


# Against TRL


@pytest.mark.parametrize("kind", ["text", "images", "alpha 0"])
def test_without_depth_it_is_sft_trainer(checkpoint: str, tmp_path: Path, kind: str) -> None:
    rows = [toy_row(i, image=kind != "text", depth=kind == "alpha 0") for i in range(8)]
    dataset = toy_dataset(rows)
    if kind != "alpha 0":
        dataset = dataset.remove_columns(["depth", "depth_scale", "focal_length"])
    if kind == "text":
        dataset = dataset.remove_columns("images")
    values = setting_values(
        tmp_path,
        optim="adamw_torch",
        weight_decay=0.1,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_length=None,
    )
    args = DepthSFTConfig(**values, depth_loss_weight=0.0 if kind == "alpha 0" else None)
    model = load(checkpoint)
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    theirs = SFTTrainer(model, SFTConfig(**values), train_dataset=dataset, processing_class=processor)
    theirs.train()
    ours = DepthSFTTrainer(checkpoint, args, train_dataset=dataset)
    ours.train()
    timing = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {k: v for k, v in mine.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}
    after = weights(theirs)
    assert all(torch.equal(p, after[name]) for name, p in ours.model.named_parameters())


def test_a_plain_sft_config_keeps_its_values(checkpoint: str, tmp_path: Path) -> None:
    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=99, eos_token="<|im_end|>")
    trainer = DepthSFTTrainer(checkpoint, config, train_dataset=toy_dataset([toy_row(0)]))
    assert isinstance(trainer.args, DepthSFTConfig)
    assert (trainer.args.max_length, trainer.args.eos_token) == (99, "<|im_end|>")
    assert trainer.depth_enabled
    assert trainer.depth_loss_weight == 1.0


# The loss


def test_the_loss_is_the_models_own(checkpoint: str, tmp_path: Path) -> None:
    rows = toy_rows(4)
    trainer = DepthSFTTrainer(
        checkpoint, settings(tmp_path, depth_loss_weight=0.7, silog_lambda=0.2), train_dataset=toy_dataset(rows)
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    batch.pop("batch_info")
    model = load(checkpoint).train()
    outputs = model(**batch, output_depth=True)
    depth_loss = silog_loss(outputs.predicted_depth, batch["depth_labels"], 0.2)
    calls: list[int] = []
    trainer.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert not calls  # no full logits are built
    first = trainer.state.log_history[0]
    # One batch of all four rows: whatever their order, the means are the same.
    assert first["text_loss"] == pytest.approx(outputs.text_loss.item(), abs=1e-5)
    assert first["depth_loss"] == pytest.approx(depth_loss.item(), abs=1e-5)
    assert first["loss"] == pytest.approx(outputs.text_loss.item() + 0.7 * depth_loss.item(), abs=1e-5)


def test_logged_metrics_are_means_over_images(checkpoint: str, tmp_path: Path) -> None:
    data = toy_dataset([toy_row(0), toy_row(1, size=(64, 96)), toy_row(2, depth=False)])
    trainer = DepthSFTTrainer(checkpoint, settings(tmp_path), train_dataset=data, eval_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    model = load(checkpoint).eval()
    prediction = model.predict_depth(**depth_inputs(batch))
    delta1, abs_rel = [], []
    for depth, truth in zip(prediction, batch["depth_labels"], strict=True):
        if truth is not None:
            depth = torch.nn.functional.interpolate(
                depth[None, None], size=truth.shape, mode="bilinear", align_corners=True
            )[0, 0]
            ratio = depth / truth
            delta1.append(((ratio < 1.25) & (ratio > 0.8)).double().mean().item())
            abs_rel.append(((depth - truth).abs() / truth).double().mean().item())
    numbers = trainer.evaluate()
    assert numbers["eval_delta1"] == pytest.approx(sum(delta1) / 2, abs=1e-5)
    assert numbers["eval_abs_rel"] == pytest.approx(sum(abs_rel) / 2, abs=1e-5)
    assert numbers["eval_depth_images"] == 2
    assert numbers["eval_valid_pixels"] == 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_is_exact_whatever_the_batch(checkpoint: str, tmp_path: Path, batch_size: int) -> None:
    data = toy_dataset(toy_rows(8))
    numbers = [
        DepthSFTTrainer(
            checkpoint, settings(tmp_path, per_device_eval_batch_size=n), train_dataset=data, eval_dataset=data
        ).evaluate()
        for n in (8, batch_size)
    ]
    for name in ("loss", "text_loss", "depth_loss", "delta1", "abs_rel", "depth_images"):
        assert numbers[1][f"eval_{name}"] == pytest.approx(numbers[0][f"eval_{name}"], abs=1e-5)


@pytest.mark.parametrize("trainable", [["all"], ["head"]])
@pytest.mark.parametrize("lone_depth", [False, True])
def test_one_batch_equals_accumulated_micro_batches(
    checkpoint: str, tmp_path: Path, trainable: list[str], lone_depth: bool
) -> None:
    # Depth in one row of eight leaves seven micro-batches of one without any.
    rows = [toy_row(i, depth=i == 5) for i in range(8)] if lone_depth else toy_rows(8)
    whole = trained(checkpoint, tmp_path, rows, trainable=trainable, per_device_train_batch_size=8)
    for size in (1, 2):
        cut = trained(
            checkpoint,
            tmp_path,
            rows,
            trainable=trainable,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        before, after = whole.state.log_history[0], cut.state.log_history[0]
        names = ("loss", "depth_loss", "delta1") if trainable == ["head"] else ("loss", "depth_loss", "text_loss")
        for name in names:
            assert after[name] == pytest.approx(before[name], abs=1e-5)
        expected = weights(whole)
        for name, p in cut.model.named_parameters():
            torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-6)


# What is trained


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        (["head"], {"head"}),
        (["head+llm"], {"head", "llm"}),
        (["all"], {"head", "llm", "merger", "vit"}),
        (["depth_head.*", "model.visual.merger.*"], {"head", "merger"}),
    ],
)
def test_only_what_is_named_changes(checkpoint: str, tmp_path: Path, trainable: list[str], parts: set[str]) -> None:
    trainer = trained(checkpoint, tmp_path, toy_rows(4), trainable=trainable)
    assert changed_parts(trainer, checkpoint) == parts


def test_unknown_pattern(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no parameter of DepthVLM.* has such a name"):
        trained(checkpoint, tmp_path, toy_rows(4), trainable=["depth_haed.*"])


def test_learning_rates_per_part(checkpoint: str, tmp_path: Path) -> None:
    rates = {"head_learning_rate": 0.1, "llm_learning_rate": 0.0, "vit_learning_rate": 0.001}
    trainer = trained(checkpoint, tmp_path, toy_rows(4), **rates)
    log = trainer.state.log_history[0]
    assert {k: v for k, v in log.items() if k.startswith("learning_rate/")} == {
        "learning_rate/head": 0.1,
        "learning_rate/llm": 0.0,
        "learning_rate/merger": 0.05,
        "learning_rate/vit": 0.001,
    }
    assert changed_parts(trainer, checkpoint) == {"head", "merger", "vit"}


def test_stage_one_keeps_no_graph_of_the_backbone(checkpoint: str, tmp_path: Path) -> None:
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, trainable=["head"], gradient_checkpointing=True),
        train_dataset=toy_dataset(toy_rows(4)),
    )
    seen: list[bool] = []
    lengths: list[int] = []
    for layer in trainer.model.model.language_model.layers:
        layer.register_forward_hook(
            lambda m, a, out: seen.append((out if torch.is_tensor(out) else out[0]).requires_grad)
        )
    trainer.model.model.language_model.layers[0].register_forward_hook(lambda m, a, out: lengths.append(a[0].shape[1]))
    head: list[bool] = []
    trainer.model.lm_head.register_forward_hook(lambda *_: head.append(True))
    trainer.train()
    assert seen
    assert not any(seen)
    assert not head
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    ends = (batch["input_ids"] == trainer.model.config.image_token_id).any(0).nonzero()
    assert lengths == [int(ends[-1]) + 1]
    assert lengths[0] < batch["input_ids"].shape[1]
    log = trainer.state.log_history[0]
    assert "text_loss" not in log
    assert log["num_tokens"] == batch["attention_mask"].sum()
    assert not trainer.model.is_gradient_checkpointing


def test_gradient_checkpointing_changes_nothing(checkpoint: str, tmp_path: Path) -> None:
    plain = trained(checkpoint, tmp_path, toy_rows(4))
    checkpointed = trained(checkpoint, tmp_path, toy_rows(4), gradient_checkpointing=True)
    expected = weights(plain)
    for name, p in checkpointed.model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-6)


# Adapters, and what is saved


def test_lora_trains_and_keeps_the_head(checkpoint: str, tmp_path: Path) -> None:
    data = toy_dataset(toy_rows(4))
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, max_steps=3),
        train_dataset=data,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    inputs = depth_inputs(batch)
    expected = trainer.depth_model.eval().predict_depth(**inputs)
    base = load(checkpoint).eval()
    untrained = base.predict_depth(**inputs)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    merged = loaded.merge_and_unload()
    for ours, before, after in zip(expected, untrained, merged.predict_depth(**inputs), strict=True):
        assert (ours - before).abs().max() > 1e-3
        torch.testing.assert_close(after, ours, rtol=0, atol=1e-6)


def test_trainable_and_an_adapter_are_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Both `trainable` and a PEFT adapter"):
        DepthSFTTrainer(
            checkpoint,
            settings(tmp_path, trainable=["head"]),
            train_dataset=toy_dataset(toy_rows(4)),
            peft_config=LoraConfig(target_modules="all-linear"),
        )


def test_a_saved_model_is_a_whole_checkpoint(checkpoint: str, tmp_path: Path) -> None:
    trainer = trained(checkpoint, tmp_path, toy_rows(4), save_strategy="steps", save_steps=1)
    trainer.save_model()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    inputs = depth_inputs(batch)
    expected = trainer.model.eval().predict_depth(**inputs)[0]
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert (folder / "modeling_depthvlm.py").is_file()
        model = load(folder).eval()
        assert torch.equal(model.predict_depth(**inputs)[0], expected)
        DepthVLMProcessor.from_pretrained(folder)


# What is refused


def test_depth_is_asked_for_and_there_is_none(checkpoint: str, tmp_path: Path) -> None:
    rows = [toy_row(i, depth=False) for i in range(4)]
    for row in rows:
        row["depth"] = None
    with pytest.raises(ValueError, match="Every value of the column 'depth' is null"):
        trained(checkpoint, tmp_path, rows)
    data = toy_dataset(rows).remove_columns("depth")
    with pytest.raises(ValueError, match="has no column 'depth'"):
        DepthSFTTrainer(checkpoint, settings(tmp_path, depth_loss_weight=1.0), train_dataset=data)
    with pytest.raises(ValueError, match=r"`normal_weight` is 0\.1, but the training data has no column 'depth'"):
        DepthSFTTrainer(checkpoint, settings(tmp_path, normal_weight=0.1), train_dataset=data)
    with pytest.raises(ValueError, match="`depth_loss_weight` is 0, so `gradient_matching_weight`"):
        settings(tmp_path, normal_weight=0.1, depth_loss_weight=0.0)
    blind = toy_dataset(toy_rows(4)).remove_columns("images")
    with pytest.raises(ValueError, match="has depth but no images: no column of them"):
        DepthSFTTrainer(checkpoint, settings(tmp_path), train_dataset=blind)


def test_a_loss_that_is_not_finite_stops_the_run(checkpoint: str, tmp_path: Path) -> None:
    model = load(checkpoint)
    with torch.no_grad():
        model.depth_head.norm.bias.fill_(float("nan"))
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    trainer = DepthSFTTrainer(
        model, settings(tmp_path), train_dataset=toy_dataset(toy_rows(4)), processing_class=processor
    )
    with pytest.raises(FloatingPointError, match=r"not finite at step 1 \(text [\d.]+, depth nan\).*row"):
        trainer.train()


def test_data_with_depth_and_a_model_without_head(checkpoint: str, tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    config = DepthVLMForConditionalGeneration.from_pretrained(checkpoint).config
    model = Qwen3VLForConditionalGeneration(config)
    with pytest.raises(ValueError, match="has no depth head"):
        DepthSFTTrainer(model, settings(tmp_path), train_dataset=toy_dataset(toy_rows(4)))


def test_group_rates_are_those_of_the_logged_step(checkpoint: str, tmp_path: Path) -> None:
    trainer = trained(checkpoint, tmp_path, toy_rows(4), lr_scheduler_type="linear", max_steps=4)
    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    assert [log["learning_rate/llm"] for log in logs] == [log["learning_rate"] for log in logs]
    assert logs[0]["learning_rate/head"] == 0.05


def test_cameras_are_read_without_depth_where_that_is_asked_for(checkpoint: str, tmp_path: Path) -> None:
    row = toy_row(0)
    row["focal_length"] = 750.0  # 96x64 pixels are seen as 128x85, which rounds to 128x96
    data = toy_dataset([row]).remove_columns("depth")
    trainer = DepthSFTTrainer(checkpoint, settings(tmp_path, use_depth_collator=True), train_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["image_grid_thw"].tolist() == [[1, 6, 8]]
    reply = trainer.processing_class.tokenizer.decode(batch["labels"][batch["labels"] != -100])
    assert reply.startswith("It is so big.")
    trainer.train()
    assert "depth_loss" not in trainer.state.log_history[0]
