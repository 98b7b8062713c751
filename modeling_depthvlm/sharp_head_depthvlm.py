# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""A depth head whose maps have no token grid and sharp edges: `head_type="dpt_sharp"`, not one of the paper's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_depthvlm import DepthHeadConfig
from .depth_heads_depthvlm import DepthHead, Float32Conv2d, TokenProjection

COLOURS = 3  # channels of the picture
LEAST = 16  # channels of a map
REACHES = (4, 2)  # pixels
# The pixel itself first. Its weight is e ** OWN_SCORE times that of a neighbour before training.
NEIGHBOURS = ((0, 0), *((down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if down or across))
OWN_SCORE = 5.0  # 0.95 of the sum: little is blurred before training


def spread_cells(cells: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Return patches in raster order, as a picture.

    Args:
        cells: `(N, h * w * side ** 2, C)`: the patches of a token lie together, as the vision tower sees them.
        grid: `(h, w)`, in tokens.
        side: Patches per token and axis.

    Returns:
        `(N, C, h * side, w * side)`, channels last in memory.
    """
    height, width = grid
    raster = cells.unflatten(1, (height, width, side, side)).transpose(2, 3)
    return raster.reshape(len(cells), height * side, width * side, cells.shape[-1]).permute(0, 3, 1, 2)


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


class Step(nn.Module):
    """One doubling of the resolution: bilinear, then what is known at that resolution, then convolutions.

    Doubling by bilinear interpolation is Chaikin's subdivision: every output pixel has a neighbour on either side of
    its cell, and repeated it makes a smooth surface, without a seam between cells.
    """

    def __init__(self, in_channels: int, out_channels: int, units: int):
        super().__init__()
        self.reduce = EdgeConv2d(in_channels, out_channels)
        self.units = nn.Sequential(*(ResidualUnit(out_channels) for _ in range(units)))

    def forward(self, x: Tensor, known: Tensor | None) -> Tensor:
        """Map `(N, in, h, w)` to `(N, out, 2 h, 2 w)`, where `known` has the output's shape."""
        x = double(self.reduce(x))
        return self.units(x if known is None else x + known)


def double(x: Tensor) -> Tensor:
    """Return a map at twice the resolution."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Selection(nn.Module):
    """A map whose pixels are mixed anew from their neighbours, by weights that add up to one.

    A step that interpolation has spread over several pixels becomes one again where each of them takes the value of its
    side. The mix of a constant is that constant, and no value leaves the range of its neighbours. It is one step of
    the propagation of Cheng et al. (Depth Estimation via Affinity Learned with Convolutional Spatial Propagation
    Network, 2018), with positive weights.

    Args:
        channels: Channels of the features that choose the weights.
        reach: Distance in pixels of the eight neighbours.
    """

    def __init__(self, channels: int, reach: int):
        super().__init__()
        self.reach = reach
        self.weights = EdgeConv2d(channels, len(NEIGHBOURS))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Mix `(N, 1, h, w)` in float32; `features` is `(N, channels, h, w)`."""
        scores = self.weights(features).float()
        scores = torch.cat([scores[:, :1] + OWN_SCORE, scores[:, 1:]], dim=1)
        height, width = x.shape[-2:]
        around = F.pad(x, (self.reach,) * 4, mode="replicate")
        mixed = torch.zeros_like(x)
        for (down, across), weight in zip(NEIGHBOURS, scores.softmax(1).split(1, dim=1), strict=True):
            top, left = (1 + down) * self.reach, (1 + across) * self.reach
            mixed = mixed + weight * around[..., top : top + height, left : left + width]
        return mixed


class SharpDepthHead(DepthHead):
    """Head that only overlaps: bilinear doublings and 3x3 convolutions from tokens to pixels, with the picture at hand.

    Coarse to fine, in pixels of the input per pixel of the map: 32, the four maps of equation 2; 16, the states of the
    ViT before its merger; 8; 4 and 2, features of the picture; 1, the picture itself, which also decides from which
    side of an edge a pixel takes its depth.

    Args:
        config: The head's configuration. `features` is the number of channels at 8 pixels; the maps of 32 and 16 have
            twice, those of 4 and 2 a half and a quarter of them.
        hidden_size: Width of the visual tokens, that of the LLM.
        stride: Input pixels per token and axis.
        vision_config: Configuration of the vision tower.
    """

    def __init__(self, config: DepthHeadConfig, hidden_size: int, stride: int, vision_config: Any):
        super().__init__(config, hidden_size, stride)
        self.side, self.patch_size = vision_config.spatial_merge_size, vision_config.patch_size
        patch = COLOURS * vision_config.temporal_patch_size * self.patch_size**2
        self.inputs = (*self.inputs, (self.side**2, vision_config.hidden_size), (self.side**2, patch))
        middle = config.features
        coarse, half, quarter = 2 * middle, max(middle // 2, LEAST), max(middle // 4, LEAST)
        finest = max(middle // 8, LEAST)
        self.projects = nn.ModuleList(TokenProjection(hidden_size, coarse) for _ in range(4))
        self.tokens = nn.Sequential(*(ResidualUnit(coarse) for _ in range(2)))
        self.patch_norm = nn.LayerNorm(vision_config.hidden_size)
        self.patch_project = TokenProjection(vision_config.hidden_size, coarse)
        self.stem2 = nn.Sequential(EdgeConv2d(COLOURS, quarter, stride=2), nn.ReLU(), EdgeConv2d(quarter, quarter))
        self.stem4 = nn.Sequential(nn.ReLU(), EdgeConv2d(quarter, half, stride=2), nn.ReLU(), EdgeConv2d(half, half))
        self.steps = nn.ModuleList(
            [Step(coarse, coarse, 2), Step(coarse, middle, 2), Step(middle, half, 2), Step(half, quarter, 1)]
        )
        self.pixels = nn.Sequential(nn.ReLU(), EdgeConv2d(quarter + COLOURS, finest), nn.ReLU())
        self.selections = nn.ModuleList(Selection(finest, reach) for reach in REACHES)
        self.output = Float32Conv2d(finest, 1)

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return metres: see [`DepthHead.forward`].

        Args:
            features: The four maps `(N, h * w, hidden_size)`, then the states of all patches before the merger,
                `(N, h * w * side ** 2, ViT width)`, and the patches' pixels, both cell by cell.
            grid: `(h, w)`, in tokens.
        """
        *tokens, patches, pixels = features
        raw = picture_of(pixels, grid, self.side, self.patch_size)
        half = self.stem2(raw)
        x = self.projects[0](self.norm(tokens[0]), grid)
        for project, states in zip(self.projects[1:], tokens[1:], strict=True):
            x = x + project(self.norm(states), grid)
        x = self.tokens(x)
        height, width = grid
        raster = spread_cells(self.patch_norm(patches), grid, self.side).permute(0, 2, 3, 1).flatten(1, 2)
        known = (self.patch_project(raster, (height * self.side, width * self.side)), None, self.stem4(half), half)
        for step, more in zip(self.steps, known, strict=True):
            x = step(x, more)
        x = self.pixels(torch.cat([double(x), raw], dim=1))
        depth = self.output(x)
        for selection in self.selections:
            depth = selection(depth, x)
        return F.softplus(depth)[:, 0]
