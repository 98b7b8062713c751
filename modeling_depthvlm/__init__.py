"""The model: configuration, depth heads, SILog loss, model classes; a file for every family of backbones."""

from .backbones_depthvlm import FAMILIES, Backbone, Family
from .configuration_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMConfigMixin
from .glm4v_depthvlm import (
    DepthVLMGlm4vConfig,
    DepthVLMGlm4vForConditionalGeneration,
    DepthVLMGlm4vForDepthEstimation,
    DepthVLMGlm46VConfig,
    DepthVLMGlm46VForConditionalGeneration,
    DepthVLMGlm46VForDepthEstimation,
)
from .losses_depthvlm import silog_loss
from .modeling_depthvlm import (
    DepthFeatures,
    DepthVLMCausalLMOutputWithPast,
    DepthVLMForConditionalGeneration,
    DepthVLMForDepthEstimation,
    DepthVLMMixin,
    PredictedDepth,
)
from .qwen2_5_vl_depthvlm import (
    DepthVLMQwen2_5_VLConfig,
    DepthVLMQwen2_5_VLForConditionalGeneration,
    DepthVLMQwen2_5_VLForDepthEstimation,
)
from .qwen3_5_depthvlm import (
    DepthVLMQwen3_5Config,
    DepthVLMQwen3_5ForConditionalGeneration,
    DepthVLMQwen3_5ForDepthEstimation,
    DepthVLMQwen3_5MoeConfig,
    DepthVLMQwen3_5MoeForConditionalGeneration,
    DepthVLMQwen3_5MoeForDepthEstimation,
)
from .qwen3_vl_moe_depthvlm import (
    DepthVLMQwen3VLMoeConfig,
    DepthVLMQwen3VLMoeForConditionalGeneration,
    DepthVLMQwen3VLMoeForDepthEstimation,
)

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
    "DepthVLMGlm4vForConditionalGeneration",
    "DepthVLMGlm4vForDepthEstimation",
    "DepthVLMGlm46VConfig",
    "DepthVLMGlm46VForConditionalGeneration",
    "DepthVLMGlm46VForDepthEstimation",
    "DepthVLMMixin",
    "DepthVLMQwen2_5_VLConfig",
    "DepthVLMQwen2_5_VLForConditionalGeneration",
    "DepthVLMQwen2_5_VLForDepthEstimation",
    "DepthVLMQwen3VLMoeConfig",
    "DepthVLMQwen3VLMoeForConditionalGeneration",
    "DepthVLMQwen3VLMoeForDepthEstimation",
    "DepthVLMQwen3_5Config",
    "DepthVLMQwen3_5ForConditionalGeneration",
    "DepthVLMQwen3_5ForDepthEstimation",
    "DepthVLMQwen3_5MoeConfig",
    "DepthVLMQwen3_5MoeForConditionalGeneration",
    "DepthVLMQwen3_5MoeForDepthEstimation",
    "Family",
    "PredictedDepth",
    "register_auto_classes",
    "silog_loss",
]


def register_auto_classes() -> None:
    """Register DepthVLM with transformers' Auto classes, so that `trust_remote_code` is not needed."""
    from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation, AutoModelForImageTextToText

    for config, model, depth_estimation in FAMILIES.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoModelForDepthEstimation.register(config, depth_estimation, exist_ok=True)
