"""The demo as its own process or in this one, and a visitor who speaks its HTTP without a browser."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from depthvlm.hub_cards.space.demo import Demo
from depthvlm.hub_cards.space.server import serve
from depthvlm.hub_cards.space.visitors import Files, Limits

from depthvlm import DepthPredictor

# A shell that starts the tests in the background has them ignore Ctrl-C, and so their children.
START = """
import signal
from depthvlm.hub_cards.space.visitors import Limits
from depthvlm.hub_cards.space.server import launch
signal.signal(signal.SIGINT, signal.default_int_handler)
launch("depthvlm-nano", host="127.0.0.1", limits=Limits(**LIMITS))
"""


class DemoProcess:
    """`launch` with these limits in a new process, on a free port; `folder` is its temporary folder."""

    def __init__(self, root: Path, command: list[str] | None = None, **limits: Any) -> None:
        self.lines: list[str] = []
        code = START.replace("LIMITS", repr(limits))
        self.process = subprocess.Popen(
            command or [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._wait_for_url()
        [self.folder] = root.glob("depthvlm-demo-*")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def _wait_for_url(self, seconds: float = 180) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = re.search(r"http://127\.0\.0\.1:\d+", "".join(self.lines))
            if found:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        self.process.kill()
        raise RuntimeError("The demo did not start:\n" + "".join(self.lines))

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(kind)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


@contextmanager
def serving(depthvlm: DepthPredictor, folder: Path, **limits: Any) -> Iterator[tuple[Demo, str]]:
    """The demo in this process, on a free port: the demo, and its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        demo = Demo(depthvlm, Files(folder, Limits(**limits)), Limits(**limits))
        page = serve(demo, host="127.0.0.1", prevent_thread_lock=True, quiet=True)
        yield demo, page.local_url.rstrip("/")
        page.close(verbose=False)


class Visitor:
    """One session of the demo's page, over HTTP alone, as the page itself speaks it."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=120)
        self.session = secrets.token_hex(8)
        config = self.client.get("/config").json()
        self.steps = {step["api_name"]: step for step in config["dependencies"]}

    def upload(self, name: str, content: bytes, kind: str = "image/png") -> httpx.Response:
        """The answer to an upload: a list with the path on the server."""
        return self.client.post("/gradio_api/upload", files={"files": (name, content, kind)})

    def photo(self, path: str) -> dict[str, Any]:
        """An uploaded file as the value of the picture."""
        return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": Path(path).name}

    def join(self, name: str, *values: Any) -> httpx.Response:
        """The answer to a request for a step: it is in the queue, or it is refused."""
        route = "queue/join" if self.steps[name]["queue"] else "run/predict"
        return self.client.post(f"/gradio_api/{route}", json=self.body(name, *values))

    def body(self, name: str, *values: Any) -> dict[str, Any]:
        """What the page sends for a step."""
        step = self.steps[name]
        data = [*values, *[None] * (len(step["inputs"]) - len(values))]
        return {"data": data, "fn_index": step["id"], "session_hash": self.session, "event_data": None}

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server says of this visitor's step, until it has ended."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] == "process_completed":
                        return
        raise AssertionError("The step did not complete")

    def run(self, name: str, *values: Any) -> dict[str, Any]:
        """The last message of a step: `success`, and its `output` with `data` or `error`."""
        self.join(name, *values).raise_for_status()
        return list(self.messages())[-1]
