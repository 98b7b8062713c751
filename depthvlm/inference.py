"""Images to predictions: load a model once, predict batch by batch."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image

from .batches import Batch, BatchRun, PreparedBatch, batches_by_size, named_message, path_of
from .checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE
from .loading import check_generation, load_checkpoint, processor_of
from .modeling_depthvlm import DepthVLMForConditionalGeneration
from .prediction import Prediction
from .processing import DepthVLMProcessor
from .processing.camera_depthvlm import cameras_per_image
from .processing.images_depthvlm import (
    MAX_IMAGE_PIXELS,
    image_list,
)
from .refinement import views
from .through_lens import lens_per_image, predict_through_lenses

logger = logging.getLogger(__name__)

ImageInput: TypeAlias = (
    str | PathLike[str] | bytes | BinaryIO | Mapping[str, Any] | Image.Image | np.ndarray | torch.Tensor
)


def load(
    model: str | PathLike[str] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    compile: bool = False,
    quantize: str | None = None,
    **kwargs: Any,
) -> "DepthPredictor":
    """Load a model and its processor.

    Args:
        model: Folder or Hub name of a checkpoint: DepthVLM's own, or in the published layout. None: the small
            `depthvlm-nano` bundled with the package, which is not made for photographs and warns about it.
        device: `cuda`, `cuda:1`, `mps`, `cpu`; `auto`: the first of these that is available.
        dtype: `float32`, `bfloat16`, `float16`; `auto`: the checkpoint's own, but float32 for a small model on a CPU.
        compile: Predict depth with compiled layers, on CUDA with CUDA graphs. The first picture of a size takes longer,
            which a line says. Replies to a prompt run as without it. For Qwen3-VL alone.
        quantize: `int8` or `int4`: bits of the weights in the linear layers of LLM and vision tower, by bitsandbytes;
            everything else, and with `int4` the arithmetic, keeps `dtype`, of which `auto` is then the checkpoint's own
            on a CPU too.
        **kwargs: Passed on to `from_pretrained` of the model, such as `attn_implementation`; those that locate files
            (`revision`, `token`, `cache_dir`, `subfolder`, `local_files_only`, ...) also to the processor's.

    Raises:
        ValueError: The device is not available, the dtype is unknown, or the model cannot be compiled or quantised.
        ImportError: `quantize` needs a package that is not installed.
        TypeError: A keyword is not known.
        OSError: There is no such model.
    """
    name = BUNDLED_MODEL if model is None else str(model)
    if model is None:
        logger.warning("Using %s.", BUNDLED_MODEL_NOTE)
    return DepthPredictor(*load_checkpoint(name, device, dtype, compile=compile, quantize=quantize, **kwargs), name)


def predict(
    images: ImageInput | Iterable[ImageInput],
    model: "str | PathLike[str] | DepthPredictor | torch.nn.Module | None" = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    **kwargs: Any,
) -> list[Prediction]:
    """Predict metric depth, and with a `prompt` the reply to it, for one or more images.

    Examples:
        >>> import depthvlm
        >>> [prediction] = depthvlm.predict("photo.jpg")
        >>> print(prediction.depth.shape, prediction.summary(), prediction.camera)
        >>> paths = prediction.save("results")

    Args:
        images: One image or many. One: a path, a URL (`http`, `https`, `file`, `data`), base64 text, bytes, a binary
            stream, `{"bytes", "path"}`, a PIL image, an array or a tensor. Many: a list, a generator, a column of
            `datasets`, a batch of pixels `(N, H, W, 3)` or `(N, 3, H, W)`.
        model: See [`load`], or its return value, to load only once.
        device: See [`load`]; not used with a loaded model.
        dtype: See [`load`]; not used with a loaded model.
        **kwargs: `focal_length`, `fov`, `intrinsics`, `camera`, `prompt`, `batch_size`, `max_new_tokens`: see
            [`DepthPredictor.predict`].

    Returns:
        A list with one `Prediction` per image, in order, also for a single image.

    Raises:
        TypeError: A keyword is not known.
        ValueError: An image cannot be read or used; the message names it.
    """
    if not isinstance(model, DepthPredictor):  # before a model is loaded
        check_generation(kwargs, "predict", inspect.signature(DepthPredictor.predict_iter).parameters)
    if isinstance(model, torch.nn.Module):
        network: Any = getattr(model, "get_base_model", lambda: model)()  # without PEFT's wrapper
        training = network.training
        try:
            return DepthPredictor(network.eval(), processor_of(network), type(network).__name__).predict(
                images, **kwargs
            )
        finally:
            network.train(training)
    loaded = model if isinstance(model, DepthPredictor) else load(model, device, dtype)
    return loaded.predict(images, **kwargs)


@dataclass(eq=False)
class DepthPredictor:
    """A model with its processor, ready to predict; returned by `load`.

    Attributes:
        model: The network, in eval mode and on its device.
        processor: Its processor.
        name: Its name in predictions.
    """

    model: DepthVLMForConditionalGeneration
    processor: DepthVLMProcessor
    name: str = "depthvlm"

    def predict(self, images: ImageInput | Iterable[ImageInput], **kwargs: Any) -> list[Prediction]:
        """Predict all images.

        Args:
            images: See `predict_iter`.
            **kwargs: See `predict_iter`, except `on_error`.

        Returns:
            One prediction for every image, in their order.

        Raises:
            ValueError: An image cannot be read or used; the message names it.
        """
        found = sorted(self.predict_iter(images, **kwargs), key=lambda pair: pair[0])
        return [prediction for _, prediction in found]

    def predict_iter(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        focal_length: float | Sequence[float | None] | None = None,
        fov: float | Sequence[float | None] | None = None,
        intrinsics: Any = None,
        camera: Any = None,
        prompt: str | None = None,
        batch_size: int = 4,
        max_new_tokens: int = 256,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        refine: int = 1,
        on_error: Callable[[int, Exception], None] | None = None,
        **generate_kwargs: Any,
    ) -> Iterator[tuple[int, Prediction]]:
        """Predict batch by batch, with memory for a few images. Images of similar size share a batch.

        While the model runs, the images of the next batch are opened and resized in threads.

        Args:
            images: One image or many, see [`predict`]. Files are opened when their turn comes.
            focal_length: In pixels of the image as given; one for all, or a list with one, or None, for each.
            fov: Horizontal field of view in degrees, likewise.
            intrinsics: 3x3 matrix or `[fx, fy, cx, cy]` in pixels of the upright image, or `[fx, fy, cx, cy, width,
                height]` of another size of it, likewise. Without any of these, EXIF data are used, or a field of view
                is assumed, with one warning.
            camera: A [`Lens`], such as [`read_camera`] returns, or `"equirectangular"` for a panorama, likewise. Its
                picture is cut into pinhole views for the model, whose metres are brought back to its own pixels.
            prompt: A question or instruction; its reply comes from the same prefill as the depth. None: only depth.
            batch_size: Images in a batch.
            max_new_tokens: Greatest length of the reply.
            max_image_pixels: A larger image is an error. One with more than 64 million pixels is reduced to 1/2, 1/4 or
                1/8 of its size: depth and camera refer to the smaller size.
            refine: Number of views of every image, up to 32, whose depth is averaged: the image itself, then shifted by
                parts of a visual token and mirrored. Each costs a prefill; where they disagree, `spread` is large.
            on_error: Called with the image's number and its error; the other images continue. None: raise.
            **generate_kwargs: Passed on to `generate`, such as `do_sample=True`; greedy by default.

        Yields:
            The image's number and its prediction, in order of completion.

        Raises:
            TypeError: A keyword is not known, or applies to a reply without a `prompt`.
            ValueError: An image cannot be read or used (without `on_error`), or the number of focal lengths differs
                from the number of images.
        """
        check_generation(generate_kwargs, "predict", inspect.signature(self.predict_iter).parameters)
        if generate_kwargs and prompt is None:
            raise TypeError(f"`{next(iter(generate_kwargs))}` is for the reply to a `prompt`, and none was given.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        views(refine, 1)  # refuses a number that cannot be
        items = image_list(images)
        # A wrong number of values is the caller's mistake, not an image's: report it before the first image.
        cameras = cameras_per_image(len(items), intrinsics, focal_length, fov)
        generation = {"max_new_tokens": max_new_tokens} | generate_kwargs
        lenses = lens_per_image(camera, len(items), cameras)
        if any(lenses):
            options = {"prompt": prompt, "batch_size": batch_size, "max_image_pixels": max_image_pixels, **generation}
            options["refine"] = refine

            def failed(index: int, error: Exception) -> None:
                if on_error is None:
                    raise ValueError(named_message(index, items[index], error)) from error
                on_error(index, error)

            for index, prediction in predict_through_lenses(self, items, lenses, cameras, options, failed):
                yield index, replace(prediction, source=path_of(items[index]))
            return
        run = BatchRun(
            self.model, self.processor, self.name, cameras, prompt, generation, max_image_pixels, on_error, refine
        )
        with ThreadPoolExecutor(1, "depthvlm-prepare") as worker:
            ahead: tuple[Batch, Future[PreparedBatch]] | None = None
            for batch in batches_by_size(items, batch_size):
                prepared = worker.submit(run.prepare, batch)  # while the model runs on the previous one
                if ahead is not None:
                    yield from run.finish(*ahead)
                ahead = batch, prepared
            if ahead is not None:
                yield from run.finish(*ahead)
