"""The parts of a synthetic scene: objects of true sizes, their places on the ground, light and camera.

World frame: x right, y down, z forward, metres; the ground is y = 0 and the camera stands at x = z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from . import textures
from .raycast import Light, Quad, Sphere
from .textures import Texture, Vector

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.13, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.93, 0.85, 0.18),
    "green": (0.16, 0.58, 0.22),
    "cyan": (0.25, 0.78, 0.80),
    "blue": (0.13, 0.25, 0.75),
    "purple": (0.50, 0.18, 0.62),
    "white": (0.94, 0.94, 0.94),
}
"""The colours that objects have, by name: RGB in [0, 1] under white light."""

SIZES: dict[str, tuple[float, float, float]] = {
    "crate": (0.6, 0.6, 0.6),
    "box": (0.4, 0.3, 0.3),
    "table": (1.2, 0.74, 0.7),
    "cabinet": (0.8, 1.8, 0.4),
    "ball": (0.24, 0.24, 0.24),
    "gym ball": (0.65, 0.65, 0.65),
    "car": (1.8, 1.5, 4.2),
    "pole": (0.12, 4.0, 0.12),
    "door": (0.9, 2.0, 0.0),
    "picture": (0.8, 0.6, 0.0),
    "window": (1.2, 1.2, 0.0),
}
"""The size of every kind of object: width, height and depth in metres."""

CAMERA_HEIGHT = 1.6  # metres above the ground, within 3 %
_NEAREST = 0.7  # metres of z-depth that objects keep from the camera
_UP = np.array([0.0, -1.0, 0.0])


@dataclass
class World:
    """The surfaces, objects, light and camera of a scene; `fov` in degrees, angles in radians.

    `items` names every object (name, colour); `sky` holds its colours at the horizon and at the zenith.
    """

    rng: np.random.Generator
    fov: float
    quads: list[Quad] = field(default_factory=list)
    spheres: list[Sphere] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)
    shadows: list[textures.Shadow] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # circles (x, z, radius) on the ground
    yaw: float = 0.0
    pitch: float = 0.0
    sky: tuple[Vector, Vector] = (np.ones(3), np.ones(3))

    def __post_init__(self) -> None:
        rng = self.rng
        self.height = CAMERA_HEIGHT * rng.uniform(0.97, 1.03)
        self.roll = np.radians(rng.uniform(-1.5, 1.5))
        self.exposure = float(np.exp(rng.uniform(-0.15, 0.3)))
        self.noise = rng.uniform(0.004, 0.02)
        direction = rng.normal(size=3) * (1, 0.6, 1) + 1.2 * _UP
        tint = 1 + rng.uniform(-0.1, 0.1) * np.array([1, 0, -1])
        self.light = Light(direction / np.linalg.norm(direction), tint, rng.uniform(0.4, 0.7))

    @cached_property
    def camera_to_world(self) -> Vector:
        """Pose (4, 4): yaw about the vertical, then pitch (positive: down), then roll."""
        cosine, sine = np.cos([self.yaw, self.pitch, self.roll]), np.sin([self.yaw, self.pitch, self.roll])
        yaw = np.array([[cosine[0], 0, sine[0]], [0, 1, 0], [-sine[0], 0, cosine[0]]])
        pitch = np.array([[1, 0, 0], [0, cosine[1], sine[1]], [0, -sine[1], cosine[1]]])
        roll = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = yaw @ pitch @ roll
        pose[:3, 3] = (0, -self.height, 0)
        return pose

    def tint(self, low: float, high: float, saturation: float) -> Vector:
        """Draw a colour for surfaces that are no objects: brightness in [low, high], hardly saturated."""
        return self.rng.uniform(low, high) * (1 + saturation * self.rng.uniform(-1, 1, 3))

    def new_item(self, name: str) -> tuple[int, Vector]:
        """Register an object of a random colour; return its index and RGB."""
        color = list(COLORS)[self.rng.integers(len(COLORS))]
        self.items.append((name, color))
        return len(self.items) - 1, np.array(COLORS[color])

    def forward_depth(self, x: float, z: float) -> float:
        """Measure the metres from the camera to a point of the ground, along the horizontal viewing direction."""
        return float(np.sin(self.yaw) * x + np.cos(self.yaw) * z)

    def claim(self, x: float, z: float, radius: float) -> bool:
        """Take a circle of the ground, unless it is taken or too near the camera."""
        near = self.forward_depth(x, z) - radius < _NEAREST
        beside = np.hypot(x, z) - radius < _NEAREST
        if (near and beside) or any(np.hypot(x - a, z - b) < radius + r for a, b, r in self.taken):
            return False
        self.taken.append((x, z, radius))
        return True

    def find_place(
        self, radius: float, bounds: tuple[float, float, float, float], near: float, far: float
    ) -> tuple[float, float] | None:
        """Claim a random circle in view within `bounds` (x0, x1, z0, z1), `near` to `far` metres away."""
        x0, x1, z0, z1 = bounds
        for _ in range(12):
            azimuth = self.yaw + np.radians(self.fov) * self.rng.uniform(-0.45, 0.45)
            distance = np.exp(self.rng.uniform(np.log(near + radius), np.log(far)))
            x, z = float(distance * np.sin(azimuth)), float(distance * np.cos(azimuth))
            inside = x0 + radius < x < x1 - radius and z0 + radius < z < z1 - radius
            if inside and self.forward_depth(x, z) - radius > _NEAREST and self.claim(x, z, radius):
                return x, z
        return None

    def add_floor(
        self, corner: tuple[float, float], size: tuple[float, float], texture: Texture, *, enclosed: bool = False
    ) -> None:
        """Add the ground from `corner` (x, z), `size` metres along x and z, with the shadows of what stands on it."""
        texture = textures.shadowed(texture, corner, self.shadows)
        start, ex, ez = np.array([corner[0], 0, corner[1]]), np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
        self.quads.append(Quad(start, ex, ez, *size, texture, enclosed=enclosed))

    def add_wall(
        self,
        start: tuple[float, float],
        along: ArrayLike,
        length: float,
        height: float,
        texture: Texture,
        *,
        enclosed: bool = False,
    ) -> Quad:
        """Add an upright rectangle from `start` (x, z) along a horizontal unit vector; it faces `along` x up."""
        corner = np.array([start[0], 0.0, start[1]])
        quad = Quad(corner, np.asarray(along, float), _UP, length, height, texture, enclosed=enclosed)
        self.quads.append(quad)
        return quad

    def add_decal(self, wall: Quad, s: float, q: float, name: str, texture: Texture, item: int) -> None:
        """Paint an object on a wall, its lower left corner at (s, q)."""
        width, height, _ = SIZES[name]
        corner = wall.corner + s * wall.u + q * wall.v
        self.quads.append(Quad(corner, wall.u, wall.v, width, height, texture, item, decal=True))

    def add_box(
        self,
        place: tuple[float, float],
        size: tuple[float, float, float],
        yaw: float,
        sides: Texture,
        *,
        ends: Texture | None = None,
        top: Texture | None = None,
        base: float = 0.0,
        item: int = -1,
    ) -> None:
        """Add a box of (width, height, depth) on the height `base`, its centre above `place` (x, z).

        `sides` cover the faces along the depth, `ends` (by default `sides`) those along the width.
        """
        width, height, depth = size
        ex, ez = np.array([np.cos(yaw), 0, -np.sin(yaw)]), np.array([np.sin(yaw), 0, np.cos(yaw)])
        center = np.array([place[0], -base, place[1]])
        ends = ends or sides
        for normal, out, span, texture in (
            (-ez, depth, width, ends),
            (ez, depth, width, ends),
            (ex, width, depth, sides),
            (-ex, width, depth, sides),
        ):
            along = np.cross(_UP, normal)
            start = center + normal * (out / 2) - along * (span / 2)
            self.quads.append(Quad(start, along, _UP, span, height, texture, item))
        start = center - ex * (width / 2) - ez * (depth / 2) + _UP * height
        self.quads.append(Quad(start, ex, ez, width, depth, top or sides, item))

    def add_ball(self, place: tuple[float, float], name: str, base: float = 0.0) -> None:
        """Add a ball lying on the height `base` at (x, z)."""
        item, color = self.new_item(name)
        radius = SIZES[name][0] / 2
        if base == 0:
            self.shadows.append((*place, 0.0, 0.3 * radius, 0.3 * radius, 0.4 * radius))
        texture = textures.ball(color, 6 if name == "ball" else 0)
        self.spheres.append(Sphere(np.array([place[0], -base - radius, place[1]]), radius, texture, item))

    def add_object(self, name: str, place: tuple[float, float]) -> None:
        """Add a free-standing object at (x, z)."""
        if name in ("ball", "gym ball"):
            self.add_ball(place, name)
            return
        item, color = self.new_item(name)
        size, yaw = SIZES[name], self.rng.uniform(0, 2 * np.pi)
        width, height, depth = size
        self.shadows.append((*place, yaw, width / 2, depth / 2, 0.1))
        if name == "crate":
            self.add_box(place, size, yaw, textures.crate(color, width), item=item)
            if self.rng.random() < 0.25:
                item, color = self.new_item(name)
                self.add_box(place, size, yaw + 0.3, textures.crate(color, width), base=height, item=item)
        elif name == "box":
            sides, ends = textures.carton(color, depth), textures.carton(color, width)
            self.add_box(place, size, yaw, sides, ends=ends, item=item)
        elif name == "table":
            board, leg = 0.05, 0.06
            self.add_box(place, (width, board, depth), yaw, textures.plain(color), base=height - board, item=item)
            for i in (-1, 1):
                for k in (-1, 1):
                    a, b = i * (width - leg) / 2, k * (depth - leg) / 2
                    x = place[0] + np.cos(yaw) * a + np.sin(yaw) * b
                    z = place[1] - np.sin(yaw) * a + np.cos(yaw) * b
                    self.add_box((x, z), (leg, height - board, leg), yaw, textures.plain(color * 0.6), item=item)
            if self.rng.random() < 0.5:
                self.add_ball(place, "ball", base=height)
        elif name == "cabinet":
            front = textures.tiles(color, color * 0.5, size=0.4)
            self.add_box(place, size, yaw, textures.plain(color), ends=front, item=item)
        else:
            self.add_box(place, size, yaw, textures.plain(color), item=item)

    def add_car(self, place: tuple[float, float], yaw: float) -> None:
        """Add a car at (x, z), its length along z turned by `yaw`."""
        item, color = self.new_item("car")
        width, height, length = SIZES["car"]
        self.shadows.append((*place, yaw, width / 2, length / 2, 0.2))
        body, roof = 0.85, textures.plain(color)
        dark = textures.plain((0.15, 0.2, 0.25))
        glass, screen = (textures.framed(color * 0.9, dark, span, height - body, 0.1) for span in (2.2, 1.6))
        side, end = textures.car_side(color, length, body), textures.car_side(color, width, body)
        self.add_box(place, (width, body, length), yaw, side, ends=end, top=roof, item=item)
        self.add_box(place, (1.6, height - body, 2.2), yaw, glass, ends=screen, top=roof, base=body, item=item)
