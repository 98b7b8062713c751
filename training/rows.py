"""One row of a data set, decoded: its images, their cameras and true depth, its text; or the reason why not."""

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image

from ..annotated_depth import AnnotatedDepth
from ..geometry import ray_to_z
from ..processing import Camera, resolve_camera
from ..processing.camera_depthvlm import exif_orientation, read_exif
from ..processing.images_depthvlm import FULL_SIZE_KEY
from .annotation_lines import ANNOTATION_COLUMNS, annotation_row, is_annotation
from .bad_samples import BadSampleError, describe_row
from .replies import TEXT_COLUMNS, ReplyRenderer, Segment, standard_conversations
from .row_files import file_name, read_depth_map, read_image

# The column of row numbers that `prepare_depth_dataset` adds.
ROW_COLUMN = "__row__"
# That of rows which only fill up the last batch of an evaluation: see `evaluation_rows`.
REPEATED_COLUMN = "__repeated__"
OWN_COLUMNS = (ROW_COLUMN, REPEATED_COLUMN)

DEFAULT_COLUMNS: dict[str, str | None] = {
    name: name for name in ("depth", "depth_scale", "depth_type", "focal_length", "intrinsics")
}
DEPTH_TYPES = ("z_depth", "ray_distance")

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
# What comes of a value of a kind that nobody foresaw; RuntimeError of a tensor that is asked whether it is true.
_UNUSUAL_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, TemplateError)


@dataclass
class TrainingRow:
    """
    A row as the processor takes it.

    Args:
        row (`int` or `str`): Its number in the data set, or which of the batch it is.
        segments (`list[tuple[str, bool]]`): Its text, and what of it is trained.
        images (`list[PIL.Image.Image]`): Decoded.
        files (`list[str]`): Names of the files of its images and depth maps, as far as they have one.
        cameras (`list[dict]`): For every image what is known of `intrinsics`, `focal_length` and `fov`.
        depth (`list[np.ndarray | None]`): For every image z-depth `(H, W)` in metres, float32, or None.
        assumed (`bool`): Whether it has depth for an image whose camera is nowhere given.
        repeated (`bool`): Whether it was counted before: it has no label and no depth then.
    """

    row: int | str
    segments: list[Segment]
    images: list[Image.Image] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    cameras: list[dict[str, Any]] = field(default_factory=list)
    depth: list[np.ndarray | None] = field(default_factory=list)
    assumed: bool = False
    repeated: bool = False

    @property
    def name(self) -> str:
        """`str`: which row it is, with its files."""
        return describe_row(self.row, ", ".join(self.files))


@dataclass
class RowReader:
    """
    Reads rows.

    Args:
        renderer ([`ReplyRenderer`]): Makes their text.
        columns (`dict`): Names of the columns `depth`, `depth_scale`, `depth_type`, `focal_length` and `intrinsics`;
            None for one that is not read.
        image_root, depth_root (`str`, *optional*): Folders that paths start from.
        default_camera (`dict`): The camera of images whose row names none.
    """

    renderer: ReplyRenderer
    columns: dict[str, str | None]
    image_root: str | None = None
    depth_root: str | None = None
    default_camera: dict[str, Any] = field(default_factory=dict)

    def read(self, row: dict[str, Any], index: int) -> TrainingRow:
        """
        Reads the `index`-th row of a batch.

        Raises:
            BadSampleError: for a row that cannot be used, with its number, file and reason.
        """
        name, repeated = _row_name(row, index), is_repeated(row)
        nulls = {key for key, value in row.items() if value is None}
        row = {key: value for key, value in row.items() if value is not None}
        try:
            if is_annotation(row):
                row, columns = annotation_row(row, nulls, self.image_root), {**DEFAULT_COLUMNS}
                columns["depth"] = "depth" if self.columns["depth"] else None
            else:
                columns = self.columns
            row, embedded = standard_conversations(row)
            images = _one_list(_as_list(row), embedded)
            segments = self.renderer.segments(row, len(images))
            if repeated:
                segments = [(text, False) for text, _ in segments]
            result = TrainingRow(name, segments, repeated=repeated)
            maps = [None] * len(images) if repeated else self._maps(row, columns, len(images))
            lists = {key: _per_image(row, columns[key], len(images)) for key in ("depth_scale", "depth_type")}
            cameras = _cameras(row, columns, len(images))
        except _UNUSUAL_VALUES as error:
            reason = f"it lacks the key {error}." if isinstance(error, KeyError) else str(error)
            raise BadSampleError(reason, name, _first_name(row)) from error

        nullable = any(columns[key] in nulls or columns[key] in row for key in ("focal_length", "intrinsics"))
        for i, image in enumerate(images):
            file = file_name(image)
            picture = _attempt(name, file, "its image cannot be read", read_image, image, self.image_root)
            known = {key: value for key, value in cameras[i].items() if value is not None} or dict(self.default_camera)
            camera = _attempt(name, file, "its camera cannot be used", _camera, picture, known)
            depth = None
            if maps[i] is not None:
                if camera.source == "assumed" and nullable:
                    raise BadSampleError(NO_CAMERA, name, file)
                depth = self._depth(name, maps[i], lists["depth_scale"][i], lists["depth_type"][i], camera)
            result.images.append(picture)
            result.cameras.append(known)
            result.depth.append(depth)
            result.files += [one for one in (file, _depth_file(maps[i])) if one]
            result.assumed |= depth is not None and camera.source == "assumed"
        return result

    def _maps(self, row: dict[str, Any], columns: dict[str, str | None], images: int) -> list[Any]:
        column = columns["depth"]
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
    """Whether a row only fills up a batch; what else a data set may have in a column of that name says nothing."""
    return row.get(REPEATED_COLUMN) is True


