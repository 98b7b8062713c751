"""`depthvlm predict` for images: plan the work, check for conflicts, and do it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import file_hash, read_json, write_json
from ..lens import Lens
from ..prediction import SUFFIXES, Prediction, output_paths
from ..result_records import ResultRecord, check_names, fingerprint, own_names
from .known_points import KnownPoints

_MOST_NAMED = 10  # number of names in a message
# Images kept in memory until their files are written; an image has two files that take long to compress.
_WRITTEN_AT_ONCE = max(4, (os.cpu_count() or 1) // 2)
_CAMERA_OPTIONS = ("focal_length", "fov", "intrinsics")


@dataclass
class Job:
    """An image, its result files, and which of them are missing.

    Attributes:
        image: A path, or the text of a URL.
        stem: Start of the results' names.
        files: Path of each format asked for.
        record: The record of earlier results.
        origin: Inputs and settings that determine the results.
        depth_due: True if there are files to write.
        prompts_due: The prompts without a reply.
        known: Known distances in the image.
    """

    image: Path | str
    stem: str
    files: dict[str, Path]
    record: ResultRecord
    origin: dict[str, Any]
    depth_due: bool = True
    prompts_due: list[str] = field(default_factory=list)
    known: KnownPoints | None = None

    @property
    def source(self) -> str:
        """Name of the image in the record."""
        return str(self.image.resolve()) if isinstance(self.image, Path) else self.image

    @property
    def fingerprint(self) -> str:
        """Hash of `origin`."""
        return fingerprint(self.origin)

    @property
    def is_due(self) -> bool:
        """True if there is anything to do."""
        return self.depth_due or bool(self.prompts_due)

    def due_files(self) -> dict[str, Path]:
        """Return the files to write: all of a result, or only the JSON for another reply."""
        if not self.depth_due:
            return {name: path for name, path in self.files.items() if name == "json"}
        earlier = {name: self.record.folder / f"{self.stem}{suffix}" for name, suffix in SUFFIXES.items()}
        kept = {name: path for name, path in earlier.items() if self.record.is_complete(path, self.fingerprint)}
        return self.files | kept

    def differences(self) -> list[str]:
        """Return the fields in which the earlier results' origin differs; empty without earlier results."""
        before = self.record.origin
        return [name for name, value in self.origin.items() if before and before.get(name) != value]

    def is_of_another_image(self) -> bool:
        """Return whether the earlier results belong to another image, by path and content."""
        return self.record.source not in (None, self.source) and "input" in self.differences()


@dataclass(frozen=True)
class Settings:
    """Settings of a run, for all its images.

    Attributes:
        model: Name of the model.
        weights: Identity of the model's weights.
        dtype: The requested dtype, and the bits of quantised weights.
        cameras: `focal_length`, `fov` and `intrinsics` of each image, None if not given; and `camera`, the fields of
            its lens or its name, where it is no pinhole.
        prompts: Questions about each image.
        max_new_tokens: Greatest length of a reply.
        max_image_pixels: A larger image is an error.
        formats: Files to write.
        overwrite: Replace existing files.
        known: Known distances in each image, or None.
    """

    model: str
    weights: str
    dtype: str
    cameras: Sequence[dict[str, Any]]
    prompts: Sequence[str]
    max_new_tokens: int
    max_image_pixels: int
    formats: Sequence[str]
    overwrite: bool
    known: Sequence[KnownPoints | None]
    refine: int = 1


def without_own_results(images: Iterable[Path | str], out: Path) -> list[Path | str]:
    """Leave out pictures written by an earlier run, if results lie among the images."""
    own = {(out / name).resolve() for name in own_names(out)}
    return [image for image in images if not isinstance(image, Path) or image.resolve() not in own]


def plan(images: Sequence[Path | str], stems: Sequence[str], out: Path, settings: Settings) -> list[Job]:
    """Compare the request with the records of earlier runs.

    Args:
        images: Paths, or the texts of URLs.
        stems: Name of the results of each image.
        out: Folder for the results.
        settings: Settings of the run.

    Raises:
        FileExistsError: An existing file blocks a result; the message names it.
        ValueError: A name is too long.
    """
    jobs = []
    for image, stem, camera, known in zip(images, stems, settings.cameras, settings.known, strict=True):
        origin = {
            "input": file_hash(image) if isinstance(image, Path) else fingerprint({"url": image}),
            "model": settings.model,
            "weights": settings.weights,
            "dtype": settings.dtype,
            **camera,
            **({} if known is None else {"calibration": known.origin}),
            **({} if settings.refine == 1 else {"refine": settings.refine}),
        }
        files = output_paths(out, stem, settings.formats)
        check_names(files.values())
        job = Job(image, stem, files, ResultRecord(out, stem), origin, prompts_due=list(settings.prompts), known=known)
        if settings.overwrite:
            job.record.forget_replies()
        else:
            complete = (job.record.is_complete(path, job.fingerprint) for path in files.values())
            there = {(reply["prompt"], reply["max_new_tokens"]) for reply in job.record.replies(job.fingerprint)}
            job.depth_due = not all(complete)
            job.prompts_due = [prompt for prompt in settings.prompts if (prompt, settings.max_new_tokens) not in there]
        jobs.append(job)
    _require_a_free_way(jobs, settings.overwrite)
    return jobs


