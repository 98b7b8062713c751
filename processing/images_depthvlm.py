# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Images from any source as upright 8-bit RGB pixels, with EXIF data read before they are lost."""

import base64
import io
import os
import stat
import threading
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from huggingface_hub.utils import get_session
from PIL import Image, UnidentifiedImageError

from .camera_depthvlm import ORIENTATIONS, exif_orientation, read_exif, warn

WHAT_TO_PASS = "Pass a path, a URL, bytes, base64 text, a PIL image, an array or a tensor."

# The only formats that are ever opened: plain pixels, no documents that need an interpreter.
RASTER_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "QOI"),
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# Phones write 200 million pixels; a larger image may be an attack on memory.
MAX_IMAGE_PIXELS = 250_000_000

# Larger images are read at 1/2, 1/4 or 1/8 of their size: a model sees 3 million pixels at most.
REDUCED_ABOVE = 64_000_000
FULL_SIZE_KEY = "depthvlm_full_size"
"""The key of `PIL.Image.Image.info` with the width and height of an image that `open_image` has reduced."""

FLOAT_RANGES = ((1, 2), (255, 280))
INTEGER_RANGES = ((255, 280), (65535, 65535))
STRAY_SHARE = 0.01

_PILLOW_LIMIT = threading.Lock()


def raster_suffixes() -> tuple[str, ...]:
    """Return the suffixes of readable image files, in lower case and with the dot."""
    known = Image.registered_extensions().items()
    return tuple(dict.fromkeys([*(suffix for suffix, name in known if name in RASTER_FORMATS), *HEIF_SUFFIXES]))


def require_file(path: str | os.PathLike) -> None:
    """Raise FileNotFoundError if there is no such file, ValueError if it is a folder, a pipe or a device."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {os.fspath(path)}.") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)} is not a file but a folder, a pipe or a device.")


def open_raster(source: Any, name: str | None = None, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open an image of one of [`RASTER_FORMATS`] without decoding its pixels. Use it instead of `PIL.Image.open`.

    Args:
        source: A path, bytes or a binary stream.
        name: Its name in messages; its path by default.
        max_pixels: Largest number of pixels.

    Returns:
        The image, to be closed or decoded by the caller.

    Raises:
        FileNotFoundError: There is no such file.
        PIL.UnidentifiedImageError: It has none of these formats.
        ValueError: It is not a regular file, has more pixels, or is a HEIC image and `pillow-heif` is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        require_file(source)
        name = name or os.fspath(source)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, source = name or f"an image of {len(source)} bytes", io.BytesIO(source)
    name = name or str(getattr(source, "name", "the image"))
    image = _identify(source, name)
    if image.width * image.height > max_pixels:
        image.close()
        raise ValueError(
            f"{name} has {image.width}x{image.height} pixels (width x height), more than the {max_pixels:,} that are "
            "read, since so large an image may be an attack. Make it smaller, or raise "
            "`max_image_pixels` (`--max-image-pixels`)."
        )
    return image


def _identify(source: Any, name: str) -> Image.Image:
    Image.init()
    formats = [one for one in RASTER_FORMATS if one in Image.OPEN]
    try:
        # Pillow's own pixel limit cannot be passed in a call, and is lower than what phones write.
        with _PILLOW_LIMIT:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(source, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except UnidentifiedImageError:
        if "HEIF" in formats or not _is_heif(source):
            raise UnidentifiedImageError(
                f"{name} is not an image that can be read. Convert it to PNG or JPEG."
            ) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever corrupt bytes lead them to
        raise ValueError(f"The image {name} cannot be read, it may be damaged: {error}.") from error
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError(
            f'{name} is a HEIC image, which needs pillow-heif: `pip install "depthvlm[heic]"`, or convert it to JPEG.'
        ) from None
    register_heif_opener()
    return _identify(source, name)


def _is_heif(source: Any) -> bool:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            start = stream.read(12)
    else:
        source.seek(0)
        start = source.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


def image_list(images: Any) -> Sequence[Any]:
    """Return one image or many as a sequence: lists and columns unchanged, other iterables read, batches split."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    single = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, Image.Image)
    if isinstance(images, single) or hasattr(images, "read"):
        return [images]
    if isinstance(images, Sequence):  # columns of `datasets` decode on access
        return images
    return list(images) if isinstance(images, Iterable) else [images]


