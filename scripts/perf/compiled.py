"""Depth with and without compiled layers, beside what the device's own rates allow: `forward.py --compile`."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from depthvlm.compiling import compile_depth


class Work(TorchDispatchMode):
    """FLOPs of the products, convolutions and attentions that run in it, and the bytes of their operands and results.

    What stands between them can be fused with them, and is not counted. Causal attention is counted whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if "scaled_dot_product" in str(packet):  # several kernels, and keys may have fewer heads than queries
            (*outer, queries, width), keys = args[0].shape, args[1].shape[-2]
            flops = 4 * math.prod(outer) * queries * keys * width
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
        else:
            return result
        self.flops += flops
        tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def seconds(run: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def device_rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """The best of 20 large products in FLOP/s, and of 20 large copies in bytes read and written a second."""
    side, count = (8192, 2**32) if device.startswith("cuda") else (2048, 2**26)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = min(seconds(lambda: one @ other, device) for _ in range(20))
    source = torch.zeros(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(20))
    return 2 * side**3 / product, 2 * count / copy


def benchmark_compiled(
    model: Any, calls: dict[str, dict[str, torch.Tensor]], rounds: int, device: str, console: Console
) -> None:
    """A table per call of `predict_depth`: both ways in turn, and the two bounds."""
    flop_rate, byte_rate = device_rates(device, model.dtype)
    console.print(f"measured: {flop_rate / 1e12:.3g} TFLOP/s of products, {byte_rate / 1e9:.0f} GB/s of copies")
    eager = model.run_backbone
    ways = {"eager": eager, "compiled": compile_depth(model)}

    def run(way: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        model.run_backbone = ways[way]
        return model.predict_depth(**inputs)

    for title, inputs in calls.items():
        with Work() as work:
            expected = run("eager", inputs)
        found = run("compiled", inputs)  # compiles, and says how long
        difference = torch.cat([(a / b - 1).abs().flatten() for a, b in zip(found, expected, strict=True)])
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way in ways:
                elapsed = seconds(partial(run, way, inputs), device)
                if turn:
                    times[way].append(elapsed)
        table = Table("", "median ms", "min ms", "of the products' rate", title=title, title_justify="left")
        for way, values in times.items():
            median = statistics.median(values)
            row = f"{median * 1e3:.2f}", f"{min(values) * 1e3:.2f}", f"{work.flops / flop_rate / median:.2f}"
            table.add_row(way, *row)
        table.add_row(f"bound: {work.flops / 1e12:.3f} TFLOP", f"{work.flops / flop_rate * 1e3:.2f}", "", "1.00")
        table.add_row(f"bound: {work.bytes / 1e9:.2f} GB", f"{work.bytes / byte_rate * 1e3:.2f}", "", "")
        console.print(table)
        console.print(f"relative difference of the depth: median {difference.median():.1e}, max {difference.max():.1e}")
