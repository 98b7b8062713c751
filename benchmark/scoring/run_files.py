"""The files of an evaluation under way: its settings, every process's part, and one line per image."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .results import ImageResult, lines_path, read_lines, write_whole


class EvaluationError(RuntimeError):
    """An evaluation that cannot go on; what was scored so far is kept."""


def check_writable(out: str | Path) -> None:
    """Make the folder of results and try to write there, before a model is loaded. Raises OSError that names it."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise OSError(f"{out}: no results can be written there ({error.strerror}). Choose another --out.") from None


def claim(summary: Path, settings: dict[str, Any]) -> None:
    """Notes the settings of a run that begins; raises EvaluationError if one that goes on has others."""
    path = summary.with_suffix(".run")
    wanted = json.loads(json.dumps(settings, sort_keys=True, default=str))
    if path.is_file():
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise EvaluationError(
                f"{path}, the settings of this run, cannot be read ({error}). Delete it, or choose another --out."
            ) from None
        differing = [name for name in wanted if begun.get(name) != wanted[name]]
        if differing:
            lines = [f"  {name}: {begun.get(name)!r} there, {wanted[name]!r} now" for name in differing]
            raise EvaluationError(
                "\n".join(
                    [f"{summary.parent} holds this evaluation with other settings:", *lines, "Choose another --out."]
                )
            )
    else:
        if there := [file for file in (summary, lines_path(summary)) if file.exists()]:
            raise EvaluationError(
                f"{' and '.join(map(str, there))}: there already, and no {path.name} beside says which run wrote it. "
                "Choose another --out, or move it away."
            )
        write_whole(path, json.dumps(wanted, indent=1, sort_keys=True) + "\n")


def parts_of(summary: Path) -> list[Path]:
    """One for each process that began to score."""
    return sorted(summary.parent.glob(f"{summary.stem}.part*.jsonl"))


def read_parts(summary: Path) -> dict[str, ImageResult]:
    """All images scored so far, by id: those of a finished run, and those of every process's part."""
    lines = lines_path(summary)
    return {result.id: result for path in [lines, *parts_of(summary)] if path.is_file() for result in read_lines(path)}


def mend(part: Path) -> None:
    """Cuts off a last line that a kill left unfinished, so that the next one begins on its own."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file():
        text = part.read_bytes()
        if text and not text.endswith(b"\n"):
            part.write_bytes(text[: text.rfind(b"\n") + 1])
