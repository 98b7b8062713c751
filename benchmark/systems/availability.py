"""Whether a row can run on this machine, without a look at the network."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, try_to_load_from_cache

if TYPE_CHECKING:
    from .registry import Row

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TORCH_HUB = "torch.hub:"
"""Before the name of a checkpoint that torch.hub keeps."""


def can_run(row: Row, options: tuple[str, ...] = ()) -> tuple[bool, str]:
    """
    Whether everything that a row needs is here.

    Args:
        options: names of the keyword arguments that the user gives.

    Returns:
        The answer, and why not; or, where it can, whether its weights have to be downloaded first, else "".
    """
    needs = row.requirement
    missing = [package for package in needs.packages if not _importable(package)]
    if missing:
        return False, _sentence(f"{_names(missing)} not installed", needs.install)
    problem = import_problem(needs.imports) if needs.imports else ""
    if problem:
        return False, _sentence(problem, needs.install)
    unset = [variable for variable in needs.environment if not os.environ.get(variable)]
    if unset:
        return False, _sentence(f"{_names(unset)} not set", needs.install)
    unsaid = [name for name in row.required_options if name not in options]
    if unsaid:
        return False, f"needs to be told: {', '.join(unsaid)}"
    if needs.gpu_gib:
        found = gpu_gib()
        if found < needs.gpu_gib:
            have = f"{found:.0f} GiB here" if found else "none here"
            return False, f"needs about {needs.gpu_gib:.0f} GiB of GPU memory, {have}"
    if not row.weights or weights_are_here(row.weights):
        return True, ""
    if constants.HF_HUB_OFFLINE and not row.weights.startswith(TORCH_HUB):
        return False, f"{row.weights} is not in the cache, and HF_HUB_OFFLINE is set"
    return True, f"downloads {row.weights.removeprefix(TORCH_HUB)} first"


def weights_are_here(weights: str) -> bool:
    """Whether a checkpoint is a local folder, or in the Hub's or torch.hub's cache."""
    if weights.startswith(TORCH_HUB):
        import torch

        return (Path(torch.hub.get_dir()) / "checkpoints" / weights.removeprefix(TORCH_HUB)).is_file()
    if Path(weights).is_dir():
        return True
    return any(isinstance(try_to_load_from_cache(weights, file), str) for file in _WEIGHT_FILES)


@cache
def import_problem(statements: tuple[str, ...]) -> str:
    """Why import statements fail in a process of their own, where they leave nothing behind; "" where they work."""
    for statement in statements:
        try:
            found = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return f"`{statement}` does not end"
        if found.returncode:
            reason = found.stderr.strip().splitlines()[-1] if found.stderr.strip() else f"exit code {found.returncode}"
            return f"`{statement}` fails: {reason}"
    return ""


@cache
def gpu_gib() -> float:
    """Memory of all CUDA devices together; 0 without one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sum(torch.cuda.get_device_properties(index).total_memory for index in range(count)) / 2**30


def _importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a module that was put in place without a spec
        return False


def _names(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _sentence(problem: str, remedy: str) -> str:
    return f"{problem}. {remedy}" if remedy else problem
