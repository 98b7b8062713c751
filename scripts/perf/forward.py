"""
What metres cost beside words: ratios measured in one run, at full width with random weights.

    python scripts/perf/forward.py --layers 36 --size 192x256 --size 480x640
    python scripts/perf/forward.py --device cuda --size 992x1344
    python scripts/perf/forward.py --device cuda --compile --size 192x256 --size 480x640 --size 992x1344

1 is a plain Qwen3-VL prefill with the last token's logits, or plain `generate` of one token. Every round runs all
candidates in turn; the table shows medians of their times and of their ratios, and the peak memory above the weights.
With `--compile` the tables are those of `compiled.py`: depth alone, eager, compiled, and what the device's rates allow.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from compiled import benchmark_compiled
from depthvlm.modeling_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import (
    DPTDepthHead,
    FeatureFusionBlock,
    ResidualConvUnit,
    build_depth_head,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.initialization import no_init_weights

SHAPES: dict[str, dict[str, Any]] = {
    "4b": {
        "text": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "8b": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
        "vision": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
}
PROMPT_TOKENS = 31  # after the image, as in the method's prompt
console = Console(width=120)


def build_model(shape: str, layers: int, device: str, dtype: torch.dtype) -> DepthVLMForConditionalGeneration:
    """A model of full width with random weights."""
    sizes = SHAPES[shape]
    text = sizes["text"] | {"num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    config = DepthVLMConfig(
        text_config=text | {"head_dim": 128, "vocab_size": 151936, "rope_parameters": rope},
        vision_config=sizes["vision"] | {"num_heads": 16, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=shape == "4b",
    )
    with torch.device(device), no_init_weights():
        model = DepthVLMForConditionalGeneration._from_config(config, dtype=dtype)
    model.tie_weights()  # what `no_init_weights` leaves out
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03, generator=generator)
    return model.eval()


def take_tokens(config: DepthVLMConfig, small: DepthVLMConfig) -> None:
    """Let a model of full width be asked through the tokenizer of the small one."""
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, getattr(small, name))


def build_inputs(model: DepthVLMForConditionalGeneration, size: tuple[int, int], batch: int = 1) -> dict[str, Tensor]:
    """Images of `size` (height, width), each in the method's prompt."""
    config, device = model.config, model.device
    height, width = size[0] // 32, size[1] // 32
    prompt = [config.image_token_id] * (height * width) + [config.vision_end_token_id] + list(range(PROMPT_TOKENS))
    input_ids = torch.tensor([[*config.depth_prompt_ids, *prompt]] * batch, device=device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == config.image_token_id).int(),
        "pixel_values": torch.randn(batch * 4 * height * width, 1536, device=device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width]] * batch, device=device),
    }


class PeakMemory:
    """Peak of memory, in MiB, that a block takes above what was in use when it began."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, so that a peak shows (Linux)
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # resets VmHWM
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else _status("VmHWM")
        self.mib = max(0.0, peak - self.before)


def _status(key: str) -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def compare(
    title: str,
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    device: str,
    pairs: dict[str, str],
    grad: bool = False,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """
    Run all candidates in turn, `rounds` times after a warm-up, and print medians; `pairs` says which is whose 1, and
    `before` runs unmeasured before each.

    Returns the times in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    memory: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            before()
            with PeakMemory(device) as peak, torch.set_grad_enabled(grad):
                started = time.perf_counter()
                run()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                elapsed = time.perf_counter() - started
            if turn:
                times[name].append(elapsed)
                memory[name] = max(memory.get(name, 0.0), peak.mib)
    table = Table("", "median s", "ratio", "min ratio", "peak MiB", title=title, title_justify="left")
    for name, values in times.items():
        base = times[pairs.get(name, name)]
        ratios = [one / other for one, other in zip(values, base, strict=True)]
        row = (statistics.median(values), statistics.median(ratios), min(ratios), memory[name])
        table.add_row(name, f"{row[0]:.4f}", f"{row[1]:.3f}", f"{row[2]:.3f}", f"{row[3]:.0f}")
    console.print(table)
    return times


def benchmark_model(
    model: DepthVLMForConditionalGeneration, title: str, inputs: dict[str, Tensor], rounds: int, device: str
) -> None:
    """Depth, and depth with the first word, against the plain prefill and plain `generate`."""
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}

    def depth_then_words() -> None:
        model.predict_depth(**inputs)
        model.generate(**inputs, **options, output_depth=False)

    compare(
        title,
        {
            "plain prefill": lambda: Qwen3VLForConditionalGeneration.forward(
                model, **inputs, logits_to_keep=1, use_cache=True
            ),
            "predict_depth": lambda: model.predict_depth(**inputs),
            "plain generate, 1 token": lambda: model.generate(**inputs, **options, output_depth=False),
            "generate with depth, 1 token": lambda: model.generate(**inputs, **options),
            "depth, then words (2 prefills)": depth_then_words,
        },
        rounds,
        device,
        {
            "predict_depth": "plain prefill",
            "generate with depth, 1 token": "plain generate, 1 token",
            "depth, then words (2 prefills)": "plain generate, 1 token",
        },
    )


