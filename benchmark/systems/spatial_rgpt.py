"""SpatialRGPT through its own prompt: a region of the image in the place of an arrow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .answers import parse_metres
from .arrow import LONGEST_EDGE, fit_image, scale_points
from .dense import PredictorError, pick_device
from .interface import Example, PointAnswer, PointPredictor, Requirement
from .worker_process import WorkerProcess

PYTHON_VARIABLE = "SPATIAL_RGPT_PYTHON"
INSTALL = (
    "SpatialRGPT pins transformers 4.37.2, so it runs in an environment of its own: clone "
    "https://github.com/AnjieCheng/SpatialRGPT, run its environment_setup.sh, and set "
    f"{PYTHON_VARIABLE} to that environment's python"
)
QUESTION = "<image>\nHow far is <mask> <depth> from the camera?"


class SpatialRGPT(PointPredictor):
    """
    SpatialRGPT (arXiv 2406.01584), which was trained to speak of regions: `<mask> <depth>` in the question stand for
    the features of a region in the image and in a relative depth map, and no arrow is drawn.

    The region is a square around the point. The depth map is Depth Anything's, scaled to 0 to 255 and repeated in three
    channels, as in its evaluation. How the paper of this benchmark asked it is not published: this is its documented
    interface (`llava/eval/eval_spatial.py`), with a question in the words of its training templates. It answers in any
    unit, which is converted.

    Its package runs in another process (see `spatial_rgpt_worker.py`). It was not run with its weights here: the tests
    put a stand-in for the package, with the documented calls, in its place.

    Args:
        model: Hub name or folder.
        python: of the environment that has its package; by default the environment variable SPATIAL_RGPT_PYTHON.
        depth_model: name or folder of the relative depth model; None: ask without `<depth>`.
        region_size: side of the square in pixels of the image as scaled by the protocol.
        question: with `<image>`, `<mask>` and `<depth>` where they belong.
        conversation: name of its conversation template.
        device: of both models.
        max_new_tokens: of the reply.

    Raises:
        PredictorError: without an environment, or the model cannot be loaded in it; in `predict`, if it fails.
    """

    name = "SpatialRGPT-8B"
    requires = Requirement(environment=(PYTHON_VARIABLE,), gpu_gib=20.0, install=INSTALL)

    def __init__(
        self,
        model: str = "a8cheng/SpatialRGPT-VILA1.5-8B",
        *,
        python: str | Path | None = None,
        depth_model: str | None = "LiheYoung/depth-anything-large-hf",
        region_size: int = 20,
        question: str = QUESTION,
        conversation: str = "llama_3",
        device: str = "auto",
        max_new_tokens: int = 128,
    ):
        if region_size < 1:
            raise ValueError(f"`region_size` is in pixels and at least 1, got {region_size}.")
        given = python or os.environ.get(PYTHON_VARIABLE)
        if not given:
            raise PredictorError(f"{INSTALL}.")
        self.region_size = region_size
        self.question = question if depth_model else question.replace("<mask> <depth>", "<mask>")
        self._depth: Any = None
        where = pick_device(device)
        if depth_model:
            from transformers import pipeline

            self._depth = pipeline("depth-estimation", model=depth_model, device=where)
        self._worker = WorkerProcess(
            given,
            Path(__file__).with_name("spatial_rgpt_worker.py"),
            [model, conversation, str(where), str(max_new_tokens)],
            name="SpatialRGPT",
            install=INSTALL,
        )

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """
        One answer for every point of every example, in their order.

        Raises:
            ValueError: a point outside its image.
            PredictorError: the other process failed.
        """
        answers = []
        with tempfile.TemporaryDirectory() as folder:
            for number, example in enumerate(examples):
                image = fit_image(example.image, LONGEST_EDGE)
                pixels = scale_points(example.points, example.image.size, image.size)
                message: dict[str, Any] = {
                    "image": str(Path(folder) / f"{number}.png"),
                    "depth": None,
                    "boxes": self._boxes(pixels, image.size).tolist(),
                    "question": self.question,
                }
                image.save(message["image"], compress_level=1)
                if self._depth is not None:
                    message["depth"] = str(Path(folder) / f"{number}-depth.png")
                    self._depth_picture(image).save(message["depth"], compress_level=1)
                texts = self._worker.ask(message)["texts"] if len(pixels) else []
                answers.append([PointAnswer(parse_metres(text), text) for text in texts])
        return answers

    def close(self) -> None:
        """End the other process."""
        self._worker.close()

    def _boxes(self, pixels: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
        """`(n, 4)` left, top, right and bottom (both exclusive) of the squares, cut at the border."""
        first = pixels - self.region_size // 2
        return np.concatenate([np.maximum(first, 0), np.minimum(first + self.region_size, size)], axis=1)

    def _depth_picture(self, image: Image.Image) -> Image.Image:
        """Relative depth at the image's size, its least 0 and its greatest 255, in three equal channels."""
        depth = self._depth(image)["predicted_depth"].float().cpu().numpy()
        if depth.shape != (image.height, image.width):
            raise PredictorError(f"The depth model gave a map of {depth.shape} for an image of {image.size}.")
        span = depth.max() - depth.min()
        grey = ((depth - depth.min()) / (span if span > 0 else 1) * 255).astype(np.uint8)
        return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
