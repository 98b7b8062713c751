"""Synthetic RGB-D scenes: rooms and streets of true sizes, drawn by a seed, with exact metric z-depth.

Monocular metric depth can only be learned where some sizes are known. Here they are: the camera is 1.6 m (within 3 %)
above the ground, floor tiles are 0.5 m, bricks 0.25 x 0.075 m, doors 0.9 x 2.0 m, storeys 3.0 m, lane marks 3.0 m, and
every kind of object has one size (`world.SIZES`). Rooms, distances, positions, colours, light and focal length
are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from . import textures
from .raycast import Camera, Quad, Sphere, group_pixels, shade, trace
from .textures import Texture
from .world import SIZES, World

Kind = Literal["room", "street"]

MAX_DEPTH = 80.0  # metres; what is farther counts as sky
MIN_VISIBLE = 0.002  # share of the image that an object needs to be listed


@dataclass(frozen=True)
class SceneObject:
    """An object that can be seen."""

    name: str  # a key of `SIZES` (world.py)
    color: str  # a key of `COLORS`
    size: tuple[float, float, float]  # width, height, depth in metres
    pixel: tuple[int, int]  # column and row of one of its visible pixels, near their centre
    depth: float  # z-depth there in metres
    visible: int  # number of visible pixels


@dataclass(frozen=True, eq=False)
class SyntheticScene:
    """A rendered scene.

    World: x right, y down, z forward, metres, with the ground at y = 0. The centre of pixel (column, row) lies at
    (column + 0.5, row + 0.5) and the principal point at (W/2, H/2).
    """

    image: NDArray[np.uint8]  # (H, W, 3)
    depth: NDArray[np.float32]  # (H, W), z-depth in metres, 0 where there is no surface
    intrinsics: NDArray[np.float64]  # (3, 3)
    camera_to_world: NDArray[np.float64]  # (4, 4)
    objects: tuple[SceneObject, ...]
    kind: Kind
    seed: int
    segments: NDArray[np.int16]  # (H, W), the index in `objects` of what each pixel shows, -1 for everything else
    planes: NDArray[np.int16]  # (H, W), a number for each flat surface with what is painted on it, -1 for the rest

    @property
    def focal_length(self) -> float:
        """The focal length in pixels."""
        return float(self.intrinsics[0, 0])


def render_scene(
    seed: int,
    *,
    kind: Kind | None = None,
    width: int = 256,
    height: int = 192,
    fov: float | None = None,
    motion: NDArray[np.float64] | None = None,
    frame: int = 0,
) -> SyntheticScene:
    """Render the scene of a seed; the same arguments give the same bytes.

    Args:
        seed: Any integer >= 0. The scene does not depend on the resolution; its objects are placed in view.
        kind: "room" or "street"; by default the seed chooses.
        width: Width of the image in pixels, at least 16.
        height: Height of the image in pixels, at least 16.
        fov: Horizontal field of view in degrees, in [20, 120]; by default the seed chooses in [45, 80].
        motion: Pose `(4, 4)` of the camera in the frame of the scene's own camera, for a camera path; by default it
            stands where the seed puts it.
        frame: Number of a frame of a camera path, which draws the sensor's noise.

    Raises:
        ValueError: An argument is out of its range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)} or None, got {kind!r}")
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 16:
            raise ValueError(f"{name} must be an integer of at least 16 pixels, got {value!r}")
    if fov is not None and not 20 <= fov <= 120:
        raise ValueError(f"fov must be a horizontal field of view in degrees in [20, 120], got {fov!r}")

    rng = np.random.default_rng(seed)
    chosen: Kind = "room" if rng.random() < 0.5 else "street"
    drawn_fov = rng.uniform(45, 80)
    chosen, fov = kind or chosen, drawn_fov if fov is None else float(fov)
    world = World(rng, fov)
    (_build_room if chosen == "room" else _build_street)(world)

    focal_length = width / 2 / np.tan(np.radians(fov) / 2)
    pose = world.camera_to_world if motion is None else world.camera_to_world @ motion
    camera = Camera(width, height, focal_length, pose)
    hits = trace(world.quads, world.spheres, camera, MAX_DEPTH)
    groups = group_pixels(hits.surface, len(world.quads) + len(world.spheres))
    color = shade(hits, groups, world.quads, world.spheres, camera, world.light, world.sky)
    depth = np.where(hits.surface < 0, np.float32(0), 1 / hits.inverse_depth)
    objects, segments = _visible_objects(world, groups, depth)
    noise = np.random.default_rng([seed, 1, frame] if frame else [seed, 1])
    return SyntheticScene(
        image=_expose(color, world.exposure, world.noise, noise),
        depth=depth,
        intrinsics=np.array([[focal_length, 0, width / 2], [0, focal_length, height / 2], [0, 0, 1]]),
        camera_to_world=pose,
        objects=objects,
        kind=chosen,
        seed=int(seed),
        segments=segments,
        planes=_planes(world, hits.surface),
    )


