# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""DepthVLM on Qwen3-VL's mixtures of experts: the vision tower of Qwen3-VL with its DeepStack levels."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationMixin
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration

from .backbones_depthvlm import Backbone, register_family
from .configuration_depthvlm import DepthVLMConfigMixin
from .modeling_depthvlm import DepthEstimationMixin, DepthVLMMixin


@strict
class DepthVLMQwen3VLMoeConfig(DepthVLMConfigMixin, Qwen3VLMoeConfig):
    """Configuration of [`DepthVLMQwen3VLMoeForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_qwen3_vl_moe"
    backbone: ClassVar[Backbone] = Backbone("qwen3_vl_moe", "Qwen3-VL: 30B-A3B, 235B-A22B", has_deepstack=True)


class DepthVLMQwen3VLMoeForConditionalGeneration(DepthVLMMixin, Qwen3VLMoeForConditionalGeneration, GenerationMixin):
    """Qwen3-VL with a mixture of experts that answers in text and in metres."""

    config_class: Any = DepthVLMQwen3VLMoeConfig


class DepthVLMQwen3VLMoeForDepthEstimation(DepthEstimationMixin, DepthVLMQwen3VLMoeForConditionalGeneration):
    """[`DepthVLMQwen3VLMoeForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


register_family(
    DepthVLMQwen3VLMoeConfig, DepthVLMQwen3VLMoeForConditionalGeneration, DepthVLMQwen3VLMoeForDepthEstimation
)
