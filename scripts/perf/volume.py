"""Images a second of `depthvlm predict --engine ray`, and what a number of images takes at that rate.

    python scripts/perf/volume.py --images 96 --width 640 --workers 1       # the bundled model, measured
    python scripts/perf/volume.py --rate 18.9 --bytes 250000 --workers 8    # computed from a rate measured elsewhere

The rate is that of the whole run, with the start of Ray and of the workers: take images for some minutes at least.
"""

import argparse
import time
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from depthvlm.volume.run import Request, Run


def measure(images: int, width: int, workers: int, model: str, shard_rows: int) -> tuple[float, float, float]:
    """Return images a second, bytes a map, and the seconds before the first shard was finished."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        photograph = Image.open(resources.files("depthvlm").joinpath("assets/room.jpg")).convert("RGB")  # type: ignore[arg-type]
        photograph = photograph.resize((width, width * 3 // 4))
        for number in range(images):
            photograph.save(folder / f"{number:06d}.jpg", quality=92)
        camera = {"focal_length": None, "fov": 60.0, "intrinsics": None}
        options = {"workers": workers, "batch_size": 1, "shard_rows": shard_rows}
        run = Run(Request([str(folder)], f"{name}/out", model, camera, **options))  # type: ignore[arg-type]
        times, started = list[float](), time.perf_counter()
        run.predict(lambda record: times.append(time.perf_counter()), lambda *_: None)
        rate = run.done.rows / (times[-1] - started)
        return rate, sum(record["bytes"] for record in run.done.records.values()) / run.done.rows, times[0] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depthvlm-nano")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--width", type=int, default=640, help="of the pictures, 4:3, in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--rate", type=float, help="images a second of one worker, in place of measuring")
    parser.add_argument("--bytes", type=float, default=0, help="of a map, with --rate")
    parser.add_argument("--total", type=int, default=10_000_000, help="images to compute for")
    parser.add_argument("--price", type=float, help="of a worker for an hour")
    arguments = parser.parse_args()
    workers, rate, size = arguments.workers, arguments.rate, arguments.bytes
    if rate is None:
        options = (arguments.images, arguments.width, workers, arguments.model, arguments.shard_rows)
        together, size, begin = measure(*options)
        rate = together / workers
        size_of = f"{arguments.width}x{arguments.width * 3 // 4}"
        print(f"measured: {arguments.images} pictures of {size_of}, {workers} worker(s)")
        print(f"  {together:.2f} images a second, {rate:.2f} a worker; {size / 1e3:.0f} kB a map")
        print(f"  {begin:.0f} s from the start to the first shard of {arguments.shard_rows}")
    hours = arguments.total / (rate * workers) / 3600
    print(f"computed: {arguments.total:,} images with {workers} worker(s) of {rate:.2f} images a second each")
    print(f"  {hours:,.1f} hours, {hours * workers:,.0f} worker-hours, {arguments.total * size / 1e12:.2f} TB")
    if arguments.price is not None:
        print(f"  {hours * workers * arguments.price:,.0f} at {arguments.price:g} an hour")


if __name__ == "__main__":
    main()
