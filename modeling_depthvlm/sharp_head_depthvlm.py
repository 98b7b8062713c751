# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""`head_type="dpt_sharp"`, not one of the paper's: `dpt_light` whose cells overlap, with patches and the picture."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_depthvlm import DepthHeadConfig
from .depth_heads_depthvlm import DPTDepthHead, TokenProjection

COLOURS = 3  # channels of the picture


def raster_order(cells: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return patches row by row.

    Args:
        cells: `(N, h * w * side ** 2, C)`: the patches of a token lie together, as the vision tower sees them.
        grid: `(h, w)`, in tokens.
        side: Patches per token and axis.

    Returns:
        `(N, h * side * w * side, C)`.
    """
    return cells.unflatten(1, (*grid, side, side)).transpose(2, 3).flatten(1, 4)


def picture_of(patches: Tensor, grid: tuple[int, int], side: int, patch_size: int) -> Tensor:
    """Return the picture that the image processor cut into patches, resized and normalised.

    Args:
        patches: `(N, h * w * side ** 2, channels * frames * patch_size ** 2)`, from `pixel_values`: the frames of an
            image are copies of each other.
        grid: `(h, w)`, in tokens.
        side: Patches per token and axis.
        patch_size: Pixels per patch and axis.

    Returns:
        `(N, channels, h * side * patch_size, w * side * patch_size)`.
    """
    height, width = grid
    pixels = patches.unflatten(-1, (COLOURS, -1, patch_size, patch_size))[..., 0, :, :]
    pixels = pixels.unflatten(1, (height, width, side, side))  # N, h, w, row, column, channel, y, x
    return pixels.permute(0, 5, 1, 3, 6, 2, 4, 7).flatten(5, 7).flatten(2, 4)


class EdgeConv2d(nn.Conv2d):
    """3x3 convolution that continues the map beyond its border: zeros there would bend planes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in, h, w)` to `(N, out, h / stride, w / stride)`."""
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="replicate"))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions that are added to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = EdgeConv2d(channels, channels)
        self.conv2 = EdgeConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Refine `(N, channels, h, w)`."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class SharpDepthHead(DPTDepthHead):
    """The paper's head with cells that overlap, and with patches and the picture at hand.

    As `dpt_light`, with these changes. The kernels of the transposed convolutions are twice their strides, so that the
    values of neighbouring tokens overlap instead of meeting at a seam. The states of the ViT before its merger are
    added to the map of their resolution, 16 pixels in Qwen3-VL, and convolutions of the picture to those of 4, 2 and 1
    pixels, where edges lie.

    Args:
        config: The head's configuration; all maps have `features` channels, and `out_channels` is not used.
        hidden_size: Width of the visual tokens, that of the LLM.
        stride: Input pixels per token and axis.
        vision_config: Configuration of the vision tower.
    """

    overlap = 2

    def __init__(self, config: DepthHeadConfig, hidden_size: int, stride: int, vision_config: Any):
        wide, fine = config.features, config.features // 2
        super().__init__(config, hidden_size, stride, channels=(wide,) * 4)
        self.side, self.patch_size = vision_config.spatial_merge_size, vision_config.patch_size
        patch = COLOURS * vision_config.temporal_patch_size * self.patch_size**2
        self.inputs = (*self.inputs, (self.side**2, vision_config.hidden_size), (self.side**2, patch))
        self.patch_norm = nn.LayerNorm(vision_config.hidden_size)
        self.patch_project = TokenProjection(vision_config.hidden_size, wide)
        self.stem2 = nn.Sequential(EdgeConv2d(COLOURS, fine, stride=2), nn.ReLU(), EdgeConv2d(fine, fine))
        self.stem4 = nn.Sequential(nn.ReLU(), EdgeConv2d(fine, wide, stride=2))
        self.stem1 = EdgeConv2d(COLOURS, cast(nn.Conv2d, self.scratch.output_conv2[0]).out_channels)
        self.unit = ResidualUnit(fine)

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return metres: see [`DepthHead.forward`].

        Args:
            features: The four maps `(N, h * w, hidden_size)`, then the states of all patches before the merger,
                `(N, h * w * side ** 2, ViT width)`, and the patches' pixels, both cell by cell.
            grid: `(h, w)`, in tokens.
        """
        *tokens, patches, pixels = features
        height, width = grid
        picture = picture_of(pixels, grid, self.side, self.patch_size)
        half = self.stem2(picture)
        pyramid = [self._level(level, one, grid) for level, one in enumerate(tokens)]
        states = raster_order(self.patch_norm(patches), grid, self.side)
        pyramid[2] = pyramid[2] + self.patch_project(states, (height * self.side, width * self.side))
        pyramid[0] = pyramid[0] + self.stem4(half)
        x = self.unit(self.scratch(pyramid) + half)
        convolution, *rest = self.scratch.output_conv2
        x = convolution(x, (height * self.stride, width * self.stride)) + self.stem1(picture)
        for layer in rest:
            x = layer(x)
        return F.softplus(x)[:, 0]
