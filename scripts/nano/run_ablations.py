"""
Train and score every row of the paper's tables 4 to 7 at nano's scale, from one start.

    make ablations                                                  # makes the start too
    python scripts/nano/run_ablations.py outputs/ablations --start outputs/nano/stage0

Each row is stage 1 and stage 2 by `depthvlm sft`, with the recipes beside this file and what
`training/recipes/ablations` changes. What is finished is not made again, and an interrupted stage goes on from its last
checkpoint: run the same command once more. Writes `results/`, a file for each row and seed, and the report with its
figure, anew after each row.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from ablation_report import write_report
from ablation_rows import (
    HERE,
    ROWS,
    Settings,
    full_settings,
    recipe,
    result_file,
    scored_folder,
    stage_folder,
    stages,
    training_options,
)
from filelock import FileLock, Timeout
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save

from depthvlm.files import atomic_write, file_hash, read_json, write_json

Job = tuple[str, int]  # a row's name and its seed

FULL = full_settings()
DONE = "trained.json"  # in a stage's folder, written when it has ended
STEP = re.compile(rb"(\d+)/\d+ \[")  # in the trainer's progress bar
# Seconds of one core, for the time that is left: about what the trainings of docs/benchmarks/ablations.md took.
SECONDS_A_STEP = {1: 0.5, 2: 1.0}
SECONDS_TO_START, SECONDS_A_SCENE, SECONDS_A_QUESTION = 20.0, 0.06, 0.06


class Stopped(Exception):
    """The run was asked to end."""


class Runner:
    """The trainings and scorings of all rows, each in a process of its own.

    Args:
        out: Folder of everything that is made.
        settings: Sizes that all rows share.
        page: File of the report.
        progress: Bars that show what runs.
    """

    def __init__(self, out: Path, settings: Settings, page: Path, progress: Progress) -> None:
        self.out, self.settings, self.page, self.progress = out, settings, page, progress
        self.running: list[subprocess.Popen[bytes]] = []
        self.stopped, self.lock = False, threading.Lock()
        self.whole = progress.add_task("all rows", total=0.0)

    def run(self, wanted: Sequence[Job], jobs: int) -> list[str]:
        """Make everything that the wanted rows lack, `jobs` at a time; return what failed."""
        firsts = list(dict.fromkeys((ROWS[name].shares or name, seed) for name, seed in wanted))
        firsts = [job for job in firsts if 1 in stages(job[0])]
        left = sum(self.training_seconds(*job, 1) for job in firsts)
        left += sum(self.training_seconds(*job, 2) + self.scoring_seconds(*job) for job in wanted)
        self.progress.update(self.whole, total=left)
        self.progress.print(f"{len(wanted)} rows and seeds; about {left / 3600:.1f} hours of one core are left.")
        failed: list[str] = []
        with ThreadPoolExecutor(jobs) as pool:
            for work, todo in ((self.first_stage, firsts), (self.rest, wanted)):
                futures = [pool.submit(work, *job) for job in todo]
                try:
                    for future in as_completed(futures):
                        if isinstance(error := future.exception(), RuntimeError):
                            failed.append(str(error))
                            self.progress.print(str(error), markup=False)
                        elif error is not None:
                            raise error
                except BaseException:
                    self.stop()
                    pool.shutdown(cancel_futures=True)
                    raise
        return failed

    def first_stage(self, name: str, seed: int) -> None:
        """Train stage 1 of a row."""
        self.train(name, seed, 1)

    def rest(self, name: str, seed: int) -> None:
        """Train stage 2 of a row if it has one, score the row, and write the report anew."""
        if 2 in stages(name):
            self.train(name, seed, 2)
        self.score(name, seed)

    def training_seconds(self, name: str, seed: int, stage: int) -> float:
        """Return about how long a training will take, 0 if it is finished or the row has no such stage."""
        if stage not in stages(name) or (stage_folder(self.out, name, seed, stage) / DONE).is_file():
            return 0.0
        steps = self.settings.stage1_steps if stage == 1 else self.settings.stage2_steps
        return SECONDS_TO_START + steps * SECONDS_A_STEP[stage]

    def scoring_seconds(self, name: str, seed: int) -> float:
        """Return about how long scoring will take, 0 if it is done."""
        if result_file(self.out, name, seed).is_file():
            return 0.0
        asked = self.settings.questions * ROWS[name].words
        return SECONDS_TO_START + 2 * self.settings.held_out * SECONDS_A_SCENE + asked * SECONDS_A_QUESTION

    def train(self, name: str, seed: int, stage: int) -> None:
        """Train a stage of a row unless it is finished, then drop its checkpoints."""
        seconds = self.training_seconds(name, seed, stage)
        if not seconds:
            return
        folder = stage_folder(self.out, name, seed, stage)
        if (
            stage == 2
            and ROWS[name].stage1 is not None
            and not (stage_folder(self.out, name, seed, 1) / DONE).is_file()
        ):
            raise RuntimeError(f"{name}, seed {seed}: its stage 1 is not finished, so that stage 2 was left out.")
        options = training_options(self.out, name, seed, stage, self.settings)
        title = f"{name}, seed {seed}, stage {stage}"
        took = self.execute(
            [sys.executable, "-m", "depthvlm", "sft", *options], title, folder.with_suffix(".log"), seconds
        )
        write_json(folder / DONE, {"options": list(options), "wall_seconds": took})
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def score(self, name: str, seed: int) -> None:
        """Score a row unless it is done, and write the report anew."""
        seconds = self.scoring_seconds(name, seed)
        if not seconds:
            return
        checkpoint, file, row = scored_folder(self.out, name, seed), result_file(self.out, name, seed), ROWS[name]
        if not (checkpoint / DONE).is_file():
            raise RuntimeError(f"{name}, seed {seed}: {checkpoint} is not finished, so that it was not scored.")
        scores = self.out / "runs" / f"{name}_{seed}" / "scores.json"
        options = ["--held-out", str(self.settings.held_out), "--questions", str(self.settings.questions)]
        options += ["--raw"] * row.raw + ["--words"] * row.words
        command = [sys.executable, str(HERE / "ablation_score.py"), str(checkpoint), str(scores), *options]
        self.execute(command, f"{name}, seed {seed}, scores", scores.with_suffix(".log"), seconds)
        write_json(file, {"row": name, "seed": seed, **read_json(scores)})
        with self.lock:
            write_report(self.out, self.page)

    def execute(self, command: list[str], title: str, log: Path, expected: float) -> float:
        """Run a command with its output in a file, and return how many seconds it took.

        Raises:
            Stopped: The run was asked to end.
            RuntimeError: The command failed; the message has its last words.
        """
        begin = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            size = stream.tell()
            with self.lock:
                if self.stopped:
                    raise Stopped
                # Ctrl-C reaches this program alone, which then asks the others to end.
                process = subprocess.Popen(
                    command, stdout=stream, stderr=subprocess.STDOUT, env=one_thread(), start_new_session=True
                )
                self.running.append(process)
        bar = self.progress.add_task(title, total=expected)
        while process.poll() is None:
            time.sleep(0.5)
            steps = STEP.findall(tail(log, size))
            self.progress.update(bar, description=f"{title}{f', step {int(steps[-1])}' if steps else ''}")
        self.progress.remove_task(bar)
        if self.stopped:
            raise Stopped
        if process.returncode:
            said = tail(log, size).decode(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{title} failed (exit {process.returncode}, {log}): {' / '.join(said)}")
        took = time.monotonic() - begin
        self.progress.advance(self.whole, expected)
        share = self.progress.tasks[0].percentage
        self.progress.print(f"{time.strftime('%H:%M')} {title}: {took:.0f} s; {share:.0f} % of the work is done")
        return took

    def stop(self) -> None:
        """Start nothing more and ask what runs to end; `depthvlm sft` ends its own processes then."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                if process.poll() is None:
                    process.terminate()


