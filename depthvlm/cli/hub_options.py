"""Options of the commands that load a model."""

import os
from typing import Annotated

import typer


def _use_token(token: str | None) -> None:
    """Have whatever asks the Hub in this process and those that it starts use the token."""
    if token:
        os.environ["HF_TOKEN"] = token


Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub; MODEL@REV says the same."),
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help="For a private or gated model; by default HF_TOKEN, or the one of `hf auth login`.",
        callback=_use_token,
    ),
]
UntrainedHead = Annotated[
    bool,
    typer.Option("--allow-untrained-head", help="Also load a depth head that was never trained: one metre everywhere."),
]


def at_revision(model: str | None, revision: str | None) -> str | None:
    """Return `model@revision`.

    Raises:
        BadParameter: there is a revision and no model.
    """
    if revision is None:
        return model
    if model is None:
        raise typer.BadParameter("It is of a model on the Hub: name the model too.", param_hint="--revision")
    return f"{model}@{revision}"
