"""VLMs that pin an old transformers: each runs in another process, with the Python of a separate environment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...loading import pick_device
from .arrow import fit_image, parse_metres, scale_points
from .dense import resize_maps, rgb_pixels
from .interface import DensePredictor, Example, PointAnswer, PointPredictor, PredictorError

logger = logging.getLogger(__name__)

SPATIAL_RGPT_INSTALL = (
    "SpatialRGPT pins transformers 4.37.2, so it runs in an environment of its own: clone "
    "https://github.com/AnjieCheng/SpatialRGPT, run its environment_setup.sh, and set SPATIAL_RGPT_PYTHON to that "
    "environment's python"
)
YOUTU_VL_INSTALL = (
    'Its remote code wants an older transformers: make an environment with pip install "transformers>=4.56,<=4.57.1" '
    "torch torchvision accelerate opencv-python-headless, pydensecrf and flash-attn, and set YOUTU_VL_PYTHON to its "
    "python"
)
_MASK = re.compile(r"<mask>(.*?)</mask>", re.DOTALL)
_RUN = re.compile(r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)")
_PATCH = 16


class Worker:
    """A process that runs `worker_script.py` and answers every line of JSON with one.

    Args:
        python: Python of the environment that has the model's packages.
        arguments: Arguments of the script.
        name: Name of the model, for messages.
        install: How to make the environment, for messages.

    Raises:
        PredictorError: The process cannot be started, or ends before the model is loaded.
    """

    def __init__(self, python: str | Path, arguments: Sequence[str], name: str, install: str):
        self.name, self.install = name, install
        command = [str(python), str(Path(__file__).with_name("worker_script.py")), *arguments]
        try:
            self._process: Any = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        except OSError as error:
            raise PredictorError(f"{python} cannot be started ({error}). {install}.") from error
        self._receive()

    def ask(self, question: dict[str, Any]) -> Any:
        """Return the answer to a question.

        Raises:
            PredictorError: The model failed, or the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):  # `_receive` says that it has ended
            print(json.dumps(question), file=self._process.stdin, flush=True)
        reply = self._receive()
        if "error" in reply:
            raise PredictorError(f"{self.name} failed: {reply['error']}")
        return reply["answer"]

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
            self._process.wait(timeout=30)
        self._process.stdout.close()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise PredictorError(
                f"The process of {self.name} ended with status {self._process.wait()}; what it printed says why. "
                f"{self.install}."
            )
        return json.loads(line)


