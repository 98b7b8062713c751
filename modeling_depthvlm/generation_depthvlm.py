# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Text and depth from one prefill."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput, logging

from .depth_features import PromptStates, check_depth_inputs

logger = logging.get_logger(__name__)


class DepthGenerationMixin:
    """
    `generate` that also predicts depth. Stands before transformers' own mixin among a model's bases.

    What a call needs to remember is with the call or on its cache, so that one model serves many threads.
    """

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

        Rows that are padded on the right are padded on the left instead, in the returned sequences too: a reply goes
        on where its prompt ends.

        Args:
            output_depth: whether to add `predicted_depth` (and the processor's `cameras`) to the output. By default
                where images and `return_dict_in_generate` are given.

        Raises:
            ValueError: when depth is asked for without images, without `return_dict_in_generate`, or with
                `inputs_embeds`, in which the image tokens cannot be told; when rows are padded on the right and
                cannot be padded on the left instead.
        """
        focal_scale, cameras = kwargs.pop("focal_scale", None), kwargs.pop("cameras", None)
        kwargs.pop("depth_labels", None)
        pixel_values, grid_thw = kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
        config = generation_config or self.generation_config
        returns_dict = kwargs.get("return_dict_in_generate", config.return_dict_in_generate)
        inputs = _pad_left(inputs, kwargs)
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
        kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "image": vision}
        states = PromptStates(length)
        output: Any = super().generate(inputs, generation_config, *args, prompt_states=states, **kwargs)  # type: ignore[misc]
        image_mask = input_ids[:, -length:] == self.config.image_token_id
        output["predicted_depth"] = self._depth_from_states(
            kept, states.of_rows(len(input_ids)), image_mask, grid_thw, focal_scale
        )
        output["cameras"] = cameras
        return output

    def prepare_inputs_for_generation(
        self: Any, *args: Any, prompt_states: PromptStates | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers. The prompt's states are collected in the calls of the prefill alone."""
        model_inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if prompt_states is not None and not prompt_states.complete:
            model_inputs["prompt_states"] = prompt_states
        return model_inputs

    def _prepare_position_ids_for_generation(self: Any, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """As in Qwen3-VL, but a cache goes on from its own offsets: the model's are those of its last call."""
        cache, types = model_kwargs.get("past_key_values"), model_kwargs.get("mm_token_type_ids")
        past = 0 if cache is None else int(cache.get_seq_length())
        if (
            cache is not None
            and past
            and hasattr(cache, "rope_deltas")
            and (types is None or not types[:, past:].any())
        ):
            words = GenerationMixin._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
            deltas = cache.rope_deltas
            return words[None] if deltas is None else words[None] + deltas.to(words.device)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # type: ignore[misc]

    def _update_model_kwargs_for_generation(
        self: Any, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; a cache that may be given to `generate` again also learns its offsets."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache, positions = model_kwargs.get("past_key_values"), model_kwargs.get("position_ids")
        if cache is not None and positions is not None and positions.ndim == 3 and len(positions) == 4:
            cache.rope_deltas = positions[1, :, -1:] - positions[0, :, -1:]  # words, then time: equal from here on
        return model_kwargs


def positions_of_call(
    backbone: Any,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    **inputs: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """
    Positions of the tokens of a call, and the offsets from which the next call on its cache goes on.

    Qwen3-VL keeps these offsets of its last call on the module, where another thread's call would find them; here
    they lie on the cache.
    """
    tokens: Any = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    own = copy.copy(backbone)  # shallow: the very same weights, its own offsets
    own.rope_deltas = getattr(past_key_values, "rope_deltas", backbone.rope_deltas) if past else None
    positions = own.compute_3d_position_ids(
        input_ids=input_ids,
        inputs_embeds=tokens[..., None],
        past_key_values=past_key_values,
        **{
            name: inputs.get(name)
            for name in ("image_grid_thw", "video_grid_thw", "attention_mask", "mm_token_type_ids")
        },
    )
    if positions is None:  # as the LLM counts by itself
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device).expand(4, len(tokens), -1)
    return positions[..., -tokens.shape[1] :], own.rope_deltas


def _pad_left(inputs: Tensor | None, kwargs: dict[str, Any]) -> Tensor | None:
    """`inputs`; rows that end in padding are padded on the left instead, there and in `kwargs`."""
    input_ids = kwargs.get("input_ids") if inputs is None else inputs
    mask = kwargs.get("attention_mask")
    if input_ids is None or mask is None or mask.shape != input_ids.shape or bool(mask[:, -1].all()):
        return inputs
    given = [name for name in ("position_ids", "past_key_values", "inputs_embeds") if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"`generate` got rows that are padded on the right, and {', '.join(given)}: a reply goes on where its "
            "prompt ends. Pad on the left (`padding_side='left'`)."
        )
    order = mask.argsort(dim=1, stable=True)  # padding first, and what counts in its order
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].gather(1, order)
    return None if inputs is None else inputs.gather(1, order)


def _prefill_length(input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> int:
    """Positions that the prefill runs: `input_ids` may hold the cached part as well, or only what is new."""
    length = input_ids.shape[1]
    if cache is None or (attention_mask is not None and attention_mask.shape[-1] != length):
        return length
    return length - int(cache.get_seq_length())
