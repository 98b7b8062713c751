"""
A recipe's real memory and speed on one GPU, beside what `depthvlm sft --dry-run` estimates.

    python scripts/perf/train_recipe.py stage1 --batch-size 16
    python scripts/perf/train_recipe.py lora_1gpu --shape 8b --batch-size 4

The recipe's own YAML, its trainer, optimiser, loader and batch, at full width with random weights: rows of one random
picture, depth, and the method's prompt and reply. Nothing is saved.
"""

import io
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import Dataset, Image, List
from depthvlm.modeling_depthvlm import DepthVLMConfig
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY, DepthVLMProcessor
from depthvlm.training.dry_run import estimate_settings
from depthvlm.training.memory import estimate_memory
from depthvlm.training.sft import make_parser
from depthvlm.training.trainer import DepthSFTTrainer
from forward import build_model, console, take_tokens
from PIL import Image as Pictures
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl import get_peft_config

from depthvlm.checkpoint import bundled_model_path

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
WARM_UP = 2
GIB = 2**30


def encoded(array: np.ndarray, kind: str, size: tuple[int, int]) -> dict[str, Any]:
    """An image of `size` (width, height), as the bytes of a file."""
    stream = io.BytesIO()
    Pictures.fromarray(array).resize(size, Pictures.Resampling.BILINEAR).save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def make_rows(count: int, size: tuple[int, int]) -> Dataset:
    """Rows of coarse random pictures of `size`, and depth from 1 to 9 m that is as random."""
    rng = np.random.default_rng(0)
    plane = np.linspace(1000, 9000, 12 * 16).reshape(12, 16)
    turns = [{"role": "user", "content": DEPTH_PROMPT}, {"role": "assistant", "content": DEPTH_REPLY}]
    rows = [
        {
            "messages": turns,
            "images": [encoded(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), "JPEG", size)],
            "depth": [encoded(rng.permutation(plane).astype(np.uint16), "PNG", size)],
            "depth_scale": 1000.0,
            "focal_length": 1000.0,
        }
        for _ in range(min(count, 64))
    ]
    data = Dataset.from_list([rows[index % len(rows)] for index in range(count)])
    return data.cast_column("images", List(Image())).cast_column("depth", List(Image()))


class StepClock(TrainerCallback):
    """When steps end, and the operations of the first of them."""

    def __init__(self, cuda: bool):
        self.cuda, self.ends = cuda, list[float]()
        self.counter = FlopCounterMode(display=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.ends:
            self.counter.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        if not self.ends:
            self.counter.__exit__(None, None, None)
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """A step's, mean over those after the warm-up."""
        return (self.ends[-1] - self.ends[WARM_UP - 1]) / (len(self.ends) - WARM_UP)


def main(
    recipe: Annotated[str, typer.Argument(help="stage1, stage2 or lora_1gpu.")],
    shape: Annotated[str, typer.Option(help="4b or 8b.")] = "4b",
    layers: Annotated[int, typer.Option(help="LLM layers, of 36.")] = 36,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the images, multiples of 32.")] = "1024x768",
    batch_size: Annotated[int, typer.Option(help="0 takes the recipe's.")] = 0,
    steps: Annotated[int, typer.Option(help="Measured steps, after two that are not.")] = 4,
    workers: Annotated[int, typer.Option(help="Workers of the loader.")] = 8,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    peak: Annotated[float, typer.Option(help="The GPU's dense bfloat16 peak in TFLOP/s; 989 for H100 and H200.")] = 989,
    options: Annotated[str, typer.Option(help="More options of `depthvlm sft`, separated by blanks.")] = "",
) -> None:
    """Print one line: estimate, measurement, and the share of the peak."""
    cuda = device == "cuda"
    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        given = ["--config", str(RECIPES / f"{recipe}.yaml"), "--dataset_name", "rows", "--output_dir", folder]
        given += f"--save_strategy no --report_to none --logging_steps 1 --max_steps {steps + WARM_UP}".split()
        given += f"--dataloader_num_workers {workers} --gradient_accumulation_steps 1".split()
        given += [f"--per_device_train_batch_size={batch_size}"] if batch_size else []
        given += [] if cuda else ["--use_cpu", "true"]
        given += options.split()
        parsed: Any = make_parser().parse_args_and_config(given, fail_with_unknown_args=False)
        _, args, model_args, _ = parsed
        model = build_model(shape, layers, device, getattr(torch, model_args.dtype))
        small = bundled_model_path()
        processor, small_config = DepthVLMProcessor.from_pretrained(small), DepthVLMConfig.from_pretrained(small)
        take_tokens(model.config, small_config)
        model.config.canonical_focal_length = 1000.0
        processor.image_processor.canonical_focal_length = 1000.0
        processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 2048 * 2048}
        clock = StepClock(cuda)
        trainer = DepthSFTTrainer(
            model,
            args,
            train_dataset=make_rows(args.per_device_train_batch_size * (steps + WARM_UP), (width, height)),
            processing_class=processor,
            peft_config=get_peft_config(model_args),
            callbacks=[clock],
        )
        batch = next(iter(trainer.get_train_dataloader()))
        estimate = estimate_memory(model.config, **estimate_settings(trainer, batch))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    rows, seconds = args.per_device_train_batch_size, clock.seconds
    flops = clock.counter.get_total_flops() / 1e12
    table = Table("", "rows", "tokens", "estimated", "allocated", "reserved", "s a step", "images/s", "TFLOP", "share")
    allocated = torch.cuda.max_memory_allocated() / GIB if cuda else float("nan")
    reserved = torch.cuda.max_memory_reserved() / GIB if cuda else float("nan")
    table.add_row(
        f"{shape} {recipe}",
        str(rows),
        str(batch["input_ids"].shape[1]),
        f"{estimate['total'] / GIB:.1f} GiB",
        f"{allocated:.1f} GiB",
        f"{reserved:.1f} GiB",
        f"{seconds:.3f}",
        f"{rows / seconds:.1f}",
        f"{flops:.1f}",
        f"{flops / seconds / peak:.2f}",
    )
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}; torch {torch.__version__}; {layers} LLM layers; {size}; {steps} steps {options}", table)


if __name__ == "__main__":
    typer.run(main)
