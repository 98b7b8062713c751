# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""What the model returns."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass
class DepthVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Args:
        loss (`(1,)`): equation 5, `text_loss + depth_loss_weight * depth_loss`, of what labels were given for.
        logits (`(batch, kept tokens, vocabulary)`): scores of the next token.
        past_key_values, hidden_states, attentions: as in Qwen3-VL.
        text_loss (`(1,)`): cross-entropy of the labelled tokens.
        depth_loss (`(1,)`): SILog, the mean over the images with depth (equation 4).
        predicted_depth: one float32 `(H_i, W_i)` per image of the batch, in the order of `image_grid_thw`: z-depth in
            metres at the resolution of the model's input.
        cameras (`(images, 7)`): the processor's camera records, handed through for post-processing.
    """

    text_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    predicted_depth: list[Tensor] | None = None
    cameras: Tensor | None = None


class PredictedDepth(list[Tensor]):
    """A list of depth maps, `(H_i, W_i)` float32 in metres, that post-processing takes as it takes a model output."""

    def __init__(self, depth: Sequence[Tensor], cameras: Tensor | None = None):
        super().__init__(depth)
        self.cameras = cameras

    @property
    def predicted_depth(self) -> list[Tensor]:
        return self
