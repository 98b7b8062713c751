# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""The processors: a backbone's text and chat template, DepthVLM's images, cameras and depth maps."""

import inspect
import re
from typing import Any, ClassVar

import transformers
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import is_torchvision_available

from .image_processing_depthvlm import (
    SETTINGS_KEYWORDS,
    DepthVLMBatchFeature,
    DepthVLMImageProcessor,
    check_keywords,
    hub_keywords,
    names_keywords,
    read_json,
)
from .images_depthvlm import image_list

# The prompts and the reply that the published models were trained with (section 3 of the paper).
DEPTH_PROMPT = (
    "Given this image, estimate the metric depth (in meters, rounded to two decimal places) for every pixel of the "
    "image."
)
DEPTH_REPLY = "OK, I will estimate the depth map of this image."
DEPTH_SYSTEM_PROMPT = "You are a helpful assistant."

VIDEO_SETTINGS_FILE = "video_preprocessor_config.json"

IMAGE_KEYWORDS = frozenset(DepthVLMImageProcessor.valid_kwargs.__annotations__)
CALL_KEYWORDS = IMAGE_KEYWORDS.union(
    *(getattr(kind, "__annotations__", ()) for kind in ProcessingKwargs.__annotations__.values()),
    ProcessingKwargs.__annotations__,
    ["images", "text", "videos", "audio", "min_frames", "max_frames", "sanitize_control_tokens", "common_kwargs"],
    ["return_metadata", "return_mm_token_type_ids", "return_text_replacement_offsets"],
)


AnyProcessor: Any = object  # stands for the class after the mixin, for type checkers


