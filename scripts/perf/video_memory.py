"""Peak memory of `depthvlm predict` on clips of different lengths: it must not grow with the length.

    python scripts/perf/video_memory.py --frames 50 500

Every clip is predicted by nano in a process of its own, on synthetic scenes; printed is the peak resident set of that
process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
from depthvlm.benchmark.synthetic import render_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 500], help="lengths of the clips")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("W", "H"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)  # the part of this script that is measured
    arguments = parser.parse_args()
    if arguments.clip is not None:
        _measure(arguments.clip, arguments.batch_size)
        return
    print(f"{'frames':>7}  {'peak resident':>13}  {'frames/s, all passes':>20}")
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            clip = Path(folder) / "clip.mp4"
            _write_clip(clip, frames, tuple(arguments.size))
            command = [sys.executable, __file__, "--clip", str(clip), "--batch-size", str(arguments.batch_size)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            peak, seconds = (float(number) for number in result.stdout.split())
            print(f"{frames:>7}  {peak:>10.0f} MB  {frames / seconds:>20.1f}", flush=True)


def _measure(clip: Path, batch_size: int) -> None:
    import depthvlm

    model = depthvlm.load(device="cpu")
    started = time.perf_counter()
    depthvlm.predict_video(clip, clip.parent / "out", model, fov=60, batch_size=batch_size)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((peak / 1e6 if sys.platform == "darwin" else peak / 1e3), seconds)  # macOS counts bytes, Linux kilobytes


def _write_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    pictures = [render_scene(seed, width=size[0], height=size[1], fov=60).image for seed in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(pictures[index // 5 % 8], "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
