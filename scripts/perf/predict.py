"""Predicting a folder of photographs against the model alone: decoding, resizing and writing overlap with the model.

    python scripts/perf/predict.py --images 40                             # the bundled model
    python scripts/perf/predict.py --shape 4b --layers 8 --images 200      # at the width of 4B, with random weights
    python scripts/perf/predict.py --model DIR --images 200 --formats npy

Prints, for the same pictures in one run, the seconds of: the model on prepared inputs (half of the pictures before the
folder is predicted, half after it); preparing them (decode, resize, patches); writing the files; one after the other;
and `depthvlm predict` as it runs. The last over the first is the ratio that overlapping is for; where the model is
small, preparing and writing are the longer part and bound it.
"""

import argparse
import os
import tempfile
import time
from importlib import resources
from pathlib import Path

import torch
from forward import build_model, take_tokens
from PIL import Image

import depthvlm
from depthvlm.batches import BatchRun, batches_by_size
from depthvlm.cli.predict_images import Settings, plan, predict_images
from depthvlm.inference import DepthPredictor
from depthvlm.prediction import DEFAULT_FORMATS

FOV = 60.0  # of all photographs, so that no camera is assumed


def build_predictor(shape: str, layers: int, device: str) -> DepthPredictor:
    """Return a model of full width with random weights in bfloat16, asked through nano's processor."""
    small = depthvlm.load(device="cpu")
    model = build_model(shape, layers, device, torch.bfloat16)
    take_tokens(model.config, small.model.config)
    return DepthPredictor(model, small.processor, f"{shape}, {layers} layers, random weights")


def write_photographs(folder: Path, count: int, width: int) -> list[Path | str]:
    """Write the bundled room as JPEGs of this width, 4:3."""
    photograph = Image.open(resources.files("depthvlm").joinpath("assets/room.jpg"))  # type: ignore[arg-type]
    photograph = photograph.convert("RGB").resize((width, width * 3 // 4))
    paths: list[Path | str] = [folder / f"{number:04d}.jpg" for number in range(count)]
    for path in paths:
        photograph.save(path, quality=92)
    return paths


def measure_parts(
    predictor: DepthPredictor, paths: list[Path | str], batch_size: int, formats: list[str], out: Path
) -> dict[str, float]:
    """Return the seconds of preparing, the model, and writing, one after the other."""
    unknown = {key: [None] * len(paths) for key in ("intrinsics", "focal_length")} | {"fov": [FOV] * len(paths)}
    run = BatchRun(predictor.model, predictor.processor, predictor.name, unknown, None, {}, 10**9, None)
    seconds = dict.fromkeys(("prepare", "model", "write"), 0.0)
    for batch in batches_by_size(paths, batch_size):
        started = time.perf_counter()
        prepared = run.prepare(batch)
        ready = time.perf_counter()
        predictions = run.predict(batch, prepared)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        done = time.perf_counter()
        for prediction in predictions:
            prediction.save(out, formats=formats, overwrite=True)
        for key, took in zip(seconds, (ready - started, done - ready, time.perf_counter() - done), strict=True):
            seconds[key] += took
    return seconds


def measure_command(
    predictor: DepthPredictor, paths: list[Path | str], batch_size: int, formats: list[str], out: Path
) -> float:
    """Return the seconds of `depthvlm predict` on a loaded model, the hashes of the input files included."""
    camera = {"focal_length": None, "fov": FOV, "intrinsics": None}
    settings = Settings(
        model=predictor.name,
        weights="",
        dtype="auto",
        cameras=[camera] * len(paths),
        known=[None] * len(paths),
        prompts=(),
        max_new_tokens=1,
        max_image_pixels=10**9,
        formats=formats,
        overwrite=True,
    )
    failed: list[str] = []
    started = time.perf_counter()
    jobs = plan(paths, [Path(path).stem for path in paths], out, settings)
    predict_images(
        predictor, jobs, settings, batch_size, lambda *_: None, lambda job, error: failed.append(f"{job.stem}: {error}")
    )
    took = time.perf_counter() - started
    if failed:
        raise RuntimeError("\n".join(failed))
    return took


def main() -> None:
    """Print the seconds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depthvlm-nano")
    parser.add_argument("--shape", choices=("4b", "8b"), help="a model of this width instead, with random weights")
    parser.add_argument("--layers", type=int, default=36, help="LLM layers of --shape, of 36")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--width", type=int, default=1600, help="of the photographs, 4:3, in pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--formats", nargs="+", default=DEFAULT_FORMATS.split(","))
    arguments = parser.parse_args()
    if arguments.shape:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
        predictor = build_predictor(arguments.shape, arguments.layers, device)
    else:
        predictor = depthvlm.load(arguments.model, device=arguments.device)
    half = arguments.images // 2 // arguments.batch_size * arguments.batch_size
    with tempfile.TemporaryDirectory() as name:
        paths = write_photographs(Path(name), arguments.images, arguments.width)
        how = arguments.batch_size, arguments.formats, Path(name, "out")
        measure_parts(predictor, paths[: arguments.batch_size], *how)  # warm
        before = measure_parts(predictor, paths[:half], *how)
        overlapped = measure_command(predictor, paths, *how)
        after = measure_parts(predictor, paths[half:], *how)
    seconds = {part: before[part] + after[part] for part in before}
    device = torch.cuda.get_device_name() if predictor.model.device.type == "cuda" else "CPU"
    threads = f"{torch.get_num_threads()} torch thread(s), {len(os.sched_getaffinity(0))} cores"
    print(f"{predictor.name}; {device}, {threads}; torch {torch.__version__}; batches of {arguments.batch_size}")
    print(f"{len(paths)} JPEGs of {arguments.width}x{arguments.width * 3 // 4}, {', '.join(arguments.formats)}:")
    for key, took in (*seconds.items(), ("one after the other", sum(seconds.values())), ("overlapped", overlapped)):
        print(f"  {key:20} {took:7.2f} s  {took / seconds['model']:6.2f} x the model alone")


if __name__ == "__main__":
    main()
