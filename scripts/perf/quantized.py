"""
What weights in 8 and 4 bits cost and save beside bfloat16: ratios measured in one run, at full width, random weights.

    python scripts/perf/quantized.py --layers 8 --threads 1
    python scripts/perf/quantized.py --layers 36 --device cuda
    python scripts/perf/quantized.py --layers 0 --threads 1  # one layer alone, at several numbers of tokens

Every round runs all three models in turn, so that a ratio compares neighbours in time: the prefill of `predict_depth`,
and one new token after it, where reading the weights decides. `--outliers` makes so many channels of every norm 20
times as large: LLM.int8() multiplies inputs of magnitude 6 or more in bfloat16, and random weights have none.
"""

import logging
import statistics
import tempfile
import time
from typing import Annotated, Any

import bitsandbytes
import torch
import typer
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration
from forward import SHAPES, PeakMemory, build_inputs, build_model, console
from rich.table import Table

from depthvlm.quantization import SCHEMES, quantization_keywords, settle


def load_all(shape: str, layers: int, outliers: int, device: str) -> dict[str, DepthVLMForConditionalGeneration]:
    """Return the same random model in bfloat16, 8 and 4 bits; the latter two as `depthvlm.load` loads a checkpoint."""
    model = build_model(shape, layers, device, torch.bfloat16)
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight") and "depth_head" not in name:
            weight.data.fill_(1.0)
            weight.data[:outliers] = 20.0
    models = {"bfloat16": model}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for scheme in SCHEMES:
            keywords = quantization_keywords(scheme, model.config.to_dict(), folder, {}, {}) | {
                "device_map": {"": device}
            }
            models[scheme] = model.from_pretrained(folder, dtype=torch.bfloat16, **keywords).eval()
            settle(models[scheme], torch.bfloat16)
    return models


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all weights with the scales of the quantised ones; tied weights count once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    states = [getattr(weight, "quant_state", None) for weight in tensors.values()]
    scales = [state.absmax for state in states if state is not None]
    scales += [layer.state.SCB for layer in model.modules() if hasattr(layer, "state")]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors.values(), *scales))


@torch.inference_mode()
def one_round(model: Any, inputs: dict[str, Any], device: str) -> tuple[float, float, float]:
    """Return the seconds of a prefill with depth and of one more token, and the peak of both above the weights, MiB."""

    def clock() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    with PeakMemory(device) as peak:
        started = clock()
        model.predict_depth(**inputs)
        prefilled = clock()
    cache = model.model(**inputs, use_cache=True).past_key_values
    token = inputs["input_ids"][:, -1:]
    begun = clock()
    state = model.model(input_ids=token, past_key_values=cache).last_hidden_state
    model.lm_head(state)
    return prefilled - started, clock() - begun, peak.mib


def compare_layer(shape: str, rounds: int, device: str) -> None:
    """Print the ratios of one feed-forward layer of the LLM: copies in turn, so that no cache holds the weights."""
    inputs, outputs = (SHAPES[shape]["text"][name] for name in ("hidden_size", "intermediate_size"))
    plain = [torch.nn.Linear(inputs, outputs, False, device, torch.bfloat16) for _ in range(4)]
    layers: dict[str, list[Any]] = {"bfloat16": plain, "int8": [], "int4": []}
    for layer in plain:
        eight = bitsandbytes.nn.Linear8bitLt(inputs, outputs, False, has_fp16_weights=False, threshold=6.0)
        four = bitsandbytes.nn.Linear4bit(inputs, outputs, False, torch.bfloat16, quant_type="nf4")
        for name, quantised in (("int8", eight), ("int4", four)):
            quantised.load_state_dict(layer.state_dict())
            layers[name].append(quantised.to(device).eval())
    table = Table("tokens", "outlier channels", *layers, title="median ratio to bfloat16 (least)")
    for tokens, outliers in ((1, 0), (1, 8), (16, 0), (16, 8), (110, 0), (110, 8)):
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16).clamp(-5, 5)
        x[:, :outliers] *= 20
        times: dict[str, list[float]] = {name: [] for name in layers}
        for _ in range(rounds + 1):
            for name, copies in layers.items():
                started = time.perf_counter()
                with torch.inference_mode():
                    for layer in copies:
                        layer(x)
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - started)
        cells = []
        for values in times.values():
            ratios = [one / base for one, base in zip(values[1:], times["bfloat16"][1:], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f})")
        table.add_row(str(tokens), str(outliers), *cells)
    console.print(table)


def main(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the model's input, multiples of 32.")] = "192x256",
    shape: Annotated[str, typer.Option(help="4b or 8b.")] = "4b",
    layers: Annotated[int, typer.Option(help="LLM layers, of 36; 0: one feed-forward layer alone.")] = 8,
    rounds: Annotated[int, typer.Option(help="Counted rounds, after one that is not.")] = 7,
    outliers: Annotated[int, typer.Option(help="Channels of every norm that are 20 times as large.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
) -> None:
    """Print the table."""
    if threads:
        torch.set_num_threads(threads)
    if not layers:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        compare_layer(shape, rounds, device)
        return
    models = load_all(shape, layers, outliers, device)
    height, width = map(int, size.split("x"))
    inputs = build_inputs(models["bfloat16"], (height, width))
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            result = one_round(model, inputs, device)
            if turn:
                measured[name].append(result)
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        *("weights", "GB", "peak MiB", "prefill s", "ratio", "least", "token s", "ratio", "least"),
        title=f"{where}; torch {torch.__version__}; {shape}, {layers} LLM layers; {size}, "
        f"{inputs['input_ids'].shape[1]} tokens; {outliers} outliers; {rounds} rounds",
        title_justify="left",
    )
    for name, rows in measured.items():
        cells = [name, f"{weight_bytes(models[name]) / 1e9:.2f}", f"{max(row[2] for row in rows):.0f}"]
        for part in (0, 1):
            ratios = [row[part] / base[part] for row, base in zip(rows, measured["bfloat16"], strict=True)]
            cells += [f"{statistics.median(row[part] for row in rows):.3f}", f"{statistics.median(ratios):.2f}"]
            cells.append(f"{min(ratios):.2f}")
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
