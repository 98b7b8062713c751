"""Guard of the demo's server: only requests of its own page, of bounded size, that name the visitor's own uploads."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .visitors import Files

# Gradio's page builds its templates with `new Function` and writes styles and scripts into itself.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",  # a picture that is also a page stays a picture
    "referrer-policy": "same-origin",
}
_API = "/gradio_api"
_FILE = f"{_API}/file="
_UPLOAD = f"{_API}/upload"
_QUEUE = f"{_API}/queue/join"
_STEPS = re.compile(rf"{_API}/(queue/join|run/[\w-]+)")
_READ = re.compile(
    rf"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(assets|static|svelte)/.+|{re.escape(_FILE)}.+|"
    rf"{_API}/(info|app_id|theme\.css|startup-events|queue/data|heartbeat/[\w-]+)"
)
_WRITE = re.compile(rf"{_STEPS.pattern}|{_UPLOAD}|{_API}/(cancel|reset)")
_SESSION = re.compile(r"[\w-]{1,64}")
_COOKIE = "depthvlm_visitor"
_FORM_BYTES = 2**14  # what surrounds a file in an upload
_KINDS: dict[type, str] = {
    gr.Image: "picture",
    gr.Number: "number",
    gr.Textbox: "text",
    gr.Dataset: "index",
    gr.State: "nothing",
}


@dataclass(frozen=True)
class Step:
    """A step of the page: `queued` through Gradio's queue, `waits` for the model, kinds of its `fields`."""

    queued: bool
    waits: bool
    fields: tuple[str, ...]


def steps_of(page: gr.Blocks, model_queue: str) -> dict[int, Step]:
    """Return the steps of a page by their number."""
    steps = {}
    for number, fn in page.fns.items():
        fields = tuple(_KINDS[type(field)] for field in fn.inputs)
        steps[number] = Step(bool(fn.queue), fn.concurrency_id == model_queue, fields)
    return steps


