"""Files of an evaluation: its settings, each process's part, one line per image, and the summary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ...files import write_text

FORMAT = 1


class EvaluationError(RuntimeError):
    """An evaluation that cannot continue; what was scored so far is kept."""


@dataclass(frozen=True)
class ImageResult:
    """Scores of one image."""

    id: str  # in its set
    metrics: dict[str, float]  # by name, without those that are undefined
    pixels: int  # scored
    failures: int  # scored pixels without a usable answer; they count as wrong
    sums: dict[str, float] = field(default_factory=dict)  # parts of the pooled metrics, the fields of `ErrorSums`
    truth: list[float] = field(default_factory=list)  # metres of the scored points, where the protocol samples points
    answers: list[float | None] = field(default_factory=list)  # metres at these points, None for a failure
    points: list[tuple[float, float]] = field(default_factory=list)  # columns and rows in pixels of the image
    texts: list[str] = field(default_factory=list)  # replies of a VLM, one for each point
    seconds: float = 0.0  # in the predictor, this image's share of its batch
    grid: dict[str, list[float]] = field(default_factory=dict)  # powers of a map's token grid, see `shape.grid_powers`

    def to_json(self) -> str:
        """Return the result as one line."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> ImageResult:
        """Return the result of a line.

        Raises:
            ValueError: The line is no JSON object with these fields.
        """
        values = json.loads(line)
        problem = _problem(cls, values) if isinstance(values, dict) else "is no JSON object"
        if problem:
            raise ValueError(f"it {problem}")
        return cls(**values)


@dataclass(frozen=True)
class Result:
    """Summary of one system on one set under one protocol."""

    row: str  # key of the system on the command line
    name: str  # as in the paper's tables
    dataset: str  # name of the set ("nyuv2")
    split: str
    data_hash: str  # SHA-256 of the set's manifest
    protocol: dict[str, Any]  # its fields, and its hash
    images: int  # in the set
    done: int  # scored, as the counts below
    pixels: int
    failures: int
    metrics: dict[str, dict[str, float]]  # "images" (mean over images) and "pixels" (pooled), by name
    confidence: dict[str, tuple[float, float]]  # 95 % interval by bootstrap over images
    parse_rate: float | None  # share of a VLM's replies that could be read; None for maps
    speed: dict[str, Any]  # "seconds" for all images, "images_per_second" (median image), "device"
    environment: dict[str, str]  # versions of packages
    limit: int | None = None  # images asked for, where that is not the whole set
    format: int = FORMAT
    checkpoint: str | None = None  # `depthvlm.checkpoint_hash` of a DepthVLM
    options: dict[str, Any] = field(default_factory=dict)  # options of the predictor, without the model's name
    build_options: dict[str, Any] = field(default_factory=dict)  # options of the reader that made the set
    grid: dict[str, list[float]] = field(default_factory=dict)  # ratio of each harmonic of the token grid, by direction

    @property
    def complete(self) -> bool:
        """True where the whole set was scored; any other result must be called partial wherever it is shown."""
        return self.done == self.images and self.limit is None

    def score(self, metric: str = "delta1") -> float:
        """Return the metric in the aggregation that the protocol names ("images" or "pixels")."""
        return self.metrics[self.protocol["aggregation"]][metric]

    def save(self, path: str | Path) -> None:
        """Write the summary as JSON, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Return the summary of a file.

        Raises:
            ValueError: The file is no such summary, or has another format.
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path} is no result of `depthvlm bench eval` of format {FORMAT}.")
        problem = _problem(cls, values) or _problem_of_protocol(values)
        if problem:
            raise ValueError(f"{path} {problem}. Run its `bench eval` again.")
        values["confidence"] = {name: tuple(ends) for name, ends in values["confidence"].items()}
        return cls(**values)


def _problem(kind: type, values: dict[str, Any]) -> str:
    """Say which field is missing, unknown or of another type than in a dataclass; "" if none is."""
    hints = get_type_hints(kind)
    required = {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    wrong = [name for name, value in values.items() if name in hints and not _fits(value, hints[name])]
    for words, names in (
        ("lacks", sorted(required.difference(values))),
        ("has unknown fields:", sorted(set(values).difference(hints))),
        ("has something of the wrong type in", wrong),
    ):
        if names:
            return f"{words} {', '.join(names)}"
    return ""


def _problem_of_protocol(values: dict[str, Any]) -> str:
    lacking = sorted({"name", "hash", "aggregation"}.difference(values["protocol"]))
    if lacking:
        return f"lacks {', '.join(lacking)} of its protocol"
    numbers = (values["speed"].get(name) for name in ("seconds", "images_per_second"))
    if not all(_fits(one, float | None) for one in numbers):
        return "has something of the wrong type in speed"
    aggregation = values["protocol"]["aggregation"]
    return "" if aggregation in values["metrics"] else f"lacks the metrics of {aggregation}"


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON has the type of a field."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def check_writable(out: str | Path) -> None:
    """Make the folder of results and try to write there, before a model is loaded.

    Raises:
        OSError: Nothing can be written there; the message names the folder.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise OSError(f"{out}: no results can be written there ({error.strerror}). Choose another --out.") from None


def claim(summary: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a run that begins.

    Raises:
        EvaluationError: A run to be continued has other settings, or its files belong to an unknown run.
    """
    from ..build.shards import goes_on  # cards read results where nothing of the builder is installed

    path = summary.with_suffix(".run")
    if goes_on(path, settings, f"The evaluation {summary.stem} in {summary.parent}", EvaluationError):
        return
    if there := [file for file in (summary, lines_path(summary)) if file.exists()]:
        raise EvaluationError(
            f"{' and '.join(map(str, there))} exists already, and no {path.name} beside it says which run wrote it. "
            "Choose another --out, or move it away."
        )
    write_text(path, json.dumps(settings, indent=1, sort_keys=True, default=str) + "\n")


def lines_path(summary: str | Path) -> Path:
    """Return the file with one line per image beside a summary: `x.json` and `x.images.jsonl`."""
    return Path(summary).with_suffix(".images.jsonl")


def parts_of(summary: Path) -> list[Path]:
    """Return the parts of an evaluation under way, one for each process that began to score."""
    return sorted(summary.parent.glob(f"{summary.stem}.part*.jsonl"))


def read_parts(summary: Path) -> dict[str, ImageResult]:
    """Return all images scored so far by id, from a finished run and from every process's part."""
    lines = lines_path(summary)
    return {result.id: result for path in [lines, *parts_of(summary)] if path.is_file() for result in read_lines(path)}


def read_lines(path: str | Path) -> Iterator[ImageResult]:
    """Yield the images of a file. A last line that a kill cut off is skipped: its image is scored again.

    Raises:
        ValueError: A line is no result of an image.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                try:
                    yield ImageResult.from_json(line)
                except ValueError as error:
                    raise ValueError(
                        f"{path}, line {number}, is no result of an image ({error}). Delete that file: its `bench "
                        "eval` then scores those images again."
                    ) from None


def mend(part: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next begins on its own."""
    part.parent.mkdir(parents=True, exist_ok=True)
    text = part.read_bytes() if part.is_file() else b""
    if text and not text.endswith(b"\n"):
        part.write_bytes(text[: text.rfind(b"\n") + 1])
