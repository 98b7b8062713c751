# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""DepthVLM: a vision-language model with a depth head on its visual tokens (paper, section 3).

An image takes one path, [`DepthVLMMixin.run_backbone`]: vision tower and LLM (equation 1), their feature maps for the
head (equation 2), the head (equation 3) and the scale to metres (equation 6). `forward` adds the losses (equations 4
and 5). [`DepthVLMForConditionalGeneration`] applies this to Qwen3-VL; each other family has its own file.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast, DepthEstimatorOutput
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .backbones_depthvlm import FAMILIES, LEVELS, register_family
from .camera_head_depthvlm import CameraEstimate, fill_in, mean_camera_loss
from .checkpoints_depthvlm import AnyModel, CheckpointMixin
from .configuration_depthvlm import DepthVLMConfig, DepthVLMConfigMixin
from .depth_heads_depthvlm import DepthHead, build_depth_head, init_head_layer
from .losses_depthvlm import resize_depth, silog_loss

logger = logging.get_logger(__name__)


@dataclass
class DepthVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Text and depth; fields not listed are those of the backbone.

    Args:
        loss: Scalar, equation 5: `text_loss + depth_loss_weight * depth_loss`, of the terms that have labels; and
            `camera_loss_weight * camera_loss` with `camera_labels`.
        text_loss: Scalar, cross-entropy of the labelled tokens.
        depth_loss: Scalar, SILog (equation 4), the mean over the images with depth.
        predicted_depth: One float32 `(H_i, W_i)` per image of the batch, in the order of `image_grid_thw`: z-depth in
            metres at the resolution of the model's input.
        cameras: `(images, 7)`, the processor's camera records, passed through for post-processing. With
            `predict_fov` `(images, 8)`, where cameras that are not known are estimated: see [`fill_in`].
        camera_loss: Scalar, negative log-likelihood of the true focal lengths, the mean over the images with a label.
        aux_loss: Scalar, load-balancing loss of a mixture of experts, with `output_router_logits`.
        router_logits: Logits of its routers, with `output_router_logits`.
    """

    text_loss: Tensor | None = None
    depth_loss: Tensor | None = None
    predicted_depth: list[Tensor] | None = None
    cameras: Tensor | None = None
    camera_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class DepthFeatures(NamedTuple):
    """Feature maps that the depth head reads of one image (equation 2).

    Args:
        maps: `(maps, h, w, hidden_size)`: F_1 to F_4, or only the final LLM state with `feature_source="llm_final"`.
        grid: `(h, w)`, in visual tokens.
    """

    maps: Tensor
    grid: tuple[int, int]


class VisionMaps(NamedTuple):
    """Output of the vision tower that the depth head reads.

    Args:
        levels: Three inner layers: per level one `(tokens_i, hidden_size)` per image, or all patches unprojected where
            the head projects them itself.
        pooled: The final output, phi(E_v(I)): one `(tokens_i, hidden_size)` per image.
        fine: For `head_type="dpt_sharp"` two finer maps, cell by cell: the states before the merger, one
            `(patches_i, ViT width)` per image, and the pixels, one `(patches_i, values)` per image.
    """

    levels: list[Any]
    pooled: Sequence[Tensor]
    fine: Sequence[Sequence[Tensor]] = ()


class PredictedDepth(list[Tensor]):
    """Depth maps, `(H_i, W_i)` float32 in metres, in a list that post-processing takes like a model output.

    Args:
        depth: The maps.
        cameras: `(images, 7)`, or `(images, 8)` with estimates: see [`DepthVLMCausalLMOutputWithPast`].
        estimate: The camera head's output, if there is one.
    """

    def __init__(self, depth: Sequence[Tensor], cameras: Tensor | None = None, estimate: CameraEstimate | None = None):
        super().__init__(depth)
        self.cameras, self.estimate = cameras, estimate

    @property
    def predicted_depth(self) -> list[Tensor]:
        """The list itself."""
        return self


class PromptStates:
    """LLM states of one prompt, collected over the calls of its prefill: one, or one per chunk.

    Args:
        length: Positions that the prefill runs; decoding steps come after them.
    """

    def __init__(self, length: int):
        self.length = length
        self.chunks: list[Sequence[Tensor]] = []

    @property
    def complete(self) -> bool:
        """True once the whole prompt has been run."""
        return sum(chunk[-1].shape[1] for chunk in self.chunks) >= self.length

    def of_rows(self, rows: int) -> list[Tensor]:
        """Return one `(rows, length, hidden_size)` per state; only the first of beams and returned sequences."""
        joined = [torch.cat(parts, dim=1)[:, : self.length] for parts in zip(*self.chunks, strict=True)]
        return [state[:: state.shape[0] // rows] for state in joined]


def token_grids(grid_thw: Sequence[Sequence[int]], merge_size: int) -> list[tuple[int, int]]:
    """Return `(h, w)` of every image in visual tokens, from `image_grid_thw` (patches) as a list."""
    return [(height // merge_size, width // merge_size) for _, height, width in grid_thw]


def check_images(
    pixel_values: Tensor | None, grid_thw: Tensor | None, focal_scale: Tensor | None, cameras: Tensor | None = None
) -> None:
    """Check that there are images to predict depth for, each with a focal scale and a camera if any has one."""
    if pixel_values is None or grid_thw is None:
        raise ValueError(
            "Depth was asked for, but there is no image: pass `pixel_values` and `image_grid_thw` as the processor "
            "makes them, or `output_depth=False`."
        )
    if focal_scale is not None and focal_scale.shape != (len(grid_thw),):
        raise ValueError(
            f"`focal_scale` has shape {tuple(focal_scale.shape)}, expected one per image: ({len(grid_thw)},)."
        )
    if cameras is not None and len(cameras) != len(grid_thw):
        raise ValueError(f"`cameras` has {len(cameras)} records for {len(grid_thw)} images, expected one per image.")


def recorded_states(config: DepthVLMConfigMixin) -> list[int]:
    """Return the indices into `hidden_states` of the LLM states that the head reads besides the final one.

    With `feature_source="llm"` these are the states after a quarter, a half and three quarters of the layers.
    """
    if config.head.feature_source != "llm":
        return []
    return [max(1, round(config.text.num_hidden_layers * share)) for share in (0.25, 0.5, 0.75)]


def feature_maps(
    config: DepthVLMConfigMixin,
    vision: VisionMaps,
    states: Sequence[Tensor],
    image_mask: Tensor | None,
    grids: Sequence[tuple[int, int]],
) -> list[Sequence[Tensor]]:
    """Return the head's feature maps F_1 to F_4 (equation 2, table 5): per map one `(tokens_i, hidden_size)` per image.

    Args:
        config: The model's configuration; `depth_config.feature_source` chooses the maps.
        vision: Output of the vision tower, its levels projected.
        states: `(batch, positions, hidden_size)` of the LLM: intermediate layers first, the final normed state last.
        image_mask: `(batch, positions)`, true at image tokens.
        grids: `(h, w)` of every image, in visual tokens.
    """
    source = config.head.feature_source
    maps: list[Sequence[Tensor]] = list(vision.levels) if source in ("vit+llm", "vit") else []
    if source == "vit":
        return [*maps, vision.pooled]
    tokens = [height * width for height, width in grids]
    return maps + [state[image_mask.to(state.device)].split(tokens) for state in states]  # type: ignore[union-attr]


def run_depth_head(
    head: DepthHead,
    maps: Sequence[Sequence[Tensor]],
    grids: Sequence[tuple[int, int]],
    focal_scale: Tensor | None,
    cameras: Tensor | None = None,
) -> PredictedDepth:
    """Return the depth of every image, `(H_i, W_i)` float32 in metres; images of one size go through the head together.

    If the head has a camera head, it estimates the focal length of every image too, and the estimate replaces those
    `cameras` that were assumed, if they are given, with their focal scales.

    Args:
        head: The depth head (equation 3).
        maps: Feature maps, see [`feature_maps`].
        grids: `(h, w)` of every image, in visual tokens.
        focal_scale: `(images,)`, effective over canonical focal length (equation 6).
        cameras: `(images, 7)`, the processor's camera records.
    """
    weight = head.norm.weight
    # Weights offloaded by `device_map` are on `meta` here: its hooks move the features to the head's device.
    device = maps[0][0].device if weight.is_meta else weight.device
    depth: dict[int, Tensor] = {}
    estimates: dict[int, tuple[Tensor, ...]] = {}
    records: dict[int, Tensor] = {}
    for grid in dict.fromkeys(grids):
        indices = [index for index, other in enumerate(grids) if other == grid]
        features = [torch.stack([images[i] for i in indices]).to(device, weight.dtype) for images in maps]
        metres = head(features, grid)
        # Views, because indexing by a list copies it to the GPU and synchronises.
        scale = None if focal_scale is None else torch.stack([focal_scale[i] for i in indices])
        if head.camera is not None:
            estimate = head.camera(features, grid)
            estimates |= zip(indices, zip(*estimate, strict=True), strict=True)
            if cameras is not None:
                rows, scale = fill_in(torch.stack([cameras[i] for i in indices]), scale, estimate)
                records |= zip(indices, rows, strict=True)
        if scale is not None:
            metres = metres * scale.to(metres.device, torch.float32)[:, None, None]
        depth |= zip(indices, metres, strict=True)
    order = range(len(grids))
    found = None
    if estimates:
        found = CameraEstimate(*(torch.stack(part) for part in zip(*(estimates[i] for i in order), strict=True)))
    return PredictedDepth(
        [depth[i] for i in order], torch.stack([records[i] for i in order]) if records else cameras, found
    )


class DepthVLMMixin(CheckpointMixin):
    """Depth for a vision-language model: a mixin before a family's own class, with `GenerationMixin` after it.

    A depth head reads the visual tokens of the same vision pass and prefill that the text needs.
    """

    config: Any
    depth_head: DepthHead

    def __init__(self, config: Any):
        if config.model_type != self.config_class.model_type:
            raise ValueError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got a {type(config).__name__}. "
                "`from_pretrained` and the Auto classes choose the class by the checkpoint."
            )
        super().__init__(config)
        self.depth_head = build_depth_head(config.head, config.text.hidden_size, config.input_stride, config.vision)
        if config.reads_vision and config.head.projector == "own":
            copies = [config.backbone.copy_projector(self.model.visual) for _ in range(LEVELS)]
            self.depth_head.projectors.extend(copies)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False: missing weights are initialised as in transformers' own models, which keeps loaded ones.

        In custom code transformers skips modules that initialise weights of others, as blocks do for their routers.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_head_layer(module)

    @can_return_tuple
    def forward(  # noqa: D417
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        depth_labels: Sequence[Tensor | None] | None = None,
        camera_labels: Tensor | None = None,
        focal_scale: Tensor | None = None,
        cameras: Tensor | None = None,
        output_depth: bool | None = None,
        output_router_logits: bool | None = None,
        second_per_grid_ts: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | DepthVLMCausalLMOutputWithPast:
        """Run the model as the backbone's `forward` does, and predict depth.

        Args:
            depth_labels: For every image of the batch one `(H, W)` map of z-depth in metres, or None. Zero, negative,
                NaN and infinite pixels do not count. Any resolution: the prediction is resized to it.
            camera_labels: `(images,)`, true focal lengths for the camera head, see [`camera_nll`]. With labels of
                either kind, metres follow from `focal_scale` as it is given, not from an estimate.
            focal_scale: `(images,)`, effective over canonical focal length, the factor from the head's output to
                metres (equation 6). 1 by default.
            cameras: `(images, 7)`, handed through to the output. With `predict_fov`, those that were assumed are
                estimated, and depth is in metres of the estimates.
            output_depth: Run the depth head on the batch's images, if any. Defaults to True in eval mode; always on
                with labels of depth or cameras.
            output_router_logits: For a mixture of experts: return its routers' logits, and add the load-balancing loss.
                Defaults to the value in `text_config`.
            second_per_grid_ts: `(videos,)`, seconds between the frames of every video, for Qwen2.5-VL.

        Raises:
            ValueError: `depth_labels` are given without an image, `camera_labels` without `predict_fov`, or the number
                of images differs from that of the labels or of `focal_scale`.
        """
        output_depth = not self.training if output_depth is None else output_depth
        labelled = bool(depth_labels) or camera_labels is not None
        output_depth = labelled or (output_depth and pixel_values is not None)
        if camera_labels is not None and self.depth_head.camera is None:
            raise ValueError("`camera_labels` are for a camera head: load with `depth_config={'predict_fov': True}`.")
        if depth_labels and image_grid_thw is not None and len(depth_labels) != len(image_grid_thw):
            raise ValueError(
                f"Got {len(depth_labels)} `depth_labels` for {len(image_grid_thw)} images: give one per image, None "
                "where there is no depth."
            )
        configured = getattr(self.config.text, "output_router_logits", None)  # None: no mixture of experts
        if output_router_logits is None or configured is None:
            output_router_logits = configured
        optional: dict[str, Any] = {
            "output_router_logits": output_router_logits,
            "second_per_grid_ts": second_per_grid_ts,
        }
        outputs, predicted_depth = self.run_backbone(
            output_depth,
            focal_scale=focal_scale,
            cameras=None if labelled else cameras,
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **{name: value for name, value in optional.items() if value is not None},
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs[0][:, kept, :])

        loss = text_loss = depth_loss = camera_loss = None
        if labels is not None:
            loss = text_loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text.vocab_size, **kwargs
            )
        router_logits, aux_loss = getattr(outputs, "router_logits", None), None
        if output_router_logits:
            aux_loss = self.load_balancing_loss(router_logits, attention_mask)
            if loss is not None:
                loss = loss + self.config.text.router_aux_loss_coef * aux_loss.to(loss.device)
        if depth_labels:
            assert predicted_depth is not None
            depth_loss = silog_loss(predicted_depth, depth_labels, self.config.silog_lambda)
            weighted = self.config.depth_loss_weight * depth_loss  # equation 5
            loss = weighted if loss is None else loss + weighted.to(loss.device)
        elif loss is not None and self.training:
            # Distributed training needs a gradient for every parameter: a batch without depth gives zeros.
            loss = loss + self.zero_from_head().to(loss.device)
        estimate = None if predicted_depth is None else predicted_depth.estimate
        if labelled and estimate is not None:
            camera_loss = mean_camera_loss(estimate, camera_labels)
            weighted = self.config.camera_loss_weight * camera_loss
            loss = weighted if loss is None else loss + weighted.to(loss.device)

        return DepthVLMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_loss=text_loss,
            depth_loss=depth_loss,
            predicted_depth=None if predicted_depth is None else list(predicted_depth),
            cameras=None if predicted_depth is None else cameras if labelled else predicted_depth.cameras,
            camera_loss=None if camera_labels is None else camera_loss,
            aux_loss=aux_loss,
            router_logits=router_logits,
        )

    def load_balancing_loss(self, router_logits: Any, attention_mask: Tensor | None) -> Tensor:
        """Return the load-balancing loss of a mixture of experts, as transformers computes it, without its factor."""
        text = self.config.text
        loss = load_balancing_loss_func(router_logits, text.num_experts, text.num_experts_per_tok, attention_mask)
        return cast(Tensor, loss)

    def run_backbone(
        self,
        output_depth: bool,
        focal_scale: Tensor | None = None,
        text: bool = True,
        prompt_states: PromptStates | None = None,
        cameras: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Any, PredictedDepth | None]:
        """Run ViT, LLM and depth head once each, without the LM head: the single path through the model.

        Args:
            output_depth: Run the depth head on the batch's images; `pixel_values` is then required.
            focal_scale: As in `forward`.
            text: False for depth alone: the backbone runs without a graph (stage 1 of the training, section 3.2) or a
                cache and, attention being causal, up to the last image token; with `feature_source="vit"` the LLM does
                not run at all.
            prompt_states: Collects the LLM states that the head reads, for depth after the last call of a prefill.
            cameras: `(images, 7)`, of which a camera head replaces those that were assumed.
            **inputs: Arguments of `forward`, except labels.

        Returns:
            The backbone's output, and the depth as in `forward`'s output; None for a part that did not run.

        Raises:
            ValueError: There is no image, or the numbers of images and focal scales differ.
        """
        if output_depth:
            check_images(inputs.get("pixel_values"), inputs.get("image_grid_thw"), focal_scale, cameras)
        outputs, features = self._run(output_depth, text, prompt_states, inputs)
        if features is None:
            return outputs, None
        return outputs, run_depth_head(self.depth_head, *features, focal_scale, cameras)

    def _run(
        self, wants_features: bool, text: bool, prompt_states: PromptStates | None, inputs: dict[str, Any]
    ) -> tuple[Any, tuple[list[Sequence[Tensor]], list[tuple[int, int]]] | None]:
        """Run the backbone; return its output, and the head's feature maps with their grids: see [`run_backbone`]."""
        vision = outputs = None
        states: list[Tensor] = []
        if wants_features:
            vision = self._replace_pixels(inputs, text)
        if not text:
            _cut_after_images(inputs, self.config.image_token_id)
        if text or self.config.head.feature_source != "vit":
            with torch.set_grad_enabled(torch.is_grad_enabled() and text):
                outputs, states = self._run_llm(inputs, wants_features or prompt_states is not None)
        if prompt_states is not None:
            prompt_states.chunks.append(states)
        if not wants_features:
            return outputs, None
        image_mask = None
        if states:
            ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
            mask, _ = self.model.get_placeholder_mask(ids, inputs_embeds=states[-1] if embeds is None else embeds)
            image_mask = self.config.backbone.image_mask(mask[..., 0], inputs.get("mm_token_type_ids"))
        return outputs, self._feature_maps(vision, states, image_mask, inputs["image_grid_thw"])

    def encode_images(
        self, pixel_values: Tensor, image_grid_thw: Tensor, trained: bool = False
    ) -> tuple[Any, VisionMaps]:
        """Run the vision tower once: phi(E_v(I)) of equation 1, and phi of its inner layers for equation 2.

        Args:
            pixel_values: Patches of all images.
            image_grid_thw: `(images, 3)`, patches of every image.
            trained: True to keep the graph.

        Returns:
            The output of `get_image_features`, for the LLM, and the maps for the head.
        """
        config, reads_vision = self.config, self.config.reads_vision
        levels: list[Any] = []
        options = config.backbone.vision_options(config.vision_layers) if reads_vision else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            vision = self.get_image_features(pixel_values, image_grid_thw, return_dict=True, **options)
            if reads_vision:
                levels = config.backbone.vision_levels(vision, config.vision_layers, config.vision)
                if not config.backbone.has_deepstack and config.head.projector == "shared":
                    levels = self._project(levels, [self.model.visual] * LEVELS, image_grid_thw)
        if options:
            vision.hidden_states = None  # the LLM does not need them
        fine: list[Sequence[Tensor]] = []
        if config.head.head_type == "dpt_sharp":
            patches = image_grid_thw.prod(-1).tolist()
            fine = [vision.last_hidden_state.split(patches), pixel_values.split(patches)]
        return vision, VisionMaps(levels, vision.pooler_output, fine)  # generation repeats those in `vision` for beams

    def _project(self, levels: Sequence[Tensor], projectors: Iterable[Any], grid_thw: Tensor) -> list[Any]:
        """Return the levels of a tower without DeepStack at the LLM's width: per level one tensor per image."""
        tokens = (grid_thw.prod(-1) // self.config.vision.spatial_merge_size**2).tolist()
        phi = self.config.backbone.project
        return [
            phi(projector, states, grid_thw, self.config.vision).split(tokens)
            for projector, states in zip(projectors, levels, strict=True)
        ]

    def _replace_pixels(self, inputs: dict[str, Any], text: bool) -> VisionMaps:
        """Encode the images and replace all pixels in `inputs` by the result; return the maps for the head."""
        pixel_values = inputs.pop("pixel_values")
        # Checkpointing with adapters requires gradients of every input: a frozen ViT would run a useless backward pass.
        trained = pixel_values.requires_grad or any(p.requires_grad for p in self.model.visual.parameters())
        vision, kept = self.encode_images(pixel_values, inputs["image_grid_thw"], text and trained)
        encoded = {**(inputs.pop("mm_encoder_outputs", None) or {}), "image": vision}
        videos = inputs.pop("pixel_values_videos", None)
        if videos is not None:  # the backbone rejects pixels alongside encoded images
            encoded["video"] = self.get_video_features(videos, inputs["video_grid_thw"], return_dict=True)
        inputs["mm_encoder_outputs"] = encoded
        return kept

    def _run_llm(self, inputs: dict[str, Any], record: bool) -> tuple[Any, list[Tensor]]:
        """Return the backbone's output, H of equation 1, and with `record` the states that [`feature_maps`] takes."""
        placed = inputs.get("position_ids") is not None
        if not placed:
            try:
                inputs["position_ids"], rope_deltas = positions_of_call(self.model, **inputs)
            except (StopIteration, RuntimeError):  # images and tokens do not match: the backbone reports it
                placed = True
        recorded = recorded_states(self.config) if record else []
        asked = inputs.get("output_hidden_states")
        outputs: Any = self.model(**inputs | ({"output_hidden_states": True} if recorded else {}))
        if not placed and outputs.past_key_values is not None:
            outputs.past_key_values.rope_deltas = rope_deltas
        states = [outputs.hidden_states[index] for index in recorded] + [outputs[0]]
        if recorded and not asked:
            outputs.hidden_states = None
        return outputs, states if record else []

    def _feature_maps(
        self, vision: VisionMaps | None, states: Sequence[Tensor], image_mask: Tensor | None, grid_thw: Tensor
    ) -> tuple[list[Sequence[Tensor]], list[tuple[int, int]]]:
        """Return the head's feature maps and their grids: see [`feature_maps`]."""
        assert vision is not None
        if len(self.depth_head.projectors):
            vision = vision._replace(levels=self._project(vision.levels, self.depth_head.projectors, grid_thw))
        grids = token_grids(grid_thw.tolist(), self.config.vision.spatial_merge_size)
        return [*feature_maps(self.config, vision, states, image_mask, grids), *vision.fine], grids

    def zero_from_head(self, vit: bool = False, llm: bool = False, projected: bool = False) -> Tensor:
        """Return a zero that depends on every head parameter, so that ranks without depth stay in step.

        Args:
            vit: Require gradients of the ViT's maps, as with a trained ViT.
            llm: Require gradients of the LLM's maps, likewise.
            projected: True if the head's own projectors have already run, and must not run again.
        """
        weight = self.depth_head.norm.weight
        own = len(self.depth_head.projectors) > 0  # trained themselves, so that their maps require gradients
        level = vit or own
        asked = {"vit+llm": [level] * 3 + [llm], "vit": [level] * 3 + [vit], "llm": [llm] * 4, "llm_final": [llm]}
        requires = [*asked[self.config.head.feature_source], vit, False]  # the last two for finer maps, if it reads any
        maps = [
            weight.new_zeros(1, *shape, requires_grad=one)  # a sharded weight does not show its width
            for shape, one in zip(self.depth_head.inputs, requires, strict=False)
        ]
        if own and not projected:
            vision = self.config.vision
            side = vision.spatial_merge_size
            cell = weight.new_zeros(side**2, vision.hidden_size, requires_grad=vit)
            grid_thw = torch.tensor([[1, side, side]], device=weight.device)
            levels = self._project([cell] * LEVELS, self.depth_head.projectors, grid_thw)
            maps[:LEVELS] = [level[0][None] for level in levels]
        zero = self.depth_head(maps, (1, 1)).sum() * 0
        if self.depth_head.camera is not None:
            zero = zero + torch.cat(self.depth_head.camera(maps, (1, 1))).sum() * 0
        return zero

    def start_projectors(self) -> None:
        """Initialise every level's own projector as a copy of the backbone's, if the head has such projectors."""
        for projector in self.depth_head.projectors:
            projector.load_state_dict(self.config.backbone.copy_projector(self.model.visual).state_dict())

    @torch.no_grad()
    def depth_features(self, **inputs: Any) -> list[DepthFeatures]:
        """Return the depth head's input features of every image, for a custom head or policy (equation 2).

        The backbone runs once, up to the last image token, without a graph; the head does not run.

        Args:
            **inputs: The processor's output.

        Returns:
            One [`DepthFeatures`] per image, in the order of `image_grid_thw`.

        Raises:
            ValueError: There is no image.
        """
        for name in ("depth_labels", "camera_labels", "focal_scale", "cameras", "labels"):
            inputs.pop(name, None)
        check_images(inputs.get("pixel_values"), inputs.get("image_grid_thw"), None)
        _, features = self._run(True, False, None, inputs)
        assert features is not None
        maps, grids = features
        tokens = maps[: len(maps) - len(self.depth_head.inputs[4:])]  # without the finer maps of `dpt_sharp`
        device = tokens[-1][0].device
        return [
            DepthFeatures(torch.stack([images[index].to(device) for images in tokens]).unflatten(1, grid), grid)
            for index, grid in enumerate(grids)
        ]

    @torch.no_grad()
    def predict_depth(
        self,
        input_ids: torch.LongTensor,
        pixel_values: Tensor,
        image_grid_thw: torch.LongTensor,
        *,
        cameras: Tensor | None = None,
        output_size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        **inputs: Any,
    ) -> PredictedDepth:
        """Predict only depth, equal to `forward`'s, skipping all work for text: see `run_backbone`.

        Args:
            input_ids: Prompts, from the processor.
            pixel_values: Patches of all images, likewise.
            image_grid_thw: `(images, 3)`, patches of every image, likewise.
            cameras: `(images, 7)`, passed through to the output; with `predict_fov`, those that were assumed are
                estimated.
            output_size: `(height, width)` to resize the depth to as post-processing does, one for all images or one
                each; by default the resolution of the model's input.
            **inputs: The rest of the processor's output.

        Returns:
            One float32 `(H_i, W_i)` per image: z-depth in metres.

        Raises:
            ValueError: As in `forward`, or the number of `output_size` differs from the number of images.
        """
        for name in ("depth_labels", "camera_labels"):
            inputs.pop(name, None)
        inputs |= {"input_ids": input_ids, "pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        _, predicted = self.run_backbone(True, text=False, cameras=cameras, **inputs)
        assert predicted is not None
        depth: list[Tensor] = predicted
        if output_size is not None:
            sizes: list[Any] = [output_size] * len(depth) if isinstance(output_size[0], int) else list(output_size)
            if len(sizes) != len(depth):
                raise ValueError(
                    f"`output_size` has {len(sizes)} sizes for {len(depth)} images: give one, or one each."
                )
            depth = [resize_depth(d[None], size)[0] for d, size in zip(depth, sizes, strict=True)]
        return PredictedDepth(depth, predicted.cameras, predicted.estimate)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        output_depth: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput | torch.LongTensor:
        """Generate text, and with `return_dict_in_generate=True` also `predicted_depth` from the same prefill.

        Depth is predicted once an image, whatever the number of beams or returned sequences; decoding steps never
        touch the depth head. Rows that are padded on the right are padded on the left instead, in the returned
        sequences too: a reply continues where its prompt ends.

        Args:
            inputs: Prompts, as in transformers.
            generation_config: As in transformers.
            *args: As in transformers.
            output_depth: Add `predicted_depth` (and the processor's `cameras`) to the output. By default where images
                and `return_dict_in_generate` are given.
            **kwargs: The processor's output, and the keywords of transformers.

        Raises:
            ValueError: Depth is asked for without images, without `return_dict_in_generate`, or with `inputs_embeds`,
                in which image tokens cannot be identified; or rows are padded on the right and cannot be padded on the
                left.
        """
        # State lives in the call's arguments or on its cache, so that one model can serve many threads.
        focal_scale, cameras = kwargs.pop("focal_scale", None), kwargs.pop("cameras", None)
        for name in ("depth_labels", "camera_labels"):
            kwargs.pop(name, None)
        pixel_values: Any = kwargs.get("pixel_values")
        grid_thw: Any = kwargs.get("image_grid_thw")
        config = generation_config or self.generation_config
        returns_dict = kwargs.get("return_dict_in_generate", config.return_dict_in_generate)
        inputs = _pad_left(inputs, kwargs)
        has_embeds = kwargs.get("inputs_embeds") is not None
        if output_depth is None:
            output_depth = pixel_values is not None and bool(returns_dict) and not has_embeds
            if pixel_values is not None and returns_dict and has_embeds:
                logger.warning_once(
                    "`generate` got `inputs_embeds`: no depth is predicted. Pass `input_ids` to get it."
                )
        if not output_depth:
            # If pixels reach the prefill's `forward`, it must not run the head needlessly.
            return super().generate(inputs, generation_config, *args, output_depth=False, **kwargs)

        if has_embeds:
            raise ValueError(
                "`generate` got `inputs_embeds` and `output_depth=True`: image tokens cannot be told in embeddings. "
                "Pass `input_ids`, or `output_depth=False`."
            )
        if not returns_dict:
            raise ValueError(
                "`output_depth=True` needs `return_dict_in_generate=True`, or there is no place for depth."
            )
        check_images(pixel_values, grid_thw, focal_scale, cameras)
        input_ids = inputs if inputs is not None else kwargs["input_ids"]
        length = _prefill_length(input_ids, kwargs.get("attention_mask"), kwargs.get("past_key_values"))
        vision, kept = self.encode_images(kwargs.pop("pixel_values"), grid_thw)
        kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "image": vision}
        states = PromptStates(length)
        output: Any = super().generate(inputs, generation_config, *args, prompt_states=states, **kwargs)
        types = kwargs.get("mm_token_type_ids")
        image_mask = self.config.backbone.image_mask(
            input_ids[:, -length:] == self.config.image_token_id, None if types is None else types[:, -length:]
        )
        features = self._feature_maps(kept, states.of_rows(len(input_ids)), image_mask, grid_thw)
        predicted = run_depth_head(self.depth_head, *features, focal_scale, cameras)
        output["predicted_depth"], output["cameras"] = list(predicted), predicted.cameras
        return output

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: Tensor | None = None,  # `generate` accepts embeddings only if they are named here
        prompt_states: PromptStates | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare inputs as in transformers; collect the prompt's states only in the calls of the prefill."""
        model_inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)
        if prompt_states is not None and not prompt_states.complete:
            model_inputs["prompt_states"] = prompt_states
        return model_inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Assign positions as the backbone does; a cache continues from its own offsets, not those of the last call."""
        cache, types = model_kwargs.get("past_key_values"), model_kwargs.get("mm_token_type_ids")
        past = 0 if cache is None else int(cache.get_seq_length())
        if (
            cache is not None
            and past
            and hasattr(cache, "rope_deltas")
            and (types is None or not types[:, past:].any())
        ):
            words = GenerationMixin._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)
            deltas = cache.rope_deltas
            return words[None] if deltas is None else words[None] + deltas.to(words.device)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Update as in transformers; store the offsets on a cache that may be passed to `generate` again."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        cache, positions = model_kwargs.get("past_key_values"), model_kwargs.get("position_ids")
        if cache is not None and positions is not None and positions.ndim == 3 and len(positions) == 4:
            cache.rope_deltas = positions[1, :, -1:] - positions[0, :, -1:]  # words, then time: equal from here on
        return model_kwargs

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as in transformers, with the code that loads the folder where this package is not installed."""
        os.makedirs(save_directory, exist_ok=True)
        self.config.auto_map = FAMILIES[self.config.backbone.model_type].auto_map
        custom_object_save(self, save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)