def open_image(source: Any, max_pixels: int = MAX_IMAGE_PIXELS, reduce: bool = True) -> Any:
    """Open and decode an image; keep its EXIF data and pixels of more than 8 bits.

    Args:
        source: A path (`~` is the home folder), a URL (`http://`, `https://`, `file://`, `data:`), base64 text, bytes,
            a binary stream, or `{"bytes": ..., "path": ...}` as in `datasets`. Pixels (a PIL image, an array, a
            tensor) are returned unchanged.
        max_pixels: Pixels that it may have.
        reduce: Read an image of more than 64 million pixels at 1/2, 1/4 or 1/8 of its size. Its original size is then
            kept, and cameras refer to it.

    Raises:
        FileNotFoundError: There is no such file, and the text is not a base64 image either.
        OSError: A URL cannot be fetched.
        ValueError: The file is empty, truncated or too large, or not an image that can be read.
    """
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            keys = sorted(map(str, source))
            raise ValueError(
                f'An image must have "bytes" or a "path", got {keys}. Of a data set pass its image column.'
            )
        source = path if data is None else data
    if isinstance(source, (str, os.PathLike)):
        source, label, guessed = _locate(os.fspath(source))
    elif isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read"):
        label, guessed = None, False
    else:
        return source
    try:
        image = open_raster(source, label, max_pixels)
    except UnidentifiedImageError:
        if guessed:  # a file name can look like base64
            raise FileNotFoundError(f"There is no image file {label!r}. {WHAT_TO_PASS}") from None
        raise ValueError(f"{label or 'It'} is not an image that can be read. Convert it to PNG or JPEG.") from None
    factor = 1
    while reduce and factor < 8 and image.width * image.height > REDUCED_ABOVE * factor**2:
        factor *= 2
    full_size = image.size
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # JPEG only, while decoding
    load_pixels(image, f"The image {label}" if label else "The image")
    if factor > 1:
        image = _reduced(image, (-(-full_size[0] // factor), -(-full_size[1] // factor)))
        image.info[FULL_SIZE_KEY] = full_size
        warn(
            f"{label or 'An image'} has {full_size[0]}x{full_size[1]} pixels (width x height) and is read at "
            f"{image.width}x{image.height}: its results are of that size.",
            stacklevel=2,
        )
    return image


def local_path(source: Any) -> str | None:
    """Return the local path for a path, a `file://` URL or `~/name`; None for any other source."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    name = os.fspath(source)
    if name[:5].lower() == "file:":
        return urllib.request.url2pathname(urlsplit(name).path)
    return next((path for path in (name, os.path.expanduser(name)) if os.path.exists(path)), None)


def _locate(name: str) -> tuple[Any, str, bool]:
    """Return the source to open, its name, and whether it was taken for base64 text because no such file exists."""
    label = name if len(name) <= 200 else f"{name[:60]}... ({len(name)} characters)"
    scheme = name.partition(":")[0].lower()
    if scheme in ("http", "https"):
        try:
            response = get_session().get(name, follow_redirects=True)
            response.raise_for_status()
        except Exception as error:  # from the HTTP library, which varies
            raise OSError(f"{label} cannot be fetched: {error}") from error
        return response.content, label, False
    if scheme == "data":
        try:
            with urllib.request.urlopen(name) as response:
                return response.read(), label, False
        except ValueError as error:
            raise ValueError(f"{label} is not a data URL: {error}.") from error
    path = local_path(name)
    if path is not None:
        return path, label, False
    if "://" in name:
        raise ValueError(f"{label}: images are read from http://, https:// and file:// URLs. Download it first.")
    try:
        return base64.b64decode("".join(name.split()), validate=True), label, True
    except ValueError:  # also of names with other characters than ASCII
        raise FileNotFoundError(f"There is no image file {label!r}. {WHAT_TO_PASS}") from None


def load_pixels(image: Image.Image, label: str) -> None:
    """Decode an opened image in place. Raise ValueError if it is damaged or not in [`RASTER_FORMATS`]."""
    if image.format is not None and image.format not in RASTER_FORMATS:
        raise ValueError(f"{label} is of the format {image.format}, which is not read. Convert it to PNG.")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever corrupt bytes lead them to
        raise ValueError(f"{label} cannot be decoded, it may be truncated: {error}.") from error


def _reduced(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    try:
        exif = read_exif(image)
    except ValueError:  # `upright_image` warns about it
        exif = None
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    image = image if image.size == size else image.resize(size, Image.Resampling.BOX)
    if exif is not None:  # a TIFF keeps it elsewhere
        image.info.setdefault("exif", exif.tobytes())
    return image


def upright_image(
    image: Any, name: str = "The image", input_data_format: Any = None
) -> tuple[Image.Image, Image.Exif | None]:
    """Return the pixels of an image, upright and in mode RGB, and its EXIF data.

    A PIL image is rotated according to its EXIF orientation; transparency is composited onto white. An array or a
    tensor has one, three or four channels, first or last, or none. Its type determines the range of its values: `uint8`
    0 to 255, `uint16` 0 to 65535, booleans. Floats are 0 to 1 unless more than 1 % of them exceed 2, then 0 to 255;
    other integers are 0 to 255 unless more than 1 % of them exceed 280, then 0 to 65535. Values out of range are
    clipped, with a warning. Corrupt EXIF data are ignored, with a warning.

    Args:
        image: A PIL image, an array or a tensor.
        name: Its name in messages.
        input_data_format: Position of an array's channels (`ChannelDimension`), inferred by default.

    Raises:
        ValueError: The image has no pixels, or values in none of these ranges.
    """
    exif = None
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width, name)
        load_pixels(image, name)
        try:
            exif = read_exif(image)
        except ValueError as error:
            warn(f"{name}: its EXIF data are corrupt and ignored ({error}).", stacklevel=2)
        orientation, full_size = exif_orientation(exif), image.info.get(FULL_SIZE_KEY)
        turn = ORIENTATIONS.get(orientation)
        image = _pil_to_rgb(image if turn is None else image.transpose(turn), name)
        if full_size is not None:
            image.info[FULL_SIZE_KEY] = full_size[::-1] if orientation >= 5 else full_size
    else:
        image = _array_to_rgb(image, name, input_data_format)
    return image, exif


def _check_size(height: int, width: int, name: str) -> None:
    if min(height, width) < 2:
        raise ValueError(
            f"{name} has {width}x{height} pixels (width x height). An image needs at least 2 pixels on a side; "
            "check how it was read or cropped."
        )


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(np.asarray(image), name)).convert("RGB")
    try:
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"{name} is of Pillow mode {image.mode!r}, which Pillow cannot convert to RGB ({error}). Pass it as RGB."
        ) from error


def _array_to_rgb(image: np.ndarray | torch.Tensor, name: str, input_data_format: Any) -> Image.Image:
    is_tensor = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        # numpy has no bfloat16
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
        # If both are possible: tensors have their channels first, arrays last.
        is_first = first and (is_tensor or not last)
        if input_data_format is not None:
            is_first = input_data_format == "channels_first"
        array = np.moveaxis(array, 0, -1) if is_first else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} is an array of shape {tuple(array.shape)}. Pass (H, W), (H, W, C) or (C, H, W) with 1, 3 "
            "or 4 channels."
        )
    _check_size(array.shape[0], array.shape[1], name)
    array = _to_8_bit(array, name)
    return _pil_to_rgb(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), name)


def _to_8_bit(array: np.ndarray, name: str) -> np.ndarray:
    """Return values as uint8: see [`upright_image`] for the rule."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return np.rint(array / 257).astype(np.uint8)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has pixels that are NaN or infinite. An image needs finite values.")
    low, high = float(array.min()), float(array.max())
    # White, and the limit that at most 1 % of the values may exceed: filters and brightening overshoot.
    ranges = FLOAT_RANGES if np.issubdtype(array.dtype, np.floating) else INTEGER_RANGES
    white = next((top for top, limit in ranges if np.count_nonzero(array > limit) <= STRAY_SHARE * array.size), None)
    if white is None or np.count_nonzero(array < -0.05 * white) > STRAY_SHARE * array.size:
        raise ValueError(
            f"{name} has values from {low:g} to {high:g} ({array.dtype}). An image needs 0 to 255, 16 bits, or "
            "floats in 0 to 1; undo any normalisation before the processor."
        )
    if low < 0 or high > white:
        stray = np.count_nonzero((array < 0) | (array > white)) / array.size
        warn(
            f"{name} has {array.dtype} values from {low:g} to {high:g}. By most of them it is taken for a "
            f"picture of 0 to {white:g}, and the {stray:.2%} beyond are clipped.",
            stacklevel=2,
        )
        array = array.clip(0, white)
    return np.rint(array * (255 / white)).astype(np.uint8)
