"""A small ray caster in numpy: rectangles and spheres seen by a pinhole camera, with exact z-depth.

Frames follow the camera convention of computer vision: x right, y down, z forward, metres. A ray through normalised
image coordinates (x, y) is (x, y, 1), so the parameter along it *is* the z-depth. On a plane the inverse depth is
affine in (x, y); so are the in-plane coordinates times the inverse depth: a rectangle is four comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .textures import Array, SphereTexture, Texture, Vector, mix

_NEAR = 0.05  # metres; rectangles are clipped there before their bounds are projected
_SEAM = 1e-4  # metres by which rectangles are enlarged, so that no pixel falls between two faces


@dataclass(frozen=True)
class Quad:
    """A rectangle: `corner + s * u + q * v`, 0 <= s <= width, 0 <= q <= height, seen from the side of `u x v`."""

    corner: Vector  # (3,) in the world
    u: Vector  # (3,), orthonormal with v
    v: Vector
    width: float  # metres
    height: float
    texture: Texture
    item: int = -1  # index of the object that the quad belongs to, -1 for none
    decal: bool = False  # lies in the plane of an earlier quad and wins against it
    enclosed: bool = False  # its border is darker, as in the corners of a room


@dataclass(frozen=True)
class Sphere:
    """A sphere: `center` (3,) in the world frame and `radius`, in metres."""

    center: Vector
    radius: float
    texture: SphereTexture
    item: int = -1


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: size in pixels, focal length in pixels, `camera_to_world` (4, 4); centre at (W/2, H/2)."""

    width: int
    height: int
    focal_length: float
    camera_to_world: Vector


@dataclass(frozen=True)
class Light:
    """A directional light: unit `direction` (3,) towards the light in the world, `color` (3,), `ambient` share."""

    direction: Vector
    color: Vector
    ambient: float

    def on(self, normal: NDArray[np.floating]) -> Array:
        """Compute the light (3, n) that reaches surfaces of unit normals (3, n)."""
        # Half-Lambert: faces turned away from the light still differ from one another.
        lambert = (0.5 + 0.5 * (self.direction @ normal)) ** 2
        light: Vector = (self.ambient + (1 - self.ambient) * lambert) * self.color[:, None]
        return light.astype(np.float32)


@dataclass(frozen=True)
class Hits:
    """The surfaces that pixels see."""

    inverse_depth: Array  # (H, W) in 1/m
    surface: NDArray[np.int16]  # (H, W), quads, then spheres; -1: nothing
    plane: Vector  # (n_quads, 3, 3), the affine coefficients on (x, y, 1) of 1/z, s/z and q/z


@lru_cache(maxsize=16)
def _axes(width: int, height: int, focal_length: float) -> tuple[Vector, Vector]:
    """Compute normalised image coordinates of the pixel centres: x (W,) and y (H,)."""
    x = np.arange(width, dtype=np.float64) + (0.5 - width / 2)
    y = np.arange(height, dtype=np.float64) + (0.5 - height / 2)
    return x / focal_length, y / focal_length


def trace(quads: list[Quad], spheres: list[Sphere], camera: Camera, max_depth: float) -> Hits:
    """Find the nearest surface of every pixel, up to `max_depth` metres of z-depth."""
    xs, ys = _axes(camera.width, camera.height, camera.focal_length)
    inverse = np.full((camera.height, camera.width), 1 / max_depth, np.float32)
    surface = np.full(inverse.shape, -1, np.int16)
    rotation, position = camera.camera_to_world[:3, :3], camera.camera_to_world[:3, 3]

    corner = (np.stack([quad.corner for quad in quads]) - position) @ rotation
    u = np.stack([quad.u for quad in quads]) @ rotation
    v = np.stack([quad.v for quad in quads]) @ rotation
    size = np.array([(quad.width, quad.height) for quad in quads])
    normal = np.cross(u, v)
    offset = (normal * corner).sum(1)
    facing = offset < -1e-6
    offset = np.where(facing, offset, -1.0)
    plane = np.empty((len(quads), 3, 3))
    plane[:, 0] = normal / offset[:, None]
    plane[:, 1] = u - (u * corner).sum(1)[:, None] * plane[:, 0]
    plane[:, 2] = v - (v * corner).sum(1)[:, None] * plane[:, 0]
    seam = _SEAM * plane[:, 0]
    low = plane[:, 1:] + seam[:, None]
    high = size[:, :, None] * plane[:, :1] - plane[:, 1:] + seam[:, None]
    # One row and one column of numbers per test: the affine function is their outer sum.
    tests = np.concatenate([plane[:, :1], low, high], axis=1)
    rows = (tests[..., 0:1] * xs + tests[..., 2:3]).astype(np.float32)
    columns = (tests[..., 1:2] * ys).astype(np.float32)[..., None]
    borders = -columns[:, 1:]

    span_u, span_v = u * size[:, :1], v * size[:, 1:]
    corners = np.stack([corner, corner + span_u, corner + span_u + span_v, corner + span_v], axis=1)
    in_front = corners[..., 2] > _NEAR
    for index in np.flatnonzero(facing & in_front.any(1)).tolist():
        outline = corners[index] if in_front[index].all() else _clip_near(corners[index])
        x, y = outline[:, 0] / outline[:, 2], outline[:, 1] / outline[:, 2]
        left, right = np.searchsorted(xs, (x.min() - 1e-3, x.max() + 1e-3))
        top, bottom = np.searchsorted(ys, (y.min() - 1e-3, y.max() + 1e-3))
        if left == right or top == bottom:
            continue
        row, column, border = rows[index, :, left:right], columns[index, 0, top:bottom], borders[index, :, top:bottom]
        value = row[0] + column
        target = inverse[top:bottom, left:right]
        seen = value * np.float32(1.0001) > target if quads[index].decal else value > target
        for side in range(4):
            seen &= row[side + 1] >= border[side]
        np.copyto(target, value, where=seen)
        np.copyto(surface[top:bottom, left:right], np.int16(index), where=seen)

    for index, sphere in enumerate(spheres, start=len(quads)):
        _trace_sphere((sphere.center - position) @ rotation, sphere.radius, index, xs, ys, inverse, surface)
    return Hits(inverse, surface, plane)


