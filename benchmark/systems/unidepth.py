"""UniDepth v1 and v2, through their own package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .dense import PredictorError, camera_matrix, import_optional, pick_device, rgb_pixels, whole_checkpoint
from .interface import DensePredictor, Example

INSTALL = 'pip install "unidepth @ git+https://github.com/lpiccinelli-eth/UniDepth"'

V1_INSTALL = "an xformers that still has NystromAttention; none of those for torch 2.6 and later does"


class UniDepth(DensePredictor):
    """
    UniDepthV1 and UniDepthV2, told the camera.

    As the README and `scripts/demo.py` of github.com/lpiccinelli-eth/UniDepth say: `model.infer(rgb, intrinsics)` with
    uint8 `(3, H, W)` and a 3x3 matrix in pixels of that image; `"depth"` of its answer is z-depth in metres at that
    size. Its rays go through pixel centres at 0.5, 1.5, ... (`unidepth/utils/coordinate.py`, `geometric.py`), as here.
    One image at a time: V2 takes the rays of the first camera for a whole batch.

    Args:
        model: Hub name, such as `lpiccinelli/unidepth-v2-vitl14`.
        version: "v1" or "v2".
        device: `auto`, `cuda`, `cuda:1` or `cpu`.
        resolution_level: of V2, 0 (fast) to 9 (most pixels); None: its own bounds.

    Raises:
        ImportError: the package is not installed; or, for V1, no xformers with NystromAttention.
        PredictorError: its checkpoint lacks weights.
    """

    name = "UniDepth"

    def __init__(
        self,
        model: str = "lpiccinelli/unidepth-v2-vitl14",
        *,
        version: Literal["v1", "v2"] = "v2",
        device: str = "auto",
        resolution_level: int | None = None,
    ):
        if version not in ("v1", "v2"):
            raise PredictorError(f'UniDepth has the versions "v1" and "v2", got {version!r}.')
        models = import_optional("unidepth.models", INSTALL, "UniDepth")
        if version == "v1":  # its package puts a class that cannot be called in the place of one that is not there
            attention = import_optional("xformers.components.attention", V1_INSTALL, "UniDepthV1")
            if not hasattr(attention, "NystromAttention"):
                raise ImportError(
                    f"UniDepthV1 needs NystromAttention of xformers, which this version lacks. {V1_INSTALL}"
                )
        with whole_checkpoint(model) as check:
            network: Any = check((models.UniDepthV1 if version == "v1" else models.UniDepthV2).from_pretrained(model))
        if resolution_level is not None:
            if version == "v1":
                raise PredictorError("UniDepthV1 has one resolution: leave out `resolution_level`.")
            network.resolution_level = resolution_level
        self.model: Any = network.to(pick_device(device)).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """One call of `infer` for each example."""
        maps = []
        for example in examples:
            pixels = torch.from_numpy(rgb_pixels(example)).permute(2, 0, 1).contiguous()
            camera = torch.from_numpy(camera_matrix(example.intrinsics))
            depth = self.model.infer(pixels, camera)["depth"]
            maps.append(depth.float().cpu().numpy().reshape(pixels.shape[1:]))
        return maps
