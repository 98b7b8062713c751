"""A chat completions server on loopback that follows a script and remembers what it was asked."""

import base64
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


@dataclass
class Reply:
    """What to send: a status with a body, or nothing for as long as `hold` is not set."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


def completion(text: str | None, tokens: tuple[int, int] | None = (1000, 50), finish: str = "stop") -> Reply:
    """An ordinary answer."""
    reply: dict = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": finish}]}
    if tokens:
        reply["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply(body=json.dumps(reply).encode())


@dataclass
class Request:
    """What arrived."""

    path: str
    headers: dict[str, str]
    body: dict

    @property
    def image_url(self) -> str:
        return next(part["image_url"]["url"] for part in self.body["messages"][0]["content"] if "image_url" in part)

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.image_url.split(",", 1)[1])))

    @property
    def key(self) -> str:
        """Which image it is."""
        return hashlib.sha256(self.image_url.encode()).hexdigest()


class ChatServer:
    """
    Args:
        script: called with each request and its number, from 0; returns what to send.
    """

    def __init__(self, script: Callable[[Request, int], Reply]):
        self.requests: list[Request] = []
        self.answered: Counter[str] = Counter()
        """How often each image got a completion that was sent in full."""
        self.busy = self.most_at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.path, headers, body)
                with lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.busy += 1
                    server.most_at_once = max(server.most_at_once, server.busy)
                reply = script(request, number)
                if reply.hold is not None:
                    reply.hold.wait(30)
                with lock:
                    server.busy -= 1
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                self.wfile.flush()
                if reply.status == 200 and reply.hold is None:
                    with lock:
                        server.answered[request.key] += 1

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is part of the tests."""

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@contextmanager
def serve(script: Callable[[Request, int], Reply]) -> Iterator[ChatServer]:
    """A server for the length of a `with` block."""
    server = ChatServer(script)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
