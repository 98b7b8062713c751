"""From a depth map to points and triangles in the camera's frame: x right, y down, z forward, in metres (OpenCV)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .lens import Lens
from .visualize import valid_mask

if TYPE_CHECKING:
    from .processing import Camera


# Neighbouring samples belong to different surfaces if their relative depth step exceeds, by default, this many pixels /
# fx: a surface seen at less than 1.4 degrees. Unlike a fixed step it suits any resolution.
GRAZING = 40.0


class DepthGrid(NamedTuple):
    """Every `stride`-th pixel of a depth map in both directions, back-projected.

    points: `(h, w, 3)` float32, x, y, z in metres; not finite where there is no depth.
    depth: `(h, w)` float32 in metres, z-depth or, of a wide lens, along the ray; NaN where there is none.
    valid: `(h, w)` bool.
    max_jump: largest relative depth step, `far / near - 1`, between neighbours on one surface.
    stride: in pixels.
    """

    points: NDArray[np.float32]
    depth: NDArray[np.float32]
    valid: NDArray[np.bool_]
    max_jump: float
    stride: int


def back_project(
    depth: NDArray[np.floating],
    camera: "Camera | Lens",
    max_points: int | None = None,
    max_jump: float | None = None,
) -> DepthGrid:
    """Return the points of a depth map: `x = (u + 0.5 - cx) / fx * z`, pixel centres at half integers.

    Args:
        depth: `(H, W)`, z-depth in metres; of the `depth_type` of a lens.
        camera: Camera of the map, or its lens.
        max_points: Take every n-th pixel in both directions, with the smallest n that gives at most this many points.
        max_jump: See `DepthGrid`. None: `stride * GRAZING / fx`.
    """
    height, width = depth.shape
    stride = 1
    while max_points is not None and -(-height // stride) * -(-width // stride) > max_points:
        stride += 1
    z = depth[::stride, ::stride].astype(np.float32)
    valid = valid_mask(z)
    z = np.where(valid, z, np.float32(np.nan))
    across, down = np.arange(0, width, stride, dtype=np.float32) + 0.5, np.arange(0, height, stride) + 0.5
    if isinstance(camera, Lens):
        rays = camera.depth_rays(np.stack(np.meshgrid(across, down), axis=-1))
        points = (rays * z[..., None]).astype(np.float32)
    else:
        x, y = (across - camera.cx) / camera.fx, (down.astype(np.float32) - camera.cy) / camera.fy
        points = np.stack([x[None, :] * z, y[:, None] * z, z], axis=-1).astype(np.float32)
    return DepthGrid(points, z, valid, stride * GRAZING / camera.fx if max_jump is None else max_jump, stride)


def ray_to_z(distance: NDArray[np.floating], camera: "Camera") -> NDArray[np.float32]:
    """Return the z-depth of distances along the rays: `d / sqrt(((u - cx) / fx)^2 + ((v - cy) / fy)^2 + 1)`.

    Args:
        distance: `(H, W)` in metres.
        camera: Camera of the image; it is scaled to the map. Pixel centres are at half integers.
    """
    height, width = distance.shape
    camera = camera.scaled_to(width, height)
    across = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    down = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    return (distance / np.sqrt(across[None, :] ** 2 + down[:, None] ** 2 + 1)).astype(np.float32)


def viewing_rays(pixels: ArrayLike, intrinsics: Sequence[float]) -> NDArray[np.float64]:
    """Return the rays with z = 1 through pixels: `((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1)`.

    Args:
        pixels: `(n, 2)`, column u and row v as indices: whole numbers are the centres of pixels.
        intrinsics: fx, fy, cx, cy in pixels, the centre of the first pixel at (0.5, 0.5).

    Returns:
        `(n, 3)`: a point is its ray times its z-depth.

    Raises:
        ValueError: The pixels are not `(n, 2)`, or the intrinsics not four numbers with positive focal lengths.
    """
    uv = np.asarray(pixels, dtype=np.float64)
    if uv.ndim != 2 or uv.shape[1] != 2:
        raise ValueError(f"Pixels are (n, 2), column and row, got {uv.shape}.")
    if len(intrinsics) != 4 or not (intrinsics[0] > 0 and intrinsics[1] > 0):
        raise ValueError(f"Intrinsics are fx, fy, cx, cy in pixels with fx, fy > 0, got {tuple(intrinsics)}.")
    fx, fy, cx, cy = intrinsics
    return np.column_stack([(uv[:, 0] + 0.5 - cx) / fx, (uv[:, 1] + 0.5 - cy) / fy, np.ones(len(uv))])


def ray_factors(pixels: ArrayLike, intrinsics: Sequence[float]) -> NDArray[np.float64]:
    """Return the distance along the ray over the z-depth at each pixel, `(n,)`; see [`viewing_rays`]."""
    return np.linalg.norm(viewing_rays(pixels, intrinsics), axis=1)


def intrinsics_of_map(
    intrinsics: tuple[float, float, float, float], image_size: tuple[int, int], shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy in pixels of a map that covers the whole image.

    Args:
        intrinsics: In pixels of the image.
        image_size: Width and height in pixels.
        shape: Height and width of the map.
    """
    fx, fy, cx, cy = intrinsics
    x, y = shape[1] / image_size[0], shape[0] / image_size[1]
    return fx * x, fy * y, cx * x, cy * y


