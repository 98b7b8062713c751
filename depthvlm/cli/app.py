"""The `depthvlm` command. Everything heavy is imported inside the commands, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from .bench_build import build, inspect
from .bench_eval import evaluate
from .bench_report import report
from .export import onnx
from .failures import Commands, print_any_name
from .hub_options import Revision, Token, UntrainedHead, at_revision
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
app.command()(push)
export = typer.Typer(name="export", help="Write parts of a model in other formats.", no_args_is_help=True)
export.command()(onnx)
app.add_typer(export)

_CLIPS = "Clips (video files, and folders with --sequence)"


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


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Image files, folders of images, quoted patterns ('a/*.jpg'), or video files."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub name of a model.", show_default="the bundled depthvlm-nano"),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    focal_length: Annotated[
        float | None, typer.Option(metavar="PX", help="Focal length in pixels of the image as given.")
    ] = None,
    fov: Annotated[float | None, typer.Option(metavar="DEG", help="Horizontal field of view in degrees.")] = None,
    intrinsics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="3x3 matrix, or fx fy cx cy, in pixels: .json, .npy or text. For a camera each: a .json file with "
            "them by the images' names, or a folder of files called as the images.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Ask this about each image too; several times for several replies."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("depthvlm_results"),
    save: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What to write, of png16 (to 1 mm, or 4 mm beyond 65 m; up to 256 m), npy (float32 metres, 4 bytes a "
            "pixel), color, json, ply (point cloud) and glb (mesh).",
            show_default="png16,color,json",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, mps or cpu; auto: the first that is there.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: the model's own.")] = "auto",
    allow_untrained_head: UntrainedHead = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Greatest length of the reply to --prompt.")] = 256,
    max_image_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images; those above 64 million are read at half their size.")
    ] = 250_000_000,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Redo what is complete, and replace files that depthvlm did not write."),
    ] = False,
    sequence: Annotated[
        bool,
        typer.Option("--sequence", help="Each folder is one clip: its images are frames.", rich_help_panel=_CLIPS),
    ] = False,
    depth_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="NEAR FAR",
            help="Metres of the first and last colour. By default percentiles 1 and 99 of the clip.",
            rich_help_panel=_CLIPS,
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th frame.", rich_help_panel=_CLIPS)] = 1,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Take at most that many frames.", rich_help_panel=_CLIPS)
    ] = None,
    fps: Annotated[
        float, typer.Option(help="Frames a second of a folder; a video has its own.", rich_help_panel=_CLIPS)
    ] = 30.0,
) -> None:
    """Metric depth of images, with a point cloud, a mesh and the model's reply; and of video files, frame by frame.

    For real photographs, name the checkpoint that the paper's authors trained and published:

        depthvlm predict photo.jpg --model JonnyYu828/DepthVLM-4B

    It downloads 9 GB once and needs about 10 GB of memory in bfloat16. By default this uses nano, a toy model for
    rendered scenes.

    Without a camera option the focal length comes from an image's EXIF data, or is assumed, with a warning.
    Images and clips whose results are complete are skipped; files that depthvlm did not write are not replaced without
    --overwrite. The frames of a clip are predicted independently, with one camera and one range of colours: 16-bit
    PNGs, a side-by-side video and JSON. The exit code is 1 if any failed; the reasons come at the end.
    """
    from .predict import run

    run(
        images,
        model=at_revision(model, revision),
        focal_length=focal_length,
        fov=fov,
        intrinsics=intrinsics,
        prompts=prompt or [],
        out=out,
        save=save,
        device=device,
        dtype=dtype,
        allow_untrained_head=allow_untrained_head,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_image_pixels=max_image_pixels,
        overwrite=overwrite,
        sequence=sequence,
        depth_range=depth_range,
        every=every,
        max_frames=max_frames,
        fps=fps,
    )


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sft(context: typer.Context) -> None:
    """Fine-tune on text and depth: every option and YAML key of `trl sft`, and depth's own (`depthvlm sft --help`)."""
    from .sft import run

    run(context.args)


@bench.command("list")
def bench_list() -> None:
    """Every system of the paper: what its row needs, and whether it can run here; and the sources of data."""
    from .bench_list import run

    run()


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder or Hub name: published layout, plain Qwen3-VL, or an adapter."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.")],
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write a checkpoint in DepthVLM's own layout, which the Auto classes load. An adapter is merged into its model."""
    from ..convert import convert_checkpoint

    typer.echo(f"Written to {convert_checkpoint(str(at_revision(source, revision)), destination)}")


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub name of a model.", show_default="the bundled depthvlm-nano"),
    ] = None,
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
    device: Annotated[str, typer.Option(help="cuda, mps or cpu; auto: the first that is there.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: the model's own.")] = "auto",
    allow_untrained_head: UntrainedHead = False,
) -> None:
    """A page in the browser: depth, distances, the scene in 3D, and a chat about the picture."""
    from .demo import run

    run(
        at_revision(model, revision),
        host=host,
        port=port,
        share=share,
        allowed_hosts=allowed_host or [],
        device=device,
        dtype=dtype,
        allow_untrained_head=allow_untrained_head,
    )


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder or Hub name of a model; its weights are not loaded."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Versions, devices, and what a model or an adapter is made of."""
    from .info import run

    run(at_revision(model, revision))


def main() -> None:
    """Run the command."""
    print_any_name()
    app()