class SpatialRGPT(PointPredictor):
    """SpatialRGPT (arXiv 2406.01584), asked about a region of the image instead of an arrow.

    The model was trained to talk about regions: `<mask> <depth>` in the question stand for the features of a region in
    the image and in a relative depth map. The region is a square around the point. The depth map is Depth Anything's,
    scaled to 0 to 255 and repeated in three channels, as in the model's evaluation. The benchmark's paper does not say
    how it asked SpatialRGPT: this is its documented interface (`llava/eval/eval_spatial.py`), with a question in the
    words of its training templates. It answers in any unit, which is converted.

    Its package runs in another process. It was not run with its weights here: the tests put a stand-in for the package,
    with the documented calls, in its place.

    Args:
        model: Hub name or folder.
        python: Python of the environment that has its package; the environment variable SPATIAL_RGPT_PYTHON by default.
        depth_model: Name or folder of the relative depth model; None to ask without `<depth>`.
        region_size: Side of the square, in pixels of the image as scaled by the protocol.
        question: The question, with `<image>`, `<mask>` and `<depth>` in their places.
        conversation: Name of its conversation template.
        device: Device of both models.
        max_new_tokens: Maximum length of the reply.

    Raises:
        PredictorError: There is no environment, or the model cannot be loaded in it.
        ValueError: `region_size` is below 1.
    """

    def __init__(
        self,
        model: str = "a8cheng/SpatialRGPT-VILA1.5-8B",
        *,
        python: str | Path | None = None,
        depth_model: str | None = "LiheYoung/depth-anything-large-hf",
        region_size: int = 20,
        question: str = "<image>\nHow far is <mask> <depth> from the camera?",
        conversation: str = "llama_3",
        device: str = "auto",
        max_new_tokens: int = 128,
    ):
        if region_size < 1:
            raise ValueError(f"`region_size` is in pixels and at least 1, got {region_size}.")
        given = python or os.environ.get("SPATIAL_RGPT_PYTHON")
        if not given:
            raise PredictorError(f"{SPATIAL_RGPT_INSTALL}.")
        self.region_size = region_size
        self.question = question if depth_model else question.replace("<mask> <depth>", "<mask>")
        self._depth: Any = None
        where = pick_device(device)
        if depth_model:
            from transformers import pipeline

            self._depth = pipeline("depth-estimation", model=depth_model, device=where)
        arguments = ["spatial_rgpt", model, conversation, str(where), str(max_new_tokens)]
        self._worker = Worker(given, arguments, "SpatialRGPT", SPATIAL_RGPT_INSTALL)

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """Return one answer for every point of every example, in their order.

        Raises:
            ValueError: A point lies outside its image.
            PredictorError: The other process failed.
        """
        answers = []
        with tempfile.TemporaryDirectory() as folder:
            for number, example in enumerate(examples):
                image = fit_image(example.image)
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
                texts = self._worker.ask(message) if len(pixels) else []
                answers.append([PointAnswer(parse_metres(text), text) for text in texts])
        return answers

    def close(self) -> None:
        """End the other process."""
        self._worker.close()

    def _boxes(self, pixels: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
        """Return the squares `(n, 4)`: left, top, right and bottom (both exclusive), cut at the border."""
        first = pixels - self.region_size // 2
        return np.concatenate([np.maximum(first, 0), np.minimum(first + self.region_size, size)], axis=1)

    def _depth_picture(self, image: Image.Image) -> Image.Image:
        """Return the relative depth at the image's size, scaled to 0 to 255, in three equal channels."""
        depth = self._depth(image)["predicted_depth"].float().cpu().numpy()
        if depth.shape != (image.height, image.width):
            raise PredictorError(f"The depth model gave a map of {depth.shape} for an image of {image.size}.")
        span = depth.max() - depth.min()
        grey = ((depth - depth.min()) / (span if span > 0 else 1) * 255).astype(np.uint8)
        return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


class YoutuVL(DensePredictor):
    """Youtu-VL-4B, which replies with a quantised depth for every patch of 16 x 16 pixels; upsampled bilinearly.

    From `demo/demo.py` of github.com/TencentCloudADP/youtu-vl: the prompt "Estimate the depth.", images resized to a
    focal length of 2000 pixels, the reply `<depth>...<mask>(level,count),...</mask>` in runs over the patches row by
    row, levels that are equally spaced in log depth. Its code publishes neither the range of depths nor the number of
    levels: both must be given here, and are part of what is measured. A level is
    `near * (far / near) ** (level / (levels - 1))` metres.

    Choosing this system runs the checkpoint's remote code, in another process with another transformers.

    Args:
        model: Hub name or folder.
        depth_range: The nearest and the farthest level, in metres.
        levels: Number of levels.
        python: Python of the environment that has its packages; the environment variable YOUTU_VL_PYTHON by default.
        device: `auto` is `cuda`, as in its demo.
        dtype: Name of a dtype of torch.
        attention: `flash_attention_2`, as in its demo, or `eager`.

    Raises:
        PredictorError: `depth_range`, `levels` or an environment are not given, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: str = "tencent/Youtu-VL-4B-Instruct",
        *,
        depth_range: tuple[float, float] | None = None,
        levels: int | None = None,
        python: str | Path | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
        attention: str = "flash_attention_2",
    ):
        if depth_range is None or levels is None:
            raise PredictorError(
                "Youtu-VL's code does not publish how it quantises depth: give `depth_range` (nearest and farthest "
                "metres) and `levels` (their number), from its report or its authors."
            )
        self.near, self.far, self.levels = (*(float(end) for end in depth_range), int(levels))
        if not (0 < self.near < self.far and self.levels > 1):
            raise PredictorError(f"No log scale: depth_range={depth_range}, levels={levels}.")
        given = python or os.environ.get("YOUTU_VL_PYTHON")
        if not given:
            raise PredictorError(f"Youtu-VL runs in an environment of its own. {YOUTU_VL_INSTALL}.")
        arguments = ["youtu_vl", model, "cuda" if device == "auto" else device, dtype, attention]
        self._worker = Worker(given, arguments, "Youtu-VL", YOUTU_VL_INSTALL)

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps, with one reply per image. A reply without a level for all patches gives a map of NaN.

        Raises:
            PredictorError: The other process failed, or a reply has a level that is not one of `levels`.
        """
        maps = []
        with tempfile.TemporaryDirectory() as folder:
            for number, example in enumerate(examples):
                picture = self._resized(example)
                file = Path(folder) / f"{number}.png"
                picture.save(file, compress_level=1)
                text = self._worker.ask({"image": str(file)})
                width, height = example.image.size
                levels = read_levels(text, picture.size)
                if levels is None:
                    logger.warning("Youtu-VL's reply to %s has no depth map: %.200s", example.id, text)
                    maps.append(np.full((height, width), np.nan, dtype=np.float32))
                    continue
                if levels.max() >= self.levels:
                    raise PredictorError(
                        f"Youtu-VL's reply to {example.id!r} has the level {levels.max():.0f}: there are more than the "
                        f"{self.levels} that were given as `levels`."
                    )
                smooth = resize_maps(torch.from_numpy(levels)[None], (height, width))[0].numpy()
                share = smooth / (self.levels - 1)
                maps.append((self.near * (self.far / self.near) ** share).astype(np.float32))
        return maps

    def close(self) -> None:
        """End the other process."""
        self._worker.close()

    @staticmethod
    def _resized(example: Example) -> Image.Image:
        picture = Image.fromarray(rgb_pixels(example))
        scale = 2000 / example.intrinsics[0]
        width, height = (max(_PATCH, _PATCH * round(side * scale / _PATCH)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)


def read_levels(reply: str, size: tuple[int, int]) -> NDArray[np.float32] | None:
    """Read the levels `(rows, columns)` from a reply to an image of `size` (width, height).

    Returns:
        One level per patch or per pixel; None if the reply has no mask, or one of another length.
    """
    mask = _MASK.search(reply)
    if mask is None:
        return None
    runs = np.array([(int(level), int(count)) for level, count in _RUN.findall(mask[1])], dtype=np.int64).reshape(-1, 2)
    width, height = size
    grids = {(height // side) * (width // side): (height // side, width // side) for side in (1, _PATCH)}
    shape = grids.get(int(runs[:, 1].sum()))
    return None if shape is None else np.repeat(runs[:, 0], runs[:, 1]).reshape(shape).astype(np.float32)
