"""The released DepthVLM-Bench annotation lines as rows: camera, text and depth, as far as they tell."""

from typing import Any

from ..annotated_depth import DEPTH_COLUMNS, AnnotatedDepth, is_ray_distance, listed_points, map_size, points_to_map
from ..processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from .row_files import locate

# Columns of these lines that a row is made of; `prompt`, `image`, `depth`, `depth_scale`, `depth_type` and `intrinsics`
# are common to all rows.
ANNOTATION_COLUMNS = (
    *DEPTH_COLUMNS,
    "original_rgb_size",
    "original_fx",
    "original_fy",
    "original_cx",
    "original_cy",
    "solution",
)


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
    if is_ray_distance(row):
        result["depth_type"] = "ray_distance"
    if isinstance(row.get("image"), str):
        # In these lines a path that begins with a slash is relative too.
        result["image"] = row["image"] if image_root is None else locate(row["image"].lstrip("/"), image_root)
    user = {"role": "user", "content": row.get("prompt", DEPTH_PROMPT)}
    result["messages"] = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}, user]
    # The lines are the paper's training data, whose stage 2 learns the constant reply, so a line with a solution has
    # it as its reply. Drop the column (`columns:` of a mixture) and the same lines train depth alone, without words.
    if row.get("solution"):
        result["messages"].append({"role": "assistant", "content": row["solution"]})

    if "original_fx" in row:
        fx, size = row["original_fx"], list(row.get("original_rgb_size") or [])
        names = ("original_fy", "original_cx", "original_cy")
        if size and not all(name in row for name in names):  # as the released lines, which have the size alone
            row = {"original_fy": fx, "original_cx": size[0] / 2, "original_cy": size[1] / 2, **row}
        if all(name in row for name in names):
            result["intrinsics"] = [fx, *(row[name] for name in names), *size]
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
