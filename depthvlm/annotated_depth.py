"""True depth of the released DepthVLM-Bench annotation lines, for training and for the benchmark alike."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .processing.images_depthvlm import MAX_IMAGE_PIXELS

MAX_POINTS = 1_000_000  # a line of the released data lists ten, a lidar sweep about 200,000

# Columns that define a line's depth, besides `depth` and `depth_scale`.
DEPTH_COLUMNS = (
    "depth_path",
    "depth_format",
    "original_depth_size",
    "mask_valid_path",
    "mask_invalid_path",
    "mask_transp_path",
    "pixel_coords",
)

# Valid range in metres in the released data set, by a word in the path of the depth map (including the root): the lines
# do not name their source otherwise, and a path without any of these words has no range.
VALID_RANGE = {
    "argoverse": (0.05, 120.0),
    "waymo": (0.05, 70.0),
    "nuscenes": (0.05, 80.0),
    "ddad": (0.05, 120.0),
    "scannet": (0.001, 10.0),
    "taskonomy": (0.005, 15.0),
    "hm3d": (0.01, 10.0),
    "matterport": (0.01, 10.0),
    "sunrgbd": (0.005, 8.0),
    "sun_rgbd": (0.005, 8.0),
    "ibims": (0.005, 25.0),
    "nyuv2": (0.005, 10.0),
    "eth3d": (0.01, 50.0),
}

# The scale used only by SUN RGB-D lines. Its PNGs hold millimetres with their bits rotated by 3, of which a division by
# 8000 is only the first 8.192 m.
ROTATED_SCALE = 8000.0

# "No measurement" in Taskonomy and HM3D; at every scale of the released lines it lies outside the valid range.
NO_MEASUREMENT = 65535


@dataclass(frozen=True)
class AnnotatedDepth:
    """The depth map of an annotation line, read when it is needed.

    Attributes:
        path: Path of the file, relative to the depth root.
        scale: Raw value divided by metres.
        size: Width and height in pixels, which a raw raster does not store.
        raster: True if the file is a headerless raster of little-endian float32 metres.
        masks: Pictures of any size, 0 where the depth is not valid.
    """

    path: str
    scale: float | None = None
    size: tuple[int, int] | None = None
    raster: bool = False
    masks: tuple[str, ...] = ()

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> "AnnotatedDepth":
        """Return the map that a line with `depth_path` names, without opening a file; nulls count as absent.

        Raises:
            ValueError: A path is not text; `depth_format` is neither `binary_float32` nor the suffix of the file, or
                `original_depth_size` is not a width and a height.
        """
        names = ("depth_path", "mask_valid_path", "mask_invalid_path", "mask_transp_path")
        path, valid, invalid, transparent = (_path(line, name) for name in names)
        suffix = path.rpartition(".")[2]
        if line.get("depth_format") not in (None, "binary_float32", suffix):
            raise ValueError(
                f"`depth_format` is {line['depth_format']!r}, expected 'binary_float32' for a raster of metres, "
                "or null for a picture or an .npy file."
            )
        size = line.get("original_depth_size")
        return cls(
            path,
            line.get("depth_scale"),
            None if size is None else _width_and_height(size),
            line.get("depth_format") == "binary_float32",
            tuple(mask for mask in (valid or invalid, transparent) if mask),
        )

    def read(self, root: str | None = None) -> np.ndarray:
        """Return metres `(H, W)`, float32, 0 where not valid; raise OSError or ValueError if a file cannot be read."""
        return self._read(root)[0]

    def read_encoded(self, root: str | None = None) -> tuple[np.ndarray, float]:
        """Return the map without loss: 16-bit integers and their scale if stored that way, else float32 metres and 1.

        Args:
            root: Folder of the depth maps and masks.

        Returns:
            `(H, W)` uint16 or float32, 0 where not valid, and the raw value divided by metres.

        Raises:
            OSError, ValueError: A file cannot be read.
        """
        metres, integers, scale = self._read(root)
        return (metres, 1.0) if integers is None else (np.where(metres > 0, integers, np.uint16(0)), scale)

    def _read(self, root: str | None) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Return metres and, if the map is stored as 16-bit integers, these and their scale."""
        from .processing import read_depth
        from .processing.images_depthvlm import open_raster

        file = below(self.path, root)
        integers, scale = None, self.scale
        if self.raster:
            depth = read_depth(self._read_raster(file))
        elif os.path.splitext(file)[1].lower() == ".npy":
            depth = read_depth(file, scale)
        else:
            values, scale = self._read_picture(file)
            integers = values if isinstance(values, np.ndarray) and values.dtype == np.uint16 else None
            depth = read_depth(values, scale)
        for mask in self.masks:
            with open_raster(below(mask, root)) as picture:
                resized = picture.convert("L").resize((depth.shape[1], depth.shape[0]), Image.Resampling.NEAREST)
            depth = np.where(np.asarray(resized) > 0, depth, np.float32(0))
        low, high = next((bounds for word, bounds in VALID_RANGE.items() if word in file.lower()), (0, np.inf))
        return np.where((depth >= low) & (depth <= high), depth, np.float32(0)), integers, float(scale or 1)

    def _read_raster(self, file: str) -> np.ndarray:
        depth = np.fromfile(file, dtype="<f4")
        if self.size is None or depth.size != self.size[0] * self.size[1]:
            raise ValueError(
                f"The raster {file} holds {depth.size} float32 values, `original_depth_size` (width, height) is "
                f"{self.size}."
            )
        return depth.reshape(self.size[1], self.size[0])

    def _read_picture(self, file: str) -> tuple[Any, float | None]:
        """Return the input of `read_depth` (raw values of an integer picture, or the picture itself) and the scale."""
        from .processing.images_depthvlm import open_raster

        with open_raster(file) as picture:
            if not picture.mode.startswith("I"):
                picture.load()
                return picture.copy(), self.scale
            raw = np.asarray(picture)
        raw = np.where(raw == NO_MEASUREMENT, 0, raw).astype(np.uint16 if raw.max() <= NO_MEASUREMENT else np.int64)
        if self.scale == ROTATED_SCALE and raw.dtype == np.uint16:
            return (raw >> 3) | (raw << 13), 1000.0
        return raw, self.scale


