"""Packages that `depthvlm push` sends: a checkpoint, a build of the benchmark, the demo or the metric, with its card.

Nothing of a checkpoint is run here, and only the headers of its weights are read.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from ...checkpoint import BUNDLED_MODEL, hub_name_problem
from ...modeling_depthvlm.backbones_depthvlm import FAMILIES, own_family
from . import prove
from .prove import PushError
from .upload import Upload

CARD = "README.md"
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


@dataclass(frozen=True)
class Package:
    """Files to push, complete and checked except for the proof."""

    upload: Upload  # the files, the card among them, and where they go
    card: str  # the text of README.md
    left_out: Mapping[str, str]  # what lies beside the files and is not sent, each with the reason
    prove: Callable[[], str]  # loads the files in fresh processes; returns what was found, or raises [`PushError`]
    variables: Mapping[str, str] = field(default_factory=dict)  # variables of a Space


def pack_checkpoint(
    checkpoint: Path, repo_id: str, results: Sequence[Path] = (), license: str | None = None
) -> Package:
    """Return a checkpoint with its model card.

    Args:
        checkpoint: Its folder.
        repo_id: "user/name".
        results: Files of `depthvlm bench eval` for the card.
        license: Licence of the weights, a key of the Hub; by default what is known of them.

    Raises:
        FileNotFoundError: The checkpoint or a result is missing.
        PushError: The name or the checkpoint cannot be used; the message lists every problem.
    """
    from ..cards.model_card import make_model_card

    check_repo_id(repo_id)
    selected = select_checkpoint_files(checkpoint)
    card = str(make_model_card(checkpoint, repo_id, results, license=license))
    return Package(
        model_upload(selected.files, repo_id, card), card, selected.left_out, lambda: prove.prove_model(selected.files)
    )


def model_upload(files: Mapping[str, Path], repo_id: str, card: str) -> Upload:
    """Return the upload of a checkpoint: replaced weights are removed, a repository with an adapter is refused."""
    return Upload(
        repo_id,
        "model",
        {**files, CARD: card.encode()},
        stale=STALE_WEIGHTS,
        refused={ADAPTER_CONFIG: "transformers would put that adapter on top of this model"},
    )


def adapter_upload(files: Mapping[str, Path], repo_id: str, card: str) -> Upload:
    """Return the upload of an adapter's files; a repository that holds a whole model is refused."""
    refused = dict.fromkeys(STALE_WEIGHTS[::2], "transformers would put this adapter on top of that model")
    return Upload(repo_id, "model", {**files, CARD: card.encode()}, refused=refused)


def pack_build(build: Path, repo_id: str) -> Package:
    """Return a folder of `depthvlm bench build` with its data set card, every shard compared with the manifest.

    Raises:
        FileNotFoundError: There is no such folder.
        PushError: The name cannot be used, no build is finished there, or a shard is not what the manifest says.
    """
    from ...benchmark.build.shard_writer import BuildError
    from ...benchmark.build.shards import MANIFEST, finished_builds, shard_paths
    from ..cards.dataset_card import make_dataset_card, restricted_sources

    check_repo_id(repo_id)
    try:
        entries = finished_builds(build)
        files = {path.name: path for entry in entries.values() for path in shard_paths(build, entry, verify=True)}
        card = str(make_dataset_card(build, repo_id))
        titles = ", ".join(restricted_sources(build))
    except BuildError as error:
        raise PushError(str(error)) from None
    files[MANIFEST] = build / MANIFEST
    refuse_links_out(build, files)
    everything: dict[str, Path | bytes] = {**files, CARD: card.encode()}
    left_out = {
        path.name + ("/" if path.is_dir() else ""): "not of the shards"
        for path in sorted(build.iterdir())
        if path.name not in everything
    }
    if (build / CARD).exists():
        left_out[CARD] = "the card is made anew"
    # A build that is pushed again may have been cut into other shards.
    stale = [f"{name}-[0-9][0-9][0-9][0-9][0-9]-of-*.parquet" for name in entries]
    restricted = f"The terms of {titles} leave no room for a public copy." if titles else ""
    upload = Upload(repo_id, "dataset", everything, stale=stale, restricted=restricted)
    return Package(upload, card, left_out, lambda: prove.prove_dataset(everything))


