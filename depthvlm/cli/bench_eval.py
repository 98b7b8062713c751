"""`depthvlm bench list` and `depthvlm bench eval`: systems, and one of them on the sets of a build under a protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .failures import expected_failures, fail, printable
from .options import UntrainedHead, named_values

if TYPE_CHECKING:
    from ..benchmark.systems import System

# Options on which no answer depends: a run may go on with others.
_INCIDENTAL = {
    *("device", "batch_size", "cache", "concurrency", "requests_per_minute", "timeout", "max_retries"),
    *("input_price", "output_price", "max_cost", "api_key_env"),
    *("token", "cache_dir", "local_files_only", "force_download", "proxies"),
}


@expected_failures()
def evaluate(
    predictor: Annotated[str, typer.Option("--predictor", "-p", help="A row of `depthvlm bench list`, or nano.")],
    data: Annotated[
        Path,
        typer.Option("--data", "-d", help="Folder of `depthvlm bench build`, or a .parquet file of rows that train."),
    ],
    protocol: Annotated[str, typer.Option(help="depthvlm, depthvlm-published, depthlm, dense, nyu-eigen, ...")] = (
        "depthvlm"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.")] = Path("results"),
    source: Annotated[list[str] | None, typer.Option(help="Score these sets only; repeat it for more.")] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images of one size at once, at most.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Score so many images of each set; the result says so.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the predictor, such as dtype=bfloat16; repeat it.")
    ] = None,
    allow_untrained_head: UntrainedHead = False,
    change: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the protocol, such as alignment=median; repeat it.")
    ] = None,
    consistency: Annotated[
        bool,
        typer.Option(
            "--consistency",
            help="Under a dense protocol, predict each picture at three more sizes and mirrored: 5 times the cost.",
        ),
    ] = False,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Unpacked ibims1_core_mat.zip, for the planes and edges of ibims1."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="boundary_f1, boundary_f1_released or point_cloud_f_score, under a dense protocol; repeat it."
        ),
    ] = None,
) -> None:
    """Score a depth model or VLM on DepthVLM-Bench.

    Interrupted, it goes on when called again. Under `accelerate launch -m depthvlm bench eval ...` every process scores
    its part. Results are kept as JSON, with one line per image; `depthvlm bench report` shows them.
    """
    try:
        from accelerate import PartialState

        from ..benchmark.scoring.consistency import CONSISTENCY
        from ..benchmark.scoring.eval_sets import open_sets
        from ..benchmark.scoring.protocols import get_protocol
        from ..benchmark.scoring.results import check_writable
        from ..benchmark.scoring.runner import LoadedSystem
        from ..benchmark.scoring.runner import evaluate as run
        from ..benchmark.systems import find_system, make_predictor
    except ImportError as error:
        raise fail(f'{error}. The benchmark needs its extra: pip install "depthvlm[bench]"', code=2) from None

    options = named_values(option, "--option") | ({"allow_untrained_head": True} if allow_untrained_head else {})
    with expected_failures(code=2):
        chosen = get_protocol(protocol, **named_values(change, "--change"))
        row = find_system(predictor)
        sets = open_sets(data, split, tuple(source or ()))
        if masks is not None and (chosen.points is not None or not any(one.source == "ibims1" for one in sets)):
            raise ValueError("--masks is for the set ibims1 under a protocol of whole maps, such as --protocol dense.")
        check_writable(out)
        loaded: Any = make_predictor(predictor, **options)
    answering = {name: value for name, value in (dict(row.kwargs) | options).items() if name not in _INCIDENTAL}
    system = LoadedSystem(predictor, loaded.name, loaded, answering)
    wanted = (*(metric or ()), *((CONSISTENCY,) if consistency else ()))
    results = []
    kept = "What was scored is kept: the same command goes on."
    try:
        with expected_failures(note=kept, interrupted=f"Interrupted. {kept}"):
            for one in sets:
                result = run(system, one, chosen, out, batch_size, limit, wanted, masks)
                if result is not None:
                    results.append(result)
    finally:
        loaded.close()
        PartialState().destroy_process_group()  # a process that ends with its group alive may abort on the way out
    if results:
        _print(results)
        where = printable(out)
        Console(soft_wrap=True, highlight=False, markup=False).print(
            f"Results in {where}. See them beside the paper's: depthvlm bench report {where}"
        )


def _print(results: Sequence[Any]) -> None:
    table = Table("set", "images", "delta1", "95 %", "abs_rel", "failures", title=f"{results[0].name}")
    table.caption = f"protocol {results[0].protocol['name']} ({results[0].protocol['hash']})"
    for result in results:
        low, high = result.confidence["delta1"]
        scores = result.metrics[result.protocol["aggregation"]]
        abs_rel = f"{scores['abs_rel']:.4f}" if "abs_rel" in scores else "-"
        images = f"{result.done}" if result.complete else f"{result.done} of {result.images}, partial"
        table.add_row(
            f"{result.dataset} {result.split}",
            images,
            f"{scores['delta1']:.4f}",
            f"{low:.4f} to {high:.4f}",
            abs_rel,
            str(result.failures),
        )
    Console().print(table)


def list_systems(console: Console | None = None) -> None:
    """Print systems and sources. Nothing is loaded, and nothing is asked of the network."""
    from ..benchmark.sources import source_class, source_names
    from ..benchmark.systems import PREFIXES, SYSTEMS, can_run

    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:  # a file or a pipe has no width: 80 columns would fold every cell
            console.width = 200
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    for title in ("system", "kind", "tables", "needs", "runs here"):
        table.add_column(title, overflow="fold")
    for key, system in SYSTEMS.items():
        able, remark = can_run(system)
        here = f"{'yes' if able else 'no'}: {remark}" if remark else "yes"
        tables = ", ".join(map(str, system.tables)) or "-"
        table.add_row(key, escape(system.name), system.kind, tables, _needs(system), escape(here))
    console.print(table)
    console.print(
        "\nTables: of the paper. Table 3's scores come from lmms-eval (docs/lmms_eval.md), not from `bench eval`.",
        soft_wrap=True,
    )
    console.print("\nBesides:")
    for prefix in PREFIXES.values():
        console.print(f"  {prefix}", soft_wrap=True)
    console.print("\nSources of data, for `depthvlm bench build`:")
    sources = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("source", "dataset", "splits", "metres", "licence"):
        sources.add_column(title, overflow="fold")
    for key in source_names():
        source = source_class(key)
        low, high = source.depth_range
        sources.add_row(key, source.title, ", ".join(source.splits), f"{low:g} to {high:g}", escape(source.licence))
    console.print(sources)


def _needs(system: "System") -> str:
    """Return packages, environment variables, options and GPU memory of a system, in a few words."""
    requirement = system.requirement
    parts = [*requirement.packages, *requirement.environment, *(f"{name}=" for name in system.required_options)]
    if requirement.gpu_gib:
        parts.append(f"GPU {requirement.gpu_gib:.0f} GiB")
    return ", ".join(parts) or "-"
