"""Export of a depth head with the widths of the 4B or 8B model and random weights: size, time, difference from PyTorch.

    python scripts/perf/onnx_head.py --width 2560            # 4B; 4096: 8B
    python scripts/perf/onnx_head.py --head-type mlp --feature-source llm_final

The weights are random, and the last layer is scaled and shifted such that depth varies about one metre; the features
are random too.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import onnxruntime
import torch
from depthvlm.modeling_depthvlm import DepthHeadConfig
from depthvlm.modeling_depthvlm.configuration_depthvlm import FEATURE_SOURCES, HEAD_TYPES
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import ONE_METRE, Float32Conv2d, Float32Linear, build_depth_head

from depthvlm.onnx_export import OPSET, OUTPUT, ExportableHead, input_names, largest_error, to_onnx

GRIDS = ((1, 1, 1), (1, 1, 7), (2, 5, 3), (1, 15, 20), (1, 24, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2560, help="width of the LLM: 2560 (4B) or 4096 (8B)")
    parser.add_argument("--head-type", choices=[one for one in HEAD_TYPES if one != "dpt_sharp"], default="dpt_light")
    parser.add_argument("--feature-source", choices=FEATURE_SOURCES, default="vit+llm")
    parser.add_argument("--runs", type=int, default=5, help="timed runs each, the median is printed")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = DepthHeadConfig(head_type=arguments.head_type, feature_source=arguments.feature_source)
    head = build_depth_head(config, arguments.width, stride=32).eval()
    last = next(layer for layer in head.modules() if isinstance(layer, Float32Conv2d | Float32Linear))
    maps = 1 if config.feature_source == "llm_final" else 4
    outputs: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    with torch.no_grad():
        head([torch.randn(1, 12, arguments.width) for _ in range(maps)], (3, 4))
        scale = 1 / outputs[0].std()
        last.weight *= scale
        last.bias.copy_(ONE_METRE - (outputs[0].mean() - last.bias) * scale)  # depth varies about one metre
    hook.remove()
    exported = ExportableHead(head).eval()
    started = time.perf_counter()
    content = to_onnx(exported, arguments.width, maps, {})
    parameters = sum(weight.numel() for weight in head.parameters())
    print(
        f"{config.head_type}, width {arguments.width}: {parameters / 1e6:.1f} M parameters; opset {OPSET}, "
        f"{len(content) / 1e6:.1f} MB, made in {time.perf_counter() - started:.0f} s"
    )
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{torch.get_num_threads()} thread(s), float32"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    print(
        f"{'images x grid':>14}  {'metres':>17}  {'largest relative difference':>27}  "
        f"{'PyTorch':>9}  {'onnxruntime':>11}"
    )
    for images, height, width in GRIDS:
        features = [torch.randn(images, height, width, arguments.width) for _ in range(maps)]
        scale = torch.ones(images)
        named = dict(zip(input_names(maps), [tensor.numpy() for tensor in (*features, scale)], strict=True))
        with torch.no_grad():
            depth = exported(features, scale)
            torch_time = _median_time(lambda f=features, s=scale: exported(f, s), arguments.runs)
        onnx_time = _median_time(lambda n=named: session.run([OUTPUT], n), arguments.runs)
        error = largest_error(content, exported, arguments.width, maps, [(images, height, width)])
        print(
            f"{images:>5} x {height:>2}x{width:<2}   {depth.min():7.3f} - {depth.max():7.3f}  {error:27.1e}  "
            f"{1e3 * torch_time:6.0f} ms  {1e3 * onnx_time:8.0f} ms"
        )


def _median_time(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    main()
