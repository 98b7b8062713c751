"""Requests for depth to vLLM: an image and its camera in, metres out.

    POST /pooling   {"model": ..., "task": "plugin", "data": {"image": BASE64, "fov": 60, "format": "npy"}}
    POST /v1/depth  {"image": BASE64, "fov": 60, "format": "npy"}

The answer (in `/pooling`'s, its `data`) is, for every image, `depth` (base64 of a float32 `.npy` in metres, or of a
16-bit PNG), `format`, `shape` (height, width: the picture's own), for `png16` the `depth_scale` (metres = value /
depth_scale), `camera` (fx, fy, cx, cy in pixels, width, height), its `source`, and `focal_scale`.
"""

import asyncio
import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, field_validator
from vllm.config import VllmConfig
from vllm.inputs import PromptType
from vllm.outputs import PoolingRequestOutput
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.renderers import BaseRenderer

from ..export import write_png16
from ..processing import Camera, DepthVLMProcessor, post_process_depth
from ..processing.camera_depthvlm import cameras_per_image
from ..processing.images_depthvlm import open_image

# A picture at the size of the model's input, its camera at the size as given, and its focal scale.
CanonicalImage = tuple[Image.Image, Camera, float]


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
    """Processor of depth requests: reads them with DepthVLM's processor and resizes depth to the picture's size.

    vLLM calls `pre_process` in the server's event loop, so images are decoded and resized in threads of their own,
    and vLLM's renderer waits for them in its thread, where `post_process` runs too.
    """

    def __init__(self, vllm_config: VllmConfig, renderer: BaseRenderer):
        super().__init__(vllm_config, renderer)
        model = vllm_config.model_config
        self.processor = DepthVLMProcessor.from_pretrained(model.model, revision=model.revision or "main")
        image, start = self.processor.image_token, self.processor.vision_start_token
        prompt = self.processor.decode(self.processor.depth_prompt_ids).removesuffix(start)
        self.prompt = f"{prompt}{start}{image}{self.processor.vision_end_token}"
        self.threads = ThreadPoolExecutor(thread_name_prefix="depthvlm-images")
        # Each request from its arrival to its answer. Only the event loop adds and removes, so no lock is needed.
        self.waiting: dict[str | None, tuple[DepthRequest, list[Future[CanonicalImage]]]] = {}

    def parse_data(self, data: object) -> DepthRequest:
        """Check a request.

        Raises:
            ValueError: It is not a valid request; the message says why.
        """
        return DepthRequest.model_validate(data)

    def pre_process(
        self, prompt: DepthRequest, request_id: str | None = None, **kwargs: Any
    ) -> PromptType | Sequence[PromptType]:
        """Return one prompt per image; each has a future as its image, which `parse_mm_data` of the model waits for.

        Raises:
            ValueError: A camera is not valid, or a request of this id is not yet answered.
        """
        if request_id is not None and request_id in self.waiting:
            raise ValueError(f"A request of the id {request_id} is not yet answered: send another `X-Request-Id`.")
        given = cameras_per_image(len(prompt.image), prompt.intrinsics, prompt.focal_length, prompt.fov)
        images = []
        for index, image in enumerate(prompt.image):
            camera = {name: values[index] for name, values in given.items() if values[index] is not None}
            images.append(self.threads.submit(self._read, image, image_names=[f"Image {index}"], **camera))
        self.waiting[request_id] = prompt, images
        if request_id is not None:  # None is a call of the offline class `LLM`, which has no event loop
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self._forget(request_id))  # answered, failed, or its client has gone
        options = {"mm_processor_kwargs": {"do_resize": False, "fov": 60.0}}
        prompts: Any = [{"prompt": self.prompt, "multi_modal_data": {"image": image}} | options for image in images]
        return prompts

    def post_process(
        self, model_output: Sequence[PoolingRequestOutput], request_id: str | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return the depth of every image in metres, at its own size."""
        request, images = self.waiting[request_id]
        answers = []
        for output, image in zip(model_output, images, strict=True):
            picture, camera, focal_scale = image.result()
            depth = torch.as_tensor(output.outputs.data).float().reshape(picture.size[::-1]) * focal_scale
            rows = torch.tensor([camera.to_row()])
            [found] = post_process_depth(SimpleNamespace(predicted_depth=[depth], cameras=rows))
            answers.append(_answer(found["predicted_depth"].numpy(), camera, focal_scale, request.format))
        return answers

    def _read(self, image: str, **camera: Any) -> CanonicalImage:
        opened = open_image(base64.b64decode(image, validate=True))
        return self.processor.image_processor.canonical_image(opened, **camera)

    def _forget(self, request_id: str) -> None:
        _, images = self.waiting.pop(request_id)
        for image in images:
            image.cancel()


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
