"""Checkpoints in DepthVLM's own layout: from the published layout, from a plain backbone, or with an adapter merged."""

import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from .files import partial_path, remove_partial_files
from .loading import hub_keywords, load_parts
from .recipe_file import convert_recipe


def convert_checkpoint(source: str | PathLike[str], destination: str | PathLike[str], **kwargs: Any) -> Path:
    """Write a checkpoint that loads through the Auto classes, with and without this package installed.

    The weights keep their dtype. A plain backbone, such as Qwen3-VL or Qwen3.5, gets a new depth head, which must be
    trained before its depth is meaningful. An adapter is merged into its base model, at the commit that it was trained
    on.

    Args:
        source: Folder or Hub name of a checkpoint in the published layout, of a plain backbone, of DepthVLM, or of
            an adapter.
        destination: A folder that does not exist yet or is empty.
        **kwargs: Keywords of `from_pretrained`, such as `revision` or `token`.

    Raises:
        FileExistsError: The destination is not empty.
        OSError, ValueError: The source cannot be loaded.
    """
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: give a new or an empty folder to write to.")
    model, processor, adapter = load_parts(source, **kwargs)
    base, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder.parent)  # left by a killed run
    temporary = partial_path(folder)
    temporary.mkdir()
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        origin = {} if adapter else hub_keywords(base, kwargs | {"revision": commit})
        convert_recipe(adapter or base, temporary, base, commit, **origin)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
