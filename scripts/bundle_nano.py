"""
Puts a nano checkpoint into the package: weights, configuration and processor, but not the code, which the package is.

    python scripts/bundle_nano.py runs/nano/checkpoint
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

NANO = Path(__file__).resolve().parents[1] / "depthvlm" / "nano"


def main(checkpoint: Annotated[Path, typer.Argument(help="Folder that make_nano.py wrote.")]) -> None:
    """Copy the checkpoint to depthvlm/nano; its README stays."""
    NANO.mkdir(exist_ok=True)
    for file in sorted(checkpoint.iterdir()):
        if file.suffix == ".json":
            settings = json.loads(file.read_text())
            for part in (settings, settings.get("image_processor", {})):
                part.pop("auto_map", None)  # names code that does not travel with this copy
            (NANO / file.name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        elif file.suffix in (".safetensors", ".jinja", ".yaml", ".txt"):  # no pickle, no card of another name
            shutil.copyfile(file, NANO / file.name)
    print(*sorted(path.name for path in NANO.iterdir()), sep="\n")


if __name__ == "__main__":
    typer.run(main)
