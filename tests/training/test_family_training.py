"""Every family of backbones, from its plain checkpoint, in both stages and with adapters: the same exact loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from depthvlm.modeling_depthvlm import FAMILIES
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.optimizer import part_of
from peft import LoraConfig, PeftModel
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_training import settings, toy_dataset, toy_row, toy_rows
from transformers import AutoModelForImageTextToText

from depthvlm import DepthSFTTrainer, DepthVLMForConditionalGeneration, DepthVLMProcessor, silog_loss

EXPERTS = [family for family in FAMILY_NAMES if family.endswith("moe")]
INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


@pytest.fixture(params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def plain(family: str, tmp_path: Path) -> str:
    """A plain checkpoint, without a depth head."""
    return str(save_plain_checkpoint(tmp_path / "plain", family))


def own_projectors(family: str) -> dict[str, str]:
    """The head's settings with projectors of its own, where the backbone has none for every level."""
    return {} if FAMILIES[family].config.backbone.has_deepstack else {"projector": "own"}


def built(plain: str, folder: Path, head: dict[str, Any], lora: bool = False, **changes: Any) -> DepthSFTTrainer:
    changes |= {"model_init_kwargs": {"depth_config": HEAD | head}, "shuffle_dataset": False}
    return DepthSFTTrainer(
        plain,
        settings(folder, **changes),
        train_dataset=toy_dataset(toy_rows(4)),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def whole_batch(trainer: DepthSFTTrainer) -> dict[str, Any]:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    batch.pop("batch_info")
    return batch


def assert_micro_batches_change_nothing(
    trainer: DepthSFTTrainer, plain: str, folder: Path, head: dict[str, Any], **changes: Any
) -> None:
    """A batch of four rows, of which two have depth and three images, against micro-batches of one."""
    cut = built(plain, folder, head, per_device_train_batch_size=1, gradient_accumulation_steps=4, **changes)
    cut.train()
    one, other = trainer.state.log_history[0], cut.state.log_history[0]
    for name in {"loss", "depth_loss", "text_loss", "delta1"} & one.keys():
        assert other[name] == pytest.approx(one[name], abs=1e-5), name
    expected = weights(trainer.model)
    for name, p in cut.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_stage_1_trains_the_head_and_keeps_no_graph_of_the_backbone(family: str, plain: str, tmp_path: Path) -> None:
    head = own_projectors(family)
    trainer = built(plain, tmp_path / "whole", head, trainable=["head"])
    assert type(trainer.model) is FAMILIES[family].model
    assert type(trainer.processing_class).__name__ == FAMILIES[family].config.backbone.processor_class
    seen: list[bool] = []
    layers = [*trainer.model.model.language_model.layers, *trainer.model.model.visual.blocks]
    for layer in layers:
        layer.register_forward_hook(
            lambda m, a, out: seen.append((out if torch.is_tensor(out) else out[0]).requires_grad)
        )
    before = weights(trainer.model)
    projectors = {n: p for n, p in trainer.model.named_parameters() if n.startswith("depth_head.projectors.")}
    assert len({name.split(".")[2] for name in projectors}) == (3 if head else 0)
    reached: set[str] = set()
    for name, p in projectors.items():  # norms move by less than float32 can tell from 1
        p.register_hook(lambda grad, name=name: reached.add(name) if grad.any() else None)
    trainer.train()
    assert len(seen) == len(layers)
    assert not any(seen)
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in changed} == {"head"}
    assert reached == projectors.keys()
    assert [group["name"] for group in trainer.optimizer.param_groups] == ["head", "head"]  # with weight decay, without
    assert "aux_loss" not in trainer.state.log_history[0]
    assert_micro_batches_change_nothing(trainer, plain, tmp_path / "cut", head, trainable=["head"])


def test_stage_2_trains_all_of_it_with_the_models_own_loss(family: str, plain: str, tmp_path: Path) -> None:
    # Without the experts' balance, which is a mean over micro-batches: see below.
    changes = {"trainable": ["all"], "depth_loss_weight": 0.7, "silog_lambda": 0.2}
    changes |= {"router_aux_loss_coef": 0.0} if family in EXPERTS else {}
    trainer = built(plain, tmp_path / "whole", {}, **changes)
    batch, before = whole_batch(trainer), weights(trainer.model)
    reference = AutoModelForImageTextToText.from_pretrained(plain).train()
    text_loss = reference(**{name: batch[name] for name in (*INPUTS, "labels")}).loss
    with torch.no_grad():
        depth = trainer.model(**{k: v for k, v in batch.items() if k != "labels"}, output_depth=True).predicted_depth
    depth_loss = silog_loss(depth, batch["depth_labels"], 0.2)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["text_loss"] == pytest.approx(text_loss.item(), abs=1e-5)
    assert log["depth_loss"] == pytest.approx(depth_loss.item(), abs=1e-5)
    assert log["loss"] == pytest.approx(text_loss.item() + 0.7 * depth_loss.item(), abs=1e-5)
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in changed} == {"head", "llm", "merger", "vit"}
    assert_micro_batches_change_nothing(trainer, plain, tmp_path / "cut", {}, **changes)


