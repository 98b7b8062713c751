"""Server of the demo: its host names, its limits, and its temporary files."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from .visitors import Files, Limits

if TYPE_CHECKING:
    from .demo import Demo
    from .guard import Hosts

# Read by Gradio at import; it would send statistics to its makers, and draw up others after each step with pandas.
_NO_STATISTICS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
}
_M_ARENA_MAX = -8  # of glibc's malloc.h
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; }
#note { padding: 8px 14px; border-left: 4px solid var(--color-accent); background: var(--background-fill-secondary); }
#source { font-size: 14px; padding: 0 4px; }
#downloads .prose { display: flex; flex-wrap: wrap; gap: 12px; max-width: none; }
#downloads a, #downloads button { flex: 1 1 130px; padding: 6px 4px; border-radius: 8px; text-align: center;
  font-size: 14px; font-weight: 600; text-decoration: none; white-space: nowrap;
  color: var(--button-secondary-text-color); background: var(--button-secondary-background-fill); }
#downloads button { opacity: 0.5; }
"""


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Make a private folder for Gradio's uploads and results; it is removed at the end with its contents."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="depthvlm-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            os.environ.update({} if before is None else {"GRADIO_TEMP_DIR": before})


def launch(
    model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    compile: bool = False,
    quantize: str | None = None,
    allow_untrained_head: bool = False,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    allowed_hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> None:
    """Load a model and serve the demo until it is interrupted.

    Args:
        model: A checkpoint's folder or Hub name. None: the bundled `depthvlm-nano`.
        device: See `depthvlm.load`.
        dtype: See `depthvlm.load`.
        compile: See `depthvlm.load`.
        quantize: See `depthvlm.load`.
        allow_untrained_head: See `depthvlm.load`.
        host: The address to listen on. None: Gradio's own choice, 127.0.0.1, or all addresses on a Space.
        port: The port to listen on. None: the first free one from 7860 on.
        share: Also open a public link through Gradio's servers.
        allowed_hosts: Names by which browsers may call the server, such as that of a proxy before it, besides the
            machine's own name and addresses. ".example.org": every name under it. "*": any.
        limits: Limits of a visitor's requests.

    Raises:
        OSError: There is no such model, or the port is taken.
        ValueError: The device or the dtype is not there; see `depthvlm.load` for others.
    """
    os.environ.update(_NO_STATISTICS)
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library that is not glibc, which gives each thread a heap
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    limits = limits or Limits()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what ends the server also tidies up
    with temporary_folder() as folder:
        from ...inference import load
        from .demo import Demo

        loaded = load(
            model, device, dtype, compile=compile, quantize=quantize, allow_untrained_head=allow_untrained_head
        )
        demo = Demo(loaded, Files(folder, limits), limits)
        serve(demo, host=host, port=port, share=share, allowed_hosts=allowed_hosts)


def launch_space() -> None:
    """Serve the demo on a Space, which the Space's variables describe.

    DEPTHVLM_MODEL names the model; without it the bundled nano is shown. DEPTHVLM_HOSTS names the hosts that the server
    also answers to, such as a custom domain, with commas between them.
    """
    launch(os.environ.get("DEPTHVLM_MODEL") or None, allowed_hosts=os.environ.get("DEPTHVLM_HOSTS", "").split(","))


def serve(
    demo: Demo,
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    allowed_hosts: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Serve a demo and return its page. See `launch`; `options` go to `gradio.Blocks.launch`."""
    import gradio as gr
    import matplotlib
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse

    from .demo import MODEL_QUEUE
    from .guard import Guard, steps_of

    page, limits = demo.page(), demo.limits
    # Gradio looks a thousand times a second whether a step waits, which takes 6 % of a core from who measures.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = 0.02, 0.1
    matplotlib.use("agg")  # or Gradio looks for a screen at the first visitor's step
    FileResponse.chunk_size = 2**20  # every piece waits for a thread: a mesh would in 200

    def waiting() -> int:
        # Gradio's own limit is for all steps together.
        queue = page._queue.event_queue_per_concurrency_id.get(MODEL_QUEUE)
        return 0 if queue is None else len(queue.queue)

    hosts, steps = known_hosts(host, share, allowed_hosts), steps_of(page, MODEL_QUEUE)
    guard = Middleware(Guard, files=demo.files, make=demo.make, hosts=hosts, steps=steps, waiting=waiting)
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
        app_kwargs={"middleware": [guard], "lifespan": _sweeping(demo)},
        **options,
    )
    return page


def known_hosts(host: str | None, share: bool, allowed: Sequence[str]) -> Hosts:
    """Return the names by which a server on `host` may be called."""
    from .guard import Hosts

    on_space = "SPACE_ID" in os.environ
    address = host or os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1")
    names = {name.strip().lower() for name in allowed if name.strip()}
    names |= {name.lower() for name in os.environ.get("SPACE_HOST", "").split(",") if name and on_space}
    if share:
        names.add(".gradio.live")
    try:
        loopback = ip_address(address).is_loopback
    except ValueError:
        loopback = address == "localhost"
        names.add(address.lower())
    if not loopback:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Hosts(frozenset(names), loopback)


def _sweeping(demo: Demo) -> Any:
    """Return a lifespan of the server during which what is too old is removed."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(max(1, min(10, demo.limits.kept_seconds / 4, demo.limits.unused_seconds / 4)))
            await asyncio.to_thread(demo.sweep)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return lifespan
