"""The module call of a training step: text through TRL's fused LM head and depth through the head, from one backbone
pass."""

import functools
import types
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from ..modeling_depthvlm import DepthVLMForConditionalGeneration
from .targets import DepthScores, DepthTargets, JointOutput, score_depth


class _FinishedBackbone:
    """Stands in for the model where TRL's fused LM head runs the backbone: it has run already, with the depth head."""

    def __init__(self, model: DepthVLMForConditionalGeneration, outputs: Any):
        self.model = model
        self.outputs = outputs

    def base_model(self, **_: Any) -> Any:
        return self.outputs

    def get_output_embeddings(self) -> Any:
        head = self.model.get_output_embeddings()
        if not isinstance(head.weight, DTensor):
            return head
        return types.SimpleNamespace(
            weight=_gather(head.weight), bias=None if head.bias is None else _gather(head.bias)
        )


def _gather(parameter: DTensor) -> Tensor:
    """
    All of a sharded parameter, with a gradient that is averaged over ranks as FSDP2 averages those of its modules.

    TRL 1.16 gathers with `full_tensor()`, whose gradient is each rank's own, never reduced.
    """
    mesh = parameter.device_mesh
    full = parameter.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda grad: grad / mesh.size())
    return full


def _smallest_image(model: DepthVLMForConditionalGeneration) -> dict[str, Any]:
    """A black image of one visual token, alone in a prompt."""
    config, vision = model.config, model.config.vision
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    side = vision.spatial_merge_size
    ids = torch.tensor([[config.vision_start_token_id, config.image_token_id]], device=model.device)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.zeros(side * side, width, device=model.device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, side, side]], device=model.device),
    }


def _zero_from_vision(model: DepthVLMForConditionalGeneration) -> Tensor:
    """Zero, with the ViT in its graph where it is trained."""
    image = _smallest_image(model)
    trained = any(p.requires_grad for p in model.model.visual.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        vision: Any = model.get_image_features(image["pixel_values"], image["image_grid_thw"], return_dict=True)
    maps = [*vision.pooler_output, *(feature for level in vision.deepstack_features for feature in level)]
    return 0.0 * torch.stack([m.float().sum() for m in maps]).sum()


def score_replies_alone(model: DepthVLMForConditionalGeneration) -> None:
    """
    Let TRL's fused LM head, where it would score every position (without Triton, as on a CPU), score those alone that
    have a label. Its output is then flat, (1, labels) instead of (batch, sequence); the sums over it are the same.

    Args:
        model: with TRL's fused LM head in place (`trl.trainer.utils.add_fused_lm_head`).
    """
    fused_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None or labels.device.type != "cpu":
            return fused_forward.__func__(  # type: ignore[attr-defined]
                self, *args, fused_lm_head=fused_lm_head, labels=labels, **kwargs
            )
        outputs = self.base_model(*args, **{**kwargs, "use_cache": False})
        scored = labels[:, 1:] != -100
        outputs.last_hidden_state = outputs.last_hidden_state[:, :-1][scored][None]
        return fused_forward.__func__(  # type: ignore[attr-defined]
            _FinishedBackbone(self, outputs), fused_lm_head=True, shift_labels=labels[:, 1:][scored][None]
        )

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def add_depth_forward(
    model: DepthVLMForConditionalGeneration, silog_lambda: float, text: bool, sharded: bool = False
) -> None:
    """
    Let `model(..., fused_lm_head=True, depth_targets=targets)` return a [`JointOutput`].

    The work is done inside the module's own call, which DDP, FSDP and DeepSpeed hook; every other call is the forward
    that the model had.

    Args:
        model: with TRL's fused LM head in place (`trl.trainer.utils.add_fused_lm_head`).
        silog_lambda: of equation 4.
        text: whether there is a text loss. Without it the backbone runs without a graph, up to the last image token.
        sharded: whether ranks share weights or gradients module by module (FSDP, DeepSpeed). All must then run the
            same modules, in the same order: a rank whose batch has no image runs the smallest one, and counts it for
            nothing.
    """
    fused_forward = model.forward

    @functools.wraps(type(model).forward)  # `generate` validates its arguments against the signature
    def depth_forward(
        self: DepthVLMForConditionalGeneration, *args: Any, depth_targets: DepthTargets | None = None, **kwargs: Any
    ) -> Any:
        if depth_targets is None:
            return fused_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs.pop("fused_lm_head")
        kwargs.pop("cameras", None)
        has_images = kwargs.get("pixel_values") is not None
        scale = depth_targets.focal_scale
        zero: Tensor | float = 0.0
        prediction: list[Tensor] | None = None
        asked: dict[str, bool] = {}
        if text:
            if sharded and not has_images:
                zero = _zero_from_vision(self)  # first, as the ViT is where there are images
            outputs, prediction = self.run_backbone(has_images, focal_scale=scale, **kwargs)
            trained = any(p.requires_grad for p in self.model.visual.parameters())
            asked = {"vit": trained and torch.is_grad_enabled(), "llm": outputs.last_hidden_state.requires_grad}
        else:
            kwargs.pop("use_cache", None)
            if has_images:
                prediction = self.depth_from_frozen_backbone(focal_scale=scale, **kwargs)
            elif sharded:
                prediction = self.depth_from_frozen_backbone(**_smallest_image(self))
        # The head runs once for every size of image; where there are fewer, it runs on nothing.
        for _ in range(depth_targets.head_runs - len({image.shape for image in prediction or ()})):
            zero = zero + self.zero_from_head(**asked)
        if not has_images and prediction:
            zero, prediction = zero + 0.0 * prediction[0].sum(), None
        output = JointOutput()
        if text:  # last, as in every other rank
            scored = fused_forward.__func__(  # type: ignore[attr-defined]
                _FinishedBackbone(self, outputs), fused_lm_head=True, labels=labels
            )
            output = JointOutput(**scored)
        if prediction:
            loss, totals = score_depth(prediction, depth_targets.maps, silog_lambda)
            # Images without depth too keep the head in the graph: distributed training waits for every gradient.
            loss = loss + 0.0 * torch.stack([image[0, 0] for image in prediction]).sum() + zero
            output.scores = DepthScores(totals, [image.detach() for image in prediction])
        else:
            loss = torch.as_tensor(zero)
        # Scaled here, not on the way back, where FSDP2 would round the factor to the model's dtype.
        output.depth_loss = loss * depth_targets.weight
        return output

    model.forward = types.MethodType(depth_forward, model)  # type: ignore[method-assign]
