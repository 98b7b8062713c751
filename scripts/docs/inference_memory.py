"""
Estimates the GPU memory of predicting a picture, by size, dtype and picture, and writes the tables of docs/predict.md.

    python scripts/docs/inference_memory.py

Weights are counted on the meta device. The peak above them is measured on tensors without data, in bfloat16, with
torch's own tracker: two LLM layers and three ViT blocks of full width, and the whole depth head. Without a graph a
layer leaves nothing behind, so that more of them do not raise the peak. Nothing is downloaded, and no weight takes
memory. The layouts are those of scripts/docs/count_parameters.py.
"""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from count_parameters import SIZES
from depthvlm.modeling_depthvlm import FAMILIES
from depthvlm.modeling_depthvlm.modeling_depthvlm import run_depth_head
from depthvlm.training.memory import model_without_data
from tables import write_tables
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from training_memory import configuration
from transformers.initialization import no_init_weights

PAGE = Path(__file__).resolve().parents[2] / "docs" / "predict.md"

NAMES = ("Qwen3-VL-2B", "Qwen3-VL-4B", "Qwen3-VL-8B")
PICTURES = ((192, 256), (480, 640), (992, 1344), (1472, 1984))  # height and width of the model's input, in pixels
CARDS = (8, 12, 16, 24)  # GB of 10^9 bytes: cards of one name differ, and none has less
RESERVE = 1.5 * 2**30  # CUDA context and libraries (0.5 to 1 GiB), fragmentation
BEFORE, AFTER, REPLY = 15, 31, 256  # tokens of the method's prompt around the image, and of a reply
BFLOAT16, INT32 = 2, 4  # bytes
# Bytes of a weight and of its row's scale. LLM.int8() has a float32 scale for each row; NF4 an 8-bit one for each 64
# weights, and a float32 one for each 256 of these.
QUANTISED = {"int8": (1.0, 4.0), "int4": (0.5 + 1 / 64 + 4 / (64 * 256), 0.0)}
KEPT = ("lm_head", "depth_head")  # in bfloat16 in a quantised model


class Peaks(NamedTuple):
    """Bytes above the weights, the patches of the picture included.

    Args:
        patches: Patches of the picture.
        backbone: Peak in ViT and LLM.
        head: Peak in the depth head.
    """

    patches: int
    backbone: int
    head: int


@cache
def configurations() -> dict[str, Any]:
    """Return the configuration of each of `NAMES`."""
    return {name: configuration(family, *sizes) for family, name, *sizes in SIZES if name in NAMES}


def linear_layers(config: Any) -> list[tuple[str, nn.Linear]]:
    """Return the layers that are quantised, by name."""
    layers = model_without_data(config).named_modules()
    return [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear) and not name.startswith(KEPT)]


def weights(config: Any, dtype: str) -> int:
    """Return the bytes of the weights in `bfloat16`, `int8` or `int4`."""
    total = BFLOAT16 * sum(parameter.numel() for parameter in model_without_data(config).parameters())
    if dtype == "bfloat16":
        return total
    each, of_row = QUANTISED[dtype]
    for _, layer in linear_layers(config):
        total += round(layer.weight.numel() * (each - BFLOAT16) + layer.out_features * of_row)
    return total


