"""`depthvlm demo`: the demo in a browser."""

from importlib.util import find_spec

import typer

from ..checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE
from .failures import fail


def run(
    model: str | None,
    *,
    host: str,
    port: int | None,
    share: bool,
    allowed_hosts: list[str],
    device: str,
    dtype: str,
    allow_untrained_head: bool,
) -> None:
    """Serve the demo until it is interrupted. Raises `typer.Exit` with 1 where it cannot be served."""
    if find_spec("gradio") is None:
        raise fail('The demo needs Gradio, which is not installed: `pip install "depthvlm[demo]"`.')
    from ..hub_cards.space.server import launch

    if model is None:
        typer.secho(f"Model: {BUNDLED_MODEL_NOTE} (choose another with --model).", fg="yellow")
    if share:
        typer.secho("--share: everyone who has the public link can use this machine through the demo.", fg="yellow")
    launch(
        model or BUNDLED_MODEL,
        device=device,
        dtype=dtype,
        allow_untrained_head=allow_untrained_head,
        host=host,
        port=port,
        share=share,
        allowed_hosts=allowed_hosts,
    )
