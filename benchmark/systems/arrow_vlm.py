"""Any image-text-to-text model of transformers by the arrow protocol: Qwen3-VL, InternVL3.5, LLaVA and the like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
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

from ...loading import hub_keywords
from ...processing import DEPTH_SYSTEM_PROMPT
from .answers import ARROW_PROMPT, parse_metres
from .arrow import ARROW_LENGTH, LONGEST_EDGE, draw_arrow, fit_image, scale_points
from .dense import load_whole, pick_device, pick_dtype
from .interface import Example, PointAnswer, PointPredictor, Requirement

# Layouts that transformers does not know, by `model_type`, and what to do.
_NOT_NATIVE = {
    "cambrian_qwen": "Cambrian-S runs in its own code, https://github.com/cambrian-mllm/cambrian-s: put that behind an "
    "OpenAI-compatible server and take the `api` predictor",
    "internvl_chat": "Take the checkpoint whose name ends with -HF, as OpenGVLab/InternVL3_5-8B-HF",
    "llava_llama": "Convert it to the layout of llava-hf/llava-1.5-13b-hf",
}


@dataclass(frozen=True)
class Question:
    """An image with its arrow, and its camera (fx, fy, cx, cy in pixels of it)."""

    image: Image.Image
    intrinsics: tuple[float, float, float, float]


class ArrowVLM(PointPredictor):
    """
    Asks a model about one point at a time, in batches, with greedy decoding.

    The image comes before the text, in one turn of the user, without a system prompt but the one of the chat template.
    DepthVLM's own checkpoints are asked for words too, with the cameras and the system prompt that they were trained
    with; other models see the picture alone.

    Args:
        model: name on the Hub, or folder.
        device: `auto`, `cuda`, `cuda:1`, `mps` or `cpu`; `balanced`: spread over all GPUs, for models that do not fit
            on one (needs accelerate).
        dtype: `bfloat16`, `float16`, `float32`; `auto`: the checkpoint's own.
        batch_size: questions in a batch, of several images if they are given together.
        max_new_tokens: of the reply; thoughts count.
        prompt: the question; the paper's by default.
        arrow_length, longest_edge: in pixels, see `benchmark/systems/arrow.py`.
        trust_remote_code: run the code that comes with the checkpoint.
        **kwargs: of `from_pretrained`, such as `revision` or `token`; those of the Hub reach the processor too.

    Raises:
        ValueError: no such dtype, or a model that transformers has no image-text-to-text class for.
        OSError: there is no such model.
        PredictorError: its checkpoint lacks weights.
    """

    name = "arrow-vlm"
    requires = Requirement(packages=("torch", "transformers"), install='pip install "depthvlm[bench]"')

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
        self.model, self.prompt = model, prompt
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
            dtype="auto" if dtype == "auto" else pick_dtype(dtype),
            **where,
            **{**kwargs, **hub},
        ).eval()
        if not where:
            self.network.to(pick_device(device))

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """
        One answer for every point of every example, in their order.

        Raises:
            ValueError: a point outside its image, or an image too small for the arrow.
        """
        questions = (question for example in examples for question in self.questions(example))
        replies: list[str] = []
        while batch := list(islice(questions, self.batch_size)):
            replies += self._reply(batch)
        answers = iter([PointAnswer(parse_metres(text), text) for text in replies])
        return [[next(answers) for _ in example.points] for example in examples]

    def questions(self, example: Example) -> list[Question]:
        """The image scaled to the protocol's size, once with an arrow for each point."""
        image = fit_image(example.image, self.longest_edge)
        return self._questions(example, image, scale_points(example.points, example.image.size, image.size).tolist())

    def _questions(self, example: Example, image: Image.Image, pixels: Sequence[Sequence[int]]) -> list[Question]:
        (fx, fy, cx, cy), (width, height) = example.intrinsics, example.image.size
        across, along = image.width / width, image.height / height
        intrinsics = (fx * across, fy * along, cx * across, cy * along)
        return [Question(draw_arrow(image, (column, row), self.arrow_length), intrinsics) for column, row in pixels]

    @torch.inference_mode()
    def _reply(self, questions: Sequence[Question]) -> list[str]:
        """What the model says to a batch."""
        inputs = self.processor.apply_chat_template(
            [self._messages(question) for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **self._cameras(questions)},
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
        user = {"role": "user", "content": self._content(question)}
        if not self._takes_cameras:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]}, user]

    def _content(self, question: Question) -> list[dict[str, Any]]:
        text: dict[str, Any] = {"type": "text", "text": self.prompt}
        if self._is_pixtral:
            text["content"] = self.prompt  # the name that Pixtral's chat template looks for
        return [{"type": "image", "image": question.image}, text]

    def _cameras(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What DepthVLM's processor takes beside the images."""
        if not self._takes_cameras:
            return {}
        cameras = [question.intrinsics for question in questions]
        return {"intrinsics": [list(camera) for camera in cameras]}


def _load_config(model: str, *, trust_remote_code: bool, **hub: Any) -> Any:
    """The model's configuration, or an error that says what it needs."""
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no model folder {model}.")
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
    """The model's processor; without its part for videos where torchvision, which that part needs, is missing."""
    processor_class: Any = PROCESSOR_MAPPING.get(type(config), None)
    if is_torchvision_available() or processor_class is None:
        return AutoProcessor.from_pretrained(model, **hub)
    parts = processor_class.get_attributes()
    if "video_processor" not in parts:
        return AutoProcessor.from_pretrained(model, **hub)
    images_alone = classmethod(lambda _: [part for part in parts if part != "video_processor"])
    reduced: Any = type(processor_class.__name__, (processor_class,), {"get_attributes": images_alone})
    return reduced.from_pretrained(model, **hub)
