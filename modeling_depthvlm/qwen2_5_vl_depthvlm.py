# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""DepthVLM on Qwen2.5-VL: patches of 14 pixels, and a ViT whose windowed attention orders cells by window."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import GenerationMixin
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from .backbones_depthvlm import Backbone, register_family
from .configuration_depthvlm import DepthVLMConfigMixin
from .modeling_depthvlm import DepthEstimationMixin, DepthVLMMixin


class WindowedBackbone(Backbone):
    """A family whose vision tower sorts the cells by attention window."""

    def project(self, projector: Any, states: Tensor, grid_thw: Tensor, vision_config: Any) -> Tensor:
        """Return phi(h) with the cells back in reading order: see [`Backbone.project`]."""
        order, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=vision_config.spatial_merge_size,
            window_size=vision_config.window_size,
            patch_size=vision_config.patch_size,
        )
        return projector.merger(states)[order.argsort().to(states.device)]


@strict
class DepthVLMQwen2_5_VLConfig(DepthVLMConfigMixin, Qwen2_5_VLConfig):
    """Configuration of [`DepthVLMQwen2_5_VLForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_qwen2_5_vl"
    backbone: ClassVar[Backbone] = WindowedBackbone(
        "qwen2_5_vl",
        "Qwen2.5-VL: 3B, 7B, 32B, 72B",
        has_patch_states=False,
        processor_class="DepthVLMQwen2_5_VLProcessor",
    )


class DepthVLMQwen2_5_VLForConditionalGeneration(DepthVLMMixin, Qwen2_5_VLForConditionalGeneration, GenerationMixin):
    """Qwen2.5-VL that answers in text and in metres."""

    config_class: Any = DepthVLMQwen2_5_VLConfig


class DepthVLMQwen2_5_VLForDepthEstimation(DepthEstimationMixin, DepthVLMQwen2_5_VLForConditionalGeneration):
    """[`DepthVLMQwen2_5_VLForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


register_family(
    DepthVLMQwen2_5_VLConfig, DepthVLMQwen2_5_VLForConditionalGeneration, DepthVLMQwen2_5_VLForDepthEstimation
)
