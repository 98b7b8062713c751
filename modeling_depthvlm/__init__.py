"""The model: configuration, depth heads, SILog loss, model classes."""

from .configuration_depthvlm import DepthHeadConfig, DepthVLMConfig
from .losses_depthvlm import silog_loss
from .modeling_depthvlm import (
    DepthVLMCausalLMOutputWithPast,
    DepthVLMForConditionalGeneration,
    DepthVLMForDepthEstimation,
    PredictedDepth,
)

__all__ = [
    "DepthHeadConfig",
    "DepthVLMCausalLMOutputWithPast",
    "DepthVLMConfig",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "PredictedDepth",
    "register_auto_classes",
    "silog_loss",
]


def register_auto_classes() -> None:
    """Make transformers' Auto classes know DepthVLM, so that no `trust_remote_code` is needed."""
    from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, AutoModelForImageTextToText

    AutoConfig.register(DepthVLMConfig.model_type, DepthVLMConfig, exist_ok=True)
    AutoModel.register(DepthVLMConfig, DepthVLMForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(DepthVLMConfig, DepthVLMForConditionalGeneration, exist_ok=True)
    AutoModelForDepthEstimation.register(DepthVLMConfig, DepthVLMForDepthEstimation, exist_ok=True)
