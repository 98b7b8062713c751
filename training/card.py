"""The record of a training run, its model card and its push to the Hub, without paths, tokens or host names."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..recipe_file import hub_name, is_hub_name, read_recipe, write_recipe
from .optimizer import trained_parts

logger = logging.getLogger(__name__)

# Settings that are always recorded, and those recorded if they differ from the default. No others are.
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
    """Return the current record of a run, for [`~depthvlm.recipe_file.write_recipe`].

    Args:
        trainer: [`DepthSFTTrainer`] of a model with a depth head. Nothing is gathered: any rank may call this.
    """
    args, core = trainer.args, trainer.depth_model
    base, revision = base_model(core.config)
    micro, accumulation, ranks = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    record: dict[str, Any] = {"base_model": base}
    if revision:
        record["base_revision"] = revision
    record["backbone"] = core.config.backbone.model_type
    record["trained"] = trained_parts(trainer.model)
    if is_peft_model(trainer.model):
        record["adapter"] = _adapter(trainer.model.active_peft_config)
    record["loss"] = (
        {
            "depth_loss_weight": core.config.depth_loss_weight,
            "silog_lambda": core.config.silog_lambda,
            **args.dense_weights().options(),
            **({"camera_loss_weight": trainer.camera_loss_weight} if trainer.camera_loss_weight else {}),
        }
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
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper(),
        "settings": _settings(args),
        "versions": _versions(trainer),
    }
    return record


def count_data(dataset: Any) -> dict[str, Any]:
    """Count the rows of a data set, and those of each source of DepthVLM-Bench if it has that column."""
    from ..hub_cards.cards.card_text import TERMS

    if not isinstance(dataset, Dataset):
        return {}
    counts: dict[str, Any] = {"rows": len(dataset)}
    if "source" in dataset.column_names and getattr(dataset.features["source"], "dtype", None) == "string":
        # A column of that name may also hold private names.
        column = Counter(name if name in TERMS else "other" for name in dataset.with_format(None)["source"])
        counts["sources"] = dict(sorted(column.items()))
    return counts


def name_data(script_args: Any, dataset_args: Any) -> list[str]:
    """Return the names of the data of `depthvlm sft`: on the Hub, a function, or a file or folder without its path."""
    if script_args.dataset_generator:
        return [f"made by {script_args.dataset_generator}"]
    names = [dataset.path for dataset in dataset_args.datasets] or [script_args.dataset_name]
    files = [dataset.data_files for dataset in dataset_args.datasets] or [None]
    return [_public_name(str(file if isinstance(file, str) else name)) for name, file in zip(names, files, strict=True)]


def base_model(config: Any) -> tuple[str | None, str | None]:
    """Return the Hub name and revision of the weights that a run started from; None for a local folder."""
    found, revision = hub_name(str(config._name_or_path or ""))
    return found, revision or (getattr(config, "_commit_hash", None) if found else None)


def earlier_stages(config: Any) -> list[Any]:
    """Read the record next to a run's initial weights, before the run writes to the same folder."""
    name = str(config._name_or_path or "")
    return list(read_recipe(name)) if name and Path(name).is_dir() else []


def _public_name(name: str) -> str:
    local = Path(name).expanduser().exists() or Path(name).suffix in (".json", ".jsonl")
    on_hub = not local and ("/" not in name or is_hub_name(name))  # the oldest data sets on the Hub have no owner
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


def _versions(trainer: Any) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(["peft"] if is_peft_model(trainer.model) else [])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found


def record_stages(trainer: Any) -> list[Any]:
    """Return all runs that produced the trainer's model, this one last."""
    return [*trainer.earlier_stages, stage_record(trainer)]


def save_record(trainer: Any, folder: str, card: bool) -> None:
    """Write the recipe next to weights just saved, and with `card` the model card."""
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
    """Write README.md into a folder.

    It describes the weights in the folder if they are the trainer's current ones, else the trainer, as for a
    checkpoint, whose weights are in a subfolder.

    Args:
        trainer: [`DepthSFTTrainer`] of a model with a depth head.
        folder: Folder for the card.
        model_name: Title; by default the name of the repository, or of the folder.
        dataset_name: Name of the training data, if the trainer was not told.
        tags: Tags besides those of TRL and DepthVLM.
    """
    from ..hub_cards.cards.model_card import render_model_card
    from ..hub_cards.cards.model_facts import read_facts

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
    # In a fixed order, unlike a set's, so that the same run writes the same card.
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


class HubPushMixin(Trainer):
    """Mixin that pushes the files and the card of `depthvlm push`, for a trainer with `has_depth_head`.

    A trainer of another model pushes as transformers does.
    """

    has_depth_head: bool
    push_in_progress: Any

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """Push as in transformers, with the files and checks of `depthvlm push` except its proof.

        Weights in safetensors (only the adapter's for an adapter), processor, code and card go into one commit, which
        is then compared with the files. The run's own state is not pushed.

        Raises:
            PushError: If the checkpoint is incomplete, or the Hub rejected it. The checkpoint stays in `output_dir`.
        """
        if not self.has_depth_head:
            given = {} if private is None else {"private": private}  # transformers 5.18 does not know it
            return super().push_to_hub(commit_message, blocking, token, revision, **given, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:  # called with `push_to_hub=False`
            if private is not None:
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None  # type: ignore[return-value]  # as in transformers
        model_name = kwargs.pop("model_name", None) or str(self.hub_model_id).split("/")[-1]
        self.create_model_card(model_name=model_name, **kwargs)
        self._finish_current_push()
        push = self._start_push(
            Path(str(self.args.output_dir)),
            commit_message or "End of training",
            token or self.args.hub_token,
            revision or self.args.hub_revision,
        )
        return push.result() if blocking else push  # type: ignore[return-value]  # a Future, as in transformers

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.has_depth_head:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            logger.warning(
                "`hub_strategy=%r`: the model is pushed at every save, and the state of the optimizer is not. Copy %s "
                "itself to go on from it elsewhere.",
                HubStrategy(self.args.hub_strategy).value,
                checkpoint_folder,
            )
        under_way = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if under_way and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        push = self._start_push(Path(checkpoint_folder), message, self.args.hub_token, self.args.hub_revision)
        push.add_done_callback(_warn_of_failure)
        if under_way:
            self.push_in_progress.jobs.append(push)
        else:
            self.push_in_progress = PushInProgress([push])  # type: ignore[arg-type]  # it wants a list

    def _start_push(self, folder: Path, message: str, token: str | None, revision: str | None) -> Future[CommitInfo]:
        """Choose and check the files now, and send them in the background."""
        from ..hub_cards.push.package import (
            CARD,
            adapter_upload,
            model_upload,
            select_adapter_files,
            select_checkpoint_files,
        )
        from ..hub_cards.push.upload import Hub

        repo_id = str(self.hub_model_id)
        card = Path(str(self.args.output_dir), CARD).read_text(encoding="utf-8")
        if is_peft_model(self.model):
            upload = adapter_upload(select_adapter_files(folder).files, repo_id, card)
        else:
            upload = model_upload(select_checkpoint_files(folder).files, repo_id, card)
        hub = Hub(token)
        return hub.api.run_as_future(lambda: hub.push(upload, revision=revision, message=message).info)


def _warn_of_failure(push: Future[CommitInfo]) -> None:
    error = None if push.cancelled() else push.exception()
    if error is not None:
        logger.warning("The push of a checkpoint failed, and training goes on: %s", error)
