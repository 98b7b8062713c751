# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Backbones: what a family of vision-language models supplies so that a depth head can read it (paper, section 3.1)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

LEVELS = 3  # maps of the vision tower that the head reads, F_1 to F_3 of equation 2
SHARP_PATCH, SHARP_SIDE = 16, 2  # pixels per patch and patches per token, along an axis, that `dpt_sharp` is made for

# Fields of configurations that rule a family out, and why.
TILES = ("image_grid_pinpoints", "max_dynamic_patch", "max_image_tiles", "max_num_tiles", "use_thumbnail")
BIDIRECTIONAL = ("use_bidirectional_attention", "mm_tokens_per_image")


@dataclass(frozen=True)
class Backbone:
    """A family of vision-language models, as the method sees it. A new family is one instance, or a small subclass.

    The method relies on what the classes of these families have in common in transformers:

    - Sub-configurations: `vision_config` with `depth`, `patch_size` and `spatial_merge_size`, and `text_config` with
      `hidden_size`, `num_hidden_layers` and `vocab_size`; the modules `model.visual` and `model.language_model`.
    - Image tokens: `config.image_token_id`, one per cell of `spatial_merge_size ** 2` patches, row by row.
    - Token grid: `image_grid_thw`, `(images, 3)` in patches. One token covers `patch_size * spatial_merge_size` pixels
      of the model's input per axis, the head's stride.
    - The final LLM state: the first output of `self.model`, normed, `(batch, positions, hidden_size)`.
    - Attention: causal, so that depth does not depend on the text after an image.
    - Positions: `model.compute_3d_position_ids` and the offsets that it leaves in `model.rope_deltas`.
    - Pixels: the patches of Qwen2-VL's image processor, `(patches, channels * temporal_patch_size * patch_size ** 2)`,
      cell by cell.

    The fields and methods below describe how they differ.

    Args:
        model_type: `model_type` of the family's own checkpoints.
        checkpoints: The family's name and sizes, for messages and documentation.
        has_deepstack: True if the vision tower returns `deepstack_features`, projected to the width of the LLM. Without
            them the head reads hidden states of the tower, which `project` brings to that width.
        has_patch_states: True if the vision tower's `last_hidden_state` is what its merger takes, every patch in the
            order of `pixel_values`. `head_type="dpt_sharp"` needs it.
        projector_modules: Names of the vision tower's modules that make up its projector.
        image_start: Field of the configuration that holds the token before an image.
        processor_class: Class in `processing_depthvlm` that knows the family's prompts.
    """

    model_type: str
    checkpoints: str
    has_deepstack: bool = False
    has_patch_states: bool = True
    projector_modules: tuple[str, ...] = ("merger",)
    image_start: str = "vision_start_token_id"
    processor_class: str = "DepthVLMProcessor"

    def project(self, projector: Any, states: Tensor, grid_thw: Tensor, vision_config: Any) -> Tensor:
        """Return phi(h) of equation 2, `(tokens, hidden_size)` row by row, for one layer of the vision tower.

        Args:
            projector: The vision tower, or modules for this level alone under the same names.
            states: `(patches, width)`, in the order in which the tower's layers see them.
            grid_thw: `(images, 3)`, patches of every image.
            vision_config: The tower's configuration.
        """
        return projector.merger(states)

    def image_mask(self, is_image_token: Tensor, mm_token_type_ids: Tensor | None) -> Tensor:
        """Return the mask of the image tokens, `(batch, positions)`.

        Args:
            is_image_token: `(batch, positions)`, true at `config.image_token_id`.
            mm_token_type_ids: `(batch, positions)`, 1 for images and 2 for videos, or None.
        """
        return is_image_token

    def default_layers(self, vision_config: Any) -> list[int]:
        """Return the layers of the vision tower that the head reads unless its configuration names others.

        With DeepStack these are the first, the middle and the last of its levels; without, the layers at a quarter, a
        half and three quarters of the tower's depth.
        """
        if self.has_deepstack:
            levels = sorted(set(vision_config.deepstack_visual_indexes))
            return [levels[0], levels[len(levels) // 2], levels[-1]] if levels else []
        if vision_config.depth <= LEVELS:
            return list(range(vision_config.depth))
        return [round(vision_config.depth * share) - 1 for share in (0.25, 0.5, 0.75)]

    def check_layers(self, layers: Sequence[int], vision_config: Any) -> None:
        """Raise ValueError unless these are three layers that the vision tower offers."""
        usable, offer = list(range(vision_config.depth)), f"The vision tower has {vision_config.depth} layers"
        if self.has_deepstack:
            levels = list(vision_config.deepstack_visual_indexes)
            usable = sorted(set(levels).intersection(usable))
            offer = f"`vision_config.deepstack_visual_indexes` is {levels} with {vision_config.depth} ViT layers"
        if len(set(layers)) != LEVELS or not set(layers) <= set(usable):
            raise ValueError(
                f"{offer}, and the depth head reads three of them, its maps 1 to 3 (equation 2), not {list(layers)}. "
                "Use a backbone with at least three, name three as `depth_config={'vision_layers': [...]}`, or use "
                "`depth_config={'feature_source': 'llm'}`, which reads the LLM alone."
            )

    def check_patches(self, vision_config: Any) -> None:
        """Raise ValueError unless the vision tower gives the states of patches that `head_type="dpt_sharp"` reads."""
        patch, side = vision_config.patch_size, vision_config.spatial_merge_size
        if not self.has_patch_states or (patch, side) != (SHARP_PATCH, SHARP_SIDE):
            raise ValueError(
                f"`head_type='dpt_sharp'` reads patches of {SHARP_PATCH} pixels, {SHARP_SIDE}x{SHARP_SIDE} to a token, "
                f"in the picture's order. {self.model_type} has patches of {patch} pixels, {side}x{side} to a token"
                f"{'' if self.has_patch_states else ', in another order or already merged'}. Use a backbone of the "
                "families of Qwen3-VL or Qwen3.5, or `head_type='dpt_light'`."
            )

    def vision_options(self, layers: Sequence[int]) -> dict[str, Any]:
        """Return the keywords for `get_image_features` whose output [`Backbone.vision_levels`] can read."""
        return {} if self.has_deepstack else {"output_hidden_states": [layer + 1 for layer in layers]}

    def vision_levels(self, vision: Any, layers: Sequence[int], vision_config: Any) -> list[Any]:
        """Return three levels of the vision tower: with DeepStack a tensor per image, else all patches unprojected."""
        if not self.has_deepstack:
            return [vision.hidden_states[layer + 1] for layer in layers]
        order = sorted(vision_config.deepstack_visual_indexes)
        return [vision.deepstack_features[order.index(layer)] for layer in layers]

    def copy_projector(self, visual: nn.Module) -> nn.ModuleDict:
        """Return a copy of the vision tower's projector, for one level."""
        return nn.ModuleDict({name: copy.deepcopy(getattr(visual, name)) for name in self.projector_modules})


class Family(NamedTuple):
    """The classes of one family with a depth head."""

    config: Any
    model: Any
    depth_estimation: Any

    @property
    def auto_map(self) -> dict[str, str]:
        """Return the references to the classes for the `auto_map` of a checkpoint's `config.json`."""
        classes = {
            "Config": self.config,
            "Model": self.model,
            "ModelForImageTextToText": self.model,
            "ModelForDepthEstimation": self.depth_estimation,
        }
        return {f"Auto{kind}": f"{one.__module__.rpartition('.')[2]}.{one.__name__}" for kind, one in classes.items()}


FAMILIES: dict[str, Family] = {}  # by `model_type` of the plain checkpoints


def register_family(config: Any, model: Any, depth_estimation: Any) -> None:
    """Register a family's classes for `from_pretrained`, and the renamings of its old weights with transformers.

    Args:
        config: Configuration class; its `backbone` names the family.
        model: Class that generates text and predicts depth.
        depth_estimation: Its variant that takes only pixels.
    """
    plain = config.backbone.model_type
    FAMILIES[plain] = Family(config, model, depth_estimation)
    plain_class = next(base for base in model.__mro__ if base.__module__.startswith("transformers.models."))
    for name in (plain, plain_class.__name__):
        conversions = get_checkpoint_conversion_mapping(name)
        if conversions is not None:
            register_checkpoint_conversion_mapping(config.model_type, conversions, overwrite=True)


def own_family(model_type: Any) -> Family | None:
    """Return the family whose checkpoints with a depth head have this `model_type`; None for all others."""
    return next((family for family in FAMILIES.values() if family.config.model_type == model_type), None)


def family_of(config_dict: dict[str, Any], path: str) -> Family:
    """Return the classes for a checkpoint's configuration.

    Raises:
        ValueError: Its family or its kind of configuration is not supported.
    """
    model_type = config_dict.get("model_type")
    family = FAMILIES.get(str(model_type)) or own_family(model_type)
    reason = reason_against(config_dict)
    if family is None or reason:
        supported = "; ".join(f"{plain} ({f.config.backbone.checkpoints})" for plain, f in FAMILIES.items())
        raise ValueError(
            f"{path} has model_type={model_type!r}, which DepthVLM does not support"
            f"{': ' * bool(reason)}{reason}. Supported are {supported}; DepthVLM's own checkpoints of these; and the "
            "published DepthVLM layout. docs/backbones.md says what a family must supply."
        )
    return family


def reason_against(config_dict: dict[str, Any]) -> str:
    """Return why the method does not support a backbone's configuration, or an empty string."""
    parts = [config_dict, *(config_dict.get(name) for name in ("text_config", "vision_config"))]
    settings = [part if isinstance(part, dict) else vars(part) for part in parts if part is not None]
    found = {name for part in settings for name, value in part.items() if value}
    if found.intersection(TILES):
        return (
            "it cuts images into tiles of their own scales, and focal normalisation (equation 6) needs one scale for "
            "the whole image"
        )
    if found.intersection(BIDIRECTIONAL) or any(part.get("is_causal") is False for part in settings):
        return "its image tokens attend to later ones, and depth must not depend on the text after an image"
    return ""
