"""Sets to evaluate on, decoded image by image: splits of a finished build, or the rows of a Parquet file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...files import file_hash
from ...geometry import ray_to_z
from ...processing import read_depth, resolve_camera
from ...processing.depth_maps_depthvlm import load_array
from ...processing.images_depthvlm import open_image, open_raster, upright_image
from ..build.sampling import POINTS_PER_IMAGE, sample_points
from ..build.shards import build_hash, finished_builds, load_build
from ..sources.files import same_shape
from .scene_masks import SceneMasks

_RANGE = (0.001, 1000.0)  # metres that count where a row has no `depth_range`
_QUARTER_TURNS = (5, 6, 7, 8)  # values of EXIF's orientation
_ARRAYS = (b"\x93NUMPY", b"PK")


@dataclass(frozen=True)
class EvalItem:
    """One image with its truth."""

    id: str  # unique in its set
    image: Image.Image  # RGB, upright
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy in pixels, the centre of the first at (0.5, 0.5)
    depth: NDArray[np.float32]  # z-depth (h, w) in metres, 0 where there is none
    depth_range: tuple[float, float]  # metres that the source counts as measured
    points: NDArray[np.int64]  # (n, 2) column and row in pixels of the depth map
    point_depths: NDArray[np.float64]  # (n,) metres at the points
    masks: SceneMasks | None = None  # planes and edges, where the source gives them and maps are scored


class EvalSet:
    """A split of one source, as written by `depthvlm bench build`.

    Args:
        folder: Folder of the build.
        source: Name of the source.
        split: "test" or "train".

    Raises:
        FileNotFoundError: The folder does not exist.
        BuildError: The folder has no such finished build, or a file differs from the manifest.
    """

    def __init__(self, folder: str | Path, source: str, split: str = "test"):
        [entry] = finished_builds(folder, split, source).values()
        self.source, self.split = source, split
        self.seed: int | None = entry["parameters"]["seed"]  # None: the source gave its own points
        self.options: dict[str, Any] = entry["parameters"].get("options") or {}
        self.hash = build_hash(entry)
        self._rows: Any = _undecoded(load_build(folder, split, source, verify=True), "image", "depth")
        self.ids: list[str] = list(self._rows["id"])
        self.sizes: list[tuple[int, int]] = list(zip(self._rows["width"], self._rows["height"], strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> EvalItem:
        """Decode one image. Several threads may call this at once.

        Raises:
            ValueError: The image or its truth cannot be used; the message names it.
        """
        row: dict[str, Any] = self._rows[index]
        try:
            image = open_image(row["image"]["bytes"], reduce=False)
            depth = read_depth(open_image(row["depth"]["bytes"], reduce=False), row["depth_scale"])
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"The image {row['id']!r} of {self.source} {self.split} cannot be read: {error}"
            ) from error
        camera, depth_range = tuple(row["intrinsics"]), tuple(row["depth_range"])
        return EvalItem(row["id"], image.convert("RGB"), camera, depth, depth_range, *_listed_points(row["points"]))


class EvalRows(EvalSet):
    """Rows of a Parquet file: rows for training, or a shard of a build.

    Rows for training have `image`, `depth`, `focal_length` or `intrinsics`, and optionally `depth_scale` and
    `depth_type`. Their images are turned upright as in training. Rows without `points` get ten, drawn with the seed 0.
    Metres from 0.001 to 1000 count where a row has no `depth_range`.

    Args:
        file: The Parquet file.
        split: Name of the split in the results, where the rows name none.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no Parquet file, lacks a column, or has rows of several sets.
    """

    def __init__(self, file: str | Path, split: str = "test"):
        from datasets import Dataset

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
        self._rows = _undecoded(rows, self._image, "depth")
        self.source = self._same_for_all("source", self.file.stem)
        self.split = self._same_for_all("split", split)
        self.seed = None if "points" in rows.column_names else 0
        self.options = {"file": self.file.name}
        self.hash = file_hash(self.file)
        self.ids = list(rows["id"]) if "id" in rows.column_names else [f"{n:07d}" for n in range(len(rows))]
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{self.file} has {len(self.ids)} rows with {len(set(self.ids))} different ids.")
        images = self._rows.select_columns([self._image])
        self.sizes = [self._size(row[self._image], name) for row, name in zip(images, self.ids, strict=True)]

    def read(self, index: int) -> EvalItem:
        """Decode one image. Several threads may call this at once.

        Raises:
            ValueError: Its image, depth or camera cannot be used; the message names the row.
        """
        row = {name: value for name, value in self._rows[index].items() if value is not None}
        name = self.ids[index]
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
            raise ValueError(f"The row {name!r} of {self.file} cannot be used: {error}") from error
        if "points" in row:
            points, metres = _listed_points(row["points"])
        else:
            valid = (depth >= _RANGE[0]) & (depth <= _RANGE[1])
            if not valid.any():
                raise ValueError(f"The row {name!r} of {self.file} has no pixel with depth.")
            points = sample_points(valid, POINTS_PER_IMAGE, 0, self.source, self.split, name)
            metres = depth[points[:, 1], points[:, 0]].astype(np.float64)
        low, high = row.get("depth_range") or _RANGE
        intrinsics = (camera.fx, camera.fy, camera.cx, camera.cy)
        return EvalItem(name, image, intrinsics, depth, (low, high), points, metres)

    def _same_for_all(self, column: str, default: str) -> str:
        values = set(self._rows[column]) if column in self._rows.column_names else {default}
        if len(values) != 1:
            raise ValueError(f"{self.file} has rows of several sets ({column}: {', '.join(map(str, sorted(values)))}).")
        return str(values.pop())

    def _size(self, value: Any, name: str) -> tuple[int, int]:
        """Return width and height of the upright image, from its header."""
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


def open_sets(folder: str | Path, split: str = "test", sources: tuple[str, ...] = ()) -> list[EvalSet]:
    """Open the sets of a folder of builds, those of `sources` or all, in the order of their names; or a Parquet file.

    Raises:
        FileNotFoundError: The folder or file does not exist.
        BuildError: A requested set is not finished there; the message lists what there is.
        ValueError: The file is no set, or belongs to none of `sources`.
    """
    if Path(folder).suffix.lower() in (".parquet", ".jsonl", ".json") or Path(folder).is_file():
        rows = EvalRows(folder, split)
        if sources and set(sources) != {rows.source}:
            raise ValueError(f"{folder} holds the set {rows.source}, not {', '.join(sources)}.")
        return [rows]
    if not sources:
        sources = tuple(entry["source"] for entry in finished_builds(folder, split).values())
    return [EvalSet(folder, source, split) for source in sources]


def _undecoded(rows: Any, *columns: str) -> Any:
    """Return the rows with the bytes of their image columns, not pictures."""
    from datasets import Image as ImageFeature

    for name in columns:
        if isinstance(rows.features[name], ImageFeature):
            rows = rows.cast_column(name, ImageFeature(decode=False))
    return rows


def _listed_points(points: list[dict[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    listed = [(point["column"], point["row"], point["depth"]) for point in points]
    found = np.array(listed, dtype=np.float64).reshape(-1, 3)
    return found[:, :2].astype(np.int64), found[:, 2]


def _one(value: Any) -> Any:
    """Return the entry of a list with one entry per image; anything else as it is."""
    if not isinstance(value, list) or (value and isinstance(value[0], list)):
        return value
    if len(value) != 1 and not (value and isinstance(value[0], float)):
        raise ValueError(f"it has {len(value)} entries for its image; an evaluation takes rows of one image")
    return value[0] if len(value) == 1 else value


def _depth(value: Any, scale: Any) -> NDArray[np.float32]:
    """Return metres `(h, w)` from a file's bytes, a path, or nested lists."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        value = load_array(value) if value.startswith(_ARRAYS) else open_image(value, reduce=False)
    elif isinstance(value, list):
        value = np.asarray(value)
    return read_depth(value, scale)
