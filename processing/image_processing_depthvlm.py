# Copyright 2026 The DepthVLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image processors: the paper's focal-length normalisation (equation 6) before Qwen3-VL's patches, on two backends."""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
)
from transformers.utils import is_torchvision_available

from .batch_depthvlm import (
    SETTINGS_KEYWORDS,
    DepthVLMBatchFeature,
    check_keywords,
    hub_keywords,
    names_keywords,
    read_json,
)
from .camera_depthvlm import DEFAULT_ASSUMED_FOV, Camera, resolve_cameras
from .canonical_size_depthvlm import canonical_size
from .depth_maps_depthvlm import depth_labels
from .images_depthvlm import FULL_SIZE_KEY, image_list, open_image, upright_image
from .post_processing_depthvlm import post_process_depth

CAMERA_KEYWORDS = ("intrinsics", "focal_length", "fov")

VISION_TOWER_SETTINGS = (
    "image_mean",
    "image_std",
    "rescale_factor",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "qwen_vl_utils_rounding",
)


# What a file of settings holds besides them.
SAVED_NAMES = ("image_processor_type", "processor_class", "feature_extractor_type", "auto_map")


class DepthVLMImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""
    focal_length (`float` or `list[float | None]`, *optional*):
        Focal length in pixels of the image as given: one for all images, or one, or None, for each.
    fov (`float` or `list[float | None]`, *optional*):
        Horizontal field of view in degrees, likewise.
    intrinsics (`torch.Tensor`, `np.ndarray` or `list`, *optional*):
        3x3 matrix or `[fx, fy, cx, cy]` in pixels of the image as given, likewise.
    depth_maps (path, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a `list` of them, *optional*):
        True depth: one, or None, for each image.
    depth_scale (`float` or `list[float | None]`, *optional*):
        Raw value of a depth map divided by metres; integer maps need it.
    image_names (`list[str]`, *optional*):
        What errors and warnings call the images, such as their files' names; their numbers by default.
    canonical_focal_length (`float`, *optional*, defaults to 1000.0):
        `f_c` of equation 6, in pixels.
    assumed_fov (`float`, *optional*, defaults to 60.0):
        Field of view in degrees across the longer side of an image whose camera is not known.
    qwen_vl_utils_rounding (`bool`, *optional*, defaults to `False`):
        Round to multiples of 28 pixels before visual tokens, as the published implementation does; on for its
        checkpoints.
    """

    focal_length: Any
    fov: Any
    intrinsics: Any
    depth_maps: Any
    depth_scale: Any
    image_names: list[str] | None
    canonical_focal_length: float | None
    assumed_fov: float | None
    qwen_vl_utils_rounding: bool | None


class DepthVLMBaseImageProcessor(BaseImageProcessor):
    """
    What both backends share. One resampling takes an image from its own size to the model's: equation 6 of the paper,
    `s = f_c / f`, bounded by the pixel budget and rounded once to multiples of `patch_size * merge_size`.

    The budget is `size = {"shortest_edge": least area, "longest_edge": greatest area}` in pixels, named as Qwen3-VL
    does; `min_pixels` and `max_pixels` set it too, here and in a call. The default of 3,145,728 pixels (3,072 visual
    tokens) holds every camera of the paper's benchmarks, 2.3 million pixels at most, uncapped.

    `focal_length`, `fov` or `intrinsics` given here hold for every image whose call names no camera: that is how to
    name one in `pipeline("depth-estimation")`.
    """

    size: ClassVar[dict[str, int]] = {"shortest_edge": 256 * 256, "longest_edge": 3 * 1024 * 1024}
    resample = PILImageResampling.BILINEAR
    image_mean: Any = (0.5, 0.5, 0.5)
    image_std: Any = (0.5, 0.5, 0.5)
    patch_size = 16
    temporal_patch_size = 2
    merge_size = 2
    canonical_focal_length = 1000.0
    assumed_fov = DEFAULT_ASSUMED_FOV
    qwen_vl_utils_rounding = False
    valid_kwargs: Any = DepthVLMImageProcessorKwargs
    model_input_names: list[str] = ["pixel_values", "image_grid_thw", "focal_scale", "cameras"]  # noqa: RUF012
    _auto_class: Any = "AutoImageProcessor"

    def __init__(self, **kwargs: Any) -> None:
        check_keywords(kwargs, {*self.valid_kwargs.__annotations__, *SAVED_NAMES}, type(self).__name__)
        super().__init__(**kwargs)

    def preprocess(self, images: ImageInput, **kwargs: Any) -> DepthVLMBatchFeature:
        """
        Prepares images for the model.

        Args:
            images: What [`open_image`] takes (a path, a URL, bytes, a PIL image, an array, ...), or many of them: a
                (nested) list, a column of `datasets`, a generator, a batch `(N, H, W, 3)` of pixels.
            kwargs: See [`DepthVLMImageProcessorKwargs`].

        Returns:
            [`DepthVLMBatchFeature`] with
            - `pixel_values` `(patches, 1536)` and `image_grid_thw` `(N, 3)`, as Qwen3-VL has them;
            - `focal_scale` `(N,)`, float32: `depth = head output * focal_scale`;
            - `cameras` `(N, 7)`, float32: fx, fy, cx, cy, height, width in pixels of the upright image as given, and
              the index of its source in `CAMERA_SOURCES`;
            - `depth_labels`, if `depth_maps` are given: for each image `(H, W)`, float32, metres, 0 where not valid,
              or None.

        Raises:
            FileNotFoundError, ValueError: for an image, a camera, a depth map or a budget that cannot be used.
            TypeError: for a keyword that is not known.
        """
        check_keywords(kwargs, self.valid_kwargs.__annotations__, "The image processor")
        if any(kwargs.get(name) is not None for name in CAMERA_KEYWORDS):
            # A camera named in a call is not mixed with the one named at construction.
            kwargs = {**dict.fromkeys(CAMERA_KEYWORDS), **kwargs}
        return super().preprocess(images, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens whatever [`open_image`] takes as PIL images that keep their EXIF data; leaves pixels as they are."""
        many = image_list(image_url_or_urls)
        if len(many) != 1 or many[0] is not image_url_or_urls:
            return [self.fetch_images(one) for one in many]
        image = open_image(image_url_or_urls)
        if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2:
            return image[..., None]  # transformers takes no grey image without a channel axis
        return super().fetch_images(image)

    def depth_labels(
        self, depth_maps: Any, depth_scale: Any, cameras: Any, image_grid_thw: Any, image_names: Any = None
    ) -> list[Any]:
        """The `depth_labels` of images already prepared, with their `cameras` and `image_grid_thw`."""
        image_sizes = [(round(float(row[4])), round(float(row[5]))) for row in cameras]
        input_sizes = [(int(grid[1]) * self.patch_size, int(grid[2]) * self.patch_size) for grid in image_grid_thw]
        return depth_labels(depth_maps, depth_scale, image_sizes, input_sizes, image_names)

    @names_keywords
    def post_process_depth_estimation(self, outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
        """Depth in metres at the size of each image, with its camera: see [`post_process_depth`]."""
        return post_process_depth(outputs, target_sizes)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """The number of patches of an image of `height` x `width` pixels; `images_kwargs` may name its camera."""
        options = {**self._defaults(), **(images_kwargs or {})}
        options = self._standardize_kwargs(**options)
        camera = self._cameras([(height, width)], [None], options)[0]
        rows, columns, _ = self._target(camera, options)
        return (rows // options["patch_size"]) * (columns // options["patch_size"])

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The saved settings; those of a published checkpoint are Qwen3-VL's, and get its own code's rounding."""
        hub = hub_keywords(kwargs)
        settings, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        is_own = settings.get("image_processor_type", "").startswith("DepthVLM")
        if (
            not is_own
            and read_json(pretrained_model_name_or_path, "config.json", hub).get("depth_head_type") is not None
        ):
            settings = {**settings, "qwen_vl_utils_rounding": True}
        return settings, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        From its saved settings, or from those of a Qwen3-VL image processor: of these only what describes the vision
        tower is taken, as their sizes and their filter are not DepthVLM's.

        Raises:
            TypeError: for a keyword that is not known.
        """
        check_keywords(kwargs, {*cls.valid_kwargs.__annotations__, *SETTINGS_KEYWORDS}, "The image processor")
        if not image_processor_dict.get("image_processor_type", "DepthVLM").startswith("DepthVLM"):
            settings = image_processor_dict.items()
            image_processor_dict = {name: value for name, value in settings if name in VISION_TOWER_SETTINGS}
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Its attributes, so that either backend loads what the other has saved."""
        output = super().to_dict()
        output["image_processor_type"] = "DepthVLMImageProcessor"
        auto_map = dict(output.get("auto_map", {}))
        if "AutoImageProcessor" in auto_map:
            # A list is the Pillow class, then the torchvision one.
            auto_map["AutoImageProcessor"] = [
                "image_processing_depthvlm.DepthVLMImageProcessorPil",
                "image_processing_depthvlm.DepthVLMImageProcessor",
            ]
            output["auto_map"] = auto_map
        return output

    def _standardize_kwargs(  # type: ignore[override]
        self, size: Any = None, min_pixels: int | None = None, max_pixels: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Settles the pixel budget: what is given, then the processor's own, then the class's."""
        own = dict(self.size) if self.size is not None else {}
        given = {key: value for key, value in (dict(size) if size is not None else {}).items() if value is not None}
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
        given = {names.get(key, key): value for key, value in given.items()}
        if min_pixels is not None:
            given["shortest_edge"] = min_pixels
        if max_pixels is not None:
            given["longest_edge"] = max_pixels
        unknown = set(given) - {"shortest_edge", "longest_edge"}
        if unknown:
            raise ValueError(
                "`size` is a pixel budget here, {'shortest_edge': least area, 'longest_edge': greatest area}, got "
                f"{sorted(unknown)}. The size itself follows from the focal length."
            )
        canonical = kwargs.get("canonical_focal_length")
        if canonical is not None and not 0 < canonical < math.inf:
            raise ValueError(f"`canonical_focal_length` must be a finite number above 0, in pixels, got {canonical!r}.")
        budget = {**type(self).size, **own, **given}
        least, greatest = budget["shortest_edge"], budget["longest_edge"]
        cell = (kwargs.get("patch_size") or self.patch_size) * (kwargs.get("merge_size") or self.merge_size)
        if not 1 <= least <= greatest or greatest < cell**2:
            raise ValueError(
                f"The pixel budget must hold 1 <= min_pixels <= max_pixels and max_pixels >= {cell**2} (one visual "
                f"token), got min_pixels = {least} and max_pixels = {greatest}."
            )
        return super()._standardize_kwargs(size=SizeDict(**budget), **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: ImageInput, *args: Any, **kwargs: Any
    ) -> DepthVLMBatchFeature:
        """Resizes every image to its own target, then lets Qwen's code normalise and cut them into patches."""
        depth_maps, depth_scale = kwargs.pop("depth_maps", None), kwargs.pop("depth_scale", None)
        layout, names = kwargs.pop("input_data_format", None), kwargs.pop("image_names", None)
        pictures, exifs = [], []
        flat: Any = self._prepare_images_structure(images)
        if names and len(names) != len(flat):
            raise ValueError(f"`image_names` has {len(names)} entries for {len(flat)} image(s): give one for each.")
        for index, image in enumerate(flat):
            picture, exif = upright_image(image, names[index] if names else f"Image {index}", layout)
            pictures.append(picture)
            exifs.append(exif)
        # A camera is of the image as given, which may have been read at a smaller size.
        given = [picture.info.get(FULL_SIZE_KEY, picture.size) for picture in pictures]
        cameras = self._cameras([(height, width) for width, height in given], exifs, kwargs, names)
        cameras = [camera.scaled_to(*picture.size) for camera, picture in zip(cameras, pictures, strict=True)]

        resized, focal_scales = [], []
        for picture, camera in zip(pictures, cameras, strict=True):
            height, width, focal_scale = self._target(camera, kwargs)
            resized.append(self._resize_once(picture, height, width, kwargs))
            focal_scales.append(focal_scale)

        # Floats of 0 to 1 have become 0 to 255, so they are rescaled even where the caller says that they need not be.
        kwargs["do_rescale"] = kwargs["do_rescale"] or any(_is_float(image) for image in flat)
        features = self._preprocess(resized, *args, **{**kwargs, "do_resize": False})
        features = DepthVLMBatchFeature(features.data)
        rows = torch.tensor([camera.to_row() for camera in cameras], dtype=torch.float32)
        scales = torch.tensor(focal_scales, dtype=torch.float32)
        as_numpy = isinstance(features["pixel_values"], np.ndarray)
        features["focal_scale"], features["cameras"] = (scales.numpy(), rows.numpy()) if as_numpy else (scales, rows)
        if depth_maps is not None:
            features["depth_labels"] = self.depth_labels(
                depth_maps, depth_scale, rows, features["image_grid_thw"], names
            )
        return features

    def _cameras(
        self, sizes: list[tuple[int, int]], exifs: list[Any], options: dict[str, Any], names: Any = None
    ) -> list[Camera]:
        known = {name: options.get(name) for name in CAMERA_KEYWORDS}
        return resolve_cameras(sizes, exifs, **known, assumed_fov=options["assumed_fov"], image_names=names)

    def _target(self, camera: Camera, options: dict[str, Any]) -> tuple[int, int, float]:
        cell = options["patch_size"] * options["merge_size"]
        canonical = options["canonical_focal_length"]
        if not options["do_resize"]:
            if camera.height % cell or camera.width % cell:
                raise ValueError(
                    f"With `do_resize=False` an image must have sides that are multiples of {cell} pixels, got "
                    f"{camera.width}x{camera.height} (width x height)."
                )
            return camera.height, camera.width, camera.focal_length / canonical
        budget = options["size"]["shortest_edge"], options["size"]["longest_edge"]
        return canonical_size(camera, canonical, cell, *budget, bool(options["qwen_vl_utils_rounding"]))

    def _resize_once(self, picture: Image.Image, height: int, width: int, options: dict[str, Any]) -> Any:
        """The picture as `(3, height, width)` uint8 values of the backend's kind."""
        raise NotImplementedError

    def _defaults(self) -> dict[str, Any]:
        return {name: getattr(self, name, None) for name in self._valid_kwargs_names}


def _is_float(image: Any) -> bool:
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


class DepthVLMImageProcessorPil(DepthVLMBaseImageProcessor, Qwen2VLImageProcessorPil):
    """The image processor of DepthVLM on Pillow and numpy: see [`DepthVLMBaseImageProcessor`]."""

    def _resize_once(self, picture: Image.Image, height: int, width: int, options: dict[str, Any]) -> np.ndarray:
        if picture.size != (width, height):
            picture = picture.resize((width, height), options["resample"])
        return self.process_image(picture)


if is_torchvision_available():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    class DepthVLMImageProcessor(DepthVLMBaseImageProcessor, Qwen2VLImageProcessor):
        """The image processor of DepthVLM on torchvision: see [`DepthVLMBaseImageProcessor`]."""

        def _resize_once(self, picture: Image.Image, height: int, width: int, options: dict[str, Any]) -> torch.Tensor:
            pixels = self.process_image(picture, device=options["device"])
            if picture.size == (width, height):
                return pixels
            # Not Qwen's own `resize`, which chooses a size by itself.
            return TorchvisionBackend.resize(self, pixels, SizeDict(height=height, width=width), options["resample"])

else:
    # Without torchvision the public name is the Pillow class.
    DepthVLMImageProcessor = DepthVLMImageProcessorPil  # type: ignore[assignment,misc]
