"""What a report is made of: results of `depthvlm bench eval` with their lines, and result files of lmms-eval."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
        """
        The set as the reports name it: "nyuv2", or "nyuv2 (train)" where it is not the test split. NYUv2 has one name,
        whichever of its truths was scored; notes say which.
        """
        dataset = SAME_IMAGES.get(self.result.dataset, self.result.dataset)
        return dataset + ("" if self.result.split == "test" else f" ({self.result.split})")

    @property
    def protocol(self) -> tuple[str, str]:
        """Name and hash of the protocol."""
        return str(self.result.protocol["name"]), str(self.result.protocol["hash"])

    @property
    def system(self) -> tuple[str, str]:
        """What tells systems apart: name and key."""
        return self.result.name, self.result.row

    @cached_property
    def images(self) -> list[ImageResult]:
        """
        The lines beside the result, empty where there is no such file.

        Raises:
            ValueError: they are not those of this result.
        """
        path = lines_path(self.path)
        if not path.is_file():
            return []
        images = list(read_lines(path))
        if len({image.id for image in images}) != len(images) or len(images) != self.result.done:
            raise ValueError(
                f"{path} holds {len(images)} images, {self.path.name} speaks of {self.result.done}: they are not of "
                "one run. Run the same `depthvlm bench eval` to its end."
            )
        return images

    def partial(self) -> str:
        """How much of the set was scored, in words; "" where all of it was."""
        result = self.result
        if result.complete:
            return ""
        return f"{result.done} of {result.images} images" + (f" (--limit {result.limit})" if result.limit else "")


@dataclass(frozen=True)
class TaskScore:
    """
    Args:
        value, stderr: of a metric in lmms-eval's own scale.
        effective, original: number of samples scored, and of the task; None where the file does not say.
    """

    value: float
    stderr: float | None
    effective: int | None
    original: int | None

    def partial(self) -> str:
        """How much of the task was scored, in words; "" where all of it was, or nobody knows."""
        if self.effective is None or self.original is None or self.effective >= self.original:
            return ""
        return f"{self.effective} of {self.original} samples"


@dataclass(frozen=True)
class LmmsResult:
    """
    One result file of lmms-eval.

    Args:
        name: of the model, as in the paper's tables where it is one of them.
        model: what was loaded, with its arguments: two files are of one system only if this is the same.
        tasks: task to metric to score; the filter stays in a metric's name unless it is "none".
        parts: tasks that only make up a group.
        version: of lmms-eval as far as the file says, or "".
    """

    name: str
    model: str
    tasks: dict[str, dict[str, TaskScore]]
    parts: frozenset[str]
    version: str = ""


@dataclass(frozen=True)
class Inputs:
    """
    Everything found.

    Args:
        measured, lmms: sorted.
        unfinished: `*.run.json` of evaluations that were begun and have no result yet.
        passed_over: other JSON files in the folders.
    """

    measured: list[Measured]
    lmms: list[LmmsResult]
    unfinished: list[Path]
    passed_over: list[Path]


def read_inputs(paths: Iterable[str | Path]) -> Inputs:
    """
    Results of files, and of folders with all that lie in them, in an order that does not depend on that of `paths`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a file is no result of `depthvlm bench eval` or lmms-eval, or is broken; a folder holds none.
    """
    found: dict[Path, bool] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.json") if not _is_hidden(file.relative_to(path)))
            if not files:
                raise ValueError(f"{path} holds no results: give the --out folder of `depthvlm bench eval`.")
            found |= {file.resolve(): False for file in files if not found.get(file.resolve())}
        elif path.is_file():
            found[path.resolve()] = True
        else:
            raise FileNotFoundError(
                f"There is no {path}: give result files of `depthvlm bench eval`, or their folders."
            )
    measured: list[Measured] = []
    lmms: list[LmmsResult] = []
    others: list[Path] = []
    for path, named in sorted(found.items()):
        item = _read(path, named)
        if isinstance(item, Measured) and item not in measured:
            measured.append(item)
        elif isinstance(item, LmmsResult) and item not in lmms:
            lmms.append(item)
        elif isinstance(item, Path):
            others.append(item)
    runs = [path for path in others if path.name.endswith(RUN_SUFFIX)]
    return Inputs(
        sorted(measured, key=_order),
        sorted(lmms, key=lambda each: (each.name, each.model)),
        [path for path in runs if not path.with_name(path.name.removesuffix(RUN_SUFFIX) + ".json").is_file()],
        [path for path in others if path not in runs],
    )


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path, named: bool) -> Measured | LmmsResult | Path | None:
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
        effective = _total(samples, members, "effective")
        original = _total(samples, members, "original")
        tasks[task] = {}
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = metrics.get(f"{metric}_stderr,{filtered}" if filtered else f"{metric}_stderr")
            name = metric if filtered in ("", "none") else key
            error = float(stderr) if _is_number(stderr) else None
            tasks[task][name] = TaskScore(float(value), error, effective, original)
    return LmmsResult(
        name=Path(given).name if Path(given).is_absolute() else given,
        model=json.dumps([given, config.get("model"), config.get("model_args")], sort_keys=True),
        tasks=tasks,
        parts=frozenset(part for group in groups for part in _members(group, groups) if part != group),
        version=str(values.get("lmms_eval_version") or ""),
    )


def _members(task: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks that a group is made of, through groups of groups; a task itself where it is none."""
    inner = [part for part in groups.get(task, []) if part != task]
    return [member for part in inner for member in _members(part, groups)] if inner else [task]


def _total(samples: dict[str, dict[str, int]], members: list[str], key: str) -> int | None:
    counts = [(samples.get(member) or {}).get(key) for member in members]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _order(item: Measured) -> tuple[str, ...]:
    result = item.result
    return (same_name(result.name), *item.system, *item.protocol, item.set_name, result.data_hash, str(item.path))
