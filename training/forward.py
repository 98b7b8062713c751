"""The module call of a training step, the one place where the model's `forward` is replaced.

`install_training_forward` gives the model a `forward` that runs the backbone once, by the model's own `run_backbone`,
and reads depth (equations 1 to 3) and text from it: depth by the depth head, text by TRL's fused LM head.
"""

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from ..modeling_depthvlm import DepthVLMForConditionalGeneration, PredictedDepth
from ..modeling_depthvlm.camera_head_depthvlm import camera_nll
from ..modeling_depthvlm.losses_depthvlm import resize_depth, silog_per_image, valid_depth
from .dense_losses import DenseWeights, gradient_matching_per_image, normal_loss_per_image

# `score_depth` returns sums of these, in this order.
TOTALS = ("silog", "gradient_matching", "normal", "depth_images", "delta1", "abs_rel", "valid_pixels", "pixels")
TEXT_SCORES = ("log_probs", "entropy", "is_top1")
TILE_WORDS = 32768  # vocabulary entries per tile, as in TRL


@dataclass
class DepthTargets:
    """Depth labels for one module call.

    They are one object, not tensors among the inputs, since FSDP2 casts every floating-point input tensor to the
    model's dtype, and metres must stay float32.

    Args:
        depth_labels: One `(height, width)` depth map in metres for each image, or None.
        focal_scale (`(images,)`): Effective over canonical focal length.
        weight: Factor on the sum of the images' losses: alpha over the number of images with depth.
        head_runs: Least number of runs of the depth head. If every run gathers its weights from all ranks, this is the
            largest number of image sizes in any rank.
        cameras (`(images, 7)`): The processor's `cameras`, which the loss of normals needs.
        camera_labels (`(images,)`): Labels of the camera head, NaN where there is none.
        camera_weight: Factor on the sum of the images' camera losses, likewise.
    """

    depth_labels: Sequence[Tensor | None]
    focal_scale: Tensor | None
    weight: Tensor | float = 1.0
    head_runs: int = 1
    cameras: Tensor | None = None
    camera_labels: Tensor | None = None
    camera_weight: Tensor | float = 1.0


@dataclass
class DepthScores:
    """Depth results of a module call, in float32 and without gradients.

    They are one object, since FSDP2 casts the tensors of an output to the model's dtype.

    Args:
        totals (`(len(TOTALS),)`): Sums over the images that have a valid pixel.
        cameras (`(3,)`): Sums over the images with a camera label: loss, absolute error of the logarithm of the focal
            length, and their number.
        prediction: Depth of every image, `(height, width)` in metres.
    """

    totals: Tensor
    prediction: list[Tensor] = field(default_factory=list)
    cameras: Tensor | None = None


@dataclass
class JointOutput(FusedCausalLMOutput):
    """TRL's fused output, with depth.

    Args:
        depth_loss: `DepthTargets.weight` times the sum of the images' losses, with the head in its graph.
        camera_loss: `DepthTargets.camera_weight` times the sum of the images' camera losses, if there is a camera head.
        scores: The [`DepthScores`] to log, if any image was seen.
    """

    depth_loss: Tensor | None = None
    camera_loss: Tensor | None = None
    scores: Any = None