def _require_a_free_way(jobs: Sequence[Job], overwrite: bool) -> None:
    inputs = {job.image.resolve() for job in jobs if isinstance(job.image, Path)}
    problems = []
    for job in (job for job in jobs if job.is_due):
        paths = list(job.due_files().values())
        problems += [f"{path} is one of the images to predict" for path in paths if path.resolve() in inputs]
        problems += [f"{path} is a folder" for path in paths if path.is_dir()]
        if overwrite:
            continue
        if job.is_of_another_image():
            place = job.record.folder / job.stem
            problems.append(f"{place}.* holds the results of {job.record.source}, not of {job.source}")
        else:
            foreign = [
                path for path in job.record.in_the_way(paths) if not path.is_dir() and path.resolve() not in inputs
            ]
            problems += [f"{path} was not written by depthvlm, or was changed since" for path in foreign]
    if problems:
        more = [f"... and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
        raise FileExistsError(
            "These are in the way of the results:\n  "
            + "\n  ".join([*problems[:_MOST_NAMED], *more])
            + "\nChoose another --out or move them away"
            + ("." if overwrite else ", or replace them with --overwrite.")
            + " Nothing was predicted."
        )


def predict_images(
    predictor: Any,
    jobs: Sequence[Job],
    settings: Settings,
    batch_size: int,
    on_done: Callable[[Job, Prediction], None],
    on_error: Callable[[Job, Exception], None],
) -> None:
    """Predict and write all due results, one pass per prompt, writing while the next images are predicted.

    Args:
        predictor: A `DepthPredictor`.
        jobs: Images with their results.
        settings: Settings of the run.
        batch_size: Images in a batch.
        on_done: Called when a job's results of a pass are written.
        on_error: Called with the error of an image or its files; the others continue.
    """
    failed: set[int] = set()
    for position, prompt in enumerate(settings.prompts or [None]):
        due = [
            job
            for job in jobs
            if id(job) not in failed and ((position == 0 and job.depth_due) or prompt in job.prompts_due)
        ]

        def fail(index: int, error: Exception, due: Sequence[Job] = due) -> None:
            failed.add(id(due[index]))
            on_error(due[index], error)

        cameras = {name: [job.origin[name] for job in due] for name in _CAMERA_OPTIONS}
        cameras["camera"] = [_lens(job.origin.get("camera")) for job in due]
        given = {name: values for name, values in cameras.items() if any(value is not None for value in values)}
        found = predictor.predict_iter(
            [job.image for job in due],
            prompt=prompt,
            batch_size=batch_size,
            max_new_tokens=settings.max_new_tokens,
            max_image_pixels=settings.max_image_pixels,
            refine=settings.refine,
            on_error=fail,
            **given,
        )
        waiting: deque[tuple[int, Prediction, Future[None]]] = deque()

        def settle(at_most: int, due: Sequence[Job] = due, waiting: Any = waiting, fail: Any = fail) -> None:
            while waiting and (len(waiting) > at_most or waiting[0][-1].done()):
                index, prediction, written = waiting.popleft()
                try:
                    written.result()
                except (OSError, ValueError) as error:
                    fail(index, error)
                else:
                    on_done(due[index], prediction)

        with ThreadPoolExecutor(thread_name_prefix="depthvlm-write") as writers:
            for index, prediction in found:
                known = due[index].known
                if known is not None:
                    try:
                        prediction = known.calibrated(prediction)
                    except ValueError as error:
                        fail(index, error)
                        continue
                waiting.append((index, prediction, writers.submit(_write, due[index], prediction, settings)))
                settle(_WRITTEN_AT_ONCE)
            settle(0)


def _lens(value: Any) -> Any:
    return Lens(**value) if isinstance(value, dict) else value


def _write(job: Job, prediction: Prediction, settings: Settings) -> None:
    """Write the due files of a job, and note them in its record."""
    files, record = job.due_files(), job.record
    if not settings.overwrite and (there := record.in_the_way(files.values())):
        names = ", ".join(str(path) for path in there)
        raise FileExistsError(f"{names}: appeared while the image was predicted, and is not replaced.")
    record.begin(job.source, list(files.values()))
    if job.depth_due:
        prediction.save(record.folder, job.stem, list(files), overwrite=True)
    reply = None
    if prediction.prompt is not None:
        reply = {"prompt": prediction.prompt, "text": prediction.text, "max_new_tokens": settings.max_new_tokens}
    replies = [one for one in record.replies(job.fingerprint) if one["prompt"] != prediction.prompt]
    replies += [reply] if reply else []
    if replies and "json" in files:
        latest = {name: replies[-1][name] for name in ("prompt", "text")}
        pairs = [{"prompt": one["prompt"], "text": one["text"]} for one in replies]
        write_json(files["json"], read_json(files["json"]) | latest | {"replies": pairs})
    record.finish(list(files.values()), job.origin, reply)
    job.depth_due = False
    job.prompts_due = [prompt for prompt in job.prompts_due if prompt != prediction.prompt]
