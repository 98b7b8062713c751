"""Trained and frozen parts of the model and their learning rates; Muon for models trained from scratch."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PARTS = ("head", "llm", "merger", "vit")
CHOICES = {"head": ("head",), "head+llm": ("head", "llm"), "all": PARTS}

# Inserted into names by PEFT, torch.compile and activation checkpointing.
_WRAPPERS = re.compile(
    r"^(module\.|base_model\.model\.|_orig_mod\.)+|_orig_mod\.|_checkpoint_wrapped_module\.|modules_to_save\.[^.]+\."
)


def part_of(name: str) -> str:
    """Return which of [`PARTS`] a parameter belongs to; DeepStack's mergers count as merger, embeddings as LLM."""
    name = _WRAPPERS.sub("", name)
    if name.startswith("depth_head."):
        return "head"
    if ".visual." in f".{name}":
        return "merger" if ".merger." in name or ".deepstack_merger_list." in name else "vit"
    return "llm"


def set_trainable(model: nn.Module, trainable: Iterable[str]) -> None:
    """Freeze the model except the named parts.

    Args:
        model: Model whose parameters are frozen or unfrozen.
        trainable: "head", "head+llm", "all", or shell-style patterns of parameter names ("depth_head.*").

    Raises:
        ValueError: If no parameter matches a pattern.
    """
    chosen = list(trainable)
    parameters = dict(model.named_parameters())
    used: set[str] = set()
    for name, parameter in parameters.items():
        hits = [c for c in chosen if (part_of(name) in CHOICES[c] if c in CHOICES else fnmatchcase(name, c))]
        used.update(hits)
        # Quantised weights are integers and have no gradient.
        parameter.requires_grad_(bool(hits) and (parameter.is_floating_point() or parameter.is_complex()))
    unused = [c for c in chosen if c not in used]
    if unused:
        raise ValueError(
            f"`trainable` names {', '.join(map(repr, unused))}, but no parameter of {type(model).__name__} has such a "
            f"name. Choose from {', '.join(CHOICES)}, or give patterns such as 'depth_head.*' or "
            f"'model.language_model.*' (one of its parameters is {next(iter(parameters))!r})."
        )


def trained_parts(model: nn.Module) -> list[str]:
    """Return those of [`PARTS`] that have gradients; only the head means stage 1 of the paper."""
    found = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [part for part in PARTS if part in found]


def name_parameter_groups(optimizer: Optimizer, model: nn.Module, learning_rates: dict[str, Any]) -> None:
    """Split an optimiser's groups by part, each with its own learning rate and a `name`.

    Args:
        optimizer: Optimiser that has not taken a step yet.
        model: Model that it trains.
        learning_rates: Peak learning rate by part; parts with None, and Muon's groups, keep their rate.
    """
    parts = {id(parameter): part_of(name) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for part in PARTS:
            parameters = [p for p in group["params"] if parts.get(id(p), "llm") == part]
            if parameters:
                muon = group.get("use_muon", False)
                rate = None if muon else learning_rates[part]
                name = f"{part}_muon" if muon else part
                groups.append(
                    {**group, "params": parameters, "name": name, "lr": group["lr"] if rate is None else rate}
                )
    optimizer.param_groups[:] = groups


class MuonFactory:
    """A builder of Muon and AdamW as one optimiser, as `Trainer(optimizer_cls_and_kwargs=(MuonFactory, {...}))`.

    Muon (Jordan et al., 2024) replaces the momentum of a weight matrix by the nearest matrix with orthogonal rows or
    columns. It gets the trained weights of two and more dimensions, convolutions as matrices of (output, the rest);
    AdamW gets embeddings, the output layer of words, norms and biases.
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
        """Build the optimiser of `model`, without groups that have no parameter."""
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
        return build_muon([group for group in groups if group["params"]])


def build_muon(groups: list[dict[str, Any]]) -> Optimizer:
    """Return [`pytorch_optimizer.Muon`] for `groups`, which on a CPU orthogonalises in float32.

    Many CPUs have no bfloat16 arithmetic and are a hundred times slower with it.
    """
    from pytorch_optimizer import Muon  # a large package, imported only when needed
    from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5

    class MuonAdamW(Muon):
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

    return MuonAdamW(groups, foreach=False)