def flying_pixels(grid: DepthGrid) -> NDArray[np.bool_]:
    """Find the samples that hang between two surfaces, `(h, w)`.

    They lie behind one neighbour and in front of the opposite one, both by more than `max_jump`. A thin object (in
    front of, or behind, both neighbours) and the true edge of a surface (a jump on one side only) are kept.
    """
    log_z = np.log(grid.depth)
    limit = np.log1p(grid.max_jump)
    flying = np.zeros(log_z.shape, dtype=bool)
    for z, mask in ((log_z, flying), (log_z.T, flying.T)):  # along rows, then columns; .T are views
        step = np.diff(z, axis=1)  # comparisons with NaN (no depth) are false
        before, after = step[:, :-1], step[:, 1:]
        mask[:, 1:-1] |= ((before > limit) & (after > limit)) | ((before < -limit) & (after < -limit))
    return flying


def surface_triangles(grid: DepthGrid) -> NDArray[np.int32]:
    """Return triangles `(n, 3)` between neighbouring samples of one surface, as indices into the flattened grid.

    Each square of four neighbours gives two triangles that face the camera. A triangle is left out when a corner has no
    depth or its corners' depths differ by more than `max_jump`: nothing is stretched across a depth discontinuity.
    """
    height, width = grid.valid.shape
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    top_left, top_right = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    bottom_left, bottom_right = index[1:, :-1].ravel(), index[1:, 1:].ravel()
    z = grid.depth.ravel()
    triangles = []
    for corners in ((top_left, bottom_left, top_right), (top_right, bottom_left, bottom_right)):
        a, b, c = (z[corner] for corner in corners)  # by hand: a reduction along an axis of three takes 5 times as long
        near, far = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
        kept = far <= near * (1 + grid.max_jump)
        triangles.append(np.stack([corner[kept] for corner in corners], axis=1))
    return np.concatenate(triangles)


def surface_normals(grid: DepthGrid) -> NDArray[np.float32]:
    """Return the unit normals of the visible surface, `(h, w, 3)`, towards the camera; NaN where there is none.

    A normal is the cross product of the differences of points along a column and along a row. These are central; at
    the edge of a surface, where one neighbour has no depth or differs by more than `max_jump`, one-sided.
    """
    down, across = _differences(grid, 0), _differences(grid, 1)
    normals = np.cross(down, across)
    with np.errstate(invalid="ignore"):
        return (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)


def _differences(grid: DepthGrid, axis: int) -> NDArray[np.float32]:
    """Return the differences of neighbouring points along an axis of the grid, NaN without one on the same surface."""
    points, depth = np.moveaxis(grid.points, axis, 0), np.moveaxis(grid.depth, axis, 0)
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(np.diff(np.log(depth), axis=0)) <= np.log1p(grid.max_jump))
    steps = np.diff(points, axis=0)
    steps[apart] = np.nan
    none = np.full((1, *points.shape[1:]), np.nan, dtype=np.float32)
    after, before = np.concatenate([steps, none]), np.concatenate([none, steps])
    difference = after + before
    for one_sided in (after, before):
        difference = np.where(np.isnan(difference), one_sided, difference)
    return np.moveaxis(difference, 0, axis)
