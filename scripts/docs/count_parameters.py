"""
Counts the parameters of every size of every backbone, with its depth head, and writes the table of docs/backbones.md.

    python scripts/docs/count_parameters.py

The models are laid out on the meta device: nothing is downloaded, and no weight takes memory. The sizes are those of
the checkpoints' `config.json`, as far as they differ from the defaults of transformers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from depthvlm.modeling_depthvlm import FAMILIES
from tables import write_tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"

SMALL_VIT = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
SMALL_DEEPSTACK = SMALL_VIT | {"deepstack_visual_indexes": [5, 11, 17]}
TINY_VIT = {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12}


def text(width: int, inner: int, layers: int, heads: int, groups: int, **more: Any) -> dict[str, Any]:
    """Return the sizes of an LLM: its width, that of its feed-forward layers, layers, heads, and key-value heads."""
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": groups} | more


QWEN3 = {"head_dim": 128, "vocab_size": 151936}
# family, name, LLM, vision tower, whether the LM head is the embedding
SIZES: list[tuple[str, str, dict[str, Any], dict[str, Any], bool]] = [
    ("qwen3_vl", "Qwen3-VL-2B", text(2048, 6144, 28, 16, 8, **QWEN3), SMALL_DEEPSTACK, True),
    ("qwen3_vl", "Qwen3-VL-4B", text(2560, 9728, 36, 32, 8, **QWEN3), SMALL_DEEPSTACK, True),
    ("qwen3_vl", "Qwen3-VL-8B", text(4096, 12288, 36, 32, 8, **QWEN3), {}, False),
    ("qwen3_vl", "Qwen3-VL-32B", text(5120, 25600, 64, 64, 8, **QWEN3), {}, False),
    (
        *("qwen3_vl_moe", "Qwen3-VL-30B-A3B"),
        text(2048, 6144, 48, 32, 4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, **QWEN3),
        *({}, False),
    ),
    (
        *("qwen3_vl_moe", "Qwen3-VL-235B-A22B"),
        text(4096, 12288, 94, 64, 4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536, **QWEN3),
        *({}, False),
    ),
    ("qwen3_5", "Qwen3.5-0.8B", text(1024, 3584, 24, 8, 2, linear_num_value_heads=16), TINY_VIT, True),
    ("qwen3_5", "Qwen3.5-2B", text(2048, 6144, 24, 8, 2, linear_num_value_heads=16), SMALL_VIT, True),
    ("qwen3_5", "Qwen3.5-4B", text(2560, 9216, 32, 16, 4), SMALL_VIT, True),
    ("qwen3_5", "Qwen3.5-9B", text(4096, 12288, 32, 16, 4), {}, False),
    ("qwen3_5", "Qwen3.5-27B", text(5120, 17408, 64, 24, 4, linear_num_value_heads=48), {}, False),
    ("qwen3_5_moe", "Qwen3.5-35B-A3B", {"hidden_size": 2048}, {}, False),
    (
        *("qwen3_5_moe", "Qwen3.5-122B-A10B"),
        {"hidden_size": 3072, "num_hidden_layers": 48, "num_attention_heads": 32, "linear_num_value_heads": 64}
        | {"moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024},
        *({}, False),
    ),
    (
        *("qwen3_5_moe", "Qwen3.5-397B-A17B"),
        {"hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32, "linear_num_value_heads": 64}
        | {"moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024}
        | {"num_experts": 512, "num_experts_per_tok": 10},
        *({}, False),
    ),
    (
        *("qwen2_5_vl", "Qwen2.5-VL-3B"),
        text(2048, 11008, 36, 16, 2, vocab_size=151936),
        *({"hidden_size": 1280}, True),
    ),
    ("qwen2_5_vl", "Qwen2.5-VL-7B", text(3584, 18944, 28, 28, 4), {"hidden_size": 1280}, False),
    (
        *("qwen2_5_vl", "Qwen2.5-VL-32B"),
        text(5120, 27648, 64, 40, 8),
        *({"hidden_size": 1280, "intermediate_size": 3456}, False),
    ),
    (
        *("qwen2_5_vl", "Qwen2.5-VL-72B"),
        text(8192, 29568, 80, 64, 8),
        *({"hidden_size": 1280, "intermediate_size": 3456}, False),
    ),
    ("glm4v", "GLM-4.1V-9B, GLM-4.6V-Flash", {"hidden_size": 4096}, {}, False),
]


def build(family: str, llm: dict[str, Any], vit: dict[str, Any], tied: bool) -> Any:
    """Return the model with the default depth head, on the meta device."""
    classes = FAMILIES[family]
    vision = {"out_hidden_size": llm["hidden_size"]} | vit
    config = classes.config(
        text_config=llm | {"tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied
    )
    with torch.device("meta"):
        model = classes.model(config)
    model.tie_weights()
    return model


def count(*modules: Any) -> int:
    """Return the number of parameters, each counted once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def row(family: str, name: str, model: Any) -> str:
    """Return the line of a model."""
    config, visual = model.config, model.model.visual
    names = (*config.backbone.projector_modules, "deepstack_merger_list")
    projector = count(*(getattr(visual, each) for each in names if hasattr(visual, each)))
    counts = [
        f"{count(model.model.language_model, model.lm_head) / 1e9:,.2f} B",
        f"{(count(visual) - projector) / 1e6:,.0f} M",
        f"{projector / 1e6:,.1f} M",
        f"{count(model.depth_head) / 1e6:,.1f} M",
        f"{count(model) / 1e9:,.2f} B",
    ]
    layers = f"{', '.join(map(str, config.vision_layers))} of {config.vision.depth}"
    return f"| {name} | `{family}` | {' | '.join(counts)} | {layers} | {config.input_stride} |"


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| backbone | family | LLM | vision tower | projector | depth head | all | ViT layers read | stride |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for family, name, *sizes in SIZES:
        yield row(family, name, build(family, *sizes))


def main() -> None:
    """Write the table."""
    write_tables(PAGE, "sizes", __file__, rows())


if __name__ == "__main__":
    main()
