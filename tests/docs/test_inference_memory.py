"""The estimate of inference memory against what a GPU took, sizes by hand, bitsandbytes' own, and the page."""

import bitsandbytes
import pytest
import torch
from conftest import REPOSITORY
from inference_memory import (
    NAMES,
    PICTURES,
    QUANTISED,
    cache_bytes,
    configurations,
    memory,
    peaks,
    rows,
    weights,
)
from tables import marks

MIB = 2**20
FOUR_B = NAMES[1]
# docs/benchmarks/gpu.md: MiB above weights and inputs on an H200 at 4B, and what `generate` took more with this prompt.
ON_A_GPU = {(192, 256): (21, 35, 95), (480, 640): (133, 184, 347), (992, 1344): (564, 768, 1349)}


@pytest.mark.parametrize("picture", ON_A_GPU)
def test_the_peak_is_what_a_gpu_took(picture):
    depth, with_words, tokens = ON_A_GPU[picture]
    found = peaks(FOUR_B, picture)
    assert (found.head - found.patches) / MIB == pytest.approx(depth, rel=0.04)
    assert cache_bytes(configurations()[FOUR_B], tokens) / MIB == pytest.approx(with_words - depth, rel=0.08)


def test_quantised_weights_by_hand():
    config = configurations()[FOUR_B]
    llm = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    vit = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    mergers = 4 * (4096 * 4096 + 4096 * 2560)
    llm_rows = 36 * (4096 + 2 * 1024 + 2560 + 2 * 9728 + 2560)
    vit_rows, merger_rows = 24 * (3 * 1024 + 1024 + 4096 + 1024), 4 * (4096 + 2560)
    saved = weights(config, "bfloat16") - weights(config, "int8")
    assert saved == llm + vit + mergers - 4 * (llm_rows + vit_rows + merger_rows)
    assert 4.0e9 < weights(config, "bfloat16") / 2 - 0.4e9 < 4.1e9  # 0.39 billion of embeddings, 35 million of the head


def test_bytes_of_a_layer_in_bitsandbytes():
    """NF4 with double quantisation: packed weights, their scales, and the scales of these."""
    count = 512 * 1024
    layer = bitsandbytes.nn.Linear4bit(1024, 512, bias=False, compress_statistics=True, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(torch.randn(512, 1024), requires_grad=False, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    stored = [layer.weight, state.absmax, state.state2.absmax]
    each, _ = QUANTISED["int4"]
    assert sum(tensor.nbytes for tensor in stored) == each * count


def test_a_larger_picture_and_model_need_more():
    for dtype in ("bfloat16", *QUANTISED):
        found = [[memory(name, dtype, picture) for picture in PICTURES] for name in NAMES]
        assert all(sorted(sizes) == sizes for sizes in found)
        assert all(sorted(sizes) == sizes for sizes in map(list, zip(*found, strict=True)))


def test_the_page_has_these_tables():
    page = (REPOSITORY / "docs" / "predict.md").read_text(encoding="utf-8")
    start, end = marks("memory", "inference_memory.py")
    assert page.split(start)[1].split(end)[0].strip() == "\n".join(rows())