def pack_space(model_id: str, repo_id: str) -> Package:
    """Return the demo's Space for a model on the Hub.

    Raises:
        PushError: A name is not one of the Hub's (the bundled model's may do without an owner).
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from ..cards.space_card import space_files

    check_repo_id(repo_id)
    if model_id != BUNDLED_MODEL:
        check_repo_id(model_id, "the model that the Space shows")
    files = space_files(model_id, repo_id)

    def parse() -> str:
        ast.parse(files["app.py"])
        return "is the demo of this package (`depthvlm demo` runs the same); nothing else was tried"

    variables = {} if model_id == BUNDLED_MODEL else {"DEPTHVLM_MODEL": model_id}
    return Package(Upload(repo_id, "space", files), files[CARD].decode(), {}, parse, variables)


def pack_metric(repo_id: str) -> Package:
    """Return the metric's Space, from which `evaluate.load("user/depth_metrics")` takes the module.

    Raises:
        PushError: The name is not one of the Hub's, or differs from the module's.
        ImportError: Gradio, whose version the card names, is not installed.
    """
    from ..cards.space_card import METRIC, metric_files

    check_repo_id(repo_id)
    try:
        files = metric_files(repo_id)
    except ValueError as error:
        raise PushError(str(error)) from None
    upload = Upload(repo_id, "space", files)
    return Package(upload, files[CARD].decode(), {}, lambda: prove.prove_metric(files, f"{METRIC}.py"))


def check_repo_id(repo_id: str, what: str = "--repo") -> None:
    """Check a name for a repository; `what` names it in the message.

    Raises:
        PushError: It is not "user/name", or the Hub takes no such name.
    """
    if problem := hub_name_problem(repo_id):
        raise PushError(f"{what} is {repo_id!r}, which is no name on the Hub: {problem}")
    if "/" not in repo_id:
        raise PushError(f"{what} is {repo_id!r}, expected the owner too: user/{repo_id} or organization/{repo_id}.")


def file_sizes(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """Return the number of bytes of each file of an upload."""
    return {name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in files.items()}


def set_variables(api: Any, package: Package) -> None:
    """Tell a Space which model to load, where it does not know yet. The Space restarts for that."""
    there = api.get_space_variables(package.upload.repo_id)
    for key, value in package.variables.items():
        if key not in there or there[key].value != value:
            api.add_space_variable(package.upload.repo_id, key, value)


@dataclass(frozen=True)
class SelectedFiles:
    """Files that go to the Hub, by path there, and the rest of the folder, each with the reason."""

    files: dict[str, Path]
    left_out: dict[str, str]


def select_checkpoint_files(folder: Path) -> SelectedFiles:
    """Return the files of a checkpoint that go to the Hub, by an allow-list.

    Raises:
        FileNotFoundError: There is no such folder, or no checkpoint in it.
        PushError: It is not a whole DepthVLM checkpoint in safetensors with its processor, its chat template and this
            package's code; the message lists every problem.
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
    if own_family(config.get("model_type")) is None:
        raise PushError(
            f"{folder} has model_type {config.get('model_type')!r}, expected that of a DepthVLM. `depthvlm convert "
            f"{folder} NEW_FOLDER` writes it in DepthVLM's own layout."
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
    """Return the files of a PEFT adapter that go to the Hub, with the processor of the model that it is for.

    Raises:
        PushError: It is not a whole adapter in safetensors.
    """
    problems = [f"{name} is missing" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).is_file()]
    if not problems and (damage := _damage(folder / ADAPTER_WEIGHTS)):
        problems.append(damage)
    problems += _code_copies(folder, package_code())
    if problems:
        raise PushError(f"The adapter in {folder} cannot be pushed:\n" + "\n".join(f"  - {p}" for p in problems))
    return _select(folder, [ADAPTER_CONFIG, ADAPTER_WEIGHTS])


def _select(folder: Path, weights: Sequence[str]) -> SelectedFiles:
    config = folder / "config.json"
    model_type = _read_json(config).get("model_type") if config.is_file() else None
    names = [*weights, *REQUIRED, *OPTIONAL, *package_code(model_type)]
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
    """Check that the files lie in the folder: nobody means to publish what a link elsewhere points to.

    A snapshot in the Hub's cache may link to the cache's own blobs.

    Raises:
        PushError: Some lie elsewhere; the message names them.
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
def package_code(model_type: str | None = None) -> dict[str, Path]:
    """Return the package's modules that travel with a checkpoint, by file name: its `auto_map`s' and their imports.

    Args:
        model_type: That of the checkpoint; by default DepthVLM on Qwen3-VL.
    """
    from ... import modeling_depthvlm, processing

    auto_map = (own_family(model_type) or FAMILIES["qwen3_vl"]).auto_map
    names = [*auto_map.values(), "processing_depthvlm.DepthVLMProcessor", "image_processing_depthvlm.DepthVLM"]
    files: dict[str, Path] = {}
    for room in (modeling_depthvlm, processing):
        for name in names:
            root = Path(str(room.__file__)).with_name(f"{name.split('.')[0]}.py")
            if root.is_file():
                files |= {Path(file).name: Path(file) for file in [str(root), *get_relative_import_files(root)]}
    return dict(sorted(files.items()))


def _code_problems(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    family, code = own_family(config.get("model_type")), package_code(config.get("model_type"))
    if family is None or config.get("auto_map") != family.auto_map:
        yield "config.json has no `auto_map`, or another than this package's: it does not load as remote code"
    processor = folder / "processor_config.json"
    if processor.is_file() and "AutoProcessor" not in _read_json(processor).get("auto_map", {}):
        yield "processor_config.json has no `auto_map`: the processor does not load as remote code"
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "--" in str(list(_references(_read_json(folder / name)))):
            yield f"the `auto_map` of {name} names code of another repository"
    missing = [name for name in code if not (folder / name).is_file()]
    if missing:
        yield f"code that must travel with it is missing: {', '.join(missing)}"
    yield from _code_copies(folder, code)


def _code_copies(folder: Path, code: Mapping[str, Path]) -> Iterator[str]:
    for name, original in code.items():
        if (folder / name).is_file() and (folder / name).read_bytes() != original.read_bytes():
            yield f"{name} is not this package's file, byte for byte"


def _references(content: Any) -> Iterator[str]:
    """Yield the value of every `auto_map`, at whatever depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "auto_map":
                yield str(value)
            else:
                yield from _references(value)


def _weights(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of the weights, and what is wrong with them."""
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
