"""
What an evaluation costs besides the model: reading, decoding, batching, scoring, writing.

    python scripts/perf/eval.py --layers 36 --images 8

Scores a DepthVLM of 4B width with random weights on rendered scenes of 640x480 pixels, and compares the time of the
whole evaluation with the time inside the model, in one run. Fewer layers or a shorter canonical focal length suit a
smaller machine: what comes besides the model depends on neither, and is printed in milliseconds an image.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import typer
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.scoring.eval_sets import EvalSet
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate
from depthvlm.benchmark.scoring.tasks import make_example
from depthvlm.benchmark.sources.frames import Source
from depthvlm.benchmark.sources.synthetic import Synthetic
from depthvlm.benchmark.systems.ours import DepthVLMSystem
from forward import build_model, take_tokens
from rich.console import Console
from rich.table import Table

TARGET = 1.05  # of the model's own time, at most
console = Console(width=120)


class LargerScenes(Synthetic):
    """The same scenes with 640x480 pixels."""

    image_size: ClassVar[tuple[int, int]] = (640, 480)


def open_scenes(name: str, root: str | Path) -> Source:
    """The opener that the builder's workers call."""
    return LargerScenes(root)


def main(
    layers: Annotated[int, typer.Option(help="LLM layers, of 36.")] = 36,
    images: Annotated[int, typer.Option(help="Images to score.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 2,
    focal_length: Annotated[float, typer.Option(help="Canonical focal length in pixels.")] = 1000,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print time in the model, time of the whole evaluation, and their ratio, for points and for dense maps."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    predictor = DepthVLMSystem(device=device)
    network = build_model("4b", layers, device, dtype)
    take_tokens(network.config, predictor.model.config)
    predictor.model = network
    predictor.processor.image_processor.canonical_focal_length = focal_length
    predictor.processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 2048 * 2048}
    table = Table("protocol", "images", "in the model", "whole evaluation", "ratio", "target", "besides, an image")
    with tempfile.TemporaryDirectory() as folder:
        run_build(plan_build(LargerScenes(), "test", images + batch_size), open_scenes, ".", f"{folder}/build")
        scenes = EvalSet(f"{folder}/build", "synthetic")
        warm_up = [make_example(scenes.read(i), scenes, get_protocol("dense")) for i in range(batch_size)]
        predictor.predict(warm_up)
        for name in ("depthvlm", "dense"):
            started = time.perf_counter()
            system = LoadedSystem("4b", "4b", predictor, {})
            result = evaluate(system, scenes, get_protocol(name), f"{folder}/results", batch_size)
            seconds = time.perf_counter() - started
            assert result is not None
            inside = result.speed["seconds"]
            table.add_row(
                name,
                str(result.done),
                f"{inside:.2f} s",
                f"{seconds:.2f} s",
                f"{seconds / inside:.3f}",
                f"{TARGET}",
                f"{1000 * (seconds - inside) / result.done:.1f} ms",
            )
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.print(
        f"{where}; torch {torch.__version__}; 4B width, {layers} LLM layers, {str(dtype)[6:]}; 640x480", table
    )


if __name__ == "__main__":
    typer.run(main)