def install_training_forward(
    model: DepthVLMForConditionalGeneration,
    silog_lambda: float = 0.5,
    text: bool = True,
    sharded: bool = False,
    dense: DenseWeights = DenseWeights(),  # noqa: B008  # frozen
) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` score only the tokens that have a label, and train depth.

    With `depth_targets=` the call returns a [`JointOutput`] with depth, without it one of text alone. Its text scores
    are flat, `(1, labels)` instead of TRL's `(batch, sequence)`; sums over them are the same. The work is done inside
    the module's own call, which DDP, FSDP and DeepSpeed hook. Every other call runs the model's original forward.

    Args:
        model: Model with TRL's fused LM head in place (`trl.trainer.utils.add_fused_lm_head`).
        silog_lambda: Lambda of equation 4.
        text: True if there is a text loss. Without it the backbone runs without a graph, up to the last image token.
        sharded: True if ranks share weights or gradients module by module (FSDP, DeepSpeed). All must then run the
            same modules, in the same order: a rank whose batch has no image runs the smallest one with weight zero.
        dense: Weights of the losses for dense truth.
    """
    given_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` checks its arguments against the signature
    def forward(
        self: DepthVLMForConditionalGeneration,
        *args: Any,
        fused_lm_head: bool = False,
        depth_targets: DepthTargets | None = None,
        **kwargs: Any,
    ) -> Any:
        if depth_targets is None and (not fused_lm_head or kwargs.get("labels") is None):
            return given_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels = kwargs.pop("labels")
        inputs = {name: value for name, value in kwargs.items() if name not in ("cameras", "num_items_in_batch")}
        inputs["use_cache"] = False
        if depth_targets is None:
            inputs.pop("focal_scale", None)
            outputs, _ = self.run_backbone(False, **inputs)
            return score_text(self, outputs, labels, inputs.get("attention_mask"))
        return joint_step(self, inputs, labels if text else None, depth_targets, silog_lambda, sharded, dense)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def joint_step(
    model: DepthVLMForConditionalGeneration,
    inputs: dict[str, Any],
    labels: Tensor | None,
    targets: DepthTargets,
    silog_lambda: float,
    sharded: bool,
    dense: DenseWeights,
) -> JointOutput:
    """Run backbone, depth head and LM head once each, as [`install_training_forward`] describes.

    Args:
        model: Model with a depth head.
        inputs: Inputs of its forward, without labels.
        labels (`(batch, tokens)`): Labels of the text, or None to train the depth head alone.
        targets: Depth labels.
        silog_lambda: Lambda of equation 4.
        sharded: True if all ranks must run the same modules.
        dense: Weights of the losses for dense truth.
    """
    has_images = inputs.get("pixel_values") is not None
    zero: Tensor | float = 0.0
    prediction: PredictedDepth | None = None
    output, outputs = JointOutput(), None
    asked: dict[str, bool] = {}
    if labels is not None:
        if sharded and not has_images:
            zero = _zero_from_vision(model)  # first, as the ViT runs first with images
        outputs, prediction = model.run_backbone(has_images, focal_scale=targets.focal_scale, **inputs)
        trained = any(p.requires_grad for p in model.model.visual.parameters())
        asked = {"vit": trained and torch.is_grad_enabled(), "llm": outputs.last_hidden_state.requires_grad}
    elif has_images:
        if hasattr(model.config.text, "output_router_logits"):
            inputs["output_router_logits"] = False  # TRL turns it on, but without text they are not used
        _, prediction = model.run_backbone(True, focal_scale=targets.focal_scale, text=False, **inputs)
    elif sharded:
        _, prediction = model.run_backbone(True, text=False, **_smallest_image(model))
    # The head runs once per image size; with fewer sizes, it also runs on zeros. Its own projectors run once for all
    # images.
    for run in range(len({image.shape for image in prediction or ()}), targets.head_runs):
        zero = zero + model.zero_from_head(**asked, projected=run > 0)
    if not has_images and prediction:
        zero = zero + 0.0 * torch.cat([prediction[0].flatten(), *(prediction.estimate or ())]).sum()
        prediction = None
    if labels is not None:  # last, as in all other ranks
        output = score_text(model, outputs, labels, inputs.get("attention_mask"))
    if prediction:
        loss, totals = score_depth(prediction, targets, silog_lambda, dense)
        # Images without depth also keep the head in the graph: distributed training waits for every gradient.
        loss = loss + 0.0 * torch.stack([image[0, 0] for image in prediction]).sum() + zero
        output.scores = DepthScores(totals, [image.detach() for image in prediction])
        if prediction.estimate is not None:
            truth = targets.camera_labels
            truth = torch.full_like(prediction.estimate.spread, torch.nan) if truth is None else truth.to(loss)
            camera_loss = camera_nll(prediction.estimate, truth)
            output.camera_loss = camera_loss * targets.camera_weight
            errors = (prediction.estimate.log_focal.detach() - truth).abs()
            sums = [camera_loss.detach(), errors.nansum(), truth.isfinite().sum()]
            output.scores.cameras = torch.stack([one.float() for one in sums])
    else:
        loss = torch.as_tensor(zero)
    # Scaled here, not in the backward pass, where FSDP2 would round the factor to the model's dtype.
    output.depth_loss = loss * targets.weight
    return output


def score_text(
    model: DepthVLMForConditionalGeneration, outputs: Any, labels: Tensor, attention_mask: Tensor | None
) -> JointOutput:
    """Score the tokens that have a label with TRL's fused LM head, which never builds the logits.

    Args:
        model: Model with an LM head.
        outputs: Output of the backbone, with its last states and, of a mixture of experts, its routers' logits.
        labels (`(batch, tokens)`): Token ids; -100 for tokens that are not trained.
        attention_mask (`(batch, tokens)`): 0 at padding, which does not count for the load of the experts.

    Returns:
        `log_probs`, `entropy`, `is_top1` and `label_mask`, `(1, labels)`; `loss`, their mean; and `aux_loss`, the
        load-balancing loss without its factor, if the routers' logits were requested.
    """
    hidden, router_logits = outputs.last_hidden_state, getattr(outputs, "router_logits", None)
    head = model.get_output_embeddings()
    scored = labels[:, 1:] != -100
    # With the model split across devices (`device_map`), the backbone's last device may differ from the head's.
    hidden = hidden[:, :-1][scored].to(head.weight.device)
    labels = labels[:, 1:][scored].to(head.weight.device)
    weight, bias = (_gather(one) if isinstance(one, DTensor) else one for one in (head.weight, head.bias))
    with maybe_gather_lm_head_ctx(weight, bias):  # type: ignore[arg-type]  # it also takes tensors
        # Temperature 1, no soft cap, unscaled logits.
        per_token: Any = ChunkedLogProbFunction.apply(
            hidden, weight, bias, labels, 1.0, TILE_WORDS, None, 1.0, TEXT_SCORES
        )
    log_probs, entropy, _, _, is_top1 = per_token
    return JointOutput(
        loss=-log_probs.sum() / max(1, len(labels)),
        log_probs=log_probs[None],
        entropy=entropy[None],
        is_top1=is_top1[None],
        label_mask=torch.ones_like(labels, dtype=torch.bool)[None],
        aux_loss=model.load_balancing_loss(router_logits, attention_mask) if router_logits else None,
    )


