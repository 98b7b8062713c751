"""VLMs of transformers by the arrow protocol: Qwen3-VL, InternVL3.5, LLaVA and others, and DepthLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
)
from transformers.utils import is_torchvision_available

from ...checkpoint import resolve_model_path
from ...loading import hub_keywords, pick_device, pick_dtype
from ...processing import DEPTH_SYSTEM_PROMPT
from .arrow import (
    ARROW_LENGTH,
    ARROW_PROMPT,
    LONGEST_EDGE,
    draw_arrow,
    fit_image,
    parse_metres,
    resize_image,
    scale_points,
)
from .dense import load_whole
from .interface import Example, PointAnswer, PointPredictor

# Layouts that transformers does not know, by `model_type`, with a remedy.
_NOT_NATIVE = {
    "cambrian_qwen": "Cambrian-S runs in its own code, https://github.com/cambrian-mllm/cambrian-s: put that behind an "
    "OpenAI-compatible server and take the `api` predictor",
    "internvl_chat": "Take the checkpoint whose name ends with -HF, as OpenGVLab/InternVL3_5-8B-HF",
    "llava_llama": "Convert it to the layout of llava-hf/llava-1.5-13b-hf",
}


@dataclass(frozen=True)
class Question:
    """An image with its arrow, and its camera: fx, fy, cx, cy in pixels of that image."""

    image: Image.Image
    intrinsics: tuple[float, float, float, float]


class ArrowVLM(PointPredictor):
    """A VLM that is asked about one point at a time, in batches, with greedy decoding.

    The image comes before the text, in one turn of the user, without a system prompt except that of the chat template.
    DepthVLM's own checkpoints can be asked too; they get the cameras and the system prompt of their training. Other
    models see the picture alone.

    Args:
        model: Name on the Hub, or folder.
        device: `auto`, `cuda`, `cuda:1`, `mps` or `cpu`; `balanced` spreads a model that does not fit on one GPU over
            all of them (needs accelerate).
        dtype: `bfloat16`, `float16`, `float32`; `auto` for the checkpoint's own.
        batch_size: Number of questions in a batch; they may be about several images.
        max_new_tokens: Maximum length of the reply, thoughts included.
        prompt: The question; the paper's by default.
        arrow_length: Length of the arrow in pixels.
        longest_edge: Size in pixels to which larger images are scaled; None to keep them.
        trust_remote_code: Run the code that comes with the checkpoint.
        **kwargs: Keyword arguments of `from_pretrained`, such as `revision` or `token`; those of the Hub reach the
            processor too.

    Raises:
        ValueError: There is no such dtype, or transformers has no image-text-to-text class for the model.
        OSError: There is no such model.
        PredictorError: Its checkpoint lacks weights.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 1024,
        prompt: str = ARROW_PROMPT,
        arrow_length: int = ARROW_LENGTH,
        longest_edge: int | None = LONGEST_EDGE,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        model = resolve_model_path(model)
        self.prompt = prompt
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.arrow_length, self.longest_edge = arrow_length, longest_edge
        hub: Any = {"trust_remote_code": trust_remote_code, **hub_keywords(model, kwargs)}
        config = _load_config(model, **hub)
        self.processor = _load_processor(model, config, **hub)
        self._is_pixtral = getattr(getattr(config, "vision_config", None), "model_type", "") == "pixtral"
        self._takes_cameras = hasattr(self.processor.image_processor, "canonical_focal_length")
        self.processor.tokenizer.padding_side = "left"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        where: Any = {"device_map": "auto"} if device == "balanced" else {}
        self.network = load_whole(
            AutoModelForImageTextToText,
            model,
            config=config,
            dtype=pick_dtype(dtype),
            **where,
            **{**kwargs, **hub},
        ).eval()
        if not where:
            self.network.to(pick_device(device))

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """Return one answer for every point of every example, in their order.

        Raises:
            ValueError: A point lies outside its image, or an image is too small for the arrow.
        """
        questions = (question for example in examples for question in self.questions(example))
        replies: list[str] = []
        while batch := list(islice(questions, self.batch_size)):
            replies += self._reply(batch)
        answers = iter([PointAnswer(parse_metres(text), text) for text in replies])
        return [[next(answers) for _ in example.points] for example in examples]

    def questions(self, example: Example) -> list[Question]:
        """Return the image at the protocol's size, with the arrow of one point each."""
        image = fit_image(example.image, self.longest_edge)
        return self._questions(example, image, scale_points(example.points, example.image.size, image.size).tolist())

    def _questions(self, example: Example, image: Image.Image, pixels: Sequence[Sequence[int]]) -> list[Question]:
        (fx, fy, cx, cy), (width, height) = example.intrinsics, example.image.size
        across, along = image.width / width, image.height / height
        intrinsics = (fx * across, fy * along, cx * across, cy * along)
        return [Question(draw_arrow(image, (column, row), self.arrow_length), intrinsics) for column, row in pixels]

    @torch.inference_mode()
    def _reply(self, questions: Sequence[Question]) -> list[str]:
        """Return the model's replies to a batch."""
        cameras = {"intrinsics": [list(question.intrinsics) for question in questions]} if self._takes_cameras else {}
        inputs = self.processor.apply_chat_template(
            [self._messages(question) for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **cameras},
        ).to(self.network.device, dtype=self.network.dtype)
        tokens = self.network.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self.max_new_tokens,
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _messages(self, question: Question) -> list[dict[str, Any]]:
        text: dict[str, Any] = {"type": "text", "text": self.prompt}
        if self._is_pixtral:
            text["content"] = self.prompt  # the name that Pixtral's chat template looks for
        user = {"role": "user", "content": [{"type": "image", "image": question.image}, text]}
        if not self._takes_cameras:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]}, user]


