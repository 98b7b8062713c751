# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Text and depth from one prefill."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.utils import ModelOutput, logging

from .depth_features import StateRecorder, check_depth_inputs, recorded_layers

logger = logging.get_logger(__name__)


class DepthGenerationMixin:
    """`generate` that also predicts depth. Stands before transformers' own mixin among a model's bases."""

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self: Any,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        output_depth: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | torch.LongTensor:
        """
        Text, and with `return_dict_in_generate=True` also `predicted_depth` from the same vision pass and prefill, once
        an image whatever the number of beams or returned sequences. Decoding steps never touch the depth head.

        Args:
            output_depth: whether to add `predicted_depth` (and the processor's `cameras`) to the output. By default
                where images and `return_dict_in_generate` are given.

        Raises:
            ValueError: when depth is asked for without images, without `return_dict_in_generate`, or with
                `inputs_embeds`, in which the image tokens cannot be told.
        """
        focal_scale, cameras = kwargs.pop("focal_scale", None), kwargs.pop("cameras", None)
        kwargs.pop("depth_labels", None)
        pixel_values, grid_thw = kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
        config = generation_config or self.generation_config
        returns_dict = kwargs.get("return_dict_in_generate", config.return_dict_in_generate)
        if output_depth is None:
            output_depth = pixel_values is not None and bool(returns_dict)
            if output_depth and kwargs.get("inputs_embeds") is not None:
                logger.warning_once(
                    "`generate` got `inputs_embeds`: no depth is predicted. Pass `input_ids` to get it."
                )
                output_depth = False
        if not output_depth:
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "`generate` got `inputs_embeds` and `output_depth=True`: image tokens cannot be told in embeddings. "
                "Pass `input_ids`, or `output_depth=False`."
            )
        if not returns_dict:
            raise ValueError(
                "`output_depth=True` needs `return_dict_in_generate=True`, or there is no place for depth."
            )
        check_depth_inputs(pixel_values, grid_thw, None, focal_scale)
        input_ids = inputs if inputs is not None else kwargs["input_ids"]
        length = _prefill_length(input_ids, kwargs.get("attention_mask"), kwargs.get("past_key_values"))
        vision = self.get_image_features(kwargs.pop("pixel_values"), grid_thw, return_dict=True)
        # Generation repeats the features for beams in place: keep ours.
        kept = type(vision)(pooler_output=vision.pooler_output, deepstack_features=vision.deepstack_features)
        kwargs["mm_encoder_outputs"] = {**kwargs.get("mm_encoder_outputs", {}), "image": vision}
        recorded = recorded_layers(self.config, self.model.language_model.layers)
        with StateRecorder([*recorded, self.model.language_model], length) as recorder:
            output: Any = super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        image_mask = input_ids[:, -length:] == self.config.image_token_id
        states = [state[:: state.shape[0] // image_mask.shape[0]] for state in recorder.states]
        output["predicted_depth"] = self._depth_from_states(kept, states, image_mask, grid_thw, focal_scale)
        output["cameras"] = cameras
        return output


def _prefill_length(input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> int:
    """Positions that the prefill runs: `input_ids` may hold the cached part as well, or only what is new."""
    length = input_ids.shape[1]
    if cache is None or (attention_mask is not None and attention_mask.shape[-1] != length):
        return length
    return length - int(cache.get_seq_length())
