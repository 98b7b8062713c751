"""Procedural textures with true sizes: colours as functions of metres on a surface, averaged over the pixel.

A texture takes (s, q, ds, dq), each (n,): metres along the two axes of a rectangle and the extent of the pixel along
them; it returns colours (3, n) in [0, 1]. Sizes are constants of this world, so that metres can be learned from them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Vector = NDArray[np.float64]
Texture = Callable[[Array, Array, Array, Array], Array]
SphereTexture = Callable[[Array], Array]  # unit normals (3, n) in the world frame -> colours (3, n)
Shadow = tuple[float, float, float, float, float, float]  # world x, z, yaw, half width, half depth, softness

TILE = 0.5
BRICK = (0.25, 0.075)
PLANK = (0.125, 1.0)
STOREY = 3.0
WINDOW_STEP = 2.4


def mix(first: ArrayLike, second: ArrayLike, weight: Array) -> Array:
    """Mix colours (3, n) between `first` (weight 0) and `second` (weight 1), each (3,); `weight` (n,)."""
    base = np.asarray(first, np.float32)
    return base[:, None] + (np.asarray(second, np.float32) - base)[:, None] * weight


def stripe(x: Array, extent: Array, period: float, width: float, start: float = 0.0) -> Array:
    """Compute the share (n,) of the interval of length `extent` about `x` that periodic stripes cover (metres).

    Stripes are [start, start + width] + k * period. Being the exact average over the pixel, it fades to width / period
    in the distance instead of aliasing.
    """
    extent = np.maximum(extent, np.float32(1e-4)) * np.float32(1 / period)
    low = (x - np.float32(start)) * np.float32(1 / period) - np.float32(0.5) * extent
    duty = np.float32(width / period)
    return (_covered(low + extent, duty) - _covered(low, duty)) / extent


def _covered(x: Array, duty: np.float32) -> Array:
    whole = np.floor(x)
    return whole * duty + np.minimum(x - whole, duty)


_TONES = np.random.default_rng(0).uniform(-1, 1, 1024).astype(np.float32)


def cell_tone(s: Array, q: Array, extent: Array, width: float, height: float) -> Array:
    """Draw a fixed number (n,) in [-1, 1] for each cell of a grid, faded out where cells are below a pixel."""
    cell = (
        np.floor(s * np.float32(1 / width)).astype(np.int32) * 37
        + np.floor(q * np.float32(1 / height)).astype(np.int32) * 331
    )
    return _TONES[cell & 1023] * np.clip(2 - extent * np.float32(2 / min(width, height)), 0, 1)


def band(x: Array, extent: Array, low: float, high: float) -> Array:
    """Compute the share (n,) of the interval of length `extent` about `x` that lies in [low, high]."""
    half = np.float32(0.5) * np.maximum(extent, np.float32(1e-4))
    inside = np.minimum(x + half, np.float32(high)) - np.maximum(x - half, np.float32(low))
    return np.clip(inside / (2 * half), 0, 1)


def paint(colors: Array, color: ArrayLike, weight: Array) -> Array:
    """Cover `colors` (3, n) by `color` (3,) with opacity `weight` (n,), in place."""
    colors += (np.asarray(color, np.float32)[:, None] - colors) * weight
    return colors


def plain(color: ArrayLike) -> Texture:
    """Paint one colour."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        return np.repeat(np.asarray(color, np.float32)[:, None], s.size, axis=1)

    return texture


def painted_wall(color: ArrayLike, base: ArrayLike, stripes: ArrayLike | None) -> Texture:
    """Paint a wall over a baseboard of 0.1 m; with `stripes`, 0.25 m wide stripes of that colour every 0.5 m."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        weight = np.zeros_like(s) if stripes is None else stripe(s, ds, 0.5, 0.25)
        colors = mix(color, color if stripes is None else stripes, weight)
        return paint(colors, base, band(q, dq, -1, 0.1))

    return texture


def tiles(color: ArrayLike, joint: ArrayLike, second: ArrayLike | None = None, size: float = TILE) -> Texture:
    """Paint square tiles with joints of 0.02 m; with `second`, a checker of the two colours."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        if second is None:
            colors = mix(color, joint, np.zeros_like(s))
        else:
            odd = (2 * stripe(s, ds, 2 * size, size) - 1) * (2 * stripe(q, dq, 2 * size, size) - 1)
            colors = mix(color, second, np.float32(0.5) + np.float32(0.5) * odd)
        colors *= 1 + np.float32(0.06) * cell_tone(s, q, np.maximum(ds, dq), size, size)
        lines = 1 - (1 - stripe(s, ds, size, 0.02, -0.01)) * (1 - stripe(q, dq, size, 0.02, -0.01))
        return paint(colors, joint, lines)

    return texture


