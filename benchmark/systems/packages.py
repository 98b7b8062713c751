"""Metric depth models that run through their own code: Metric3D, UniDepth, Depth Anything 1 and 3."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...loading import pick_device
from .dense import resize_maps, rgb_pixels, stacked_pixels, to_maps, whole_checkpoint
from .interface import DensePredictor, Example, PredictorError

METRIC3D_INPUT_SIZES = {"vit": (616, 1064), "convnext": (544, 1216)}
"""Height and width of the network's input in pixels, by backbone."""
METRIC3D_COLOURS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of the pixels."""
DEPTH_ANYTHING_1_INSTALL = (
    "git clone https://github.com/LiheYoung/Depth-Anything, put its checkpoints where its README says, and set "
    "DEPTH_ANYTHING_ROOT to that folder"
)


class Metric3D(DensePredictor):
    """Metric3D (ConvNeXt) and Metric3Dv2 (ViT) from torch.hub, with their canonical camera.

    As in `hubconf.py` and `mono/utils/do_test.py` of github.com/YvanYin/Metric3D: the image is scaled to fit the
    network's input and padded with the mean colour. The network answers for a camera of 1000 pixels, so that the depth
    in metres is `answer * f / 1000`, with `f` the mean of fx and fy times that scale. The padding is cut off, the map
    is resized to the image, and depth is clamped to 0..300 m.

    Choosing this system runs the code of that repository on this machine and loads its weights from a pickle, both
    through `torch.hub.load`. Nothing of this happens before.

    Args:
        model: Entry point of the repository: `metric3d_convnext_tiny`, `metric3d_convnext_large` (v1),
            `metric3d_vit_small`, `metric3d_vit_large`, `metric3d_vit_giant2` (v2).
        device: `auto`, `cuda`, `cuda:1` or `cpu`; the code of the networks itself asks for CUDA.
        repository: Argument of `torch.hub.load`, such as `yvanyin/metric3d:main`, or a folder with a checkout.

    Raises:
        PredictorError: There is no such backbone, or its checkpoint lacks weights.
        ImportError: A package that its code imports is missing.
    """

    def __init__(
        self, model: str = "metric3d_vit_large", *, device: str = "auto", repository: str = "yvanyin/metric3d"
    ):
        backbone = next((kind for kind in METRIC3D_INPUT_SIZES if f"_{kind}_" in model), None)
        if backbone is None:
            raise PredictorError(f"Metric3D has no entry point {model!r}: give one of its vit or convnext models.")
        for package in ("mmcv", "mmengine", "timm", "torchvision"):
            import_module(package)  # before the code is downloaded
        self.input_size = METRIC3D_INPUT_SIZES[backbone]
        self.device = pick_device(device)
        local = {"source": "local"} if repository.startswith(("/", ".", "~")) else {"trust_repo": True}
        with whole_checkpoint(model) as check:
            network = check(torch.hub.load(repository, model, pretrain=True, **local))
        self.model: Any = network.to(self.device).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps of images of one size, with one call of the network."""
        pixels = torch.from_numpy(stacked_pixels(examples)).to(self.device)
        height, width = pixels.shape[1:3]
        scale = min(self.input_size[0] / height, self.input_size[1] / width)
        inputs, (top, left, rows, columns) = self._inputs(pixels, scale)
        with torch.inference_mode():
            answer = self.model.inference({"input": inputs})[0].float()
            answer = answer.reshape(len(examples), *self.input_size)[:, top : top + rows, left : left + columns]
            focal = torch.tensor([(fx + fy) / 2 * scale for fx, fy, _, _ in (e.intrinsics for e in examples)])
            factor = (focal / 1000).to(answer).view(-1, 1, 1)
            depth = (resize_maps(answer, (height, width)) * factor).clamp(0, 300)
        return to_maps(depth)

    def _inputs(self, pixels: Tensor, scale: float) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Return the normalised input `(N, 3, *input_size)`, and the picture in it: top, left, rows, columns."""
        rows, columns = int(pixels.shape[1] * scale), int(pixels.shape[2] * scale)
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in METRIC3D_COLOURS)
        picture = F.interpolate(
            pixels.permute(0, 3, 1, 2).float(), size=(rows, columns), mode="bilinear", align_corners=False
        ).round()
        high, wide = self.input_size
        top, left = (high - rows) // 2, (wide - columns) // 2
        inputs = torch.zeros(len(pixels), 3, high, wide, device=pixels.device)  # the mean colour, normalised
        inputs[:, :, top : top + rows, left : left + columns] = (picture - mean) / std
        return inputs, (top, left, rows, columns)


class UniDepth(DensePredictor):
    """UniDepthV1 and UniDepthV2 through their own package, with the true camera.

    As in the README and `scripts/demo.py` of github.com/lpiccinelli-eth/UniDepth: `model.infer(rgb, intrinsics)` takes
    uint8 `(3, H, W)` and a 3x3 matrix in pixels of that image, and `"depth"` of its answer is z-depth in metres at that
    size. Its rays go through pixel centres at 0.5, 1.5, ... (`unidepth/utils/coordinate.py`, `geometric.py`), as here.
    Images are predicted one at a time, because V2 takes the rays of the first camera for a whole batch.

    Args:
        model: Hub name, such as `lpiccinelli/unidepth-v2-vitl14`.
        version: "v1" or "v2".
        device: `auto`, `cuda`, `cuda:1` or `cpu`.
        resolution_level: For V2, 0 (fast) to 9 (most pixels); None for its own bounds.

    Raises:
        ImportError: The package is not installed; or, for V1, no xformers with NystromAttention.
        PredictorError: Its checkpoint lacks weights, or V1 is given a `resolution_level`.
    """

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
        models = import_module("unidepth.models")
        if version == "v1":  # if NystromAttention is missing, its package puts a class in its place that fails later
            attention = import_module("xformers.components.attention")
            if not hasattr(attention, "NystromAttention"):
                raise ImportError("UniDepthV1 needs NystromAttention of xformers, which this version lacks")
        with whole_checkpoint(model) as check:
            network: Any = check((models.UniDepthV1 if version == "v1" else models.UniDepthV2).from_pretrained(model))
        if resolution_level is not None:
            if version == "v1":
                raise PredictorError("UniDepthV1 has one resolution: leave out `resolution_level`.")
            network.resolution_level = resolution_level
        self.model: Any = network.to(pick_device(device)).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps, with one call of `infer` per image."""
        maps = []
        for example in examples:
            pixels = torch.from_numpy(rgb_pixels(example)).permute(2, 0, 1).contiguous()
            fx, fy, cx, cy = example.intrinsics
            camera = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32)
            depth = self.model.infer(pixels, camera)["depth"]
            maps.append(depth.float().cpu().numpy().reshape(pixels.shape[1:]))
        return maps


