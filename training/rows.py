"""Reading one example of a data set: its images with cameras and depth, and its text, or an error with the reason."""

import operator
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image

from ..annotated_depth import DEPTH_COLUMNS, AnnotatedDepth, is_ray_distance, listed_points, map_size, points_to_map
from ..geometry import ray_to_z
from ..processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT, Camera, read_depth, resolve_camera
from ..processing.camera_depthvlm import cameras_per_image, exif_orientation, per_image, read_exif
from ..processing.images_depthvlm import FULL_SIZE_KEY, load_pixels, open_image, upright_image
from .replies import TEXT_COLUMNS, ChatTemplateError, ReplyRenderer, Segment, standard_conversations

# `prepare_depth_dataset` adds this column of row numbers.
ROW_COLUMN = "__row__"
# Marks rows that only pad the last batch of an evaluation, see `evaluation.py`.
REPEATED_COLUMN = "__repeated__"

DEFAULT_COLUMNS: dict[str, str | None] = {
    name: name for name in ("depth", "depth_scale", "depth_type", "focal_length", "intrinsics")
}
DEPTH_TYPES = ("z_depth", "ray_distance")
# Columns of the released DepthVLM-Bench annotation lines, besides those common to all data.
ORIGINAL_CAMERA = ("original_fx", "original_fy", "original_cx", "original_cy")
ANNOTATION_COLUMNS = (*DEPTH_COLUMNS, "original_rgb_size", *ORIGINAL_CAMERA, "solution")

LONGEST_PATH = 1000  # characters; a longer text is an image in base64
REMEDY = (
    "Correct or remove it, or leave such rows out with `--on_bad_sample skip` (they are counted and listed, never "
    "replaced)."
)
NO_CAMERA = (
    "its focal length is null, and its image has no EXIF data to tell it, so metres cannot be learnt from its depth "
    "map. Give `focal_length` (pixels) or `intrinsics`, or no depth map."
)
NO_CAMERA_FOR_RAYS = (
    "its depth map holds distances along the ray (`ray_distance`), which become z-depth only with a camera. Give "
    "`intrinsics` or `focal_length`, in pixels."
)
NO_VALID_PIXEL = (
    "its depth map has no valid pixel, so it teaches nothing. 0, negative, NaN and infinite values are not valid; "
    "check the file and its `depth_scale`."
)
# Raised for values of unexpected types; RuntimeError by a tensor used as a truth value.
_UNUSUAL_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, TemplateError)


class BadSampleError(ValueError):
    """An example that cannot be used.

    Args:
        reason: The problem, as a sentence.
        row: Its number in the data set, or a description of it.
        file: Name of the file, or files, at fault.
    """

    def __init__(self, reason: str, row: int | str | None = None, file: str | None = None) -> None:
        # A DataLoader rebuilds its workers' errors from their text, which starts with a traceback.
        reason = reason.rpartition(f"{type(self).__name__}: ")[2].rstrip("\n")
        super().__init__(reason if row is None else f"{describe_row(row, file)} cannot be used: {reason} {REMEDY}")
        self.reason, self.row, self.file = reason, row, file


def describe_row(row: int | str, file: str | None = None) -> str:
    """Return a description of an example, such as `row 12 (room/3.jpg)`."""
    name = f"row {row}" if isinstance(row, int) else row
    # File names that cannot be encoded are escaped, or a log handler would fail.
    return f"{name} ({file})".encode(errors="backslashreplace").decode() if file else name


@dataclass
class TrainingRow:
    """An example in the form that the processor takes.

    Args:
        row: Its number in the data set, or a description of its place in the batch.
        segments: Its text in pieces, each with a flag that is true if it is trained.
        images: Decoded images.
        files: Names of the files of its images and depth maps, if any.
        cameras: Known values of `intrinsics`, `focal_length` and `fov`, for each image.
        resolved: Cameras of the images as given, for each image.
        depth: Z-depth in metres for each image, `(height, width)` float32, or None.
        assumed: True if an image with depth has no known camera.
        repeated: True if it was already counted; it then has no labels and no depth.
    """

    row: int | str
    segments: list[Segment]
    images: list[Image.Image] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    cameras: list[dict[str, Any]] = field(default_factory=list)
    resolved: list[Camera] = field(default_factory=list)
    depth: list[np.ndarray | None] = field(default_factory=list)
    assumed: bool = False
    repeated: bool = False

    @property
    def name(self) -> str:
        """Description of this example, with its files."""
        return describe_row(self.row, ", ".join(self.files))


