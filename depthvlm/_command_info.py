"""`depthvlm info`: versions, devices, and what a model is made of, from its config and its weights' headers."""

import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, hf_hub_download
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from ._bundled import BUNDLED_MODEL, resolve_model_path
from .export import read_json
from .modeling_depthvlm.published_layout import published_head

_PACKAGES = ("depthvlm", "torch", "torchvision", "transformers", "trl", "safetensors", "numpy", "pillow")
_PARTS = {
    "model.visual.": "vision tower",
    "model.language_model.": "language model",
    "lm_head.": "output layer",
    "depth_head.": "depth head",
}


def run(model: str | None) -> None:
    """Print it. Without a model: the bundled one, where it is there."""
    import torch

    console = Console(soft_wrap=True, highlight=False)
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    rows = {"python": platform.python_version()}
    rows |= {name: found for name in _PACKAGES if (found := _version(name))}
    rows["devices"] = ", ".join([*devices, f"cpu ({torch.get_num_threads()} threads)"])
    console.print(_table(rows))
    try:
        path = resolve_model_path(model or BUNDLED_MODEL)
    except FileNotFoundError as error:
        if model is not None:
            raise
        console.print(f"Bundled model: {error}")
        return
    console.print("")
    console.print(_table({"model": model or BUNDLED_MODEL, "path": path, **describe(path)}))


def describe(model: str) -> dict[str, str]:
    """What a checkpoint is made of: its kind, its head, and the parameters of each part. No weights are read.

    Raises:
        OSError: there is no such folder or Hub model, or it has no config or no safetensors weights.
    """
    folder = Path(model)
    config_file = folder / "config.json" if folder.is_dir() else Path(hf_hub_download(model, "config.json"))
    config = read_json(config_file)
    counts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    head_shapes: dict[str, list[int] | None] = {}
    for name, shape, dtype in _local_tensors(folder) if folder.is_dir() else _hub_tensors(model):
        part = next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), "other")
        counts[part] += prod(shape)
        if part == "depth head":
            head_shapes[name] = shape
        dtypes[dtype] += prod(shape)

    kind, head = _kind_and_head(config, head_shapes)
    rows = {"kind": kind, "head type": head, "dtype": ", ".join(dtypes)}
    rows |= {part: _millions(count) for part, count in counts.items()}
    rows["total"] = _millions(counts.total())
    return rows


def _head(config: dict) -> str:
    """The head's type and features, by the names of `DepthHeadConfig`."""
    return f"{config.get('head_type', 'dpt_light')}, features from {config.get('feature_source', 'vit+llm')}"


def _kind_and_head(config: dict, head_shapes: dict[str, list[int] | None]) -> tuple[str, str]:
    if config.get("model_type") == "depthvlm":
        return "DepthVLM", _head(config.get("depth_config", {}))
    if head_shapes:
        head = published_head({"depth_head_type": "dpt"} | config, head_shapes, "This model")
        return "published layout (`depthvlm convert` makes a DepthVLM of it)", _head(head)
    return f"{config.get('model_type')}, without a depth head", "none"


def _local_tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors weights: DepthVLM reads no other format.")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    tensor = weights.get_slice(name)
                    yield name, tensor.get_shape(), tensor.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file, or was cut off ({error}): copy it again.") from None


def _hub_tensors(model: str) -> Iterator[tuple[str, list[int], str]]:
    for file in get_safetensors_metadata(model).files_metadata.values():
        for name, tensor in file.tensors.items():
            yield name, tensor.shape, tensor.dtype


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M parameters"


def _table(rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
