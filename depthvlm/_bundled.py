"""The small model that comes with the package, and what a model's name may be."""

from importlib import resources
from pathlib import Path

BUNDLED_MODEL = "depthvlm-nano"
PUBLISHED_MODEL = "JonnyYu828/DepthVLM-4B"
# 4,472,961,729 parameters of two bytes each.
PUBLISHED_MODEL_NOTE = (
    f"depthvlm predict photo.jpg --model {PUBLISHED_MODEL} (trained and published by the paper's authors; downloads "
    "9 GB once, and needs about 10 GB of memory in bfloat16)."
)
BUNDLED_MODEL_NOTE = f"the bundled {BUNDLED_MODEL}, trained on synthetic scenes only: not made for real photographs"


def bundled_model_path() -> Path:
    """The folder of its checkpoint.

    Raises:
        FileNotFoundError: this installation does not hold it.
    """
    path = Path(str(resources.files("depthvlm") / "nano"))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"This installation does not hold {BUNDLED_MODEL} (looked in {path}): name a model, or reinstall depthvlm."
        )
    return path


def resolve_model_path(model: str) -> str:
    """A model's folder or Hub name: that of the bundled model for its name, else what was given. See `split_revision`.

    Raises:
        FileNotFoundError: it is a path, and there is no such folder.
        NotADirectoryError: it is a file.
        ValueError: a file of the folder is a pipe or a device, which would be read for ever.
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
    """Return name and branch, tag or commit of `owner/name@revision`, as in `hf://` paths; a folder is all name."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and revision and not Path(model).exists() else (model, None)


def hub_name_problem(name: str) -> str | None:
    """Why the Hub has no repository of this name, "name" or "owner/name"; None where it may have one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return str(error)
    return None
