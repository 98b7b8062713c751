"""A client of OpenAI-compatible chat servers that retries what may pass and says clearly what will not."""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
_LONGEST_BACKOFF = 60.0


class ChatServerError(Exception):
    """A server that refuses, or that gave no usable answer after all retries. Not a wrong answer: nothing was said."""


class _Passing(Exception):
    """What is worth another try; `wait`: seconds that the server asks for."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class ChatReply:
    """What a server said: its words, and the tokens it counted, None where it counted none."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str


class RateLimiter:
    """
    Spreads calls of all threads evenly over time.

    Args:
        per_minute: calls a minute; None: no limit.
        clock, sleep: of the standard library, or stand-ins.
    """

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
        """Return when it is this caller's turn."""
        if not self._interval:
            return
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


class ChatClient:
    """
    `POST {base_url}/chat/completions`, safe for several threads.

    429, 500, 502, 503, 504, connection errors, timeouts and replies that are no chat completion are tried again, after
    what `Retry-After` asks for or an exponential backoff with jitter; any other status is an error at once, as is a 429
    that says the quota is used up. It is not `huggingface_hub.InferenceClient`, which would send the user's Hub token
    to any server where no key is given, and talks to none while `HF_HUB_OFFLINE` is set.

    Args:
        base_url: up to and including the version, as `https://api.openai.com/v1`.
        api_key: sent as a bearer token, and kept out of all messages; None: none is sent.
        timeout: seconds without a byte from the server, for each try.
        max_retries: further tries after the first.
        backoff: seconds before the first retry, doubled for each further one, up to a minute, times 0.5 to 1.
        max_wait: the longest `Retry-After`, in seconds, that is waited for.
        requests_per_minute: of all threads together, retries included.
        sleep: a stand-in for waiting, in seconds.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout: float = 120.0,
        max_retries: int = 6,
        backoff: float = 1.0,
        max_wait: float = 300.0,
        requests_per_minute: float | None = None,
        sleep: Callable[[float], object] | None = None,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"The server's address begins with http:// or https://, got {base_url!r}.")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._key = api_key
        self._http = _httpx()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = self._http.Client(headers=headers, timeout=timeout)
        self._timeout, self._max_retries, self._backoff, self._max_wait = timeout, max_retries, backoff, max_wait
        self._limiter = RateLimiter(requests_per_minute, sleep=sleep or time.sleep)
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, body: Mapping[str, Any], stop: threading.Event | None = None) -> ChatReply:
        """
        Send a request body and return the first choice.

        Args:
            stop: once it is set, by another thread, nothing is tried again.

        Raises:
            ChatServerError: refused, or without an answer after all retries.
        """
        stop = stop or threading.Event()
        attempt = 0
        while True:
            self._limiter.wait()
            try:
                return self._try(body)
            except _Passing as error:
                attempt += 1
                wait = self._wait(error, attempt)
                if attempt <= self._max_retries:
                    (self._sleep or stop.wait)(wait)
                if attempt > self._max_retries or stop.is_set():
                    tries = "one try" if attempt == 1 else f"{attempt} tries"
                    raise ChatServerError(f"No answer from {self._url} after {tries}; the last: {error}.") from error

    def _wait(self, error: _Passing, attempt: int) -> float:
        """Seconds before the next try."""
        if error.wait is None:
            return min(self._backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
        if error.wait > self._max_wait:
            raise ChatServerError(
                f"{self._url} asks to wait for {error.wait:.0f} s, which is more than the {self._max_wait:.0f} s that "
                f"this run waits for. It said: {error}."
            ) from error
        return error.wait

    def _try(self, body: Mapping[str, Any]) -> ChatReply:
        try:
            response = self._client.post(self._url, json=body)
        except self._http.TimeoutException as error:
            raise _Passing(f"no answer within {self._timeout:g} s ({type(error).__name__})") from error
        except self._http.TransportError as error:
            raise _Passing(self._clean(f"{type(error).__name__}: {error}")) from error
        status, text = response.status_code, self._clean(" ".join(response.text.split())[:500])
        if status in RETRIED_STATUSES and "insufficient_quota" not in text:
            raise _Passing(f"status {status}: {text}", _retry_after(response.headers.get("retry-after")))
        if status != 200:
            hint = " Is the API key right, and may it use this model?" if status in (401, 403) else ""
            raise ChatServerError(f"{self._url} refused with status {status}: {text}{hint}")
        return self._reply(response.content, text)

    def _reply(self, content: bytes, shown: str) -> ChatReply:
        try:
            reply = json.loads(content)
            message = reply["choices"][0]["message"]
            # A refusal, or a reasoning model that ran out of tokens: an answer that holds no number.
            text = message.get("content") or message.get("refusal") or ""
            usage = reply.get("usage") or {}
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if not isinstance(text, str) or not all(count is None or isinstance(count, int) for count in tokens):
                raise TypeError("content or usage")
            return ChatReply(text, *tokens, str(reply["choices"][0].get("finish_reason") or ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Passing(f"a reply that is no chat completion: {shown or 'nothing'}") from error

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[the API key]") if self._key else text


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which names them or a date; None where it says neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _httpx() -> Any:
    """The HTTP library of the installed huggingface_hub: httpx, or httpx2 from its version 2 on."""
    try:
        from huggingface_hub.utils import httpx  # exported since 1.31
    except ImportError:
        import httpx  # type: ignore[no-redef]
    return httpx