class DepthLM(ArrowVLM):
    """DepthLM (arXiv 2509.25413): images are resized to one focal length, then a short arrow is drawn.

    As in its released evaluation the resizing is isotropic, by `focal_length / fx` (bicubic, sizes rounded down),
    without the limit of 1024 pixels that other VLMs have; the arrow is 5 pixels long, and the pixel of a point (x, y)
    is `int(x * scale), int(y * scale)`. That evaluation also remaps images with `fx != fy`, which is left out: it has
    no distortion coefficients, and so next to no effect. Points near a border, which it replaces by other points, get
    the arrow from another side.

    Args:
        model: Name on the Hub, or folder.
        focal_length: Pixels. DepthLM's released evaluation sets 750 for the released Pixtral-12B checkpoint (`eval.py`
            of facebookresearch/DepthLM_Official); the paper's unified focal length, for Qwen2.5-VL models, is 1000.
        arrow_length: Length of the arrow in pixels.
        max_new_tokens: Maximum length of the reply, thoughts included.
        **kwargs: See [`ArrowVLM`].

    Raises:
        ValueError: `focal_length` is not positive.
    """

    def __init__(
        self,
        model: str = "facebook/DepthLM",
        *,
        focal_length: float = 750.0,
        arrow_length: int = 5,
        max_new_tokens: int = 4096,
        **kwargs: Any,
    ):
        if not focal_length > 0:
            raise ValueError(f"`focal_length` is in pixels and positive, got {focal_length}.")
        super().__init__(model, arrow_length=arrow_length, longest_edge=None, max_new_tokens=max_new_tokens, **kwargs)
        self.focal_length = focal_length

    def questions(self, example: Example) -> list[Question]:
        """Return the image at the common focal length, with the arrow of one point each."""
        scale = self.focal_length / example.intrinsics[0]
        size = (max(1, int(example.image.width * scale)), max(1, int(example.image.height * scale)))
        pixels = [
            [min(max(int(place * scale), 0), side - 1) for place, side in zip(point, size, strict=True)]
            for point in example.points.tolist()
        ]
        return self._questions(example, resize_image(example.image, size), pixels)


def _load_config(model: str, *, trust_remote_code: bool, **hub: Any) -> Any:
    """Return the model's configuration, or raise an error that says what the model needs."""
    model_type = PreTrainedConfig.get_config_dict(model, **hub)[0].get("model_type")
    if model_type in _NOT_NATIVE and not trust_remote_code:
        raise ValueError(
            f"{model} has the layout {model_type!r}, which transformers does not know. {_NOT_NATIVE[model_type]}. If "
            "the checkpoint brings its own code, and you trust it, pass `trust_remote_code=True`."
        )
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **hub)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trust_remote_code:
        raise ValueError(f"{model} is a {model_type!r} model, and transformers has no image-text-to-text class for it.")
    return config


def _load_processor(model: str, config: Any, **hub: Any) -> Any:
    """Return the model's processor, without its part for videos if torchvision, which that part needs, is missing."""
    processor_class: Any = PROCESSOR_MAPPING.get(type(config), None)
    parts = [] if is_torchvision_available() or processor_class is None else processor_class.get_attributes()
    if "video_processor" not in parts:
        return AutoProcessor.from_pretrained(model, **hub)
    images_alone = classmethod(lambda _: [part for part in parts if part != "video_processor"])
    reduced: Any = type(processor_class.__name__, (processor_class,), {"get_attributes": images_alone})
    return reduced.from_pretrained(model, **hub)
