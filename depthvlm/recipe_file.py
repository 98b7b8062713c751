"""`training_recipe.yaml`: a publishable record of a checkpoint's training, next to its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from .checkpoint import hub_name_problem
from .files import write_text

RECIPE_FILE = "training_recipe.yaml"
FORMAT = 1

Stage: TypeAlias = Mapping[str, Any]
"""One training run; [`~depthvlm.training.card.stage_record`] makes it."""

_CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")

_HEADER = (
    "# How these weights were trained, one entry for each run, the first one first. Written by DepthSFTTrainer.\n"
    "# `settings` holds what differs from the trainer's defaults, and the basic ones.\n"
)


def read_recipe(folder: str | Path) -> list[Stage]:
    """Return the runs that led to a checkpoint, in order; empty if there is no record.

    Raises:
        ValueError: The file is not such a record, or has a format unknown to this version.
    """
    path = Path(folder) / RECIPE_FILE
    if not path.is_file():
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Delete it, and the card will say that no recipe is kept."
        ) from None
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{path} is no record of a training: it has no list `stages`. Delete or mend it.")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {content.get('format')}, this version reads {FORMAT}: update depthvlm."
        )
    return stages


def write_recipe(folder: str | Path, stages: Sequence[Stage]) -> None:
    """Write the record atomically."""
    path = Path(folder) / RECIPE_FILE
    content = {"format": FORMAT, "stages": [dict(stage) for stage in stages]}
    write_text(path, _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form `owner/name` of the Hub, which a path of two parts has too."""
    return "/" in name and hub_name_problem(name) is None


def hub_name(model: str) -> tuple[str | None, str | None]:
    """Return owner/name and revision of a model from the Hub or from its folder in the cache; None for a local folder.

    The path of a local folder is private.
    """
    cached = _CACHED.search(model)
    if cached:
        return f"{cached['owner']}/{cached['name']}", cached["revision"]
    return (model if is_hub_name(model) and not Path(model).exists() else None), None


def convert_recipe(source: str, destination: str | Path, base: str, commit: str | None, **origin: Any) -> None:
    """Write the record of a converted checkpoint: the source's, or a note of the Hub model that it was converted from.

    Args:
        source: Folder or Hub name.
        destination: Folder of the converted checkpoint.
        base: Folder or Hub name of the model that the weights were loaded from: the source, or an adapter's base.
        commit: Commit of the base on the Hub.
        **origin: See [`~depthvlm.loading.hub_keywords`].
    """
    from transformers.utils.hub import cached_file

    from . import __version__

    file = cached_file(source, RECIPE_FILE, _raise_exceptions_for_missing_entries=False, **origin)
    stages = list(read_recipe(Path(file).parent)) if file else []
    name, revision = hub_name(base)
    if not stages and name:
        made = {"trained": [], "converted_by": f"depthvlm {__version__}"}
        stages = [{"base_model": name, "base_revision": revision or commit, **made}]
    if stages:
        write_recipe(destination, stages)


def base_of(stages: Sequence[Stage]) -> str | None:
    """Return the Hub model that the first run started from, or None if unknown."""
    return stages[0].get("base_model") if stages else None


def data_of(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the names of all data that the runs used, each once."""
    names = (name for stage in stages for name in stage.get("data", {}).get("names", ()))
    return tuple(dict.fromkeys(names))


def sources_of(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the sources of DepthVLM-Bench in these data, as far as recorded."""
    sources = (source for stage in stages for source in stage.get("data", {}).get("sources", ()))
    return tuple(dict.fromkeys(sources))
