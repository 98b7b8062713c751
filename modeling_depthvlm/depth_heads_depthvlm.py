# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Depth heads: from feature maps of visual tokens to depth (paper, section 3.1, equation 3, table 4)."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .camera_head_depthvlm import CameraHead
from .configuration_depthvlm import DepthHeadConfig
from .cpu_kernels_depthvlm import ComposedConvolution, UpsampledConv2d, is_traced, may_compose, recomputed

# softplus(x) = 1: an untrained head predicts one metre.
ONE_METRE = math.log(math.e - 1)
DRAWN_SPREAD = 0.01  # spread of the last layer's output around that value


class TokenProjection(nn.Conv2d):
    """1x1 convolution applied to tokens, as one matrix product. Channels-last, so that no permute follows."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Map `(N, h * w, in)` to `(N, out, h, w)`."""
        return F.linear(tokens, self.weight.flatten(1), self.bias).unflatten(1, grid).permute(0, 3, 1, 2)


class Float32Conv2d(nn.Conv2d):
    """1x1 convolution in float32, whatever the model's or autocast's dtype: metres must not be rounded."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in, H, W)` to `(N, out, H, W)` in float32."""
        # The float32 copy of the input is twice its size: recomputed in the backward pass.
        return self._product(x) if x.dtype == torch.float32 else recomputed(self._product, x)

    def _product(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            if is_traced():  # of the product, compiled, no gradient reaches the layers before (inductor of torch 2.13)
                return F.conv2d(x.float(), self.weight.float(), bias)
            # As a matrix product over the channels, which lie last in memory.
            return F.linear(x.permute(0, 2, 3, 1).float(), self.weight.float().flatten(1), bias).permute(0, 3, 1, 2)


class HeadLinear(nn.Module):
    """Linear layer that is not an `nn.Linear`, so that quantisation and "all linear layers" adapters skip it."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return F.linear(x, self.weight, self.bias)


class Float32Linear(HeadLinear):
    """Last layer of the MLP head, in float32 like `Float32Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)` in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


def init_head_layer(layer: nn.Module) -> None:
    """Initialise a layer of a head so that an untrained head predicts about one metre; skip other layers."""
    if isinstance(layer, Float32Conv2d | Float32Linear):
        init.normal_(layer.weight, std=DRAWN_SPREAD / math.sqrt(layer.weight[0].numel()))
        init.constant_(cast(Tensor, layer.bias), ONE_METRE)
    elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | HeadLinear):  # the backbone has none of these
        init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        if layer.bias is not None:
            init.zeros_(layer.bias)


