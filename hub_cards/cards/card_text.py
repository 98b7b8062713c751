"""What all cards share: the templates' folder, the citation, the licence of the code, Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..._bundled import hub_name_problem

CODE_LICENCE = "Apache-2.0"
PAPER = "Unlocking Dense Metric Depth Estimation in VLMs"
TAGS = ("depth-estimation", "metric-depth", "vision-language-model", "depthvlm")

CITATION = f"""\
@article{{yu2026depthvlm,
  title   = {{{PAPER}}},
  author  = {{Yu, Hanxun and Qu, Xuan and Wang, Yuxin and Zhu, Jianke and Ke, Lei}},
  journal = {{arXiv preprint arXiv:2605.15876}},
  year    = {{2026}}
}}"""


def template(name: str) -> str:
    """The path of a template: "model_card" is `model_card.md.jinja`."""
    return str(Path(__file__).with_name(f"{name}.md.jinja"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Bars in cells are escaped, line ends become spaces."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    )


def check_repo_id(repo_id: str | None) -> None:
    """
    See that a name is one that the Hub takes.

    Raises:
        ValueError: it is not "name" or "owner/name".
    """
    problem = None if repo_id is None else hub_name_problem(repo_id)
    if problem:
        raise ValueError(f"{repo_id!r} is no name on the Hub, expected owner/name: {problem}")
