"""Prediction of pictures through lenses: each is cut into pinhole views, and their metres are brought back."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from .lens import Lens
from .lens_views import cut_view, lens_views, merge_views
from .prediction import Prediction
from .processing.camera_depthvlm import Base, camera_of_picture, exif_orientation, per_image
from .processing.images_depthvlm import FULL_SIZE_KEY, open_image, upright_image

PANORAMA = "equirectangular"


def lens_per_image(camera: Any, count: int, given: Mapping[str, list[Any]]) -> list[Lens | str | None]:
    """Return the checked `camera` of each image.

    Args:
        camera: A [`Lens`], or `"equirectangular"`, for all images, or a list with one, or None, for each.
        count: Number of images.
        given: `intrinsics`, `focal_length` and `fov` of each image; those of a pinhole lens are added.

    Raises:
        ValueError: A value is neither, their number differs from that of the images, or another option names the
            camera of the same image.
    """
    lenses = per_image(camera, count, "camera")
    for index, lens in enumerate(lenses):
        if lens is not None and not isinstance(lens, Lens) and lens != PANORAMA:
            raise ValueError(f"`camera` must be a depthvlm.Lens or {PANORAMA!r}, got {lens!r}.")
        if lens is not None and (named := [name for name, values in given.items() if values[index] is not None]):
            raise ValueError(f"`camera` and `{named[0]}` both name the camera of image {index}: give one of them.")
        if isinstance(lens, Lens) and lens.is_pinhole:
            given["intrinsics"][index], lenses[index] = lens.numbers, None
    return lenses


def predict_through_lenses(
    predictor: Any,
    items: Sequence[Any],
    lenses: Sequence[Lens | str | None],
    given: Mapping[str, list[Any]],
    options: Mapping[str, Any],
    on_error: Callable[[int, Exception], None],
) -> Iterator[tuple[int, Prediction]]:
    """Predict images of which some have a lens.

    Args:
        predictor: A `DepthPredictor`.
        items: The images.
        lenses: The lens of each, or None for a pinhole.
        given: `intrinsics`, `focal_length` and `fov` of each.
        options: The other options of `predict_iter`.
        on_error: Called with an image's number and its error.

    Yields:
        The image's number and its prediction.
    """
    pinholes = [index for index, lens in enumerate(lenses) if lens is None]
    if pinholes:
        cameras = {name: [values[index] for index in pinholes] for name, values in given.items()}
        known = {name: values for name, values in cameras.items() if any(value is not None for value in values)}
        for position, prediction in predictor.predict_iter(
            [items[index] for index in pinholes],
            on_error=lambda position, error: on_error(pinholes[position], error),
            **known,
            **options,
        ):
            yield pinholes[position], prediction
    for index, lens in enumerate(lenses):
        if lens is not None:
            try:
                item = items[index]
                name = str(item)[:200] if isinstance(item, (str, PathLike)) else f"Image {index}"
                prediction = _predict(predictor, item, lens, name, options)
            except Exception as error:  # as `predict_iter` does with whatever an image raises
                on_error(index, error)
            else:
                yield index, prediction


def _predict(predictor: Any, item: Any, lens: Lens | str, name: str, options: Mapping[str, Any]) -> Prediction:
    picture, lens = _upright(item, lens, name, options["max_image_pixels"])
    views = lens_views(lens)
    if len(views) > 1 and options["prompt"] is not None:
        raise ValueError(
            f"A `prompt` is for pictures that the model sees in one piece: this one goes {lens.largest_angle:.0f} "
            f"degrees from its axis and is cut into {len(views)} views. Ask about a part of it."
        )
    predictions = predictor.predict(
        [cut_view(picture, lens, view) for view in views], intrinsics=[view.camera for view in views], **options
    )
    depth = merge_views(lens, views, [prediction.depth for prediction in predictions])
    spread = None
    if options["refine"] > 1:
        # Merging averages logarithms, so that of what a spread adds to them is the mean of the spreads.
        upper = [prediction.depth * np.exp(prediction.spread) for prediction in predictions]
        spread = np.log(merge_views(lens, views, upper) / depth)
    return replace(predictions[0], depth=depth, camera=lens, image=picture, spread=spread)


def _upright(item: Any, lens: Lens | str, name: str, max_image_pixels: int) -> tuple[Image.Image, Lens]:
    """Return the upright picture, and its lens at its size."""
    picture, exif = upright_image(open_image(item, max_image_pixels), name)
    width, height = picture.info.get(FULL_SIZE_KEY, picture.size)
    if isinstance(lens, str):
        lens = _panorama(exif, width, height)
    # The size of the picture as given, and the orientation that its size tells, are those of `intrinsics`.
    orientation = exif_orientation(exif)
    camera = camera_of_picture(lens.numbers, width, height, orientation, name)
    stored_wide = None if lens.width is None or lens.height is None else lens.width > lens.height
    turned = orientation >= 5 and stored_wide is not None and stored_wide != (width > height)
    if turned and lens.model == PANORAMA:
        raise ValueError(
            f"A panorama cannot be turned by a quarter, and {name} has the EXIF orientation {orientation}."
        )
    distortion = _turned(lens, orientation) if turned else lens.distortion
    lens = Lens(camera.fx, camera.fy, camera.cx, camera.cy, distortion, lens.model, width, height, lens.source)
    return picture, lens.scaled_to(*picture.size)


def _turned(lens: Lens, orientation: int) -> tuple[float, ...]:
    """Return the coefficients for the upright picture: (p2, p1) is a vector that turns with it, the rest stays."""
    if lens.model != "opencv":
        return lens.distortion
    k1, k2, p1, p2, *rest = lens.distortion
    across = p1 if orientation in (5, 8) else -p1
    down = p2 if orientation in (5, 6) else -p2
    return (k1, k2, down, across, *rest)


def _panorama(exif: Image.Exif | None, width: int, height: int) -> Lens:
    """Return the lens of an equirectangular picture: the whole sphere, or the part that its GPano data say.

    Source: Google's "Photo Sphere XMP Metadata", whose full panorama is 360 x 180 degrees.
    """
    xmp = b"" if exif is None else exif.get(Base.XMLPacket, b"")
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    found = dict(re.findall(r"GPano:((?:FullPano|CroppedArea)\w+)\s*(?:=\s*[\"']|>)\s*(\d+)", text))
    full, cropped = ([int(found.get(f"{name}{side}Pixels", 0)) for side in ("Width", "Height")] for name in _AREAS)
    if not all(full) or not all(cropped) or full == cropped:
        return Lens.panorama(width, height)
    whole = Lens.panorama(full[0], full[1])
    left, top = (int(found[f"CroppedArea{side}Pixels"]) for side in ("Left", "Top"))
    part = replace(whole, cx=whole.cx - left, cy=whole.cy - top, width=cropped[0], height=cropped[1])
    return part.scaled_to(width, height)


_AREAS = ("FullPano", "CroppedAreaImage")
