"""The released DepthVLM-Bench annotation lines as rows: encoding, range and masks, as far as they tell."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT, read_depth
from .row_files import locate

# Columns of these lines that a row is made of; `prompt`, `image`, `depth`, `depth_scale`, `depth_type` and `intrinsics`
# are common to all rows.
ANNOTATION_COLUMNS = (
    "depth_path",
    "depth_format",
    "original_fx",
    "original_fy",
    "original_cx",
    "original_cy",
    "original_depth_size",
    "mask_valid_path",
    "mask_invalid_path",
    "mask_transp_path",
    "solution",
    "pixel_coords",
)

# Metres that the released data set counts as measured, by a word in the path of the depth map (root included): the
# lines do not name their source otherwise, and a path without any of these words has no range.
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

# The scale of the SUN RGB-D lines alone. Its PNGs hold millimetres with their bits rotated by 3, of which a division by
# 8000 is only the first 8.192 m.
ROTATED_SCALE = 8000.0

# "No measurement" in Taskonomy and HM3D; at every scale of the released lines it lies outside the valid range.
NO_MEASUREMENT = 65535


@dataclass(frozen=True)
class AnnotatedDepth:
    """
    The depth map of an annotation line, read when its row is.

    Args:
        path (`str`): The file, relative to the depth root.
        scale (`float`, *optional*): Raw value divided by metres.
        size (`tuple[int, int]`, *optional*): Width and height in pixels, which a raw raster does not say itself.
        raster (`bool`): Whether the file is a headerless raster of little-endian float32 metres.
        masks (`tuple[str, ...]`): Pictures of any size, 0 where the depth is not valid.
    """

    path: str
    scale: float | None = None
    size: tuple[int, int] | None = None
    raster: bool = False
    masks: tuple[str, ...] = ()

    def read(self, root: str | None = None) -> np.ndarray:
        """Metres `(H, W)`, float32, 0 where not valid. Raises OSError or ValueError if a file cannot be read."""
        file = below(self.path, root)
        if self.raster:
            depth = self._read_raster(file)
        elif os.path.splitext(file)[1].lower() == ".npy":
            depth = read_depth(file, self.scale)
        else:
            depth = self._read_picture(file)
        for mask in self.masks:
            with Image.open(below(mask, root)) as picture:
                resized = picture.convert("L").resize((depth.shape[1], depth.shape[0]), Image.Resampling.NEAREST)
            depth = np.where(np.asarray(resized) > 0, depth, np.float32(0))
        low, high = next((bounds for word, bounds in VALID_RANGE.items() if word in file.lower()), (0, np.inf))
        return np.where((depth >= low) & (depth <= high), depth, np.float32(0))

    def _read_raster(self, file: str) -> np.ndarray:
        depth = np.fromfile(file, dtype="<f4")
        if self.size is None or depth.size != self.size[0] * self.size[1]:
            raise ValueError(
                f"The raster {file} holds {depth.size} float32 values, `original_depth_size` (width, height) is "
                f"{self.size}."
            )
        return read_depth(depth.reshape(self.size[1], self.size[0]))

    def _read_picture(self, file: str) -> np.ndarray:
        with Image.open(file) as picture:
            if not picture.mode.startswith("I"):
                return read_depth(picture, self.scale)
            raw = np.asarray(picture)
        raw = np.where(raw == NO_MEASUREMENT, 0, raw).astype(np.uint16 if raw.max() <= NO_MEASUREMENT else np.int64)
        if self.scale == ROTATED_SCALE and raw.dtype == np.uint16:
            return read_depth((raw >> 3) | (raw << 13), 1000)
        return read_depth(raw, self.scale)


def is_annotation(row: dict[str, Any]) -> bool:
    """Whether a row is an annotation line: with a map (`depth_path`, `original_fx`), or points alone."""
    known = {"messages", "completion", "text"} & set(row)
    return not known and (("depth_path" in row and "original_fx" in row) or "pixel_coords" in row)


def annotation_row(row: dict[str, Any], null_columns: set[str], image_root: str | None = None) -> dict[str, Any]:
    """
    The row that an annotation line stands for, without opening a file.

    Args:
        row (`dict`): The line, without its nulls.
        null_columns (`set[str]`): Its columns that hold null; one for an unknown `original_fx` is added.
        image_root (`str`, *optional*): Folder of the images, also of a path that begins with a slash.

    Returns:
        `dict`: `image`, `depth`, the camera, `messages` and, where there is one, `__row__`, under their standard names.

    Raises:
        ValueError: for points without the size of their map.
    """
    result: dict[str, Any] = {name: row[name] for name in ("image", "images", "depth_type", "__row__") if name in row}
    if isinstance(row.get("image"), str):
        result["image"] = below(row["image"], image_root)
    user = {"role": "user", "content": row.get("prompt", DEPTH_PROMPT)}
    result["messages"] = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, user]
    # The lines are the paper's training data, whose stage 2 learns the constant reply, so a line with a solution has
    # it as its reply. Drop the column (`columns:` of a mixture) and the same lines train depth alone, without words.
    if row.get("solution"):
        result["messages"].append({"role": "assistant", "content": row["solution"]})

    names = ("original_fx", "original_fy", "original_cx", "original_cy")
    if all(name in row for name in names):
        result["intrinsics"] = [row[name] for name in names]
    elif "original_fx" in row:
        result["focal_length"] = row["original_fx"]
    elif "original_fx" in null_columns:
        null_columns.add("focal_length")
    size = row.get("original_depth_size")
    if "depth_path" in row:
        masks = (row.get("mask_valid_path") or row.get("mask_invalid_path"), row.get("mask_transp_path"))
        result["depth"] = AnnotatedDepth(
            row["depth_path"],
            row.get("depth_scale"),
            None if size is None else (int(size[0]), int(size[1])),
            row.get("depth_format") == "binary_float32",
            tuple(mask for mask in masks if mask),
        )
        return result
    if "intrinsics" in row:
        # fx, fy, cx, cy, width, height
        result["intrinsics"], size = row["intrinsics"][:4], size or row["intrinsics"][4:6]
    result["depth"] = _points_to_map(row["pixel_coords"], row.get("depth"), size)
    return result


def below(path: str, root: str | None) -> str:
    """`path` below `root`: in these lines also one that begins with a slash."""
    return path if root is None else locate(path.lstrip("/"), root)


def _points_to_map(pixels: Any, metres: Any, size: Any) -> np.ndarray:
    if not size or metres is None or len(metres) != len(pixels):
        raise ValueError(
            "An annotation line without `depth_path` needs `pixel_coords`, a `depth` in metres for each of them, and "
            "the size of their map: `original_depth_size` or the last two of `intrinsics`."
        )
    depth = np.zeros((int(size[1]), int(size[0])), dtype=np.float32)
    columns, rows = np.asarray(pixels, dtype=np.int64).reshape(-1, 2).T
    if columns.size and not (0 <= columns.min() <= columns.max() < size[0] and 0 <= rows.min() <= rows.max() < size[1]):
        raise ValueError(f"`pixel_coords` has points outside the map of {size[0]}x{size[1]} pixels (width x height).")
    depth[rows, columns] = metres
    return depth
