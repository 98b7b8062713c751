"""The model: configuration, depth heads, SILog loss, model classes; a file for every family of backbones."""

from .backbones_depthvlm import FAMILIES, Backbone, Family
from .configuration_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMConfigMixin
from .glm4v_depthvlm import DepthVLMGlm4vConfig, DepthVLMGlm46VConfig
from .losses_depthvlm import silog_loss
from .modeling_depthvlm import (
    DepthFeatures,
    DepthVLMCausalLMOutputWithPast,
    DepthVLMForConditionalGeneration,
    DepthVLMForDepthEstimation,
    DepthVLMMixin,
    PredictedDepth,
)
from .qwen2_5_vl_depthvlm import DepthVLMQwen2_5_VLConfig
from .qwen3_5_depthvlm import DepthVLMQwen3_5Config, DepthVLMQwen3_5MoeConfig
from .qwen3_vl_moe_depthvlm import DepthVLMQwen3VLMoeConfig

__all__ = [
    "FAMILIES",
    "Backbone",
    "DepthFeatures",
    "DepthHeadConfig",
    "DepthVLMCausalLMOutputWithPast",
    "DepthVLMConfig",
    "DepthVLMConfigMixin",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "DepthVLMGlm4vConfig",
    "DepthVLMGlm46VConfig",
    "DepthVLMMixin",
    "DepthVLMQwen2_5_VLConfig",
    "DepthVLMQwen3VLMoeConfig",
    "DepthVLMQwen3_5Config",
    "DepthVLMQwen3_5MoeConfig",
    "Family",
    "PredictedDepth",
    "register_auto_classes",
    "silog_loss",
]


def register_auto_classes() -> None:
    """Make transformers' Auto classes know DepthVLM, so that no `trust_remote_code` is needed."""
    from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, AutoModelForImageTextToText

    for config, model, depth_estimation in FAMILIES.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoModelForDepthEstimation.register(config, depth_estimation, exist_ok=True)
