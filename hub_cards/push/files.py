"""Which files of a checkpoint go to the Hub, and what is wrong with a checkpoint that may not go there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

# What from_pretrained reads beside weights and code, and the licence of the weights. Nothing else goes to the Hub.
REQUIRED = (
    "config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
OPTIONAL = (
    "added_tokens.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "merges.txt",
    "NOTICE",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "training_recipe.yaml",
    "training_recipe.yaml",
    "video_preprocessor_config.json",
    "vocab.json",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Of weights that a push replaces: left on the Hub, transformers would load these instead of the new ones, or both.
STALE_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_REASONS = {
    "README.md": "the card is made anew",
    "training_args.bin": "arguments of a training run, pickled",
    "trainer_state.json": "state of a training run",
    "checkpoint_files.json": "state of a training run",
    "text_probe.safetensors": "state of a training run",
    "bad_samples.jsonl": "state of a training run",
}


class PushError(ValueError):
    """Something that keeps a push from being made; the message says what, and what to do."""


@dataclass(frozen=True)
class SelectedFiles:
    """`files`: what goes to the Hub, by its path there. `left_out`: the rest of the folder, each with the reason."""

    files: dict[str, Path]
    left_out: dict[str, str]


def select_checkpoint_files(folder: Path) -> SelectedFiles:
    """
    The files of a checkpoint that go to the Hub: an allow-list.

    Nothing of the checkpoint is run, and of its weights only the headers are read.

    Raises:
        FileNotFoundError: there is no such folder, or no checkpoint in it.
        PushError: it is no whole DepthVLM checkpoint in safetensors with its processor, its chat template and this
            package's code; the message names all that is wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: give the folder of a checkpoint.")
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise PushError(
                f"{folder} is an adapter, not a model. `depthvlm convert {folder} NEW_FOLDER` merges it into its "
                "base model: push that folder."
            )
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json.")
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "depthvlm":
        raise PushError(
            f"{folder} has model_type {config.get('model_type')!r}, expected 'depthvlm'. `depthvlm convert {folder} "
            "NEW_FOLDER` writes it in DepthVLM's own layout."
        )
    weights, problems = _weights(folder)
    problems += [f"{name} is missing" for name in REQUIRED if not (folder / name).is_file()]
    problems += _code_problems(folder, config)
    if problems:
        raise PushError(
            f"{folder} cannot be pushed:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\n`depthvlm convert {folder} NEW_FOLDER` writes it again with this package's code and processor."
        )
    return _select(folder, weights)


