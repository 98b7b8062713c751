# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""What the depth head needs: its inputs checked, its feature maps (paper, equation 2 and table 5), its pass shared."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .configuration_depthvlm import DepthVLMConfig
from .depth_heads_depthvlm import DepthHead


def recorded_states(config: DepthVLMConfig) -> list[int]:
    """
    Indices into `hidden_states` of the LLM states that the head reads beside the final one: with
    `feature_source="llm"` those after a quarter, a half and three quarters of the layers, maps 1 to 3.
    """
    if config.head.feature_source != "llm":
        return []
    return [max(1, round(config.text.num_hidden_layers * share)) for share in (0.25, 0.5, 0.75)]


def token_grids(grid_thw: Sequence[Sequence[int]], merge_size: int) -> list[tuple[int, int]]:
    """`(h, w)` of every image in visual tokens, from `image_grid_thw` (patches) as a list."""
    return [(height // merge_size, width // merge_size) for _, height, width in grid_thw]


def check_depth_inputs(
    pixel_values: Tensor | None,
    grid_thw: Tensor | None,
    depth_labels: Sequence[Tensor | None] | None,
    focal_scale: Tensor | None,
) -> None:
    """
    See that there are images, and labels and focal scales for each, where they are given.

    Raises:
        ValueError: there is no image, or the numbers differ.
    """
    if pixel_values is None or grid_thw is None:
        raise ValueError(
            "Depth was asked for, but there is no image: pass `pixel_values` and `image_grid_thw` as the processor "
            "makes them, or `output_depth=False`."
        )
    images = grid_thw.shape[0]
    if depth_labels is not None and len(depth_labels) != images:
        raise ValueError(
            f"Got {len(depth_labels)} `depth_labels` for {images} images: give one per image, None where there is "
            "no depth."
        )
    if focal_scale is not None and focal_scale.shape != (images,):
        raise ValueError(f"`focal_scale` has shape {tuple(focal_scale.shape)}, expected one per image: ({images},).")


class PromptStates:
    """
    LLM states of one prompt, collected over the calls of its prefill: one, or one per chunk.

    Args:
        length: positions that the prefill runs; decoding steps come after them.
    """

    def __init__(self, length: int):
        self.length = length
        self.chunks: list[Sequence[Tensor]] = []

    @property
    def complete(self) -> bool:
        return sum(chunk[-1].shape[1] for chunk in self.chunks) >= self.length

    def of_rows(self, rows: int) -> list[Tensor]:
        """One `(rows, length, hidden_size)` per recorded state: of beams and returned sequences the first alone."""
        joined = [torch.cat(parts, dim=1)[:, : self.length] for parts in zip(*self.chunks, strict=True)]
        return [state[:: state.shape[0] // rows] for state in joined]


def feature_maps(
    config: DepthVLMConfig, vision: Any, states: Sequence[Tensor], image_mask: Tensor | None, tokens: Sequence[int]
) -> list[Sequence[Tensor]]:
    """
    The head's feature maps: per map, one `(tokens_i, hidden_size)` per image.

    Args:
        vision: output of `get_image_features`.
        states: `(batch, positions, hidden_size)` of the LLM: intermediate layers first, the final normed state last.
        image_mask (`(batch, positions)`): where image tokens stand.
        tokens: number of visual tokens of every image.
    """
    source = config.head.feature_source
    maps: list[Sequence[Tensor]] = list(vision.deepstack_features) if source in ("vit+llm", "vit") else []
    if source == "vit":
        return [*maps, vision.pooler_output]
    for state in states:
        maps.append(state[image_mask.to(state.device)].split(list(tokens)))  # type: ignore[union-attr]
    return maps


def run_depth_head(
    head: DepthHead, maps: Sequence[Sequence[Tensor]], grids: Sequence[tuple[int, int]], focal_scale: Tensor | None
) -> list[Tensor]:
    """
    Depth of every image, `(H_i, W_i)` float32 in metres; images of equal grid go through the head together.

    Args:
        maps: feature maps as returned by [`feature_maps`].
        grids: `(h, w)` of every image, in visual tokens.
        focal_scale (`(images,)`): effective over canonical focal length (equation 6).
    """
    weight = head.norm.weight
    # Weights that `device_map` moved out are nowhere now (meta): its hooks bring the features to where the head runs.
    device = maps[0][0].device if weight.is_meta else weight.device
    groups: dict[tuple[int, int], list[int]] = {}
    for index, grid in enumerate(grids):
        groups.setdefault(grid, []).append(index)
    depth: list[Tensor] = [weight] * len(grids)
    for grid, indices in groups.items():
        features = [torch.stack([images[i] for i in indices]).to(device, weight.dtype) for images in maps]
        metres = head(features, grid)
        if focal_scale is not None:
            # By views: a list as an index would be copied to the GPU, and waited for.
            scale = torch.stack([focal_scale[i] for i in indices])
            metres = metres * scale.to(metres.device, torch.float32)[:, None, None]
        for index, image in zip(indices, metres, strict=True):
            depth[index] = image
    return depth
