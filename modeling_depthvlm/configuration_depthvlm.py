# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Configurations of DepthVLM: the vision-language model and the depth head."""

import os
from typing import Any, ClassVar, cast

import transformers
from transformers.utils import logging

# First and last minor version tested. Patch releases of the last one count as tested.
TESTED_TRANSFORMERS = ((5, 18), (5, 23))


def version_note(installed: str) -> str | None:
    """Return a note about this version of transformers ("5.23.0"), or None for a tested one."""
    first, last = TESTED_TRANSFORMERS
    major, minor = installed.split(".")[:2]
    if first <= (int(major), int(minor)) <= last:
        return None
    oldest, newest = (".".join(map(str, version)) for version in TESTED_TRANSFORMERS)
    newer = (int(major), int(minor)) > last
    advice = f"If something fails, try transformers {newest}." if newer else f"Update it to {oldest} or newer."
    return (
        f"DepthVLM's code was tested with transformers {oldest} to {newest}, and {installed} is installed, which is "
        f"{'newer' if newer else 'older'}. {advice}"
    )


if note := version_note(transformers.__version__):
    logging.get_logger(__name__).warning_once(note)

# After the warning: other versions may lack these names.
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from .backbones_depthvlm import Backbone, family_of, reason_against
from .checkpoints_depthvlm import HUB_KWARGS, adopt_config_dict

HEAD_TYPES = ("dpt_light", "dpt", "mlp", "dpt_sharp")
MLP_FUSIONS = ("concat", "concat_norm", "sum")
FEATURE_SOURCES = ("vit+llm", "vit", "llm", "llm_final")
PROJECTORS = ("shared", "own")

# "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>" in Qwen3-VL's
# vocabulary: the text before the image in the prompt that the published checkpoints were trained with.
QWEN3_VL_VISION_START_ID = 151652
QWEN3_VL_DEPTH_PROMPT_IDS = (
    *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198),
    *(151644, 872, 198, QWEN3_VL_VISION_START_ID),
)

QWEN3_VL = Backbone("qwen3_vl", "Qwen3-VL: 2B, 4B, 8B, 32B", has_deepstack=True)


@strict
class DepthHeadConfig(PreTrainedConfig):
    r"""Configuration of the depth head (paper, section 3.1 and tables 4 and 5).

    Args:
        head_type (`str`, *optional*, defaults to `"dpt_light"`):
            `"dpt_light"`, the paper's head, which only upsamples (strides 4, 8, 16, 32); `"dpt"`, the original DPT
            pyramid, which upsamples by 4 and 2, keeps and downsamples by 2; `"mlp"`, two linear layers per token;
            `"dpt_sharp"`, not in the paper: `"dpt_light"` that also reads the ViT's states before the merger and the
            picture (backbones with patches of 16 pixels only).
        feature_source (`str`, *optional*, defaults to `"vit+llm"`):
            Equation 2: `"vit+llm"`, three levels of the ViT and the final LLM state; `"vit"`, these levels and the
            final ViT output; `"llm"`, three LLM layers at a quarter, a half and three quarters of the depth and the
            final state; `"llm_final"`, only the final state (MLP head only).
        features (`int`, *optional*, defaults to 256):
            Channels of the fusion blocks (DPT heads).
        out_channels (`list[int]`, *optional*, defaults to `[256, 512, 1024, 1024]`):
            Channels of the four feature maps after projection (DPT heads); `"dpt_sharp"` has `features` in all.
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the hidden layer of the MLP head.
        mlp_fusion (`str`, *optional*, defaults to `"concat"`):
            How the MLP head takes four maps: `"concat"`, each under the shared LayerNorm, then side by side;
            `"concat_norm"`, side by side under one LayerNorm over all; `"sum"`, their sum under a LayerNorm. The last
            two are modes of the published implementation.
        vision_layers (`list[int]`, *optional*):
            Three ViT layers, counted from 0, whose outputs are maps 1 to 3. With DeepStack they must be among its
            levels and default to the first, the middle and the last; without it, they default to the layers at a
            quarter, a half and three quarters of the ViT.
        projector (`str`, *optional*, defaults to `"shared"`):
            Without DeepStack: `"shared"`, the backbone's own projector brings the three levels to the width of the
            LLM; `"own"`, each level has its own projector in the depth head, initialised as a copy of the backbone's.
        predict_fov (`bool`, *optional*, defaults to `False`):
            Add a camera head, which estimates the focal length of images whose camera is not known.
    """

    model_type = "depthvlm_head"
    base_config_key = "depth_config"

    head_type: str = "dpt_light"
    feature_source: str = "vit+llm"
    features: int = 256
    out_channels: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    hidden_size: int = 1024
    mlp_fusion: str = "concat"
    vision_layers: list[int] | tuple[int, ...] | None = None
    projector: str = "shared"
    predict_fov: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_type not in HEAD_TYPES:
            raise ValueError(f"`head_type` is {self.head_type!r}, expected one of {', '.join(HEAD_TYPES)}.")
        if self.feature_source not in FEATURE_SOURCES:
            raise ValueError(
                f"`feature_source` is {self.feature_source!r}, expected one of {', '.join(FEATURE_SOURCES)}."
            )
        if self.feature_source == "llm_final" and self.head_type != "mlp":
            raise ValueError(
                f"`feature_source='llm_final'` is one feature map, and head_type={self.head_type!r} fuses four. "
                "Use `head_type='mlp'`, or another feature source."
            )
        if self.mlp_fusion not in MLP_FUSIONS:
            raise ValueError(f"`mlp_fusion` is {self.mlp_fusion!r}, expected one of {', '.join(MLP_FUSIONS)}.")
        if self.projector not in PROJECTORS:
            raise ValueError(f"`projector` is {self.projector!r}, expected one of {', '.join(PROJECTORS)}.")
        if len(self.out_channels) != 4:
            raise ValueError(f"`out_channels` needs four widths, one per feature map, got {self.out_channels}.")
        if min(*self.out_channels, self.features, self.hidden_size) < 1 or self.features % 2:
            raise ValueError(
                f"Head widths must be positive and `features` even, got features={self.features}, "
                f"out_channels={list(self.out_channels)}, hidden_size={self.hidden_size}."
            )
        super().__post_init__(**kwargs)


