"""True depth on its way into the module call, and what comes back: loss and numbers to log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from ..modeling_depthvlm.losses_depthvlm import resize_depth, silog_per_image, valid_depth

# What `score_depth` sums up, in this order.
TOTALS = ("silog", "depth_images", "delta1", "abs_rel", "valid_pixels", "pixels")


@dataclass
class DepthTargets:
    """
    Depth labels for one module call.

    One object, not tensors among the inputs: FSDP2 casts every floating tensor that it finds there to the model's
    dtype, and metres must stay float32.

    Args:
        maps: for every image one `(H, W)` map in metres, or None.
        focal_scale (`(images,)`): effective over canonical focal length.
        weight: what the sum of the images' losses is multiplied by: alpha over the number of images with depth.
        head_runs: how often the depth head runs at least: where every run gathers its weights from all ranks, as often
            as in the rank with the most sizes of images.
    """

    maps: Sequence[Tensor | None]
    focal_scale: Tensor | None
    weight: Tensor | float = 1.0
    head_runs: int = 1


@dataclass
class DepthScores:
    """
    What a module call found out about depth, in float32 and without gradients.

    Again one object: FSDP2 casts the tensors of an output to the model's dtype.

    Args:
        totals (`(len(TOTALS),)`): sums over the images that have a valid pixel.
        prediction: depth of every image, `(H_i, W_i)` in metres.
    """

    totals: Tensor
    prediction: list[Tensor] = field(default_factory=list)


@dataclass
class JointOutput(FusedCausalLMOutput):
    """
    TRL's fused output with depth.

    Args:
        depth_loss: `DepthTargets.weight` times the sum of the images' SILog, with the head in its graph.
        scores: the numbers to log.
    """

    depth_loss: Tensor | None = None
    scores: Any = None


def score_depth(
    prediction: Sequence[Tensor], targets: Sequence[Tensor | None], silog_lambda: float
) -> tuple[Tensor, Tensor]:
    """
    SILog (equation 4) and metrics over images that have true depth.

    Args:
        prediction: `(h_i, w_i)` per image, metres.
        targets: `(H_i, W_i)` per image, metres, or None; the prediction is resized to it.

    Returns:
        The sum of the images' losses, with gradients, and [`TOTALS`]: float32.
    """
    device = prediction[0].device
    loss = torch.zeros((), device=device)
    totals = torch.zeros(len(TOTALS), device=device)
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for index, target in enumerate(targets):
        if target is not None:
            groups.setdefault((prediction[index].shape, target.shape), []).append(index)
    for (_, size), indices in groups.items():
        truth = torch.stack([_on(targets[i], device) for i in indices])
        stacked = torch.stack([prediction[i] for i in indices]).float()
        stacked = resize_depth(stacked, (size[0], size[1]), align_corners=True)  # as in the loss itself
        losses, has_depth = silog_per_image(stacked, truth, silog_lambda)
        loss = loss + losses.sum()
        totals = totals + _totals(stacked.detach(), truth, losses.detach(), has_depth)
    return loss, totals


@torch.no_grad()
def _totals(prediction: Tensor, truth: Tensor, losses: Tensor, has_depth: Tensor) -> Tensor:
    valid = valid_depth(truth)
    truth = torch.where(valid, truth, 1.0)
    ratio = torch.maximum(prediction / truth, truth / prediction)
    count = valid.sum((-2, -1))
    pixels = count.clamp(min=1)
    delta1 = (valid & (ratio < 1.25)).sum((-2, -1)) / pixels
    abs_rel = torch.where(valid, (prediction - truth).abs() / truth, 0.0).sum((-2, -1)) / pixels
    size = has_depth * float(valid[0].numel())
    return torch.stack([x.float().sum() for x in (losses, has_depth, delta1, abs_rel, count, size)])


def _on(target: Tensor | None, device: torch.device) -> Tensor:
    assert target is not None
    return target.to(device, torch.float32)
