"""Inputs of a report: results of `depthvlm bench eval` with their lines, and result files of lmms-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..build.sampling import SAME_IMAGES
from ..scoring.results import ImageResult, Result, lines_path, read_lines
from .published import same_name

REPORT_KIND = "depthvlm-bench-report"
RUN_SUFFIX = ".run.json"  # settings of an evaluation under way, beside its result


@dataclass(frozen=True)
class Measured:
    """A result and the file that it came from."""

    result: Result
    path: Path = field(compare=False)

    @property
    def set_name(self) -> str:
        """Name of the set in reports: "nyuv2", or "nyuv2 (train)" for another split than test.

        NYUv2 has one name for all its truths; notes say which was scored.
        """
        dataset = SAME_IMAGES.get(self.result.dataset, self.result.dataset)
        return dataset + ("" if self.result.split == "test" else f" ({self.result.split})")

    @property
    def protocol(self) -> tuple[str, str]:
        """Name and hash of the protocol."""
        return str(self.result.protocol["name"]), str(self.result.protocol["hash"])

    @property
    def system(self) -> tuple[str, str]:
        """Name and key, which together tell systems apart."""
        return self.result.name, self.result.row

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics in the aggregation of the protocol, without those that are undefined."""
        metrics = self.result.metrics.get(self.result.protocol["aggregation"], {})
        return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}

    @property
    def seconds_per_image(self) -> float | None:
        """Time in the predictor for one image, the median image where it is known; None where none was taken."""
        rate, seconds = self.result.speed.get("images_per_second"), self.result.speed.get("seconds")
        if rate:
            return 1 / rate
        return seconds / self.result.done if seconds and self.result.done else None

    @property
    def partial(self) -> str:
        """Scored part of the set in words, "" for all of it."""
        result = self.result
        if result.complete:
            return ""
        return f"{result.done} of {result.images} images" + (f" (--limit {result.limit})" if result.limit else "")

    @cached_property
    def images(self) -> list[ImageResult]:
        """Lines beside the result, empty where there is no such file.

        Raises:
            ValueError: The lines do not belong to this result.
        """
        path = lines_path(self.path)
        if not path.is_file():
            return []
        images = list(read_lines(path))
        if len({image.id for image in images}) != len(images) or len(images) != self.result.done:
            raise ValueError(
                f"{path} holds {len(images)} images, {self.path.name} counts {self.result.done}: they come from "
                "different runs. Run the same `depthvlm bench eval` to its end."
            )
        return images


@dataclass(frozen=True)
class SameImages:
    """Results that may be compared: one set of one build under one protocol, by the label of the system."""

    set_name: str
    protocol: str
    data_hash: str
    systems: dict[str, Measured]

    @property
    def title(self) -> str:
        """Set, protocol and data in words."""
        return f"{self.set_name}, {self.protocol}, data {self.data_hash[:12]}"

    def lines(self, notes: list[str]) -> dict[str, list[ImageResult]]:
        """Return the images of the systems whose lines are there, and add a note for each of the others."""
        found = {}
        for label, item in self.systems.items():
            try:
                images = item.images
            except ValueError as error:
                notes.append(f"{label} on {self.title}: {error}")
                continue
            if images:
                found[label] = images
            else:
                notes.append(f"{label} on {self.title}: no lines of single images beside {item.path.name}.")
        return found


@dataclass(frozen=True)
class TaskScore:
    """Score of a task of lmms-eval."""

    value: float  # in lmms-eval's own scale
    stderr: float | None
    effective: int | None  # number of samples scored; None where the file does not say, as the next
    original: int | None  # number of samples of the task

    @property
    def partial(self) -> str:
        """Scored part of the task in words, "" for all of it or where the file does not say."""
        if self.effective is None or self.original is None or self.effective >= self.original:
            return ""
        return f"{self.effective} of {self.original} samples"


@dataclass(frozen=True)
class LmmsResult:
    """One result file of lmms-eval."""

    name: str  # the model's name
    model: str  # with its arguments: files belong to one system only if this is the same
    tasks: dict[str, dict[str, TaskScore]]  # by task and metric, which keeps its filter unless that is "none"
    parts: frozenset[str]  # tasks that only make up a group
    version: str = ""  # version of lmms-eval, or ""


@dataclass(frozen=True)
class Inputs:
    """Everything found, sorted."""

    measured: list[Measured]
    lmms: list[LmmsResult]
    unfinished: list[Path]  # `*.run.json` of evaluations that were begun and have no result yet
    passed_over: list[Path]  # other JSON files in the folders


