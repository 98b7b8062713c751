"""What a training run was, in values that may be published: no path, no token, no name of a machine."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset

from .parameter_parts import PARTS, part_of

# Always told, then those that are told where they differ from the default. What is in neither list never is.
_BASIC = (
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "seed",
)
_OTHER = (
    *("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs", "num_train_epochs", "max_steps"),
    *("head_learning_rate", "llm_learning_rate", "merger_learning_rate", "vit_learning_rate", "muon_learning_rate"),
    *("fp16", "tf32", "gradient_checkpointing", "activation_offloading", "use_liger_kernel", "neftune_noise_alpha"),
    *("max_length", "packing", "padding_free", "completion_only_loss", "assistant_only_loss", "loss_type"),
    *("label_smoothing_factor", "shuffle_dataset", "data_seed", "full_determinism", "on_bad_sample"),
)
_PACKAGES = ("depthvlm", "torch", "transformers", "trl", "accelerate", "datasets")


def stage_record(trainer: Any) -> dict[str, Any]:
    """
    This run as it stands, for [`~depthvlm.recipe_file.write_recipe`].

    Args:
        trainer: a [`DepthSFTTrainer`] of a model with a depth head. Nothing is gathered: any rank may call it.
    """
    args, core = trainer.args, trainer.depth_model
    base, revision = base_model(core.config)
    micro, accumulation, ranks = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    record: dict[str, Any] = {"base_model": base}
    if revision:
        record["base_revision"] = revision
    trained = {part_of(name) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    record["trained"] = [part for part in PARTS if part in trained]
    if is_peft_model(trainer.model):
        record["adapter"] = _adapter(trainer.model.active_peft_config)
    record["loss"] = (
        {"depth_loss_weight": core.config.depth_loss_weight, "silog_lambda": core.config.silog_lambda}
        if trainer.depth_enabled
        else "text alone"
    )
    record |= {
        "data": {"names": list(trainer.data_names), **trainer.data_counts},
        "steps": trainer.state.global_step,
        "epochs": None if trainer.state.epoch is None else round(trainer.state.epoch, 4),
        "world_size": ranks,
        "per_device_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "global_batch_size": micro * accumulation * ranks,
        "device": _device(args),
        "settings": _settings(args),
        "versions": _versions(trainer),
    }
    return record


def count_data(dataset: Any) -> dict[str, Any]:
    """Rows of a data set, and how many come from which source of DepthVLM-Bench where it has that column."""
    from ..hub_cards.cards.card_text import TERMS

    if not isinstance(dataset, Dataset):
        return {}
    counts: dict[str, Any] = {"rows": len(dataset)}
    if "source" in dataset.column_names and getattr(dataset.features["source"], "dtype", None) == "string":
        # A column of that name may also hold what is nobody's business.
        column = Counter(name if name in TERMS else "other" for name in dataset.with_format(None)["source"])
        counts["sources"] = dict(sorted(column.items()))
    return counts


def name_data(script_args: Any, dataset_args: Any) -> list[str]:
    """The data of `depthvlm sft` by name: on the Hub, a function, or a local file or folder without its path."""
    if script_args.dataset_generator:
        return [f"made by {script_args.dataset_generator}"]
    names = [dataset.path for dataset in dataset_args.datasets] or [script_args.dataset_name]
    files = [dataset.data_files for dataset in dataset_args.datasets] or [None]
    return [_public_name(str(file if isinstance(file, str) else name)) for name, file in zip(names, files, strict=True)]


def base_model(config: Any) -> tuple[str | None, str | None]:
    """Name on the Hub, and revision, of what the weights were loaded from; None for a local folder."""
    from ..recipe_file import hub_name

    name = str(config._name_or_path or "")
    found, revision = hub_name(name)
    return found, revision or (getattr(config, "_commit_hash", None) if found else None)


def earlier_stages(config: Any) -> list[Any]:
    """The record beside the weights that a run begins with. Read at once: the run may write to the same folder."""
    from ..recipe_file import read_recipe

    name = str(config._name_or_path or "")
    return list(read_recipe(name)) if name and Path(name).is_dir() else []


def _public_name(name: str) -> str:
    from ..recipe_file import is_hub_name

    local = Path(name).expanduser().exists() or Path(name).suffix in (".json", ".jsonl")
    on_hub = not local and ("/" not in name or is_hub_name(name))  # the oldest data sets have no owner
    return name if on_hub else f"local: {Path(name).name}"


def _settings(args: Any) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    names = [*_BASIC, *(name for name in _OTHER if getattr(args, name) != defaults[name])]
    return {name: _plain(getattr(args, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _adapter(config: Any) -> dict[str, Any]:
    modules = config.target_modules
    found = {
        "type": _plain(config.peft_type),
        "target_modules": sorted(modules) if isinstance(modules, set | list) else modules,
    }
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        if getattr(config, name, None):
            found[name] = getattr(config, name)
    return found | {"modules_to_save": list(config.modules_to_save or [])}


def _device(args: Any) -> str:
    import torch

    return torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()


def _versions(trainer: Any) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(["peft"] if is_peft_model(trainer.model) else [])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found


def record_stages(trainer: Any) -> list[Any]:
    """All runs that led to the trainer's model, this one last."""
    return [*trainer.earlier_stages, stage_record(trainer)]


