# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""DepthVLM on GLM-4.6V and GLM-4.1V: patches of 14 pixels, and a projector that convolves the patches of a cell."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import GenerationMixin
from transformers.models.glm4v.configuration_glm4v import Glm4vConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vForConditionalGeneration
from transformers.models.glm46v.configuration_glm46v import Glm46VConfig
from transformers.models.glm46v.modeling_glm46v import Glm46VForConditionalGeneration

from .backbones_depthvlm import Backbone, register_family
from .checkpoints_depthvlm import AnyModel
from .configuration_depthvlm import DepthVLMConfigMixin
from .modeling_depthvlm import DepthEstimationMixin, DepthVLMMixin


class GlmBackbone(Backbone):
    """A family with GLM-4V's vision tower, and one token for images and the frames of videos."""

    def project(self, projector: Any, states: Tensor, grid_thw: Tensor, vision_config: Any) -> Tensor:
        """Return phi(h): see [`Backbone.project`]."""
        side = vision_config.spatial_merge_size
        cells = projector.post_layernorm(states).view(-1, side, side, states.shape[-1]).permute(0, 3, 1, 2)
        return projector.merger(projector.downsample(cells).flatten(1))

    def image_mask(self, is_image_token: Tensor, mm_token_type_ids: Tensor | None) -> Tensor:
        """Return the mask of image tokens, without those of videos: see [`Backbone.image_mask`]."""
        return is_image_token if mm_token_type_ids is None else is_image_token & (mm_token_type_ids == 1)


class GlmConfigMixin(AnyModel):
    """Configuration whose vision tower also returns the output of its last layer, if the head reads it."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.reads_vision and self.vision.depth - 1 in self.vision_layers:
            self.vision.tie_last_hidden_states = False  # else transformers replaces it by the convolved cells


class GlmExpansion(AnyModel):
    """Expansion for beams that keeps the images of a row in order; GLM-4V's own code repeats each image separately."""

    def _expand_multimodal_outputs(
        self: Any, input_ids: Any, mm_encoder_output: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if mm_encoder_output.get("video") is not None:
            return super()._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        return GenerationMixin._expand_multimodal_outputs(self, input_ids, mm_encoder_output, *args, **kwargs)


GLM: dict[str, Any] = {
    "has_patch_states": False,  # it convolves the patches of a cell first
    "projector_modules": ("post_layernorm", "downsample", "merger"),
    "image_start": "image_start_token_id",
    "processor_class": "DepthVLMGlm46VProcessor",
}


@strict
class DepthVLMGlm46VConfig(GlmConfigMixin, DepthVLMConfigMixin, Glm46VConfig):
    """Configuration of [`DepthVLMGlm46VForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_glm46v"
    backbone: ClassVar[Backbone] = GlmBackbone("glm46v", "GLM-4.6V", **GLM)


class DepthVLMGlm46VForConditionalGeneration(
    GlmExpansion, DepthVLMMixin, Glm46VForConditionalGeneration, GenerationMixin
):
    """GLM-4.6V that answers in text and in metres."""

    config_class: Any = DepthVLMGlm46VConfig


class DepthVLMGlm46VForDepthEstimation(DepthEstimationMixin, DepthVLMGlm46VForConditionalGeneration):
    """[`DepthVLMGlm46VForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


@strict
class DepthVLMGlm4vConfig(GlmConfigMixin, DepthVLMConfigMixin, Glm4vConfig):
    """Configuration of [`DepthVLMGlm4vForConditionalGeneration`]: see [`DepthVLMConfigMixin`]."""

    model_type = "depthvlm_glm4v"
    backbone: ClassVar[Backbone] = GlmBackbone("glm4v", "GLM-4.1V 9B, GLM-4.6V-Flash", **GLM)


class DepthVLMGlm4vForConditionalGeneration(
    GlmExpansion, DepthVLMMixin, Glm4vForConditionalGeneration, GenerationMixin
):
    """GLM-4.1V that answers in text and in metres."""

    config_class: Any = DepthVLMGlm4vConfig


class DepthVLMGlm4vForDepthEstimation(DepthEstimationMixin, DepthVLMGlm4vForConditionalGeneration):
    """[`DepthVLMGlm4vForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


register_family(DepthVLMGlm46VConfig, DepthVLMGlm46VForConditionalGeneration, DepthVLMGlm46VForDepthEstimation)
register_family(DepthVLMGlm4vConfig, DepthVLMGlm4vForConditionalGeneration, DepthVLMGlm4vForDepthEstimation)
