"""`depthvlm info`: versions, devices and the parts of a model, from its config and its weights' headers."""

import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import get_safetensors_metadata, is_offline_mode
from huggingface_hub.errors import NotASafetensorsRepoError
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from ..checkpoint import BUNDLED_MODEL, resolve_model_path, split_revision, weight_files
from ..files import read_json
from ..loading import ADAPTER_CONFIG, CONFIG, find_adapter, hub_keywords
from ..modeling_depthvlm.backbones_depthvlm import FAMILIES, own_family
from ..modeling_depthvlm.checkpoints_depthvlm import published_head

_PACKAGES = ("depthvlm", "torch", "torchvision", "transformers", "trl", "safetensors", "numpy", "pillow")
_PARTS = {
    ".lora_": "adapter",
    ".depth_head.": "depth head",
    ".visual.": "vision tower",
    ".lm_head.": "output layer",
    ".mtp.": "multi-token prediction",
    ".model.": "language model",
}


def run(model: str | None) -> None:
    """Print versions, devices and the parts of a model; without a name, of the bundled one if present."""
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
    """Return kind, head, and the parameters of each part of a checkpoint. No weights are read.

    Raises:
        OSError: There is no such folder or Hub model, or it has no config or no safetensors weights.
        ValueError: One of its files is damaged.
    """
    name, revision = split_revision(model)
    origin = hub_keywords(name, {"revision": revision})
    folder = find_adapter(name, origin)
    if folder is not None:
        settings, local = read_json(folder / ADAPTER_CONFIG), True
    else:
        config_file = cached_file(name, CONFIG, **origin)
        if config_file is None:
            raise FileNotFoundError(f"{model} has neither {CONFIG} nor {ADAPTER_CONFIG}: it is no checkpoint.")
        settings, folder, local = read_json(Path(config_file)), Path(config_file).parent, Path(name).is_dir()
    if not local and is_offline_mode():
        local = bool(weight_files(folder))
        if not local:
            told = "not known: they are not in the cache, and this is offline mode"
            return {"kind": _kind_and_head(settings, {})[0], "weights": told}
    counts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    head_shapes: dict[str, list[int] | None] = {}
    for tensor, shape, dtype in _local_tensors(folder) if local else _hub_tensors(name, revision):
        tensor = tensor.removeprefix("base_model.model.")
        part = next((part for mark, part in _PARTS.items() if mark in f".{tensor}"), "other")
        counts[part] += prod(shape)
        if part == "depth head":
            head_shapes[tensor] = shape
        dtypes[dtype] += prod(shape)

    if "peft_type" in settings:
        rows = _of_adapter(settings)
    else:
        rows = dict(zip(("kind", "head type"), _kind_and_head(settings, head_shapes), strict=True))
    rows["dtype"] = ", ".join(dtypes)
    rows |= {part: _millions(count) for part, count in counts.items()}
    rows["total"] = _millions(counts.total())
    return rows


def _head(config: dict) -> str:
    """Return the head's type and features, with the names of `DepthHeadConfig`."""
    return f"{config.get('head_type', 'dpt_light')}, features from {config.get('feature_source', 'vit+llm')}"


def _kind_and_head(config: dict, head_shapes: dict[str, list[int] | None]) -> tuple[str, str]:
    if (family := own_family(config.get("model_type"))) is not None:
        return f"DepthVLM on {family.config.backbone.model_type}", _head(config.get("depth_config") or {})
    if head_shapes:
        head = published_head({"depth_head_type": "dpt"} | config, head_shapes, "This model")
        return "published layout (`depthvlm convert` makes a DepthVLM of it)", _head(head)
    if "depth_head_type" in config:
        return "published layout (`depthvlm convert` makes a DepthVLM of it)", "not known without its weights"
    name = config.get("model_type")
    advice = "`depthvlm convert` adds one" if name in FAMILIES else "not supported"
    return f"{name}, without a depth head ({advice})", "none"


def _of_adapter(adapter: dict[str, Any]) -> dict[str, str]:
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    modules = adapter.get("target_modules") or []
    return {
        "kind": f"{adapter.get('peft_type')} adapter (`depthvlm convert` merges it into its model)",
        "for": f"{base}, {revision}" if revision else str(base),
        "rank": str(adapter.get("r")),
        "on": modules if isinstance(modules, str) else ", ".join(sorted(modules)),
        "trained whole": ", ".join(adapter.get("modules_to_save") or []) or "nothing",
    }


def _local_tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    files = weight_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors weights: DepthVLM reads no other format.")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    tensor = weights.get_slice(name)
                    yield name, tensor.get_shape(), tensor.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{file} is incomplete or damaged ({error}). Copy or download it again.") from None


def _hub_tensors(model: str, revision: str | None) -> Iterator[tuple[str, list[int], str]]:
    try:
        files = get_safetensors_metadata(model, revision=revision).files_metadata
    except NotASafetensorsRepoError:
        raise FileNotFoundError(f"{model} holds no .safetensors weights: DepthVLM reads no other format.") from None
    for file in files.values():
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
