# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Image processors: the paper's focal-length normalisation (equation 6) before the backbone's patches, on two backends.

Also the inverse: predicted depth to metres at the size of each image.
"""

import difflib
import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import TextKwargs, VideosKwargs
from transformers.utils import is_torchvision_available
from transformers.utils.hub import cached_file

from .camera_depthvlm import DEFAULT_ASSUMED_FOV, Camera, resolve_cameras
from .depth_maps_depthvlm import depth_labels
from .images_depthvlm import FULL_SIZE_KEY, image_list, open_image, upright_image

P = ParamSpec("P")
R = TypeVar("R")

# Keywords of `from_pretrained` for the Hub and for a model, which pipelines pass to every part, and for a tokenizer.
_LOADING = """
cache_dir force_download local_files_only token revision subfolder proxies trust_remote_code code_revision use_fast
backend user_agent return_unused_kwargs resume_download image_processor_filename dtype torch_dtype device_map max_memory
offload_folder offload_buffers quantization_config attn_implementation experts_implementation tp_plan tp_size
device_mesh distributed_config variant state_dict key_mapping gguf_file generation_config use_kernels kernel_config
adapter_name adapter_kwargs low_cpu_mem_usage output_loading_info use_safetensors
"""
_TOKENIZER = """
image_processor tokenizer video_processor chat_template padding_side truncation_side model_max_length
clean_up_tokenization_spaces split_special_tokens additional_special_tokens extra_special_tokens bos_token eos_token
unk_token sep_token pad_token cls_token mask_token add_bos_token add_eos_token add_prefix_space tokenizer_file
tokenizer_type vocab_file merges_file errors from_slow legacy gguf_file
"""
LOADING_KEYWORDS = frozenset(_LOADING.split())
SETTINGS_KEYWORDS = LOADING_KEYWORDS.union(_TOKENIZER.split(), TextKwargs.__annotations__, VideosKwargs.__annotations__)

# Rounded to bfloat16 these would be wrong by up to 0.4 %.
FULL_PRECISION = ("focal_scale", "cameras", "depth_labels")
HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def hub_keywords(given: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that specify where a file comes from."""
    return {name: given[name] for name in HUB_KEYWORDS if given.get(name) is not None}


def read_json(model: Any, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON file of a checkpoint (folder or name on the Hub); empty if it has none."""
    if os.path.isfile(model):
        return {}
    file = cached_file(model, name, _raise_exceptions_for_missing_entries=False, **hub)
    return json.loads(Path(file).read_text(encoding="utf-8")) if file else {}


def check_keywords(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise TypeError for the first unknown name, and suggest the nearest known one."""
    known = sorted(known)
    for name in given:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise TypeError(f"{where} got an unexpected keyword argument `{name}`.{hint}")


def names_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function without `**kwargs` suggest the nearest keyword when it gets an unknown one."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_keywords(kwargs, known, function.__qualname__.removesuffix(".__init__"))
        return function(*args, **kwargs)

    return checked


class DepthVLMBatchFeature(BatchFeature):
    """Output of the processor, ready for `model(**inputs)`.

    `.to(device, dtype)` moves everything, including the tensors in `depth_labels`, but leaves `focal_scale`,
    `cameras` and `depth_labels` in float32.
    """

    def __init__(self, data: dict[str, Any] | None = None, tensor_type: Any = None, skip_tensor_conversion: Any = None):
        # Depth maps of unequal sizes cannot become one tensor.
        skip = {"depth_labels", *(skip_tensor_conversion or ())}
        super().__init__(data, tensor_type=tensor_type, skip_tensor_conversion=skip)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["data"])

    def to(self, *args: Any, **kwargs: Any) -> "DepthVLMBatchFeature":
        """Move and cast in place with the arguments of [`torch.Tensor.to`]; fields that stay float32 only move."""
        full = {key: self.data[key] for key in FULL_PRECISION if key in self.data}
        super().to(*args, **kwargs)
        device = kwargs.get("device") or next((arg for arg in args if not isinstance(arg, torch.dtype)), None)
        if device is not None:
            full = BatchFeature(full).to(device=device, non_blocking=kwargs.get("non_blocking", False)).data
        self.data.update(full)
        return self


MAX_ASPECT_RATIO = 200

# Rounding of `qwen_vl_utils.process_vision_info`, made for the patches of Qwen2-VL.
QWEN_VL_UTILS_MULTIPLE = 28


