"""
Puts a nano checkpoint into the package: weights in bfloat16, configuration, processor and the record of its training,
but not the code, which the package is.

    make nano && python scripts/nano/bundle_nano.py outputs/nano/stage3
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration

NANO = Path(__file__).resolve().parents[2] / "depthvlm" / "nano"


def main(checkpoint: Annotated[Path, typer.Argument(help="Folder that the last stage of `make nano` wrote.")]) -> None:
    """Copy the checkpoint to depthvlm/nano; its README stays."""
    NANO.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = DepthVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        saved = {path.name: path for path in sorted(checkpoint.iterdir())}
        saved |= {path.name: path for path in Path(folder).iterdir()}
        for name, file in sorted(saved.items()):
            if file.suffix == ".json":
                settings = json.loads(file.read_text())
                for part in (settings, settings.get("image_processor", {})):
                    part.pop("auto_map", None)  # names code that does not travel with this copy
                (NANO / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            elif file.suffix in (".safetensors", ".jinja", ".yaml"):  # no pickle, no card of another name
                shutil.copyfile(file, NANO / name)
    print(*sorted(path.name for path in NANO.iterdir()), sep="\n")


if __name__ == "__main__":
    typer.run(main)
