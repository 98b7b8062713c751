"""Muon for the matrices of hidden layers: its steps against PyTorch's, and a run of the trainer with it."""

from pathlib import Path

import pytest
import torch
from depthvlm.training.optimizer import MuonFactory, build_muon
from torch import nn
from toy_training import settings, toy_dataset, toy_rows

from depthvlm import DepthSFTTrainer

ADAMW = {"learning_rate": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-8}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 3, 2, 2)])
def test_three_steps_are_pytorchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    optimizer = build_muon([{"params": [ours], "use_muon": True, "lr": 0.02, "weight_decay": 0.1}])
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1).clone()
        optimizer.step()
        reference.step()
    # Theirs is orthogonalised in bfloat16; the three steps move a weight by 1e-2 or so.
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=6e-4)


def test_a_step_keeps_the_gradients_directions_and_evens_their_lengths() -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(12, 20), full_matrices=False)
    gradient = left @ torch.diag(torch.linspace(0.5, 5, 12)) @ right
    weight = nn.Parameter(torch.zeros(12, 20))
    weight.grad = gradient.clone()
    build_muon([{"params": [weight], "use_muon": True, "lr": 1.0, "momentum": 0.0}]).step()
    seen = -left.T @ weight.detach() @ right.T
    lengths = seen.diagonal()
    torch.testing.assert_close(seen, torch.diag(lengths), rtol=0, atol=1e-5)
    assert 0.65 < lengths.min() < lengths.max() < 1.25  # the iteration's known range; the gradient's were 0.5 to 5


def test_what_is_no_hidden_matrix_is_adamws() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.convolution = nn.Conv2d(3, 4, 2)
            self.hidden, self.frozen, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
            self.lm_head = nn.Linear(4, 7, bias=False)
            self.frozen.requires_grad_(False)

    model = Words()
    optimizer = MuonFactory()(model, muon_learning_rate=0.02, **ADAMW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert groups == [
        {"convolution.weight", "hidden.weight"},
        {"embed.weight", "lm_head.weight"},
        {"convolution.bias", "hidden.bias", "norm.weight", "norm.bias"},
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]

    # AdamW's share is PyTorch's AdamW.
    twin = Words()
    twin.load_state_dict(model.state_dict())
    reference = torch.optim.AdamW(
        [
            {"params": [twin.embed.weight, twin.lm_head.weight], "weight_decay": 0.1},
            {"params": [twin.norm.weight], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    for _ in range(3):
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        optimizer.step()
        reference.step()
    for name in ("embed.weight", "lm_head.weight", "norm.weight"):
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), rtol=0, atol=1e-6)


def test_a_run_logs_both_rates_and_resumes_exactly(checkpoint: str, tmp_path: Path) -> None:
    def trainer(folder: str, **changes: object) -> DepthSFTTrainer:
        chosen = settings(
            tmp_path / folder,
            optim="adamw_torch",
            learning_rate=1e-3,
            muon_learning_rate=0.02,
            head_learning_rate=5e-4,
            trainable=["all"],
            max_steps=4,
            **changes,
        )
        return DepthSFTTrainer(checkpoint, chosen, train_dataset=toy_dataset(toy_rows(16)))

    whole = trainer("whole", save_strategy="steps", save_steps=2)
    whole.train()
    log = whole.state.log_history[0]
    rates = {key.removeprefix("learning_rate/"): log[key] for key in log if key.startswith("learning_rate/")}
    parts = ("head", "llm", "merger", "vit")
    assert rates == {f"{part}_muon": 0.02 for part in parts} | dict.fromkeys(parts, 1e-3) | {"head": 5e-4}

    resumed = trainer("resumed")
    resumed.train(str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_optimisers_are_refused(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="muon_learning_rate"):
        DepthSFTTrainer(
            checkpoint,
            settings(tmp_path, muon_learning_rate=0.02),
            train_dataset=toy_dataset(toy_rows(4)),
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        )
