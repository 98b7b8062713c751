"""DepthVLM: dense metric depth inside a vision-language model; depth and text from one prefill.

Importing the package registers its classes with transformers' Auto classes, which imports torch and transformers. The
names below are imported on first use.
"""

import functools
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .camera_files import read_camera
    from .conversation import Conversation
    from .grounding import measure
    from .inference import DepthPredictor, load, predict
    from .lens import Lens
    from .modeling_depthvlm import (
        DepthHeadConfig,
        DepthVLMConfig,
        DepthVLMForConditionalGeneration,
        DepthVLMForDepthEstimation,
        silog_loss,
    )
    from .prediction import Prediction
    from .processing import Camera, DepthVLMImageProcessor, DepthVLMProcessor, read_depth
    from .training import DepthDataCollator, DepthSFTConfig, DepthSFTTrainer
    from .video import predict_video

__version__ = "0.1.0"

__all__ = [
    "Camera",
    "Conversation",
    "DepthDataCollator",
    "DepthHeadConfig",
    "DepthPredictor",
    "DepthSFTConfig",
    "DepthSFTTrainer",
    "DepthVLMConfig",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "DepthVLMImageProcessor",
    "DepthVLMProcessor",
    "Lens",
    "Prediction",
    "__version__",
    "load",
    "measure",
    "predict",
    "predict_video",
    "read_camera",
    "read_depth",
    "silog_loss",
]

_MODULES = {
    name: module
    for module, names in {
        "camera_files": ("read_camera",),
        "conversation": ("Conversation",),
        "grounding": ("measure",),
        "inference": ("DepthPredictor", "load", "predict"),
        "lens": ("Lens",),
        "modeling_depthvlm": (
            "DepthHeadConfig",
            "DepthVLMConfig",
            "DepthVLMForConditionalGeneration",
            "DepthVLMForDepthEstimation",
            "silog_loss",
        ),
        "prediction": ("Prediction",),
        "processing": ("Camera", "DepthVLMImageProcessor", "DepthVLMProcessor", "read_depth"),
        "training": ("DepthDataCollator", "DepthSFTConfig", "DepthSFTTrainer"),
        "video": ("predict_video",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name == "DepthVLM":
        warnings.warn("`depthvlm.DepthVLM` is now `depthvlm.DepthPredictor`.", FutureWarning, stacklevel=2)
        return __getattr__("DepthPredictor")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@functools.cache
def register() -> None:
    """Register the model, configuration and processor classes with transformers' Auto classes, once."""
    from .modeling_depthvlm import FAMILIES
    from .modeling_depthvlm import register_auto_classes as register_models
    from .processing import register_auto_classes as register_processors

    register_models()
    for config, *_ in FAMILIES.values():
        register_processors(config, config.backbone.processor_class)


def _is_command() -> bool:
    """Return whether this process is `depthvlm` or `python -m depthvlm`."""
    if sys.argv[:1] == ["-m"]:  # its value until the module to run is found
        return "depthvlm" in sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return Path(sys.argv[0]).stem == "depthvlm"


# The command answers `--help` before heavy imports, and registers when it loads a model.
if not _is_command():
    register()