def planks(color: ArrayLike) -> Texture:
    """Paint wooden planks of 0.125 x 1.0 m."""
    joint = np.asarray(color) * 0.55

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        width, length = PLANK
        shifted = q + np.float32(0.37) * np.floor(s * np.float32(1 / width))
        colors = mix(color, color, np.zeros_like(s))
        colors *= 1 + np.float32(0.18) * cell_tone(s, shifted, ds, width, length)
        ends = stripe(shifted, dq, length, 0.01) * np.clip(2 - ds * np.float32(2 / width), 0, 1)
        return paint(colors, joint, np.maximum(stripe(s, ds, width, 0.01), ends))

    return texture


def bricks(color: ArrayLike, mortar: ArrayLike, base: ArrayLike | None = None) -> Texture:
    """Paint bricks of 0.25 x 0.075 m in running bond; with `base`, a baseboard of 0.1 m."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        length, course = BRICK
        shifted = s + np.float32(length / 2) * (np.floor(q * np.float32(1 / course)) % 2)
        colors = mix(color, color, np.zeros_like(s))
        colors *= 1 + np.float32(0.15) * cell_tone(shifted, q, np.maximum(ds, dq), length, course)
        even, odd = stripe(s, ds, length, 0.012), stripe(s, ds, length, 0.012, length / 2)
        upright = even + (odd - even) * stripe(q, dq, 2 * course, course, course)
        joints = np.maximum(upright, stripe(q, dq, course, 0.012))
        colors = paint(colors, mortar, joints)
        return colors if base is None else paint(colors, base, band(q, dq, -1, 0.1))

    return texture


def shadowed(ground: Texture, origin: tuple[float, float], shadows: list[Shadow]) -> Texture:
    """Lay soft contact shadows on a ground; s and q run along x and z from `origin`, its corner in the world."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = ground(s, q, ds, dq)
        for x, z, yaw, half_width, half_depth, softness in shadows:
            east, north = s - np.float32(x - origin[0]), q - np.float32(z - origin[1])
            reach = np.float32(np.hypot(half_width, half_depth) + 4 * softness)
            near = np.flatnonzero((np.abs(east) < reach) & (np.abs(north) < reach))
            east, north = east[near], north[near]
            cosine, sine = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
            across = np.maximum(np.abs(cosine * east - sine * north) - np.float32(half_width), 0)
            along = np.maximum(np.abs(sine * east + cosine * north) - np.float32(half_depth), 0)
            distance = np.hypot(across, along) * np.float32(1 / softness)
            colors[:, near] *= 1 - np.float32(0.6) * np.exp(-distance)
        return colors

    return texture