class DepthProcessorMixin(AnyProcessor):
    """Images with their cameras and depth maps: a mixin before a backbone's own processor.

    Args:
        image_processor: A [`DepthVLMImageProcessor`].
        tokenizer: The backbone's tokenizer.
        video_processor: The backbone's video processor or its settings; the backbone's defaults without it. On a
            machine without torchvision the settings are kept for the next save.
        chat_template: A Jinja template; the tokenizer's by default.

    Raises:
        TypeError: `image_processor` is not DepthVLM's.
    """

    model_types: ClassVar[tuple[str, ...]] = ()  # model types of the supported plain checkpoints
    video_processor_type: ClassVar[str]
    boundary_tokens: ClassVar[tuple[str, ...]] = ("<|vision_start|>", "<|vision_end|>")  # around images and videos
    skip_tensor_conversion: Any = (*ProcessorMixin.skip_tensor_conversion, "depth_labels")
    _auto_class: Any = "AutoProcessor"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: Any = None,
    ) -> None:
        if not hasattr(image_processor, "canonical_focal_length"):
            # Not `isinstance`: remote code may have been imported twice.
            raise TypeError(
                f"{type(self).__name__} needs a DepthVLMImageProcessor, got {type(image_processor).__name__}. "
                "`DepthVLMProcessor.from_pretrained` makes one from the checkpoint of a backbone."
            )
        chat_template = getattr(tokenizer, "chat_template", None) if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        settings = video_processor if isinstance(video_processor, dict) else {}
        self._video_settings = {**settings, "video_processor_type": self.video_processor_type}
        if video_processor is not None and not isinstance(video_processor, dict):
            self.video_processor = video_processor
        elif is_torchvision_available():
            self.video_processor = getattr(transformers, self.video_processor_type)(**self._video_settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the processor of a checkpoint, in the class for its backbone's prompts.

        Args:
            pretrained_model_name_or_path: Folder or name on the Hub: of a DepthVLM checkpoint, or of a plain one.
            *args: As in transformers.
            **kwargs: As in transformers, and settings of the image processor.
        """
        own = cls._class_for(pretrained_model_name_or_path, hub_keywords(kwargs))
        if own is not cls:
            return own.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _class_for(cls, model: Any, hub: dict[str, Any]) -> Any:
        """Return the class named by a saved processor, else that of the checkpoint's model, else this one."""
        saved = read_json(model, "processor_config.json", hub).get("processor_class")
        if saved == cls.__name__:
            return cls
        model_type = str(read_json(model, "config.json", hub).get("model_type")).removeprefix("depthvlm_")
        for one in DepthProcessorMixin.__subclasses__():
            if one.__name__ == saved or model_type in one.model_types:
                return cls if issubclass(cls, one) else one
        return cls

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the required parts; the video processor, which needs torchvision, is handled separately."""
        return ["image_processor", "tokenizer"]

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        *,
        focal_length: Any = None,
        fov: Any = None,
        intrinsics: Any = None,
        depth_maps: Any = None,
        depth_scale: Any = None,
        **kwargs: Any,
    ) -> DepthVLMBatchFeature:
        """Prepare a batch for `model(**inputs)` and `model.generate(**inputs)`.

        Args:
            images: See [`DepthVLMImageProcessor.preprocess`], or a list for every text.
            text: One prompt or many, with one image token (`<|image_pad|>` in Qwen's) for every image.
            videos: As in the backbone; needs torchvision.
            focal_length: The camera, by this, `fov` or `intrinsics`: one for all images, or one, or None, for each: see
                [`resolve_cameras`]. Without them, EXIF data are used, or an assumed field of view with a warning.
            fov: See there.
            intrinsics: See there.
            depth_maps: True depth, one, or None, for each image: see [`read_depth`].
            depth_scale: Raw value of the depth maps divided by metres, likewise.
            **kwargs: Those of the backbone's processor and [`DepthVLMImageProcessorKwargs`], such as `image_names`.

        Returns:
            The tokenizer's and the image processor's outputs, see [`DepthVLMImageProcessor.preprocess`].

        Raises:
            ImportError: A video is given on a machine without torchvision.
            TypeError: A keyword is not known.
            ValueError: The input is unusable; the message says what to do.
        """
        check_keywords(kwargs, CALL_KEYWORDS, "The processor")
        if videos is not None and not hasattr(self, "video_processor"):
            raise ImportError('Videos need torchvision, which is not installed: `pip install "depthvlm[video]"`.')
        images = None if _is_empty(images) else image_list(images)
        cameras = {"focal_length": focal_length, "fov": fov, "intrinsics": intrinsics}
        cameras = {name: value for name, value in cameras.items() if value is not None}
        if images is None:
            given = [name for name, value in {**cameras, "depth_maps": depth_maps}.items() if not _is_empty(value)]
            if given:
                raise ValueError(
                    f"{', '.join(f'`{name}`' for name in given)} was passed, but no image. Pass `images` too."
                )
            cameras, depth_maps = {}, None
        features = super().__call__(images=images, text=text, videos=videos, **cameras, **kwargs)
        if depth_maps is not None:
            # After the images: depth maps may be large, and the parent copies its keyword arguments.
            features["depth_labels"] = self.image_processor.depth_labels(
                depth_maps, depth_scale, features["cameras"], features["image_grid_thw"], kwargs.get("image_names")
            )
        return DepthVLMBatchFeature(features.data, skip_tensor_conversion=features.skip_tensor_conversion)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: Any = None, **kwargs: Any
    ) -> Any:
        """Apply the template; a keyword that neither it, nor the processor, nor transformers knows is a TypeError."""
        template = str(chat_template or self.chat_template)
        known = CALL_KEYWORDS.union(inspect.signature(super().apply_chat_template).parameters)
        given = [name for name in kwargs if not re.search(rf"\b{re.escape(name)}\b", template)]
        check_keywords(given, known, "apply_chat_template")
        check_keywords(kwargs.get("processor_kwargs") or (), CALL_KEYWORDS, "The processor")
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    @names_keywords
    def post_process_depth_estimation(self, outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
        """Return depth in metres at the size of each image, with its camera: see [`post_process_depth`]."""
        return self.image_processor.post_process_depth_estimation(outputs, target_sizes)

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids of the tokens for and around images and videos, which are never trained."""
        around = self.tokenizer.convert_tokens_to_ids(list(self.boundary_tokens))
        missing = {None, self.tokenizer.unk_token_id}  # of a tokenizer that lacks some
        return sorted({self.image_token_id, self.video_token_id, *around} - missing)

    @property
    def depth_prompt_ids(self) -> list[int]:
        """Tokens that the chat template writes before an image, for a model's `config.depth_prompt_ids`."""
        turns: list[Any] = [
            {"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]},
            {"role": "user", "content": [{"type": "image"}]},
        ]
        before, _, _ = self.apply_chat_template(turns, tokenize=False).partition(self.image_token)
        return self.tokenizer(before, add_special_tokens=False).input_ids

    @property
    def model_input_names(self) -> list[str]:
        """Names of all inputs of the model."""
        return [*super().model_input_names, *getattr(getattr(self, "video_processor", None), "model_input_names", ())]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, including the video processor's even if torchvision is missing."""
        output = super().to_dict()
        output.setdefault("video_processor", dict(self._video_settings))
        return output

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the settings, including the video processor's, which a backbone keeps in a separate file."""
        hub = hub_keywords(kwargs)
        settings, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "video_processor" not in settings:
            video = read_json(pretrained_model_name_or_path, VIDEO_SETTINGS_FILE, hub)
            settings |= {"video_processor": video} if video else {}
        return settings, kwargs

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts, and convert the backbone's image processor to DepthVLM's."""
        check_keywords(kwargs, IMAGE_KEYWORDS | SETTINGS_KEYWORDS, "The processor")
        image_processor, tokenizer = super()._get_arguments_from_pretrained(
            pretrained_model_name_or_path, processor_dict, **kwargs
        )
        if not hasattr(image_processor, "canonical_focal_length"):
            settings = {name: value for name, value in kwargs.items() if name in IMAGE_KEYWORDS}
            image_processor = DepthVLMImageProcessor.from_pretrained(
                pretrained_model_name_or_path, **hub_keywords(kwargs), **settings
            )
        return [image_processor, tokenizer]

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type: str, *args: Any, **kwargs: Any) -> Any:
        """Load the tokenizer without image settings, which it would otherwise repeat in every call and save.

        It pads on the left by default, as `generate` needs; training collators set their own side.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in IMAGE_KEYWORDS}
        kwargs.setdefault("padding_side", "left")
        return super()._load_tokenizer_from_pretrained(sub_processor_type, *args, **kwargs)


class DepthVLMProcessor(DepthProcessorMixin, Qwen3VLProcessor):
    """Processor of text, images with their cameras, depth maps, and videos (with torchvision) for DepthVLM.

    Made for the prompts of Qwen3-VL and Qwen3.5. `from_pretrained` returns the class that the checkpoint's backbone
    needs. The arguments are those of [`DepthProcessorMixin`].
    """

    model_types = ("depthvlm", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    video_processor_type = "Qwen3VLVideoProcessor"


class DepthVLMQwen2_5_VLProcessor(DepthProcessorMixin, Qwen2_5_VLProcessor):
    """[`DepthVLMProcessor`] for the prompts of Qwen2.5-VL."""

    model_types = ("qwen2_5_vl",)
    video_processor_type = "Qwen2VLVideoProcessor"


class DepthVLMGlm46VProcessor(DepthProcessorMixin, Glm46VProcessor):
    """[`DepthVLMProcessor`] for the prompts of GLM-4.6V and GLM-4.1V."""

    model_types = ("glm46v", "glm4v")
    video_processor_type = "Glm46VVideoProcessor"
    boundary_tokens = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def _is_empty(value: Any) -> bool:
    """Return whether a value is empty, like the image lists of a batch of conversations without images."""
    return value is None or (isinstance(value, (list, tuple)) and all(_is_empty(item) for item in value))
