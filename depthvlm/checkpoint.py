"""Names of models, the small bundled model, and the identity of checkpoints."""

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from .files import file_hash

BUNDLED_MODEL = "depthvlm-nano"
PUBLISHED_MODEL = "JonnyYu828/DepthVLM-4B"
# 4,472,961,729 parameters, two bytes each.
PUBLISHED_MODEL_NOTE = (
    f"depthvlm predict photo.jpg --model {PUBLISHED_MODEL} (trained and published by the paper's authors; downloads "
    "9 GB once, and needs about 10 GB of memory in bfloat16)."
)
BUNDLED_MODEL_NOTE = f"the bundled {BUNDLED_MODEL}, trained on synthetic scenes only: not made for real photographs"

# Files that affect the answers, including templates and tokenizer, which make the prompt.
_SETTINGS = ("config.json", "adapter_config.json", "processor_config.json", "preprocessor_config.json")
_TEXTS = ("chat_template.jinja", "tokenizer.json")

# Rewritten with every copy of a checkpoint, without affecting its answers.
_INCIDENTAL = {"_name_or_path", "auto_map", "base_model_name_or_path", "transformers_version"}


def bundled_model_path() -> Path:
    """Return the folder of the bundled checkpoint.

    Raises:
        FileNotFoundError: It is missing from this installation.
    """
    path = Path(str(resources.files("depthvlm") / "nano"))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"This installation does not hold {BUNDLED_MODEL} (looked in {path}): name a model, or reinstall depthvlm."
        )
    return path


def resolve_model_path(model: str) -> str:
    """Return a model's folder or Hub name: the bundled model's folder for its name, else the given value.

    Raises:
        FileNotFoundError: It is a path of a folder that does not exist.
        NotADirectoryError: It is a file.
        ValueError: A file of the folder is a pipe or a device, which would be read forever.
    """
    if model == BUNDLED_MODEL:
        return str(bundled_model_path())
    for file in Path(model).iterdir() if Path(model).is_dir() else ():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ValueError(f"{file} is not a file but a pipe or a device.")
    if Path(model).is_file():
        raise NotADirectoryError(
            f"{model} is a file: give the folder of a checkpoint, or a name on the Hub (owner/name)."
        )
    if not Path(model).is_dir() and hub_name_problem(split_revision(model)[0]):
        raise FileNotFoundError(f"There is no model folder {model}. Give a folder, or a name on the Hub (owner/name).")
    return model


def split_revision(model: str) -> tuple[str, str | None]:
    """Split `owner/name@revision`, as in `hf://` paths, into name and branch, tag or commit; a folder is not split."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and revision and not Path(model).exists() else (model, None)


def hub_name_problem(name: str) -> str | None:
    """Return why the Hub cannot have a repository of this name, or None if it may have one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return str(error)
    return None


def weight_files(folder: str | Path) -> list[Path]:
    """Return the safetensors files of a model or an adapter, without others in a training folder."""
    kind = "adapter_model" if (Path(folder) / "adapter_config.json").is_file() else "model"
    return sorted(path for path in Path(folder).glob(f"{kind}*.safetensors") if path.stem[len(kind) :][:1] in ("", "-"))


def checkpoint_hash(folder: str | Path) -> str:
    """Return the SHA-256 of weights, configuration, processor and prompt; the same in every copy of a checkpoint.

    Model cards use it to find the results of their model.

    Args:
        folder: Folder with safetensors, from `save_pretrained`. All bytes of the weights are read.

    Raises:
        FileNotFoundError: There are no safetensors weights.
    """
    folder = Path(folder)
    weights = weight_files(folder)
    if not weights:
        raise FileNotFoundError(f"{folder} holds no .safetensors weights: there is no checkpoint to be hashed.")
    content: dict[str, Any] = {file.name: file_hash(file) for file in weights}
    content |= {name: file_hash(folder / name) for name in _TEXTS if (folder / name).is_file()}
    for name in _SETTINGS:
        if (folder / name).is_file():
            content[name] = _lasting(json.loads((folder / name).read_text(encoding="utf-8")))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_identity(model: str) -> str:
    """Return an identity of a model's weights, without reading them all.

    It is the commit of a model on the Hub; for a folder, a hash of its configuration files and of its weights' names,
    sizes and times.

    Args:
        model: See `resolve_model_path`.

    Raises:
        OSError: There is no such folder, or the Hub cannot be reached and the model is not in the cache.
    """
    folder = Path(resolve_model_path(model))
    if not folder.is_dir():
        from huggingface_hub import resolve_revision

        name, revision = split_revision(str(folder))
        return resolve_revision(name, revision=revision).resolved
    parts: list[Any] = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json" and file.is_file():
            parts.append([file.name, file_hash(file)])
        elif file.suffix == ".safetensors" and file.is_file():
            status = file.stat()
            parts.append([file.name, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in _INCIDENTAL}
    return [_lasting(each) for each in value] if isinstance(value, list) else value
