"""Cards of Spaces, whose heads are also their configuration: the demo of a model, and the metric for `evaluate`."""

from __future__ import annotations

from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .card_text import CITATION, CODE_LICENCE, PAPER, TAGS, check_repo_id, table, template

if TYPE_CHECKING:
    from huggingface_hub import SpaceCard, SpaceCardData

METRIC = "depth_metrics"
DESCRIPTION = (
    "Depth in metres against measured depth, over images of any size, under a named protocol: valid range, crop, "
    "alignment, aggregation."
)
# Meaning and range of every metric.
VALUES = {
    "delta1": ("share of pixels with max(p / g, g / p) < 1.25", "0 to 1, higher is better"),
    "delta2": ("the same below 1.25²", "0 to 1, higher is better"),
    "delta3": ("the same below 1.25³", "0 to 1, higher is better"),
    "abs_rel": ("mean of |p - g| / g", "from 0, lower is better"),
    "sq_rel": ("mean of (p - g)² / g, metres", "from 0, lower is better"),
    "rmse": ("root of the mean of (p - g)², metres", "from 0, lower is better"),
    "rmse_log": ("root of the mean of (ln p - ln g)²", "from 0, lower is better"),
    "log10": ("mean of |log10 p - log10 g|", "from 0, lower is better"),
    "silog": ("standard deviation of ln p - ln g, blind to a common factor", "from 0, lower is better"),
}
_APP_FILE = "app.py"
_APP = '''\
"""The demo of a DepthVLM: the model that the variable DEPTHVLM_MODEL names, or else the bundled nano."""

from depthvlm.hub_cards.space.server import launch_space

if __name__ == "__main__":
    launch_space()
'''


def make_space_card(model_id: str, repo_id: str | None) -> SpaceCard:
    """Return the card of a Space that shows a model.

    Args:
        model_id: Owner/name on the Hub, or "depthvlm-nano", the bundled one.
        repo_id: Owner/name of the Space; None where it is not known yet.

    Raises:
        ValueError: One of the names is not a name on the Hub.
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from huggingface_hub import SpaceCard

    check_repo_id(repo_id)
    check_repo_id(model_id)
    hub_model = "/" in model_id
    title = (repo_id or f"{model_id}-demo").split("/")[-1]
    data = _space_data(
        title,
        models=[model_id] if hub_model else None,
        tags=list(TAGS),
        emoji="📏",
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


def space_files(model_id: str, repo_id: str | None) -> dict[str, bytes]:
    """Return all files of the demo's Space by name: its app, its requirements and its card.

    Raises:
        ValueError, ImportError: See [`make_space_card`].
    """
    return _files(make_space_card(model_id, repo_id), _APP.encode(), "demo")


def make_metric_card(repo_id: str | None) -> SpaceCard:
    """Return the card of the Space from which `evaluate.load("owner/depth_metrics")` takes `depth_metrics.py`.

    Args:
        repo_id: Owner/depth_metrics; None where the owner is not known yet. `evaluate` looks for the file with the
            Space's own name, so the Space must be called depth_metrics.

    Raises:
        ValueError: The Space has another name, or the name is not a name on the Hub.
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from huggingface_hub import SpaceCard

    from ...benchmark.scoring.protocols import PROTOCOLS

    check_repo_id(repo_id)
    if repo_id is not None and repo_id.split("/")[-1] != METRIC:
        raise ValueError(
            f"The metric's Space is called {repo_id!r}, expected owner/{METRIC}: `evaluate.load` looks for the file "
            "with the Space's name."
        )
    protocols = [[f"`{name}`", protocol.description] for name, protocol in PROTOCOLS.items()]
    return SpaceCard.from_template(
        _space_data(METRIC, tags=["evaluate", "metric", *TAGS], emoji="📐", description=DESCRIPTION),
        template_path=template("metric_card"),
        name=METRIC,
        load=repo_id or f"OWNER/{METRIC}",
        description=DESCRIPTION,
        protocols=table(["protocol", "what it scores"], protocols),
        values=table(["value", "what it is", "range"], [[f"`{key}`", *said] for key, said in VALUES.items()]),
        citation=CITATION,
        code_licence=CODE_LICENCE,
    )


def metric_files(repo_id: str | None) -> dict[str, bytes]:
    """Return all files of the metric's Space by name: the module, a page to try it, its requirements and its card.

    Raises:
        ValueError, ImportError: See [`make_metric_card`].
    """
    page = resources.files("depthvlm.hub_cards.space") / "metric_app.py"
    module = resources.files("depthvlm.benchmark") / METRIC / f"{METRIC}.py"
    return _files(make_metric_card(repo_id), page.read_bytes(), "bench") | {f"{METRIC}.py": module.read_bytes()}


def _space_data(title: str, **more: Any) -> SpaceCardData:
    from huggingface_hub import SpaceCardData

    try:
        gradio = version("gradio")  # the one that was tried here
    except PackageNotFoundError:
        raise ImportError(
            'A Space names the Gradio that it runs with, and none is installed: pip install "depthvlm[demo]"'
        ) from None
    return SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio,
        python_version="3.11",
        app_file=_APP_FILE,
        license=CODE_LICENCE.lower(),
        colorFrom="blue",
        colorTo="red",
        pinned=False,
        **more,
    )


def _files(card: SpaceCard, app: bytes, extra: str) -> dict[str, bytes]:
    from ... import __version__

    requirements = f"depthvlm[{extra}]=={__version__}\n"
    return {"README.md": str(card).encode(), _APP_FILE: app, "requirements.txt": requirements.encode()}