def _gather(parameter: DTensor) -> Tensor:
    """Return a sharded parameter in full, with its gradient averaged over ranks as FSDP2 does for its modules.

    TRL 1.16 gathers with `full_tensor()`, whose gradient is each rank's own, never reduced.
    """
    mesh = parameter.device_mesh
    full = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda grad: grad / mesh.size())
    return full


def _smallest_image(model: DepthVLMForConditionalGeneration) -> dict[str, Any]:
    """Return inputs with nothing but a black image of one visual token."""
    config, vision = model.config, model.config.vision
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    side = vision.spatial_merge_size
    start = getattr(config, config.backbone.image_start)
    ids = torch.tensor([[start, config.image_token_id]], device=model.device)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.zeros(side * side, width, device=model.device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, side, side]], device=model.device),
    }


def _zero_from_vision(model: DepthVLMForConditionalGeneration) -> Tensor:
    """Return zero, with the ViT in its graph if it is trained."""
    image = _smallest_image(model)
    trained = any(p.requires_grad for p in model.model.visual.parameters())
    vision, maps = model.encode_images(image["pixel_values"], image["image_grid_thw"], trained)
    levels = [*getattr(vision, "deepstack_features", ()), *maps.levels]  # the LLM reads all, the head three
    outputs = [*maps.pooled, *(feature for level in levels for feature in level)]
    return 0.0 * torch.stack([output.float().sum() for output in outputs]).sum()


def score_depth(
    prediction: Sequence[Tensor], targets: DepthTargets, silog_lambda: float, dense: DenseWeights
) -> tuple[Tensor, Tensor]:
    """Compute SILog (equation 4), the losses for dense truth that have a weight, and metrics.

    Args:
        prediction: `(h_i, w_i)` for each image, metres; resized to the image's true depth.
        targets: Depth labels.
        silog_lambda: Lambda of equation 4.
        dense: Weights of the losses for dense truth.

    Returns:
        The sum of the images' losses, with gradients, and the sums named in [`TOTALS`]: float32.

    Raises:
        ValueError: If normals have a weight and there are no cameras.
    """
    if dense.normal and targets.cameras is None:
        raise ValueError(
            "`normal_weight` is above 0, but the batch has no `cameras`, without which there are no normals. Keep the "
            "processor's `cameras` in the batch, as DepthDataCollator does, or leave `normal_weight` at 0."
        )
    device = prediction[0].device
    loss = torch.zeros((), device=device)
    totals = torch.zeros(len(TOTALS), device=device)
    groups: dict[tuple[torch.Size, torch.Size], list[tuple[int, Tensor]]] = {}
    for index, (image, truth) in enumerate(zip(prediction, targets.depth_labels, strict=True)):
        if truth is not None:
            groups.setdefault((image.shape, truth.shape), []).append((index, truth))
    for (_, size), pairs in groups.items():
        truth = torch.stack([one.to(device, torch.float32) for _, one in pairs])
        stacked = torch.stack([prediction[index] for index, _ in pairs]).float()
        stacked = resize_depth(stacked, (size[0], size[1]), align_corners=True)  # as in the loss itself
        losses, has_depth = silog_per_image(stacked, truth, silog_lambda)
        parts = [losses, torch.zeros_like(losses), torch.zeros_like(losses)]  # in the order of `TOTALS`
        if dense.gradient_matching:
            parts[1] = gradient_matching_per_image(stacked, truth)
            losses = losses + dense.gradient_matching * parts[1]
        if dense.normal:
            assert targets.cameras is not None
            # Views, because indexing by a list copies it to the GPU and synchronises.
            cameras = torch.stack([targets.cameras[index] for index, _ in pairs])
            parts[2] = normal_loss_per_image(stacked, truth, cameras)
            losses = losses + dense.normal * parts[2]
        loss = loss + losses.sum()
        totals = totals + _totals(stacked.detach(), truth, [part.detach() for part in parts], has_depth)
    return loss, totals


@torch.no_grad()
def _totals(prediction: Tensor, truth: Tensor, losses: list[Tensor], has_depth: Tensor) -> Tensor:
    valid = valid_depth(truth)
    truth = torch.where(valid, truth, 1.0)
    ratio = torch.maximum(prediction / truth, truth / prediction)
    count = valid.sum((-2, -1))
    pixels = count.clamp(min=1)
    delta1 = (valid & (ratio < 1.25)).sum((-2, -1)) / pixels
    abs_rel = torch.where(valid, (prediction - truth).abs() / truth, 0.0).sum((-2, -1)) / pixels
    size = has_depth * float(valid[0].numel())
    return torch.stack([x.float().sum() for x in (*losses, has_depth, delta1, abs_rel, count, size)])