def benchmark_head(hidden_size: int, grid: tuple[int, int], dtype: torch.dtype, rounds: int, device: str) -> None:
    """The head alone against the direct order of operations."""
    torch.manual_seed(0)
    head = build_depth_head(DepthHeadConfig(), hidden_size, 32).to(device, dtype).eval()
    features = [torch.randn(1, grid[0] * grid[1], hidden_size, device=device, dtype=dtype) for _ in range(4)]
    compare(
        f"head alone, {grid[0]}x{grid[1]} tokens, {str(dtype).removeprefix('torch.')} (ratio below 1 is faster)",
        {"direct order": lambda: plain_dpt(head, features, grid), "ours": lambda: head(features, grid)},
        rounds,
        device,
        {"ours": "direct order"},
    )
    if dtype == torch.float32:
        with torch.no_grad():
            difference = (plain_dpt(head, features, grid) - head(features, grid)).abs().max().item()
        console.print(f"largest difference in float32: {difference:.1e} m")


def plain_dpt(head: DPTDepthHead, features: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """The paper's head in the usual order of DPT code, with the same weights: ours is measured against it."""
    height, width = grid
    levels = []
    for x, project, resize in zip(features, head.projects, head.resize_layers, strict=True):
        x = head.norm(x).permute(0, 2, 1).reshape(x.shape[0], -1, height, width)
        levels.append(resize(F.conv2d(x, project.weight, project.bias)))
    s = head.scratch
    layers = (s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn)
    levels = [layer(x) for layer, x in zip(layers, levels, strict=True)]
    x = _fuse(s.refinenet4, levels[3], None, levels[2].shape[2:])
    x = _fuse(s.refinenet3, x, levels[2], levels[1].shape[2:])
    x = _fuse(s.refinenet2, x, levels[1], levels[0].shape[2:])
    x = _fuse(s.refinenet1, x, levels[0], [2 * side for side in levels[0].shape[2:]])
    size = (height * head.stride, width * head.stride)
    convolution, relu, last = s.output_conv2
    x = F.conv2d(x, s.output_conv1.weight, s.output_conv1.bias, padding=1)
    x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    x = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
    return F.softplus(last(relu(x)))[:, 0]


def _unit(unit: ResidualConvUnit, x: Tensor) -> Tensor:
    x = F.relu(x)
    return unit.conv2(F.relu(unit.conv1(x))) + x


def _fuse(block: FeatureFusionBlock, x: Tensor, skip: Tensor | None, size: list[int]) -> Tensor:
    if skip is not None:
        x = x + _unit(block.resConfUnit1, skip)
    x = F.interpolate(_unit(block.resConfUnit2, x), size=size, mode="bilinear", align_corners=True)
    return block.out_conv(x)


def main(
    size: Annotated[list[str], typer.Option(help="HEIGHTxWIDTH of the model's input, multiples of 32.")] = ["192x256"],  # noqa: B006
    shape: Annotated[str, typer.Option(help="4b or 8b.")] = "4b",
    layers: Annotated[int, typer.Option(help="LLM layers, of 36.")] = 36,
    rounds: Annotated[int, typer.Option(help="Counted rounds, after one that is not.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
    only: Annotated[str, typer.Option(help="all, model or head.")] = "all",
    batch: Annotated[int, typer.Option(help="Images in a call.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="Depth alone: eager, compiled and the bounds.")] = False,
) -> None:
    """Print the tables."""
    if threads:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}; torch {torch.__version__}; {shape}, {layers} LLM layers; bfloat16; {rounds} rounds")
    hidden_size = SHAPES[shape]["text"]["hidden_size"]
    if only in ("all", "head") and not compile:
        benchmark_head(hidden_size, (15, 20), torch.float32, rounds, device)
        benchmark_head(hidden_size, (31, 42), torch.bfloat16, rounds, device)
    if only in ("all", "model"):
        model = build_model(shape, layers, device, torch.bfloat16)
        calls = {}
        for text in size:
            height, width = map(int, text.split("x"))
            inputs = build_inputs(model, (height, width), batch)
            calls[f"{batch} of {text}, {inputs['input_ids'].shape[1]} tokens each"] = inputs
        if compile:
            benchmark_compiled(model, calls, rounds, device, console)
        for title, inputs in calls.items() if not compile else ():
            benchmark_model(model, title, inputs, rounds, device)


if __name__ == "__main__":
    typer.run(main)
