"""What a folder of builds says about itself: `manifest.json`, and the parameters of builds that are under way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .shard_writer import STATE_FOLDER, BuildError, write_atomically

MANIFEST = "manifest.json"
FORMAT = 1

# Where intrinsics have the centre of the first pixel; builds whose parameters do not say it have it at 0.
PIXEL_CENTRE = 0.5


def build_name(source: str, split: str) -> str:
    """The name of a build in its folder: "ddad-test"."""
    return f"{source}-{split}"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished builds of a folder by their names, empty if there is none.

    Raises:
        BuildError: the manifest is damaged, or of a format that this version does not know.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, builds = content["format"], content["builds"]
        if version == FORMAT:
            for entry in builds.values():
                _check_entry(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BuildError(f"{path} is damaged ({reason}). Delete it and run its builds again to have it anew.") from None
    if version != FORMAT:
        raise BuildError(f"{path} has the format {version}, this version reads {FORMAT}: use the one that built it.")
    return builds


def _check_entry(entry: Any) -> None:
    """Raises KeyError, TypeError or ValueError where an entry lacks what a reader of a build needs."""
    texts = [entry[key] for key in ("source", "split", "title", "licence")]
    parameters, counts, shards = entry["parameters"], entry["counts"], entry["shards"]
    texts += [shard[key] for shard in shards for key in ("file", "sha256")]
    numbers = [counts["rows"], *(shard[key] for shard in shards for key in ("bytes", "rows"))]
    if not isinstance(parameters, dict) or "seed" not in parameters:
        raise ValueError("the parameters of a build are missing")
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
        raise ValueError("something is of the wrong type")
    if not shards:
        raise ValueError("a build without shards")


def add_to_manifest(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Adds a finished build, or puts it in the place of its older self; builds of other names stay."""
    with FileLock(folder / STATE_FOLDER / "manifest.lock"):
        builds = read_manifest(folder) | {name: dict(entry)}
        content = {"format": FORMAT, "builds": builds}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False))


@contextmanager
def build_lock(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock that keeps a second process from the same build. A killed process loses it.

    Raises:
        BuildError: another process has it.
    """
    lock = FileLock(folder / STATE_FOLDER / f"{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BuildError(
            f"Another process is building {name} in {folder}. Wait for it, or choose another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_parameters(folder: Path, name: str, parameters: Mapping[str, Any], files: Sequence[str] = ()) -> None:
    """Makes sure that a build goes on as it was begun, and notes the parameters of one that begins.

    Args:
        files: names of its shards, of which none may be there when it begins.

    Raises:
        BuildError: it was begun with others, or a file is there that no build wrote; the message says which.
    """
    path = folder / STATE_FOLDER / f"{name}.json"
    begun: dict[str, Any] | None = None
    if path.is_file():
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise BuildError(f"{path} is damaged ({error}). Delete it and run the build again.") from None
    elif name in read_manifest(folder):
        begun = read_manifest(folder)[name]["parameters"]
    if begun is None:
        if there := [file for file in files if os.path.lexists(folder / file)]:
            raise BuildError(
                f"{folder} has {', '.join(there[:5])}, which no build wrote: choose another --out, or move it away."
            )
        write_atomically(path, json.dumps(dict(parameters), indent=1, sort_keys=True))
        return
    # Through JSON, where a tuple is a list.
    asked = json.loads(json.dumps(dict(parameters)))
    differing = [key for key in sorted(asked | begun) if asked.get(key) != begun.get(key)]
    if differing:
        lines = [f"  {key}: {begun.get(key)!r} there, {asked.get(key)!r} now" for key in differing]
        raise BuildError(
            "\n".join(
                [
                    f"{name} was begun in {folder} with other parameters:",
                    *lines,
                    "Run it with those to go on, or choose another --out.",
                ]
            )
        )
