"""`depthvlm export onnx`: the depth head of a checkpoint as an ONNX file."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .failures import expected_failures, fail, printable
from .hub_options import Revision, Token, at_revision


@expected_failures()
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