def canonical_size(
    camera: Camera,
    canonical_focal_length: float,
    cell: int,
    min_pixels: int,
    max_pixels: int,
    qwen_vl_utils_rounding: bool = False,
) -> tuple[int, int, float]:
    """Return the size of an image as model input, and the factor from its depth to metres (equation 6).

    Equation 6 scales an image by `s = f_c / f`, so that every camera becomes the canonical one. Here the scaled size is
    rounded once, to whole cells of the model: the image counts as canonical, `focal_scale = 1`, as in the published
    method. If the pixel budget does not allow that size, the image is scaled to the largest (or smallest) allowed one,
    with a whole number of cells on one side; its focal length is then `f_eff = f * s`, and metres are recovered with
    `focal_scale = f_eff / f_c`. In that case `s` depends only on the image's size, so depths are exactly proportional
    to the focal length.

    Args:
        camera: The camera of the image as given, `f`.
        canonical_focal_length: `f_c`, in pixels.
        cell: Side of the square of one visual token, in pixels: patch size times merge size.
        min_pixels: Least area of the result, in pixels.
        max_pixels: Greatest area of the result, in pixels.
        qwen_vl_utils_rounding: Round the sides to whole pixels and to multiples of 28 before cells, as the published
            implementation does; this gives its checkpoints the grid that they were trained on.

    Returns:
        Height and width in pixels, multiples of `cell`, and `focal_scale`.

    Raises:
        ValueError: One side is more than 200 times the other, or the budget cannot hold one row of cells.
    """
    height, width = camera.height, camera.width
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"The image has {width}x{height} pixels (width x height): one side is more than {MAX_ASPECT_RATIO} times "
            "the other. Crop it, or cut it into pieces."
        )
    # The model needs a cell on the shorter side, even if `min_pixels` would allow less.
    lower = max(math.sqrt(min_pixels / (height * width)), cell / min(height, width))
    upper = math.sqrt(max_pixels / (height * width))
    if lower > upper and lower * min(height, width) <= cell:
        raise ValueError(
            f"An image of {width}x{height} pixels (width x height) needs at least {cell} pixels on its shorter side, "
            f"which is {math.ceil(height * width * lower**2)} in all, but `max_pixels` is {max_pixels}. Raise "
            "`max_pixels` or crop the image."
        )
    sides = [side * canonical_focal_length / camera.focal_length for side in (height, width)]
    if qwen_vl_utils_rounding:
        multiple = QWEN_VL_UTILS_MULTIPLE
        sides = [max(1, round(round(side) / multiple)) * multiple for side in sides]
    rows, columns = _cells(sides[0], sides[1], 1.0, cell)
    largest = _bound(height, width, cell, upper, max_pixels, largest=True)
    smallest = _bound(height, width, cell, lower, min_pixels, largest=False)
    # A size that merely rounds to the bound counts as bounded: equal pixels must have proportional depths.
    if rows * columns >= largest[1] * largest[2]:
        scale, rows, columns = largest
    elif rows * columns <= smallest[1] * smallest[2]:
        scale, rows, columns = min(smallest, largest)
    else:
        return rows * cell, columns * cell, 1.0
    return rows * cell, columns * cell, scale * camera.focal_length / canonical_focal_length


def _cells(height: float, width: float, scale: float, cell: int) -> tuple[int, int]:
    return max(1, round(height * scale / cell)), max(1, round(width * scale / cell))


def _bound(height: int, width: int, cell: int, scale: float, pixels: int, largest: bool) -> tuple[float, int, int]:
    """Return the scale nearest to `scale` within `pixels` that has whole cells on one side, and its cells."""
    found = []
    for side in (height, width):
        # A tiny tolerance, so that rounding of floats does not lose an exact multiple.
        count = math.floor(side * scale / cell + 1e-6) if largest else math.ceil(side * scale / cell - 1e-6)
        while count > 0:
            candidate = count * cell / side
            rows, columns = _cells(height, width, candidate, cell)
            area = rows * columns * cell**2
            if area <= pixels if largest else area >= pixels:
                found.append((candidate, rows, columns))
                break
            count += -1 if largest else 1
    return max(found) if largest else min(found)


CAMERA_KEYWORDS = ("intrinsics", "focal_length", "fov")

VISION_TOWER_SETTINGS = (
    *("image_mean", "image_std", "rescale_factor", "patch_size", "temporal_patch_size", "merge_size"),
    "qwen_vl_utils_rounding",
)
# Alternative names in a settings file.
SAVED_NAMES = ("image_processor_type", "processor_class", "feature_extractor_type", "auto_map")