class DepthAnything1(DensePredictor):
    """Depth Anything (V1) fine-tuned for metric depth as a ZoeDepth, from a checkout of its repository.

    No checkpoint of it has the format of transformers. As in `metric_depth/evaluate.py` of
    github.com/LiheYoung/Depth-Anything: `build_model(get_config("zoedepth", "eval", dataset))`, with the weights as
    `pretrained_resource`, is called with RGB in 0..1, `(N, 3, H, W)`, for the image and its mirror image. The mean of
    both `metric_depth` is resized to the image, bilinearly with aligned corners. The camera is not used. Choosing this
    system runs the code of that checkout and loads its weights from pickles.

    Args:
        scenes: "indoor" (trained on NYUv2) or "outdoor" (KITTI).
        root: Folder of the checkout; the environment variable DEPTH_ANYTHING_ROOT by default.
        device: `auto`, `cuda`, `cuda:1` or `cpu`.

    Raises:
        PredictorError: There is no checkout, or its checkpoint is missing.
        ImportError: A package that its code imports is missing.
    """

    def __init__(
        self,
        scenes: Literal["indoor", "outdoor"] = "indoor",
        *,
        root: str | Path | None = None,
        device: str = "auto",
    ):
        if scenes not in ("indoor", "outdoor"):
            raise PredictorError(f'`scenes` must be "indoor" or "outdoor", got {scenes!r}.')
        given = root or os.environ.get("DEPTH_ANYTHING_ROOT")
        if not given:
            raise PredictorError(f"Depth Anything V1 has no package: {DEPTH_ANYTHING_1_INSTALL}.")
        code = Path(given).expanduser().resolve() / "metric_depth"
        weights = code / "checkpoints" / f"depth_anything_metric_depth_{scenes}.pt"
        if not weights.is_file():
            raise PredictorError(f"There is no checkpoint {weights}: {DEPTH_ANYTHING_1_INSTALL}.")
        if str(code) not in sys.path:
            sys.path.insert(0, str(code))
        self.dataset = "nyu" if scenes == "indoor" else "kitti"
        with chdir(code):  # it looks for its encoder in ../checkpoints
            builder = import_module("zoedepth.models.builder")
            config = import_module("zoedepth.utils.config")
            settings = config.get_config("zoedepth", "eval", self.dataset, pretrained_resource=f"local::{weights}")
            self.device = pick_device(device)
            with whole_checkpoint(str(weights)) as check:
                self.model: Any = check(builder.build_model(settings)).to(self.device).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps of images of one size, with two calls of the network."""
        pixels = torch.from_numpy(stacked_pixels(examples)).to(self.device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            plain = self.model(pixels, dataset=self.dataset)["metric_depth"]
            mirrored = self.model(pixels.flip(3), dataset=self.dataset)["metric_depth"].flip(3)
            depth = (plain + mirrored).float() / 2
            depth = F.interpolate(depth, size=pixels.shape[-2:], mode="bilinear", align_corners=True)[:, 0]
        return to_maps(depth)


class DepthAnything3(DensePredictor):
    """The metric or the nested model of Depth Anything 3, through its own package.

    From the README, `docs/API.md` and `utils/alignment.py` of github.com/ByteDance-Seed/Depth-Anything-3:
    `inference([image])` scales the longer side of the image to 504 pixels, then each side to a multiple of 14, and
    answers at that size. The metric model answers for a focal length of 300 pixels: metres are `answer * f / 300`, with
    f the mean of fx and fy in pixels of that size, not of the image. The nested model (`DA3NESTED-...`) answers in
    metres and estimates the focal length, because the package takes a known one only together with poses. Images of
    one call are views of one scene, so each image gets its own call.

    Args:
        model: Hub name with "DA3METRIC" or "DA3NESTED" in it, or a folder together with `nested`.
        nested: Whether it answers in metres; inferred from the name by default.
        device: `auto`, `cuda`, `cuda:1` or `cpu`.
        process_res: Pixels of the longer side at which it works.

    Raises:
        PredictorError: Neither the name nor `nested` says which of the two models it is; all others are relative.
        ImportError: The package is not installed.
    """

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
        package = import_module("depth_anything_3.api")
        self.nested, self.process_res = nested, process_res
        with whole_checkpoint(model) as check:
            network = check(package.DepthAnything3.from_pretrained(model))
        self.model: Any = network.to(pick_device(device)).eval()

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps, with one call of `inference` per image."""
        maps = []
        for example in examples:
            pixels = rgb_pixels(example)
            height, width = pixels.shape[:2]
            answer = self.model.inference([pixels], process_res=self.process_res).depth
            depth = torch.from_numpy(np.asarray(answer, dtype=np.float32)).reshape(1, *answer.shape[-2:])
            if not self.nested:
                rows, columns = depth.shape[-2:]
                fx, fy = example.intrinsics[0] * columns / width, example.intrinsics[1] * rows / height
                depth = depth * ((fx + fy) / 2 / 300)
            maps.append(resize_maps(depth, (height, width))[0].numpy())
        return maps
