"""The classes that this folder's `auto_map` names: those of the installed package, of which the folder is a part."""

from depthvlm.modeling_depthvlm import (
    DepthVLMConfig,
    DepthVLMForConditionalGeneration,
    DepthVLMForDepthEstimation,
)
from depthvlm.processing import DepthVLMImageProcessor, DepthVLMImageProcessorPil, DepthVLMProcessor

__all__ = [
    "DepthVLMConfig",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "DepthVLMImageProcessor",
    "DepthVLMImageProcessorPil",
    "DepthVLMProcessor",
]