def workspace(config: Any, dtype: str, picture: tuple[int, int]) -> int:
    """Return the bytes that a quantised layer takes besides: int32 products, or one weight in bfloat16 again."""
    if dtype == "bfloat16":
        return 0
    tokens = (picture[0] // config.input_stride) * (picture[1] // config.input_stride)
    rows = {True: tokens * config.vision.spatial_merge_size**2, False: BEFORE + tokens + AFTER}
    return max(
        INT32 * rows["visual" in name] * layer.out_features if dtype == "int8" else BFLOAT16 * layer.weight.numel()
        for name, layer in linear_layers(config)
    )


@cache
def peaks(name: str, picture: tuple[int, int]) -> Peaks:
    """Run ViT, LLM and head on one picture without data, as `predict_depth` does, and return their peaks."""
    config = copy.deepcopy(configurations()[name])
    config.text.num_hidden_layers, config.vision.depth, config.vision.deepstack_visual_indexes = 2, 3, [0, 1, 2]
    for part in (config, config.text, config.vision):
        part._attn_implementation = "sdpa"
    grid = picture[0] // config.input_stride, picture[1] // config.input_stride
    tokens = grid[0] * grid[1]
    patches = tokens * config.vision.spatial_merge_size**2
    width = config.vision.in_channels * config.vision.temporal_patch_size * config.vision.patch_size**2
    with FakeTensorMode(), torch.no_grad(), torch.device("cpu"):
        with no_init_weights():
            model = FAMILIES["qwen3_vl"].model._from_config(config, dtype=torch.bfloat16).eval()
        tracker = MemTracker()
        tracker.track_external(model)

        def above(kind: str) -> int:
            [sizes] = tracker.get_tracker_snapshot(kind).values()
            return sizes["Total"] - stored

        [stored] = (sizes["Total"] for sizes in tracker.get_tracker_snapshot("current").values())
        with tracker:
            pixels = torch.empty(patches, width, dtype=torch.bfloat16)
            picture_bytes = above("current")
            vision = model.model.visual(
                pixels,
                None,
                # What it would read from the values of the grid, which tensors without data lack.
                interp_indices=torch.zeros(patches, 4, dtype=torch.long),
                interp_weights=torch.empty(patches, 4),
                position_ids=torch.zeros(patches, 2, dtype=torch.long),
                cu_seqlens=np.array([0, patches]),
                max_seqlen=patches,
            )
            states = model.model.language_model(
                inputs_embeds=torch.empty(1, BEFORE + tokens, config.text.hidden_size, dtype=torch.bfloat16),
                position_ids=torch.zeros(4, 1, BEFORE + tokens, dtype=torch.long),
                use_cache=False,
            )[0]
            backbone = above("peak")
            maps = [[level] for level in vision.deepstack_features]
            run_depth_head(model.depth_head, [*maps, [states[0, BEFORE:].clone()]], [grid], None)
            return Peaks(picture_bytes, backbone, above("peak"))


def cache_bytes(config: Any, tokens: int) -> int:
    """Return the bytes of keys and values of `tokens` tokens."""
    text = config.text
    return tokens * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_dim * BFLOAT16


def memory(name: str, dtype: str, picture: tuple[int, int]) -> int:
    """Return the peak of predicting one picture's depth, in bytes, the weights included."""
    config, found = configurations()[name], peaks(name, picture)
    working = found.backbone + workspace(config, dtype, picture)
    return weights(config, dtype) + max(working, found.head)


def cell(size: int) -> str:
    """Return the memory, and the smallest card that holds it with the reserve."""
    fits = next((f"**{card} GB**" for card in CARDS if size + RESERVE <= card * 1e9), "more")
    return f"{size / 2**30:.1f} GiB: {fits}"


def rows() -> Iterator[str]:
    """Yield the lines of the two tables."""
    columns = [f"{height}x{width}" for height, width in PICTURES]
    yield f"| backbone | weights | {' | '.join(columns)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for name, config in configurations().items():
        for dtype in ("bfloat16", *QUANTISED):
            cells = [cell(memory(name, dtype, picture)) for picture in PICTURES]
            stored = f"{dtype}, {weights(config, dtype) / 2**30:.1f} GiB"
            yield f"| {name} | {stored} | {' | '.join(cells)} |"
    yield ""
    yield f"| more of it | {' | '.join(columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, config in configurations().items():
        found = [peaks(name, picture).head for picture in PICTURES]
        yield f"| {name}, each further picture of a batch | {' | '.join(f'{one / 2**30:.2f} GiB' for one in found)} |"
        tokens = [height * width // config.input_stride**2 + BEFORE + AFTER + REPLY for height, width in PICTURES]
        kept = [f"{cache_bytes(config, one) / 2**30:.2f} GiB" for one in tokens]
        yield f"| {name}, a reply of {REPLY} tokens | {' | '.join(kept)} |"


def main() -> None:
    """Write the tables."""
    write_tables(PAGE, "memory", __file__, rows())


if __name__ == "__main__":
    main()
