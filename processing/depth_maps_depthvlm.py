# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Depth maps in common storage formats, read into metres, and the labels made from them."""

import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .camera_depthvlm import per_image
from .images_depthvlm import MAX_IMAGE_PIXELS, local_path, open_raster, require_file

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".pgm", ".pfm")
ARRAY_SUFFIXES = (".npy", ".npz", ".exr")
EXR_MAGIC = b"\x76\x2f\x31\x01"
ARRAY_MAGIC = (b"\x93NUMPY", b"PK", EXR_MAGIC)

# A map and its image may differ this much in aspect ratio, because resized sides are rounded.
ASPECT_TOLERANCE = 0.02

# No real map has half of its pixels nearer than this, in metres.
NEAREST_MEDIAN = 0.05

# The tEXt key for the number of units per metre in a 16-bit PNG of this package.
PNG_SCALE_KEY = "depth_scale"


def read_depth(depth: Any, scale: float | None = None) -> np.ndarray:
    """Read a depth map into metres.

    Args:
        depth: The path of a PNG, TIFF, PGM, PFM, OpenEXR, `.npy` or `.npz` file, its bytes, `{"bytes", "path"}` as
            in `datasets`, a PIL image of one channel, or an array (masked or not) or a tensor of shape `(H, W)`,
            `(1, H, W)` or `(H, W, 1)`. Of an `.npz` the array `depth` is read, or the only one; of OpenEXR the channel
            `Z` (also of a layer, as in `ViewLayer.Depth.Z`), or the only one.
        scale: Raw value divided by metres, 1000 for millimetres. Integer maps need it, unless a PNG has it in its
            metadata under `depth_scale`; floating-point maps are in metres without it. If a scale would bring the
            median of a floating-point map below 5 cm, it is ignored with a warning: the map is in metres.

    Returns:
        `(H, W)` float32: z-depth in metres, 0 where not valid (0, negative, NaN, infinite, masked).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a depth map, the map has no single channel, or an integer map has no scale.
    """
    name, stored_scale = "The depth map", None
    if isinstance(depth, Mapping):
        depth = depth.get("path") if depth.get("bytes") is None else depth["bytes"]
    if isinstance(depth, (str, os.PathLike)):
        name = f"The depth map {os.fspath(depth)}"
        depth = _open(Path(local_path(depth) or depth), name)
    elif isinstance(depth, (bytes, bytearray)):
        depth = _decode(bytes(depth), name, depth.startswith(ARRAY_MAGIC))
    if isinstance(depth, Image.Image):
        stored_scale = depth.info.get(PNG_SCALE_KEY)
        depth = _pil_to_array(depth, name)
    elif isinstance(depth, torch.Tensor):
        depth = depth.detach().cpu()
        depth = (depth.float() if depth.dtype in (torch.bfloat16, torch.float16) else depth).numpy()
    if isinstance(depth, np.ma.MaskedArray):
        depth = depth.filled(0)
    if not isinstance(depth, np.ndarray):
        raise ValueError(
            f"{name} must be a path, bytes, a PIL image, an array or a tensor, got {type(depth).__name__}."
        )
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[2]):
        depth = depth.squeeze(0 if depth.shape[0] == 1 else 2)
    if depth.ndim != 2 or depth.size == 0:
        raise ValueError(f"{name} must have the shape (H, W), got {tuple(depth.shape)}.")

    integer = np.issubdtype(depth.dtype, np.integer)
    if not integer and not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"{name} must hold integers or floats, got {depth.dtype}.")
    scale = _scale(scale, stored_scale, name)
    if integer and scale is None:
        raise ValueError(
            f"{name} holds integers ({depth.dtype}), whose unit is not known. Pass `depth_scale`, the number of units "
            "in a metre: 1000 for millimetres, 256 for KITTI."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        if not integer and scale is not None and scale != 1:
            scale = _scale_of_floats(depth, scale, name)
        metres = (depth if scale is None else depth / np.float64(scale)).astype(np.float32)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def depth_labels(
    depth_maps: Any,
    depth_scale: Any,
    image_sizes: Sequence[tuple[int, int]],
    input_sizes: Sequence[tuple[int, int]],
    image_names: Sequence[str] | None = None,
) -> list[torch.Tensor | None]:
    """Return the `depth_labels` of a batch of images, in metres; `focal_scale` converts predictions to metres too.

    A map keeps its own resolution, to which the loss resizes the prediction, so no lidar point is lost. Only a map with
    more valid pixels than the model's input has pixels is reduced to the input's size, see [`reduce_depth`]. A map
    without valid pixels causes a warning.

    Args:
        depth_maps: One map, or a list with one, or None, for every image: see [`read_depth`].
        depth_scale: One scale, or a list with one, or None, for every image.
        image_sizes: `(height, width)` of the images as given, upright, in pixels.
        input_sizes: `(height, width)` of the model's inputs, in pixels.
        image_names: Names of the images in messages; their numbers by default.

    Returns:
        `(H, W)` float32 in metres, 0 where not valid, or None, for every image.

    Raises:
        ValueError: The numbers of maps and images differ, or a map does not have its image's shape.
    """
    count = len(image_sizes)
    labels: list[torch.Tensor | None] = [None] * count
    if isinstance(depth_maps, (np.ndarray, torch.Tensor)):
        depth_maps = list(depth_maps) if depth_maps.ndim == 3 and len(depth_maps) == count else [depth_maps]
    depth_maps = per_image(depth_maps if isinstance(depth_maps, (list, tuple)) else [depth_maps], count, "depth_maps")
    scales = per_image(depth_scale, count, "depth_scale")
    for index, depth_map in enumerate(depth_maps):
        if depth_map is None:
            continue
        depth = read_depth(depth_map, scales[index])
        name = image_names[index] if image_names else f"image {index}"
        _check_aspect(depth.shape, image_sizes[index], name)
        valid = int(np.count_nonzero(depth))
        if valid == 0:
            warnings.warn(
                f"The depth map of {name} has no valid pixel, so it teaches nothing. Check its file and its "
                "scale; 0, negative, NaN and infinite values are invalid.",
                stacklevel=2,
            )
        height, width = input_sizes[index]
        label = torch.from_numpy(depth)
        if valid > height * width and depth.shape[0] >= height and depth.shape[1] >= width:
            label = reduce_depth(label, height, width)
        labels[index] = label
    return labels


def reduce_depth(depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Reduce a map to fewer pixels: each takes the valid measurement nearest to its centre within its own area.

    An average would mix the depths on both sides of an edge into one that does not occur in the scene, and the smallest
    depth of an area would draw slanted surfaces towards the camera. Here every value is a measured one, and every area
    with a valid pixel gets one.

    Args:
        depth: `(H, W)`, 0 where not valid.
        height: Rows of the result, at most `H`.
        width: Columns of the result, at most `W`.
    """
    rows, columns = depth.shape
    # Pixel centres, in units of the result's pixels.
    across = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns
    down = (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows
    centre_rows = ((torch.arange(height) + 0.5) * rows / height).long()
    centre_columns = ((torch.arange(width) + 0.5) * columns / width).long()
    reduced = depth[centre_rows[:, None], centre_columns[None, :]].clone()

    # If the pixel at the centre is not valid, look at the others in its area.
    row_cells, column_cells = down.long(), across.long()
    wanted = (reduced == 0)[row_cells[:, None], column_cells[None, :]] & (depth != 0)
    y, x = torch.nonzero(wanted, as_tuple=True)
    cells = row_cells[y] * width + column_cells[x]
    distances = ((down[y] % 1 - 0.5) * rows / height) ** 2 + ((across[x] % 1 - 0.5) * columns / width) ** 2
    nearest = torch.full((height * width,), torch.inf, dtype=distances.dtype)
    nearest.scatter_reduce_(0, cells, distances, "amin")
    chosen = distances == nearest[cells]
    cells, values = cells[chosen], depth[y[chosen], x[chosen]]
    # Among pixels equally near to a centre, the one nearer to the camera hides the others.
    front = torch.full((height * width,), torch.inf, dtype=depth.dtype).scatter_reduce_(0, cells, values, "amin")
    reduced.view(-1)[cells] = front[cells]
    return reduced


def load_array(source: str | os.PathLike | bytes, key: str | None = None) -> np.ndarray:
    """Read an `.npy` file, or one array of an `.npz`, after checking the header against the actual size.

    Args:
        source: A path or the file's bytes.
        key: Name of an array of an `.npz`; by default the one named `depth`, or the only one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is truncated, too large or of Python objects, or the array is missing.
    """
    if not isinstance(source, bytes):
        require_file(source)
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            return _read_array(stream, stream.seek(0, os.SEEK_END))
        try:
            with zipfile.ZipFile(stream) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                key = key or (names[0] if len(names) == 1 else "depth")
                if key not in names:
                    raise ValueError(f"there is no array {key!r} in it, only {', '.join(names) or 'none'}")
                with archive.open(f"{key}.npy") as member:
                    return _read_array(member, archive.getinfo(f"{key}.npy").file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"it is no .npz that can be read: {error}") from error


def _read_array(stream: Any, size: int) -> np.ndarray:
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its .npy format {version} is not that of plain numbers")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    count, held = math.prod(shape), size - stream.tell()
    if count * dtype.itemsize > held:
        raise ValueError(
            f"its header claims {count * dtype.itemsize:,} bytes of {dtype} {shape}, but it holds {held:,}"
        )
    if count > MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {count:,} values, more than the {MAX_IMAGE_PIXELS:,} that are read")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _open(path: Path, name: str) -> Image.Image | np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist.")
    suffix = path.suffix.lower()
    if suffix in (*ARRAY_SUFFIXES, *IMAGE_SUFFIXES):
        return _decode(path, name, suffix in ARRAY_SUFFIXES)
    raise ValueError(
        f"{name} is a {suffix or 'nameless'} file. Depth is read from .npy, .npz, .exr, .pfm, 16-bit .png or .pgm, "
        "and .tif of 16 bits or float32. Convert it to one of these."
    )


def _decode(source: Path | bytes, name: str, is_array: bool) -> Image.Image | np.ndarray:
    try:
        if is_array:
            return _load_exr(source) if _is_exr(source) else load_array(source)
        image = open_raster(source)
        image.load()
        return image
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that can be read. Save it as .npy (float32, metres).") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read, it may be truncated: {error}.") from error


def _is_exr(source: Path | bytes) -> bool:
    return source.startswith(EXR_MAGIC) if isinstance(source, bytes) else source.suffix.lower() == ".exr"


def _load_exr(source: Path | bytes) -> np.ndarray:
    """Read the channel of depth from an OpenEXR file.

    Raises:
        ValueError: It cannot be read, is too large, or has several channels and none, or more than one, is `Z`.
    """
    try:
        import OpenEXR
    except ImportError:
        raise ValueError('it is OpenEXR, which needs its package: `pip install "depthvlm[exr]"`') from None
    if not isinstance(source, bytes):
        require_file(source)
        source = source.read_bytes()
    try:
        first, last = OpenEXR.File(io.BytesIO(source), header_only=True).header()["dataWindow"]
        width, height = (int(end) - int(start) + 1 for start, end in zip(first, last, strict=True))
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are read")
        channels = OpenEXR.File(io.BytesIO(source), separate_channels=True).channels()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    found = list(channels) if len(channels) == 1 else [name for name in channels if name.rpartition(".")[2] == "Z"]
    if len(found) != 1:
        raise ValueError(f"its channels are {', '.join(channels)}, where one channel, or one that is named Z, is depth")
    return np.asarray(channels[found[0]].pixels)


def _pil_to_array(image: Image.Image, name: str) -> np.ndarray:
    if image.mode not in ("L", "F", "I") and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{name} is a picture of Pillow mode {image.mode!r}, perhaps a coloured preview. Metric depth has one "
            "channel: mode 'I;16', 'I', 'F' or 'L'."
        )
    return np.asarray(image)


def _scale(scale: Any, stored: Any, name: str) -> float | None:
    try:
        given = None if scale is None else float(scale)
        written = None if stored is None else float(stored)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} has a `depth_scale` that is not a number: {scale if stored is None else stored!r}."
        ) from None
    is_truth = isinstance(scale, (bool, np.bool_))
    for value in (given, written):
        if value is not None and (is_truth or not 0 < value < np.inf):
            raise ValueError(
                f"`depth_scale` must be a finite number above 0 (units in a metre), got "
                f"{scale if is_truth else value!r}. {name}."
            )
    if given is not None and written is not None and given != written:
        warnings.warn(f"{name} says depth_scale = {written:g}, but {given:g} was given and is used.", stacklevel=3)
    return written if given is None else given


def _scale_of_floats(depth: np.ndarray, scale: float, name: str) -> float:
    """Return the scale, or 1 if it plainly does not fit: a map in metres with the scale of millimetres."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    median = float(np.median(valid)) if valid.size else 0.0
    if not median / scale < NEAREST_MEDIAN <= median:
        return scale
    warnings.warn(
        f"{name} holds floats with a median of {median:g}, which `depth_scale` = {scale:g} would make "
        f"{median / scale:g} metres. They are taken for metres: leave the scale out for them.",
        stacklevel=3,
    )
    return 1.0


def _check_aspect(depth_size: tuple[int, ...], image_size: tuple[int, int], name: str) -> None:
    (rows, columns), (height, width) = depth_size, image_size
    # One pixel of the smaller side counts as rounding too.
    tolerance = max(ASPECT_TOLERANCE, 1 / min(rows, columns))
    if abs(np.log(columns / rows) - np.log(width / height)) <= tolerance:
        return
    turned = abs(np.log(rows / columns) - np.log(width / height)) <= tolerance
    remedy = (
        "It seems to be turned: the image was turned upright as its EXIF data say, so turn its depth map too."
        if turned
        else "Crop or pad the map as its image was, or pass the image that belongs to it."
    )
    raise ValueError(
        f"The depth map of {name} has {columns}x{rows} pixels (width x height), the image {width}x{height}: "
        f"their aspect ratios differ by more than {ASPECT_TOLERANCE:.0%}. {remedy}"
    )