@dataclass
class RowReader:
    """A reader of examples.

    Args:
        renderer: Writes their text.
        columns: Names of the columns `depth`, `depth_scale`, `depth_type`, `focal_length` and `intrinsics`; None for
            one that is not read.
        image_root: Folder that relative image paths start from.
        depth_root: Folder that relative depth paths start from.
        default_camera: Camera of images whose example gives none.
    """

    renderer: ReplyRenderer
    columns: dict[str, str | None]
    image_root: str | None = None
    depth_root: str | None = None
    default_camera: dict[str, Any] = field(default_factory=dict)

    def read(self, row: dict[str, Any], index: int) -> TrainingRow:
        """Read the example at `index` of a batch.

        Raises:
            BadSampleError: If it is unusable, with its number, file and reason.
            ChatTemplateError: If the chat template cannot render any example.
        """
        name, repeated = _row_name(row, index), is_repeated(row)
        nulls = {key for key, value in row.items() if value is None}
        row = {key: value for key, value in row.items() if value is not None}
        try:
            columns = self.columns
            if is_annotation(row):
                row = annotation_row(row, nulls, self.image_root)
                columns = {**DEFAULT_COLUMNS, "depth": "depth" if columns["depth"] else None}
            row, embedded = standard_conversations(row)
            images = _one_list(_as_list(row), embedded)
            segments = self.renderer.segments(row, len(images))
            if repeated:
                segments = [(text, False) for text, _ in segments]
            maps = [None] * len(images) if repeated else _maps(row, columns["depth"], len(images))
            values = {key: row.get(column or "") for key, column in columns.items()}
            scales = per_image(values["depth_scale"], len(images), str(columns["depth_scale"]))
            kinds = per_image(values["depth_type"], len(images), str(columns["depth_type"]))
            cameras = cameras_per_image(len(images), values["intrinsics"], values["focal_length"])
        except ChatTemplateError:
            raise
        except _UNUSUAL_VALUES as error:
            reason = f"it lacks the key {error}." if isinstance(error, KeyError) else str(error)
            first = next(iter(_as_list(row)), None)
            raise BadSampleError(reason, name, file_name(first)) from error

        result = TrainingRow(name, segments, repeated=repeated)
        nullable = any(columns[key] in nulls or columns[key] in row for key in ("focal_length", "intrinsics"))
        for i, (image, depth_map, scale, kind) in enumerate(zip(images, maps, scales, kinds, strict=True)):
            file, depth = file_name(image), None
            picture = _attempt(name, file, "its image cannot be read", read_image, image, self.image_root)
            known = {key: each[i] for key, each in cameras.items() if each[i] is not None} or dict(self.default_camera)
            camera = _attempt(name, file, "its camera cannot be used", _camera, picture, known)
            if depth_map is not None:
                if camera.source == "assumed" and nullable:
                    raise BadSampleError(NO_CAMERA, name, file)
                depth = self._depth(name, depth_map, scale, kind, camera)
            result.images.append(picture)
            result.cameras.append(known)
            result.resolved.append(camera)
            result.depth.append(depth)
            result.files += [one for one in (file, _depth_file(depth_map)) if one]
            result.assumed |= depth is not None and camera.source == "assumed"
        return result

    def _depth(self, name: int | str, value: Any, scale: Any, kind: Any, camera: Camera) -> np.ndarray:
        file = _depth_file(value)
        if kind is not None and kind not in DEPTH_TYPES:
            raise BadSampleError(f"its depth type is {kind!r}, expected one of {', '.join(DEPTH_TYPES)}.", name, file)
        problem = "its depth map cannot be read"
        if isinstance(value, AnnotatedDepth):
            depth = _attempt(name, file, problem, value.read, self.depth_root)
        else:
            depth = _attempt(name, file, problem, read_depth_map, value, scale, self.depth_root)
        if not depth.any():
            raise BadSampleError(NO_VALID_PIXEL, name, file)
        if kind != "ray_distance":
            return depth
        if camera.source == "assumed":
            raise BadSampleError(NO_CAMERA_FOR_RAYS, name, file)
        return ray_to_z(depth, camera)