def save_record(trainer: Any, folder: str, card: bool) -> None:
    """Write the recipe beside weights that were just saved, and the model card where it is asked for."""
    from ..recipe_file import write_recipe

    write_recipe(folder, record_stages(trainer))
    if card or (Path(folder) / "README.md").is_file():  # PEFT has written one, with the base model's local path
        write_card(trainer, folder)


def write_card(
    trainer: Any,
    folder: str,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> None:
    """
    Write README.md: of the weights in the folder where they are the trainer's as it stands, else of the trainer, as at
    a checkpoint, whose weights lie deeper.

    Args:
        folder: gets the card.
        model_name: its title; by default the name of the repository, or of the folder.
        dataset_name: of the training data, where the trainer was not told.
        tags: besides those of TRL and ours.
    """
    from ..hub_cards.cards.model_card import render_model_card
    from ..hub_cards.cards.model_facts import read_facts
    from ..recipe_file import read_recipe, write_recipe

    stages = record_stages(trainer)
    saved = read_recipe(folder) == stages
    if dataset_name and not trainer.data_names:
        trainer.data_names = [_public_name(dataset_name)]
        stages = record_stages(trainer)
        if saved:
            write_recipe(folder, stages)
    repo_id = trainer.hub_model_id or trainer.args.hub_model_id
    facts = read_facts(Path(folder)) if saved else _live_facts(trainer, stages)
    title = (model_name or repo_id or Path(folder).resolve().name).split("/")[-1]
    given = [tags] if isinstance(tags, str) else list(tags or [])
    # Sorted as in no set: the same run writes the same card.
    all_tags = ["generated_from_trainer", *trainer._tag_names, *given]
    render_model_card(facts, repo_id, title, tags=all_tags).save(str(Path(folder) / "README.md"))


def _live_facts(trainer: Any, stages: Sequence[Any]) -> Any:
    from ..hub_cards.cards.model_facts import ModelFacts
    from ..processing import DepthVLMProcessor

    adapter = None
    if is_peft_model(trainer.model):
        config = trainer.model.active_peft_config
        adapter = {"peft_type": _plain(config.peft_type), "base_model_name_or_path": config.base_model_name_or_path}
    reader = trainer.processing_class
    processor = {"image_processor": reader.image_processor.to_dict()} if isinstance(reader, DepthVLMProcessor) else {}
    return ModelFacts(trainer.depth_model.config.to_dict(), adapter, processor, stages=stages)