class DepthHead(nn.Module):
    """Depth from feature maps of the VLM's visual tokens (equation 3).

    Args:
        config: The head's configuration.
        hidden_size: Width of the visual tokens, that of the LLM.
        stride: Input pixels per token and axis (32 in Qwen3-VL, 28 in Qwen2.5-VL).

    Attributes:
        inputs: `(rows per token, width)` of every map that the head reads.
    """

    def __init__(self, config: DepthHeadConfig, hidden_size: int, stride: int):
        super().__init__()
        self.config = config
        self.stride = stride
        self.inputs: tuple[tuple[int, int], ...] = ((1, hidden_size),) * (
            1 if config.feature_source == "llm_final" else 4
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.projectors = nn.ModuleList()  # one per vision level with `projector="own"`
        # It reads the maps of one row per token, which every head has.
        self.camera = CameraHead(len(self.inputs), hidden_size, config.features) if config.predict_fov else None

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return `(N, h * stride, w * stride)`, float32, above zero: metres for the canonical camera.

        Args:
            features: Four maps (one for a single-scale MLP) `(N, h * w, hidden_size)` of N images of equal size.
            grid: `(h, w)`, in tokens.
        """
        raise NotImplementedError

    @torch.no_grad()
    def is_untrained(self) -> bool:
        """Return whether the last layer is as [`init_head_layer`] left it, so that depth is one metre everywhere."""
        last: Any = [layer for layer in self.modules() if isinstance(layer, Float32Conv2d | Float32Linear)][-1]
        if last.weight.is_meta:
            return False
        drawn = [torch.tensor(ONE_METRE).to(dtype).item() for dtype in (torch.float32, torch.bfloat16, torch.float16)]
        spread = last.weight.float().square().mean().sqrt() * math.sqrt(last.weight[0].numel())
        return all(bias in drawn for bias in last.bias.tolist()) and bool(spread < 2 * DRAWN_SPREAD)


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions with a skip connection.

    The published weights were trained with in-place ReLUs, so the skip adds `relu(x)`, not `x`.
    """

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refine `(N, features, h, w)`; `x` itself is overwritten."""
        x = F.relu_(x)
        return self.conv2(F.relu_(self.conv1(x))).add_(x)


class FeatureFusionBlock(nn.Module):
    """RefineNet block, which adds a finer map to a coarser one and refines it. The caller upsamples its output."""

    def __init__(self, features: int, has_skip: bool):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor | None, skip: Tensor) -> Tensor:
        """Fuse the coarser `x`, None for the coarsest level, with `skip`."""
        if x is None:
            x = skip
        else:
            coarse = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            x = self.resConfUnit1(skip).add_(coarse)
        # A 1x1 convolution and a bilinear upsampling commute exactly; before it, it costs a quarter.
        return self.out_conv(self.resConfUnit2(x))


class DPTScratch(nn.Module):
    """Fusion and output layers, under the names that DPT checkpoints use."""

    def __init__(self, in_channels: Sequence[int], features: int):
        super().__init__()
        for level, channels in enumerate(in_channels, start=1):
            self.add_module(f"layer{level}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
        for level in (1, 2, 3, 4):
            self.add_module(f"refinenet{level}", FeatureFusionBlock(features, has_skip=level < 4))
        self.output_conv1 = UpsampledConv2d(features, features // 2)
        self.output_conv2 = nn.Sequential(
            UpsampledConv2d(features // 2, 32), nn.ReLU(inplace=True), Float32Conv2d(32, 1)
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Fuse the four maps of `features` channels, fine to coarse, to `(N, features // 2, H, W)`."""
        x = None
        for level in (4, 3, 2, 1):
            x = getattr(self, f"refinenet{level}")(x, pyramid[level - 1])
        height, width = pyramid[0].shape[-2:]
        return self.output_conv1(x, (2 * height, 2 * width))


class DPTDepthHead(DepthHead):
    """DPT-style head.

    `dpt_light` (the paper's) builds its pyramid only by upsampling, since the VLM's merger has already downsampled:
    x8, x4, x2, x1 of the token grid. `dpt` is the original: x4, x2, x1, x1/2.
    """

    overlap = 1  # kernel over stride of the transposed convolutions

    def __init__(self, config: DepthHeadConfig, hidden_size: int, stride: int, channels: Sequence[int] | None = None):
        super().__init__(config, hidden_size, stride)
        channels = channels or config.out_channels
        self.projects = nn.ModuleList(TokenProjection(hidden_size, width) for width in channels)
        factors = (4, 2, 1, 0.5) if config.head_type == "dpt" else (8, 4, 2, 1)
        layers = (_resize_layer(width, factor, self.overlap) for width, factor in zip(channels, factors, strict=True))
        self.resize_layers = nn.ModuleList(layers)
        self.scratch = DPTScratch(channels, config.features)
        self.composed = {
            level: ComposedConvolution(resize, getattr(self.scratch, f"layer{level + 1}_rn"))
            for level, resize in enumerate(self.resize_layers)
            if isinstance(resize, nn.ConvTranspose2d) and self.overlap == 1
        }

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return metres: see [`DepthHead.forward`]."""
        height, width = grid
        x = self.scratch([self._level(level, tokens, grid) for level, tokens in enumerate(features)])
        convolution, *rest = self.scratch.output_conv2
        x = convolution(x, (height * self.stride, width * self.stride))
        for layer in rest:
            x = layer(x)
        return F.softplus(x)[:, 0]

    def _level(self, level: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a feature map at the resolution and width of its place in the pyramid."""
        x = self.projects[level](self.norm(tokens), grid)
        composed = self.composed.get(level)
        if composed is not None and may_compose(composed.up.weight, composed.conv.weight):
            return composed(x)
        conv = getattr(self.scratch, f"layer{level + 1}_rn")
        return conv(self.resize_layers[level](x))


def _resize_layer(channels: int, factor: float, overlap: int) -> nn.Module:
    """Return the layer that resizes a map by 8, 4, 2, 1 or a half."""
    if factor > 1:
        stride = int(factor)
        padding = (overlap - 1) * stride // 2
        return nn.ConvTranspose2d(channels, channels, overlap * stride, stride=stride, padding=padding)
    return nn.Identity() if factor == 1 else nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class MLPDepthHead(DepthHead):
    """Two linear layers that turn each token into its own `stride` x `stride` pixels (paper, table 4)."""

    def __init__(self, config: DepthHeadConfig, hidden_size: int, stride: int):
        super().__init__(config, hidden_size, stride)
        self.fusion = "sum" if config.feature_source == "llm_final" else config.mlp_fusion
        width = hidden_size if self.fusion == "sum" else 4 * hidden_size
        if self.fusion == "concat_norm":
            self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            HeadLinear(width, config.hidden_size), nn.GELU(), Float32Linear(config.hidden_size, stride**2)
        )

    def forward(self, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Return metres: see [`DepthHead.forward`]."""
        if self.fusion == "concat":
            tokens = torch.cat([self.norm(f) for f in features], dim=-1)
        else:
            together = torch.cat(features, dim=-1) if self.fusion == "concat_norm" else cast(Tensor, sum(features))
            tokens = self.norm(together)
        pixels = F.softplus(self.mlp(tokens)).unflatten(-1, (self.stride, self.stride)).unflatten(1, grid)
        return pixels.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def build_depth_head(config: DepthHeadConfig, hidden_size: int, stride: int, vision_config: Any = None) -> DepthHead:
    """Return the head that `config.head_type` names; `dpt_sharp` needs the configuration of the vision tower too."""
    if config.head_type == "dpt_sharp":
        from .sharp_head_depthvlm import SharpDepthHead  # it builds on this file

        return SharpDepthHead(config, hidden_size, stride, vision_config)
    head_class = MLPDepthHead if config.head_type == "mlp" else DPTDepthHead
    return head_class(config, hidden_size, stride)
