"""The card of the metric's Space, from which `evaluate.load("owner/depth_metrics")` takes the module."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from .card_text import CITATION, CODE_LICENCE, TAGS, check_repo_id, table, template
from .space_card import APP_FILE, PYTHON, gradio_version

if TYPE_CHECKING:
    from huggingface_hub import SpaceCard

METRIC = "depth_metrics"

DESCRIPTION = (
    "Depth in metres against measured depth, over images of any size, under a named protocol: valid range, crop, "
    "alignment, aggregation."
)

# Range and better end of every metric.
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


def make_metric_card(repo_id: str | None) -> SpaceCard:
    """
    The card of the Space with `depth_metrics.py`.

    `evaluate` takes the file with the Space's own name, so the Space must be called depth_metrics.

    Args:
        repo_id: owner/depth_metrics; None where the owner is not known yet.

    Raises:
        ValueError: it has another name, or is no name on the Hub.
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from huggingface_hub import SpaceCard, SpaceCardData

    from ...benchmark.scoring.protocols import PROTOCOLS

    check_repo_id(repo_id)
    if repo_id is not None and repo_id.split("/")[-1] != METRIC:
        raise ValueError(
            f"The metric's Space is called {repo_id!r}, expected owner/{METRIC}: `evaluate.load` looks for the file "
            "with the Space's name."
        )
    data = SpaceCardData(
        title=METRIC,
        sdk="gradio",
        sdk_version=gradio_version(),
        python_version=PYTHON,
        app_file=APP_FILE,
        license=CODE_LICENCE.lower(),
        tags=["evaluate", "metric", *TAGS],
        emoji="📐",
        colorFrom="blue",
        colorTo="red",
        pinned=False,
        description=DESCRIPTION,
    )
    protocols = [[f"`{name}`", protocol.description] for name, protocol in PROTOCOLS.items()]
    return SpaceCard.from_template(
        data,
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
    """
    Everything in the metric's Space, by name: the module, a page to try it, what it needs, and the card.

    Raises:
        ValueError, ImportError: see [`make_metric_card`].
    """
    from ... import __version__

    benchmark = resources.files("depthvlm.benchmark")
    return {
        "README.md": str(make_metric_card(repo_id)).encode(),
        f"{METRIC}.py": (benchmark / METRIC / f"{METRIC}.py").read_bytes(),
        APP_FILE: (resources.files("depthvlm.hub_cards.space") / "metric_app.py").read_bytes(),
        "requirements.txt": f"depthvlm[bench]=={__version__}\n".encode(),
    }
