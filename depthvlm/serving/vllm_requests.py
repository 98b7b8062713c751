"""Requests for depth to vLLM's `POST /pooling`: an image and its camera in, metres out.

    {"model": ..., "task": "plugin", "data": {"image": BASE64, "fov": 60, "format": "npy"}}

The answer's `data` is, for every image, `depth` (base64 of a float32 `.npy` in metres, or of a 16-bit PNG), `format`,
`shape` (height, width: the picture's own), for `png16` the `depth_scale` (metres = value / depth_scale), `camera` (fx,
fy, cx, cy in pixels, width, height), its `source`, and `focal_scale`.
"""

import base64
import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, field_validator
from vllm.config import VllmConfig
from vllm.inputs import PromptType
from vllm.outputs import PoolingRequestOutput
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.renderers import BaseRenderer

from ..export import write_png16
from ..processing import Camera, DepthVLMProcessor, post_process_depth
from ..processing.images_depthvlm import open_image

MOST_WAITING = 4096  # requests whose cameras are kept; disconnected clients never get an answer


class DepthRequest(BaseModel):
    """One image with its camera, or many, with one camera for all, or a list with one, or null, for each."""

    model_config = ConfigDict(extra="forbid")

    image: str | list[str]
    focal_length: float | list[float | None] | None = None
    fov: float | list[float | None] | None = None
    intrinsics: Any = None
    format: Literal["npy", "png16"] = "npy"

    @field_validator("image")
    @classmethod
    def _is_base64(cls, value: str | list[str]) -> list[str]:
        images = [value] if isinstance(value, str) else value
        for image in images:
            if "://" in image[:16]:
                raise ValueError("`image` must be base64, or a data: URL: this server fetches nothing.")
        return [image.partition(",")[2] if image.startswith("data:") else image for image in images]


class DepthRequests(IOProcessor[DepthRequest, list[dict[str, Any]]]):
    """Processor of depth requests: reads them with DepthVLM's processor and resizes depth to the picture's size."""

    def __init__(self, vllm_config: VllmConfig, renderer: BaseRenderer):
        super().__init__(vllm_config, renderer)
        model = vllm_config.model_config
        self.processor = DepthVLMProcessor.from_pretrained(model.model, revision=model.revision or "main")
        image, start = self.processor.image_token, self.processor.vision_start_token
        prompt = self.processor.decode(self.processor.depth_prompt_ids).removesuffix(start)
        self.prompt = f"{prompt}{start}{image}{self.processor.vision_end_token}"
        self.waiting: OrderedDict[str, tuple[DepthRequest, list[tuple[Camera, float, tuple[int, int]]]]] = OrderedDict()

    def parse_data(self, data: object) -> DepthRequest:
        """Check a request.

        Raises:
            ValueError: It is not a valid request; the message says why.
        """
        return DepthRequest.model_validate(data)

    def pre_process(
        self, prompt: DepthRequest, request_id: str | None = None, **kwargs: Any
    ) -> PromptType | Sequence[PromptType]:
        """Return one prompt per image, resized to the canonical focal length."""
        from ..processing.camera_depthvlm import cameras_per_image

        images = [open_image(base64.b64decode(image, validate=True)) for image in prompt.image]
        given = cameras_per_image(len(images), prompt.intrinsics, prompt.focal_length, prompt.fov)
        prompts: list[Any] = []
        seen = []
        for index, image in enumerate(images):
            camera = {name: values[index] for name, values in given.items() if values[index] is not None}
            picture, found, focal_scale = self.processor.image_processor.canonical_image(image, **camera)
            seen.append((found, focal_scale, picture.size[::-1]))
            data = {"prompt": self.prompt, "multi_modal_data": {"image": picture}}
            prompts.append(data | {"mm_processor_kwargs": {"do_resize": False, "fov": 60.0}})
        self.waiting[request_id or ""] = prompt, seen
        while len(self.waiting) > MOST_WAITING:
            self.waiting.popitem(last=False)
        return prompts

    def post_process(
        self, model_output: Sequence[PoolingRequestOutput], request_id: str | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return the depth of every image in metres, at its own size."""
        request, seen = self.waiting.pop(request_id or "")
        answers = []
        for output, (camera, focal_scale, size) in zip(model_output, seen, strict=True):
            depth = torch.as_tensor(output.outputs.data).float().reshape(size) * focal_scale
            rows = torch.tensor([camera.to_row()])
            [found] = post_process_depth(SimpleNamespace(predicted_depth=[depth], cameras=rows))
            answers.append(_answer(found["predicted_depth"].numpy(), camera, focal_scale, request.format))
        return answers


def _answer(depth: np.ndarray, camera: Camera, focal_scale: float, kind: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"format": kind, "shape": list(depth.shape), "unit": "metres", "focal_scale": focal_scale}
    if kind == "npy":
        stream = io.BytesIO()
        np.save(stream, depth, allow_pickle=False)
        content = stream.getvalue()
    else:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "depth.png"
            answer |= write_png16(file, depth)._asdict()
            content = file.read_bytes()
    numbers = {name: getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")}
    return answer | {"camera": numbers, "source": camera.source, "depth": base64.b64encode(content).decode()}
