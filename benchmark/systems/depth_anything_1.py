"""Depth Anything V1's metric models, from a checkout of their repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .dense import PredictorError, import_optional, pick_device, stacked_pixels, to_maps, whole_checkpoint
from .interface import DensePredictor, Example

ROOT_VARIABLE = "DEPTH_ANYTHING_ROOT"
INSTALL = (
    "git clone https://github.com/LiheYoung/Depth-Anything, put its checkpoints where its README says, and set "
    f"{ROOT_VARIABLE} to that folder"
)


class DepthAnything1(DensePredictor):
    """
    Depth Anything (V1), fine-tuned for metres as a ZoeDepth: no checkpoint of it is in the format of transformers.

    As `metric_depth/evaluate.py` of github.com/LiheYoung/Depth-Anything does it: `build_model(get_config("zoedepth",
    "eval", dataset))` with the weights as `pretrained_resource`, called with RGB in 0..1, `(N, 3, H, W)`, once as it is
    and once mirrored; the mean of both `metric_depth` is brought to the image's size, bilinearly, corners on corners.
    The camera is not used. Choosing this row runs the code of that checkout and loads its weights from pickles.

    Args:
        scenes: "indoor" (trained on NYUv2) or "outdoor" (KITTI).
        root: the checkout; by default the environment variable DEPTH_ANYTHING_ROOT.
        device: `auto`, `cuda`, `cuda:1` or `cpu`.

    Raises:
        PredictorError: there is no checkout, or its checkpoint is missing.
        ImportError: what its code imports is not installed.
    """

    name = "DepthAnything"

    def __init__(
        self,
        scenes: Literal["indoor", "outdoor"] = "indoor",
        *,
        root: str | Path | None = None,
        device: str = "auto",
    ):
        if scenes not in ("indoor", "outdoor"):
            raise PredictorError(f'`scenes` must be "indoor" or "outdoor", got {scenes!r}.')
        given = root or os.environ.get(ROOT_VARIABLE)
        if not given:
            raise PredictorError(f"Depth Anything V1 has no package: {INSTALL}.")
        code = Path(given).expanduser().resolve() / "metric_depth"
        weights = code / "checkpoints" / f"depth_anything_metric_depth_{scenes}.pt"
        if not weights.is_file():
            raise PredictorError(f"There is no checkpoint {weights}: {INSTALL}.")
        if str(code) not in sys.path:
            sys.path.insert(0, str(code))
        self.dataset = "nyu" if scenes == "indoor" else "kitti"
        with chdir(code):  # it looks for its encoder in ../checkpoints
            builder = import_optional("zoedepth.models.builder", INSTALL, "Depth Anything V1")
            config = import_optional("zoedepth.utils.config", INSTALL, "Depth Anything V1").get_config(
                "zoedepth", "eval", self.dataset, pretrained_resource=f"local::{weights}"
            )
            self.device = pick_device(device)
            with whole_checkpoint(str(weights)) as check:
                self.model: Any = check(builder.build_model(config)).to(self.device).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Two calls of the network for all examples."""
        pixels = torch.from_numpy(stacked_pixels(examples)).to(self.device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            plain = self.model(pixels, dataset=self.dataset)["metric_depth"]
            mirrored = self.model(pixels.flip(3), dataset=self.dataset)["metric_depth"].flip(3)
            depth = (plain + mirrored).float() / 2
            depth = F.interpolate(depth, size=pixels.shape[-2:], mode="bilinear", align_corners=True)[:, 0]
        return to_maps(depth)
