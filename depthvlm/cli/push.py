"""`depthvlm push`: from the command's options to a commit on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import INTERRUPTED, expected_failures, fail

if TYPE_CHECKING:
    from rich.console import Console

    from ..hub_cards.push.package import Package
    from ..hub_cards.push.upload import Changes


@expected_failures()
def push(
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="The repository; made if it is not there.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder of a checkpoint; with --dataset of a bench build; with --space the Hub name of a model; "
            "none with --metric.",
            show_default=False,
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Argument(hidden=True),  # what a shell makes of --results results/*/*/*.json, but for its first file
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Commit to this branch, made if need be.", show_default="main"),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request; needs no right to write.")
    ] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE...", help="Results of `bench eval` for the card, one or more."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="KEY", help="Licence of the weights for the card, as the Hub names it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, show the files and the card, and contact nobody.")
    ] = False,
    dataset: Annotated[bool, typer.Option("--dataset", help="Push a folder of `bench build` as a data set.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Push the demo of a model on the Hub as a Space.")] = False,
    metric: Annotated[
        bool, typer.Option("--metric", help="Push the metric as the Space from which `evaluate` loads it.")
    ] = False,
) -> None:
    """Put a checkpoint on the Hub: proved first, in one commit or none, compared afterwards.

    Files of the repository that are not the checkpoint's stay. An interrupted upload goes on when called again.
    """
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    source, files = _told_apart([source, *(more or [])] if source else [], bool(results))
    results = [*(results or []), *files]
    kinds = [name for name, chosen in {"dataset": dataset, "space": space, "metric": metric}.items() if chosen]
    if len(kinds) > 1:
        raise fail(f"--{' and --'.join(kinds)} are different things to push: choose one.", code=2)
    if kinds and (results or license):
        raise fail("--results and --license are for the card of a checkpoint.", code=2)
    if metric and source is not None:
        raise fail(f"--metric pushes this package's own, and takes nothing else: leave {source} out.", code=2)
    if not metric and source is None:
        raise fail("Name what to push: the folder of a checkpoint, or see `depthvlm push --help`.", code=2)
    try:
        package = _pack(source, repo, results, license, *kinds)
        _show(package, console)
        if dry_run:
            console.print(f"The {package.upload.repo_type} {package.prove()}.")
            console.print(f"\n--- README.md ---\n{package.card.rstrip()}\n--- end of README.md ---")
            console.print("\nDry run: nothing was sent.")
            return
        _send(package, console, private=private, revision=revision, create_pr=create_pr)
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was committed. Run the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None


def _told_apart(arguments: list[str], has_results: bool) -> tuple[str | None, list[Path]]:
    """Return the one argument that is no JSON file, and the JSON files, which belong to --results."""
    files = [Path(argument) for argument in arguments if argument.lower().endswith(".json")]
    others = [argument for argument in arguments if not argument.lower().endswith(".json")]
    if files and not has_results:
        raise fail(f"{files[0]} is no checkpoint. Results for its card follow --results.", code=2)
    if len(others) > 1:
        raise fail(f"One thing is pushed at a time, got {' and '.join(others)}.", code=2)
    return (others[0] if others else None), files


def _pack(source: str | None, repo: str, results: list[Path], license: str | None, kind: str = "model") -> Package:
    from ..checkpoint import BUNDLED_MODEL, bundled_model_path
    from ..hub_cards.push.package import pack_build, pack_checkpoint, pack_metric, pack_space

    if source is None:
        return pack_metric(repo)
    if kind == "space":
        return pack_space(source, repo)
    if kind == "dataset":
        return pack_build(Path(source), repo)
    checkpoint = bundled_model_path() if source == BUNDLED_MODEL else Path(source)
    return pack_checkpoint(checkpoint, repo, results, license)


def _send(package: Package, console: Console, *, private: bool, revision: str | None, create_pr: bool) -> None:
    from ..hub_cards.push.package import set_variables
    from ..hub_cards.push.upload import Hub

    upload = package.upload
    hub = Hub()  # a token that does not do is found before the proof, which takes longer
    console.print(f"Writing to {hub.api.endpoint} as {hub.user}.")
    console.print(f"The {upload.repo_type} {package.prove()}.")
    pushed = hub.push(
        upload,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=f"Upload {upload.repo_type} with depthvlm push",
        on_changes=lambda changes: _tell(changes, upload.repo_id, console),
    )
    if not pushed.committed:
        console.print(f"All is there already, in {pushed.info.commit_url}")
    else:
        console.print(f"{len(upload.files)} files are on the Hub, and their hashes are those of the files here.")
        pull_request = pushed.info.pr_url
        console.print(f"Pull request: {pull_request}" if pull_request else f"Commit: {pushed.info.commit_url}")
    if package.variables and not create_pr:
        set_variables(hub.api, package)


def _show(package: Package, console: Console) -> None:
    from rich.filesize import decimal
    from rich.table import Table

    from ..hub_cards.push.package import file_sizes

    upload = package.upload
    sizes = file_sizes(upload.files)
    table = Table("file", "size", box=None, pad_edge=False, title=f"{upload.repo_type} {upload.repo_id}")
    table.columns[1].justify = "right"
    for name, size in sorted(sizes.items()):
        table.add_row(name, decimal(size))
    table.add_row(f"{len(sizes)} files", decimal(sum(sizes.values())))
    console.print(table)
    for name, reason in package.left_out.items():
        console.print(f"Left out: {name} ({reason})")


def _tell(changes: Changes, repo_id: str, console: Console) -> None:
    console.print(f"{repo_id}: {len(changes.new)} new files, {len(changes.unchanged)} as they are there already.")
    for what, names in {"Replaced": changes.replaced, "Removed": changes.removed, "Kept": changes.kept}.items():
        if names:
            console.print(f"{what}: {', '.join(names)}")