@strict
class DepthVLMConfigMixin(PreTrainedConfig):
    r"""Settings of the depth head and the loss, added to the configuration of any backbone.

    Args:
        depth_config (`DepthHeadConfig` or `dict`, *optional*):
            The depth head.
        depth_loss_weight (`float`, *optional*, defaults to 1.0):
            alpha of equation 5.
        silog_lambda (`float`, *optional*, defaults to 0.5):
            lambda of equation 4.
        camera_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the camera head's loss, which is added to equation 5.
        canonical_focal_length (`float`, *optional*, defaults to 1000.0):
            f_c of equation 6, in pixels: the focal length that images are resampled to before the model sees them.
        depth_prompt_ids (`list[int]`, *optional*):
            Token ids that stand before an image's own tokens when only pixels are given (the classes for
            `AutoModelForDepthEstimation`). By default the chat prefix of Qwen3-VL where its vocabulary is used, else
            the token before an image alone.
    """

    backbone: ClassVar[Backbone]

    depth_config: dict | PreTrainedConfig | None = None
    depth_loss_weight: float = 1.0
    silog_lambda: float = 0.5
    camera_loss_weight: float = 1.0
    canonical_focal_length: float = 1000.0
    depth_prompt_ids: list[int] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # transformers renamed `sub_configs` to `sub_configs_defaults` after 5.18: set both names.
        parents: Any = super()
        cls.sub_configs = {**parents.sub_configs, "depth_config": DepthHeadConfig}  # type: ignore[assignment]
        cls.sub_configs_defaults = {  # type: ignore[assignment]
            **getattr(parents, "sub_configs_defaults", parents.sub_configs),
            "depth_config": DepthHeadConfig,  # type: ignore[dict-item]
        }
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.depth_config, PreTrainedConfig):
            self.depth_config = DepthHeadConfig(**(self.depth_config or {}))
        super().__post_init__(**kwargs)
        if reason := reason_against(vars(self)):
            raise ValueError(f"DepthVLM does not support this configuration of {self.backbone.model_type}: {reason}.")
        if self.reads_vision:
            self.backbone.check_layers(self.vision_layers, self.vision)
        if self.head.head_type == "dpt_sharp":
            self.backbone.check_patches(self.vision)
        if self.head.projector == "own" and self.backbone.has_deepstack:
            raise ValueError(
                f"`depth_config={{'projector': 'own'}}` is for backbones without DeepStack: {self.backbone.model_type} "
                "has a projector for every level already. Leave it out."
            )
        if not 0.0 <= self.silog_lambda <= 1.0:
            raise ValueError(f"`silog_lambda` is {self.silog_lambda}, expected 0 to 1: the loss is unbounded beyond.")
        if not 0.0 <= self.camera_loss_weight < float("inf"):
            raise ValueError(f"`camera_loss_weight` is {self.camera_loss_weight}, expected a finite number >= 0.")
        if not self.canonical_focal_length > 0:
            raise ValueError(f"`canonical_focal_length` is {self.canonical_focal_length}, expected pixels above 0.")
        if self.depth_prompt_ids is None:
            start = getattr(self, self.backbone.image_start)
            self.depth_prompt_ids = list(QWEN3_VL_DEPTH_PROMPT_IDS) if start == QWEN3_VL_VISION_START_ID else [start]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Read the configuration of a checkpoint, in the class of its family.

        Raises:
            ValueError: The checkpoint's family is not supported.
        """
        where = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)
        if not stored or stored.get("model_type") == cls.model_type:  # code from the Hub may know no families
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        family = family_of(stored, str(pretrained_model_name_or_path))
        if issubclass(cls, family.config):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return family.config.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a configuration, including those of published DepthVLM checkpoints and plain backbones.

        Raises:
            ValueError: The checkpoint's family is not supported.
        """
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict and config_dict.get("model_type") != cls.model_type:
            family = family_of(config_dict, str(pretrained_model_name_or_path))
            if config_dict["model_type"] != family.config.model_type:
                config_dict = adopt_config_dict(config_dict, str(pretrained_model_name_or_path), hub_kwargs)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration, merging `depth_config=` with the checkpoint's before validation."""
        given = kwargs.pop("depth_config", None)
        if isinstance(given, dict):
            stored = config_dict.get("depth_config") or {}
            given = {**(stored.to_dict() if isinstance(stored, PreTrainedConfig) else stored), **given}
        if given is not None:
            config_dict = {**config_dict, "depth_config": given}
        return super().from_dict(config_dict, **kwargs)

    @property
    def vision(self) -> Any:
        """The built `vision_config`."""
        return self.vision_config  # type: ignore[attr-defined]

    @property
    def text(self) -> Any:
        """The built `text_config`."""
        return self.text_config  # type: ignore[attr-defined]

    @property
    def head(self) -> DepthHeadConfig:
        """The built `depth_config`."""
        return cast(DepthHeadConfig, self.depth_config)

    @property
    def reads_vision(self) -> bool:
        """True if the head reads levels of the vision tower."""
        return self.head.feature_source in ("vit+llm", "vit")

    @property
    def vision_layers(self) -> list[int]:
        """The three layers of the vision tower whose outputs are maps 1 to 3, in that order."""
        return list(self.head.vision_layers or self.backbone.default_layers(self.vision))

    @property
    def input_stride(self) -> int:
        """Pixels of the model's input per visual token and axis: patch size times merge size, 32 in Qwen3-VL."""
        return self.vision.patch_size * self.vision.spatial_merge_size


@strict
class DepthVLMConfig(DepthVLMConfigMixin, Qwen3VLConfig):
    r"""Configuration of [`DepthVLMForConditionalGeneration`]: the settings of Qwen3-VL and of the depth head.

    `from_pretrained` also reads configurations of the other families, and returns their classes.

    Args:
        depth_config (`DepthHeadConfig` or `dict`, *optional*):
            This and the next five: see [`DepthVLMConfigMixin`].
        depth_loss_weight (`float`, *optional*, defaults to 1.0):
            See there.
        silog_lambda (`float`, *optional*, defaults to 0.5):
            See there.
        camera_loss_weight (`float`, *optional*, defaults to 1.0):
            See there.
        canonical_focal_length (`float`, *optional*, defaults to 1000.0):
            See there.
        depth_prompt_ids (`list[int]`, *optional*):
            See there.
    """

    model_type = "depthvlm"
    backbone: ClassVar[Backbone] = QWEN3_VL


__all__ = ["DepthHeadConfig", "DepthVLMConfig", "DepthVLMConfigMixin"]