def select_adapter_files(folder: Path) -> SelectedFiles:
    """
    The files of a PEFT adapter that go to the Hub, with the processor of the model that it is for.

    Raises:
        PushError: it is no whole adapter in safetensors.
    """
    problems = [f"{name} is missing" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if not problems and (damage := _damage(folder / ADAPTER_WEIGHTS)):
        problems.append(damage)
    problems += _code_copies(folder)
    if problems:
        raise PushError(f"The adapter in {folder} cannot be pushed:\n" + "\n".join(f"  - {p}" for p in problems))
    return _select(folder, [ADAPTER_CONFIG, ADAPTER_WEIGHTS])


def _select(folder: Path, weights: Sequence[str]) -> SelectedFiles:
    names = [*weights, *REQUIRED, *OPTIONAL, *package_code()]
    files = {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    templates = folder.glob("additional_chat_templates/*.jinja")
    files |= {f"{file.parent.name}/{file.name}": file for file in templates}
    refuse_links_out(folder, files)
    left_out = {
        str(path.relative_to(folder)) + ("/" if path.is_dir() else ""): _why_left_out(path)
        for path in sorted(folder.iterdir())
        if path.name not in files and path.name != "additional_chat_templates"
    }
    return SelectedFiles(files, left_out)


def refuse_links_out(folder: Path, files: Mapping[str, Path]) -> None:
    """
    See that the files lie in the folder: what a link elsewhere points to is not what someone meant to publish.

    Raises:
        PushError: they do not; the message names them. A snapshot in the Hub's cache may link to the cache's own blobs.
    """
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        roots.append(folder.resolve().parents[1] / "blobs")
    out = [name for name, file in files.items() if not any(file.resolve().is_relative_to(root) for root in roots)]
    if out:
        raise PushError(
            f"{folder} cannot be pushed: {', '.join(out)} would be read from outside of the folder, through a link or "
            "its name. Put a copy of what is to be published into the folder."
        )


@cache
def package_code() -> dict[str, Path]:
    """The package's modules that travel with a checkpoint, by file name: what its `auto_map`s name, with imports."""
    files: dict[str, Path] = {}
    for room in ("modeling_depthvlm", "processing"):
        package = importlib.import_module(f"...{room}", __package__)
        folder = Path(str(package.__file__)).parent
        for module in {reference.split(".")[0] for reference in _expected_references()}:
            root = folder / f"{module}.py"
            if root.is_file():
                files |= {Path(file).name: Path(file) for file in [str(root), *get_relative_import_files(root)]}
    return dict(sorted(files.items()))


def _expected_references() -> list[str]:
    from ...modeling_depthvlm.modeling_depthvlm import AUTO_MAP

    return [
        *AUTO_MAP.values(),
        "processing_depthvlm.DepthVLMProcessor",
        "image_processing_depthvlm.DepthVLMImageProcessor",
    ]


def _code_problems(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    from ...modeling_depthvlm.modeling_depthvlm import AUTO_MAP

    if config.get("auto_map") != AUTO_MAP:
        yield "config.json has no `auto_map`, or another than this package's: it does not load as remote code"
    processor = folder / "processor_config.json"
    if processor.is_file() and "AutoProcessor" not in _read_json(processor).get("auto_map", {}):
        yield "processor_config.json has no `auto_map`: the processor does not load as remote code"
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "--" in str(list(_references(_read_json(folder / name)))):
            yield f"the `auto_map` of {name} names code of another repository"
    missing = [name for name in package_code() if not (folder / name).is_file()]
    if missing:
        yield f"code that must travel with it is missing: {', '.join(missing)}"
    yield from _code_copies(folder)


def _code_copies(folder: Path) -> Iterator[str]:
    for name, original in package_code().items():
        if (folder / name).is_file() and (folder / name).read_bytes() != original.read_bytes():
            yield f"{name} is not this package's file, byte for byte"


def _references(content: Any) -> Iterator[str]:
    """Every class that an `auto_map` names, at whatever depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "auto_map":
                yield str(value)
            else:
                yield from _references(value)


def _weights(folder: Path) -> tuple[list[str], list[str]]:
    """The files of the weights, and what is wrong with them."""
    has_one, has_index = (folder / WEIGHTS).is_file(), (folder / INDEX).is_file()
    if has_one and has_index:
        return [], [f"{WEIGHTS} and {INDEX} are both there: which are the weights? Remove the others"]
    if not has_one and not has_index:
        pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLED]
        found = f" (only {', '.join(pickled)}, and pickled weights are never pushed)" if pickled else ""
        return [], [f"there are no safetensors weights{found}"]
    if has_one:
        return [WEIGHTS], [problem for problem in [_damage(folder / WEIGHTS)] if problem]
    by_file: dict[str, set[str]] = {}
    for tensor, file in _read_json(folder / INDEX).get("weight_map", {}).items():
        by_file.setdefault(file, set()).add(tensor)
    problems = [] if by_file else [f"{INDEX} lists no weights"]
    for file, tensors in sorted(by_file.items()):
        if not file.endswith(".safetensors"):
            problems.append(f"{INDEX} names {file}, which is no safetensors file: pickled weights are never pushed")
        elif not (folder / file).is_file():
            problems.append(f"{file} is missing, which {INDEX} lists")
        elif damage := _damage(folder / file, tensors):
            problems.append(damage)
    return [INDEX, *sorted(by_file)], problems


def _damage(file: Path, expected: set[str] | None = None) -> str | None:
    try:
        with safe_open(file, framework="np") as weights:
            missing = (expected or set()) - set(weights.keys())
    except (OSError, SafetensorError) as error:
        return f"{file.name} is incomplete or damaged ({error})"
    return f"{file.name} lacks {len(missing)} weights that {INDEX} lists" if missing else None


def _why_left_out(path: Path) -> str:
    if path.is_dir():
        return "a training checkpoint" if path.name.startswith("checkpoint-") else "a folder"
    if path.name in _REASONS:
        return _REASONS[path.name]
    if path.suffix in _PICKLED:
        return "pickled"
    if path.suffix == ".py":
        return "no code of this package"
    if path.suffix == ".safetensors":
        return "not of the model's weights"
    return "not needed to load the checkpoint"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PushError(f"{file} is damaged: {error}") from None
