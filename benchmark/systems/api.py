"""VLMs behind an OpenAI-compatible server, by the arrow protocol: GPT-4o, GPT-5.5, any model that vLLM serves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import cached_assets_path
from PIL import Image

from .arrow import ARROW_LENGTH, ARROW_PROMPT, LONGEST_EDGE, draw_arrow, fit_image, parse_metres, scale_points
from .chat import Answer, AnswerCache, ChatClient
from .interface import Example, PointAnswer, PointPredictor

OPENAI_URL = "https://api.openai.com/v1"


class CostLimitReached(Exception):
    """The run has spent its limit. Its answers are kept in the cache."""


class _Stopped(Exception):
    """Nothing was asked, because another question failed."""


class ApiVLM(PointPredictor):
    """A VLM on a server, asked about one point at a time, several at once; every answer is kept on disk as it comes.

    A run that is interrupted, also by an error, continues from there when started again: answers in the cache cost
    nothing. If the server still fails after all retries, the run stops with `ChatServerError`; an answer without a
    readable number is a wrong answer, not an error.

    Args:
        model: Name of the model on the server.
        base_url: Address of the server, with the version: `http://localhost:8000/v1` for vLLM.
        api_key_env: Environment variable that holds the API key, which is neither logged nor kept; None for a server
            without keys.
        prompt: The question; the paper's by default.
        temperature: 0 for greedy decoding; None to leave it out, for reasoning models that take none.
        max_new_tokens: Maximum length of the answer, thoughts included.
        token_parameter: The server's name of that length: `max_tokens`, or `max_completion_tokens` for OpenAI's
            reasoning models.
        extra_body: Further fields of the request, such as `{"reasoning_effort": "low"}`.
        arrow_length: Length of the arrow in pixels.
        longest_edge: Size in pixels to which larger images are scaled.
        image_format: `png`, which keeps every pixel as it is, or `jpeg` (quality 95, colours not subsampled).
        concurrency: Number of requests at the same time.
        requests_per_minute: Limit for all threads together, retries included; None for no limit.
        timeout: Seconds without a byte from the server, for each try.
        max_retries: Number of further tries after the first.
        input_price: Price of a million input tokens, in any currency; cached ones count in full.
        output_price: Price of a million output tokens.
        max_cost: Stop when this run has spent so much in that currency. Requests on their way still finish, so that at
            most `concurrency` - 1 of them go beyond it.
        cache: Folder of the answers; by default `depthvlm/answers` in the assets of the Hugging Face cache.
        sleep: Replacement for waiting, for tests.

    Raises:
        ValueError: Options do not go together, or there is no API key.
        ImportError: The package openai is not installed.
    """

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
        """Counts of this run; answers from the cache do not count."""
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
        self._asked: dict[str, Future[Answer]] = {}

    @property
    def cost(self) -> float | None:
        """Money that this run has spent, in the currency of the prices; None without prices."""
        if self._prices is None:
            return None
        return (self.input_tokens * self._prices[0] + self.output_tokens * self._prices[1]) / 1e6

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """Return one answer for every point of every example, in their order.

        Raises:
            ChatServerError: The server refused, or gave no answer after all retries.
            CostLimitReached: `max_cost` is spent.
            ValueError: A point lies outside its image, or a file of the cache cannot be read.
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

    def _ask(self, key: str, drawn: Image.Image, stop: threading.Event) -> Answer:
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
        answer = self._client.complete(self.model, messages, self._fields, stop)
        self.cache.put(key, answer)
        with self._lock:
            self.requests += 1
            self.input_tokens += answer.input_tokens or 0
            self.output_tokens += answer.output_tokens or 0
        if self.max_cost is not None and (answer.input_tokens is None or answer.output_tokens is None):
            raise ValueError("The server does not count tokens, so `max_cost` cannot be kept. Run without it.")
        return answer


def answer_key(model: str, prompt: str, image: Image.Image, parameters: Mapping[str, Any]) -> str:
    """Return the hexadecimal sha256 of a question: the model, the prompt, the image and all parameters.

    The image counts by its pixels, not by its encoded bytes, which change with the version of the encoder.

    Raises:
        TypeError: A parameter is not plain JSON data.
    """
    question = {"model": model, "prompt": prompt, "mode": image.mode, "size": image.size, "parameters": parameters}
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
    digest.update(b"\0")
    digest.update(image.tobytes())
    return digest.hexdigest()


def image_url(image: Image.Image, image_format: str) -> str:
    """Return an encoded image as a data URL."""
    stream = io.BytesIO()
    if image_format == "jpeg":
        image.save(stream, "JPEG", quality=95, subsampling=0)
    else:
        image.save(stream, "PNG")
    return f"data:image/{image_format};base64,{base64.b64encode(stream.getvalue()).decode()}"