class Refusal(Exception):
    """A request that is not passed on: its HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Hosts:
    """The names that the server answers to."""

    names: frozenset[str]  # host names besides the machine's addresses; "*" is any, ".example.org" every name under it
    loopback: bool  # whether the server listens to this machine alone

    def check(self, host: str, origin: str | None) -> None:
        """Refuse a request for another host (DNS rebinding), or from a page of another site.

        Raises:
            Refusal: The host or the origin is wrong.
        """
        if not self._known(_hostname(host)):
            raise Refusal(421, f"This server does not answer to the name {host[:100]!r}. See --allowed-host.")
        if origin is None:
            return
        parts = urlsplit(origin)
        if parts.netloc.lower() != host.lower() and not self._named(parts.hostname or ""):
            raise Refusal(403, "This server takes requests from its own page only.")

    def _known(self, name: str) -> bool:
        try:
            return ip_address(name).is_loopback or not self.loopback
        except ValueError:
            return name == "localhost" or self._named(name)

    def _named(self, name: str) -> bool:
        return bool(name) and any(
            known == "*" or name == known or (known.startswith(".") and name.endswith(known)) for known in self.names
        )


class Guard:
    """ASGI middleware around Gradio's application: hosts, routes, sizes, payloads, uploads and strict headers.

    Args:
        app: The application.
        files: The uploads, with the limits; this object receives them, not the application.
        make: Makes a result's file at the first request; returns whether it is there.
        hosts: The names that the server answers to.
        steps: The steps of the page by their number.
        waiting: The number of requests that wait for the model.
    """

    def __init__(
        self,
        app: Any,
        files: Files,
        make: Callable[[str], bool],
        hosts: Hosts,
        steps: Mapping[int, Step],
        waiting: Callable[[], int],
    ) -> None:
        self.app, self.files, self.make, self.hosts, self.steps, self.waiting = app, files, make, hosts, steps, waiting
        self.limits = files.limits
        self._arriving = 0  # requests for the model that are on their way to the queue

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse the request, answer it, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no WebSocket
            await send({"type": "websocket.close"})
            return
        headers = Headers(scope=scope)
        visitor = cookie_parser(headers.get("cookie", "")).get(_COOKIE)
        cookie = None
        if visitor is None and scope["path"] in ("/", "/config"):
            cookie = _new_cookie(headers.get("x-forwarded-proto", scope.get("scheme", "http")) == "https")
        send = _adding(cookie, send)
        try:
            self._check(scope, headers)
            if scope["path"].startswith(_FILE):
                file = scope["path"].removeprefix(_FILE)
                if not self.files.serves(file) and not await asyncio.to_thread(self.make, file):
                    raise Refusal(403, "There is no such file.")
            if scope["path"] == _UPLOAD:
                response = await self._upload(scope, receive, visitor)
                await response(scope, receive, send)
            elif scope["method"] == "POST":
                await self._post(scope, receive, send, visitor)
            else:
                await self.app(scope, receive, send)
        except Refusal as refusal:
            answer: Response = PlainTextResponse(refusal.reason, refusal.status)
            if _STEPS.fullmatch(scope["path"]):
                answer = JSONResponse({"detail": refusal.reason, "error": refusal.reason}, refusal.status)
            await answer(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is there to be answered

    @property
    def _upload_bytes(self) -> int:
        return self.limits.file_bytes + _FORM_BYTES

    def _check(self, scope: dict[str, Any], headers: Headers) -> None:
        self.hosts.check(headers.get("host", ""), headers.get("origin"))
        path, method = scope["path"], scope["method"]
        if not (_WRITE if method == "POST" else _READ).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            raise Refusal(404, "There is nothing here.")
        if method != "POST":
            return
        if "content-length" not in headers or "transfer-encoding" in headers:
            what = "An upload" if path == _UPLOAD else "A request"
            raise Refusal(411, f"{what} must say its length.")
        if not headers["content-length"].isdecimal():
            raise Refusal(400, "The length of the request is not a number.")
        if int(headers["content-length"]) > (self._upload_bytes if path == _UPLOAD else self.limits.request_bytes):
            raise self._too_large(path == _UPLOAD)

    def _too_large(self, upload: bool) -> Refusal:
        if upload:
            return Refusal(413, f"At most {self.limits.file_bytes / 2**20:g} MB can be uploaded.")
        return Refusal(413, f"A request has at most {self.limits.request_bytes:,} bytes.")

    def _counted(self, receive: Any, most: int, note: Callable[[int], None] = lambda size: None) -> Any:
        """Return `receive` with a limit on bytes, whatever the headers say, and on time; `note` gets each size."""
        arrived, end = 0, time.monotonic() + self.limits.upload_seconds

        async def counted() -> dict[str, Any]:
            nonlocal arrived
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise Refusal(408, f"The request took longer than {self.limits.upload_seconds:g} s.") from None
            size = len(message.get("body", b""))
            arrived += size
            note(size)
            if arrived > most:
                raise self._too_large(most == self._upload_bytes)
            return message

        return counted

    async def _upload(self, scope: dict[str, Any], receive: Any, visitor: str | None) -> JSONResponse:
        """Receive one file. What has come of an upload that is broken off goes at once: it never had a name."""
        if not await asyncio.to_thread(self.files.room, int(Headers(scope=scope)["content-length"])):
            raise Refusal(507, "There is no room for uploads at the moment. Come back later.")
        arrived = 0

        def note(size: int) -> None:
            nonlocal arrived
            arrived += size
            self.files.arriving += size

        request = Request(scope, self._counted(receive, self._upload_bytes, note))
        try:
            async with request.form(max_files=1, max_fields=0) as form:
                file = form.get("files")
                if not isinstance(file, UploadFile):
                    raise Refusal(400, "An upload is one file in the form field `files`.")
                path = await asyncio.to_thread(self.files.keep, file.file, file.filename or "", visitor)
        except (MultiPartException, HTTPException) as error:
            reason = error.detail if isinstance(error, HTTPException) else error.message
            raise Refusal(400, f"The upload cannot be read: {reason}") from None
        finally:
            self.files.arriving -= arrived
        return JSONResponse([path])

    async def _post(self, scope: dict[str, Any], receive: Any, send: Any, visitor: str | None) -> None:
        """Pass on a request with a body, which is read before; a step's body is rewritten from what was checked."""
        body = await Request(scope, self._counted(receive, self.limits.request_bytes)).body()
        waits = False
        if _STEPS.fullmatch(scope["path"]):
            payload, waits = self._payload(body, scope["path"] == _QUEUE, visitor)
            body = json.dumps(payload).encode()
            scope = dict(scope)
            MutableHeaders(scope=scope)["content-length"] = str(len(body))
        if waits and self.waiting() + self._arriving >= self.limits.waiting:
            raise Refusal(503, f"Queue is full: {self.limits.waiting} requests are waiting. Come back later.")
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict[str, Any]:
            return unread.pop() if unread else await receive()

        self._arriving += waits
        try:
            await self.app(scope, replay, send)
        finally:
            self._arriving -= waits

    def _payload(self, body: bytes, queued: bool, visitor: str | None) -> tuple[dict[str, Any], bool]:
        """Return the body of a step with only what the step takes, and whether the step waits for the model."""
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("data"), list):
            raise Refusal(400, "A step takes a JSON object with the list `data`.")
        number, session, trigger = given.get("fn_index"), given.get("session_hash"), given.get("trigger_id")
        if type(number) is not int or number not in self.steps or self.steps[number].queued != queued:
            raise Refusal(404, "There is no such step.")
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise Refusal(400, "`session_hash` takes up to 64 letters and digits.")
        step, data = self.steps[number], given["data"]
        if len(data) != len(step.fields):
            raise Refusal(400, f"This step takes {len(step.fields)} fields, got {len(data)}.")
        checked = [self._field(kind, value, visitor, session) for kind, value in zip(step.fields, data, strict=True)]
        trigger = trigger if type(trigger) is int else None
        return {"data": checked, "fn_index": number, "session_hash": session, "trigger_id": trigger}, step.waits

    def _field(self, kind: str, value: Any, visitor: str | None, session: str) -> Any:
        """Return a field's value if it is of its kind. Only a picture may be an object, and only an uploaded one."""
        if value is None and kind != "index":
            return None
        if kind == "text" and isinstance(value, str):
            return value
        if kind == "number" and type(value) in (int, float) and -1e9 < value < 1e9:
            return value
        if kind == "index" and type(value) is int:
            return value
        if kind != "picture" or not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise Refusal(400, f"A field of this step takes a {kind}, got something else.")
        path = value["path"]
        if not self.files.claim(path, visitor, session):
            raise Refusal(403, "Upload the picture itself: no address, and no file but your own upload, is read here.")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


def _new_cookie(secure: bool) -> str:
    """Return a visitor's new cookie. On a Space the page is in a frame of another site, which keeps only such ones."""
    place = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    return f"{_COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; {place}"


def _adding(cookie: str | None, send: Any) -> Any:
    """Return `send` with `_HEADERS`, and a cookie, on every response."""

    async def send_with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {"headers": [], **message}
            headers = MutableHeaders(scope=message)
            headers.update(_HEADERS)
            if cookie is not None:
                headers.append("set-cookie", cookie)
        await send(message)

    return send_with_headers
