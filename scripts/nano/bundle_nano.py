"""
Puts a nano checkpoint into the package: weights in bfloat16, configuration, processor and the record of its training.
In place of the code that travels with other checkpoints, one file names the classes of the installed package.

    make nano && python scripts/nano/bundle_nano.py outputs/nano/stage3
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration
from depthvlm.processing import DepthVLMProcessor
from safetensors.torch import load_file

NANO = Path(__file__).resolve().parents[2] / "depthvlm" / "nano"
CODE = "depthvlm_nano"


def main(checkpoint: Annotated[Path, typer.Argument(help="Folder that the last stage of `make nano` wrote.")]) -> None:
    """Copy the checkpoint to depthvlm/nano; its README stays, and so do weights that are the same."""
    NANO.mkdir(exist_ok=True)
    checkpoint = checkpoint.resolve()
    with tempfile.TemporaryDirectory() as folder:
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(folder)
        DepthVLMProcessor.from_pretrained(checkpoint).save_pretrained(folder)
        saved = {path.name: path for path in (*sorted(checkpoint.iterdir()), *Path(folder).iterdir())}
        for name, file in sorted(saved.items()):
            if file.suffix == ".json":
                settings = _from_package(json.loads(file.read_text()))
                (NANO / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            elif file.suffix == ".safetensors" and (NANO / name).is_file() and _same(file, NANO / name):
                continue
            elif file.suffix in (".safetensors", ".jinja", ".yaml") and file != NANO / name:  # no pickle, no other card
                shutil.copyfile(file, NANO / name)
    print(*sorted(path.name for path in NANO.iterdir()), sep="\n")


def _from_package(settings: Any) -> Any:
    """Have every `auto_map` name its classes in the one file that imports them from the package."""
    if isinstance(settings, dict):
        return {key: _renamed(value) if key == "auto_map" else _from_package(value) for key, value in settings.items()}
    return [_from_package(item) for item in settings] if isinstance(settings, list) else settings


def _renamed(reference: Any) -> Any:
    if isinstance(reference, str):
        return f"{CODE}.{reference.rpartition('.')[2]}"
    if isinstance(reference, dict):
        return {name: _renamed(value) for name, value in reference.items()}
    return [_renamed(value) for value in reference]


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same weights, bit for bit."""
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8))
        for name, tensor in ours.items()
    )


if __name__ == "__main__":
    typer.run(main)
