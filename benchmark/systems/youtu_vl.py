"""Youtu-VL's own dense depth, from an environment of its own."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .dense import PredictorError, resize_maps, rgb_pixels
from .interface import DensePredictor, Example
from .worker_process import WorkerProcess

logger = logging.getLogger(__name__)

PYTHON_VARIABLE = "YOUTU_VL_PYTHON"
INSTALL = (
    'Its remote code wants an older transformers: make an environment with pip install "transformers>=4.56,<=4.57.1" '
    f"torch torchvision accelerate opencv-python-headless, pydensecrf and flash-attn, and set {PYTHON_VARIABLE} to its "
    "python"
)
FOCAL_LENGTH = 2000.0
"""Pixels, to which images are resized."""
PATCH = 16
"""Pixels on a side, for each of which it says one depth."""
_MASK = re.compile(r"<mask>(.*?)</mask>", re.DOTALL)
_RUN = re.compile(r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)")


class YoutuVL(DensePredictor):
    """
    Youtu-VL-4B: one reply an image, with a quantised depth for each patch of 16 x 16 pixels, upsampled bilinearly.

    From `demo/demo.py` of github.com/TencentCloudADP/youtu-vl: the prompt "Estimate the depth.", images resized to a
    focal length of 2000 pixels, the reply `<depth>...<mask>(level,count),...</mask>` in runs over the patches row by
    row, levels that are equally spaced in log depth. Its code does not publish between which depths, nor how many: both
    must be given here, and are part of what was measured. A level is `near * (far / near) ** (level / (levels - 1))` m.

    Choosing this row runs the checkpoint's remote code, in another process with another transformers (see
    `youtu_vl_worker.py`).

    Args:
        model: Hub name or folder.
        depth_range: nearest and farthest metres of the levels.
        levels: how many there are.
        python: of the environment that has its packages; by default the environment variable YOUTU_VL_PYTHON.
        device, dtype, attention: `cuda`, `bfloat16`, `flash_attention_2`, as in its demo; or `eager`.

    Raises:
        PredictorError: without `depth_range`, `levels` or an environment, or the model cannot be loaded in it; in
            `predict`, when the other process fails, or says a level that is not one of `levels`.
    """

    name = "Youtu-VL-4B"

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
        given = python or os.environ.get(PYTHON_VARIABLE)
        if not given:
            raise PredictorError(f"Youtu-VL runs in an environment of its own. {INSTALL}.")
        self._worker = WorkerProcess(
            given,
            Path(__file__).with_name("youtu_vl_worker.py"),
            [model, "cuda" if device == "auto" else device, dtype, attention],
            name="Youtu-VL",
            install=INSTALL,
        )

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """One reply for each example. A reply without a map for all patches is logged, and is a map of NaN."""
        maps = []
        with tempfile.TemporaryDirectory() as folder:
            for number, example in enumerate(examples):
                picture = self._resized(example)
                file = Path(folder) / f"{number}.png"
                picture.save(file, compress_level=1)
                text = self._worker.ask({"image": str(file)})["text"]
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
        scale = FOCAL_LENGTH / example.intrinsics[0]
        width, height = (max(PATCH, PATCH * round(side * scale / PATCH)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)


def read_levels(reply: str, size: tuple[int, int]) -> NDArray[np.float32] | None:
    """
    The levels `(rows, columns)` of a reply, for an image of `size` (width, height): one for each patch, or one for each
    pixel. None where the reply has no mask, or one of another length.
    """
    mask = _MASK.search(reply)
    if mask is None:
        return None
    runs = np.array([(int(level), int(count)) for level, count in _RUN.findall(mask[1])], dtype=np.int64).reshape(-1, 2)
    width, height = size
    grids = {(height // side) * (width // side): (height // side, width // side) for side in (1, PATCH)}
    shape = grids.get(int(runs[:, 1].sum()))
    return None if shape is None else np.repeat(runs[:, 0], runs[:, 1]).reshape(shape).astype(np.float32)
