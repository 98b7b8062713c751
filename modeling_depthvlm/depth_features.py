# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""What the depth head needs: its inputs checked, its feature maps (paper, equation 2 and table 5), its pass shared."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .configuration_depthvlm import DepthVLMConfig
from .depth_heads import DepthHead


def recorded_layers(config: DepthVLMConfig, llm_layers: Sequence[nn.Module]) -> list[nn.Module]:
    """
    The LLM layers whose outputs the head reads beside the final state: with `feature_source="llm"` those at a quarter,
    a half and three quarters of the depth, maps 1 to 3.
    """
    if config.head.feature_source != "llm":
        return []
    return [llm_layers[max(0, round(len(llm_layers) * share) - 1)] for share in (0.25, 0.5, 0.75)]


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


class StateRecorder:
    """
    Context manager that keeps what modules return while a prompt runs through them.

    Args:
        modules: the modules to listen to.
        length: prompt length; once a module has returned that many positions it is listened to no more, so that
            decoding steps stay untouched. Without it, until the context ends.
    """

    def __init__(self, modules: Sequence[nn.Module], length: int | None = None):
        self.modules = modules
        self.length = length
        self.chunks: list[list[Tensor]] = [[] for _ in modules]
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "StateRecorder":
        self.handles = [module.register_forward_hook(self._listener(i)) for i, module in enumerate(self.modules)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _listener(self, index: int) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            chunks = self.chunks[index]
            chunks.append(output if isinstance(output, Tensor) else output[0])
            if self.length is not None and sum(chunk.shape[1] for chunk in chunks) >= self.length:
                self.handles[index].remove()

        return listen

    @property
    def states(self) -> list[Tensor]:
        """One `(batch, positions, hidden_size)` per module, prefill chunks joined, cut to `length`."""
        return [torch.cat(chunks, dim=1)[:, : self.length] for chunks in self.chunks]


def run_recorded(backbone: Any, config: DepthVLMConfig, **inputs: Any) -> tuple[Any, list[Tensor]]:
    """ViT and LLM on a prompt: the output, and the states that [`feature_maps`] takes."""
    layers = recorded_layers(config, backbone.language_model.layers)
    if not layers:
        outputs = backbone(**inputs)
        return outputs, [outputs[0]]
    with StateRecorder(layers) as recorder:
        outputs = backbone(**inputs)
    return outputs, [*recorder.states, outputs[0]]


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
    groups: dict[tuple[int, int], list[int]] = {}
    for index, grid in enumerate(grids):
        groups.setdefault(grid, []).append(index)
    depth: list[Tensor] = [weight] * len(grids)
    for grid, indices in groups.items():
        features = [torch.stack([images[i] for i in indices]).to(weight.device, weight.dtype) for images in maps]
        metres = head(features, grid)
        if focal_scale is not None:
            # By views: a list as an index would be copied to the GPU, and waited for.
            scale = torch.stack([focal_scale[i] for i in indices])
            metres = metres * scale.to(metres.device, torch.float32)[:, None, None]
        for index, image in zip(indices, metres, strict=True):
            depth[index] = image
    return depth