class DepthVLMImageProcessorKwargs(Qwen2VLImageProcessorKwargs, total=False):
    r"""Keywords of the image processor in addition to Qwen2-VL's.

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
        Names of the images in errors and warnings, such as file names; their numbers by default.
    canonical_focal_length (`float`, *optional*, defaults to 1000.0):
        `f_c` of equation 6, in pixels.
    assumed_fov (`float`, *optional*, defaults to 60.0):
        Field of view in degrees across the longer side of an image whose camera is not known.
    qwen_vl_utils_rounding (`bool`, *optional*, defaults to `False`):
        Round to multiples of 28 pixels first, as the published implementation does; on for its checkpoints.
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
    """Image processing shared by both backends.

    An image is resampled once, from its own size to that of [`canonical_size`] (equation 6).

    The budget is `size = {"shortest_edge": least area, "longest_edge": greatest area}` in pixels, named as Qwen3-VL
    does; `min_pixels` and `max_pixels` set it too, here and in a call. The default of 3,145,728 pixels (3,072 visual
    tokens) holds every camera of the paper's benchmarks, 2.3 million pixels at most, uncapped.

    `focal_length`, `fov` or `intrinsics` given here apply to every image whose call gives no camera; use this in
    `pipeline("depth-estimation")`.
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
        """Prepare images for the model.

        Args:
            images: Any input of [`open_image`] (a path, a URL, bytes, a PIL image, an array, ...), or many of them: a
                (nested) list, a column of `datasets`, a generator, a batch `(N, H, W, 3)` of pixels.
            **kwargs: See [`DepthVLMImageProcessorKwargs`].

        Returns:
            [`DepthVLMBatchFeature`] with
            - `pixel_values` `(patches, 1536)`, 1176 with patches of 14 pixels, and `image_grid_thw` `(N, 3)`, as in the
              backbone;
            - `focal_scale` `(N,)`, float32: `depth = head output * focal_scale`;
            - `cameras` `(N, 7)`, float32: fx, fy, cx, cy, height, width in pixels of the upright image as given, and
              the index of its source in `CAMERA_SOURCES`;
            - `depth_labels`, if `depth_maps` are given: for each image `(H, W)`, float32, metres, 0 where not valid,
              or None.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: An image, a camera, a depth map or a budget is unusable.
            TypeError: A keyword is not known.
        """
        check_keywords(kwargs, self.valid_kwargs.__annotations__, "The image processor")
        if any(kwargs.get(name) is not None for name in CAMERA_KEYWORDS):
            # A camera given in a call is not mixed with the one given at construction.
            kwargs = {**dict.fromkeys(CAMERA_KEYWORDS), **kwargs}
        return super().preprocess(images, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open any input of [`open_image`] as PIL images that keep their EXIF data; leave pixels unchanged."""
        many = image_list(image_url_or_urls)
        if len(many) != 1 or many[0] is not image_url_or_urls:
            return [self.fetch_images(one) for one in many]
        image = open_image(image_url_or_urls)
        if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2:
            return image[..., None]  # transformers rejects grey images without a channel axis
        return super().fetch_images(image)

    def depth_labels(
        self, depth_maps: Any, depth_scale: Any, cameras: Any, image_grid_thw: Any, image_names: Any = None
    ) -> list[Any]:
        """Return the `depth_labels` of prepared images, given their `cameras` and `image_grid_thw`."""
        image_sizes = [(round(float(row[4])), round(float(row[5]))) for row in cameras]
        input_sizes = [(int(grid[1]) * self.patch_size, int(grid[2]) * self.patch_size) for grid in image_grid_thw]
        return depth_labels(depth_maps, depth_scale, image_sizes, input_sizes, image_names)

    @names_keywords
    def post_process_depth_estimation(self, outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
        """Return depth in metres at the size of each image, with its camera: see [`post_process_depth`]."""
        return post_process_depth(outputs, target_sizes)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Count the patches of an image of `height` x `width` pixels; `images_kwargs` may give the camera."""
        options = {name: getattr(self, name, None) for name in self._valid_kwargs_names} | (images_kwargs or {})
        options = self._standardize_kwargs(**options)
        camera = self._cameras([(height, width)], [None], options)[0]
        rows, columns, _ = self._target(camera, options)
        return (rows // options["patch_size"]) * (columns // options["patch_size"])

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read the saved settings; those of a published checkpoint are Qwen3-VL's, with the published rounding."""
        hub = hub_keywords(kwargs)
        settings, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if not settings.get("image_processor_type", "").startswith("DepthVLM"):
            config = read_json(pretrained_model_name_or_path, "config.json", hub)
            if config.get("depth_head_type") is not None:
                settings = {**settings, "qwen_vl_utils_rounding": True}
        return settings, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor from its saved settings, or from those of a backbone's image processor.

        From a backbone only the settings of the vision tower are used: its sizes and filter are not DepthVLM's.
        """
        check_keywords(kwargs, {*cls.valid_kwargs.__annotations__, *SETTINGS_KEYWORDS}, "The image processor")
        if not image_processor_dict.get("image_processor_type", "DepthVLM").startswith("DepthVLM"):
            settings = image_processor_dict.items()
            image_processor_dict = {name: value for name, value in settings if name in VISION_TOWER_SETTINGS}
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, in a form that both backends can load."""
        output = super().to_dict()
        output["image_processor_type"] = "DepthVLMImageProcessor"
        auto_map = dict(output.get("auto_map", {}))
        if "AutoImageProcessor" in auto_map:
            # A list holds the Pillow class, then the torchvision one.
            auto_map["AutoImageProcessor"] = [
                "image_processing_depthvlm.DepthVLMImageProcessorPil",
                "image_processing_depthvlm.DepthVLMImageProcessor",
            ]
            output["auto_map"] = auto_map
        return output

    def _standardize_kwargs(  # type: ignore[override]
        self, size: Any = None, min_pixels: int | None = None, max_pixels: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Resolve the pixel budget: the given one, else the processor's, else the class's."""
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
        asked: list[tuple[str, int | None]] = [
            *dict(size or {}).items(),
            ("min_pixels", min_pixels),
            ("max_pixels", max_pixels),
        ]
        given = {names.get(key, key): value for key, value in asked if value is not None}
        unknown = set(given) - {"shortest_edge", "longest_edge"}
        if unknown:
            raise ValueError(
                "`size` is a pixel budget here, {'shortest_edge': least area, 'longest_edge': greatest area}, got "
                f"{sorted(unknown)}. The size itself follows from the focal length."
            )
        canonical = kwargs.get("canonical_focal_length")
        if canonical is not None and not 0 < canonical < math.inf:
            raise ValueError(f"`canonical_focal_length` must be a finite number above 0, in pixels, got {canonical!r}.")
        budget = {**type(self).size, **dict(self.size or {}), **given}
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
        """Resize every image to its own target, then let Qwen's code normalise the images and cut them into patches."""
        depth_maps, depth_scale = kwargs.pop("depth_maps", None), kwargs.pop("depth_scale", None)
        flat: Any = self._prepare_images_structure(images)
        names = kwargs.get("image_names")
        resized, cameras, focal_scales = self._resize_to_canonical(flat, kwargs)
        # Floats of 0 to 1 have become 0 to 255, so they are rescaled even if the caller turns rescaling off.
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

    def canonical_image(self, image: ImageInput, **kwargs: Any) -> tuple[Image.Image, Camera, float]:
        """Return a picture at the size of the model's input, for engines that cut it into patches themselves.

        Args:
            image: See [`preprocess`].
            **kwargs: The camera and other keywords of [`preprocess`].

        Returns:
            The picture at the size of the model's input, its camera at the size as given, and its focal scale.

        Raises:
            ValueError: As in [`preprocess`].
        """
        options = {name: getattr(self, name, None) for name in self._valid_kwargs_names} | kwargs
        [resized], [camera], [focal_scale] = self._resize_to_canonical([image], self._standardize_kwargs(**options))
        return Image.fromarray(np.asarray(resized).transpose(1, 2, 0)), camera, focal_scale

    def _resize_to_canonical(
        self, flat: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], list[Camera], list[float]]:
        """Return every image at the size of the model's input, its camera at its original size, and its focal scale."""
        layout, names = kwargs.pop("input_data_format", None), kwargs.pop("image_names", None)
        if names and len(names) != len(flat):
            raise ValueError(f"`image_names` has {len(names)} entries for {len(flat)} image(s): give one for each.")
        labels = names or [f"Image {index}" for index in range(len(flat))]
        upright = [upright_image(image, label, layout) for image, label in zip(flat, labels, strict=True)]
        pictures, exifs = [picture for picture, _ in upright], [exif for _, exif in upright]
        # A camera belongs to the image as given, which may have been read at a smaller size.
        given = [picture.info.get(FULL_SIZE_KEY, picture.size) for picture in pictures]
        cameras = self._cameras([(height, width) for width, height in given], exifs, kwargs, names)
        cameras = [camera.scaled_to(*picture.size) for camera, picture in zip(cameras, pictures, strict=True)]

        resized, focal_scales = [], []
        for picture, camera in zip(pictures, cameras, strict=True):
            height, width, focal_scale = self._target(camera, kwargs)
            resized.append(self._resize_once(picture, height, width, kwargs))
            focal_scales.append(focal_scale)
        return resized, cameras, focal_scales

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
        """Return the picture as `(3, height, width)` uint8 values in the backend's type."""
        raise NotImplementedError


def _is_float(image: Any) -> bool:
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


class DepthVLMImageProcessorPil(DepthVLMBaseImageProcessor, Qwen2VLImageProcessorPil):
    """Image processor of DepthVLM on Pillow and numpy: see [`DepthVLMBaseImageProcessor`]."""

    def _resize_once(self, picture: Image.Image, height: int, width: int, options: dict[str, Any]) -> np.ndarray:
        if picture.size != (width, height):
            picture = picture.resize((width, height), options["resample"])
        return self.process_image(picture)


if is_torchvision_available():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    class DepthVLMImageProcessor(DepthVLMBaseImageProcessor, Qwen2VLImageProcessor):
        """Image processor of DepthVLM on torchvision: see [`DepthVLMBaseImageProcessor`]."""

        def _resize_once(self, picture: Image.Image, height: int, width: int, options: dict[str, Any]) -> torch.Tensor:
            pixels = self.process_image(picture, device=options["device"])
            if picture.size == (width, height):
                return pixels
            # Not Qwen's own `resize`, which chooses its own size.
            return TorchvisionBackend.resize(self, pixels, SizeDict(height=height, width=width), options["resample"])

else:
    # Without torchvision the public name is the Pillow class.
    DepthVLMImageProcessor = DepthVLMImageProcessorPil  # type: ignore[assignment]


@names_keywords
def post_process_depth(outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
    """Return depth in metres at the size of each image, and the camera that was used.

    Args:
        outputs: Has `predicted_depth`, a list with one `(h, w)` tensor for every image or one `(N, h, w)` tensor, in
            metres, and may have `cameras`, the `(N, 7)` tensor of the processor, or `(N, 8)` of a model that predicts
            the cameras that are not known.
        target_sizes: `(height, width)` in pixels for every image (or None): a list or a tensor `(N, 2)`. By default the
            size of the image as given, or of the prediction without `cameras`.

    Returns:
        For every image `predicted_depth` (`(H, W)` float32, metres), `camera` ([`Camera`] at that size), `intrinsics`
        (`(3, 3)`, pixels of that size) and `focal_source` (`str`); the last three are None without `cameras`.

    Raises:
        ValueError: There is no predicted depth, it is not finite, a size is below 1 pixel, or the numbers of images,
            cameras and sizes differ.
    """
    predicted = outputs.predicted_depth
    if predicted is None:
        raise ValueError(
            "`outputs` has no `predicted_depth`: the model was called without images or `output_depth=False`."
        )
    count = len(predicted)
    rows = getattr(outputs, "cameras", None)  # outputs of other depth models have no such field
    if rows is not None and len(rows) != count:
        raise ValueError(
            f"`outputs` has {count} depth maps but {len(rows)} cameras. Pass the processor's `cameras` as it was."
        )
    if target_sizes is not None and len(target_sizes) != count:
        raise ValueError(f"`target_sizes` has {len(target_sizes)} entries for {count} predicted depth maps.")

    results = []
    for index, depth in enumerate(predicted):
        camera = None if rows is None else Camera.from_row(rows[index].tolist())
        if target_sizes is not None and target_sizes[index] is not None:
            height, width = (int(side) for side in target_sizes[index])
            if min(height, width) < 1:
                raise ValueError(
                    f"`target_sizes[{index}]` must be a height and a width of at least 1 pixel, got {height, width}."
                )
        elif camera is not None:
            height, width = camera.height, camera.width
        else:
            height, width = depth.shape[-2:]
        depth = depth.float()
        if not torch.isfinite(depth).all():
            raise ValueError(
                f"The predicted depth of image {index} holds NaN or infinity: the model's weights are damaged, or its "
                "numbers overflow in float16 (try bfloat16 or float32)."
            )
        if tuple(depth.shape[-2:]) != (height, width):
            depth = F.interpolate(depth[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        camera = None if camera is None else camera.scaled_to(width, height)
        results.append(
            {
                "predicted_depth": depth,
                "camera": camera,
                "intrinsics": None if camera is None else camera.intrinsics,
                "focal_source": None if camera is None else camera.source,
            }
        )
    return results
