"""The small model that comes with the package."""

from importlib import resources
from pathlib import Path

BUNDLED_MODEL = "depthvlm-nano"
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
    """A model's folder or Hub name: that of the bundled model for its name, else what was given.

    Raises:
        FileNotFoundError: it is a path, and there is no such folder.
    """
    if model == BUNDLED_MODEL:
        return str(bundled_model_path())
    is_hub_name = model.count("/") <= 1 and not model.startswith(("/", ".", "~"))
    if not is_hub_name and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no model folder {model}. Give a folder, or a name on the Hub (owner/name).")
    return model
