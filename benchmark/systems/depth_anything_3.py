"""Depth Anything 3, through its own package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .dense import PredictorError, import_optional, pick_device, resize_maps, rgb_pixels, whole_checkpoint
from .interface import DensePredictor, Example

INSTALL = 'pip install "depthvlm[depth-anything-3]"'
UNIT_FOCAL_LENGTH = 300.0
"""Pixels: what the metric model's answer is metres for."""


class DepthAnything3(DensePredictor):
    """
    The metric model, or the nested one, which has it inside.

    From the README, `docs/API.md` and `utils/alignment.py` of github.com/ByteDance-Seed/Depth-Anything-3:
    `inference([image])` scales the image to 504 pixels on its longer side, then each side to a multiple of 14, and
    answers at that size. The metric model answers for a focal length of 300 pixels: metres are `answer * f / 300`, with
    f the mean of fx and fy in pixels of the size it worked at, not of the image. The nested model (`DA3NESTED-...`)
    answers in metres; it goes by the focal length that it finds itself, as the package takes a known one only together
    with poses. Images of one call are views of one scene, so each gets a call of its own.

    Args:
        model: Hub name with "DA3METRIC" or "DA3NESTED" in it, or a folder together with `nested`.
        nested: whether its answer is in metres already; by default, what its name says.
        device: `auto`, `cuda`, `cuda:1` or `cpu`.
        process_res: pixels of the longer side at which it works.

    Raises:
        PredictorError: neither the name nor `nested` says which of the two it is: the others are relative.
        ImportError: the package is not installed.
    """

    name = "DepthAnythingV3"

    def __init__(
        self,
        model: str = "depth-anything/DA3METRIC-LARGE",
        *,
        nested: bool | None = None,
        device: str = "auto",
        process_res: int = 504,
    ):
        if nested is None:
            kinds = {"DA3METRIC": False, "DA3NESTED": True}
            nested = next((kinds[kind] for kind in kinds if kind in model.upper()), None)
        if nested is None:
            raise PredictorError(
                f"{model} is neither a DA3METRIC nor a DA3NESTED checkpoint: the others estimate relative depth. For a "
                "copy under another name, say nested=True or nested=False."
            )
        package = import_optional("depth_anything_3.api", INSTALL, "Depth Anything 3")
        self.nested = nested
        self.process_res = process_res
        with whole_checkpoint(model) as check:
            network = check(package.DepthAnything3.from_pretrained(model))
        self.model: Any = network.to(pick_device(device)).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """One call of `inference` for each example."""
        maps = []
        for example in examples:
            pixels = rgb_pixels(example)
            height, width = pixels.shape[:2]
            answer = self.model.inference([pixels], process_res=self.process_res).depth
            depth = torch.from_numpy(np.asarray(answer, dtype=np.float32)).reshape(1, *answer.shape[-2:])
            if not self.nested:
                rows, columns = depth.shape[-2:]
                fx, fy = example.intrinsics[0] * columns / width, example.intrinsics[1] * rows / height
                depth = depth * ((fx + fy) / 2 / UNIT_FOCAL_LENGTH)
            maps.append(resize_maps(depth, (height, width))[0].numpy())
        return maps
