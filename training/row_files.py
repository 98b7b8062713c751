"""Images and depth maps of a row, in every form in which `datasets` and people store them."""

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image

from ..processing import read_depth
from ..processing.images_depthvlm import load_pixels, open_image, upright_image

LONGEST_PATH = 1000  # characters: a longer text is an image in base64


def file_name(value: Any) -> str | None:
    """The name of the file that `value` is or came from, None where it has none or is too long to be one."""
    if isinstance(value, dict):
        value = value.get("path")
    elif isinstance(value, Image.Image):
        value = getattr(value, "filename", None)  # only what Pillow opened from a file has it
    if not isinstance(value, (str, os.PathLike)) or not 0 < len(os.fspath(value)) <= LONGEST_PATH:
        return None
    return os.fspath(value)


def locate(path: str | os.PathLike, root: str | None) -> str:
    """`path` below `root`; an absolute path, a URL or base64 text as it is."""
    name = os.fspath(path)
    is_path = 0 < len(name) <= LONGEST_PATH and "://" not in name and not name.startswith("data:")
    if root is None or not is_path or os.path.isabs(name):
        return name
    return os.path.join(root, name)


def read_image(value: Any, root: str | None = None) -> Image.Image:
    """
    Decodes one image.

    Args:
        value: A path, a URL, bytes, `{"bytes", "path"}`, a PIL image, an array, a tensor or nested lists.
        root (`str`, *optional*): Folder that a relative path starts from.

    Returns:
        `PIL.Image.Image`: decoded, not turned, with its EXIF data.

    Raises:
        OSError, ValueError: if it cannot be read, and whatever Pillow raises for corrupt files.
    """
    value = _payload(value, root)
    if isinstance(value, (str, bytes)):
        return open_image(value)
    if isinstance(value, Image.Image):
        load_pixels(value, "It")
        return value
    if isinstance(value, list):
        value = np.asarray(value)
        value = value.astype(np.uint8) if value.dtype == np.int64 and value.min() >= 0 and value.max() < 256 else value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return upright_image(value)[0]
    raise ValueError(f"An image must be a path, bytes, a PIL image or an array, got {type(value).__name__}.")


def read_depth_map(value: Any, scale: Any = None, root: str | None = None) -> np.ndarray:
    """
    Reads one depth map into metres: [`read_depth`] for more forms.

    Args:
        value: A path, a URL, bytes of an image, an `.npy` or an `.npz` file, `{"bytes", "path"}`, a PIL image, an
            array, a tensor or nested lists of shape `(H, W)`.
        scale (`float`, *optional*): Raw value divided by metres.
        root (`str`, *optional*): Folder that a relative path starts from.

    Returns:
        `np.ndarray` of shape `(H, W)`, float32: metres as stored (z or ray), 0 where not valid.

    Raises:
        OSError, ValueError: if it cannot be read or its unit is not known.
    """
    value = _payload(value, root)
    return read_depth(np.asarray(value) if isinstance(value, list) else value, scale)


def _payload(value: Any, root: str | None) -> Any:
    """The bytes, the located path or the object itself."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, Path)):
        value = locate(value, root)
        if "://" in value:
            # Streamed data sets: `hf://`, and files inside archives, `zip://a.jpg::https://...`.
            with fsspec.open(value, "rb") as stream:
                return stream.read()
    return value
