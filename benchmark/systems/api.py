"""VLMs behind an OpenAI-compatible server, by the arrow protocol: GPT-4o, GPT-5.5, whatever vLLM serves."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import cached_assets_path
from PIL import Image

from .answer_cache import AnswerCache, CachedAnswer, answer_key
from .answers import ARROW_PROMPT, parse_metres
from .arrow import ARROW_LENGTH, LONGEST_EDGE, draw_arrow, fit_image, scale_points
from .chat_client import ChatClient
from .interface import Example, PointAnswer, PointPredictor, Requirement

OPENAI_URL = "https://api.openai.com/v1"


class CostLimitReached(Exception):
    """The run has spent what it may. Its answers are kept in the cache."""


class _Stopped(Exception):
    """Nothing was asked, because another question failed."""


class ApiVLM(PointPredictor):
    """
    Asks a server about one point at a time, several at once, and keeps every answer on disk as it comes.

    A run that is interrupted, by an error too, goes on where it was when started again: answers in the cache cost
    nothing. A server's failure after all retries stops the run with `ChatServerError`; an answer without a readable
    number is a wrong answer, not an error.

    Args:
        model: as the server names it.
        base_url: of the server, with the version: `http://localhost:8000/v1` for vLLM.
        api_key_env: environment variable that holds the API key, which is neither logged nor kept; None: the server
            wants none.
        prompt: the question; the paper's by default.
        temperature: 0 is greedy decoding; None: left out, for reasoning models that take none.
        max_new_tokens: of the answer; thoughts count.
        token_parameter: what the server calls it: `max_tokens`, or `max_completion_tokens` for OpenAI's reasoning
            models.
        extra_body: further fields of the request, such as `{"reasoning_effort": "low"}`.
        arrow_length, longest_edge: in pixels, see `benchmark/systems/arrow.py`.
        image_format: `png`, which leaves every pixel as it is, or `jpeg` (quality 95, colours not subsampled).
        concurrency: requests at the same time.
        requests_per_minute, timeout, max_retries: see [`ChatClient`].
        input_price, output_price: of a million tokens, in any currency; cached input tokens count in full.
        max_cost: stop when this run has spent so much in that currency; requests on their way still finish, so that
            at most `concurrency` - 1 of them go beyond it.
        cache: folder of the answers; None: `depthvlm/answers` in the assets of the Hugging Face cache.
        sleep: a stand-in for waiting; see [`ChatClient`].

    Raises:
        ValueError: options that do not go together, or an API key that is not there.
    """

    name = "api"
    requires = Requirement(
        environment=("OPENAI_API_KEY",),
        install="An OpenAI-compatible server: set its API key (api_key_env), or run `vllm serve MODEL` (base_url)",
    )

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI_URL,
        api_key_env: str | None = "OPENAI_API_KEY",
        prompt: str = ARROW_PROMPT,
        temperature: float | None = 0.0,
        max_new_tokens: int = 1024,
        token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: Mapping[str, Any] | None = None,
        arrow_length: int = ARROW_LENGTH,
        longest_edge: int = LONGEST_EDGE,
        image_format: Literal["png", "jpeg"] = "png",
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        timeout: float = 120.0,
        max_retries: int = 6,
        input_price: float | None = None,
        output_price: float | None = None,
        max_cost: float | None = None,
        cache: str | Path | None = None,
        sleep: Callable[[float], object] | None = None,
    ):
        if (input_price is None) != (output_price is None):
            raise ValueError("Give both `input_price` and `output_price`, of a million tokens, or neither.")
        if max_cost is not None and input_price is None:
            raise ValueError("`max_cost` needs `input_price` and `output_price`: there is no built-in list of prices.")
        if image_format not in ("png", "jpeg"):
            raise ValueError(f"`image_format` is png or jpeg, got {image_format!r}.")
        if concurrency < 1:
            raise ValueError(f"`concurrency` must be at least 1, got {concurrency}.")
        key = os.environ.get(api_key_env) if api_key_env else None
        if api_key_env and not key:
            raise ValueError(
                f"The environment variable {api_key_env} holds no API key. Set it, name another one with "
                "`api_key_env`, or pass `api_key_env=None` for a server without keys."
            )
        self.model, self.prompt = model, prompt
        self.arrow_length, self.longest_edge, self.image_format = arrow_length, longest_edge, image_format
        self.concurrency, self.max_cost = concurrency, max_cost
        self.cache = AnswerCache(
            cached_assets_path("depthvlm", namespace="answers", subfolder="api") if cache is None else cache
        )
        self.input_tokens = self.output_tokens = self.requests = 0
        """Of this run; answers from the cache are not counted."""
        self._prices = None if input_price is None or output_price is None else (input_price, output_price)
        greedy = {} if temperature is None else {"temperature": temperature}
        self._fields: dict[str, Any] = {token_parameter: max_new_tokens, **greedy, **(extra_body or {})}
        # Two servers may give one name to different models.
        self._key_fields = {**self._fields, "base_url": base_url.rstrip("/"), "image_format": image_format}
        self._client = ChatClient(
            base_url,
            key,
            timeout=timeout,
            max_retries=max_retries,
            requests_per_minute=requests_per_minute,
            sleep=sleep,
        )
        self._lock = threading.Lock()
        self._asked: dict[str, Future[CachedAnswer]] = {}

    @property
    def cost(self) -> float | None:
        """What this run has spent, in the currency of the prices; None without prices."""
        if self._prices is None:
            return None
        return (self.input_tokens * self._prices[0] + self.output_tokens * self._prices[1]) / 1e6

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """
        One answer for every point of every example, in their order.

        Raises:
            ChatServerError: the server refused, or gave no answer after all retries.
            CostLimitReached: `max_cost` is spent.
            ValueError: a point outside its image, or a file of the cache that cannot be read.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                answers: list[list[Future[PointAnswer]]] = []
                for example in examples:
                    image = fit_image(example.image, self.longest_edge)
                    pixels = scale_points(example.points, example.image.size, image.size).tolist()
                    answers.append([pool.submit(self._answer, image, tuple(pixel), stop) for pixel in pixels])
                done, _ = wait([answer for of_image in answers for answer in of_image], return_when=FIRST_EXCEPTION)
                errors = [error for answer in done if (error := answer.exception())]
                if errors:
                    raise min(errors, key=lambda error: isinstance(error, _Stopped))
            except BaseException as error:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                error.add_note(f"The answers so far are kept in {self.cache.folder}: run again to go on from there.")
                raise
        return [[answer.result() for answer in of_image] for of_image in answers]

    def _answer(self, image: Image.Image, pixel: tuple[int, int], stop: threading.Event) -> PointAnswer:
        drawn = draw_arrow(image, pixel, self.arrow_length)
        key = answer_key(self.model, self.prompt, drawn, self._key_fields)
        with self._lock:
            future = self._asked.get(key)
            if mine := future is None:
                future = self._asked[key] = Future()
        if mine:
            try:
                future.set_result(self.cache.get(key) or self._ask(key, drawn, stop))
            except BaseException as error:
                stop.set()
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._asked[key]
        text = future.result().text
        return PointAnswer(parse_metres(text), text)

    def _ask(self, key: str, drawn: Image.Image, stop: threading.Event) -> CachedAnswer:
        if stop.is_set():
            raise _Stopped("Another question failed.")
        if self.max_cost is not None and (self.cost or 0.0) >= self.max_cost:
            raise CostLimitReached(
                f"This run has spent {self.cost:.4g} of {self.max_cost:g} ({self.requests} requests)."
            )
        question = [
            {"type": "image_url", "image_url": {"url": image_url(drawn, self.image_format)}},
            {"type": "text", "text": self.prompt},
        ]
        messages = [{"role": "user", "content": question}]
        reply = self._client.complete({"model": self.model, "messages": messages, **self._fields}, stop)
        answer = CachedAnswer(reply.text, reply.input_tokens, reply.output_tokens, reply.finish_reason)
        self.cache.put(key, answer)
        with self._lock:
            self.requests += 1
            self.input_tokens += reply.input_tokens or 0
            self.output_tokens += reply.output_tokens or 0
        if self.max_cost is not None and (reply.input_tokens is None or reply.output_tokens is None):
            raise ValueError("The server does not count tokens, so `max_cost` cannot be kept. Run without it.")
        return answer


def image_url(image: Image.Image, image_format: str) -> str:
    """A data URL of an encoded image."""
    stream = io.BytesIO()
    if image_format == "jpeg":
        image.save(stream, "JPEG", quality=95, subsampling=0)
    else:
        image.save(stream, "PNG")
    return f"data:image/{image_format};base64,{base64.b64encode(stream.getvalue()).decode()}"
