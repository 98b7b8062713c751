"""The estimate of memory against what torch keeps in real layers, and against the published models' sizes."""

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from depthvlm.modeling_depthvlm import FAMILIES, DepthVLMConfig, silog_loss
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import build_depth_head
from depthvlm.training.memory import (
    count_parameters,
    estimate_memory,
    kept_for_backward,
    measure_activations,
    unmeasured_layers,
)
from depthvlm.training.optimizer import CHOICES
from toy_families import FAMILY_NAMES, family_config, family_tokenizer
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLVisionBlock

TOKENS = 200
NONE = {"head": 0, "llm": 0, "merger": 0, "vit": 0}
HEADS = [("dpt_light", "vit+llm"), ("dpt", "vit+llm"), ("mlp", "vit+llm"), ("mlp", "llm_final")]
HEADS += [("dpt_sharp", "vit+llm")]


def middle_sized(head: tuple[str, str] = ("dpt_light", "vit+llm")) -> DepthVLMConfig:
    """h 256, I 768, Q 512, K 128, 2 layers; the ViT 128 and 512, 3 layers."""
    config = DepthVLMConfig(
        text_config={
            "vocab_size": 1000,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 4,
            "out_hidden_size": 256,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        depth_config={"head_type": head[0], "feature_source": head[1]},
        tie_word_embeddings=True,
    )
    config.text._attn_implementation = config.vision._attn_implementation = "sdpa"
    return config


@pytest.fixture(params=[False, True], ids=["float32", "autocast"])
def autocast(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_activations_of_a_decoder_layer(autocast: bool) -> None:
    config = middle_sized()
    layer = Qwen3VLTextDecoderLayer(config.text, 0)
    x = torch.randn(1, TOKENS, 256, requires_grad=True)
    angles = torch.randn(1, TOKENS, 64), torch.randn(1, TOKENS, 64)
    mask = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    kept = kept_for_backward(layer, lambda: layer(x, angles, attention_mask=mask), autocast)
    assert measure_activations(config, autocast)["llm"] == pytest.approx(kept / TOKENS, rel=0.05)


def test_activations_of_a_vit_block(autocast: bool) -> None:
    config = middle_sized()
    block = Qwen3VLVisionBlock(config.vision)
    x = torch.randn(TOKENS, 128, requires_grad=True)
    angles = torch.randn(TOKENS, 32), torch.randn(TOKENS, 32)
    ends = torch.tensor([0, TOKENS], dtype=torch.int32)
    kept = kept_for_backward(block, lambda: block(x, cu_seqlens=ends, position_embeddings=angles), autocast)
    assert measure_activations(config, autocast)["vit"] == pytest.approx(kept / TOKENS, rel=0.05)


def middle_sized_model(family: str, **head: str) -> Any:
    """A model of a family, as wide as the one above, with four layers and a ViT of eight."""
    config = family_config(family, family_tokenizer(family)).to_dict()
    text, vision = config["text_config"], config["vision_config"]
    text |= {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4}
    text |= {name: 64 for name in ("head_dim", "linear_key_head_dim", "linear_value_head_dim") if name in text}
    text |= {name: 192 for name in ("moe_intermediate_size", "shared_expert_intermediate_size") if name in text}
    wider = 8 if family == "qwen2_5_vl" else 4
    text["rope_parameters"]["mrope_section"] = [wider * one for one in text["rope_parameters"]["mrope_section"]]
    vision |= {"hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 256}
    del config["model_type"]
    classes = FAMILIES[family]
    return classes.model(classes.config(**config, depth_config=head))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_activations_of_the_layers_of_every_family(family: str, autocast: bool) -> None:
    model = middle_sized_model(family)
    found = measure_activations(model.config, autocast)
    tokens = 320  # whole chunks of the linear attention
    x = torch.randn(1, tokens, 256, requires_grad=True)
    angles = model.model.language_model.rotary_emb(x.detach(), torch.arange(tokens).expand(3, 1, -1))
    sizes = []
    for layer in model.model.language_model.layers:
        is_linear = getattr(layer, "block_type", "") == "linear_attention"
        mask = None if is_linear else torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        call = partial(layer, x, position_embeddings=angles, attention_mask=mask)
        sizes.append(kept_for_backward(layer, call, autocast) / tokens)
    assert found["llm"] == pytest.approx(sum(sizes) / len(sizes), rel=0.06)
    assert found["llm_largest"] == pytest.approx(max(sizes), rel=0.06)
    block = model.model.visual.blocks[0]
    patches = torch.randn(tokens, 128, requires_grad=True)
    turns, ends = [torch.randn(tokens, 32)] * 2, torch.tensor([0, tokens], dtype=torch.int32)
    kept = kept_for_backward(block, partial(block, patches, cu_seqlens=ends, position_embeddings=turns), autocast)
    assert found["vit"] == pytest.approx(kept / tokens, rel=0.05)
    assert unmeasured_layers(model.config, autocast) == ()


@pytest.mark.parametrize("family", ["qwen3_5", "glm4v"])
def test_activations_of_the_heads_own_projectors(family: str, autocast: bool) -> None:
    model = middle_sized_model(family, projector="own")
    shared = middle_sized_model(family).config
    stride, merge = shared.input_stride, shared.vision.spatial_merge_size
    grid = torch.tensor([[1, 4 * merge, 6 * merge]])
    patches = [torch.randn(24 * merge**2, 128) for _ in range(3)]
    last, truth = torch.randn(1, 24, 256), [1 + torch.rand(4 * stride, 6 * stride)]

    def call() -> torch.Tensor:
        levels = model._project(patches, model.depth_head.projectors, grid)
        return silog_loss(list(model.depth_head([*(one[0][None] for one in levels), last], (4, 6))), truth, 0.5)

    kept = kept_for_backward(model.depth_head, call, autocast) / 24
    assert measure_activations(model.config, autocast)["head"] == pytest.approx(kept, rel=0.06)
    assert kept > measure_activations(shared, autocast)["head"]


def test_what_cannot_be_measured_is_named() -> None:
    """The order of windows of Qwen2.5-VL, which its projectors undo, depends on data."""
    config = middle_sized_model("qwen2_5_vl", projector="own").config
    assert [line.split(" (")[0] for line in unmeasured_layers(config, True)] == ["a projector of the depth head"] * 3
    assert measure_activations(config, True)["head"] > 0


@pytest.mark.parametrize("head", HEADS, ids="-".join)
def test_activations_of_the_head_with_its_loss(head: tuple[str, str], autocast: bool) -> None:
    config = middle_sized(head)
    depth_head = build_depth_head(config.head, 256, 32, config.vision)
    features = [torch.randn(1, 96 * rows, width) for rows, width in depth_head.inputs]
    truth = list(1 + torch.rand(1, 256, 384))

    def call() -> torch.Tensor:
        return silog_loss(list(depth_head(features, (8, 12))), truth, 0.5)

    kept = kept_for_backward(depth_head, call, autocast) / 96
    assert measure_activations(config, autocast)["head"] == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize(
    ("head", "half", "full"),
    [
        (("dpt_light", "vit+llm"), 519_168, 985_088),
        (("dpt", "vit+llm"), 238_464, 423_680),
        (("mlp", "llm_final"), 33_792, 40_960),
    ],
    ids=["dpt_light", "dpt", "mlp"],
)
def test_the_heads_at_4b_by_hand(head: tuple[str, str], half: int, full: int) -> None:
    """
    Per token, from the layers' widths: the inputs of every convolution (two or four bytes) and, in float32, those of
    norm, Softplus and loss.
    """
    config = DepthVLMConfig(
        text_config={"hidden_size": 2560}, depth_config={"head_type": head[0], "feature_source": head[1]}
    )
    assert measure_activations(config, True)["head"] == pytest.approx(half, rel=0.04)
    assert measure_activations(config, False)["head"] == pytest.approx(full, rel=0.04)


def trained_parameters(config: DepthVLMConfig, trainable: str) -> dict[str, int]:
    return {part: count if part in CHOICES[trainable] else 0 for part, count in count_parameters(config).items()}


def test_parameters_by_hand() -> None:
    counts = count_parameters(middle_sized())
    attention = 256 * (512 + 128 + 128) + 512 * 256 + 2 * 64
    assert counts["llm"] == 1000 * 256 + 2 * (attention + 3 * 256 * 768 + 2 * 256) + 256


def test_weights_gradients_and_optimizer_by_hand() -> None:
    config = middle_sized()
    counts = count_parameters(config)
    trained = trained_parameters(config, "head+llm")
    learnt, every = counts["head"] + counts["llm"], sum(counts.values())
    shape: dict[str, Any] = {"batch_size": 2, "tokens": 300, "pixels": 64 * 32 * 32, "trained": trained}

    mixed = estimate_memory(config, **shape)
    assert mixed["weights"] == 4 * every
    assert mixed["gradients"] == 4 * learnt
    assert mixed["optimizer"] == 8 * learnt
    assert mixed["working_weights"] == 2 * learnt
    assert mixed["vit_activations"] == 0
    assert mixed["head_activations"] == round(2 * 64 * measure_activations(config, True)["head"])
    # 236 text tokens a sample: their states, a tile of 472 x 32768, and the float32 gradient of the embedding.
    assert mixed["text_loss"] == 4 * 472 * 256 + 2 * 472 * 32768 + 4 * 1000 * 256
    assert mixed["total"] == sum(size for name, size in mixed.items() if name != "total")

    bfloat16 = estimate_memory(config, **shape, dtype_bytes=2, optimizer_bytes=4)
    assert bfloat16["weights"] == 2 * every
    assert bfloat16["gradients"] == 2 * learnt
    assert bfloat16["optimizer"] == 4 * learnt
    assert bfloat16["working_weights"] == 0

    sharded = estimate_memory(config, **shape, shards=8)
    for name in ("weights", "gradients", "optimizer"):
        assert sharded[name] == pytest.approx(mixed[name] / 8, abs=1)
    # Both of its two layers, and what is in none: everything but the ViT, in bfloat16.
    assert sharded["working_weights"] == pytest.approx(2 * (every - counts["vit"]))


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layer() -> None:
    config = middle_sized()
    shape: dict[str, Any] = {"batch_size": 1, "tokens": TOKENS, "pixels": 0, "trained": NONE | {"llm": 1}}
    full = estimate_memory(config, **shape, gradient_checkpointing=False)["llm_activations"]
    assert estimate_memory(config, **shape)["llm_activations"] == full / 2 + 2 * TOKENS * 4 * 256


def test_stage_1_keeps_nothing_of_the_backbone() -> None:
    config = middle_sized()
    trained = trained_parameters(config, "head")
    estimate = estimate_memory(config, batch_size=4, tokens=300, pixels=64 * 32 * 32, trained=trained)
    assert estimate["llm_activations"] == estimate["vit_activations"] == estimate["text_loss"] == 0
    assert estimate["head_activations"] > 0


def full_size(golden: Path, size: str) -> tuple[DepthVLMConfig, int]:
    """The configuration of a published model, and how many parameters it has."""
    layout = json.loads((golden / "full_size_layout.json").read_text())[size]
    values = {k: v for k, v in layout["config"].items() if k not in ("model_type", "architectures")}
    return DepthVLMConfig(**values), layout["n_params"]


@pytest.mark.parametrize(("size", "head_parameters"), [("4b", 35_145_921), ("8b", 39_474_369)])
def test_the_published_sizes(golden: Path, size: str, head_parameters: int) -> None:
    config, parameters = full_size(golden, size)
    counts = count_parameters(config)
    assert sum(counts.values()) == parameters
    assert counts["head"] == head_parameters


@pytest.mark.parametrize(("size", "gigabytes"), [("4b", 24), ("8b", 32)])
def test_the_lora_recipe_fits_24_gb_for_4b_and_32_gb_for_8b(golden: Path, size: str, gigabytes: int) -> None:
    recipe = yaml.safe_load((REPOSITORY / "training" / "recipes" / "lora_1gpu.yaml").read_text())
    config, _ = full_size(golden, size)
    text = config.text
    h, i = text.hidden_size, text.intermediate_size
    q, k = (heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads))
    pairs = ((h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h))  # r (in + out) for each linear layer
    adapter = text.num_hidden_layers * recipe["lora_r"] * sum(a + b for a, b in pairs)
    estimate = estimate_memory(
        config,
        batch_size=recipe["per_device_train_batch_size"],
        tokens=828,
        pixels=1024 * 768,
        trained=NONE | {"head": count_parameters(config)["head"], "llm": adapter},
        dtype_bytes=2,
        trained_bytes=4,
        optimizer_bytes=8,
        gradient_checkpointing=recipe["gradient_checkpointing"],
    )
    assert estimate["total"] < 0.8 * gigabytes * 1e9


@pytest.mark.parametrize("size", ["4b", "8b"])
def test_the_table_of_the_training_page(golden: Path, size: str) -> None:
    """Memory of both stages on 8 GPUs and of stage 2 on 80, as docs/training.md states it."""
    config, _ = full_size(golden, size)
    page = Path(REPOSITORY, "docs", "training.md").read_text()
    inputs = {"tokens": 828, "pixels": 1024 * 768, "scored_tokens": 15}
    trained = {stage: trained_parameters(config, part) for stage, part in ((1, "head"), (2, "head+llm"))}
    small = size == "4b"
    runs = ((1, "DDP", 8, 32 if small else 16), (2, "FSDP2", 8, 4), (2, "FSDP2", 80, 8 if small else 4))
    for stage, kind, gpus, batch in runs:
        shards = gpus if kind == "FSDP2" else 1
        estimate = estimate_memory(config, batch_size=batch, trained=trained[stage], shards=shards, **inputs)
        start = f"| {size.upper()} stage {stage} ({kind}) | {gpus} | {batch} |"
        [line] = [x for x in page.splitlines() if x.startswith(start)]
        assert f"**{estimate['total'] / 2**30:.1f} GiB**" in line


@pytest.mark.parametrize("name", ["Qwen3-VL-2B", "Qwen3-VL-30B-A3B", "Qwen3.5-0.8B", "GLM-4.1V-9B, GLM-4.6V-Flash"])
def test_the_table_of_every_backbone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What scripts/docs/training_memory.py writes into docs/training.md; weights, gradients and AdamW by hand."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "docs"))
    script = import_module("training_memory")
    [(family, *sizes)] = [(one[0], *one[2:]) for one in script.SIZES if one[1] == name]
    config = script.configuration(family, *sizes)
    assert all(unmeasured_layers(config, True, half) == () for half in (False, True))
    found = {run: script.memory(config, run) for run in script.RUNS}
    line = f"| {name} | {' | '.join(script.cell(size) for size in found.values())} |"
    assert line in Path(REPOSITORY, "docs", "training.md").read_text().splitlines()
    counts = count_parameters(config)
    every = sum(counts.values())
    assert found["stage 1"] > 4 * every + 14 * counts["head"]  # a gradient, two moments, autocast's copy
    assert found["stage 2"] > 4 * every + 14 * (counts["head"] + counts["llm"])
    adapters = script.adapter_parameters(config)
    assert found["LoRA"] > 2 * every + 14 * (counts["head"] + adapters)
    for run, size in found.items():
        fixed = {"stage 1": 4 * every, "stage 2": 18 * every, "LoRA": 2 * every}[run]
        assert size < fixed + 14 * (counts["head"] + adapters) + 5e9, run


def test_a_gpu_is_named_if_a_fifth_of_it_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "docs"))
    script = import_module("training_memory")
    assert script.cell(round(19.1e9)) == "17.8 GiB: **24 GB**"
    assert script.cell(round(19.3e9)) == "18.0 GiB: **48 GB**"
    assert script.cell(round(63.9e9)) == "59.5 GiB: **80 GB**"
    assert script.cell(round(64.1e9)) == "59.7 GiB: more"
