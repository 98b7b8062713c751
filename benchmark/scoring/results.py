"""What an evaluation leaves behind: one summary and one line per image."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

FORMAT = 1


@dataclass(frozen=True)
class ImageResult:
    """
    One image's scores.

    Args:
        id: of the image in its set.
        metrics: name to value, over the scored pixels of this image; without those that are undefined.
        pixels: number of scored pixels.
        failures: those among them without a usable answer; they count as wrong.
        sums: what pooled metrics are made of, the fields of [`~depthvlm.benchmark.scoring.error_sums.ErrorSums`].
        truth: metres of the scored points, where the protocol samples points; their answers are in `answers`.
        answers: metres, None for a failure.
        points: columns and rows in pixels of the image.
        texts: a VLM's own words, one for each point.
        seconds: in the predictor, the share of this image in its batch.
    """

    id: str
    metrics: dict[str, float]
    pixels: int
    failures: int
    sums: dict[str, float] = field(default_factory=dict)
    truth: list[float] = field(default_factory=list)
    answers: list[float | None] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> ImageResult:
        """
        The result of a line.

        Raises:
            ValueError: it is no JSON object with these fields.
        """
        values = json.loads(line)
        problem = _problem(cls, values) if isinstance(values, dict) else "is no JSON object"
        if problem:
            raise ValueError(f"it {problem}")
        return cls(**values)


@dataclass(frozen=True)
class Result:
    """
    One system on one set under one protocol.

    Args:
        row: key of the system, as on the command line.
        name: as in the paper's tables.
        dataset: name of the set ("nyuv2").
        split: of the set.
        data_hash: sha256 of the set's manifest.
        protocol: its fields, and its hash.
        images: images of the set that were to be scored.
        done: how many were.
        pixels, failures: of those done.
        metrics: "images" (mean of images) and "pixels" (pooled), each name to value.
        confidence: metric to the lower and upper end of its 95 % interval, by bootstrap over images.
        parse_rate: share of a VLM's replies that could be read; None for maps.
        speed: "seconds" in the predictor, all images together; "images_per_second" of one process, from the median
            image, so that the first one's warm-up does not count; "device".
        environment: versions.
        limit: images that were asked for where that is not the whole set; None else.
        checkpoint: [`~depthvlm.checkpoint_hash`] of a DepthVLM; None of other systems.
        options: of the predictor, besides the model's name.
        build_options: of the reader that made the set (`bench build --option`).
    """

    row: str
    name: str
    dataset: str
    split: str
    data_hash: str
    protocol: dict[str, Any]
    images: int
    done: int
    pixels: int
    failures: int
    metrics: dict[str, dict[str, float]]
    confidence: dict[str, tuple[float, float]]
    parse_rate: float | None
    speed: dict[str, Any]
    environment: dict[str, str]
    limit: int | None = None
    format: int = FORMAT
    checkpoint: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    build_options: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the whole set was scored. A result that is not must be called partial wherever it is shown."""
        return self.done == self.images and self.limit is None

    def score(self, metric: str = "delta1") -> float:
        """The metric in the aggregation that the protocol names ("images" or "pixels")."""
        return self.metrics[self.protocol["aggregation"]][metric]

    def save(self, path: str | Path) -> None:
        """Write the summary as JSON, whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """
        The summary of a file.

        Raises:
            ValueError: it is no such summary, or one of another format.
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
    """Which field is missing, unknown or of another type than in a dataclass; "" if none is."""
    hints = get_type_hints(kind)
    required = {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    unknown = sorted(set(values).difference(hints))
    wrong = [name for name, value in values.items() if name in hints and not _fits(value, hints[name])]
    for words, names in (
        ("lacks", sorted(required.difference(values))),
        ("has unknown fields:", unknown),
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
    """Whether a value of JSON is of the type of a field."""
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def write_whole(path: str | Path, text: str) -> None:
    """Text under its final name only when all of it is on the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_lines(path: str | Path) -> Iterator[ImageResult]:
    """The images of a file. A last line that was cut off by a kill is passed over: its image is scored again."""
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


def lines_path(summary: str | Path) -> Path:
    """The file of one line per image beside a summary: `x.json` and `x.images.jsonl`."""
    return Path(summary).with_suffix(".images.jsonl")
