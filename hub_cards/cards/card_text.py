"""Text that the cards share: templates, citation, Markdown tables, the terms of each source. Not legal advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...checkpoint import hub_name_problem

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

PublicCopy = Literal["yes", "same terms", "see terms", "no"]

_MEANING: dict[PublicCopy, str] = {
    "yes": "yes",
    "same terms": "not commercially, under the same licence",
    "see terms": "see its terms",
    "no": "**no**: its terms do not allow it, or only behind their own agreement",
}


@dataclass(frozen=True)
class Terms:
    """The terms of one source of DepthVLM-Bench."""

    # whether the terms allow a build that is open to everyone; "no" also where each user must first agree to the
    # owner's terms
    public_copy: PublicCopy
    spdx: str | None = None  # the Hub's key of the licence, where it has one and we are sure
    paper: str = ""  # the licence in the paper's table 11, for what it links to there; "" where the source is not in it
    note: str = ""  # where the two differ


_CODE = "the paper's is the licence of the dataset's code"
_READ = "the dataset's page is what counts"

TERMS: dict[str, Terms] = {
    "argoverse2": Terms("same terms", "cc-by-nc-sa-4.0", "Apache License 2.0", _CODE),
    "waymo": Terms("no", paper="Apache License 2.0", note=_CODE),
    "ddad": Terms("same terms", "cc-by-nc-sa-4.0", "Creative Commons Attribution 4.0", _READ),
    "nuscenes": Terms("see terms", paper="Apache License 2.0", note=_CODE),
    "scannetpp": Terms("no", paper="ScanNet++ Terms of Use"),
    "taskonomy": Terms("no"),
    "hm3d": Terms("no"),
    "matterport3d": Terms("no"),
    "sunrgbd": Terms("see terms"),
    "ibims1": Terms("see terms"),
    "nyuv2": Terms("see terms"),
    "nyuv2-sunrgbd": Terms("see terms"),
    "eth3d": Terms("see terms", paper="Creative Commons Attribution 4.0", note=_READ),
    "kitti": Terms("same terms", "cc-by-nc-sa-3.0"),
    "kitti-lidar": Terms("same terms", "cc-by-nc-sa-3.0"),
    "folder": Terms("see terms"),
    "lines": Terms("see terms"),
    "synthetic": Terms("yes", "apache-2.0"),
}


def template(name: str) -> str:
    """Return the path of a template: "model_card" is `model_card.md.jinja`."""
    return str(Path(__file__).with_name(f"{name}.md.jinja"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Bars in cells are escaped, line ends become spaces."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in line) + " |" for line in lines
    )


def check_repo_id(repo_id: str | None) -> None:
    """Check that the Hub accepts a name; None, for a name that is not known yet, passes.

    Raises:
        ValueError: The name is not "name" or "owner/name".
    """
    problem = None if repo_id is None else hub_name_problem(repo_id)
    if problem:
        raise ValueError(f"{repo_id!r} is no name on the Hub, expected owner/name: {problem}")


def terms_of(source: str) -> Terms:
    """Return the terms of a source; nothing is known of one that has no reader here."""
    return TERMS.get(source, Terms("see terms"))


def closed_sources(sources: Iterable[str]) -> tuple[str, ...]:
    """Return the sources whose builds must not be public."""
    return tuple(source for source in sources if terms_of(source).public_copy == "no")


def licence_table(sources: Iterable[str], entries: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return a Markdown table of the terms of sources; a build's manifest by source goes before the readers' words."""
    from ...benchmark.sources import SOURCES, source_class

    rows = []
    for source in sources:
        known = (entries or {}).get(source) or {}
        if not known and source in SOURCES:
            reader = source_class(source)
            known = {"title": reader.title, "licence": reader.licence, "homepage": reader.homepage}
        terms, page = terms_of(source), known.get("homepage")
        rows.append(
            [
                str(known.get("title") or source),
                str(known.get("licence") or "not known"),
                f"[its page]({page})" if page else "",
                f"{terms.paper} ({terms.note})" if terms.note else terms.paper or "not in it",
                _MEANING[terms.public_copy],
            ]
        )
    return table(["source", "licence of the data", "terms", "in the paper's table 11", "a public copy"], rows)
