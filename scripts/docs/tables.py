"""Tables that scripts write into the pages of the documentation, between two comments."""

import re
from collections.abc import Iterable
from pathlib import Path


def marks(subject: str, script: str) -> tuple[str, str]:
    """Return the two comments around the tables that a script writes about a subject."""
    return f"<!-- {subject}: scripts/docs/{Path(script).name} -->", f"<!-- end of {subject} -->"


def write_tables(page: Path, subject: str, script: str, lines: Iterable[str]) -> None:
    """Print lines as they come, then put them into a page, in place of what stands between two comments.

    Args:
        page: A page of the documentation.
        subject: What the tables show, in a word.
        script: File of the script that makes them.
        lines: Lines of Markdown.

    Raises:
        ValueError: The page does not have the two comments once each.
    """
    start, end = marks(subject, script)
    shown = []
    for line in lines:
        shown.append(line)
        print(line, flush=True)
    table = "\n".join([start, "", *shown, "", end])
    before = page.read_text(encoding="utf-8")
    after, places = re.subn(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: table, before, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"{page} has {places} places between {start} and {end}, expected one.")
    page.write_text(after, encoding="utf-8")
