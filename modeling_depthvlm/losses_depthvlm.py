# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""SILog, the scale-invariant logarithmic loss (paper, equation 4)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def valid_depth(depth: Tensor) -> Tensor:
    """Return the mask of pixels with a valid depth: finite and above zero."""
    return torch.isfinite(depth) & (depth > 0)


def resize_depth(depth: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Resize dense predicted depth maps `(N, h, w)` to `(N, *size)`, bilinearly.

    Pixel centres lie at 0.5, as in post-processing, Pillow and OpenCV; only the loss aligns corners, as in the
    published code.
    """
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth[:, None], size=tuple(size), mode="bilinear", align_corners=align_corners)[:, 0]


def silog_per_image(
    prediction: Tensor, target: Tensor, silog_lambda: float = 0.5, eps: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Return the SILog of every image of a stack, in float32: see [`silog_loss`].

    Args:
        prediction: `(N, h, w)`, depth in metres, above zero; resized to the target's resolution with corners aligned,
            as in the published training.
        target: `(N, H, W)`, true depth in metres; zero, negative, NaN and infinite pixels are left out.
        silog_lambda: lambda of equation 4.
        eps: Added under the root.

    Returns:
        The loss of each image `(N,)`, zero where it has no valid pixel, and whether it has any, `(N,)`.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        prediction = resize_depth(prediction.float(), (target.shape[-2], target.shape[-1]), align_corners=True)
        target = target.to(prediction.device, torch.float32)
        mask = valid_depth(target)
        count = mask.sum((-2, -1))
        # Invalid pixels get log 1 - log 1: `where` before the logarithm keeps NaN out of the gradient as well.
        difference = torch.where(mask, prediction, 1.0).log() - torch.where(mask, target, 1.0).log()
        pixels = count.clamp(min=1)
        mean = difference.sum((-2, -1)) / pixels
        # mean(d^2) - lambda mean(d)^2, written as variance + (1 - lambda) mean^2: never below zero by rounding.
        centred = torch.where(mask, difference - mean[:, None, None], 0.0)
        variance = centred.square().sum((-2, -1)) / pixels
        loss = (variance + (1 - silog_lambda) * mean.square() + eps).sqrt()
        return torch.where(count > 0, loss, 0.0), count > 0


def silog_loss(
    prediction: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor | None],
    silog_lambda: float = 0.5,
    eps: float = 1e-8,
) -> Tensor:
    """Return the scale-invariant logarithmic loss (equation 4), the mean over the images that have any depth.

    Per image it is `sqrt(mean(d^2) - lambda * mean(d)^2 + eps)` with `d = log(prediction) - log(target)` over its valid
    pixels. The paper's equation 4 prints the root over the first term alone. That form is unbounded below (a constant
    offset c gives `|c| - lambda c^2`); this form was used in training.

    Args:
        prediction: `(H, W)`, `(N, H, W)` or a list of `(H, W)`: predicted depth in metres, above zero.
        target: The same: true depth in metres. Zero, negative, NaN and infinite pixels do not count. The resolution may
            differ from the prediction's, which is then resized to it. In a list, None is an image without depth.
        silog_lambda: 0 keeps the whole absolute scale error, 1 ignores it.
        eps: Added under the root.

    Returns:
        A float32 scalar; zero, with zero gradients, where no pixel is valid.

    Raises:
        ValueError: The numbers of predictions and targets differ.
    """
    given: tuple[Any, Any] = (prediction, target)
    predictions, targets = (depth[None] if isinstance(depth, Tensor) and depth.ndim == 2 else depth for depth in given)
    if len(predictions) != len(targets):
        raise ValueError(f"Got {len(predictions)} predicted depth maps and {len(targets)} targets, expected one each.")
    total = torch.stack([p.float().sum() * 0 for p in predictions]).sum()
    count = torch.zeros((), device=total.device)
    groups: dict[tuple[torch.Size, torch.Size], list[tuple[Tensor, Tensor]]] = {}
    for p, t in zip(predictions, targets, strict=True):
        if t is not None:
            groups.setdefault((p.shape, t.shape), []).append((p, t.to(total.device)))
    for pairs in groups.values():
        stacked, truth = (torch.stack(maps) for maps in zip(*pairs, strict=True))
        losses, valid = silog_per_image(stacked, truth, silog_lambda, eps)
        total = total + losses.sum()
        count = count + valid.sum()
    return total / count.clamp(min=1)
