"""Images to predictions: load a model once, predict batch by batch."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image

from .checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE
from .loading import check_generation, load_checkpoint, processor_of
from .modeling_depthvlm import DepthVLMForConditionalGeneration, PredictedDepth
from .prediction import Prediction
from .processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT, AssumedCameraWarning, DepthVLMProcessor
from .processing.camera_depthvlm import cameras_per_image, unsaid
from .processing.images_depthvlm import (
    MAX_IMAGE_PIXELS,
    image_list,
    local_path,
    open_image,
    open_raster,
    upright_image,
)
from .refinement import combine, resize_spread, view_inputs, views
from .through_lens import lens_per_image, predict_through_lenses

logger = logging.getLogger(__name__)

_BATCHES_SORTED_TOGETHER = 8

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
                    raise ValueError(_message(index, items[index], error)) from error
                on_error(index, error)

            for index, prediction in predict_through_lenses(self, items, lenses, cameras, options, failed):
                yield index, replace(prediction, source=_path(items[index]))
            return
        run = _Run(self, cameras, prompt, generation, max_image_pixels, on_error, refine)
        with ThreadPoolExecutor(1, "depthvlm-prepare") as worker:
            ahead: tuple[_Batch, Future[_Prepared]] | None = None
            for batch in _batches(items, batch_size):
                prepared = worker.submit(run.prepare, batch)  # while the model runs on the previous one
                if ahead is not None:
                    yield from run.finish(*ahead)
                ahead = batch, prepared
            if ahead is not None:
                yield from run.finish(*ahead)


_Batch: TypeAlias = dict[int, Any]  # images by number


def _batches(items: Sequence[Any], batch_size: int) -> Iterator[_Batch]:
    """Yield the images in batches, grouping those of similar size within a window of a few batches."""
    window = batch_size * _BATCHES_SORTED_TOGETHER
    for start in range(0, len(items), window):
        near = {index: items[index] for index in range(start, min(start + window, len(items)))}
        order = sorted(near, key=lambda index: _size(near[index])) if batch_size > 1 else list(near)
        for first in range(0, len(order), batch_size):
            yield {index: near[index] for index in order[first : first + batch_size]}


@dataclass
class _Prepared:
    """A batch ready for the model: upright pictures, their names in messages, and the processor's output, by views."""

    pictures: list[Image.Image]
    labels: list[str]
    inputs: Any
    others: list[Any]


