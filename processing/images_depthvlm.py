# Copyright 2026 The DepthVLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From whatever a user calls an image to upright 8-bit RGB pixels, with its EXIF data read before they are lost."""

import base64
import binascii
import io
import os
import warnings
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import get_session
from PIL import Image, UnidentifiedImageError
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from .exif_depthvlm import ORIENTATIONS, exif_orientation, read_exif

WHAT_TO_PASS = "Pass a path, a URL, base64 text, a PIL image, an array or a tensor."


def open_image(source: str | os.PathLike) -> Image.Image:
    """
    Opens a path, a URL (`http://`, `https://`) or base64 text. Unlike `transformers.image_utils.load_image` it keeps
    the EXIF data, and pixels of more than 8 bits as they are.

    Raises:
        FileNotFoundError: if there is no such file, and the text is not base64 of an image either.
        ValueError: if the file is empty, truncated or not an image that Pillow knows.
    """
    name = os.fspath(source)
    label = name if len(name) <= 200 else f"{name[:60]}... ({len(name)} characters)"
    if name.startswith(("http://", "https://")):
        response = get_session().get(name, follow_redirects=True)
        response.raise_for_status()
        stream: Any = io.BytesIO(response.content)
    elif os.path.isfile(name):
        stream = name
    else:
        try:
            stream = io.BytesIO(base64.b64decode("".join(name.split(",")[-1].split()), validate=True))
        except binascii.Error:
            raise FileNotFoundError(f"There is no image file {label!r}. {WHAT_TO_PASS}") from None
    try:
        image = Image.open(stream)
        image.load()
    except UnidentifiedImageError:
        if not isinstance(stream, str) and not name.startswith(("http", "data:")):  # a file name can look like base64
            raise FileNotFoundError(f"There is no image file {label!r}. {WHAT_TO_PASS}") from None
        raise ValueError(f"{label} is not an image that Pillow can read. Convert it to PNG or JPEG.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The image {label} cannot be decoded, it may be truncated: {error}.") from error
    return image


def upright_image(image: Any, index: int, input_data_format: Any = None) -> tuple[Image.Image, Image.Exif | None]:
    """
    The pixels of one image and its EXIF data.

    A PIL image is turned as its EXIF orientation says, transparency is composited onto white, 16-bit values are
    divided by 257, so that 65535 becomes 255. An array or a tensor holds 8-bit values (0 to 255, of any type), 16-bit
    values (`uint16`), booleans, or floats in 0 to 1; one, three or four channels, first or last, or none.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The image.
        index (`int`): Its number, for messages.
        input_data_format (`ChannelDimension`, *optional*): Where the channels of an array are, inferred by default.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Exif | None]`: the picture, of mode RGB, and the EXIF data.

    Raises:
        ValueError: for an image without pixels, or values that are not of one of these ranges.

    Warns if the EXIF data are corrupt: they are then ignored.
    """
    exif = None
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width, index)
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"Image {index} cannot be decoded, it may be truncated: {error}.") from error
        try:
            exif = read_exif(image)
        except ValueError as error:
            warnings.warn(f"Image {index}: its EXIF data are corrupt and ignored ({error}).", stacklevel=2)
        turn = ORIENTATIONS.get(exif_orientation(exif))
        image = _pil_to_rgb(image if turn is None else image.transpose(turn), index)
    else:
        image = _array_to_rgb(image, index, input_data_format)
    return image, exif


def _check_size(height: int, width: int, index: int) -> None:
    if min(height, width) < 2:
        raise ValueError(
            f"Image {index} has {width}x{height} pixels (width x height). An image needs at least 2 pixels on a side; "
            "check how it was read or cropped."
        )


def _pil_to_rgb(image: Image.Image, index: int) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image), index)).convert("RGB")
    try:
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"Image {index} is of Pillow mode {image.mode!r}, which Pillow cannot convert to RGB ({error}). Pass it "
            "as RGB."
        ) from error


def _array_to_rgb(image: np.ndarray | torch.Tensor, index: int, input_data_format: Any) -> Image.Image:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        # numpy has no bfloat16
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        data_format = input_data_format or infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        array = np.moveaxis(array, 0, -1) if data_format == ChannelDimension.FIRST else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"Image {index} is an array of shape {tuple(array.shape)}. Pass (H, W), (H, W, C) or (C, H, W) with 1, 3 "
            "or 4 channels."
        )
    _check_size(array.shape[0], array.shape[1], index)
    array = _to_8_bit(array, index)
    return _pil_to_rgb(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), index)


def _to_8_bit(array: np.ndarray, index: int) -> np.ndarray:
    """Values as uint8: 16-bit ones divided by 257, floats of 0 to 1 multiplied by 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.isfinite(array).all():
        raise ValueError(f"Image {index} has pixels that are NaN or infinite. An image needs finite values.")
    low, high = float(array.min()), float(array.max())
    if low >= 0:
        if np.issubdtype(array.dtype, np.floating):
            if high <= 1:
                return np.rint(array * 255).astype(np.uint8)
            if high <= 255:
                return np.rint(array).astype(np.uint8)
        elif array.dtype.itemsize == 2 and array.dtype.kind == "u":
            return np.rint(array / 257).astype(np.uint8)
        elif high <= 255:
            return array.astype(np.uint8)
        elif high <= 65535:
            # Pillow reads 16-bit PGM and TIFF files as 32-bit integers.
            return np.rint(array / 257).astype(np.uint8)
    raise ValueError(
        f"Image {index} has values from {low:g} to {high:g} ({array.dtype}). An image needs 0 to 255, 16 bits, or "
        "floats in 0 to 1; undo any normalisation before the processor."
    )
