"""The paper's head in the usual order of DPT code: `depth_heads_depthvlm.py` is measured against it."""

import torch.nn.functional as F
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import DPTDepthHead, FeatureFusionBlock, ResidualConvUnit
from torch import Tensor


def plain_dpt(head: DPTDepthHead, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """Normalise, permute, project with convolutions, upsample before the 1x1; the same weights."""
    height, width = grid
    levels = []
    for x, project, resize in zip(features, head.projects, head.resize_layers, strict=True):
        x = head.norm(x).permute(0, 2, 1).reshape(x.shape[0], -1, height, width)
        levels.append(resize(F.conv2d(x, project.weight, project.bias)))
    s = head.scratch
    layers = (s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn)
    levels = [layer(x) for layer, x in zip(layers, levels, strict=True)]
    x = _fuse(s.refinenet4, levels[3], None, levels[2].shape[2:])
    x = _fuse(s.refinenet3, x, levels[2], levels[1].shape[2:])
    x = _fuse(s.refinenet2, x, levels[1], levels[0].shape[2:])
    x = _fuse(s.refinenet1, x, levels[0], [2 * side for side in levels[0].shape[2:]])
    size = (height * head.stride, width * head.stride)
    convolution, relu, last = s.output_conv2
    x = F.conv2d(x, s.output_conv1.weight, s.output_conv1.bias, padding=1)
    x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
    return F.softplus(last(relu(x)))[:, 0]


def _unit(unit: ResidualConvUnit, x: Tensor) -> Tensor:
    x = F.relu(x)
    return unit.conv2(F.relu(unit.conv1(x))) + x


def _fuse(block: FeatureFusionBlock, x: Tensor, skip: Tensor | None, size: list[int]) -> Tensor:
    if skip is not None:
        x = x + _unit(block.resConfUnit1, skip)
    x = F.interpolate(_unit(block.resConfUnit2, x), size=size, mode="bilinear", align_corners=True)
    return block.out_conv(x)
