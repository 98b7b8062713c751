"""How the demo is served: what the server refuses, what it tells browsers, and where temporary files go."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .demo_limits import Limits

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
_FORM_BYTES = 2**16  # what surrounds a file in an upload
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; }
#note { padding: 8px 14px; border-left: 4px solid var(--color-accent); background: var(--background-fill-secondary); }
#source { font-size: 14px; padding: 0 4px; }
"""


class Guard:
    """ASGI middleware: limits on uploads that Gradio lacks, no fetching of other sites, strict headers.

    Args:
        app: the application.
        limits: of uploads.
        folder: where temporary files lie.
    """

    def __init__(self, app: Any, limits: Limits, folder: str) -> None:
        self.app = app
        self.limits = limits
        self.folder = folder

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            from starlette.responses import PlainTextResponse

            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", []) if pair[0].decode().lower() not in _HEADERS]
                headers += [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        path = scope["path"].lower()
        if "/proxy=" in path or "file=http" in path:
            return 403, "This server fetches nothing from other sites."
        if path.rstrip("/").endswith("/deep_link"):  # which would keep what a visitor sees under a public address
            return 403, "This page has no links to a visitor's results."
        if not path.rstrip("/").endswith("/upload") or scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length")
        if length is None:
            return 411, "An upload must say its length."
        if int(length) > self.limits.file_bytes + _FORM_BYTES:
            return 413, f"At most {self.limits.file_bytes / 2**20:g} MB can be uploaded."
        if _folder_size(self.folder) + int(length) > self.limits.disk_bytes:
            return 507, "There is no room for uploads at the moment. Come back later."
        return None


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A private folder for Gradio's uploads and results, removed with everything in it at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="depthvlm-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def launch(
    model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    limits: Limits | None = None,
) -> None:
    """Load a model and serve the demo until it is interrupted.

    Args:
        model: a checkpoint's folder or Hub name. None: the bundled `depthvlm-nano`.
        device, dtype: see `depthvlm.load`.
        host: the address to listen on. None: Gradio's own choice, 127.0.0.1, or all addresses on a Space.
        port: the port to listen on. None: the first free one from 7860 on.
        share: also open a public link through Gradio's servers.
        limits: what a visitor may ask for.

    Raises:
        OSError: there is no such model, or the port is taken.
        ValueError: the device or the dtype is not there.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    limits = limits or Limits()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what ends the server also tidies up
    with temporary_folder() as folder:
        import gradio as gr
        from starlette.middleware import Middleware

        from ..inference import load
        from .demo import Demo

        page = Demo(load(model, device, dtype), limits).page()
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=limits.file_bytes,
            state_session_capacity=limits.sessions,
            allowed_paths=[],
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
            app_kwargs={"middleware": [Middleware(Guard, limits=limits, folder=folder)]},
        )


def _folder_size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
