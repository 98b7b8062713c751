"""Every system of the paper as a row that runs, and whatever else transformers or a server offers."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .availability import can_run
from .interface import Predictor, Requirement
from .registry import API, OURS, PIPELINE, PREDICTORS, VLM, Row

if TYPE_CHECKING:
    from .dense import PredictorError, check_maps

__all__ = ["PREDICTORS", "PREFIXES", "PredictorError", "Row", "can_run", "check_maps", "find_row", "make_predictor"]

PREFIXES = {
    "depthvlm:": "depthvlm:PATH_OR_HUB_ID, a DepthVLM checkpoint",
    "pipeline:": "pipeline:HUB_ID, a metric depth estimator of transformers",
    "vlm:": "vlm:HUB_ID, an image-text-to-text model of transformers, asked with the arrow",
    "api:": "api:MODEL@BASE_URL, a model on an OpenAI-compatible server, asked with the arrow",
}
"""What may stand in place of a row's key."""


def find_row(spec: str) -> Row:
    """
    The row that `spec` names: a key of `PREDICTORS`, or one of `PREFIXES` with what follows it.

    Raises:
        ValueError: there is no such row; the message names the nearest ones.
    """
    prefix = next((prefix for prefix in PREFIXES if spec.startswith(prefix)), None)
    if prefix is not None:
        return _row_of(prefix, spec, spec.removeprefix(prefix).strip())
    key = spec.strip().lower().replace(" ", "-").replace("_", "-")
    if key in PREDICTORS:
        return PREDICTORS[key]
    names = {row.name.lower().replace(" ", "-"): known for known, row in PREDICTORS.items()} | {
        k: k for k in PREDICTORS
    }
    near = list(dict.fromkeys(names[name] for name in get_close_matches(key, names, n=4, cutoff=0.5)))
    raise ValueError(
        f"There is no predictor {spec!r}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"`depthvlm bench list` shows all {len(PREDICTORS)}; or give {'; '.join(PREFIXES.values())}."
    )


def make_predictor(spec: str, **options: Any) -> Predictor:
    """
    Load the predictor that `spec` names.

    Args:
        spec: see [`find_row`].
        **options: keyword arguments of its class, over those of the row, such as `device` or `dtype`.

    Returns:
        It, with the row's name; with the options behind it where they change what the row is.

    Raises:
        ValueError: no such row, an option that its class does not take, or one missing that it needs.
        ImportError: a package that it needs is not installed.
        PredictorError: its checkpoint cannot be a row.
    """
    row = find_row(spec)
    missing = [name for name in row.required_options if name not in options]
    if missing:
        raise ValueError(f"The predictor {spec!r} needs to be told {' and '.join(missing)}.")
    module, _, name = row.target.partition(":")
    loaded = getattr(import_module(module), name)
    _check_options(spec, loaded, options)
    predictor = loaded(**{**row.kwargs, **options})
    changed = {key: value for key, value in options.items() if key in row.kwargs and value != row.kwargs[key]}
    changes = ", ".join(f"{key}={value}" for key, value in changed.items())
    predictor.name = f"{row.name} ({changes})" if changes else row.name
    return predictor


def _row_of(prefix: str, spec: str, rest: str) -> Row:
    model, at, url = rest.rpartition("@") if prefix == "api:" else (rest, "", "")
    model = model if at else rest
    if not model or (at and not url.startswith(("http://", "https://"))):
        raise ValueError(f"The predictor {spec!r} is not complete: give {PREFIXES[prefix]}.")
    if prefix == "api:":
        # The key of one server is not shown to another: name its variable with the option api_key_env.
        if at:
            return Row(spec, API, "points", {"model": model, "base_url": url, "api_key_env": None})
        return Row(spec, API, "points", {"model": model}, Requirement(environment=("OPENAI_API_KEY",)))
    if prefix == "vlm:":
        return Row(spec, VLM, "points", {"model": model}, weights=model)
    return Row(spec, OURS if prefix == "depthvlm:" else PIPELINE, "dense", {"model": model}, weights=model)


def _check_options(spec: str, loaded: type, options: dict[str, Any]) -> None:
    parameters = inspect.signature(loaded).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [name for name in options if name not in parameters]
    if unknown:
        takes = ", ".join(parameters) or "nothing"
        raise ValueError(f"The predictor {spec!r} does not take {', '.join(unknown)}. It takes {takes}.")


def __getattr__(name: str) -> Any:
    if name in ("PredictorError", "check_maps"):  # they need torch, seconds of import
        return getattr(import_module(f"{__name__}.dense"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
