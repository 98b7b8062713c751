"""Checkpoints of a run, and checks that they are complete: a run may be killed while it writes one."""

import copy
import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME as SAFE_ADAPTER
from peft.utils import WEIGHTS_NAME as ADAPTER
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..files import write_text
from ..modeling_depthvlm.checkpoints_depthvlm import read_weight_map
from .card import save_record, write_card

logger = logging.getLogger(__name__)

# Written last, under a temporary name first: it lists every file of the checkpoint with its size.
MANIFEST = "checkpoint_files.json"
TRAINER_STATE = "trainer_state.json"
# Pickled files that transformers reads, and the files that it prefers over them.
PICKLED = {WEIGHTS_NAME: SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME: SAFE_WEIGHTS_INDEX_NAME, ADAPTER: SAFE_ADAPTER}


def seal_checkpoint(folder: str | os.PathLike) -> None:
    """Write the manifest of a complete checkpoint; call this once every rank has written its files."""
    path = Path(folder)
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_text(path / MANIFEST, json.dumps(files, indent=1), sync=True)


def missing_in(folder: str | os.PathLike) -> str | None:
    """Return a description of what a checkpoint lacks, or None if it is complete."""
    path = Path(folder)
    manifest = path / MANIFEST
    if not manifest.is_file():
        # From another trainer, or incomplete: every trainer writes its state last.
        try:
            json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"it has no {TRAINER_STATE}, which is written last"
        except json.JSONDecodeError:
            return f"its {TRAINER_STATE} is incomplete"
        return None
    try:
        files: dict[str, int] = json.loads(manifest.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return f"its {MANIFEST} is damaged"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is not there"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes instead of {size:,}"
    return None


def numbered_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Return the `checkpoint-N` folders of a run, the newest first."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def resolve_checkpoint(output_dir: str | os.PathLike, resume: str | bool | None) -> str | None:
    """Return the checkpoint that a run resumes from, or None to start from the beginning.

    Args:
        output_dir: Output folder of the run.
        resume: Folder of a checkpoint, or True ("latest", "true") for the newest in `output_dir`. An incomplete
            checkpoint is skipped, with a warning, for the one before it.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If neither the folder nor one before it is complete, or its weights are pickled.
    """
    if resume is None or resume is False or str(resume).lower() in ("", "false", "none"):
        return None
    latest = resume is True or str(resume).lower() in ("true", "latest")
    candidates = numbered_checkpoints(output_dir)
    if not latest:
        named = Path(str(resume))
        if not named.is_dir():
            raise FileNotFoundError(
                f"`resume_from_checkpoint` is {str(resume)!r}, which is not a folder. Name a checkpoint-N folder, or "
                "'latest' for the newest of `output_dir`."
            )
        before = [f for f in numbered_checkpoints(named.parent) if _number(f) < _number(named)]
        candidates = [named, *before]
    for folder in candidates:
        missing = missing_in(folder)
        if missing is None:
            refuse_pickled_weights(folder)
            return str(folder)
        logger.warning("%s is not whole (%s): saving it was interrupted. The one before it is used.", folder, missing)
    if not latest:
        raise ValueError(f"{resume} is not whole ({missing_in(candidates[0])}), and no checkpoint before it is.")
    logger.warning("There is no whole checkpoint in %s: the run starts from the beginning.", output_dir)
    return None


def refuse_pickled_weights(checkpoint: Path) -> None:
    """Check that the weights of a checkpoint (a model or adapters) are safetensors.

    FSDP's own files and the optimizer's are not checked: both are read as plain tensors only.

    Raises:
        ValueError: If pickled weights would be read, or an index names some.
    """
    for folder in (checkpoint, *(path for path in checkpoint.iterdir() if path.is_dir())):
        for pickled, safe in PICKLED.items():
            if (folder / pickled).is_file() and not (folder / safe).is_file():
                raise ValueError(
                    f"{folder} holds {pickled} and no {safe}: DepthVLM reads only safetensors, never pickle. Resume "
                    "from another checkpoint, or convert the weights to safetensors first."
                )
        if (index := folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
            read_weight_map(index)


def without_tokens(args: Any) -> Any:
    """Return a copy of a run's arguments without tokens."""
    clean = copy.copy(args)
    clean.hub_token = None
    if isinstance(clean.model_init_kwargs, dict):
        clean.model_init_kwargs = {key: value for key, value in clean.model_init_kwargs.items() if key != "token"}
    return clean


def explain_full_disk(error: BaseException, folder: str | os.PathLike) -> OSError | None:
    """Return an error with the loss and the remedy if `error` is about a full disk, else None."""
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not re.search(
        r"no space left|disk quota|PytorchStreamWriter failed|os error 28", str(error), re.IGNORECASE
    ):
        return None
    parent = Path(folder).parent
    whole = next((f for f in numbered_checkpoints(parent) if f != Path(folder) and missing_in(f) is None), None)
    free = shutil.disk_usage(parent).free
    kept = f"The last whole checkpoint is {whole}." if whole else "No whole checkpoint was written before it."
    return OSError(
        errno.ENOSPC,
        f"The disk is full ({free / 2**30:.2f} GiB free): {folder} could not be written and was removed. {kept} Make "
        "room (or set `save_total_limit`) and start again with `--resume_from_checkpoint`.",
    )


def _number(folder: Path) -> int:
    match = re.search(r"(\d+)$", folder.name)
    return int(match[1]) if match else 0


class CheckpointMixin(Trainer):
    """Mixin that saves complete checkpoints, with recipe and card if the trainer's `has_depth_head` is true."""

    has_depth_head: bool

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as in transformers, with recipe and card; the final model is whole even if checkpoints are sharded."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or _internal_call:
            super().save_model(output_dir, _internal_call)
        else:
            kind = plugin.state_dict_type
            plugin.set_state_dict_type("FULL_STATE_DICT")  # with sharded state transformers writes no model at all
            try:
                super().save_model(output_dir, _internal_call)
            finally:
                plugin.set_state_dict_type(kind.name)
        if self.args.should_save and self.has_depth_head:
            save_record(self, output_dir or str(self.args.output_dir), card=not _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as in transformers, without tokens in the arguments saved with the weights."""
        given = self.args
        self.args = without_tokens(given)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = given

    def create_model_card(  # type: ignore[override]  # TRL's parameters, which are not those of transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write DepthVLM's card instead of TRL's: the actual run and only measured numbers."""
        if not self.has_depth_head:
            super().create_model_card(model_name, dataset_name, tags)
        elif self.is_world_process_zero():
            write_card(self, str(self.args.output_dir), model_name, dataset_name, tags)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            explained = explain_full_disk(error, folder)
            if explained is None:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise explained from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save and os.path.isdir(folder):
            seal_checkpoint(folder)
