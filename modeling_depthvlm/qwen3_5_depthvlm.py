# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""DepthVLM on Qwen3.5, dense and with a mixture of experts: no DeepStack, so the ViT's inner layers are projected."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationMixin
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeForConditionalGeneration

from .backbones_depthvlm import Backbone, register_family
from .configuration_depthvlm import DepthVLMConfigMixin
from .modeling_depthvlm import DepthEstimationMixin, DepthVLMMixin


@strict
class DepthVLMQwen3_5Config(DepthVLMConfigMixin, Qwen3_5Config):
    """Configuration of [`DepthVLMQwen3_5ForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_qwen3_5"
    backbone: ClassVar[Backbone] = Backbone("qwen3_5", "Qwen3.5, 3.6 and 3.8: 0.8B to 27B")


class DepthVLMQwen3_5ForConditionalGeneration(DepthVLMMixin, Qwen3_5ForConditionalGeneration, GenerationMixin):
    """Qwen3.5 that answers in text and in metres."""

    config_class: Any = DepthVLMQwen3_5Config


class DepthVLMQwen3_5ForDepthEstimation(DepthEstimationMixin, DepthVLMQwen3_5ForConditionalGeneration):
    """[`DepthVLMQwen3_5ForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


@strict
class DepthVLMQwen3_5MoeConfig(DepthVLMConfigMixin, Qwen3_5MoeConfig):
    """Configuration of [`DepthVLMQwen3_5MoeForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_qwen3_5_moe"
    backbone: ClassVar[Backbone] = Backbone("qwen3_5_moe", "Qwen3.5: 35B-A3B, 122B-A10B, 397B-A17B")


class DepthVLMQwen3_5MoeForConditionalGeneration(DepthVLMMixin, Qwen3_5MoeForConditionalGeneration, GenerationMixin):
    """Qwen3.5 with a mixture of experts that answers in text and in metres."""

    config_class: Any = DepthVLMQwen3_5MoeConfig


class DepthVLMQwen3_5MoeForDepthEstimation(DepthEstimationMixin, DepthVLMQwen3_5MoeForConditionalGeneration):
    """[`DepthVLMQwen3_5MoeForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


register_family(DepthVLMQwen3_5Config, DepthVLMQwen3_5ForConditionalGeneration, DepthVLMQwen3_5ForDepthEstimation)
register_family(
    DepthVLMQwen3_5MoeConfig, DepthVLMQwen3_5MoeForConditionalGeneration, DepthVLMQwen3_5MoeForDepthEstimation
)