def is_repeated(row: dict[str, Any]) -> bool:
    """Return whether an example only pads a batch; a data set's own values in that column do not count."""
    return row.get(REPEATED_COLUMN) is True


def read_columns(columns: dict[str, str | None] | None = None, text_field: str = "text") -> list[str]:
    """Return every column of a data set that the collator reads."""
    named = [name for name in {**DEFAULT_COLUMNS, **(columns or {})}.values() if name is not None]
    own = (*ANNOTATION_COLUMNS, ROW_COLUMN, REPEATED_COLUMN)
    return [*dict.fromkeys(["images", "image", *TEXT_COLUMNS, text_field, *named, *own])]


def is_annotation(row: dict[str, Any]) -> bool:
    """Return whether an example is an annotation line, with a map (`depth_path`, `original_fx`) or only points."""
    known = {"messages", "completion", "text"} & set(row)
    return not known and (("depth_path" in row and "original_fx" in row) or "pixel_coords" in row)


def annotation_row(row: dict[str, Any], null_columns: set[str], image_root: str | None = None) -> dict[str, Any]:
    """Return the example described by an annotation line, without opening a file.

    Args:
        row: The line, without its nulls.
        null_columns: Its columns that hold null; one for an unknown `original_fx` is added.
        image_root: Folder of the images, even for a path that starts with a slash.

    Returns:
        `image`, `depth`, the camera, `messages` and, if there is one, `__row__`, under their standard names.

    Raises:
        ValueError: If there are points but no size of their map.
    """
    result: dict[str, Any] = {name: row[name] for name in ("image", "images", "depth_type", ROW_COLUMN) if name in row}
    if is_ray_distance(row):
        result["depth_type"] = "ray_distance"
    if isinstance(row.get("image"), str):
        # In these lines a path that starts with a slash is relative too.
        result["image"] = row["image"] if image_root is None else locate(row["image"].lstrip("/"), image_root)
    user = {"role": "user", "content": row.get("prompt", DEPTH_PROMPT)}
    result["messages"] = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, user]
    # The lines are the paper's training data, whose stage 2 learns the constant reply, so a `solution` is the reply.
    # Without that column (`columns:` of a mixture) the same lines train only depth.
    if row.get("solution"):
        result["messages"].append({"role": "assistant", "content": row["solution"]})

    if "original_fx" in row:
        fx, size = row["original_fx"], list(row.get("original_rgb_size") or [])
        if size and not all(name in row for name in ORIGINAL_CAMERA):  # the released lines have only the size
            row = {"original_fy": fx, "original_cx": size[0] / 2, "original_cy": size[1] / 2, **row}
        if all(name in row for name in ORIGINAL_CAMERA):
            result["intrinsics"] = [*(row[name] for name in ORIGINAL_CAMERA), *size]
        else:
            result["focal_length"] = fx
    elif "original_fx" in null_columns:
        null_columns.add("focal_length")
    if "depth_path" in row:
        result["depth"] = AnnotatedDepth.of_line(row)
        return result
    if "intrinsics" in row:
        result["intrinsics"] = row["intrinsics"]  # fx, fy, cx, cy, width, height
    result["depth"] = points_to_map(listed_points(row), map_size(row))
    return result


def file_name(value: Any) -> str | None:
    """Return the name of the file that `value` is or came from, or None if it has none or is too long to be one."""
    if isinstance(value, dict):
        value = value.get("path")
    elif isinstance(value, Image.Image):
        value = getattr(value, "filename", None)  # only images that Pillow opened from a file have one
    if not isinstance(value, (str, os.PathLike)) or not 0 < len(os.fspath(value)) <= LONGEST_PATH:
        return None
    return os.fspath(value)


def locate(path: str | os.PathLike, root: str | None) -> str:
    """Return `path` below `root`; an absolute path, a URL and base64 text are unchanged."""
    name = os.fspath(path)
    is_path = 0 < len(name) <= LONGEST_PATH and "://" not in name and not name.startswith("data:")
    if root is None or not is_path or os.path.isabs(name):
        return name
    return os.path.join(root, name)