class DepthVLMForConditionalGeneration(DepthVLMMixin, Qwen3VLForConditionalGeneration, GenerationMixin):
    """Qwen3-VL that answers in text and in metres.

    `from_pretrained` takes DepthVLM checkpoints, checkpoints of the published implementation, and plain Qwen3-VL
    checkpoints, to which it adds an untrained head. For a checkpoint of another supported family it returns a model of
    that family's class.
    """

    config: DepthVLMConfig
    config_class = DepthVLMConfig


def positions_of_call(
    backbone: Any,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    **inputs: Any,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the positions of a call's tokens, and the offsets from which the next call on its cache continues.

    The backbone stores the offsets of its last call on the module, where another thread's call would read them; here
    they are stored on the cache.
    """
    tokens: Any = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    own = copy.copy(backbone)  # shallow: the same weights, separate offsets
    own.rope_deltas = getattr(past_key_values, "rope_deltas", backbone.rope_deltas) if past else None
    names = ["image_grid_thw", "video_grid_thw", "attention_mask", "mm_token_type_ids"]
    names += ["second_per_grid_ts"] if inputs.get("second_per_grid_ts") is not None else []
    positions = own.compute_3d_position_ids(
        input_ids=input_ids,
        inputs_embeds=tokens[..., None],
        past_key_values=past_key_values,
        **{name: inputs.get(name) for name in names},
    )
    if positions is None:  # the LLM's own default
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device).expand(4, len(tokens), -1)
    return positions[..., -tokens.shape[1] :], own.rope_deltas


def _cut_after_images(inputs: dict[str, Any], image_token_id: int) -> None:
    """Remove the tokens after the last image token, which depth does not need, and the cache."""
    inputs["use_cache"] = False
    if inputs.get("video_grid_thw") is not None:  # a video may continue after the last image
        return
    end = int((inputs["input_ids"] == image_token_id).any(0).nonzero()[-1]) + 1
    for name in ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids"):
        if inputs.get(name) is not None:
            inputs[name] = inputs[name][..., :end]


def _pad_left(inputs: Tensor | None, kwargs: dict[str, Any]) -> Tensor | None:
    """Return `inputs` with rows that end in padding padded on the left instead; those in `kwargs` likewise."""
    input_ids = kwargs.get("input_ids") if inputs is None else inputs
    mask = kwargs.get("attention_mask")
    if input_ids is None or mask is None or mask.shape != input_ids.shape or bool(mask[:, -1].all()):
        return inputs
    given = [name for name in ("position_ids", "past_key_values", "inputs_embeds") if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"`generate` got rows that are padded on the right, and {', '.join(given)}: a reply goes on where its "
            "prompt ends. Pad on the left (`padding_side='left'`)."
        )
    order = mask.argsort(dim=1, stable=True)  # padding first, then the tokens in order
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].gather(1, order)
    return None if inputs is None else inputs.gather(1, order)


def _prefill_length(input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> int:
    """Return the number of positions in the prefill: `input_ids` may include the cached part or only the new tokens."""
    length = input_ids.shape[1]
    if cache is None or (attention_mask is not None and attention_mask.shape[-1] != length):
        return length
    return length - int(cache.get_seq_length())


class DepthEstimationMixin(AnyModel):
    """Depth from pixels alone, for `AutoModelForDepthEstimation` and pipelines: mixin of a class with a depth head.

    The same weights; the prompt before the image is `config.depth_prompt_ids`.
    """

    main_input_name = "pixel_values"

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        image_grid_thw: torch.LongTensor,
        focal_scale: Tensor | None = None,
        cameras: Tensor | None = None,
        depth_labels: Sequence[Tensor | None] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | DepthEstimatorOutput:
        """Predict depth.

        Args:
            pixel_values: From the image processor, like the next three.
            image_grid_thw: Patches of every image.
            focal_scale: See [`DepthVLMForConditionalGeneration.forward`].
            cameras: See there.
            depth_labels: See there.
            return_dict: False for a tuple.
            **kwargs: Not used.

        Returns:
            `predicted_depth`, one float32 `(H_i, W_i)` in metres per image, and with `depth_labels` the depth loss.
        """
        inputs = self._depth_prompt(image_grid_thw)
        inputs |= {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw, "focal_scale": focal_scale}
        inputs["cameras"] = cameras
        loss = None
        if depth_labels is None and not self.training:
            depth: list[Tensor] = self.predict_depth(**inputs)  # type: ignore[attr-defined]
            cameras = depth.cameras  # type: ignore[attr-defined]
        else:
            options = {"output_depth": True, "logits_to_keep": 1, "use_cache": False, "return_dict": True}
            outputs = super().forward(depth_labels=depth_labels, **inputs, **options)
            depth, loss = outputs.predicted_depth, outputs.depth_loss
        output = DepthEstimatorOutput(loss=loss, predicted_depth=list(depth))  # type: ignore[arg-type]
        if cameras is not None:
            output["cameras"] = cameras
        return output if return_dict is not False else output.to_tuple()

    def _depth_prompt(self, image_grid_thw: torch.LongTensor) -> dict[str, Any]:
        """Return a row per image: `config.depth_prompt_ids`, then the image's tokens, padded on the right."""
        prefix = self.config.depth_prompt_ids or []
        merge_size = self.config.vision.spatial_merge_size
        counts = [height * width for height, width in token_grids(image_grid_thw.tolist(), merge_size)]
        device = image_grid_thw.device
        position = torch.arange(len(prefix) + max(counts), device=device).expand(len(counts), -1)
        ends = len(prefix) + torch.tensor(counts, device=device)[:, None]
        is_image = (position >= len(prefix)) & (position < ends)
        input_ids = torch.full_like(position, prefix[-1])
        input_ids[:, : len(prefix)] = torch.tensor(prefix, device=device)
        input_ids[is_image] = self.config.image_token_id
        return {
            "input_ids": input_ids,
            "attention_mask": (position < ends).long(),
            "mm_token_type_ids": is_image.int(),
        }


class DepthVLMForDepthEstimation(DepthEstimationMixin, DepthVLMForConditionalGeneration):
    """[`DepthVLMForConditionalGeneration`] as a plain depth estimator, from pixels alone."""


register_family(DepthVLMConfig, DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation)

__all__ = [
    "DepthFeatures",
    "DepthVLMCausalLMOutputWithPast",
    "DepthVLMForConditionalGeneration",
    "DepthVLMForDepthEstimation",
    "DepthVLMMixin",
]
