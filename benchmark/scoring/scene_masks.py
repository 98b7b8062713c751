"""Masks of planes and edges that some sources bring besides depth: iBims-1's annotations, and the renderer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .edge_width import EDGE_RATIO

if TYPE_CHECKING:
    from .eval_sets import EvalItem


@dataclass(frozen=True)
class SceneMasks:
    """What is known of an image besides its depth."""

    planes: NDArray[np.int64]  # (h, w), number of the plane that each pixel belongs to, -1 for none
    edges: NDArray[np.bool_]  # (h, w), pixels at depth boundaries


MaskReader: TypeAlias = "Callable[[EvalItem], SceneMasks]"


def mask_reader(source: str, folder: str | Path | None = None) -> MaskReader | None:
    """Return a function that gives the masks of an image of a source, or None where there are none.

    Args:
        source: Name of the source. "synthetic" needs nothing besides; "ibims1" needs `folder`.
        folder: iBims-1's `ibims1_core_mat`, unpacked: `<name>.mat` of each image.

    Raises:
        FileNotFoundError: The folder does not exist or holds no .mat file.
    """
    if source == "synthetic":
        return _rendered
    if source != "ibims1" or folder is None:
        return None
    path = Path(folder)
    if not any(path.glob("*.mat")):
        raise FileNotFoundError(f"{path} holds no .mat file: give the folder of iBims-1's ibims1_core_mat.zip.")
    return lambda item: _annotated(path / f"{item.id}.mat", item.depth.shape)


def _rendered(item: EvalItem) -> SceneMasks:
    """Render the scene again: its id says which it is."""
    from ..synthetic.scenes import render_scene

    kind, _, seed = item.id.partition("/")
    height, width = item.depth.shape
    scene = render_scene(int(seed), kind=kind, width=width, height=height)  # type: ignore[arg-type]
    if not np.array_equal(scene.depth, item.depth):
        raise ValueError(
            f"The depth of the synthetic image {item.id!r} is not what the renderer makes of it now: the build is of "
            "another version. Build it again."
        )
    planes = scene.planes.astype(np.int64)
    edges = np.zeros(planes.shape, bool)
    for axis in (0, 1):
        _mark_edges(np.moveaxis(scene.depth, axis, 0), np.moveaxis(planes, axis, 0), np.moveaxis(edges, axis, 0))
    return SceneMasks(planes, edges)


def _mark_edges(depth: NDArray[np.floating], planes: NDArray[np.int64], edges: NDArray[np.bool_]) -> None:
    """Mark the nearer one of two neighbouring rows' pixels where depth jumps from one surface to another."""
    first, second = depth[:-1], depth[1:]
    both = (first > 0) & (second > 0) & ((planes[:-1] != planes[1:]) | (planes[1:] < 0))
    edges[:-1] |= both & (second >= EDGE_RATIO * first)
    edges[1:] |= both & (first >= EDGE_RATIO * second)


def _annotated(path: Path, shape: tuple[int, ...]) -> SceneMasks:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        values: Any = loadmat(str(path))["data"][0, 0]
        names = ("edges", "mask_wall", "mask_table", "mask_floor")
        edges, *kinds = (np.asarray(values[name]) for name in names)
    except (OSError, KeyError, ValueError, IndexError, NotImplementedError, MatReadError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): a file of iBims-1's ibims1_core_mat.zip with `data` and its fields "
            "edges, mask_wall, mask_table and mask_floor was expected."
        ) from error
    if any(each.shape != shape for each in (edges, *kinds)):
        raise ValueError(f"The masks in {path} have the shapes {[each.shape for each in kinds]}, the depth {shape}.")
    planes, count = np.full(shape, -1, np.int64), 0
    for labels in (each.astype(np.int64) for each in kinds):  # 1, 2, ... for each plane of the kind
        planes = np.where(labels > 0, count + labels, planes)
        count += int(labels.max())
    return SceneMasks(planes, edges > 0)
