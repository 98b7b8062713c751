"""The module call of a training step: TRL's fused LM head on a CPU, and what runs in which order."""

from typing import Any

import pytest
import torch
from depthvlm.modeling_depthvlm import FAMILIES
from depthvlm.training.forward import DepthTargets, install_training_forward
from torch.nn import functional
from toy_checkpoint import toy_config
from toy_families import HEAD, family_config, family_tokenizer
from trl.trainer.utils import add_fused_lm_head

from depthvlm import DepthVLMForConditionalGeneration


def scored(alone: bool) -> tuple[object, DepthVLMForConditionalGeneration, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration(toy_config()).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if alone:
        install_training_forward(model)
    ids = torch.randint(0, 64, (3, 12))
    labels = ids.clone()
    labels[0, :7] = labels[1, 3:9] = -100
    labels[2] = -100  # a row without any reply
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return model(**inputs, fused_lm_head=True), model, inputs


def test_sums_and_gradients_are_trls():
    (theirs, their_model, _), (ours, our_model, inputs) = scored(False), scored(True)
    labelled = int((inputs["labels"][:, 1:] != -100).sum())
    assert ours.log_probs.shape == (1, labelled) == (1, 5 + 5)
    assert theirs.log_probs.shape == (3, 11)
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(getattr(ours, name).sum(), getattr(theirs, name).sum())
    (-theirs.log_probs.sum()).backward()
    (-ours.log_probs.sum()).backward()
    for one, two in zip(our_model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-5)


def test_log_probabilities_are_those_of_the_logits():
    ours, model, inputs = scored(True)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    labels = inputs["labels"][:, 1:]
    kept = labels != -100
    torch.testing.assert_close(
        -ours.log_probs[0], functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    )


def test_no_label_anywhere_is_a_zero_with_a_gradient():
    _, model, inputs = scored(True)
    output = model(**inputs | {"labels": torch.full_like(inputs["labels"], -100)}, fused_lm_head=True)
    output.log_probs.sum().backward()
    assert output.log_probs.shape == (1, 0)
    assert float(output.loss) == 0.0
    assert model.lm_head.weight.grad is not None


def new_model(family: str, head: dict[str, Any]) -> Any:
    """A toy model of a family with a new depth head."""
    plain = family_config(family, family_tokenizer(family)).to_dict()
    del plain["model_type"]
    classes = FAMILIES[family]
    return classes.model(classes.config(**plain, depth_config=HEAD | head))


def images_of(model: DepthVLMForConditionalGeneration, grids: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """One row with images of so many patches, between words."""
    vision = model.config.vision_config
    merge = vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    ids = [1, 2]
    for height, columns in grids:
        tokens = height * columns // merge**2
        ids += [model.config.vision_start_token_id, *[model.config.image_token_id] * tokens, 3]
    row = torch.tensor([[*ids, 4, 5]])
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()}
    inputs["mm_token_type_ids"] = (row == model.config.image_token_id).int()
    if grids:
        inputs["pixel_values"] = torch.randn(sum(height * columns for height, columns in grids), width)
        inputs["image_grid_thw"] = torch.tensor([(1, *grid) for grid in grids])
    return inputs


@pytest.mark.parametrize("text", [True, False], ids=["text and depth", "head alone"])
@pytest.mark.parametrize("projector", [None, "shared", "own"], ids=["DeepStack", "shared projector", "own projectors"])
def test_all_ranks_run_the_same_modules_in_the_same_order(projector: str | None, text: bool):
    """Ranks that gather each other's weights, module by module, wait for ever where one asks for another."""
    torch.manual_seed(0)
    model: Any = DepthVLMForConditionalGeneration(toy_config())
    if projector is not None:
        model = new_model("qwen3_5", {"projector": projector})
    model.train().requires_grad_(text)
    model.depth_head.requires_grad_(True)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    install_training_forward(model, 0.5, text=text, sharded=True)
    order: list[str] = []

    def note(name: str, given: Any, output: torch.Tensor) -> None:
        asks = any(isinstance(one, torch.Tensor) and one.requires_grad for one in given)
        order.append(f"{name}, input with a gradient" if asks else name)  # ZeRO lets go of weights by it
        if output.requires_grad:
            output.register_hook(lambda _: order.append(f"{name} backward"))

    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda _, given, output, name=name: note(name, given, output))
    asked = type(model).get_output_embeddings
    model.get_output_embeddings = lambda: order.append("LM head") or asked(model)  # TRL reads its weights, no more

    def run(grids: list[tuple[int, int]], depth: int) -> list[str]:
        order.clear()
        maps = [torch.rand(32, 32) + 1 if i < depth else None for i in range(len(grids))]
        targets = DepthTargets(depth_labels=maps, focal_scale=None, head_runs=2)
        output: Any = model(**images_of(model, grids), fused_lm_head=True, depth_targets=targets)
        loss = output.depth_loss - (output.log_probs.sum() if text else 0.0)
        loss.backward()
        return list(order)

    two_sizes = run([(4, 4), (4, 8)], depth=2)
    assert sum(one.startswith("depth_head.norm") and not one.endswith("backward") for one in two_sizes) == 8
    assert two_sizes.count("LM head") == text
    assert run([(4, 4), (4, 4)], depth=1) == two_sizes
    assert run([(4, 4)], depth=0) == two_sizes
    assert run([], depth=0) == two_sizes
