"""Losses for dense true depth, beside SILog: gradients of log depth, and normals of the surfaces.

Both compare neighbouring pixels at `SCALES` scales, of which each takes every second pixel of the one before.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..modeling_depthvlm.losses_depthvlm import valid_depth

SCALES = 4
"""Number of scales, as in MegaDepth and MiDaS."""

EDGE_RATIO = 1.05
"""True depths of four neighbours differ by more than this factor where they belong to several surfaces."""


@dataclass(frozen=True)
class DenseWeights:
    """Weights of the losses for dense truth: `depth loss = SILog + w_g * L_grad + w_n * L_normal`.

    Args:
        gradient_matching: Weight w_g of [`gradient_matching_per_image`].
        normal: Weight w_n of [`normal_loss_per_image`].

    Raises:
        ValueError: If a weight is negative or not finite.
    """

    gradient_matching: float = 0.0
    normal: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"`{name}_weight` is {weight}, expected a finite number >= 0.")

    @property
    def names(self) -> list[str]:
        """Names of the losses that have a weight."""
        return [name for name, weight in vars(self).items() if weight]

    def options(self) -> dict[str, float]:
        """Return the weights above 0 by the names of their options."""
        return {f"{name}_weight": weight for name, weight in vars(self).items() if weight}


def gradient_matching_per_image(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the multi-scale gradient matching loss of every image, in log depth.

    With `d = log(prediction) - log(target)`, it is the mean of |d(i) - d(j)| over all horizontal and vertical pairs of
    neighbours whose true depths are both valid, summed over the scales: L_grad of MegaDepth (Li and Snavely, 2018), as
    L_reg of MiDaS (Ranftl et al., 2020) in disparity. There the sum of a scale is divided by the number of its valid
    pixels; here by that of its valid pairs, so that holes do not weaken the loss.

    Args:
        prediction: `(N, H, W)`, depth above zero at the target's resolution, in any unit.
        target: `(N, H, W)`, true depth; zero, negative, NaN and infinite pixels are not valid.

    Returns:
        `(N,)` float32; zero, with zero gradients, where no pair is valid.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        target = target.to(prediction.device, torch.float32)
        valid = valid_depth(target)
        # `where` before the logarithm keeps NaN out of the gradient as well.
        difference = torch.where(valid, prediction.float(), 1.0).log() - torch.where(valid, target, 1.0).log()
        loss = difference.new_zeros(len(difference))
        for scale in range(SCALES):
            d, mask = (x[:, :: 2**scale, :: 2**scale] for x in (difference, valid))
            across, down = mask[:, :, 1:] & mask[:, :, :-1], mask[:, 1:] & mask[:, :-1]
            pairs = across.sum((-2, -1)) + down.sum((-2, -1))
            steps = torch.where(across, d[:, :, 1:] - d[:, :, :-1], 0.0).abs().sum((-2, -1))
            steps = steps + torch.where(down, d[:, 1:] - d[:, :-1], 0.0).abs().sum((-2, -1))
            loss = loss + steps / pairs.clamp(min=1)
        return loss


def normal_loss_per_image(prediction: Tensor, target: Tensor, cameras: Tensor) -> Tensor:
    """Return the mean of 1 - cos(angle) between predicted and true surface normals of every image.

    The form of the loss is l_normal of Hu et al. (Revisiting Single Image Depth Estimation, 2019); the normals are
    those of the point maps, as in MoGe (Wang et al., 2025): the cross product of the diagonals between four
    neighbouring points. Four neighbours do not count if one of them has no true depth, or if their true depths differ
    by more than `EDGE_RATIO`. The loss is a mean over the scales that have such neighbours, between 0 and 2. It does
    not depend on the unit of either map.

    Args:
        prediction: `(N, H, W)`, z-depth above zero at the target's resolution.
        target: `(N, H, W)`, true z-depth; zero, negative, NaN and infinite pixels are not valid.
        cameras: `(N, 7)`, the processor's `cameras`: fx, fy, cx, cy in pixels of an image of the next two numbers'
            height and width. They are scaled to the target's resolution.

    Returns:
        `(N,)` float32; zero, with zero gradients, where there are no four such neighbours.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        target = target.to(prediction.device, torch.float32)
        valid = valid_depth(target)
        rays = _rays(cameras.to(target), target.shape[-2], target.shape[-1])
        predicted = torch.where(valid, prediction.float(), 1.0)[:, None] * rays
        target = torch.where(valid, target, 1.0)
        true = target[:, None] * rays
        loss, scales = target.new_zeros(len(target)), target.new_zeros(len(target))
        for scale in range(SCALES):
            step = 2**scale
            corners = torch.stack(_corners(target[:, ::step, ::step]))
            counted = torch.stack(_corners(valid[:, ::step, ::step])).all(0)
            counted &= corners.amax(0) <= EDGE_RATIO * corners.amin(0)
            ours, theirs = (_normals(points[..., ::step, ::step]) for points in (predicted, true))
            # Half the squared distance of two unit vectors is 1 - cos, and keeps small angles in float32.
            one_minus_cos = 0.5 * (ours - theirs).square().sum(1)
            count = counted.sum((-2, -1))
            loss = loss + torch.where(counted, one_minus_cos, 0.0).sum((-2, -1)) / count.clamp(min=1)
            scales = scales + (count > 0)
        return loss / scales.clamp(min=1)


def _rays(cameras: Tensor, height: int, width: int) -> Tensor:
    """Return the viewing rays of the pixels of a map, `(N, 3, height, width)`, in units of a pixel.

    Their third number is the focal length along the width: neighbouring rays are about 1 apart, whatever the camera.
    """
    fx, fy, cx, cy, full_height, full_width = cameras[:, :6].unbind(1)
    across, down = width / full_width, height / full_height
    # Pixel centres are at half integers, as in `Camera`.
    columns, rows = (torch.arange(n, device=cameras.device, dtype=cameras.dtype) + 0.5 for n in (width, height))
    x = columns - (cx * across)[:, None]
    y = (rows - (cy * down)[:, None]) * (fx * across / (fy * down))[:, None]
    size = (len(cameras), height, width)
    return torch.stack(
        [x[:, None, :].expand(size), y[:, :, None].expand(size), (fx * across)[:, None, None].expand(size)], dim=1
    )


def _corners(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the upper left, lower right, upper right and lower left of every four neighbours of a map."""
    return x[..., :-1, :-1], x[..., 1:, 1:], x[..., :-1, 1:], x[..., 1:, :-1]


def _normals(points: Tensor) -> Tensor:
    """Return the unit normals of every four neighbours of point maps `(N, 3, H, W)`."""
    upper_left, lower_right, upper_right, lower_left = _corners(points)
    # The cross product by hand: torch's, and its norm over a dimension that is not the last, take most of the time.
    (ax, ay, az), (bx, by, bz) = (x.unbind(1) for x in (lower_right - upper_left, upper_right - lower_left))
    normals = torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], dim=1)
    # Scaled first, so that squares stay inside of float32's range.
    normals = normals / normals.detach().abs().amax(1, keepdim=True).clamp(min=1e-30)
    return normals * normals.square().sum(1, keepdim=True).clamp(min=1e-30).rsqrt()
