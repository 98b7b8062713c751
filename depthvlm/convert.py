"""Checkpoints in DepthVLM's own layout, from the published layout or from a plain Qwen3-VL."""

from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from ._bundled import resolve_model_path
from ._registration import register
from .hub_cards.recipe_file import convert_recipe
from .modeling_depthvlm import DepthVLMForConditionalGeneration
from .processing import DepthVLMProcessor


def convert_checkpoint(source: str | PathLike[str], destination: str | PathLike[str]) -> Path:
    """Write a checkpoint that loads through the Auto classes, with and without this package installed.

    The weights keep their dtype. A plain Qwen3-VL gets a new depth head, whose depth means nothing before it is
    trained.

    Args:
        source: folder or Hub name of a checkpoint in the published layout, of a plain Qwen3-VL, or of DepthVLM.
        destination: a folder that is not there yet or is empty.

    Raises:
        FileExistsError: the destination is not empty.
        OSError, ValueError: the source cannot be loaded.
    """
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: give a new or an empty folder to write to.")
    register()
    path = resolve_model_path(str(source))
    processor = DepthVLMProcessor.from_pretrained(path)
    model = DepthVLMForConditionalGeneration.from_pretrained(path, dtype="auto")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Interrupted, nothing is left; done, the folder has moved and there is nothing to clean up.
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        convert_recipe(path, temporary)
        if folder.exists():
            folder.rmdir()
        Path(temporary).rename(folder)
    folder.chmod(0o755)
    return folder