def facade(wall: Texture, glass: ArrayLike, frame: ArrayLike) -> Texture:
    """Paint windows of 1.2 x 1.5 m with sills at 0.9 m, one every 2.4 m and 3.0 m storey, in a wall with a plinth."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = wall(s, q, ds, dq)
        outer = stripe(s, ds, WINDOW_STEP, 1.2, 0.6) * stripe(q, dq, STOREY, 1.5, 0.9)
        colors = paint(colors, frame, outer)
        panes = stripe(s, ds, WINDOW_STEP, 1.04, 0.68) * stripe(q, dq, STOREY, 1.34, 0.98)
        panes *= 1 - stripe(s, ds, WINDOW_STEP, 0.06, 1.17)
        colors = paint(colors, glass, panes)
        return paint(colors, np.asarray(frame) * 0.6, stripe(q, dq, STOREY, 0.12, -0.06))

    return texture


def street_ground(road: tuple[float, float], lanes: int, asphalt: ArrayLike, pavement: Texture) -> Texture:
    """Paint a road along q between s = `road`: dashes of 3.0 x 0.15 m every 6.0 m, kerbs of 0.15 m, pavements."""
    left, right = road
    lane = (right - left) / lanes

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = pavement(s, q, ds, dq)
        colors = paint(colors, (0.75, 0.74, 0.7), band(s, ds, left - 0.15, right + 0.15))
        colors = paint(colors, asphalt, band(s, ds, left, right))
        dashes = stripe(q, dq, 6.0, 3.0)
        for index in range(1, lanes):
            middle = left + index * lane
            colors = paint(colors, (0.92, 0.92, 0.88), dashes * band(s, ds, middle - 0.075, middle + 0.075))
        return colors

    return texture


def crate(color: ArrayLike, size: float) -> Texture:
    """Paint one face of a crate: a frame and a diagonal brace around lighter boards of 0.1 m."""
    light = np.asarray(color) * 0.62 + 0.34

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = mix(light, np.asarray(color) * 0.5, stripe(s, ds, 0.1, 0.012))
        brace = band((s - q) * np.float32(0.7071), np.maximum(ds, dq), -0.045, 0.045)
        inner = band(s, ds, 0.07, size - 0.07) * band(q, dq, 0.07, size - 0.07)
        return paint(colors, color, np.maximum(1 - inner, brace))

    return texture


def carton(color: ArrayLike, width: float) -> Texture:
    """Paint one face of a cardboard box: a light tape of 0.06 m down the middle."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        return mix(color, (0.85, 0.78, 0.6), band(s, ds, width / 2 - 0.03, width / 2 + 0.03))

    return texture


def door(color: ArrayLike) -> Texture:
    """Paint a door of 0.9 x 2.0 m: frame, two panels and a handle."""
    dark, frame = np.asarray(color) * 0.65, np.asarray(color) * 0.35 + 0.6

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        leaf = band(s, ds, 0.06, 0.84) * band(q, dq, -1, 1.94)
        colors = mix(frame, color, leaf)
        panels = band(s, ds, 0.18, 0.72) * (band(q, dq, 0.2, 0.85) + band(q, dq, 1.1, 1.8))
        colors = paint(colors, dark, panels)
        return paint(colors, (0.9, 0.85, 0.6), band(s, ds, 0.72, 0.79) * band(q, dq, 0.95, 1.05))

    return texture


def framed(frame: ArrayLike, inside: Texture, width: float, height: float, border: float = 0.06) -> Texture:
    """Set `inside` in a frame, as pictures and windows have."""

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = inside(s, q, ds, dq)
        opening = band(s, ds, border, width - border) * band(q, dq, border, height - border)
        return paint(colors, frame, 1 - opening)

    return texture


def car_side(color: ArrayLike, length: float, height: float) -> Texture:
    """Paint the lower body of a car: wheels of 0.6 m, a dark sill; its ends have lights instead."""
    wheels = (0.85, length - 0.85) if length > 3 else ()

    def texture(s: Array, q: Array, ds: Array, dq: Array) -> Array:
        colors = mix(color, (0.08, 0.08, 0.09), band(q, dq, -1, 0.2))
        for middle in wheels:
            radius = np.hypot(s - np.float32(middle), q - np.float32(0.3))
            colors = paint(colors, (0.06, 0.06, 0.07), band(radius, np.maximum(ds, dq), -1, 0.3))
            colors = paint(colors, (0.7, 0.7, 0.72), band(radius, np.maximum(ds, dq), -1, 0.15))
        if not wheels:
            lights = band(s, ds, 0.1, 0.4) + band(s, ds, length - 0.4, length - 0.1)
            colors = paint(colors, (0.95, 0.9, 0.7), lights * band(q, dq, height - 0.35, height - 0.2))
        return colors

    return texture


def ball(color: ArrayLike, sectors: int) -> SphereTexture:
    """Paint a ball with `sectors` meridian sectors in `color` and white; 0: bands in `color`, light and dark."""
    light = np.asarray(color) * 0.5 + 0.5 if sectors == 0 else (0.95, 0.95, 0.93)

    def texture(normal: Array) -> Array:
        if sectors:
            turn = np.arctan2(normal[0], normal[2] + np.float32(0.4) * normal[1])
            return mix(color, light, (np.floor(turn * np.float32(sectors / (2 * np.pi))) % 2).astype(np.float32))
        return mix(color, light, (np.floor(normal[1] * 4) % 2).astype(np.float32))

    return texture
