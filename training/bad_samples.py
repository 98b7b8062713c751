"""Rows that cannot be used: an error that names row, file, reason and remedy, or a list of what was left out."""

import json
import logging
import os
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


class BadSampleError(ValueError):
    """
    A row that cannot be used.

    Args:
        reason (`str`): What is wrong with it, as a sentence.
        row (`int` or `str`, *optional*): Its number in the data set, or words that say which it is.
        file (`str`, *optional*): The file, or files, at fault.
    """

    def __init__(self, reason: str, row: int | str | None = None, file: str | None = None) -> None:
        # A DataLoader rebuilds the errors of its workers from their text, which has their traceback before.
        reason = reason.rpartition(f"{type(self).__name__}: ")[2].rstrip("\n")
        super().__init__(reason if row is None else f"{describe_row(row, file)} cannot be used: {reason} {REMEDY}")
        self.reason, self.row, self.file = reason, row, file


REMEDY = (
    "Correct or remove it, or leave such rows out with `--on_bad_sample skip` (they are counted and listed, never "
    "replaced)."
)


def describe_row(row: int | str, file: str | None = None) -> str:
    """Words for a row: `row 12 (room/3.jpg)`."""
    name = f"row {row}" if isinstance(row, int) else row
    # What no encoding can write is escaped, or a log's handler would fail on it.
    return f"{name} ({file})".encode(errors="backslashreplace").decode() if file else name


@dataclass
class BadSampleLog:
    """
    What is done with a bad row.

    Args:
        on_bad_sample (`str`): `"stop"` raises the error, `"skip"` lists it.
        file (`str`, *optional*): JSON lines `{"row", "file", "reason"}`, appended to by every process that loads data.

    Raises:
        ValueError: for another `on_bad_sample`.
    """

    on_bad_sample: str = "stop"
    file: str | None = None
    _listed: set[int] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("stop", "skip"):
            raise ValueError(f"`on_bad_sample` is {self.on_bad_sample!r}, expected 'stop' or 'skip'.")

    def report(self, error: BadSampleError) -> None:
        """Raises `error`, or logs and lists it, once per numbered row and process, later epochs included."""
        if self.on_bad_sample == "stop":
            raise error
        if isinstance(error.row, int):
            if error.row in self._listed:
                return
            self._listed.add(error.row)
        logger.warning(
            "Left out: %s: %s", describe_row("a row" if error.row is None else error.row, error.file), error.reason
        )
        if self.file is not None:
            line = json.dumps({"row": error.row, "file": error.file, "reason": error.reason}, ensure_ascii=False)
            os.makedirs(os.path.dirname(os.path.abspath(self.file)), exist_ok=True)
            # One write of a whole line: loader processes append to the same file.
            stream = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(stream, (line + "\n").encode(errors="backslashreplace"))  # of undecodable names
            finally:
                os.close(stream)
