"""Metric depth estimators of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...checkpoint import resolve_model_path
from ...loading import hub_keywords, pick_device, pick_dtype
from .dense import load_whole, stacked_pixels, to_maps
from .interface import DensePredictor, Example, PredictorError

METRIC_TYPES = frozenset({"zoedepth", "depth_pro", "glpn", "tipsv2_dpt"})
"""Model types of which all checkpoints answer in metres."""
_OTHER_TYPES = {
    "prompt_depth_anything": "it completes a sparse depth map, which this benchmark does not give",
    "chmv2": "it measures the height of trees from above",
    "depthvlm": "its depth needs the camera: name it depthvlm:PATH_OR_HUB_ID",
}


def check_metric(config: Any, model: str, metric: bool | None = None) -> None:
    """Refuse a checkpoint whose depth is not in metres.

    Args:
        config: Configuration of the model.
        model: Name of the model, for messages.
        metric: Whether the user says that it is metric, for models whose config does not: DPT checkpoints are of both
            kinds, with configs that look alike.

    Raises:
        PredictorError: The checkpoint is relative (`depth_estimation_type`), or nothing says that it is metric.
    """
    kind = config.model_type
    if kind in _OTHER_TYPES:
        raise PredictorError(f"{model} ({kind}) is no row of this benchmark: {_OTHER_TYPES[kind]}.")
    if kind == "depth_anything":
        if config.depth_estimation_type != "metric":
            raise PredictorError(
                f"{model} estimates relative depth (config.depth_estimation_type is {config.depth_estimation_type!r}), "
                "which has no unit. Take a metric checkpoint, such as "
                "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf."
            )
    elif kind not in METRIC_TYPES and not metric:
        raise PredictorError(
            f"The config of {model} ({kind}) does not say whether its depth is in metres; most {kind} checkpoints are "
            "relative. Pass metric=True if you know that it is metric, as facebook/dpt-dinov2-large-nyu is."
        )


class TransformersDepth(DensePredictor):
    """A model of `pipeline("depth-estimation")`, fed batch by batch.

    The checkpoint's own image processor does the pre- and post-processing. For two families this is done here, because
    transformers (5.23) needs torchvision for them: Depth Pro, and the last step of ZoeDepth, which cuts off padding.

    Depth Pro's network answers with inverse depth in an image of unit width; its metres need a focal length. The
    benchmark knows the camera and gives it: `1 / (answer * width / fx)`, like `infer(image, f_px=...)` of
    apple/ml-depth-pro. With `focal_length="estimated"` the model's own field of view replaces it.

    Args:
        model: A folder or a name on the Hub.
        device: `auto`, `cuda`, `cuda:1`, `mps` or `cpu`.
        dtype: Name of the dtype of the weights.
        focal_length: "given" or "estimated", for Depth Pro; see above. No other model of this kind takes one.
        metric: See [`check_metric`].
        flip_average: Whether to average the maps of the image and of its mirror image, at twice the cost. By default
            for ZoeDepth alone, as in its own evaluation (`with_flip_aug` in isl-org/ZoeDepth).
        **kwargs: Keyword arguments of `from_pretrained`, such as `revision` or `token`; those of the Hub reach the
            processor too.

    Raises:
        PredictorError: Its depth is not metric, it has no field of view to estimate, or its checkpoint lacks weights.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        focal_length: Literal["given", "estimated"] = "given",
        metric: bool | None = None,
        flip_average: bool | None = None,
        **kwargs: Any,
    ):
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        if focal_length not in ("given", "estimated"):
            raise ValueError(f'`focal_length` must be "given" or "estimated", got {focal_length!r}.')
        model = resolve_model_path(model)
        origin = hub_keywords(model, kwargs)
        config = AutoConfig.from_pretrained(model, **origin)
        check_metric(config, model, metric)
        self.kind: str = config.model_type
        self.flip_average = self.kind == "zoedepth" if flip_average is None else flip_average
        self.estimate_focal_length = focal_length == "estimated"
        if self.estimate_focal_length and not getattr(config, "use_fov_model", False):
            raise PredictorError(f'{model} does not estimate a field of view: leave focal_length="given".')
        if self.kind == "depth_pro":
            self.processor: Any = _DepthProProcessor(model, origin)
        else:
            self.processor = AutoImageProcessor.from_pretrained(model, **origin)
        self.model = load_whole(
            AutoModelForDepthEstimation, model, dtype=pick_dtype(dtype), **{**kwargs, **origin}
        ).eval()
        if "device_map" not in kwargs:
            self.model = self.model.to(pick_device(device))

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps of images of one size, from one forward pass."""
        pixels = stacked_pixels(examples)
        height, width = pixels.shape[1:3]
        inputs = self.processor(images=list(pixels), return_tensors="pt")
        with torch.inference_mode():
            values = inputs["pixel_values"].to(self.model.device, self.model.dtype)
            outputs = self.model(values)
            if self.flip_average:
                outputs.predicted_depth = (
                    outputs.predicted_depth + self.model(values.flip(3)).predicted_depth.flip(2)
                ) / 2
            if self.kind == "zoedepth":
                depth = _zoedepth_maps(outputs.predicted_depth.float(), height, width, self.processor.do_pad)
            elif self.kind == "depth_pro":
                focal = [example.intrinsics[0] for example in examples]
                fov = outputs.field_of_view if self.estimate_focal_length else None
                depth = _depth_pro_maps(outputs.predicted_depth.float(), height, width, focal, fov)
            else:
                sizes = [(height, width)] * len(examples)
                found = self.processor.post_process_depth_estimation(outputs, target_sizes=sizes)
                depth = torch.stack([one["predicted_depth"] for one in found])
        return to_maps(depth)


class _DepthProProcessor:
    """Rescaling, normalisation and one bilinear resampling without antialiasing, with the checkpoint's settings."""

    def __init__(self, model: str, origin: dict[str, Any]):
        from transformers.image_processing_utils import BaseImageProcessor

        settings, _ = BaseImageProcessor.get_image_processor_dict(model, **origin)
        size = settings.get("size", {"height": 1536, "width": 1536})
        self.size = (size["height"], size["width"])
        self.scale = settings.get("rescale_factor", 1 / 255)
        self.mean = torch.tensor(settings.get("image_mean", [0.5, 0.5, 0.5])).view(3, 1, 1)
        self.std = torch.tensor(settings.get("image_std", [0.5, 0.5, 0.5])).view(3, 1, 1)

    def __call__(self, images: list[NDArray[np.uint8]], return_tensors: str) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        pixels = (pixels * self.scale - self.mean) / self.std
        return {"pixel_values": F.interpolate(pixels, size=self.size, mode="bilinear", align_corners=False)}


def _depth_pro_maps(inverse: Tensor, height: int, width: int, focal: Sequence[float], fov: Tensor | None) -> Tensor:
    """Return metres from canonical inverse depth `(N, h, w)`, by focal lengths in pixels or the `fov` in degrees."""
    if fov is not None:
        ratio = 2 * torch.tan(0.5 * torch.deg2rad(fov.float().flatten()))
    else:
        ratio = torch.tensor([width / one for one in focal], device=inverse.device, dtype=inverse.dtype)
    inverse = F.interpolate(
        (inverse * ratio.view(-1, 1, 1))[:, None], size=(height, width), mode="bilinear", align_corners=False
    )[:, 0]
    return 1 / inverse.clamp(1e-4, 1e4)


def _zoedepth_maps(depth: Tensor, height: int, width: int, padded: bool) -> Tensor:
    """Resize ZoeDepth's maps `(N, h, w)` to the padded image, bicubic, and cut off the padding."""
    rows, columns = (int(sqrt(side / 2) * 3) if padded else 0 for side in (height, width))
    size = (height + 2 * rows, width + 2 * columns)
    depth = F.interpolate(depth[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]
    return depth[:, rows : rows + height, columns : columns + width]
