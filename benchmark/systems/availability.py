"""Check whether a system can run on this machine, without access to the network."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from .interface import System

TORCH_HUB = "torch.hub:"
"""Prefix of a checkpoint that torch.hub keeps."""
_WEIGHT_FILES = tuple(
    f"{name}{suffix}" for name in ("model.safetensors", "pytorch_model.bin") for suffix in ("", ".index.json")
)


def can_run(system: System, options: tuple[str, ...] = ()) -> tuple[bool, str]:
    """Check whether everything that a system needs is here, with these names of options that the user gives.

    Returns:
        Whether it can run, with a remark: the reason if it cannot, else which weights must be downloaded first, or "".
    """
    needs = system.requirement
    missing = [package for package in needs.packages if not _is_installed(package)]
    unset = [variable for variable in needs.environment if not os.environ.get(variable)]
    unsaid = [name for name in system.required_options if name not in options]
    problem = ""
    if missing:
        problem = f"{_names(missing)} not installed"
    elif needs.imports and (reason := import_problem(needs.imports)):
        problem = reason
    elif unset:
        problem = f"{_names(unset)} not set"
    if problem:
        return False, f"{problem}. {needs.install}" if needs.install else problem
    if unsaid:
        return False, f"needs to be told: {', '.join(unsaid)}"
    if needs.gpu_gib and (found := gpu_gib()) < needs.gpu_gib:
        have = f"{found:.0f} GiB here" if found else "none here"
        return False, f"needs about {needs.gpu_gib:.0f} GiB of GPU memory, {have}"
    if not system.weights or weights_are_here(system.weights):
        return True, ""
    if constants.HF_HUB_OFFLINE and not system.weights.startswith(TORCH_HUB):
        return False, f"{system.weights} is not in the cache, and HF_HUB_OFFLINE is set"
    return True, f"downloads {system.weights.removeprefix(TORCH_HUB)} first"


def weights_are_here(weights: str) -> bool:
    """Check whether a checkpoint is a local folder, or in the cache of the Hub or of torch.hub."""
    if weights.startswith(TORCH_HUB):
        import torch

        return (Path(torch.hub.get_dir()) / "checkpoints" / weights.removeprefix(TORCH_HUB)).is_file()
    if Path(weights).is_dir():
        return True
    return any(isinstance(try_to_load_from_cache(weights, file), str) for file in _WEIGHT_FILES)


@cache
def import_problem(statements: tuple[str, ...]) -> str:
    """Return why import statements fail, or "". They run in another process, where they leave nothing behind."""
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
    """Return the memory of all CUDA devices together, in GiB; 0 without one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sum(torch.cuda.get_device_properties(index).total_memory for index in range(count)) / 2**30


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a module that was put in place without a spec
        return False


def _names(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
