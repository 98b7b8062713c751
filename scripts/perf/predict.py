"""Predicting a folder of photographs against the model alone: decoding, resizing and writing overlap with the model.

    python scripts/perf/predict.py --images 40                       # the bundled model
    python scripts/perf/predict.py --model DIR --images 200 --formats npy

Prints, for the same pictures in one run, the seconds of: the model on prepared inputs; preparing them (decode, resize,
patches); writing the files; one after the other; and `depthvlm predict` as it runs. The last over the first is the
ratio that overlapping is for; where the model is small, preparing and writing are the longer part and bound it.
"""

import argparse
import tempfile
import time
from importlib import resources
from pathlib import Path

import torch
from PIL import Image

import depthvlm
from depthvlm.cli.predict_images import Settings, plan, predict_images
from depthvlm.inference import _batches, _Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depthvlm-nano")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--width", type=int, default=1600, help="of the photographs, 4:3, in pixels")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--formats", nargs="+", default=["npy", "png16", "color", "json"])
    arguments = parser.parse_args()
    predictor = depthvlm.load(arguments.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photograph = Image.open(resources.files("depthvlm").joinpath("assets/room.jpg"))  # type: ignore[arg-type]
        photograph = photograph.convert("RGB").resize((arguments.width, arguments.width * 3 // 4))
        paths: list[Path | str] = []
        for number in range(arguments.images):
            paths.append(folder / f"{number:04d}.jpg")
            photograph.save(paths[-1], quality=92)
        predictor.predict(paths[:1], fov=60)  # warm

        unknown = {key: [None] * len(paths) for key in ("intrinsics", "focal_length")} | {"fov": [60.0] * len(paths)}
        run = _Run(predictor, unknown, None, {}, 10**9, None)
        seconds = dict.fromkeys(("prepare", "model", "write"), 0.0)
        for batch in _batches(paths, arguments.batch_size):
            started = time.perf_counter()
            prepared = run.prepare(batch)
            ready = time.perf_counter()
            predictions = run._predict(batch, prepared)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            done = time.perf_counter()
            for prediction in predictions:
                prediction.save(folder / "one", formats=arguments.formats)
            for key, took in zip(seconds, (ready - started, done - ready, time.perf_counter() - done), strict=True):
                seconds[key] += took

        camera = {"focal_length": None, "fov": 60.0, "intrinsics": None}
        settings = Settings(
            arguments.model, "", "auto", [camera] * len(paths), (), 1, 10**9, arguments.formats, overwrite=True
        )
        jobs = plan(paths, [Path(path).stem for path in paths], folder / "out", settings)
        started = time.perf_counter()
        predict_images(
            predictor, jobs, settings, arguments.batch_size, lambda *_: None, lambda job, error: print(job.stem, error)
        )
        overlapped = time.perf_counter() - started
    print(f"{len(paths)} pictures of {photograph.width}x{photograph.height}, {', '.join(arguments.formats)}:")
    for key, took in (*seconds.items(), ("one after the other", sum(seconds.values())), ("overlapped", overlapped)):
        print(f"  {key:20} {took:7.2f} s  {took / seconds['model']:6.2f} x the model alone")


if __name__ == "__main__":
    main()