def one_thread() -> dict[str, str]:
    """Return the environment of a process that uses one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def tail(log: Path, start: int) -> bytes:
    """Return the last 2,000 bytes of a file, none of them from before `start`."""
    with open(log, "rb") as stream:
        stream.seek(max(start, log.stat().st_size - 2000))
        return stream.read()


def make_start(source: Path, folder: Path) -> None:
    """Write a checkpoint as a plain Qwen3-VL without its head, so that every row begins with a new one by its seed.

    The widths of nano's heads and its canonical focal length stay in the configuration, for these new heads.
    """
    if folder.is_dir():
        return
    if not (source / "model.safetensors").is_file():
        raise typer.BadParameter(f"There is no checkpoint in {source}: `make ablations` makes nano's stage 0 first.")
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja"):
            shutil.copy(file, partial)
    config = read_json(source / "config.json")
    config.pop("auto_map", None)
    config |= {"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}
    write_json(partial / "config.json", config)
    weights = load_file(source / "model.safetensors")
    with atomic_write(partial / "model.safetensors") as stream:
        stream.write(save({k: v for k, v in weights.items() if not k.startswith("depth_head.")}, {"format": "pt"}))
    partial.rename(folder)


def keep_settings(out: Path, settings: Settings) -> None:
    """Write down what all rows share, or compare it with what an earlier call wrote.

    Raises:
        typer.BadParameter: The folder holds rows that were made with other settings.
    """
    shared: dict[str, Any] = asdict(settings) | {"start": file_hash(out / "start" / "model.safetensors")}
    shared |= {f"recipe of stage {stage}": recipe(stage) for stage in (1, 2)}
    file = out / "settings.json"
    if not file.is_file():
        write_json(file, shared)
    before = read_json(file)
    differing = [name for name, value in shared.items() if before.get(name) != value]
    if differing:
        raise typer.BadParameter(
            f"{out} holds rows made with another {', '.join(differing)} ({file}), and rows are only compared where all "
            "of that is equal. Give the same options, or another folder."
        )


def interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(
    out: Annotated[Path, typer.Argument(help="Folder of all that is made.")],
    start: Annotated[Path, typer.Option(help="Checkpoint that all rows start from.")] = Path("outputs/nano/stage0"),
    page: Annotated[Path | None, typer.Option(help="File of the report; by default ablations.md in OUT.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time, each with one thread.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, max=2, help="1: no row has a second seed.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help=f"Rows: {', '.join(ROWS)}. All by default.")] = None,
    steps_scale: Annotated[float, typer.Option(help="Factor on the steps of both stages, for a trial.")] = 1.0,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out rooms, and as many streets.")] = FULL.held_out,
    questions: Annotated[int, typer.Option(min=1, help="Held-out scenes with questions.")] = FULL.questions,
) -> None:
    """Train and score what is missing, then write the report."""
    most = max(1, (os.cpu_count() or 1) // 2)
    if not 1 <= jobs <= most:
        raise typer.BadParameter(f"--jobs is {jobs}, expected 1 to {most}: at most half of this machine's cores.")
    unknown = [name for name in only or () if name not in ROWS]
    if unknown:
        raise typer.BadParameter(f"There is no row {', '.join(unknown)}: choose from {', '.join(ROWS)}.")
    steps = (max(1, round(full * steps_scale)) for full in (FULL.stage1_steps, FULL.stage2_steps))
    settings = Settings(*steps, held_out, questions)
    for number in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, number) and signal.getsignal(getattr(signal, number)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, number), interrupt)
    out.mkdir(parents=True, exist_ok=True)
    page = page or out / "ablations.md"
    wanted = [
        (n, seed) for seed in range(seeds) for n, row in ROWS.items() if seed < row.seeds and (not only or n in only)
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with FileLock(out / ".lock", timeout=0), Progress(*columns, refresh_per_second=2) as progress:
            make_start(start, out / "start")
            keep_settings(out, settings)
            failed = Runner(out, settings, page, progress).run(wanted, jobs)
            write_report(out, page)
    except Timeout:
        raise typer.BadParameter(f"Another process works in {out}: wait for it, or give another folder.") from None
    except (KeyboardInterrupt, Stopped):
        print("Stopped. What is finished is kept: the same command goes on from the last checkpoints.", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"The report is in {page}.")
    if failed:
        print(f"{len(failed)} failed; the same command tries them again:", *failed, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
