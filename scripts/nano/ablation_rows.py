"""The rows of the paper's tables 4 to 7 at nano's scale: what each changes, and where its checkpoints lie."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
NANO_FOCAL_LENGTH = 160.0  # nano's canonical focal length in pixels: the paper's 1000
NEXT_SEED = 60_000_000  # seeds of scenes between two runs of one row; the recipes' own seeds are farther apart


def at_nano_scale(pixels: float) -> tuple[str, ...]:
    """Return the option for a canonical focal length of the paper, as `ablations/table7_fc800.yaml` has it."""
    kwargs = {"canonical_focal_length": pixels * NANO_FOCAL_LENGTH / 1000}
    return ("--model_init_kwargs", json.dumps(kwargs))


@dataclass(frozen=True)
class Row:
    """What is trained and scored for a row; an empty tuple is the stage as it is, None leaves the stage out."""

    stage1: tuple[str, ...] | None = ()  # options of `depthvlm sft` after those of the recipe
    stage2: tuple[str, ...] | None = ()
    shares: str | None = None  # the row whose stage 1 it begins with
    raw: bool = False  # images at their own size, as if all had the canonical focal length
    words: bool = False  # closed questions are scored too
    seeds: int = 1


# Two seeds where the paper's means over its four depth columns differ by less than 0.03 from ours.
ROWS: dict[str, Row] = {
    "ours": Row(words=True, seeds=2),
    "mlp": Row(("--config", "ablations/table4_mlp.yaml")),
    "mlp_multiscale": Row(("--config", "ablations/table4_mlp_multiscale.yaml")),
    "dpt": Row(("--config", "ablations/table4_dpt.yaml"), seeds=2),
    "vit": Row(("--config", "ablations/table5_vit.yaml")),
    "llm": Row(("--config", "ablations/table5_llm.yaml")),
    "llm_stage1_only": Row(stage2=None, shares="llm"),
    "stage1_only": Row(stage2=None, shares="ours", words=True),
    "stage2_only": Row(stage1=None, stage2=("--config", "ablations/table6_stage2_only.yaml"), words=True),
    "unfrozen_vit": Row(stage2=("--config", "ablations/table6_unfrozen_vit.yaml"), shares="ours", words=True, seeds=2),
    "raw": Row(raw=True),
    "fc800": Row(at_nano_scale(800), seeds=2),
    "fc1200": Row(at_nano_scale(1200), seeds=2),
}

# Every row of the paper's tables in its order, with the name that the report gives it.
TABLES: dict[int, dict[str, str]] = {
    4: {
        "mlp": "two-layer MLP",
        "mlp_multiscale": "two-layer MLP, multi-scale",
        "dpt": "original DPT",
        "ours": "lightweight DPT (ours)",
    },
    5: {
        "vit": "ViT intermediate + ViT final",
        "llm_stage1_only": "LLM intermediate + LLM final, stage 1 only",
        "llm": "LLM intermediate + LLM final, two stages",
        "ours": "ViT intermediate + LLM final, two stages (ours)",
    },
    6: {
        "stage1_only": "stage 1 only",
        "stage2_only": "stage 2 only",
        "unfrozen_vit": "stage 1 + stage 2, the ViT trained too",
        "ours": "stage 1 + stage 2, the ViT frozen (ours)",
    },
    7: {
        "raw": "raw mixed-source",
        "fc800": "f_c = 800, here 128 px",
        "ours": "f_c = 1000, here 160 px (ours)",
        "fc1200": "f_c = 1200, here 192 px",
    },
}


@dataclass(frozen=True)
class Settings:
    """Everything that must be equal for rows to be compared."""

    stage1_steps: int
    stage2_steps: int
    held_out: int  # rooms, and as many streets
    questions: int  # scenes with questions


def recipe(stage: int) -> dict[str, Any]:
    """Return the keys of a stage's recipe."""
    return yaml.safe_load(recipe_file(stage).read_text(encoding="utf-8"))


def full_settings() -> Settings:
    """Return the settings of the run that counts."""
    return Settings(recipe(1)["max_steps"], recipe(2)["max_steps"], held_out=250, questions=500)


def recipe_file(stage: int) -> Path:
    """Return the file of a stage's recipe."""
    return HERE / f"ablation_stage{stage}.yaml"


def stage_folder(out: Path, name: str, seed: int, stage: int) -> Path:
    """Return the folder of a row's checkpoint; stage 1 may be that of another row."""
    row = ROWS[name]
    return out / "runs" / f"{row.shares if stage == 1 and row.shares else name}_{seed}" / f"stage{stage}"


def result_file(out: Path, name: str, seed: int) -> Path:
    """Return the file of a row's scores."""
    return out / "results" / f"{name}_{seed}.json"


def scored_folder(out: Path, name: str, seed: int) -> Path:
    """Return the folder of the checkpoint that a row scores."""
    return stage_folder(out, name, seed, 1 if ROWS[name].stage2 is None else 2)


def stages(name: str) -> tuple[int, ...]:
    """Return the stages that are trained for a row alone, those that it shares left out."""
    row = ROWS[name]
    own = (row.stage1 is not None and row.shares is None, row.stage2 is not None)
    return tuple(stage for stage, there in zip((1, 2), own, strict=True) if there)


def training_options(out: Path, name: str, seed: int, stage: int, settings: Settings) -> Sequence[str]:
    """Return the options of `depthvlm sft` that train a stage of a row, or go on with it."""
    row, keys = ROWS[name], recipe(stage)
    steps = settings.stage1_steps if stage == 1 else settings.stage2_steps
    rows = dict(keys["dataset_generator_kwargs"])
    rows |= {"scenes": steps * keys["per_device_train_batch_size"], "seed": rows["seed"] + seed * NEXT_SEED}
    if row.raw:
        rows["raw"] = True
    start = stage_folder(out, name, seed, 1) if stage == 2 and row.stage1 is not None else out / "start"
    changes = (row.stage1 if stage == 1 else row.stage2) or ()
    return [
        *("--config", str(recipe_file(stage)), *changes),
        *("--model_name_or_path", str(start), "--output_dir", str(stage_folder(out, name, seed, stage))),
        *("--max_steps", str(steps), "--save_steps", str(max(1, min(keys["save_steps"], steps // 2)))),
        *("--dataset_generator_kwargs", json.dumps(rows), "--seed", str(seed)),
        *("--resume_from_checkpoint", "latest"),
    ]
