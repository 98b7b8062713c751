"""A client of OpenAI-compatible chat servers, and a folder of the answers that were paid for."""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files import write_text

_LONGEST_BACKOFF, _LONGEST_WAIT = 60.0, 300.0  # seconds: between tries, and that a server may ask for
_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}


class ChatServerError(Exception):
    """A server refuses, or gives no usable answer after all retries. This is not a wrong answer: nothing was said."""


class _Passing(Exception):
    """A failure that is worth another try; `wait` is the number of seconds that the server asks for, if it does."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """A reply of a server and what it took."""

    text: str  # the system's own words
    input_tokens: int | None = None  # tokens of the question as the server counts them; None if it does not
    output_tokens: int | None = None  # tokens of the reply
    finish_reason: str = ""  # the server's reason: "stop", or "length" for a reply that was cut short


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
