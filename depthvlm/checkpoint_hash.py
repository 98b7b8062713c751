"""One hash of a checkpoint: by it a model card knows which results are of its model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

# What decides about the answers. Templates and tokenizer too: they make the prompt.
_SETTINGS = ("config.json", "adapter_config.json", "processor_config.json", "preprocessor_config.json")
_TEXTS = ("chat_template.jinja", "tokenizer.json")

# Written anew with every copy of a checkpoint, without a change of its answers.
_INCIDENTAL = {"_name_or_path", "auto_map", "base_model_name_or_path", "transformers_version"}


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors of a model, or of an adapter; a folder of a training run may hold others."""
    kind = "adapter_model" if (Path(folder) / "adapter_config.json").is_file() else "model"
    return sorted(path for path in Path(folder).glob(f"{kind}*.safetensors") if path.stem[len(kind) :][:1] in ("", "-"))


def checkpoint_hash(folder: str | Path) -> str:
    """
    sha256 of a checkpoint's weights, configuration, processor and prompt; the same in every copy of the folder.

    Args:
        folder: with safetensors, as `save_pretrained` writes it. All bytes of the weights are read.

    Raises:
        FileNotFoundError: there are no such weights.
    """
    folder = Path(folder)
    weights = weight_files(folder)
    if not weights:
        raise FileNotFoundError(f"{folder} holds no .safetensors weights: there is no checkpoint to be hashed.")
    content: dict[str, Any] = {file.name: _sha256(file) for file in weights}
    content |= {name: _sha256(folder / name) for name in _TEXTS if (folder / name).is_file()}
    for name in _SETTINGS:
        if (folder / name).is_file():
            content[name] = _lasting(json.loads((folder / name).read_text(encoding="utf-8")))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in _INCIDENTAL}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
