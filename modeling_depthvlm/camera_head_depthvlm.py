# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Camera head: the focal length of an image whose camera is not known, from the feature maps of its depth."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Focal length over the longer side of an image that sees 60 degrees across it: the unit of the head's output.
UNIT_FOCAL_LENGTH = 0.5 / math.tan(math.radians(30))
# Places in the processor's `CAMERA_SOURCES`, the last number of a camera's record.
ASSUMED, PREDICTED = 4, 5
# Limits of the logarithm of the standard deviation: 0.7 % and a factor of 7.
LOG_SPREADS = (-5.0, 2.0)
LEAST_WIDTH = 64
# Dropout of channels of the maps, and of their averages: without it, the head learns its training images by heart.
MAP_DROPOUT, AVERAGE_DROPOUT = 0.25, 0.2


class CameraEstimate(NamedTuple):
    """Focal lengths of images, each a normal distribution of its logarithm.

    Args:
        log_focal: `(images,)` float32, the mean, where the unit of focal lengths is [`UNIT_FOCAL_LENGTH`] times the
            longer side of the image.
        spread: `(images,)` float32, the standard deviation.
    """

    log_focal: Tensor
    spread: Tensor


class Float32Projection(nn.Conv2d):
    """1x1 convolution in float32, whatever the dtype of the model or of autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, in, 1, 1)` to `(N, out, 1, 1)` in float32."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.conv2d(x.float(), self.weight.float(), bias)


class CameraHead(nn.Module):
    """The focal length of each image, from the feature maps of its depth.

    Positions and focal lengths are in units of the longer side, so that the result does not depend on how an image was
    resampled: the perspective of an image, such as lines that converge, tells its field of view alone. All layers are
    convolutions, which quantisation and adapters of linear layers skip.

    Args:
        maps: Number of feature maps.
        hidden_size: Width of the maps.
        features: Width of the depth head, of which this one's is the same, but at least [`LEAST_WIDTH`].
        pools: Number of learned averages over the positions.
    """

    def __init__(self, maps: int, hidden_size: int, features: int, pools: int = 4):
        super().__init__()
        features = max(features, LEAST_WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(maps))
        self.project = nn.Conv2d(maps * hidden_size + 2, features, 1)
        self.blocks = nn.ModuleList(_block(features) for _ in range(2))
        self.attend = nn.Conv2d(features, pools, 1)
        self.output = nn.Sequential(
            Float32Projection(pools * features + 1, features, 1), nn.GELU(), Float32Projection(features, 2, 1)
        )

    def forward(self, maps: Sequence[Tensor], grid: tuple[int, int]) -> CameraEstimate:
        """Estimate the focal lengths of N images of equal size.

        Args:
            maps: `(N, h * w, hidden_size)` each; those beyond the number of the head's are not read.
            grid: `(h, w)`, in tokens.
        """
        height, width = grid
        tokens = torch.cat([norm(one) for norm, one in zip(self.norms, maps, strict=False)], dim=-1)
        x = F.dropout1d(tokens.transpose(1, 2), MAP_DROPOUT, self.training).unflatten(2, grid)
        down, across = (
            (2 * torch.arange(side, device=x.device, dtype=x.dtype) + 1 - side) / max(grid) for side in grid
        )
        places = torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(len(x), -1, -1, -1)
        x = self.project(torch.cat([x, places], dim=1))
        for block in self.blocks:
            x = x + block(x)
        weights = self.attend(x).flatten(2).float().softmax(-1)  # (N, pools, h * w)
        pooled = weights @ x.flatten(2).float().transpose(1, 2)
        aspect = pooled.new_full((len(x), 1), math.log(width / height))
        averages = F.dropout(torch.cat([pooled.flatten(1), aspect], dim=1), AVERAGE_DROPOUT, self.training)
        found = self.output(averages[..., None, None]).flatten(1)
        return CameraEstimate(found[:, 0], found[:, 1].clamp(*LOG_SPREADS).exp())

    @torch.no_grad()
    def is_untrained(self) -> bool:
        """Return whether the last layer's bias is zero, as it was initialised."""
        bias = cast(Tensor, self.output[-1].bias)
        return not bias.is_meta and not bool(bias.any())


def _block(features: int) -> nn.Module:
    return nn.Sequential(
        nn.GELU(), nn.Conv2d(features, features, 3, padding=1), nn.GELU(), nn.Conv2d(features, features, 1)
    )


def fill_in(cameras: Tensor, focal_scale: Tensor | None, estimate: CameraEstimate) -> tuple[Tensor, Tensor]:
    """Return cameras and focal scales in which every assumed camera is replaced by the estimate; others stay.

    A focal length that is `r` times the assumed one makes the effective one, and with it all metres, `r` times as large
    (equation 6), whatever the size that the image was resampled to.

    Args:
        cameras: `(images, 7)`, the processor's camera records.
        focal_scale: `(images,)`, effective over canonical focal length for these cameras; 1 by default.
        estimate: The camera head's output.

    Returns:
        `(images, 8)`, the records with the standard deviation of the logarithm of the focal length, NaN where the
        camera was given; and `(images,)`, the focal scales.
    """
    cameras = cameras.to(estimate.log_focal.device)
    assumed = cameras[:, 6] == ASSUMED
    focal = estimate.log_focal.exp() * UNIT_FOCAL_LENGTH * cameras[:, 4:6].amax(1)
    ratio = torch.where(assumed, focal / cameras[:, 0], 1.0)
    scale = ratio if focal_scale is None else focal_scale.to(ratio) * ratio
    source = torch.where(assumed, float(PREDICTED), cameras[:, 6])
    spread = torch.where(assumed, estimate.spread, math.nan)
    lengths = cameras[:, :2] * ratio[:, None]
    return torch.cat([lengths, cameras[:, 2:6], source[:, None], spread[:, None]], dim=1), scale


def camera_nll(estimate: CameraEstimate, labels: Tensor) -> Tensor:
    """Return the sum of the negative log-likelihoods of the true focal lengths; 0 without any.

    Args:
        estimate: The camera head's output.
        labels: `(images,)`, logarithms of the true focal lengths in the unit of [`CameraEstimate`]; NaN for an image
            that does not count.
    """
    labels = labels.to(estimate.log_focal.device, torch.float32)
    known = labels.isfinite()
    # Images that do not count stay, at zero, so that every parameter has a gradient and no size depends on the data.
    target = torch.where(known, labels, estimate.log_focal.detach())
    losses = F.gaussian_nll_loss(estimate.log_focal, target, estimate.spread**2, full=True, reduction="none")
    return (losses * known).sum()


def mean_camera_loss(estimate: CameraEstimate, labels: Tensor | None) -> Tensor:
    """Return the mean of [`camera_nll`] over the images with a label, a zero with the head in its graph without any."""
    if labels is None:
        labels = torch.full_like(estimate.spread, math.nan)
    return camera_nll(estimate, labels) / labels.isfinite().sum().clamp(min=1)
