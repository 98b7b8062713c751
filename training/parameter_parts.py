"""The parts of the model that are trained, or not, and how fast."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

PARTS = ("head", "llm", "merger", "vit")
CHOICES = {"head": ("head",), "head+llm": ("head", "llm"), "all": PARTS}

# What PEFT, torch.compile and activation checkpointing put into names.
_WRAPPERS = re.compile(
    r"^(module\.|base_model\.model\.|_orig_mod\.)+|_orig_mod\.|_checkpoint_wrapped_module\.|modules_to_save\.[^.]+\."
)


def part_of(name: str) -> str:
    """Which of [`PARTS`] a parameter belongs to, by its name; DeepStack's mergers are mergers, embeddings the LLM's."""
    name = _WRAPPERS.sub("", name)
    if name.startswith("depth_head."):
        return "head"
    if ".visual." in f".{name}":
        return "merger" if ".merger." in name or ".deepstack_merger_list." in name else "vit"
    return "llm"


def set_trainable(model: nn.Module, trainable: Iterable[str]) -> None:
    """
    Freeze all of the model but what is named.

    Args:
        trainable: "head", "head+llm", "all", or patterns of parameter names as in a shell ("depth_head.*").

    Raises:
        ValueError: for a pattern that no parameter matches.
    """
    chosen = list(trainable)
    parameters = dict(model.named_parameters())
    used: set[str] = set()
    for name, parameter in parameters.items():
        hits = [c for c in chosen if (part_of(name) in CHOICES[c] if c in CHOICES else fnmatchcase(name, c))]
        used.update(hits)
        # Quantised weights are integers, which have no gradient.
        parameter.requires_grad_(bool(hits) and (parameter.is_floating_point() or parameter.is_complex()))
    unused = [c for c in chosen if c not in used]
    if unused:
        raise ValueError(
            f"`trainable` names {', '.join(map(repr, unused))}, but no parameter of {type(model).__name__} is called "
            f"so. Choose of {', '.join(CHOICES)}, or give patterns such as 'depth_head.*', 'model.language_model.*' "
            f"(its parameters are called, for example, {next(iter(parameters))!r})."
        )


def trains_head_alone(model: nn.Module) -> bool:
    """Whether nothing but the depth head has gradients: stage 1."""
    parts = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return parts == {"head"}


def name_parameter_groups(optimizer: Optimizer, model: nn.Module, learning_rates: dict[str, Any]) -> None:
    """
    Split an optimiser's groups by part, each with its own learning rate and a `name`.

    Args:
        optimizer: that has not taken a step yet.
        learning_rates: peak learning rate by part; None, and wherever Muon is used: the group's own.
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