def is_ray_distance(line: Mapping[str, Any]) -> bool:
    """Return whether the depth of a line is the distance along the ray.

    This is the case in the released lines of Argoverse 2 and Waymo, although they say `z_depth`. Lines written by this
    package for them have `intrinsics` and z-depth.
    """
    words = " ".join(value for value in line.values() if isinstance(value, str)).lower()
    return ("argoverse" in words or "waymo" in words) and line.get("intrinsics") is None


def listed_points(line: Mapping[str, Any]) -> np.ndarray:
    """Return the points listed in a line.

    Args:
        line: With `pixel_coords`, column and row in pixels of the depth map, and `depth` in metres.

    Returns:
        `(n, 3)`, float64: column, row and metres, in the order of the line.

    Raises:
        ValueError: `pixel_coords` are not pairs of whole numbers, or `depth` does not have one number for each.
    """
    pixels, metres = line.get("pixel_coords"), line.get("depth")
    if pixels is None or metres is None or len(metres) != len(pixels):
        raise ValueError("`pixel_coords` and `depth`, a number in metres for each of them, belong together.")
    if len(pixels) > MAX_POINTS:
        raise ValueError(f"An annotation line lists {len(pixels):,} points, at most {MAX_POINTS:,}: give a depth map.")
    places = np.asarray(pixels if len(pixels) else np.zeros((0, 2)), dtype=np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or (places != np.floor(places)).any():
        raise ValueError("`pixel_coords` must be pairs of whole numbers, column and row.")
    return np.column_stack([places, np.asarray(metres, dtype=np.float64)])


def check_inside(points: np.ndarray, size: tuple[int, int]) -> None:
    """Raise ValueError if a point of [`listed_points`] lies outside a map of `size`, width and height."""
    places = points[:, :2]
    if not ((places >= 0) & (places < size)).all():
        raise ValueError(f"`pixel_coords` has points outside the map of {size[0]}x{size[1]} pixels (width x height).")


def points_to_map(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map that holds only the points.

    Args:
        points: `(n, 3)`, from [`listed_points`].
        size: Width and height of their map.

    Returns:
        `(H, W)`, float32: metres, 0 elsewhere.

    Raises:
        ValueError: A point lies outside.
    """
    check_inside(points, size)
    depth = np.zeros((size[1], size[0]), dtype=np.float32)
    columns, rows = points[:, :2].astype(np.int64).T
    depth[rows, columns] = points[:, 2]
    return depth


def map_size(line: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and height of the map that the points of a line without a map refer to.

    Raises:
        ValueError: Neither `original_depth_size` nor the last two of six `intrinsics` give it, or it is implausibly
            large.
    """
    size = line.get("original_depth_size")
    size = (line.get("intrinsics") or [])[4:6] if size is None else size
    if len(size) == 0:
        raise ValueError(
            "An annotation line without `depth_path` needs `pixel_coords`, a `depth` in metres for each of them, and "
            "the size of their map: `original_depth_size` or the last two of `intrinsics`."
        )
    width, height = _width_and_height(size)
    if not 0 < width * height <= MAX_IMAGE_PIXELS or width < 0:
        raise ValueError(
            f"The map of the points is {width}x{height} pixels, expected 1 to {MAX_IMAGE_PIXELS:,} in all."
        )
    return width, height


def _path(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, (str, type(None))):
        raise ValueError(f"`{name}` is {value!r}, expected the path of a file.")
    return value or ""


def _width_and_height(size: Any) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in size)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`original_depth_size` is {size!r}, expected width and height in pixels.") from None
    return width, height


def below(path: str, root: str | None) -> str:
    """Return `path` below `root`, even if it starts with a slash: in these lines it is relative too."""
    return path if root is None else os.path.join(root, path.lstrip("/"))
