"""How every command ends on an error that is meant for the user."""

import typer


def fail(error: Exception | str, code: int = 1) -> typer.Exit:
    """Print an error meant for the user; raise the result to end the command."""
    typer.secho(f"Error: {error}", fg="red", err=True)
    return typer.Exit(code)
