"""The card of the demo's Space, whose head is also its configuration: which app runs, with which Gradio and model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .card_text import CODE_LICENCE, PAPER, TAGS, check_repo_id, template

if TYPE_CHECKING:
    from huggingface_hub import SpaceCard

APP_FILE = "app.py"
PYTHON = "3.11"
EXTRA = "demo"


def make_space_card(model_id: str, repo_id: str | None) -> SpaceCard:
    """
    The card of a Space that shows a model.

    Args:
        model_id: owner/name on the Hub, or "depthvlm-nano", the bundled one.
        repo_id: owner/name of the Space; None where it is not known yet.

    Raises:
        ValueError: one of the names is none of the Hub's.
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from huggingface_hub import SpaceCard, SpaceCardData

    check_repo_id(repo_id)
    check_repo_id(model_id)
    hub_model = "/" in model_id
    title = (repo_id or f"{model_id}-demo").split("/")[-1]
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio_version(),
        python_version=PYTHON,
        app_file=APP_FILE,
        license=CODE_LICENCE.lower(),
        models=[model_id] if hub_model else None,
        tags=list(TAGS),
        emoji="📏",
        colorFrom="blue",
        colorTo="red",
        pinned=False,
        short_description="Metric depth and words from one image",
    )
    if hub_model:
        data["preload_from_hub"] = [model_id]
    return SpaceCard.from_template(
        data,
        template_path=template("space_card"),
        title=title,
        model_id=model_id,
        hub_model=hub_model,
        paper=PAPER,
        code_licence=CODE_LICENCE,
    )


def gradio_version() -> str:
    """
    The one that is installed here, and was tried here.

    Raises:
        ImportError: none is.
    """
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise ImportError(
            f'A Space names the Gradio that it runs with, and none is installed: pip install "depthvlm[{EXTRA}]"'
        ) from None