def read_inputs(paths: Iterable[str | Path]) -> Inputs:
    """Read result files, and folders with all results in them, in an order that does not depend on that of `paths`.

    Raises:
        FileNotFoundError: A file or folder does not exist.
        ValueError: A file is no result of `depthvlm bench eval` or lmms-eval, or is broken; or a folder holds none.
    """
    found: dict[Path, bool] = {}
    for path in map(Path, paths):
        if path.is_dir():
            places = {file: file.relative_to(path).parts for file in sorted(path.rglob("*.json"))}
            files = [file for file, parts in places.items() if not any(part.startswith(".") for part in parts)]
            if not files:
                raise ValueError(f"{path} holds no results: give the --out folder of `depthvlm bench eval`.")
            found |= {file.resolve(): False for file in files if not found.get(file.resolve())}
        elif path.is_file():
            found[path.resolve()] = True
        else:
            raise FileNotFoundError(
                f"There is no {path}: give result files of `depthvlm bench eval`, or their folders."
            )
    items: list[Any] = []
    for path, named in sorted(found.items()):
        if (item := _read(path, named)) not in items:  # a copy of a result counts once
            items.append(item)
    others = [item for item in items if isinstance(item, Path)]
    runs = [path for path in others if path.name.endswith(RUN_SUFFIX)]
    return Inputs(
        sorted((item for item in items if isinstance(item, Measured)), key=_order),
        sorted((item for item in items if isinstance(item, LmmsResult)), key=lambda each: (each.name, each.model)),
        [path for path in runs if not path.with_name(path.name.removesuffix(RUN_SUFFIX) + ".json").is_file()],
        [path for path in others if path not in runs],
    )


def same_images(measured: Sequence[Measured]) -> list[SameImages]:
    """Group results by what may be compared, sorted."""
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for item in measured:
        groups.setdefault((item.set_name, " ".join(item.protocol), item.result.data_hash), []).append(item)
    return [SameImages(*key, systems=_labelled(items)) for key, items in sorted(groups.items())]


def unique_names(measured: Iterable[Measured]) -> dict[tuple[str, str], str]:
    """Return each system's name, with its key where two systems share the name."""
    systems = {item.system for item in measured}
    names = [name for name, _ in systems]
    return {(name, key): f"{name} [{key}]" if names.count(name) > 1 else name for name, key in systems}


def _labelled(items: Sequence[Measured]) -> dict[str, Measured]:
    """Return the results by label: the system's name, then with its key, then with a number."""
    names = [item.result.name for item in items]
    labels: dict[str, Measured] = {}
    for item in items:
        name = item.result.name
        wanted = name if names.count(name) == 1 else f"{name} [{item.result.row}]"
        label, number = wanted, 2
        while label in labels:
            label, number = f"{wanted} ({number})", number + 1
        labels[label] = item
    return labels


def _read(path: Path, named: bool) -> Measured | LmmsResult | Path | None:
    """Return the result of a file; None for a report, and the path of a file that is neither and was not named."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}).") from None
    kind = values if isinstance(values, dict) else {}
    if kind.get("kind") == REPORT_KIND and not named:
        return None
    if isinstance(kind.get("results"), dict) and "protocol" not in kind:
        try:
            return _lmms_result(path, kind)
        except (AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no result file of lmms-eval: a field is of another kind ({error}).") from None
    if {"row", "dataset", "protocol", "metrics"} <= set(kind):
        return Measured(Result.load(path), path)
    if named:
        raise ValueError(f"{path} is no result of `depthvlm bench eval`, nor a *_results.json of lmms-eval.")
    return path


def _lmms_result(path: Path, values: dict[str, Any]) -> LmmsResult:
    config = values.get("config") or {}
    given = str(values.get("model_name") or config.get("model") or "")
    if not given:
        raise ValueError(f"{path} does not say which model lmms-eval scored (`model_name`).")
    samples = values.get("n-samples") or {}
    groups = values.get("group_subtasks") or {}
    tasks: dict[str, dict[str, TaskScore]] = {}
    for task, metrics in values["results"].items():
        members = _members(task, groups)
        counts = _total(samples, members, "effective"), _total(samples, members, "original")
        tasks[task] = {}
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr")
            error = float(stderr) if _is_number(stderr) else None
            name = metric if filtered in ("", "none") else key
            tasks[task][name] = TaskScore(float(value), error, *counts)
    return LmmsResult(
        name=Path(given).name if Path(given).is_absolute() else given,
        model=json.dumps([given, config.get("model"), config.get("model_args")], sort_keys=True),
        tasks=tasks,
        parts=frozenset(part for group in groups for part in _members(group, groups) if part != group),
        version=str(values.get("lmms_eval_version") or ""),
    )


def _members(task: str, groups: dict[str, list[str]]) -> list[str]:
    """Return the tasks that make up a group, through groups of groups; a task itself where it is none."""
    inner = [part for part in groups.get(task, []) if part != task]
    return [member for part in inner for member in _members(part, groups)] if inner else [task]


def _total(samples: dict[str, dict[str, int]], members: list[str], key: str) -> int | None:
    counts = [(samples.get(member) or {}).get(key) for member in members]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _order(item: Measured) -> tuple[str, ...]:
    result = item.result
    return (same_name(result.name), *item.system, *item.protocol, item.set_name, result.data_hash, str(item.path))
