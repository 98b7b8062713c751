"""Pictures through any lens: cut into pinhole views for the model, whose metres are brought back to their pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .geometry import GRAZING
from .lens import Lens, pixel_centres
from .processing import Camera
from .visualize import valid_mask

# A lens is undistorted into one view if all that it sees is within this angle of the axis, in degrees.
ONE_VIEW = 60.0
# A lens that sees further than that from the axis gets the views of a panorama.
ALL_AROUND = 120.0
# Half the side of the square views that a wider lens is cut into, in degrees: those around a panorama, and the others.
_AROUND, _TILTED = 45.0, 50.0
# Power of the weights in overlaps. With 1, the six tilted views outvote the straight one in the middle of a picture.
_SHARPNESS = 4
_MARGIN = 2  # pixels around the outermost rays of one view
_ROWS = 256  # of the picture at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A pinhole view through a lens.

    Attributes:
        camera: Camera of the view: square pixels, principal point in the middle.
        rotation: `(3, 3)`: its columns are the view's axes (right, down, forward) in the frame of the lens.
    """

    camera: Camera
    rotation: Array


def lens_views(lens: Lens) -> list[View]:
    """Return the pinhole views that cover a lens's picture, at the picture's own resolution in their middles.

    One undistorted view where the lens sees at most [`ONE_VIEW`] degrees from the axis. Else a panorama gives six views
    of 90 degrees around the horizon, 60 degrees apart, and two of 100 degrees up and down, and so does a fisheye that
    sees beyond [`ALL_AROUND`]; another lens gives one along the axis and six tilted ones around it, of 100 degrees.
    Views of what is not in the picture are left out.

    Args:
        lens: With the size of its picture.
    """
    if lens.model != "equirectangular" and lens.largest_angle <= ONE_VIEW:
        return [View(_covering_camera(lens), np.eye(3))]
    if lens.model == "equirectangular" or lens.largest_angle > ALL_AROUND:
        square = [(_rotation(60.0 * index, 0.0), _AROUND) for index in range(6)]
        square += [(_rotation(0.0, pitch), _TILTED) for pitch in (-90.0, 90.0)]
    else:
        # Views tilted by more than 60 degrees leave a gap around the axis; 35 degrees reach the border with a margin.
        tilt = min(max(lens.largest_angle - 35.0, 30.0), 75.0)
        square = [(np.eye(3), _TILTED)]
        square += [(_looking_at(tilt, 60.0 * index), _TILTED) for index in range(6)]
    focal_length = math.sqrt(lens.fx * lens.fy)
    views = []
    for rotation, half in square:
        side = 2 * math.ceil(focal_length * math.tan(math.radians(half)))
        camera = Camera(focal_length, focal_length, side / 2, side / 2, side, side, lens.source)
        views.append(View(camera, rotation))
    rays = _sample_rays(lens)
    best = np.argmax([_weights(view, rays @ view.rotation) for view in views], axis=0)[np.isfinite(rays[:, 0])]
    return [view for index, view in enumerate(views) if (best == index).any()]


def _sample_rays(lens: Lens) -> Array:
    """Return rays `(n, 3)` of pixels all over the picture."""
    width, height = _size(lens)
    positions = np.meshgrid(np.linspace(0.5, width - 0.5, 64), np.linspace(0.5, height - 0.5, 64))
    return lens.rays(np.stack(positions, axis=-1)).reshape(-1, 3)


def _size(lens: Lens) -> tuple[int, int]:
    if lens.width is None or lens.height is None:
        raise ValueError("The size of this lens's picture is not known: use `scaled_to(width, height)` first.")
    return lens.width, lens.height


def _covering_camera(lens: Lens) -> Camera:
    """Return the camera, of the lens's focal length, of the smallest centred view of all that the lens sees."""
    width, height = _size(lens)
    positions = np.meshgrid(np.linspace(0, width, 257), np.linspace(0, height, 257))
    rays = lens.rays(np.stack(positions, axis=-1))
    slopes = np.abs(rays[..., :2] / rays[..., 2:])
    across, down = (2 * (math.ceil(lens.fx * np.nanmax(slopes[..., axis])) + _MARGIN) for axis in (0, 1))
    return Camera(lens.fx, lens.fx, across / 2, down / 2, across, down, lens.source)


def _rotation(yaw: float, pitch: float) -> Array:
    """Return the axes of a level view turned to the right by `yaw` degrees, then down by `pitch` degrees."""
    (c, s), (cp, sp) = ((math.cos(angle), math.sin(angle)) for angle in (math.radians(yaw), math.radians(pitch)))
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return turn @ np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])


