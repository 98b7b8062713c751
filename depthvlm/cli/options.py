"""Options that several commands share."""

import json
import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .failures import fail


def _use_token(token: str | None) -> None:
    """Make this process and its children use the token for the Hub."""
    if token:
        os.environ["HF_TOKEN"] = token


def _known_scheme(scheme: str | None) -> str | None:
    if scheme not in (None, "int8", "int4"):
        raise typer.BadParameter(f"{scheme!r} is neither int8 nor int4.")
    return scheme


Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub name of a model.", show_default="the bundled depthvlm-nano"),
]
Device = Annotated[str, typer.Option(help="cuda, mps or cpu; auto: the first that is there.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: the model's own.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the layers for depth, on CUDA into CUDA graphs: a wait at each new size of picture, then faster.",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="int8|int4",
        help="Weights in 8 or 4 bits, by bitsandbytes.",
        show_default="as stored",
        callback=_known_scheme,
    ),
]
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
FocalLength = Annotated[float | None, typer.Option(metavar="PX", help="Focal length in pixels of the image as given.")]
FieldOfView = Annotated[float | None, typer.Option(metavar="DEG", help="Horizontal field of view in degrees.")]
UntrainedHead = Annotated[
    bool,
    typer.Option("--allow-untrained-head", help="Also load a depth head that was never trained: one metre everywhere."),
]


def at_revision(model: str | None, revision: str | None) -> str | None:
    """Return `model@revision`.

    Raises:
        BadParameter: There is a revision and no model.
    """
    if revision is None:
        return model
    if model is None:
        raise typer.BadParameter("A revision is that of a model: name the model too.", param_hint="--revision")
    return f"{model}@{revision}"


def named_values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` by name: parsed as JSON if possible (a number, true, a list), else text.

    Args:
        given: The texts.
        option: Name of the option, for the message.

    Raises:
        typer.Exit: A text does not have that form.
    """
    values: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise fail(f"{option} takes NAME=VALUE, got {text!r}.", code=2)
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
