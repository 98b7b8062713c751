"""
What a depth prediction costs with `dpt_sharp`, beside one with `dpt_light`: operations, seconds, parameters.

    python scripts/perf/heads.py --layers 4 --size 480x640

One backbone of full width with random weights, whose head is exchanged. Operations are those of PyTorch's counter
(matrix products and convolutions, two for a multiplication and an addition), with the LLM's layers that are left out
added; seconds are CPU or GPU time of what was run, backbone and head, so that their ratio is above that of all layers.
"""

from typing import Annotated, Any

import torch
import typer
from depthvlm.modeling_depthvlm import DepthHeadConfig
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import build_depth_head
from forward import SHAPES, build_inputs, build_model, compare, console
from torch.utils.flop_counter import FlopCounterMode

HEADS = ("dpt_light", "dpt_sharp")


class Heads:
    """A model that predicts with each of the heads.

    Args:
        model: Its backbone.
    """

    def __init__(self, model: Any):
        self.model = model
        self.configs = {name: DepthHeadConfig(head_type=name) for name in HEADS}
        self.heads = {}
        for name, config in self.configs.items():
            torch.manual_seed(0)
            head = build_depth_head(
                config, model.config.text.hidden_size, model.config.input_stride, model.config.vision
            )
            self.heads[name] = head.to(model.device, model.dtype).eval()

    def predict(self, name: str, inputs: dict[str, Any]) -> None:
        """Predict depth with a head."""
        self.model.config.depth_config, self.model.depth_head = self.configs[name], self.heads[name]
        self.model.predict_depth(**inputs)

    def operations(self, name: str, inputs: dict[str, Any], layers: int) -> tuple[float, float]:
        """Return the operations of the whole prediction with `layers` layers of the LLM, and of the head."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.predict(name, inputs)
        counts = {module: sum(found.values()) for module, found in counter.get_flop_counts().items()}
        [layer] = [count for module, count in counts.items() if module.endswith("language_model.layers.0")]
        [head] = [count for module, count in counts.items() if module.endswith(type(self.heads[name]).__name__)]
        missing = layers - len(self.model.model.language_model.layers)
        return counter.get_total_flops() + missing * layer, head


def main(
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the model's input, multiples of 32.")] = "480x640",
    shape: Annotated[str, typer.Option(help="4b or 8b.")] = "4b",
    layers: Annotated[int, typer.Option(help="LLM layers that are run.")] = 4,
    rounds: Annotated[int, typer.Option(help="Counted rounds, after one that is not.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")] = 0,
) -> None:
    """Print the tables."""
    if threads:
        torch.set_num_threads(threads)
    height, width = map(int, size.split("x"))
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    console.print(f"{name}; torch {torch.__version__}; {shape}, {layers} LLM layers; bfloat16; {rounds} rounds; {size}")
    heads = Heads(build_model(shape, layers, device, torch.bfloat16))
    inputs = build_inputs(heads.model, (height, width))
    whole = SHAPES[shape]["text"]["num_hidden_layers"]
    first = None
    for head in HEADS:
        total, own = heads.operations(head, inputs, whole)
        first = first or total
        parameters = sum(p.numel() for p in heads.heads[head].parameters())
        console.print(
            f"{head}: {parameters / 1e6:.1f} M parameters; {own / 1e9:.0f} GFLOP of {total / 1e9:.0f} with all {whole} "
            f"layers; {total / first:.3f} times"
        )
    compare(
        "a whole prediction",
        {head: lambda head=head: heads.predict(head, inputs) for head in HEADS},
        rounds,
        device,
        dict.fromkeys(HEADS, HEADS[0]),
    )


if __name__ == "__main__":
    typer.run(main)
