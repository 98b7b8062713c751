"""Sets to evaluate on that no build made: the rows of a Parquet file, as they train."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...geometry import ray_to_z
from ...processing import read_depth, resolve_camera
from ...processing.depth_maps_depthvlm import load_array
from ...processing.images_depthvlm import open_image, open_raster, upright_image
from ..build.sampling import POINTS_PER_IMAGE, sample_points
from ..build.shards import file_hash
from ..sources.files import same_shape
from .eval_sets import EvalItem, EvalSet

_RANGE = (0.001, 1000.0)
_QUARTER_TURNS = (5, 6, 7, 8)  # values of EXIF's orientation
_ARRAYS = (b"\x93NUMPY", b"PK")


class EvalRows(EvalSet):
    """
    Rows of a Parquet file: those that train (`image`, `depth`, and what there is of `depth_scale`, `depth_type`,
    `focal_length` and `intrinsics`), or a shard of a build, whose points are scored as they are.

    Images are turned upright as in training. Rows without `points` get ten, drawn with the seed 0. Metres from 0.001 to
    1000 count where the row has no `depth_range`.

    Args:
        file: the Parquet file.
        split: the name under which its results stand, where its rows name none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file, or lacks a column, or its rows are of several sets.
    """

    def __init__(self, file: str | Path, split: str = "test"):
        from datasets import Dataset
        from datasets import Image as ImageFeature

        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"There is no file {self.file}.")
        if self.file.suffix.lower() != ".parquet":
            raise ValueError(
                f"{self.file} is no Parquet file. --data is a folder of `depthvlm bench build` or a .parquet file; "
                "annotation lines become a build by `depthvlm bench build lines`."
            )
        try:
            rows: Any = Dataset.from_parquet(str(self.file), split=split)
        except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
            raise ValueError(f"{self.file} cannot be read as Parquet, it may be truncated: {error}") from error
        self._image = next((name for name in ("image", "images") if name in rows.column_names), "")
        cameras = {"intrinsics", "focal_length"} & set(rows.column_names)
        if not self._image or "depth" not in rows.column_names or not cameras:
            raise ValueError(
                f"{self.file} has the columns {', '.join(rows.column_names)}; an evaluation needs `image`, `depth` and "
                "`intrinsics` or `focal_length`."
            )
        for name in (self._image, "depth"):
            if isinstance(rows.features[name], ImageFeature):
                rows = rows.cast_column(name, ImageFeature(decode=False))
        self._rows = rows
        self.source = self._one_of("source", self.file.stem)
        self.split = self._one_of("split", split)
        self.seed = None if "points" in rows.column_names else 0
        self.options = {"file": self.file.name}
        self.hash = file_hash(self.file)
        self.ids = list(rows["id"]) if "id" in rows.column_names else [f"{n:07d}" for n in range(len(rows))]
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{self.file} has {len(self.ids)} rows with {len(set(self.ids))} different ids.")
        self.sizes = [self._size(row[self._image], self.ids[n]) for n, row in enumerate(self._rows_of([self._image]))]

    def read(self, index: int) -> EvalItem:
        """
        One image, decoded. Callable from several threads at once.

        Raises:
            ValueError: its image, depth or camera cannot be used; the message names the row.
        """
        row = {name: value for name, value in self._rows[index].items() if value is not None}
        try:
            image, exif = upright_image(open_image(_one(row[self._image]), reduce=False))
            depth = _depth(_one(row["depth"]), _one(row.get("depth_scale")))
            camera = resolve_camera(
                (image.height, image.width),
                exif,
                intrinsics=row.get("intrinsics"),
                focal_length=_one(row.get("focal_length")),
            )
            if _one(row.get("depth_type")) == "ray_distance":
                depth = ray_to_z(depth, camera)
            if not same_shape(depth.shape, image.size):
                raise ValueError(
                    f"its depth map has {depth.shape[1]}x{depth.shape[0]} pixels (width x height), its image "
                    f"{image.width}x{image.height}, which is of another shape"
                )
        except (OSError, ValueError, SyntaxError, KeyError) as error:
            raise ValueError(f"The row {self.ids[index]!r} of {self.file} cannot be used: {error}") from error
        points, metres = self._points(row, depth, self.ids[index])
        low, high = row.get("depth_range") or _RANGE
        intrinsics = (camera.fx, camera.fy, camera.cx, camera.cy)
        return EvalItem(self.ids[index], image, intrinsics, depth, (low, high), points, metres)

    def _points(
        self, row: dict[str, Any], depth: NDArray[np.float32], name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if "points" in row:
            listed = [(point["column"], point["row"], point["depth"]) for point in row["points"]]
            found = np.array(listed, dtype=np.float64).reshape(-1, 3)
            return found[:, :2].astype(np.int64), found[:, 2]
        valid = (depth >= _RANGE[0]) & (depth <= _RANGE[1])
        if not valid.any():
            raise ValueError(f"The row {name!r} of {self.file} has no pixel with depth.")
        points = sample_points(valid, POINTS_PER_IMAGE, 0, self.source, self.split, name)
        return points, depth[points[:, 1], points[:, 0]].astype(np.float64)

    def _one_of(self, column: str, default: str) -> str:
        values = set(self._rows[column]) if column in self._rows.column_names else {default}
        if len(values) != 1:
            raise ValueError(f"{self.file} has rows of several sets ({column}: {', '.join(map(str, sorted(values)))}).")
        return str(values.pop())

    def _rows_of(self, columns: list[str]) -> Iterable[dict[str, Any]]:
        return self._rows.select_columns(columns)

    def _size(self, value: Any, name: str) -> tuple[int, int]:
        """Width and height of an upright image, from its header."""
        value = _one(value)
        data = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
        try:
            with open_raster(data) as image:
                # Pillow looks for a PNG's EXIF data behind its pixels too, and so would decode them all.
                known = image.format != "PNG" or "exif" in image.info
                turned = known and image.getexif().get(0x0112) in _QUARTER_TURNS
                return (image.height, image.width) if turned else image.size
        except (OSError, ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"The image of the row {name!r} of {self.file} cannot be read: {error}") from error


def _one(value: Any) -> Any:
    """The entry of a list with one for each image; what is no such list as it is."""
    if not isinstance(value, list) or (value and isinstance(value[0], list)):
        return value
    if len(value) != 1 and not (value and isinstance(value[0], float)):
        raise ValueError(f"it has {len(value)} entries for its image; an evaluation takes rows of one image")
    return value[0] if len(value) == 1 else value


def _depth(value: Any, scale: Any) -> NDArray[np.float32]:
    """Metres `(h, w)` of what a row holds: a file's bytes, its path, or nested lists."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        value = load_array(value) if value.startswith(_ARRAYS) else open_image(value, reduce=False)
    elif isinstance(value, list):
        value = np.asarray(value)
    return read_depth(value, scale)
