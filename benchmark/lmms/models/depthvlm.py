"""DepthVLM as a model of lmms-eval: replies about images and videos, in batches, greedy unless a task samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image
from tqdm import tqdm

from ....loading import load_checkpoint
from ....processing import DEPTH_SYSTEM_PROMPT
from ..videos import read_frames

_HARNESS_STOP = "\n\n"  # lmms-eval adds it to tasks without stop words; its own chat models ignore it too


class DepthVLM(lmms):
    """The simple interface of lmms-eval: the images and videos of a question, then its text.

    The cameras of general benchmarks are unknown, and their questions are not about metres. By default images are
    therefore seen as the underlying Qwen3-VL sees them: at their own size, rounded to whole visual tokens, within the
    pixel budget, with its bicubic filter. With `fov` they are resized to the canonical camera, as for depth.

    Args:
        pretrained: A folder, a name on the Hub, or "depthvlm-nano" for the small checkpoint of this package.
        device: `auto`, `cuda`, `cuda:1`, `mps` or `cpu`; under `accelerate launch` each process takes its own.
        dtype: `bfloat16`, `float16`, `float32`; `auto` for the checkpoint's own, but float32 for a small one on a CPU.
        batch_size: Number of questions in a batch.
        fov: Horizontal field of view of all images in degrees; None: see above.
        min_pixels: Least area of an image as the model sees it, in pixels; the checkpoint's by default.
        max_pixels: Greatest area.
        num_frames: Number of evenly spaced frames of a video.
        system_prompt: The system prompt; "" for none.
        attn_implementation: Argument of `from_pretrained`.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: An argument is out of its range.
        OSError: There is no such model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        fov: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        num_frames: int = 32,
        system_prompt: str = DEPTH_SYSTEM_PROMPT,
        attn_implementation: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be a whole number above 0, got {batch_size!r}.")
        if num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, got {num_frames}.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        where = str(self.accelerator.device) if self._world_size > 1 else device or "auto"
        options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.network, self.processor = load_checkpoint(pretrained, where, dtype, revision=revision, **options)
        self.device = self.network.device
        self.batch_size, self.num_frames, self.system_prompt = int(batch_size), num_frames, system_prompt
        self.image_options = _image_options(self.processor.image_processor, fov, min_pixels, max_pixels)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the reply to every request, in their order."""
        replies = [""] * len(requests)
        batches = list(self._batches(requests))
        for batch in tqdm(batches, disable=self.rank != 0, desc="DepthVLM replies"):
            conversations = [self._conversation(requests[index].args) for index in batch]
            found = self._reply(conversations, self._generation_options(requests[batch[0]].args))
            for index, reply in zip(batch, found, strict=True):
                replies[index] = reply
        return replies

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: no task of the paper's tables needs likelihoods."""
        raise NotImplementedError("DepthVLM answers in words: take tasks with `output_type: generate_until`.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise NotImplementedError: no task of the paper's tables has several rounds."""
        raise NotImplementedError("DepthVLM answers one turn: take tasks with `output_type: generate_until`.")

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Yield batches of requests with the same options, those with texts of similar length together."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(self._generation_options(request.args).items())), []).append(index)
        for group in groups.values():
            group.sort(key=lambda index: -len(requests[index].args[0]))
            yield from (group[start : start + self.batch_size] for start in range(0, len(group), self.batch_size))

    def _document(self, arguments: tuple[Any, ...]) -> Any:
        number, task, split = arguments[3:6]
        return self.task_dict[task][split][number]

    def _generation_options(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        return dict(arguments[1])

    def _messages(self, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        visuals = arguments[2](self._document(arguments)) or []
        content = [_visual(visual) for visual in visuals if visual is not None]
        return [{"role": "user", "content": [*content, {"type": "text", "text": arguments[0]}]}]

    def _conversation(self, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        messages = self._messages(arguments)
        if not self.system_prompt or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, *messages]

    def _with_frames(
        self, conversations: list[list[dict[str, Any]]]
    ) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
        """Return the conversations with frames instead of paths, and the metadata of all videos in their order."""
        found: list[dict[str, Any]] = []

        def decoded(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] != "video":
                return part
            frames, metadata = read_frames(part["video"], self.num_frames)
            found.append(metadata)
            return {"type": "video", "video": frames}

        return [
            [{**message, "content": [decoded(part) for part in message["content"]]} for message in messages]
            for messages in conversations
        ], found

    @torch.inference_mode()
    def _reply(self, conversations: list[list[dict[str, Any]]], options: dict[str, Any]) -> list[str]:
        kinds = {part["type"] for messages in conversations for message in messages for part in message["content"]}
        if unknown := kinds - {"text", "image", "video"}:
            raise ValueError(f"DepthVLM takes text, images and videos; this task has {', '.join(sorted(unknown))}.")
        settings: dict[str, Any] = {"text_kwargs": {"padding": True, "padding_side": "left"}}
        if "image" in kinds:
            settings["images_kwargs"] = self.image_options
        if "video" in kinds:
            conversations, metadata = self._with_frames(conversations)
            settings["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
        encoded: Any = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=settings,
        )
        inputs = encoded.to(self.device, dtype=self.network.dtype)
        until = options.pop("until", None) or []
        tokens = self.network.generate(**inputs, **_decoding(options))
        new = tokens[:, inputs["input_ids"].shape[1] :]
        replies = self.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != _HARNESS_STOP]
        return [_cut(reply, stops) for reply in replies]


class DepthVLMChat(DepthVLM):
    """The chat interface of lmms-eval, with images in the text where a task puts them."""

    is_simple = False

    def _generation_options(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        return dict(arguments[2])

    def _messages(self, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        return ChatMessages(messages=arguments[1](self._document(arguments))).to_hf_messages()


def _image_options(processor: Any, fov: float | None, least: int | None, greatest: int | None) -> dict[str, Any]:
    """Return the options of the image processor for every image."""
    budget = {"min_pixels": least, "max_pixels": greatest}
    options: dict[str, Any] = {name: value for name, value in budget.items() if value is not None}
    if fov is not None:
        return {**options, "fov": float(fov)}
    # The canonical camera itself: the factor of equation 6 is 1, and no field of view is assumed.
    return {**options, "focal_length": processor.canonical_focal_length, "resample": Image.Resampling.BICUBIC}


def _visual(visual: Any) -> dict[str, Any]:
    """Return the part of a message for an image or the path of a video."""
    if isinstance(visual, Image.Image):
        return {"type": "image", "image": visual}
    if isinstance(visual, str):
        return {"type": "video", "video": visual}
    raise ValueError(f"DepthVLM takes text, images and videos; this task has a {type(visual).__name__}.")


def _decoding(options: dict[str, Any]) -> dict[str, Any]:
    """Return a task's options for `generate`: greedy, unless it gives a temperature above 0."""
    options = {"max_new_tokens": 128, "num_beams": 1, **options}
    temperature = options.get("temperature")
    if options.get("do_sample") if temperature is None else temperature > 0:
        return {**options, "do_sample": True}
    return {**options, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def _cut(reply: str, stops: Sequence[str]) -> str:
    for stop in stops:
        reply = reply.split(stop)[0]
    return reply
