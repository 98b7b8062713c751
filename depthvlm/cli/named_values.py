"""`NAME=VALUE`, as options of the commands take it."""

import json
from collections.abc import Sequence
from typing import Any

from .failures import fail


def named_values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """
    The values by name: as JSON where they are JSON (a number, true, a list, an object), else text.

    Args:
        given: the texts.
        option: of the command that took them, for the message.

    Raises:
        typer.Exit: one is not of that form.
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
