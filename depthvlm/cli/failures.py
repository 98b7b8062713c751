"""How commands end: an expected failure prints one message, a bug in this program its traceback."""

import errno
import io
import linecache
import os
import sys
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

INTERRUPTED = 130  # exit code of shells for Ctrl-C

_REMEDIES = {
    errno.ENOENT: "Check the name.",
    errno.EACCES: "Check the permissions, or choose another place.",
    errno.EPERM: "Check the permissions, or choose another place.",
    errno.EROFS: "Choose another place.",
    errno.ENOSPC: "Free some space, or choose another place.",
    errno.EDQUOT: "Free some space, or choose another place.",
    errno.EISDIR: "Give a file.",
    errno.ENOTDIR: "Give a folder.",
    errno.EEXIST: "Choose another name, or move it away.",
    errno.ENOTEMPTY: "Choose another name, or move it away.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
    errno.EIO: "The disk or its connection may be damaged: copy the file elsewhere.",
}
_LAYOUT = "\n\t"  # kept in messages of several lines
_NOT_SHOWN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, undecodable bytes, line separators


class Commands(TyperGroup):
    """Root of the commands, all of which end as described in `expected_failures`."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command, and end it as described in `expected_failures`."""
        with expected_failures():
            return super().invoke(ctx)


def print_any_name() -> None:
    """Make this process and its children escape characters that the console cannot encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    os.environ["PYTHONIOENCODING"] = f"{encoding}:{errors or 'backslashreplace'}"


def printable(text: object, keep: str = "") -> str:
    """Escape characters that a terminal would interpret or cannot print: newlines, escape sequences, stray bytes.

    Args:
        text: A name or a message.
        keep: Characters that are kept.
    """
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _NOT_SHOWN
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def fail(error: Exception | str, code: int = 1) -> typer.Exit:
    """Print an error for the user; raise the result to end the command."""
    message = error if isinstance(error, str) else explain(error)
    typer.secho(f"Error: {printable(message, _LAYOUT)}", fg="red", err=True)
    return typer.Exit(code)


def explain(error: BaseException) -> str:
    """Return one sentence about an error: the file, the reason, and what to do."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else error.filename
        reason = f"{error.strerror[0].lower()}{error.strerror[1:]}"
        return f"{name or 'A file'}: {reason}. {_REMEDIES.get(error.errno, '')}".strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"Out of memory ({error or 'MemoryError'}). Use a smaller batch, bfloat16, or another device."
    return str(error) or type(error).__name__


def is_expected(error: BaseException) -> bool:
    """Return whether an error is due to the user's input or the machine, not a bug in this program.

    Expected errors concern files, memory or missing packages; have a library's own class; or are a ValueError, or in
    this package a RuntimeError or TypeError, from an explicit `raise` statement.
    """
    if isinstance(error, (OSError, ImportError, MemoryError)) or type(error).__module__ != "builtins":
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return not isinstance(error, (AssertionError, LookupError, AttributeError))
    raised = (frames[-1].line or "raise").startswith("raise")
    ours = os.path.realpath(frames[-1].filename).startswith(_package_folders())
    if isinstance(error, ValueError):
        return raised
    return raised and ours and type(error) in (RuntimeError, TypeError)


@contextmanager
def expected_failures(code: int = 1, note: str = "", interrupted: str = "Interrupted.") -> Iterator[None]:
    """End a command with one message if the failure is expected (see `is_expected`).

    Any other error is a bug in this program: its traceback is shown, with a line that asks for a report. All commands
    run in such a block; nest another one to add information.

    Args:
        code: Exit code of an expected failure.
        note: Text to add to its message.
        interrupted: Text for Ctrl-C, which ends with 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if _of_the_command_line(error) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        if is_expected(error):
            raise fail(f"{explain(error)} {note}".strip(), code) from None
        show_fault(error)
        raise typer.Exit(1) from None


def show_fault(error: BaseException) -> None:
    """Print the traceback of a bug in this program, and what to do with it."""
    linecache.checkcache()
    typer.echo(printable("".join(traceback.format_exception(error)), _LAYOUT), err=True, nl=False)
    typer.secho(
        "This is a fault of depthvlm, not of your input. Please report it where you got depthvlm from (the issues of "
        "its repository), with this traceback, the command, and what `depthvlm info` prints.",
        fg="red",
        err=True,
    )


def _of_the_command_line(error: Exception) -> bool:
    """Return whether typer itself handles the error: a wrong option, `typer.Exit`, `typer.Abort`."""
    kinds = (typer.Exit, typer.Abort, *typer.BadParameter.__mro__[:3])
    return isinstance(error, kinds)


def _package_folders() -> tuple[str, ...]:
    """Return the folders of this package's code, which are separate in an editable installation."""
    from importlib.util import find_spec

    names = ("", ".modeling_depthvlm", ".processing", ".training", ".benchmark", ".hub_cards")
    specs = (find_spec(f"depthvlm{name}") for name in names)
    return tuple(os.path.realpath(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ())
