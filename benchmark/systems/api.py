"""VLMs behind an OpenAI-compatible server, by the arrow protocol: GPT-4o, GPT-5.5, any model that vLLM serves."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import io
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import cached_assets_path
from PIL import Image

from ...files import write_text
from .arrow import ARROW_LENGTH, ARROW_PROMPT, LONGEST_EDGE, draw_arrow, fit_image, parse_metres, scale_points
from .interface import Example, PointAnswer, PointPredictor

OPENAI_URL = "https://api.openai.com/v1"
_LONGEST_BACKOFF, _LONGEST_WAIT = 60.0, 300.0  # seconds: between tries, and that a server may ask for
_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}


class ChatServerError(Exception):
    """A server refuses, or gives no usable answer after all retries. This is not a wrong answer: nothing was said."""


class CostLimitReached(Exception):
    """The run has spent its limit. Its answers are kept in the cache."""


class _Stopped(Exception):
    """Nothing was asked, because another question failed."""


class _Passing(Exception):
    """A failure that is worth another try; `wait` is the number of seconds that the server asks for, if it does."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """A reply of a server and what it took.

    Args:
        text: The system's own words.
        input_tokens: Tokens of the question as the server counts them; None if it does not.
        output_tokens: Tokens of the reply.
        finish_reason: The server's reason: "stop", or "length" for a reply that was cut short.
    """

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str = ""


class ApiVLM(PointPredictor):
    """A VLM on a server, asked about one point at a time, several at once; every answer is kept on disk as it comes.

    A run that is interrupted, also by an error, goes on from there when it is started again: answers in the cache cost
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


class RateLimiter:
    """A limit of calls per minute, of all threads together, which are spread evenly over time; None for no limit."""

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ):
        if per_minute is not None and not per_minute > 0:
            raise ValueError(f"The number of requests per minute must be positive, got {per_minute}.")
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = clock()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for this caller's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if self._interval and turn > now:
            self._sleep(turn - now)


class ChatClient:
    """A client of `POST {base_url}/chat/completions` that several threads may share; see [`ApiVLM`] for its options.

    Requests go through the `openai` package. Its own retries are off: they do not count towards `requests_per_minute`,
    do not end when the run stops, repeat a request after a used-up quota, and accept a reply that is no completion.
    Here statuses 408, 409, 429 and from 500 on, connection errors, timeouts and such replies are tried again, after the
    time that `Retry-After` names or an exponential backoff with jitter. Any other status is an error at once, and so is
    a 429 that says that the quota is used up. The API key is kept out of all messages.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout: float = 120.0,
        max_retries: int = 6,
        requests_per_minute: float | None = None,
        sleep: Callable[[float], object] | None = None,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"The server's address begins with http:// or https://, got {base_url!r}.")
        import openai

        self._openai = openai
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key, self._timeout, self._max_retries = api_key, timeout, max_retries
        self._limiter = RateLimiter(requests_per_minute, sleep=sleep or time.sleep)
        self._sleep = sleep
        sent = {*_HEADERS, "authorization"} if api_key else _HEADERS

        # openai adds what it finds in OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS and others, whatever the server is.
        def drop_other_headers(request: Any) -> None:
            for name in set(request.headers) - sent:
                if not name.startswith("x-stainless-"):  # about the package itself
                    del request.headers[name]

        hooks = {"request": [drop_other_headers]}
        self._client = openai.OpenAI(
            api_key=api_key or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=0,
            default_headers={"Authorization": f"Bearer {api_key}"},
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks=hooks),
        )

    def complete(
        self, model: str, messages: list[Any], fields: Mapping[str, Any], stop: threading.Event | None = None
    ) -> Answer:
        """Send a conversation and return the first choice.

        Args:
            model: Name of the model.
            messages: The conversation.
            fields: Further fields of the request.
            stop: An event; once another thread sets it, nothing is tried again.

        Raises:
            ChatServerError: The server refused, or gave no answer after all retries.
        """
        stop = stop or threading.Event()
        for attempt in range(1, self._max_retries + 2):
            self._limiter.wait()
            try:
                return self._try(model, messages, fields)
            except _Passing as error:
                last = error
            if last.wait is not None and last.wait > _LONGEST_WAIT:
                raise ChatServerError(
                    f"{self._url} asks to wait for {last.wait:.0f} s, more than the {_LONGEST_WAIT:.0f} s that "
                    f"this run waits for. It said: {last}."
                ) from last
            if attempt <= self._max_retries:
                backoff = min(2.0 ** (attempt - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
                (self._sleep or stop.wait)(backoff if last.wait is None else last.wait)
            if stop.is_set():
                break
        tries = "one try" if attempt == 1 else f"{attempt} tries"
        raise ChatServerError(f"No answer from {self._url} after {tries}; the last: {last}.") from last

    def _try(self, model: str, messages: list[Any], fields: Mapping[str, Any]) -> Answer:
        completions = self._client.chat.completions.with_raw_response
        try:
            response = completions.create(model=model, messages=messages, extra_body=dict(fields)).http_response
        except self._openai.APITimeoutError as error:
            raise _Passing(f"no answer within {self._timeout:g} s") from error
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _Passing(self._clean(f"{type(cause).__name__}: {cause}")) from error
        except self._openai.APIStatusError as error:
            status, text = error.status_code, self._clean(error.response.text)
            if (status in (408, 409, 429) or status >= 500) and "insufficient_quota" not in text:
                raise _Passing(f"status {status}: {text}", _retry_after(error.response.headers)) from error
            hint = " Is the API key right, and may it use this model?" if status in (401, 403) else ""
            raise ChatServerError(f"{self._url} refused with status {status}: {text}{hint}") from None
        try:
            reply = json.loads(response.text)
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            # A refusal, or a reasoning model that ran out of tokens: an answer that holds no number.
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if not isinstance(text, str) or not all(count is None or isinstance(count, int) for count in tokens):
                raise TypeError("content or usage")
            return Answer(text, *tokens, str(choice.get("finish_reason") or ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            shown = self._clean(response.text) or "nothing"
            raise _Passing(f"a reply that is no chat completion: {shown}") from error

    def _clean(self, text: str) -> str:
        """Return the beginning of a server's words in one line, without the key."""
        text = text.replace(self._key, "[the API key]") if self._key else text
        return " ".join(text.split())[:500]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After` header, which holds a number or a date; None if it holds neither."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class AnswerCache:
    """A folder of paid answers, one JSON file each, so that no question is paid for twice.

    Threads and processes, on one machine or on a shared disk, may use it at the same time: an answer appears whole,
    under its final name, or not at all. A database such as diskcache's is no substitute: SQLite is not safe on network
    disks, and diskcache unpickles what it finds and drops old answers at a size limit.

    Args:
        folder: The folder, which is made when the first answer is kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Return the file of an answer, in one of 256 folders: some file systems are slow with many files in one."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Answer | None:
        """Return the answer, or None if it is not there.

        Raises:
            ValueError: The file does not hold an answer; the message names it.
        """
        path = self.path(key)
        try:
            return Answer(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} does not hold an answer ({error}). Delete it, and it is asked again.") from error

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it replaces an earlier one."""
        write_text(self.path(key), json.dumps(asdict(answer), ensure_ascii=False), sync=True)


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
