"""`depthvlm predict`: from the command's options to files."""

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import typer

from .failures import INTERRUPTED, explain, fail, printable
from .options import (
    Compile,
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
    UntrainedHead,
    at_revision,
    check_camera,
)

_CALIBRATION = "Known distances"
_RAY = "Millions of images (--engine ray)"
_CLIPS = "Clips (video files, and folders with --sequence)"


def predict(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Image files, folders of images, quoted patterns ('a/*.jpg'), or video files."
        ),
    ],
    model: Model = None,
    revision: Revision = None,
    token: Token = None,
    focal_length: FocalLength = None,
    fov: FieldOfView = None,
    intrinsics: Intrinsics = None,
    panorama: Annotated[
        bool,
        typer.Option(
            "--panorama", help="The images are equirectangular panoramas: predicted in views, in metres along the ray."
        ),
    ] = False,
    refine: Refine = 1,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Ask this about each image too; several times for several replies."),
    ] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for the results.")] = "depthvlm_results",
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Files to write, of png16 (to 1 mm, or 4 mm beyond 65 m; up to 256 m), npy (float32 metres, 4 bytes "
            "a pixel), color, json, ply (point cloud), glb (mesh), npz (with the camera), exr, pfm, normals, and with "
            "--refine spread.",
            show_default="png16,color,json",
        ),
    ] = None,
    save: Annotated[str | None, typer.Option(hidden=True)] = None,  # the earlier name of --formats
    device: Device = "auto",
    dtype: DType = "auto",
    compile: Compile = False,
    quantize: Quantize = None,
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
    known: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,METRES",
            help="A known distance at a position of the image in pixels, by which its depth is corrected; repeatable.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    lidar: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Known distances as three columns, x y metres: .csv, .txt or .npy; a folder of files named like the "
            "images.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Correction by known distances: scale, scale+shift (3 or more) or field (10 or more).",
            show_default="scale",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    along: Annotated[
        str,
        typer.Option(
            metavar="z|ray",
            help="Known distances are along the optical axis (z), or straight from the camera, as by laser (ray).",
            rich_help_panel=_CALIBRATION,
        ),
    ] = "z",
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
    steady: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Steady static points: average their depth with the frames before, and with N frames after (0: none).",
            rich_help_panel=_CLIPS,
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: on a Ray cluster, to shards of parquet; IMAGE may be parquet tables, URLs of object stores, and "
            "data sets on the Hub (owner/name).",
            rich_help_panel=_RAY,
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="The cluster; auto: this machine's.", rich_help_panel=_RAY),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes with the model.",
            show_default="one a GPU, or half the CPUs",
            rich_help_panel=_RAY,
        ),
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Images of a shard.", rich_help_panel=_RAY)] = 256,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column of the tables with images.",
            show_default="the only one",
            rich_help_panel=_RAY,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Split of a data set.", show_default="all", rich_help_panel=_RAY),
    ] = None,
) -> None:
    """Predict metric depth of images, with a point cloud, a mesh and the model's reply; and of video files, by frames.

    For real photographs, name the checkpoint that the paper's authors trained and published:

        depthvlm predict photo.jpg --model JonnyYu828/DepthVLM-4B

    It downloads 9 GB once and needs about 10 GB of memory in bfloat16. By default this uses nano, a toy model for
    rendered scenes.

    Without a camera option the focal length comes from an image's EXIF data, or is assumed, with a warning.
    Images and clips whose results are complete are skipped; files that depthvlm did not write are not replaced without
    --overwrite. The frames of a clip are predicted independently (but see --steady), with one camera and one range of
    colours: 16-bit PNGs, a side-by-side video and JSON. The exit code is 1 if any failed; the reasons come at the end.
    """
    from contextlib import nullcontext

    from ..camera_files import read_cameras
    from ..checkpoint import BUNDLED_MODEL, weights_identity
    from ..inputs import look_for_images, path_of_url, result_stems
    from ..prediction import DEFAULT_FORMATS, output_paths
    from ..refinement import views
    from ..result_records import prepared_folder
    from ..through_lens import PANORAMA
    from . import predict_clips, predict_images
    from .known_points import known_points
    from .predict_ray import check_engine, predict_ray
    from .predict_report import DiskFull, Report

    check_engine(context, engine)
    model = at_revision(model, revision)
    if engine == "ray":
        predict_ray(
            images,
            out,
            intrinsics,
            formats,
            focal_length=focal_length,
            fov=fov,
            model=model or BUNDLED_MODEL,
            device=device,
            dtype=dtype,
            allow_untrained_head=allow_untrained_head,
            batch_size=batch_size,
            max_image_pixels=max_image_pixels,
            address=address,
            workers=workers,
            shard_rows=shard_rows,
            image_column=image_column,
            split=split,
        )
        return
    folder = Path(out)
    prompts = list(dict.fromkeys(prompt or []))
    report = Report()
    check_camera(focal_length, fov, intrinsics, panorama)
    if save is not None:
        typer.secho("FutureWarning: --save is now --formats.", fg="yellow", err=True)
        formats = save if formats is None else formats
    parts = (part.strip() for part in (DEFAULT_FORMATS if formats is None else formats).split(","))
    chosen = list(dict.fromkeys(part for part in parts if part))
    try:
        output_paths(folder, "", chosen)
        for text in prompts:
            _check_prompt(text)
        clips, others = predict_clips.split_clips(images, sequence)
        found = look_for_images(others)
        of_patterns = [path for path in found.images if predict_clips.is_video(path)]
        clips += [path for path in of_patterns if isinstance(path, Path)]
        paths = [path for path in found.images if path not in of_patterns]
        if clips and prompts:
            raise ValueError("--prompt is for images: of a clip, only depth is predicted.")
        if clips and not paths and formats is not None:
            raise ValueError("--formats is for images: a clip gives 16-bit PNGs, a side-by-side video and JSON.")
        sources = [*paths, *clips]
        named = [one if isinstance(one, Path) else path_of_url(one) for one in sources]
        cameras = [] if intrinsics is None else read_cameras(intrinsics, named)
        lenses = [None if lens.is_pinhole else lens.to_dict() for lens in cameras]
        if clips and (panorama or any(lenses[len(paths) :])):
            raise ValueError("A clip needs a pinhole camera: undistort it first, or predict its frames as images.")
        views(refine, 1)
        if "spread" in chosen and refine == 1:
            raise ValueError("The format spread compares several views of an image: give --refine 2 or more.")
        if clips and refine > 1:
            raise ValueError("--refine is for images, not for clips.")
        if paths and steady is not None:
            raise ValueError(f"--steady is for clips, and {paths[0]} is an image: leave it out, or add --sequence.")
        if clips and (known or lidar):
            raise ValueError("--known and --lidar are for images, not for clips.")
        known_of = dict(zip(paths, known_points(known, lidar, calibrate, along, paths), strict=True))
    except (ValueError, ImportError) as error:
        raise fail(error, code=2) from None
    report.tell_of(found)
    pinholes = (lens.numbers if lens.is_pinhole else None for lens in cameras)
    camera_of = dict(zip(sources, pinholes, strict=bool(cameras)))
    lens_of = dict.fromkeys(sources, PANORAMA) if panorama else dict(zip(sources, lenses, strict=bool(cameras)))
    paths = predict_images.without_own_results([path for path in paths if report.is_readable(path)], folder)
    clips = [path for path in clips if path.is_dir() or report.is_readable(path)]
    if paths or clips:
        report.tell_failures()
    stems = result_stems([*paths, *clips])
    named_clips = list(zip(clips, stems[len(paths) :], strict=True))
    name = model or BUNDLED_MODEL
    settings = predict_images.Settings(
        model=name,
        weights=weights_identity(name) if paths or clips else "",
        dtype=dtype if quantize is None else f"{dtype}, {quantize}",
        cameras=[
            {"focal_length": focal_length, "fov": fov, "intrinsics": camera_of.get(path)}
            | ({"camera": lens_of[path]} if lens_of.get(path) else {})
            for path in paths
        ],
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        max_image_pixels=max_image_pixels,
        formats=chosen,
        overwrite=overwrite,
        known=[known_of[path] for path in paths],
        refine=refine,
    )
    jobs = predict_images.plan(paths, stems[: len(paths)], folder, settings)
    report.tell_what_is_there(jobs, overwrite)
    todo = [job for job in jobs if job.is_due]
    predict_clips.check_clips(named_clips, folder, overwrite)
    load = cache(lambda: report.load(model, device, dtype, allow_untrained_head, compile, quantize))
    if todo or clips:
        _check_options(device, dtype, focal_length, fov)
    try:
        with prepared_folder(folder) if todo or clips else nullcontext(), report.warnings():
            if todo:
                report.predict_all(load(), todo, settings, batch_size)
            for clip, stem in named_clips:
                camera = (focal_length, fov, camera_of.get(clip))
                predict_clips.predict_clip(
                    clip,
                    predict_clips.ClipFiles.of(folder, stem),
                    predict_clips.ClipSettings(*camera, every, max_frames, steady),
                    fps,
                    overwrite,
                    report,
                    model=name,
                    weights=settings.weights,
                    load=load,
                    depth_range=depth_range,
                    batch_size=batch_size,
                )
    except KeyboardInterrupt:
        total = len(todo) + len(clips)
        report.console.print(
            f"Interrupted: {report.done} of {total} files done, results in {printable(folder)}. Run it again to go on."
        )
        raise typer.Exit(INTERRUPTED) from None
    except DiskFull as error:
        report.console.print(f"Stopped: {explain(error.reason)} Run it again to go on.", style="red")
    report.sum_up(folder, [*found.images, *clips])
    if report.failed:
        raise typer.Exit(1)


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError("--prompt is empty: give a question or an instruction.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError("--prompt holds bytes that are no text: give it in the console's encoding.")
    if special := re.search(r"<\|[a-z_]+\|>", prompt):
        raise ValueError(f"--prompt holds {special[0]}, a mark that is the model's own: leave it out.")


def _check_options(device: str, dtype: str, focal_length: float | None, fov: float | None) -> None:
    """Raise ValueError for what would be refused once the model is loaded."""
    from ..loading import pick_device, pick_dtype
    from ..processing.camera_depthvlm import cameras_per_image

    pick_device(device)
    pick_dtype(dtype)
    cameras_per_image(1, focal_length=focal_length, fov=fov)
