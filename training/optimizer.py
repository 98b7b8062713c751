"""Muon for the matrices of hidden layers and AdamW for everything else, as one optimiser."""

from typing import Any

import torch
from pytorch_optimizer import Muon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch import Tensor, nn
from torch.optim import Optimizer


class MuonAdamW(Muon):
    """[`pytorch_optimizer.Muon`], which on a CPU orthogonalises in float32: many of them have no bfloat16 arithmetic,
    and take a hundred times as long with it."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if updates[0].device.type != "cpu":
            return Muon._orthogonalize(group, updates)
        return [
            zero_power_via_newton_schulz_5(
                update.flatten(1), num_steps=group["ns_steps"], weights=group["ns_coeffs"], dtype=torch.float32
            )
            for update in updates
        ]


class MuonFactory:
    """
    Builds the optimiser for `Trainer(optimizer_cls_and_kwargs=(MuonFactory, keywords))`.

    Muon (Jordan et al., 2024) replaces the momentum of a weight matrix by the nearest matrix with orthogonal rows or
    columns. It gets the trained weights of two and more dimensions, convolutions as matrices of (output, the rest);
    embeddings, the output layer of words, norms and biases are AdamW's.
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> Optimizer:
        """The optimiser of `model`, its groups without those that have no parameter."""
        matrices, others, plain = [], [], []
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2:
                plain.append(parameter)
            elif id(parameter) in embeddings or "lm_head" in name.split("."):
                others.append(parameter)
            else:
                matrices.append(parameter)
        adamw = {"use_muon": False, "lr": learning_rate, "betas": betas, "eps": eps}
        groups: list[dict[str, Any]] = [
            {"params": matrices, "use_muon": True, "lr": muon_learning_rate, "weight_decay": weight_decay},
            {"params": others, "weight_decay": weight_decay, **adamw},
            {"params": plain, "weight_decay": 0.0, **adamw},
        ]
        return MuonAdamW([group for group in groups if group["params"]], foreach=False)