def _planes(world: World, surface: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the index of the rectangle that each pixel shows, for a decal that of its wall; -1 for spheres and sky."""
    owner = np.full(len(world.quads) + len(world.spheres) + 1, -1, np.int16)  # the last entry is that of index -1
    for index, quad in enumerate(world.quads):
        owner[index] = index
        if quad.decal:
            normal = np.cross(quad.u, quad.v)
            walls = (
                other
                for other, wall in enumerate(world.quads[:index])
                if not wall.decal
                and normal @ np.cross(wall.u, wall.v) > 1 - 1e-9
                and abs(normal @ (quad.corner - wall.corner)) < 1e-6
            )
            owner[index] = next(walls, index)
    planes: NDArray[np.int16] = owner[surface]
    return planes


def _expose(color: textures.Array, exposure: float, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose (3, H, W) float as (H, W, 3) uint8, with gain and noise."""
    grain = rng.standard_normal(color.shape, np.float32)
    grain *= np.float32(255 * noise)
    color *= np.float32(255 * exposure)
    color += grain
    np.clip(color, 0, 255, out=color)
    return np.ascontiguousarray((color + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))


def _visible_objects(
    world: World, groups: list[NDArray[np.intp]], depth: NDArray[np.float32]
) -> tuple[tuple[SceneObject, ...], NDArray[np.int16]]:
    surfaces: list[Quad | Sphere] = [*world.quads, *world.spheres]
    pixels: dict[int, list[NDArray[np.intp]]] = {}
    for surface, group in zip(surfaces, groups[1:], strict=True):
        if surface.item >= 0 and group.size:
            pixels.setdefault(surface.item, []).append(group)
    objects: list[SceneObject] = []
    segments = np.full(depth.shape, -1, np.int16)
    for item in sorted(pixels):
        seen = np.concatenate(pixels[item])
        if seen.size < MIN_VISIBLE * depth.size:
            continue
        rows, columns = np.divmod(seen, depth.shape[1])
        best = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
        row, column = int(rows[best]), int(columns[best])
        name, color = world.items[item]
        segments.ravel()[seen] = len(objects)
        objects.append(SceneObject(name, color, SIZES[name], (column, row), float(depth[row, column]), seen.size))
    return tuple(objects), segments


def _build_room(world: World) -> None:
    rng = world.rng
    world.yaw, world.pitch = np.radians(rng.uniform(-40, 40)), np.radians(rng.uniform(7, 13))
    x0, x1 = -np.exp(rng.uniform(0, np.log(4.5))), np.exp(rng.uniform(0, np.log(4.5)))
    z0, z1 = -rng.uniform(1, 3), np.exp(rng.uniform(np.log(2.4), np.log(10)))
    height = rng.uniform(2.4, 3.4)
    base, ex, ez = world.tint(0.2, 0.9, 0.1), np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
    world.exposure *= 1.15

    floor_color = world.tint(0.35, 0.8, 0.15)
    floors = (
        textures.tiles(floor_color, floor_color * 0.6),
        textures.tiles(floor_color, floor_color * 0.6, world.tint(0.2, 0.9, 0.15)),
        textures.planks(world.tint(0.5, 0.8, 0.03) * (1, 0.72, 0.46)),
    )
    ceiling = textures.tiles(world.tint(0.8, 0.95, 0.03), (0.6, 0.6, 0.6), size=0.6)
    world.add_floor((x0, z0), (x1 - x0, z1 - z0), floors[rng.integers(3)], enclosed=True)
    world.quads.append(Quad(np.array([x0, -height, z0]), ez, ex, z1 - z0, x1 - x0, ceiling, enclosed=True))
    style, paint = rng.integers(4), world.tint(0.5, 0.9, 0.15)
    walls: list[Quad] = []
    for start, along, length in (
        ((x0, z1), ex, x1 - x0),
        ((x0, z0), ez, z1 - z0),
        ((x1, z1), -ez, z1 - z0),
        ((x1, z0), -ex, x1 - x0),
    ):
        shade_of = paint * rng.uniform(0.85, 1.0)
        texture = textures.painted_wall(shade_of, base, None)
        if style == 1:
            texture = textures.painted_wall(shade_of, base, shade_of * 0.8)
        elif style == 2 or (style == 3 and not walls):
            texture = textures.bricks(world.tint(0.5, 0.8, 0.05) * (1, 0.6, 0.5), (0.75, 0.73, 0.7), base)
        walls.append(world.add_wall(start, along, length, height, texture, enclosed=True))
    for wall in walls[:3]:
        _hang(world, wall)

    names = ("crate", "crate", "box", "table", "cabinet", "ball", "ball", "gym ball")
    for _ in range(rng.integers(2, 6)):
        name = names[rng.integers(len(names))]
        radius = float(np.hypot(SIZES[name][0], SIZES[name][2])) / 2
        place = world.find_place(radius, (x0, x1, z0, z1), 1.0, 9.0)
        if place is not None:
            world.add_object(name, place)


def _hang(world: World, wall: Quad) -> None:
    """Hang up to three doors, pictures and windows on a wall, side by side."""
    rng = world.rng
    s = rng.uniform(0.2, 1.0)
    for _ in range(rng.integers(0, 4)):
        name = ("door", "door", "picture", "window")[rng.integers(4)]
        width, height, _ = SIZES[name]
        if s + width > wall.width - 0.1:
            return
        item, color = world.new_item(name)
        if name == "door":
            q, texture = 0.0, textures.door(color)
        elif name == "picture":
            first, joint, second = (world.tint(0.3, 0.8, 0.6) for _ in range(3))
            q, texture = 1.3, textures.framed(color, textures.tiles(first, joint, second, 0.2), width, height)
        else:
            q, texture = 0.9, textures.framed(color, textures.plain((0.75, 0.88, 0.97)), width, height)
        world.add_decal(wall, s, q, name, texture, item)
        s += width + rng.uniform(0.3, 2.0)


def _build_street(world: World) -> None:
    rng = world.rng
    world.yaw, world.pitch = np.radians(rng.uniform(-40, 40)), np.radians(rng.uniform(0, 4))
    zenith = np.array([0.35, 0.55, 0.9]) * rng.uniform(0.7, 1.1)
    world.sky = (np.array([0.85, 0.9, 0.95]), zenith + (0.8 - zenith) * rng.uniform(0, 0.8))
    lanes = int(rng.integers(2, 4))
    left = rng.uniform(-3.0 * lanes - 0.5, 0.5)  # where the road begins, seen from the camera
    right = left + 3.0 * lanes
    margin = rng.uniform(2.0, 5.0)
    x0, x1 = left - margin, right + margin
    grey = world.tint(0.55, 0.75, 0.06)
    pavement, asphalt = textures.tiles(grey, grey * 0.65), world.tint(0.2, 0.35, 0.03)
    world.add_floor(
        (-100, -100), (200, 200), textures.street_ground((left + 100, right + 100), lanes, asphalt, pavement)
    )

    end = float(np.exp(rng.uniform(np.log(12), np.log(50))))
    for side in (-1, 1):
        z = -rng.uniform(4, 12)
        while z < end:
            length = textures.WINDOW_STEP * int(rng.integers(3, 8))
            setback = (0.0, 0.0, 0.0, 0.0, 1.5)[rng.integers(5)]
            _add_building(world, side, (x0 if side < 0 else x1) + side * setback, z, length)
            z += length + (rng.uniform(3, 8) if rng.random() < 0.1 else 0)
    storeys, wall = int(rng.integers(2, 5)), _facade(world)
    span = textures.WINDOW_STEP * 16
    world.add_wall(((x0 + x1 - span) / 2, end), (1, 0, 0), span, storeys * textures.STOREY, wall)

    bounds = (x0, x1, -5.0, end)
    for _ in range(rng.integers(0, 4)):
        z = float(np.exp(rng.uniform(np.log(4), np.log(45))))
        x = (left + 1.1, right - 1.1)[rng.integers(2)]
        if z + 2.3 < end and world.claim(x, z, 2.3):
            world.add_car((x, z), float(rng.integers(2) * np.pi + np.radians(rng.uniform(-3, 3))))
    names = ("crate", "crate", "box", "ball", "gym ball", "gym ball", "pole")
    for _ in range(rng.integers(2, 6)):
        name = names[rng.integers(len(names))]
        radius = float(np.hypot(SIZES[name][0], SIZES[name][2])) / 2
        place = world.find_place(radius, bounds, 1.5, 12.0 if name != "pole" else 25.0)
        if place is not None:
            world.add_object(name, place)


def _facade(world: World) -> Texture:
    if world.rng.random() < 0.5:
        wall = textures.bricks(world.tint(0.5, 0.8, 0.05) * (1, 0.62, 0.5), (0.75, 0.73, 0.7))
    else:
        wall = textures.plain(world.tint(0.55, 0.9, 0.15))
    return textures.facade(wall, world.tint(0.2, 0.4, 0.1) * (0.8, 1, 1.2), world.tint(0.5, 0.95, 0.05))


def _add_building(world: World, side: int, x: float, z: float, length: float) -> None:
    """Add a building whose front stands at `x` and spans [z, z + length]; `side` is -1 on the left, 1 on the right."""
    rng, depth = world.rng, textures.WINDOW_STEP * 4
    height = int(rng.integers(2, 6)) * textures.STOREY + 0.3
    wall = _facade(world)
    if side < 0:
        front = world.add_wall((x, z), (0, 0, 1), length, height, wall)
    else:
        front = world.add_wall((x, z + length), (0, 0, -1), length, height, wall)
    x0 = min(x, x + side * depth)
    world.add_wall((x0, z), (1, 0, 0), depth, height, wall)
    world.add_wall((x0 + depth, z + length), (-1, 0, 0), depth, height, wall)
    for slot in range(1, round(length / textures.WINDOW_STEP)):
        if rng.random() < 0.35 and z < 30:
            item, color = world.new_item("door")
            s = slot * textures.WINDOW_STEP - SIZES["door"][0] / 2  # between two windows
            world.add_decal(front, s, 0, "door", textures.door(color), item)
