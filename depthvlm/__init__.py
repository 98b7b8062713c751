"""DepthVLM: dense metric depth inside a vision-language model; metres and words from one prefill.

Importing the package registers its classes with transformers' Auto classes, which imports torch and transformers. The
names below are imported on first use.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._registration import register

if TYPE_CHECKING:
    from .inference import DepthVLM, load, predict
    from .modeling_depthvlm import (
        DepthHeadConfig,
        DepthVLMConfig,
        DepthVLMForConditionalGeneration,
        DepthVLMForDepthEstimation,
        silog_loss,
    )
    from .prediction import Prediction
    from .processing import DepthVLMImageProcessor, DepthVLMProcessor
    from .training import DepthDataCollator, DepthSFTConfig, DepthSFTTrainer
    from .video import predict_video

__version__ = "0.1.0"

_MODULES = {
    "DepthDataCollator": "training",
    "DepthHeadConfig": "modeling_depthvlm",
    "DepthSFTConfig": "training",
    "DepthSFTTrainer": "training",
    "DepthVLM": "inference",
    "DepthVLMConfig": "modeling_depthvlm",
    "DepthVLMForConditionalGeneration": "modeling_depthvlm",
    "DepthVLMForDepthEstimation": "modeling_depthvlm",
    "DepthVLMImageProcessor": "processing",
    "DepthVLMProcessor": "processing",
    "Prediction": "prediction",
    "load": "inference",
    "predict": "inference",
    "predict_video": "video",
    "silog_loss": "modeling_depthvlm",
}

__all__ = [
    "DepthDataCollator",
    "DepthHeadConfig",
    "DepthSFTConfig",
    "DepthSFTTrainer",
    "DepthVLM",
    "DepthVLMConfig",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "DepthVLMImageProcessor",
    "DepthVLMProcessor",
    "Prediction",
    "__version__",
    "load",
    "predict",
    "predict_video",
    "silog_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The `depthvlm` command answers `--help` before anything heavy is imported, and registers where it loads a model.
if Path(sys.argv[0]).stem != "depthvlm":
    register()
