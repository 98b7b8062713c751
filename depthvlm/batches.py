"""Batches of images on their way through a model: grouped by size, prepared in a thread, predicted."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from .modeling_depthvlm import DepthVLMForConditionalGeneration, PredictedDepth
from .prediction import Prediction
from .processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT, AssumedCameraWarning, DepthVLMProcessor
from .processing.camera_depthvlm import unsaid
from .processing.images_depthvlm import local_path, open_image, open_raster, upright_image
from .refinement import combine, resize_spread, view_inputs

_BATCHES_SORTED_TOGETHER = 8

Batch: TypeAlias = dict[int, Any]  # images by number


def batches_by_size(items: Sequence[Any], batch_size: int) -> Iterator[Batch]:
    """Yield the images in batches, grouping those of similar size within a window of a few batches."""
    window = batch_size * _BATCHES_SORTED_TOGETHER
    for start in range(0, len(items), window):
        near = {index: items[index] for index in range(start, min(start + window, len(items)))}
        order = sorted(near, key=lambda index: _size(near[index])) if batch_size > 1 else list(near)
        for first in range(0, len(order), batch_size):
            yield {index: near[index] for index in order[first : first + batch_size]}


@dataclass
class PreparedBatch:
    """A batch ready for the model: upright pictures, their names in messages, and the processor's output, by views."""

    pictures: list[Image.Image]
    labels: list[str]
    inputs: Any
    others: list[Any]


@dataclass
class BatchRun:
    """One call of `predict_iter`: the model, the cameras of all images, and the settings."""

    model: DepthVLMForConditionalGeneration
    processor: DepthVLMProcessor
    name: str  # of the model, in predictions
    cameras: dict[str, list[Any]]
    prompt: str | None
    generation: dict[str, Any]
    max_image_pixels: int
    on_error: Callable[[int, Exception], None] | None
    refine: int = 1
    warned_assumed: bool = False
    tokenizer_lock: Any = field(default_factory=Lock)  # tokenizers are not thread-safe

    def finish(self, batch: Batch, prepared: "Future[PreparedBatch]") -> Iterator[tuple[int, Prediction]]:
        """Yield the predictions of a batch. If it fails, run its images one by one, to find the faulty one."""
        try:
            results = self.predict(batch, prepared.result())
        except Exception as error:
            if len(batch) == 1:
                [(index, item)] = batch.items()
                if self.on_error is None:
                    raise ValueError(named_message(index, item, error)) from error
                self.on_error(index, error)
                return
            results = []
        del prepared
        if results:
            yield from zip(batch, results, strict=True)
        else:  # outside the except clause, which would keep the batch in memory
            for index, item in batch.items():
                alone: Future[PreparedBatch] = Future()
                try:
                    alone.set_result(self.prepare({index: item}))
                except Exception as error:
                    alone.set_exception(error)
                yield from self.finish({index: item}, alone)

    def prepare(self, batch: Batch) -> PreparedBatch:
        """Open the images of a batch and run the processor on them; needs no model."""
        model, processor = self.model, self.processor
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
        return PreparedBatch([upright_rgb(image) for image in images], labels, inputs, others)

    def predict(self, batch: Batch, prepared: PreparedBatch) -> list[Prediction]:
        """Run the model on a batch, every view of it once."""
        model, processor = self.model, self.processor
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
                if model.depth_head.camera is not None:  # metres of the other views are of the assumed camera
                    ratios = output.cameras[:, 0] / inputs["cameras"][:, 0].to(output.cameras)
                    maps = [
                        (view, PredictedDepth([d * r for d, r in zip(one, ratios, strict=True)])) for view, one in maps
                    ]
                means, spreads = combine(output.predicted_depth, maps)
                output = PredictedDepth(means, output.cameras)
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
                source=path_of(item),
                model=self.name,
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
                f"field of view of {self.processor.image_processor.assumed_fov:g} degrees across the longer "
                "side is assumed, for this image and for others like it. If it is wrong, all depths are wrong by the "
                "same factor. Give the focal length in pixels, the field of view or the intrinsics.",
                stacklevel=2,
            )


def path_of(item: Any) -> Path | None:
    """Return the path of an image's file, or None if it does not come from one."""
    path = local_path(item.get("path") if isinstance(item, Mapping) else item)
    return None if path is None else Path(path)


def named_message(index: int, item: Any, error: Exception) -> str:
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
