"""The terms of each source of DepthVLM-Bench, and whether they leave room for a public copy. No legal advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .card_text import table

PublicCopy = Literal["yes", "same terms", "see terms", "no"]

_MEANING: dict[PublicCopy, str] = {
    "yes": "yes",
    "same terms": "not commercially, under the same licence",
    "see terms": "see its terms",
    "no": "**no**: its terms do not allow it, or only behind their own agreement",
}


@dataclass(frozen=True)
class Terms:
    """
    Args:
        public_copy: whether the terms allow that a build is open to everyone; "no" also where each user must agree to
            the owner's terms first.
        spdx: the Hub's key of the licence, where it has one and we are sure.
        paper: licence in the paper's table 11, of what it links to there; "" where it is not in it.
        note: where the two differ.
    """

    public_copy: PublicCopy
    spdx: str | None = None
    paper: str = ""
    note: str = ""


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


def terms_of(source: str) -> Terms:
    """Its terms; nothing is known of a source that has no reader here."""
    return TERMS.get(source, Terms("see terms"))


def closed_sources(sources: Iterable[str]) -> tuple[str, ...]:
    """Those of which no build may be open to everyone."""
    return tuple(source for source in sources if terms_of(source).public_copy == "no")


def licence_table(sources: Iterable[str], entries: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """
    Markdown: licence, page and table 11 of each source.

    Args:
        sources: their names.
        entries: of a build's manifest by source, whose `title`, `licence` and `homepage` go before the reader's.
    """
    return table(
        ["source", "licence of the data", "terms", "in the paper's table 11", "a public copy"],
        [_row(source, (entries or {}).get(source) or _reader(source)) for source in sources],
    )


def _row(source: str, known: Mapping[str, Any]) -> list[str]:
    terms, page = terms_of(source), known.get("homepage")
    paper = f"{terms.paper} ({terms.note})" if terms.note else terms.paper or "not in it"
    return [
        str(known.get("title") or source),
        str(known.get("licence") or "not known"),
        f"[its page]({page})" if page else "",
        paper,
        _MEANING[terms.public_copy],
    ]


def _reader(source: str) -> dict[str, str]:
    from ...benchmark.sources import SOURCES, source_class

    if source not in SOURCES:
        return {}
    reader = source_class(source)
    return {"title": reader.title, "licence": reader.licence, "homepage": reader.homepage}
