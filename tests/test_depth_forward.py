"""TRL's fused LM head on a CPU: the labelled positions alone are scored, with the same losses and gradients."""

import torch
from depthvlm.training.depth_forward import score_replies_alone
from torch.nn import functional
from toy_checkpoint import toy_config
from trl.trainer.utils import add_fused_lm_head

from depthvlm import DepthVLMForConditionalGeneration


def scored(alone: bool) -> tuple[object, DepthVLMForConditionalGeneration, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration(toy_config()).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if alone:
        score_replies_alone(model)
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