@dataclass
class _Run:
    """One call of `predict_iter`: the cameras of all images, and the settings."""

    depthvlm: DepthPredictor
    cameras: dict[str, list[Any]]
    prompt: str | None
    generation: dict[str, Any]
    max_image_pixels: int
    on_error: Callable[[int, Exception], None] | None
    refine: int = 1
    warned_assumed: bool = False
    tokenizer_lock: Any = field(default_factory=Lock)  # tokenizers are not thread-safe

    def finish(self, batch: _Batch, prepared: "Future[_Prepared]") -> Iterator[tuple[int, Prediction]]:
        """Yield the predictions of a batch. If it fails, run its images one by one, to find the faulty one."""
        try:
            results = self._predict(batch, prepared.result())
        except Exception as error:
            if len(batch) == 1:
                [(index, item)] = batch.items()
                if self.on_error is None:
                    raise ValueError(_message(index, item, error)) from error
                self.on_error(index, error)
                return
            results = []
        del prepared
        if results:
            yield from zip(batch, results, strict=True)
        else:  # outside the except clause, which would keep the batch in memory
            for index, item in batch.items():
                alone: Future[_Prepared] = Future()
                try:
                    alone.set_result(self.prepare({index: item}))
                except Exception as error:
                    alone.set_exception(error)
                yield from self.finish({index: item}, alone)

    def prepare(self, batch: _Batch) -> _Prepared:
        """Open the images of a batch and run the processor on them; needs no model."""
        model, processor = self.depthvlm.model, self.depthvlm.processor
        labels = [_label(index, item) for index, item in batch.items()]
        with ThreadPoolExecutor(thread_name_prefix="depthvlm-open") as threads:  # Pillow decodes without the GIL
            images = list(threads.map(open_image, batch.values(), repeat(self.max_image_pixels)))
        conversation: list[Any] = [
            {"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.prompt or DEPTH_PROMPT}]},
        ]
        text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        cameras = {name: [values[index] for index in batch] for name, values in self.cameras.items()}
        cameras = {name: values for name, values in cameras.items() if any(value is not None for value in values)}
        with unsaid(AssumedCameraWarning), self.tokenizer_lock:  # the warning comes once, below
            inputs = processor(
                images=images,
                text=[text] * len(images),
                padding=True,
                padding_side="left",
                return_tensors="pt",
                image_names=labels,
                **cameras,
            )
            with unsaid(UserWarning):  # said above
                others = view_inputs(processor, images, text, self.refine, cameras)
        for one in (inputs, *(one for _, one in others)):
            check_context(model, one["input_ids"].shape[1])
        return _Prepared([upright_rgb(image) for image in images], labels, inputs, others)

    def _predict(self, batch: _Batch, prepared: _Prepared) -> list[Prediction]:
        model, processor = self.depthvlm.model, self.depthvlm.processor
        inputs = prepared.inputs.to(model.device)
        replies: list[str | None] = [None] * len(batch)
        with torch.inference_mode():
            if self.prompt is None:
                output: Any = model.predict_depth(**inputs)
            else:
                output = model.generate(**inputs, return_dict_in_generate=True, **greedy(self.generation))
                new_tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
                with self.tokenizer_lock:
                    replies = [reply.strip() for reply in processor.batch_decode(new_tokens, skip_special_tokens=True)]
            spreads: list[Any] = [None] * len(batch)
            if prepared.others:
                maps = [(view, model.predict_depth(**one.to(model.device))) for view, one in prepared.others]
                means, spreads = combine(output.predicted_depth, maps)
                output = PredictedDepth(means, inputs["cameras"])
                spreads = [spread.cpu().numpy() for spread in resize_spread(spreads, inputs["cameras"])]
            depths = processor.post_process_depth_estimation(output)
        self._warn_assumed([depth["camera"] for depth in depths], prepared.labels)
        return [
            Prediction(
                depth=depth["predicted_depth"].cpu().numpy(),
                camera=depth["camera"],
                image=picture,
                text=reply,
                prompt=self.prompt,
                source=_path(item),
                model=self.depthvlm.name,
                spread=spread,
            )
            for item, picture, depth, spread, reply in zip(
                batch.values(), prepared.pictures, depths, spreads, replies, strict=True
            )
        ]

    def _warn_assumed(self, cameras: list[Any], labels: list[str]) -> None:
        assumed = [label for camera, label in zip(cameras, labels, strict=True) if camera.source == "assumed"]
        if assumed and not self.warned_assumed:
            self.warned_assumed = True
            warnings.warn(
                f"The focal length of {assumed[0]} is not known: no camera was given, and its EXIF data do not say. A "
                f"field of view of {self.depthvlm.processor.image_processor.assumed_fov:g} degrees across the longer "
                "side is assumed, for this image and for others like it. If it is wrong, all depths are wrong by the "
                "same factor. Give the focal length in pixels, the field of view or the intrinsics.",
                stacklevel=2,
            )


def _path(item: Any) -> Path | None:
    path = local_path(item.get("path") if isinstance(item, Mapping) else item)
    return None if path is None else Path(path)


def _message(index: int, item: Any, error: Exception) -> str:
    """Return the error message with the image's name."""
    label, words = _label(index, item), str(error)
    return words if words.startswith(label) else f"{label}: {words}"


def _label(index: int, item: Any) -> str:
    return str(item)[:200] if isinstance(item, (str, PathLike)) else f"Image {index}"


def check_context(model: Any, tokens: int) -> None:
    """Raise ValueError before running a prompt that, with its image, is longer than the model's context."""
    context = model.config.text_config.max_position_embeddings
    if tokens > context:
        raise ValueError(
            f"The prompt has {tokens:,} tokens with its image, and the model's context holds {context:,}. Shorten it."
        )


def greedy(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `generate`, with greedy decoding unless they ask for sampling."""
    if generation.get("do_sample"):
        return generation
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None} | generation


def upright_rgb(image: Any) -> Image.Image:
    """Return an image as upright RGB, without repeating the warnings that the processor already gave."""
    with unsaid(UserWarning):
        return upright_image(image)[0]


def _size(item: Any) -> int:
    """Return the rough number of pixels, from the header only; 0 if it cannot be read (its batch raises)."""
    try:
        if isinstance(item, Mapping):
            return _size(item["path"] if item.get("bytes") is None else item["bytes"])
        if isinstance(item, (str, PathLike, bytes)):
            with open_raster(item if isinstance(item, bytes) else local_path(item)) as image:
                return image.width * image.height
        return item.width * item.height if isinstance(item, Image.Image) else int(np.prod(item.shape[:2]))
    except Exception:  # Pillow may raise anything on corrupt bytes
        return 0
