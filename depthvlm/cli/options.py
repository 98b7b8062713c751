"""Options that several commands share."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .failures import fail


def _use_token(token: str | None) -> None:
    """Make this process and its children use the token for the Hub."""
    if token:
        os.environ["HF_TOKEN"] = token


def _known_scheme(scheme: str | None) -> str | None:
    if scheme not in (None, "int8", "int4"):
        raise typer.BadParameter(f"{scheme!r} is neither int8 nor int4.")
    return scheme


Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub name of a model.", show_default="the bundled depthvlm-nano"),
]
Device = Annotated[str, typer.Option(help="cuda, mps or cpu; auto: the first that is there.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: the model's own.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the layers for depth, on CUDA into CUDA graphs: a wait at each new size of picture, then faster.",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="int8|int4",
        help="Weights in 8 or 4 bits, by bitsandbytes.",
        show_default="as stored",
        callback=_known_scheme,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a model on the Hub; MODEL@REV says the same."),
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        help="For a private or gated model; by default HF_TOKEN, or the one of `hf auth login`.",
        callback=_use_token,
    ),
]
FocalLength = Annotated[float | None, typer.Option(metavar="PX", help="Focal length in pixels of the image as given.")]
FieldOfView = Annotated[float | None, typer.Option(metavar="DEG", help="Horizontal field of view in degrees.")]
Intrinsics = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Camera file: 3x3 matrix, or fx fy cx cy, in pixels (.json, .npy or text), or one of OpenCV, ROS, "
        "RealSense, Record3D, ARKit, COLMAP, nerfstudio, KITTI or ScanNet. For one camera an image: a .json file "
        "with cameras by the images' names, or a folder of files named like the images.",
    ),
]
Refine = Annotated[
    int, typer.Option(metavar="N", help="Average the depth of N views of each image, each at the cost of one.")
]
UntrainedHead = Annotated[
    bool,
    typer.Option("--allow-untrained-head", help="Also load a depth head that was never trained: one metre everywhere."),
]


def at_revision(model: str | None, revision: str | None) -> str | None:
    """Return `model@revision`.

    Raises:
        BadParameter: There is a revision and no model.
    """
    if revision is None:
        return model
    if model is None:
        raise typer.BadParameter("A revision is that of a model: name the model too.", param_hint="--revision")
    return f"{model}@{revision}"


def check_camera(
    focal_length: float | None, fov: float | None, intrinsics: Path | None, panorama: bool = False
) -> None:
    """End the command if more than one option names the camera.

    Raises:
        typer.Exit: Two or more of them are given.
    """
    options = {"--focal-length": focal_length, "--fov": fov, "--intrinsics": intrinsics, "--panorama": panorama or None}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise fail(f"{' and '.join(given)} both name the camera: give one of them.", code=2)


def named_values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` by name: parsed as JSON if possible (a number, true, a list), else text.

    Args:
        given: The texts.
        option: Name of the option, for the message.

    Raises:
        typer.Exit: A text does not have that form.
    """
    values: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise fail(f"{option} takes NAME=VALUE, got {text!r}.", code=2)
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