def read_image(value: Any, root: str | None = None) -> Image.Image:
    """Decode one image without rotating it, and keep its EXIF data.

    Args:
        value: A path, a URL, bytes, `{"bytes", "path"}`, a PIL image, an array, a tensor or nested lists.
        root: Folder that a relative path starts from.

    Raises:
        OSError, ValueError: If it cannot be read; Pillow raises further errors for corrupt files.
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
    """Read one depth map into metres: [`read_depth`] for more kinds of values.

    Args:
        value: A path, a URL, bytes of an image, an `.npy` or an `.npz` file, `{"bytes", "path"}`, a PIL image, an
            array, a tensor or nested lists of shape `(height, width)`.
        scale: Raw value divided by metres.
        root: Folder that a relative path starts from.

    Returns:
        `(height, width)` float32: metres as stored (z or ray), 0 at invalid pixels.

    Raises:
        OSError, ValueError: If it cannot be read or its unit is not known.
    """
    value = _payload(value, root)
    return read_depth(np.asarray(value) if isinstance(value, list) else value, scale)


def _payload(value: Any, root: str | None) -> Any:
    """Return the bytes, the located path or the object itself."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, Path)):
        value = locate(value, root)
        if "://" in value:
            # Streamed data sets: `hf://`, and files inside archives, `zip://a.jpg::https://...`.
            with fsspec.open(value, "rb") as stream:
                return stream.read()
    return value


def _row_name(row: dict[str, Any], index: int) -> int | str:
    try:
        return operator.index(row[ROW_COLUMN])
    except (LookupError, TypeError):  # missing, or not a row number of ours
        return f"row {index} of the batch"


def _attempt(row: int | str, file: str | None, problem: str, read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except MemoryError:
        raise
    except Exception as error:  # decoders may raise anything on corrupt bytes
        reason = str(error) or type(error).__name__
        raise BadSampleError(f"{problem}: {reason.rstrip('.')}.", row, file) from error


def _camera(picture: Image.Image, known: dict[str, Any]) -> Camera:
    try:
        exif = read_exif(picture)
    except ValueError:
        exif = None  # the processor warns about it
    width, height = picture.info.get(FULL_SIZE_KEY, picture.size)
    if exif_orientation(exif) >= 5:  # rotated by a quarter turn
        width, height = height, width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the processor resolves it again and warns
        return resolve_camera((height, width), exif, **known)


def _as_list(row: dict[str, Any]) -> list[Any]:
    """Return the images of a row."""
    images: Any = row.get("images")
    image: Any = row.get("image")
    if not isinstance(images, (list, tuple)):
        images = [images]
    if all(one is None for one in images):
        # One image may be nested lists of pixel values.
        is_list = isinstance(image, (list, tuple)) and not any(isinstance(one, list) for one in image)
        images = image if is_list else [image]
    return [] if all(one is None for one in images) else list(images)


def _one_list(column: list[Any], embedded: list[Any]) -> list[Any]:
    """Return the images of a row, which may be in its column, in its messages, or, identically, in both."""
    if not column or not embedded:
        return column or embedded
    names = [file_name(image) for image in column]
    if None in names or names != [file_name(image) for image in embedded]:
        raise ValueError(
            f"it has {len(column)} image(s) in its column and {len(embedded)} in its messages, which are not the same "
            'files. Remove the column, or leave {"type": "image"} alone in the messages to mark the places.'
        )
    return column


def _maps(row: dict[str, Any], column: str | None, images: int) -> list[Any]:
    """Return the depth map, or None, of each image."""
    if column is None or column not in row:
        return [None] * images
    maps = _as_maps(row[column])
    if len(maps) == images:
        return maps
    if not any(one is not None for one in maps):
        return [None] * images
    raise ValueError(
        f"it has {len(maps)} depth map(s) for {images} image(s). `{column}` needs one for each image, null for an "
        "image without."
    )


def _as_maps(value: Any) -> list[Any]:
    """Return the depth maps of a row; one of them may itself be a nested list of numbers."""
    if hasattr(value, "ndim") and value.ndim == 3 and value.shape[-1] != 1:
        return list(value)
    if not isinstance(value, (list, tuple)):
        return [value]
    first = next((item for item in value if item is not None), None)
    is_map = isinstance(first, (list, tuple)) and len(first) > 0 and isinstance(first[0], (int, float))
    if isinstance(first, (int, float)):
        raise ValueError("its depth is a list of numbers. A depth map has rows and columns.")
    return [value] if is_map else list(value)


def _depth_file(value: Any) -> str | None:
    return value.path if isinstance(value, AnnotatedDepth) else file_name(value)
