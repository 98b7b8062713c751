"""The `depthvlm` command. Everything heavy is imported inside the commands, so that `--help` answers at once."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .bench_build import build, inspect
from .bench_eval import evaluate, list_systems
from .bench_report import report
from .failures import Commands, fail, print_any_name, printable
from .measure import measure
from .options import Compile, Device, DType, Model, Quantize, Revision, Token, UntrainedHead, at_revision
from .predict import predict
from .push import push

app = typer.Typer(
    name="depthvlm",
    help="Dense metric depth inside a vision-language model: metres and words from one prefill.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=Commands,
)
bench = typer.Typer(
    name="bench",
    help="DepthVLM-Bench: build its data, score any depth model or VLM on it, and print the paper's tables.",
    no_args_is_help=True,
)
bench.command()(build)
bench.command()(inspect)
bench.command("eval")(evaluate)
bench.command()(report)
app.add_typer(bench)
app.command()(predict)
app.command()(measure)
app.command()(push)
export = typer.Typer(name="export", help="Write parts of a model in other formats.", no_args_is_help=True)
app.add_typer(export)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"depthvlm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sft(context: typer.Context) -> None:
    """Fine-tune on text and depth: every option and YAML key of `trl sft`, and depth's own (`depthvlm sft --help`)."""
    from .sft import run

    run(context.args)


@bench.command("list")
def bench_list() -> None:
    """List every system of the paper, what it needs, and whether it can run here; and the sources of data."""
    list_systems()


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder or Hub name: published layout, plain backbone, or an adapter."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.")],
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a checkpoint in DepthVLM's own layout, which the Auto classes load. An adapter is merged into its model."""
    from ..convert import convert_checkpoint

    typer.echo(f"Written to {convert_checkpoint(str(at_revision(source, revision)), destination)}")


@export.command()
def onnx(
    model: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hub name of a model; 'depthvlm-nano': the bundled.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("depth_head.onnx"),
    revision: Revision = None,
    token: Token = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the depth head as ONNX, for any size of image and batch, and check it with onnxruntime.

    The vision-language model in front of it stays in PyTorch: the file turns its visual tokens into metres.
    """
    if out.is_dir():
        raise fail(f"{out} is a folder: give --out the file to write, such as {out / 'depth_head.onnx'}.", code=2)
    if os.path.lexists(out) and not overwrite:
        raise fail(f"{out} is there already: give another --out, or --overwrite.", code=2)

    from ..onnx_export import TOLERANCE, export_depth_head

    export = export_depth_head(str(at_revision(model, revision)), out)
    typer.echo(f"Written to {printable(export.path)}: {export.size / 1e6:.1f} MB")
    for name, value in export.metadata.items():
        typer.echo(f"  {name}: {value}")
    typer.echo(
        f"Greatest relative difference from PyTorch in onnxruntime: {export.largest_error:.1e} "
        f"(allowed: {TOLERANCE:g})."
    )


@app.command()
def demo(
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on.", show_default="the first free one from 7860"),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Also open a public link through Gradio's servers.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that the page also answers to, such as a proxy's. Can be repeated.", metavar="NAME"),
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    compile: Compile = False,
    quantize: Quantize = None,
    allow_untrained_head: UntrainedHead = False,
) -> None:
    """Open a page in the browser: depth, distances, the scene in 3D, and a chat about the picture."""
    if find_spec("gradio") is None:
        raise fail('The demo needs Gradio, which is not installed: `pip install "depthvlm[demo]"`.')
    from ..checkpoint import BUNDLED_MODEL, BUNDLED_MODEL_NOTE
    from ..hub_cards.space.server import launch

    if model is None:
        typer.secho(f"Model: {BUNDLED_MODEL_NOTE} (choose another with --model).", fg="yellow")
    if share:
        typer.secho("--share: everyone who has the public link can use this machine through the demo.", fg="yellow")
    launch(
        at_revision(model, revision) or BUNDLED_MODEL,
        device=device,
        dtype=dtype,
        compile=compile,
        quantize=quantize,
        allow_untrained_head=allow_untrained_head,
        host=host,
        port=port,
        share=share,
        allowed_hosts=allowed_host or [],
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub name; 'depthvlm-nano': the bundled.")],
    words: Annotated[
        bool, typer.Option("--words", help="Serve words (chat completions) instead of depth (POST /pooling).")
    ] = False,
    revision: Revision = None,
) -> None:
    """Serve depth or words with vLLM. Other options are vLLM's: `--port`, `--dtype`, `--tensor-parallel-size`, ..."""
    if find_spec("vllm") is None:
        raise fail('Serving needs vLLM, which is not installed: `pip install "depthvlm[vllm]"`.')
    from ..serving.command import vllm_command, vllm_environment

    command = vllm_command(str(at_revision(model, revision)), words, context.args)
    os.execve(command[0], command, vllm_environment())


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder or Hub name of a model; its weights are not loaded."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Print versions, devices, and the parts of a model or an adapter."""
    from .info import run

    run(at_revision(model, revision))


def main() -> None:
    """Run the command."""
    print_any_name()
    app()
