"""From an upload, which may be anything, to a picture with its camera, or to words that say what is wrong."""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image, UnidentifiedImageError

from ...processing import Camera, resolve_camera
from ...processing.camera_depthvlm import exif_orientation, read_exif
from .limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP")  # decoders with a C library that is kept well; no vector or document format
FORMATS_TEXT = "JPEG, PNG or WebP"


def photo_input(**kwargs: Any) -> gr.Image:
    """Gradio's image component, but handing over the file as it was uploaded, EXIF data and all, without opening it."""
    component = gr.Image(type="filepath", image_mode=None, **kwargs)

    def path_of(payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path

    # On the object: Gradio writes a stub file next to the source of every subclass of a component.
    vars(component).update(preprocess=path_of)
    return component


def open_upload(path: str, limits: Limits) -> Image.Image:
    """The picture of an upload. Its size is checked before its pixels are decoded.

    Raises:
        ValueError: it is not a picture of one of `FORMATS`, is too large, or cannot be decoded.
    """
    image = _open_header(path, limits)
    try:
        image.load()
    except (
        OSError,
        SyntaxError,
        ValueError,
        MemoryError,
    ):  # Pillow's words may quote the file: keep them out of a page
        raise ValueError("This picture cannot be decoded: it may be damaged.") from None
    return image


def camera_of(path: str, focal_length: float | None, limits: Limits) -> Camera:
    """The camera of an upload, from its header alone: `focal_length` in pixels if given, else EXIF data, else assumed.

    A focal length that is that of the EXIF data, or the assumed one, to a tenth of a pixel, was not typed.

    Raises:
        ValueError: as in `open_upload`, or the focal length is not a positive number.
    """
    image = _open_header(path, limits)
    try:
        exif = read_exif(image)
    except ValueError:  # corrupt: said when the picture is measured
        exif = None
    turned = exif_orientation(exif) >= 5
    size = (image.width, image.height) if turned else (image.height, image.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the page shows the source instead
        known = resolve_camera(size, exif)
        if focal_length is None or math.isclose(focal_length, known.fx, abs_tol=0.1):
            return known
        return resolve_camera(size, exif, focal_length=focal_length)


def describe_camera(camera: Camera) -> str:
    """Where the focal length comes from, for people."""
    sources = {
        "exif": "from the picture's EXIF data",
        "focal_length": "typed",
        "assumed": "<b>assumed</b>, since the picture does not say: if it is wrong, all distances are wrong by one "
        "factor. Type the right one",
    }
    text = f"{sources[camera.source]}; {camera.fov:.0f}° across {camera.width} pixels"
    if camera.fov > 150:
        text += ". <b>No such lens exists</b>: the focal length must be in pixels, not in millimetres"
    return f"<span data-source='{camera.source}'>Focal length: {text}.</span>"


def result_stem(path: str) -> str:
    """What the downloads are called: the upload's own name, in plain letters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_")[:60] or "picture"


def _open_header(path: str, limits: Limits) -> Image.Image:
    if not os.path.isfile(path):
        raise ValueError("This picture is kept no longer. Give it again.")
    if os.path.getsize(path) > limits.file_bytes:
        raise ValueError(f"This file is larger than {limits.file_bytes / 2**20:g} MB, the most that is taken here.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            image: Any = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"This is not a picture that can be read here. Give a {FORMATS_TEXT} file.") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_many_pixels("more than 178 million", limits)) from None
    except (OSError, SyntaxError, ValueError):
        raise ValueError("This picture cannot be read: it may be damaged.") from None
    if image.width * image.height > limits.image_pixels:
        raise ValueError(_too_many_pixels(f"{image.width}x{image.height}", limits))
    return image


def _too_many_pixels(size: str, limits: Limits) -> str:
    return f"This picture has {size} pixels; at most {limits.image_pixels / 1e6:g} million are taken. Make it smaller."