def _looking_at(tilt: float, around: float) -> Array:
    """Return the axes of a view `tilt` degrees off the axis in the direction `around`, as level as that allows."""
    t, a = math.radians(tilt), math.radians(around)
    forward = np.array([math.sin(t) * math.cos(a), math.sin(t) * math.sin(a), math.cos(t)])
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)  # no view looks straight up or down: tilt is at most 75 degrees
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def cut_view(image: Image.Image, lens: Lens, view: View) -> Image.Image:
    """Return what a view sees of the picture, RGB; the border's colours continue where the picture ends.

    Args:
        image: The picture, RGB, of the lens's size.
        lens: Its lens.
        view: One of [`lens_views`].
    """
    width, height = view.camera.width, view.camera.height
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    left = 0
    if _wraps(lens):
        left = 2  # bicubic weights reach that far beyond the seam
        pixels = torch.cat([pixels[..., -left:], pixels, pixels[..., :left]], dim=-1)
    parts = []
    for start in range(0, height, _ROWS):
        positions = pixel_centres(width, range(start, min(start + _ROWS, height)))
        rays = _view_rays(view.camera, positions) @ view.rotation.T
        seen = np.nan_to_num(lens.project(rays), nan=-1.0)  # not seen by the lens: the corner's colour
        size = np.array([image.width + 2 * left, image.height])
        grid = torch.from_numpy((seen + np.array([left, 0])) / size * 2 - 1).float()[None]
        parts.append(
            torch.nn.functional.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
        )
    result = torch.cat(parts, dim=2)[0].round().clamp(0, 255).byte()
    return Image.fromarray(result.permute(1, 2, 0).numpy())


def _wraps(lens: Lens) -> bool:
    """Return whether the right border of the picture continues at the left one."""
    return lens.model == "equirectangular" and abs(2 * math.pi * lens.fx / (lens.width or 1) - 1) < 1e-3


def _view_rays(camera: Camera, positions: Array) -> Array:
    x, y = (positions[..., 0] - camera.cx) / camera.fx, (positions[..., 1] - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def merge_views(lens: Lens, views: Sequence[View], depths: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Return the depth of the picture's own pixels from that of its views, in the lens's `depth_type`.

    The z-depth of a view is read at the position of each pixel's ray, linear in the inverse depth, which is exact on
    planes, or of the nearest pixel across a step in depth. Where views overlap, the logarithms of their distances are
    averaged with weights that fall to zero at the borders of each view.

    Args:
        lens: The lens, with the size of its picture.
        views: Its views.
        depths: The z-depth of each view in metres, `(H, W)` of the view's camera.

    Returns:
        `(H, W)` float32 in metres; NaN where the lens has no ray, or no view has a depth.
    """
    width, height = _size(lens)
    depth = np.full((height, width), np.nan, np.float32)
    as_z = lens.depth_type == "z_depth"
    inverses = [np.where(valid_mask(one), 1 / np.where(valid_mask(one), one, 1), np.nan) for one in depths]
    for start in range(0, height, _ROWS):
        rows = range(start, min(start + _ROWS, height))
        rays = lens.rays(pixel_centres(width, rows))
        total, weight = np.zeros(rays.shape[:2]), np.zeros(rays.shape[:2])
        for view, inverse in zip(views, inverses, strict=True):
            local = rays @ view.rotation
            share = _weights(view, local)
            if not (seen := share > 0).any():
                continue
            found, camera = local[seen], view.camera
            x = found[:, 0] / found[:, 2] * camera.fx + camera.cx
            y = found[:, 1] / found[:, 2] * camera.fy + camera.cy
            sampled = _sampled(inverse, x, y, GRAZING / camera.fx) * found[:, 2]  # of the inverse distance
            known = np.isfinite(sampled)
            share = np.where(known, share[seen], 0)
            total[seen] -= share * np.log(np.where(known, sampled, 1))
            weight[seen] += share
        with np.errstate(invalid="ignore"):
            distance = np.exp(total / np.where(weight > 0, weight, np.nan))
        depth[rows.start : rows.stop] = distance * rays[..., 2] if as_z else distance
    return depth


def _weights(view: View, rays: Array) -> Array:
    """Return the weights of a view for rays `(..., 3)` in its frame: 1 in its middle, 0 where it does not see them."""
    camera = view.camera
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = np.abs(rays[..., 0] / rays[..., 2]), np.abs(rays[..., 1] / rays[..., 2])
        inside = (1 - x * camera.fx / camera.cx, 1 - y * camera.fy / camera.cy)
        seen = (rays[..., 2] > 0) & (inside[0] > 0) & (inside[1] > 0)
        return np.where(seen, (inside[0] * inside[1]) ** _SHARPNESS, 0.0)


def _sampled(values: Array, x: Array, y: Array, step: float) -> Array:
    """Return values at positions in pixels: bilinear, or the nearest where neighbours differ by more than `step`."""
    height, width = values.shape
    left, top = (np.clip(np.floor(at - 0.5), 0, side - 2).astype(int) for at, side in ((x, width), (y, height)))
    right, down = np.clip(x - 0.5 - left, 0, 1), np.clip(y - 0.5 - top, 0, 1)
    corners = np.stack([values[top + j, left + i] for j in (0, 1) for i in (0, 1)])
    shares = np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down])
    smooth = corners.max(axis=0) <= corners.min(axis=0) * (1 + step)  # false with NaN
    nearest = np.take_along_axis(corners, shares.argmax(axis=0)[None], axis=0)[0]
    return np.where(smooth, (corners * shares).sum(axis=0), nearest)
