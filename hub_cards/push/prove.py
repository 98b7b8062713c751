"""The proof that what is about to be pushed works on a machine that has not this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from . import prove_worker
from .files import PushError

_LINES_OF_ERROR = 12


def prove_model(files: Mapping[str, Path | bytes]) -> str:
    """
    Load a checkpoint twice, in fresh processes without network: with its own code and this package hidden, and with
    this package. Both must give the same depth of a synthetic image, bit for bit.

    It takes the memory of the weights once at a time, on the CPU.

    Args:
        files: path on the Hub, and the file or the bytes that would lie there. Nothing else is seen by the processes.

    Returns:
        What was found, in a line.

    Raises:
        PushError: it does not load, its weights are not those of its configuration, or the depths differ.
    """
    with _staged(files) as (folder, scratch):
        _run("without the package", ["model", folder, scratch / "alone.npz"], scratch)
        _run("with the package", ["model", folder, scratch / "package.npz", "--with-package"], scratch)
        alone, package = (np.load(scratch / f"{name}.npz")["depth"] for name in ("alone", "package"))
    if alone.shape != package.shape or alone.tobytes() != package.tobytes():
        difference = float(np.abs(alone - package).max()) if alone.shape == package.shape else float("nan")
        raise PushError(
            "With the checkpoint's own code and with this package's the depth of one image differs "
            f"(by {difference:.3g} m at most): something random is in the model, or the code is not the same."
        )
    return (
        f"loads without the package, and gives the same depth bit for bit ({alone.shape[1]}x{alone.shape[0]} pixels, "
        f"{alone.min():.2f} to {alone.max():.2f} m)"
    )


def prove_dataset(files: Mapping[str, Path | bytes]) -> str:
    """
    Read the first row of every configuration and split with `datasets.load_dataset`, in a fresh process without
    network where this package is hidden.

    Args:
        files: as in [`prove_model`].

    Returns:
        What was found, in a line.

    Raises:
        PushError: it does not load, or without the columns of a build.
    """
    with _staged(files) as (folder, scratch):
        _run("without the package", ["dataset", folder, scratch / "rows.json"], scratch)
        rows: dict[str, list[str]] = json.loads((scratch / "rows.json").read_text(encoding="utf-8"))
    for name, columns in rows.items():
        missing = {"image", "depth", "depth_scale", "points"} - set(columns)
        if missing:
            raise PushError(f"{name} loads without the columns {', '.join(sorted(missing))}.")
    return f"loads without the package: {', '.join(rows)}"


def prove_metric(files: Mapping[str, Path | bytes], module: str) -> str:
    """
    Load the metric with `evaluate.load` in a fresh process without network, and score two points at 1 m and 4 m that
    are said to be at 1 m and 2 m: delta1 is 0.5, and abs_rel 0.25. The module computes with this package, as it will
    in the Space.

    Args:
        files: as in [`prove_model`].
        module: which of them is the metric.

    Returns:
        What was found, in a line.

    Raises:
        PushError: it does not load, or the numbers are others.
    """
    with _staged(files) as (folder, scratch):
        _run("with the package", ["metric", folder / module, scratch / "scores.json", "--with-package"], scratch)
        scores = json.loads((scratch / "scores.json").read_text(encoding="utf-8"))
    if scores != {"delta1": 0.5, "abs_rel": 0.25}:
        raise PushError(f"The metric loads, and says {scores} where delta1 is 0.5 and abs_rel 0.25 by hand.")
    return "loads with evaluate, and scores two points as they are scored by hand"


@contextmanager
def _staged(files: Mapping[str, Path | bytes]) -> Iterator[tuple[Path, Path]]:
    """A folder that holds exactly these files, and one for results. Files are linked, where that is possible."""
    with TemporaryDirectory(prefix="depthvlm-push-", ignore_cleanup_errors=True) as temporary:
        folder, scratch = Path(temporary) / "checkpoint", Path(temporary) / "scratch"
        scratch.mkdir()
        for name, source in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
                continue
            try:
                target.symlink_to(source.resolve())
            except OSError:  # Windows, without the right to make links
                os.link(source.resolve(), target)
        yield folder, scratch


def _run(how: str, arguments: list[str | Path], scratch: Path) -> None:
    environment = os.environ | {
        "HF_HOME": str(scratch / "hf"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    # -P: the folder of the script, which is this package's, is not searched for modules.
    command = [sys.executable, "-P", str(prove_worker.__file__), *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        told = "\n".join(line for line in run.stderr.strip().splitlines()[-_LINES_OF_ERROR:])
        ended = f"killed by signal {-run.returncode} (out of memory?)" if run.returncode < 0 else "failed"
        raise PushError(f"The proof in a fresh process {how} {ended}:\n{told}")
