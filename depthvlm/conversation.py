"""Depth of one image and a conversation about it, from one prefill."""

import copy
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from .batches import check_context, greedy, upright_rgb
from .inference import DepthPredictor, ImageInput, load
from .loading import check_generation
from .prediction import Prediction
from .processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from .processing.camera_depthvlm import unsaid
from .processing.image_processing_depthvlm import names_keywords
from .processing.images_depthvlm import open_image


class Conversation:
    """One image, its depth, and questions about it.

    The image goes through the vision tower and the LLM once: that pass gives the depth map, and every question
    continues from its cache. Cached questions and replies are reused too, as far as the newly rendered conversation
    starts with the same tokens. (Linear attention, as in Qwen3.5, keeps no past states to return to: it reuses the
    whole cache or only the image's part.) The replies equal those of a prefill of the whole conversation, up to
    rounding in the model's dtype, which may swap two nearly equal scores.

    Examples:
        >>> from depthvlm import Conversation
        >>> conversation = Conversation("photo.jpg", focal_length=1450)
        >>> print(conversation.depth.shape, conversation.ask("What is in front of me?"))
        >>> for words in conversation.stream("And behind it?"):
        ...     print(words, end="", flush=True)

    Conversations with the same model may run in several threads, alongside `predict`. Questions to one conversation are
    answered one at a time.

    Args:
        image: One image, see [`predict`].
        model: A checkpoint's folder or Hub name, or the return value of [`load`]. None: the bundled `depthvlm-nano`.
        focal_length: In pixels of the image as given.
        fov: Horizontal field of view in degrees.
        intrinsics: 3x3 matrix or `[fx, fy, cx, cy]`, in pixels of the image as given. Without any of the three, EXIF
            data are used, or a field of view is assumed, with a warning.
        system: The system prompt.

    Attributes:
        prediction: The depth `(H, W)` in metres, the camera that was used, and the upright image; without text.
        messages: The questions and replies so far, as `{"role": ..., "content": ...}`.

    Raises:
        ValueError: The image or the camera cannot be used.
        OSError: There is no such image or model.
    """

    @names_keywords
    def __init__(
        self,
        image: ImageInput,
        model: str | PathLike[str] | DepthPredictor | None = None,
        *,
        focal_length: float | None = None,
        fov: float | None = None,
        intrinsics: Any = None,
        system: str = DEPTH_SYSTEM_PROMPT,
    ) -> None:
        self.depthvlm = model if isinstance(model, DepthPredictor) else load(model)
        self.messages: list[dict[str, str]] = []
        self._system = system
        self._camera = {"focal_length": focal_length, "fov": fov, "intrinsics": intrinsics}
        self._image = open_image(image)
        self._cache: Any = None
        self._cached_ids: list[int] = []
        self._image_cache: Any = None  # the cache after the image, if the cache cannot be cropped
        self._turn = threading.Lock()
        self.prediction = self._see()

    @property
    def depth(self) -> Any:
        """`(H, W)` float32, z-depth in metres."""
        return self.prediction.depth

    def ask(self, text: str, *, max_new_tokens: int = 256, **generate_kwargs: Any) -> str:
        """Return the reply to a question, in the context of the conversation so far.

        Args:
            text: The question.
            max_new_tokens: Greatest length of the reply.
            **generate_kwargs: Passed on to `generate`, such as `do_sample=True` or `max_time`; greedy by default.

        Raises:
            TypeError: A keyword is not known to `generate`.
            ValueError: The question is empty, holds one of the tokenizer's control tokens, or is too long for the
                model's context with the conversation so far.
        """
        self._check(text)
        check_generation(generate_kwargs, "ask")
        with self._turn:
            return self._reply(text, {"max_new_tokens": max_new_tokens} | generate_kwargs)

    def stream(self, text: str, **generate_kwargs: Any) -> Generator[str, None, None]:
        """Yield the reply to a question in pieces as they are generated; joined, they equal the return value of `ask`.

        The model runs in a separate thread. Closing the iterator stops it after the current token; the text so far is
        the reply.

        Args:
            text: The question.
            **generate_kwargs: See `ask`.

        Raises:
            ValueError: See `ask`; raised when the first piece is requested.
        """
        tokenizer: Any = self.depthvlm.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        closed = threading.Event()

        def is_closed(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            return torch.full((len(ids),), closed.is_set(), device=ids.device)

        criteria = StoppingCriteriaList([*generate_kwargs.pop("stopping_criteria", ()), is_closed])
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(self.ask, text, streamer=streamer, stopping_criteria=criteria, **generate_kwargs)
            reply.add_done_callback(lambda _: streamer.end())  # `generate` does not end the stream if it fails
            try:
                yield from _stripped(streamer)
            finally:
                closed.set()
        reply.result()  # raises the error of `ask`, if any

    def clear(self) -> None:
        """Forget the questions and replies; the image stays cached."""
        self.messages = []

    def release(self) -> None:
        """Free the memory of the cache. The next question encodes the image again and continues the conversation."""
        self._cache, self._cached_ids, self._image_cache = None, [], None

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache: 0 after `release`."""
        return len(self._cached_ids) if self._cache is not None else 0

    def _reply(self, text: str, generate_kwargs: dict[str, Any]) -> str:
        if self._cache is None:
            with unsaid(UserWarning):  # already warned the first time
                self._see()
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._token_ids(messages)
        check_context(self.depthvlm.model, len(ids))
        self._keep_common(ids)
        model = self.depthvlm.model
        row = torch.tensor([ids], device=model.device)
        cache, self._cache = self._cache, None  # an interrupted generation leaves its layers with unequal lengths
        with torch.inference_mode():
            output: Any = model.generate(
                row,
                attention_mask=torch.ones_like(row),
                past_key_values=cache,
                return_dict_in_generate=True,
                **greedy(generate_kwargs),
            )
        sequence = output.sequences[0].tolist()
        self._cache, self._cached_ids = cache, sequence[: cache.get_seq_length()]
        reply = self.depthvlm.processor.decode(sequence[len(ids) :], skip_special_tokens=True).strip()
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return reply

    def _see(self) -> Prediction:
        """Prefill up to the last image token, to get the cache and, from the same pass, the depth."""
        model, processor = self.depthvlm.model, self.depthvlm.processor
        camera = {name: value for name, value in self._camera.items() if value is not None}
        first = [{"role": "user", "content": DEPTH_PROMPT}]  # any text: tokens after the image are cut off
        inputs = processor(images=[self._image], text=[self._text(first)], return_tensors="pt", **camera)
        self._image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
        end = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            inputs[name] = inputs[name][:, :end]
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model(**inputs, use_cache=True, output_depth=True, logits_to_keep=1)
            [depth] = processor.post_process_depth_estimation(output)
            self._cache, self._cached_ids = output.past_key_values, inputs["input_ids"][0].tolist()
            self._image_cache = None if self._cache.is_croppable else copy.deepcopy(self._cache)
        picture = upright_rgb(self._image)
        return Prediction(depth["predicted_depth"].cpu().numpy(), depth["camera"], picture, model=self.depthvlm.name)

    def _text(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the conversation rendered by the chat template, with the image before the first question."""
        question, *rest = messages
        turns: list[Any] = [
            {"role": "system", "content": [{"type": "text", "text": self._system}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question["content"]}]},
            *({"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in rest),
        ]
        return self.depthvlm.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _token_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Return the conversation's tokens, including the image's, without reading its pixels again."""
        token = self.depthvlm.processor.image_token
        text = self._text(messages).replace(token, token * self._image_tokens)
        return self.depthvlm.processor.tokenizer(text)["input_ids"]

    def _keep_common(self, ids: list[int]) -> None:
        """Crop the cache to a common prefix with `ids`, leaving at least one token to run."""
        limit = min(len(self._cached_ids), len(ids) - 1)
        common = next((i for i in range(limit) if ids[i] != self._cached_ids[i]), limit)
        image_end = len(self._cached_ids) - self._cached_ids[::-1].index(self.depthvlm.model.config.image_token_id)
        if common < image_end:
            raise RuntimeError(
                "The chat template writes what comes before the image differently for each question, so that the "
                "image cannot be kept. Ask by `depthvlm.predict` instead."
            )
        surplus = self._cache.get_seq_length() - common
        if surplus and self._image_cache is None:
            self._cache.crop(-surplus)
        elif surplus:  # recurrent states cannot be cropped
            with torch.inference_mode():
                self._cache = copy.deepcopy(self._image_cache)
            common = image_end
        self._cached_ids = self._cached_ids[:common]

    def _check(self, text: str) -> None:
        if not text.strip():
            raise ValueError("The question is empty.")
        found = [token for token in self.depthvlm.processor.tokenizer.get_added_vocab() if token in text]
        if found:
            raise ValueError(f"The question holds {found[0]}, a control token of the model. Write it without.")


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces without the leading and trailing white space of the whole text."""
    waiting, begun = "", False
    for piece in pieces:
        waiting = waiting + piece if begun else (waiting + piece).lstrip()
        ready = waiting.rstrip()
        if ready:
            yield ready
            waiting, begun = waiting[len(ready) :], True
