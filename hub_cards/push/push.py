"""What `depthvlm push` sends: a checkpoint, a build of the benchmark, the demo or the metric, each with its card."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..._bundled import BUNDLED_MODEL, hub_name_problem
from .files import ADAPTER_CONFIG, STALE_WEIGHTS, PushError, refuse_links_out, select_checkpoint_files
from .upload import Upload

CARD = "README.md"
SPACE_MODEL_VARIABLE = "DEPTHVLM_MODEL"  # which model the Space's app loads


@dataclass(frozen=True)
class Package:
    """
    What is to be pushed, whole and checked but for the proof.

    Args:
        upload: the files, the card among them, and where they go.
        card: the text of README.md.
        left_out: what lies beside the files and stays here, each with the reason.
        prove: loads the files in fresh processes; returns what was found, or raises [`PushError`].
        variables: of a Space.
    """

    upload: Upload
    card: str
    left_out: Mapping[str, str]
    prove: Callable[[], str]
    variables: Mapping[str, str] = field(default_factory=dict)


def pack_checkpoint(
    checkpoint: Path, repo_id: str, results: Sequence[Path] = (), license: str | None = None
) -> Package:
    """
    A checkpoint with its model card.

    Args:
        checkpoint: its folder.
        repo_id: "user/name".
        results: of `depthvlm bench eval`, for the card.
        license: of the weights, a key of the Hub; by default what is known of them.

    Raises:
        FileNotFoundError: there is no checkpoint, or no such result.
        PushError: the name or the checkpoint is not as it must be; the message says all that is wrong.
    """
    from ..cards.model_card import make_model_card
    from .prove import prove_model

    check_repo_id(repo_id)
    selected = select_checkpoint_files(checkpoint)
    card = str(make_model_card(checkpoint, repo_id, results, license=license))
    return Package(
        model_upload(selected.files, repo_id, card), card, selected.left_out, lambda: prove_model(selected.files)
    )


def model_upload(files: Mapping[str, Path], repo_id: str, card: str) -> Upload:
    """The upload of a checkpoint's files; weights that they replace go, and an adapter in the repository is refused."""
    return Upload(
        repo_id,
        "model",
        {**files, CARD: card.encode()},
        stale=STALE_WEIGHTS,
        refused={ADAPTER_CONFIG: "transformers would put that adapter on top of this model"},
    )


def adapter_upload(files: Mapping[str, Path], repo_id: str, card: str) -> Upload:
    """The upload of an adapter's files; a repository that holds a whole model is refused."""
    refused = dict.fromkeys(STALE_WEIGHTS[::2], "transformers would put this adapter on top of that model")
    return Upload(repo_id, "model", {**files, CARD: card.encode()}, refused=refused)


def pack_build(build: Path, repo_id: str) -> Package:
    """
    A folder of `depthvlm bench build` with its data set card. The bytes of every shard are compared with the manifest.

    Raises:
        FileNotFoundError: there is no such folder.
        PushError: the name is none, no build is finished there, or a shard is not what the manifest says.
    """
    from ...benchmark.build.manifest import MANIFEST
    from ...benchmark.build.shard_writer import BuildError
    from ...benchmark.build.shards import finished_builds, shard_paths
    from ..cards.dataset_card import make_dataset_card, restricted_sources
    from .prove import prove_dataset

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
    return Package(upload, card, left_out, lambda: prove_dataset(everything))


def pack_space(model_id: str, repo_id: str) -> Package:
    """
    The demo's Space for a model that is on the Hub: its app, its requirements with this version of the package, and
    its card.

    Raises:
        PushError: one of the two names is none of the Hub's (the bundled model's may do without an owner).
        ImportError: Gradio is not installed, whose version the card names.
    """
    from ..cards.space_card import make_space_card

    check_repo_id(repo_id)
    if model_id != BUNDLED_MODEL:
        check_repo_id(model_id, "the model that the Space shows")
    room = resources.files("depthvlm.hub_cards.space")
    app = (room / "app.py").read_bytes()
    pin = rf"\g<1>=={version('depthvlm')}"
    requirements = re.sub(r"(?m)^(depthvlm(?:\[[^\]]*\])?).*$", pin, (room / "requirements.txt").read_text("utf-8"))
    card = str(make_space_card(model_id, repo_id))
    files: dict[str, Path | bytes] = {"app.py": app, "requirements.txt": requirements.encode(), CARD: card.encode()}

    def prove() -> str:
        ast.parse(app)
        return "is the demo of this package (`depthvlm demo` runs the same); nothing else was tried"

    variables = {} if model_id == BUNDLED_MODEL else {SPACE_MODEL_VARIABLE: model_id}
    return Package(Upload(repo_id, "space", files), card, {}, prove, variables)


def pack_metric(repo_id: str) -> Package:
    """
    The metric's Space, from which `evaluate.load("user/depth_metrics")` takes the module, with its card.

    Raises:
        PushError: the name is none of the Hub's, or another than the module's.
        ImportError: Gradio is not installed, whose version the card names.
    """
    from ..cards.metric_card import METRIC, metric_files
    from .prove import prove_metric

    check_repo_id(repo_id)
    try:
        files = metric_files(repo_id)
    except ValueError as error:
        raise PushError(str(error)) from None
    upload = Upload(repo_id, "space", files)
    return Package(upload, files[CARD].decode(), {}, lambda: prove_metric(files, f"{METRIC}.py"))


def check_repo_id(repo_id: str, what: str = "--repo") -> None:
    """
    Raises:
        PushError: it is not "user/name" as the Hub has names.
    """
    if problem := hub_name_problem(repo_id):
        raise PushError(f"{what} is {repo_id!r}, which is no name on the Hub: {problem}")
    if "/" not in repo_id:
        raise PushError(f"{what} is {repo_id!r}, expected the owner too: user/{repo_id} or organization/{repo_id}.")


def file_sizes(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """Bytes of each file of an upload."""
    return {name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in files.items()}


def set_variables(api: Any, package: Package) -> None:
    """Tell a Space which model to load, where it does not know yet. It starts again for that."""
    there = api.get_space_variables(package.upload.repo_id)
    for key, value in package.variables.items():
        if key not in there or there[key].value != value:
            api.add_space_variable(package.upload.repo_id, key, value)