def _clip_near(polygon: Vector) -> Vector:
    """Clip a convex polygon (n, 3) to z >= `_NEAR`."""
    kept = []
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if start[2] > _NEAR:
            kept.append(start)
        if (start[2] > _NEAR) != (end[2] > _NEAR):
            kept.append(start + (end - start) * ((_NEAR - start[2]) / (end[2] - start[2])))
    return np.stack(kept)


def _trace_sphere(
    center: Vector, radius: float, index: int, xs: Vector, ys: Vector, inverse: Array, surface: NDArray[np.int16]
) -> None:
    if center[2] <= radius + _NEAR:
        return
    bounds = []
    for axis, pixels in ((0, xs), (1, ys)):
        angle = np.arctan2(center[axis], center[2])
        half = np.arcsin(radius / np.hypot(center[axis], center[2]))
        bounds.append(np.searchsorted(pixels, np.tan((angle - half, angle + half))))
    (left, right), (top, bottom) = bounds
    if left == right or top == bottom:
        return
    x, y = xs[left:right], ys[top:bottom, None]
    a = x * x + (y * y + 1)
    b = x * center[0] + (y * center[1] + center[2])
    c = center @ center - radius**2
    discriminant = b * b - a * c
    seen = discriminant > 0
    # 1/t of the nearer root, in the form without cancellation.
    value = ((b + np.sqrt(np.maximum(discriminant, 0))) / c).astype(np.float32)
    target = inverse[top:bottom, left:right]
    seen &= value > target
    np.copyto(target, value, where=seen)
    np.copyto(surface[top:bottom, left:right], np.int16(index), where=seen)


def group_pixels(surface: NDArray[np.int16], n_surfaces: int) -> list[NDArray[np.intp]]:
    """Group flat pixel indices by surface: entry 0 is what hits nothing, entry k + 1 is surface k."""
    flat = surface.ravel()
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat + 1, minlength=n_surfaces + 1)
    return np.split(order, np.cumsum(counts)[:-1])


def shade(
    hits: Hits,
    groups: list[NDArray[np.intp]],
    quads: list[Quad],
    spheres: list[Sphere],
    camera: Camera,
    light: Light,
    sky: tuple[Vector, Vector],
) -> Array:
    """Compute the colours (3, H, W) float32 of all pixels; `sky` holds those (3,) at the horizon and the zenith."""
    xs, ys = _axes(camera.width, camera.height, camera.focal_length)
    inverse = hits.inverse_depth.ravel()
    image = np.empty((3, inverse.size), np.float32)
    rotation, position = camera.camera_to_world[:3, :3], camera.camera_to_world[:3, 3]
    x_of, y_of = xs.astype(np.float32), ys.astype(np.float32)
    plane = hits.plane.astype(np.float32)
    normals = np.cross([quad.u for quad in quads], [quad.v for quad in quads])
    for index, pixels in enumerate(groups, start=-1):
        if not pixels.size:
            continue
        line, column = np.divmod(pixels, camera.width)
        x, y = x_of[column], y_of[line]
        if index < 0:
            down = rotation[1].astype(np.float32)
            height = np.clip(-1.6 * (down[0] * x + down[1] * y + down[2]), 0, 1)
            colors = mix(sky[0], sky[1], height)
        elif index < len(quads):
            quad = quads[index]
            depth = np.float32(1) / inverse[pixels]
            colors = _quad_colors(quad, plane[index], x, y, depth, camera.focal_length)
            colors *= light.on(normals[index][:, None])
        else:
            sphere = spheres[index - len(quads)]
            points = np.stack([x, y, np.ones_like(x)]) / inverse[pixels]
            center = (sphere.center - position) @ rotation
            normal = (rotation @ (points - center[:, None]) / sphere.radius).astype(np.float32)
            colors = sphere.texture(normal) * light.on(normal)
        image[:, pixels] = colors
    return image.reshape(3, camera.height, camera.width)


def _quad_colors(quad: Quad, plane: Array, x: Array, y: Array, depth: Array, focal_length: float) -> Array:
    along = [(coefficient[0] * x + coefficient[1] * y + coefficient[2]) * depth for coefficient in plane[1:]]
    pixel = depth * np.float32(1 / focal_length)
    # The derivative of s = (s/z) / (1/z) over one pixel, in both image directions.
    extent = [
        pixel * (np.abs(c[0] - value * plane[0, 0]) + np.abs(c[1] - value * plane[0, 1]))
        for c, value in zip(plane[1:], along, strict=True)
    ]
    colors = quad.texture(along[0], along[1], extent[0], extent[1])
    if quad.enclosed:
        edge = np.minimum(
            np.minimum(along[0], np.float32(quad.width) - along[0]),
            np.minimum(along[1], np.float32(quad.height) - along[1]),
        )
        colors *= 1 - np.float32(0.3) * np.exp(np.float32(-4) * np.maximum(edge, 0))
    return colors
