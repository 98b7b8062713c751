"""DepthVLM as a model of lmms-eval: `python -m lmms_eval --model depthvlm`, see docs/lmms_eval.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_MODELS = f"{__name__}.models.depthvlm"


def manifest() -> ModelManifest:
    """Return the places of the classes, for the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("depthvlm", simple_class_path=f"{_MODELS}.DepthVLM", chat_class_path=f"{_MODELS}.DepthVLMChat")