def read_columns(columns: dict[str, str | None] | None = None, text_field: str = "text") -> list[str]:
    """Every column of a data set that the collator looks at."""
    named = [name for name in {**DEFAULT_COLUMNS, **(columns or {})}.values() if name is not None]
    return [*dict.fromkeys(["images", "image", *TEXT_COLUMNS, text_field, *named, *ANNOTATION_COLUMNS, *OWN_COLUMNS])]


def _row_name(row: dict[str, Any], index: int) -> int | str:
    try:
        return operator.index(row[ROW_COLUMN])
    except (LookupError, TypeError):  # there is none, or it is not ours
        return f"row {index} of the batch"


def _attempt(row: int | str, file: str | None, problem: str, read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever corrupt bytes lead them to
        reason = str(error) or type(error).__name__
        raise BadSampleError(f"{problem}: {reason.rstrip('.')}.", row, file) from error


def _camera(picture: Image.Image, known: dict[str, Any]) -> Camera:
    try:
        exif = read_exif(picture)
    except ValueError:
        exif = None  # the processor warns of it
    width, height = picture.info.get(FULL_SIZE_KEY, picture.size)
    if exif_orientation(exif) >= 5:  # turned by a quarter
        width, height = height, width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the processor resolves it again, with its warnings
        return resolve_camera((height, width), exif, **known)


def _cameras(row: dict[str, Any], columns: dict[str, str | None], images: int) -> list[dict[str, Any]]:
    focal = _per_image(row, columns["focal_length"], images)
    value: Any = row.get(columns["intrinsics"] or "")
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or _is_matrix(value):
        matrices = [value] * images
    elif not isinstance(value, (list, tuple)) or len(value) != images:
        raise ValueError(
            f"`{columns['intrinsics']}` must be a 3x3 matrix or [fx, fy, cx, cy], or a list with one for each of the "
            f"{images} image(s), got {value!r}."
        )
    else:
        matrices = list(value)
    return [{"intrinsics": matrices[i], "focal_length": focal[i]} for i in range(images)]


def _is_matrix(value: Any) -> bool:
    """Whether it is one camera, not a list of them: four numbers, or three rows of three."""
    if not isinstance(value, (list, tuple)) or any(item is None for item in value):
        return False
    if all(isinstance(item, (int, float)) for item in value):
        return True
    return len(value) == 3 and all(isinstance(item, (list, tuple)) and len(item) == 3 for item in value)


def _per_image(row: dict[str, Any], column: str | None, images: int) -> list[Any]:
    value: Any = row.get(column or "")
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)):
        return [value] * images
    if len(value) != images:
        raise ValueError(f"`{column}` has {len(value)} entries for {images} image(s). Give one, or one for each image.")
    return list(value)


def _as_list(row: dict[str, Any]) -> list[Any]:
    """The images of a row."""
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
    """The images of a row that may stand in its column, in its messages, or, the same ones, in both."""
    if not column or not embedded:
        return column or embedded
    names = [file_name(image) for image in column]
    if None in names or names != [file_name(image) for image in embedded]:
        raise ValueError(
            f"it has {len(column)} image(s) in its column and {len(embedded)} in its messages, which are not the same "
            'files. Remove the column, or leave {"type": "image"} alone in the messages to mark the places.'
        )
    return column


def _as_maps(value: Any) -> list[Any]:
    """The depth maps of a row, where one may itself be a nested list of numbers."""
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


def _first_name(row: dict[str, Any]) -> str | None:
    images = _as_list(row)
    return file_name(images[0]) if images else None
