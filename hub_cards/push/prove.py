"""The proof that what is about to be pushed works on a machine that does not have this package.

Fresh processes run this file, which then imports nothing of the package unless asked to:

    python -P prove.py model FOLDER RESULT.npz [--with-package]
    python -P prove.py dataset FOLDER RESULT.json
    python -P prove.py metric FILE.py RESULT.json --with-package
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

PACKAGE = "depthvlm"
IMAGE_SIZE = (320, 240)
_LINES_OF_ERROR = 12


class PushError(ValueError):
    """Something that prevents a push; the message says what, and what to do."""


def prove_model(files: Mapping[str, Path | bytes]) -> str:
    """Load a checkpoint in two fresh processes without network, and compare the depth of a synthetic image.

    One process hides this package and uses the checkpoint's own code, the other uses this package; both must give the
    same depth bit for bit. On the CPU; each takes the memory of the weights, one after the other.

    Args:
        files: Path on the Hub, and the file or the bytes that would be there. The processes see nothing else.

    Returns:
        A line that says what was found.

    Raises:
        PushError: The checkpoint does not load, its weights do not fit its configuration, or the depths differ.
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
    """Read the first row of every configuration and split in a fresh process without network and without this package.

    Args, Returns: see [`prove_model`].

    Raises:
        PushError: The data set does not load, or lacks columns of a build.
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
    """Load the metric with `evaluate.load` in a fresh process without network, and score two points.

    They are at 1 m and 4 m and predicted at 1 m and 2 m: delta1 is 0.5, and abs_rel 0.25. The module computes with
    this package, as it will in the Space.

    Returns:
        A line that says what was found.

    Raises:
        PushError: The metric does not load, or gives other numbers.
    """
    with _staged(files) as (folder, scratch):
        _run("with the package", ["metric", folder / module, scratch / "scores.json", "--with-package"], scratch)
        scores = json.loads((scratch / "scores.json").read_text(encoding="utf-8"))
    if scores != {"delta1": 0.5, "abs_rel": 0.25}:
        raise PushError(f"The metric loads, and says {scores} where delta1 is 0.5 and abs_rel 0.25 by hand.")
    return "loads with evaluate, and scores two points as they are scored by hand"


@contextmanager
def _staged(files: Mapping[str, Path | bytes]) -> Iterator[tuple[Path, Path]]:
    """Make a folder that holds exactly these files, linked where that is possible, and one for results."""
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
    # -P: the folder of this file is not searched for modules.
    command = [sys.executable, "-P", __file__, *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if run.returncode:
        told = "\n".join(line for line in run.stderr.strip().splitlines()[-_LINES_OF_ERROR:])
        ended = f"killed by signal {-run.returncode} (out of memory?)" if run.returncode < 0 else "failed"
        raise PushError(f"The proof in a fresh process {how} {ended}:\n{told}")


class _Hidden:
    """An import finder that makes the package look as if it were not installed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.split(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}: it is hidden here.", name=name)


def _predict(folder: str, with_package: bool) -> np.ndarray:
    """Return the depth of one synthetic image, `(240, 320)` in metres, as a user of the checkpoint gets it."""
    from PIL import Image

    if with_package:
        __import__(PACKAGE)
    from transformers import AutoModel, AutoProcessor

    trust = {} if with_package else {"trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(folder, **trust)
    model, info = AutoModel.from_pretrained(folder, dtype="auto", output_loading_info=True, **trust)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(sorted(map(str, info[problem]))[:5])
            raise SystemExit(f"The weights do not fit the configuration: {problem} {names}")
    if type(model).__module__.split(".")[0] != (PACKAGE if with_package else "transformers_modules"):
        raise SystemExit(f"The model's class came from {type(model).__module__}.")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "How far?"}]}]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"focal_length": model.config.canonical_focal_length},
    )
    depth = processor.post_process_depth_estimation(model.eval().predict_depth(**inputs))[0]["predicted_depth"]
    found = depth.float().numpy()
    if found.shape != IMAGE_SIZE[::-1] or not np.isfinite(found).all() or not (found > 0).all():
        raise SystemExit("The depth of a test image is not finite and positive at every pixel: the weights are broken.")
    return found


def _first_rows(folder: str) -> dict[str, list[str]]:
    """Return the columns of the first row of every configuration and split, as `load_dataset` reads them."""
    from datasets import get_dataset_config_names, load_dataset

    found = {}
    for name in get_dataset_config_names(folder):
        for split, rows in load_dataset(folder, name, streaming=True).items():
            found[f"{name}/{split}"] = sorted(next(iter(rows)))
    return found


def _scores(module: str) -> dict[str, float]:
    """Return what the metric says of two points at 1 and 4 metres that are predicted at 1 and 2."""
    import evaluate

    found = evaluate.load(module).compute(predictions=[[1.0, 2.0]], references=[[1.0, 4.0]])
    return {name: found[name] for name in ("delta1", "abs_rel")}


def _main(kind: str, source: str, result: str, *options: str) -> None:
    with_package = "--with-package" in options
    if not with_package:
        sys.meta_path.insert(0, _Hidden)  # type: ignore[arg-type]
    if kind == "model":
        np.savez(result, depth=_predict(source, with_package))
    else:
        found: Any = _scores(source) if kind == "metric" else _first_rows(source)
        Path(result).write_text(json.dumps(found), encoding="utf-8")
    if not with_package and any(name.split(".")[0] == PACKAGE for name in sys.modules):
        raise SystemExit("The package was imported although it is hidden.")


if __name__ == "__main__":
    _main(*sys.argv[1:])