@pytest.mark.slow
def test_an_adapter_keeps_the_head_and_its_projectors(family: str, plain: str, tmp_path: Path) -> None:
    head = own_projectors(family)
    trainer = built(plain, tmp_path / "lora", head, lora=True, max_steps=3)
    trainer.train()
    trainer.save_model()
    learnt = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in learnt)
    assert any("modules_to_save.default.projectors.2" in name for name in learnt) == bool(head)
    batch = whole_batch(trainer)
    inputs = {name: batch[name] for name in (*INPUTS, "focal_scale")}
    expected = trainer.depth_model.eval().predict_depth(**inputs)
    base = DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=HEAD | head).eval()
    untrained = base.predict_depth(**inputs)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval().merge_and_unload()
    for ours, before, after in zip(expected, untrained, merged.predict_depth(**inputs), strict=True):
        assert (ours - before).abs().max() > 1e-3
        torch.testing.assert_close(after, ours, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_saved_model_is_a_checkpoint_of_the_family(family: str, plain: str, tmp_path: Path) -> None:
    trainer = built(plain, tmp_path / "saved", own_projectors(family), trainable=["head"])
    trainer.train()
    trainer.save_model()
    batch = whole_batch(trainer)
    inputs = {name: batch[name] for name in (*INPUTS, "focal_scale")}
    again = DepthSFTTrainer(
        str(tmp_path / "saved"), settings(tmp_path / "again", max_steps=1), train_dataset=toy_dataset(toy_rows(4))
    )
    assert type(again.model) is FAMILIES[family].model
    assert type(again.processing_class) is type(trainer.processing_class)
    expected = trainer.model.eval().predict_depth(**inputs)
    for ours, loaded in zip(expected, again.model.eval().predict_depth(**inputs), strict=True):
        assert torch.equal(ours, loaded)


# Mixtures of experts


@pytest.mark.parametrize("family", EXPERTS, indirect=True)
def test_the_balance_of_the_experts_is_the_plain_models(plain: str, tmp_path: Path) -> None:
    trainer = built(plain, tmp_path, {}, depth_loss_weight=0.7, router_aux_loss_coef=0.3, gradient_checkpointing=True)
    batch = whole_batch(trainer)
    assert (batch["attention_mask"] == 0).any()  # padding does not count
    reference = AutoModelForImageTextToText.from_pretrained(plain).train()
    words = {name: batch[name] for name in INPUTS}
    theirs = reference(**words, labels=batch["labels"], output_router_logits=True)
    text_loss = reference(**words, labels=batch["labels"], output_router_logits=False).loss.item()
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["aux_loss"] == pytest.approx(theirs.aux_loss.item(), abs=1e-5)
    assert log["text_loss"] == pytest.approx(text_loss + 0.3 * theirs.aux_loss.item(), abs=1e-5)
    assert log["loss"] == pytest.approx(text_loss + 0.3 * theirs.aux_loss.item() + 0.7 * log["depth_loss"], abs=1e-5)
    # Plain gradient descent at a rate of 0.05 shows the gradients: those of the model's own loss.
    model = DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=HEAD).train()
    model.depth_head.load_state_dict(built(plain, tmp_path, {}).model.depth_head.state_dict())  # drawn by the same seed
    model.config.depth_loss_weight = 0.7
    model.config.text.router_aux_loss_coef = 0.3
    model(**batch, output_router_logits=True).loss.backward()
    after = weights(trainer.model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], (p - 0.05 * p.grad).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", EXPERTS, indirect=True)
def test_the_balance_without_depth(plain: str, tmp_path: Path) -> None:
    DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=HEAD).save_pretrained(tmp_path / "start")
    DepthVLMProcessor.from_pretrained(plain).save_pretrained(tmp_path / "start")
    changes = {"depth_loss_weight": 0.0, "use_depth_collator": True, "router_aux_loss_coef": 0.3}
    trainer = built(str(tmp_path / "start"), tmp_path / "out", {}, **changes)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    reference = AutoModelForImageTextToText.from_pretrained(plain).train()
    reference.config.text_config.router_aux_loss_coef = 0.3
    theirs = reference(**{name: batch[name] for name in (*INPUTS, "labels")}, output_router_logits=True)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["aux_loss"] == pytest.approx(theirs.aux_loss.item(), abs=1e-5)
    assert log["loss"] == pytest.approx(theirs.loss.item(), abs=1e-5)


# Data


def test_tokens_around_an_image_are_not_trained(plain: str) -> None:
    processor = DepthVLMProcessor.from_pretrained(plain)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    start = prompt.index(processor.image_token)
    before, after = prompt[:start].rpartition("<")[2], prompt[start:].split(">")[1]
    image = f"<{before}{processor.image_token}{after}>"
    row = toy_row(0)
    del row["messages"]
    batch = DepthDataCollator(processor)([row | {"text": f"left {image} right"}])
    assert (batch["input_ids"] == processor.image_token_id).sum() > 1
    assert processor.tokenizer.decode(batch["labels"][batch["labels"] != -100]) == "left  right"
