"""`depthvlm measure`: how far the objects are that a description names."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .failures import fail, printable
from .options import (
    Device,
    DType,
    FieldOfView,
    FocalLength,
    Intrinsics,
    Model,
    Quantize,
    Refine,
    Revision,
    Token,
    at_revision,
    check_camera,
)

_MOST_SHOWN = 500  # characters of a reply without a box
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def measure(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file or a URL.")],
    what: Annotated[str, typer.Argument(metavar="TEXT", help="The object, such as 'the red chair' or 'all windows'.")],
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    focal_length: FocalLength = None,
    fov: FieldOfView = None,
    intrinsics: Intrinsics = None,
    refine: Refine = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw boxes and distances into the image: .png or .jpg.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: objects, reply, camera.")] = False,
    device: Device = "auto",
    dtype: DType = "auto",
    quantize: Quantize = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Greatest length of the model's reply.")] = 1024,
) -> None:
    """Measure how far the objects are that a description names: boxes in the model's words, metres in its depth.

        depthvlm measure photo.jpg "the red chair" --model JonnyYu828/DepthVLM-4B --out measured.png

    The distance is from the camera in a straight line, the median over the object, with its interquartile range. The
    bundled nano cannot find objects by their names. Without a camera option the focal length comes from the image's
    EXIF data, or is assumed, with a warning.
    """
    if out is not None and out.suffix.lower() not in _PICTURES:
        raise fail(f"--out is a picture, .png or .jpg, got {out}.", code=2)
    if out is not None and os.path.lexists(out) and not overwrite:
        raise fail(f"{out} is there already: give another --out, or --overwrite.", code=2)
    check_camera(focal_length, fov, intrinsics)

    from rich.console import Console
    from rich.table import Table

    from .. import grounding
    from ..camera_files import read_cameras
    from ..files import atomic_write
    from ..inputs import is_url, path_of_url
    from .predict_report import Report

    style: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}
    report = Report()
    report.console = Console(stderr=True, **style)  # what is asked for goes to stdout, all else does not
    name = path_of_url(image) if is_url(image) else Path(image)
    try:
        camera = None if intrinsics is None else read_cameras(intrinsics, [name])[0]
    except ValueError as error:
        raise fail(error, code=2) from None
    with report.warnings():
        loaded = report.load(at_revision(model, revision), device, dtype, False, quantize=quantize)
        cameras: dict[str, Any] = {"focal_length": focal_length, "fov": fov, "camera": camera}
        found = grounding.measure(image, what, loaded, max_new_tokens=max_new_tokens, refine=refine, **cameras)
    prediction = found.prediction
    if as_json:
        typer.echo(json.dumps(found.record(), indent=2, ensure_ascii=False))
    else:
        console = Console(**style)
        table = Table("object", "distance", "spread", "z-depth", "box (left, top, right, bottom)", "share of it")
        for one in found.objects:
            numbers = f"{one.distance:.2f} m", f"{one.spread:.2f} m", f"{one.depth:.2f} m"
            table.add_row(
                printable(one.label), *numbers, ", ".join(f"{edge:.0f}" for edge in one.box), f"{one.share:.0%}"
            )
        if found.objects:
            console.print(table)
        else:
            console.print(f"No box in the reply: {printable((prediction.text or '')[:_MOST_SHOWN])}")
        console.print(f"Focal length {prediction.camera.fx:.1f} px ({prediction.camera.source}).")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            found.picture().save(file, format=_PICTURES[out.suffix.lower()])
        typer.echo(f"Written to {printable(out)}", err=True)
