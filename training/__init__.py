"""Training: `DepthSFTTrainer`, its configuration, collator, command and recipes; imports hub_cards and below."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collator import DepthDataCollator
    from .config import DepthSFTConfig
    from .trainer import DepthSFTTrainer

_MODULES = {
    "DepthDataCollator": "collator",
    "DepthSFTConfig": "config",
    "DepthSFTTrainer": "trainer",
}
__all__ = ["DepthDataCollator", "DepthSFTConfig", "DepthSFTTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("trl") is None:
        raise ImportError(f'{name} needs TRL, which is not installed: `pip install "depthvlm[train]"`.')
    from .versions import check_versions

    check_versions()
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value
