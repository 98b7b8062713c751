"""
Estimates the memory of one GPU for three runs of every published size, and writes the table of docs/training.md.

    python scripts/docs/training_memory.py

The models are laid out on the meta device and their layers run on tensors without data: nothing is downloaded, and no
weight takes memory. The layouts are those of scripts/docs/count_parameters.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from count_parameters import SIZES
from depthvlm.modeling_depthvlm import FAMILIES
from depthvlm.training.memory import count_parameters, estimate_memory, model_without_data, unmeasured_layers
from depthvlm.training.optimizer import CHOICES, PARTS
from tables import write_tables
from torch import nn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"

GPUS = (24, 48, 80)  # GB; a fifth of each stays free
IMAGE = 1024, 768  # pixels, rounded down to whole visual tokens
TEXT_TOKENS, SCORED_TOKENS = 60, 15
LORA_RANK = 16
# `dtype` of the model's weights is float32 in the recipes of both stages, bfloat16 in that of LoRA.
RUNS: dict[str, dict[str, Any]] = {
    "stage 1": {},
    "LoRA": {"dtype_bytes": 2, "trained_bytes": 4},
    "stage 2": {},
}
# Settings of positions that have no default in transformers.
ROPE: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"mrope_section": [16, 24, 24]},
    "glm4v": {"mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5},
}
TRAINED = {"stage 1": "head", "stage 2": "head+llm"}


def configuration(family: str, llm: dict[str, Any], vit: dict[str, Any], tied: bool) -> Any:
    """Return the configuration of a size, with the default depth head."""
    if family in ROPE:
        llm = llm | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6} | ROPE[family]}
    return FAMILIES[family].config(
        text_config=llm | {"tie_word_embeddings": tied},
        vision_config={"out_hidden_size": llm["hidden_size"]} | vit,
        tie_word_embeddings=tied,
    )


def adapter_parameters(config: Any) -> int:
    """Return the parameters of LoRA in every linear layer of the LLM's layers; experts are none of these."""
    layers = model_without_data(config).model.language_model.layers
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    return sum(LORA_RANK * (module.in_features + module.out_features) for module in linear)


def memory(config: Any, run: str) -> int:
    """Return the bytes of one of `RUNS` with a batch of one image."""
    counts, stride = count_parameters(config), config.input_stride
    tokens = (IMAGE[0] // stride) * (IMAGE[1] // stride)
    if run == "LoRA":
        trained = dict.fromkeys(PARTS, 0) | {"head": counts["head"], "llm": adapter_parameters(config)}
    else:
        trained = {part: count if part in CHOICES[TRAINED[run]] else 0 for part, count in counts.items()}
    estimate = estimate_memory(
        config,
        batch_size=1,
        tokens=tokens + TEXT_TOKENS,
        pixels=tokens * stride**2,
        scored_tokens=SCORED_TOKENS,
        trained=trained,
        **RUNS[run],
    )
    return estimate["total"]


def cell(size: int) -> str:
    """Return the memory, and the smallest GPU that holds it with a fifth free."""
    fits = next((f"**{gpu} GB**" for gpu in GPUS if size < 0.8 * gpu * 1e9), "more")
    return f"{size / 2**30:,.1f} GiB: {fits}"


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| backbone | {' | '.join(RUNS)} |"
    yield "|---" * (1 + len(RUNS)) + "|"
    for family, name, *sizes in SIZES:
        config = configuration(family, *sizes)
        left_out = {one for half in (False, True) for one in unmeasured_layers(config, True, half)}
        note = f" (without {'; '.join(sorted(left_out))})" if left_out else ""
        yield f"| {name}{note} | {' | '.join(cell(memory(config, run)) for run in RUNS)} |"


def main() -> None:
    """Write the table."""
    write_tables(PAGE, "memory", __file__, rows())


if __name__ == "__main__":
    main()
