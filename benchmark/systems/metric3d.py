"""Metric3D v1 and v2, from torch.hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .dense import PredictorError, import_optional, pick_device, resize_maps, stacked_pixels, to_maps, whole_checkpoint
from .interface import DensePredictor, Example

REPOSITORY = "yvanyin/metric3d"
CANONICAL_FOCAL_LENGTH = 1000.0
"""Pixels."""
INPUT_SIZES = {"vit": (616, 1064), "convnext": (544, 1216)}
"""Height and width of the network's input, by backbone."""
DEEPEST = 300.0
"""Metres at which its predictions are cut off."""
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


class Metric3D(DensePredictor):
    """
    Metric3D (ConvNeXt) and Metric3Dv2 (ViT), with their canonical camera.

    As in `hubconf.py` and `mono/utils/do_test.py` of github.com/YvanYin/Metric3D: the image is scaled to fit the
    network's input and padded around with the mean colour; the network answers for a camera of 1000 pixels, so that
    metres are `answer * f / 1000`, with `f` the mean of fx and fy times that scale; the padding is cut off, the map
    brought to the image's size, and clamped to 0..300 m.

    Choosing this row runs the code of that repository on this machine, and loads its weights from a pickle, both
    through `torch.hub.load`. Nothing of it happens before.

    Args:
        model: entry point of the repository: `metric3d_convnext_tiny`, `metric3d_convnext_large` (v1),
            `metric3d_vit_small`, `metric3d_vit_large`, `metric3d_vit_giant2` (v2).
        device: the networks ask for CUDA in their own code.
        repository: for `torch.hub.load`, such as `yvanyin/metric3d:main`; or a folder that holds a checkout.

    Raises:
        PredictorError: no such backbone, or its checkpoint lacks weights.
        ImportError: what its code imports is missing.
    """

    name = "Metric3D"

    def __init__(self, model: str = "metric3d_vit_large", *, device: str = "auto", repository: str = REPOSITORY):
        backbone = next((kind for kind in INPUT_SIZES if f"_{kind}_" in model), None)
        if backbone is None:
            raise PredictorError(f"Metric3D has no entry point {model!r}: give one of its vit or convnext models.")
        for package in ("mmcv", "mmengine", "timm", "torchvision"):
            import_optional(package, 'pip install "depthvlm[metric3d]"', "Metric3D")
        self.input_size = INPUT_SIZES[backbone]
        self.device = pick_device(device)
        local = {"source": "local"} if repository.startswith(("/", ".", "~")) else {"trust_repo": True}
        with whole_checkpoint(model) as check:
            network = check(torch.hub.load(repository, model, pretrain=True, **local))
        self.model: Any = network.to(self.device).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """One call of the network for all examples."""
        pixels = torch.from_numpy(stacked_pixels(examples)).to(self.device)
        height, width = pixels.shape[1:3]
        scale = min(self.input_size[0] / height, self.input_size[1] / width)
        inputs, (top, left, rows, columns) = self._inputs(pixels, scale)
        with torch.inference_mode():
            answer = self.model.inference({"input": inputs})[0].float()
            answer = answer.reshape(len(examples), *self.input_size)[:, top : top + rows, left : left + columns]
            focal = torch.tensor([(fx + fy) / 2 * scale for fx, fy, _, _ in (e.intrinsics for e in examples)])
            factor = (focal / CANONICAL_FOCAL_LENGTH).to(answer).view(-1, 1, 1)
            depth = (resize_maps(answer, (height, width)) * factor).clamp(0, DEEPEST)
        return to_maps(depth)

    def _inputs(self, pixels: Tensor, scale: float) -> tuple[Tensor, tuple[int, int, int, int]]:
        """The normalised input `(N, 3, *input_size)`, and the picture in it: top, left, rows, columns."""
        rows, columns = int(pixels.shape[1] * scale), int(pixels.shape[2] * scale)
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (_MEAN, _STD))
        picture = F.interpolate(
            pixels.permute(0, 3, 1, 2).float(), size=(rows, columns), mode="bilinear", align_corners=False
        ).round()
        high, wide = self.input_size
        top, left = (high - rows) // 2, (wide - columns) // 2
        inputs = torch.zeros(len(pixels), 3, high, wide, device=pixels.device)  # the mean colour, normalised
        inputs[:, :, top : top + rows, left : left + columns] = (picture - mean) / std
        return inputs, (top, left, rows, columns)
