"""Lenses beyond the pinhole: OpenCV's distortion, its fisheye, and equirectangular panoramas."""

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .processing import Camera

# The number of distortion coefficients that each model takes.
COEFFICIENTS = {"pinhole": (0,), "opencv": (0, 4, 5, 8), "fisheye": (0, 4), "equirectangular": (0,)}

# Rays further from the axis have a z-depth near zero, or none: such a lens is given in distances along the ray.
LARGEST_Z_ANGLE = 85.0

_STEPS = 30  # Newton's method converges in about 5 steps; strong distortion near its turning point takes more
_CONVERGED = 1e-9  # in focal lengths: a millionth of a pixel
_AT_ONCE = 2**15  # positions whose arrays a processor's cache holds
_SAMPLES = 4096  # of a radius or an angle, to find where a distortion turns back

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Lens:
    """Camera whose pixels follow a lens model rather than a pinhole.

    The frame is that of [`Camera`]: x right, y down, z forward, and the centre of the first pixel is at (0.5, 0.5).
    With `a = x / z`, `b = y / z`, `r2 = a^2 + b^2` for a point (x, y, z):

    - `pinhole`: `u = fx a + cx`, `v = fy b + cy`.
    - `opencv`: k1, k2, p1, p2[, k3[, k4, k5, k6]] as in OpenCV's `calib3d`:
      `a' = a g + 2 p1 a b + p2 (r2 + 2 a^2)`, `b' = b g + p1 (r2 + 2 b^2) + 2 p2 a b`,
      `g = (1 + k1 r2 + k2 r2^2 + k3 r2^3) / (1 + k4 r2 + k5 r2^2 + k6 r2^3)`, `u = fx a' + cx`, `v = fy b' + cy`.
    - `fisheye`: k1 to k4 as in OpenCV's `fisheye` (Kannala and Brandt 2006): the angle `t` from the axis is at the
      radius `t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8)`, in focal lengths.
    - `equirectangular`: `u = fx longitude + cx`, `v = fy latitude + cy`, in pixels a radian; forward is at (cx, cy).

    Args:
        fx: Focal length along the width, in pixels; pixels a radian of longitude in a panorama.
        fy: Focal length along the height, in pixels; pixels a radian of latitude in a panorama.
        cx: Principal point from the left border, in pixels.
        cy: Principal point from the top border, in pixels.
        distortion: The model's coefficients; none is the same as zeros.
        model: One of `COEFFICIENTS`.
        width: Width of the picture that the numbers belong to, in pixels. None: that of the picture they are used with.
        height: Its height, likewise.
        source: Origin of the numbers, as in [`Camera`].

    Raises:
        ValueError: The model is not known, the number of coefficients is not one that it takes, or a number is not
            finite or not positive where it must be.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    model: str = "opencv"
    width: int | None = None
    height: int | None = None
    source: str = "intrinsics"

    def __post_init__(self) -> None:
        if self.model not in COEFFICIENTS:
            raise ValueError(f"The lens model {self.model!r} is not one of {', '.join(COEFFICIENTS)}.")
        coefficients = tuple(float(number) for number in np.ravel(self.distortion))
        object.__setattr__(self, "distortion", coefficients)
        if len(coefficients) not in COEFFICIENTS[self.model]:
            expected = " or ".join(map(str, COEFFICIENTS[self.model]))
            raise ValueError(
                f"The lens model {self.model!r} takes {expected} distortion coefficients, got {len(coefficients)}: "
                f"{list(coefficients)}."
            )
        if not all(map(math.isfinite, coefficients)):
            raise ValueError(f"Distortion coefficients must be finite, got {list(coefficients)}.")
        if (self.width is None) != (self.height is None):
            raise ValueError(f"A lens has a width and a height, or neither, got {self.width} and {self.height}.")
        Camera(self.fx, self.fy, self.cx, self.cy, self.width or 1, self.height or 1, self.source)  # checks the numbers

    @classmethod
    def panorama(cls, width: int, height: int) -> "Lens":
        """Return the lens of an equirectangular picture of the whole sphere, forward in its middle.

        Raises:
            ValueError: The picture is not twice as wide as high, within 1 %.
        """
        if abs(width / (2 * height) - 1) > 0.01:
            raise ValueError(
                f"A panorama of the whole sphere is twice as wide as high, and this picture has {width}x{height} "
                "pixels. For a part of the sphere, pass a Lens with the model 'equirectangular': fx and fy are pixels "
                "a radian, and (cx, cy) is the position of the forward direction."
            )
        across, down = width / (2 * math.pi), height / math.pi
        return cls(across, down, width / 2, height / 2, (), "equirectangular", width, height)

    @property
    def is_pinhole(self) -> bool:
        """True if the lens is a pinhole: the model says so, or all coefficients of `opencv` are zero."""
        return self.model == "pinhole" or (self.model == "opencv" and not any(self.distortion))

    @property
    def focal_length(self) -> float:
        """Focal length along the width, in pixels."""
        return self.fx

    @property
    def numbers(self) -> list[float]:
        """The pinhole part: fx, fy, cx, cy, and the size if it is known."""
        size = [] if self.width is None or self.height is None else [self.width, self.height]
        return [self.fx, self.fy, self.cx, self.cy, *size]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the lens, for JSON; `Lens(**fields)` is the same lens."""
        return asdict(self) | {"distortion": list(self.distortion)}

    def scaled_to(self, width: int, height: int) -> "Lens":
        """Return the lens of the same picture resized to `width` x `height` pixels."""
        if self.width is None or self.height is None:
            return replace(self, width=width, height=height)
        x, y = width / self.width, height / self.height
        return replace(self, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y, width=width, height=height)

    def rays(self, positions: ArrayLike) -> Array:
        """Return the unit directions that positions of the picture see.

        Args:
            positions: `(..., 2)`: x and y in pixels, the centre of the first pixel at (0.5, 0.5).

        Returns:
            `(..., 3)` float64; NaN where the lens has no direction: beyond the radius where its distortion turns back.
        """
        positions = np.asarray(positions, dtype=np.float64)
        rays = np.empty((*positions.shape[:-1], 3))
        flat, result = positions.reshape(-1, 2), rays.reshape(-1, 3)
        for start in range(0, len(flat), _AT_ONCE):
            result[start : start + _AT_ONCE] = self._rays(flat[start : start + _AT_ONCE])
        return rays

    def _rays(self, positions: Array) -> Array:
        x, y = positions.T
        a, b = (x - self.cx) / self.fx, (y - self.cy) / self.fy
        if self.model == "equirectangular":
            a, b = np.where(np.abs(b) <= math.pi / 2 + 1e-9, a, np.nan), b
            return np.stack([np.cos(b) * np.sin(a), np.sin(b), np.cos(b) * np.cos(a)], axis=-1)
        if self.model == "fisheye":
            radius = np.hypot(a, b)
            angle = self._angles(radius)
            with np.errstate(invalid="ignore"):
                across = np.where(radius > 0, np.sin(angle) / np.where(radius > 0, radius, 1), 1.0)
            return np.stack([a * across, b * across, np.cos(angle)], axis=-1)
        if self.model == "opencv":
            a, b = self._undistorted(a, b)
        rays = np.stack([a, b, np.ones_like(a)], axis=-1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def depth_rays(self, positions: ArrayLike) -> Array:
        """Return the directions `(..., 3)` whose product with the depth at positions, of `depth_type`, is the point."""
        rays = self.rays(positions)
        return rays if self.depth_type == "ray_distance" else rays / rays[..., 2:]

    def project(self, points: ArrayLike) -> Array:
        """Return the positions in the picture that see points or directions.

        Args:
            points: `(..., 3)`: x right, y down, z forward.

        Returns:
            `(..., 2)` float64: x and y in pixels; NaN where the lens does not see the point.
        """
        x, y, z = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        if self.model == "equirectangular":
            across = self.fx * np.arctan2(x, z) + self.cx
            down = self.fy * np.arctan2(y, np.hypot(x, z)) + self.cy
            return np.stack([np.mod(across, 2 * math.pi * self.fx), down], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.model == "fisheye":
                radius = np.hypot(x, y)
                angle = np.arctan2(radius, z)
                angle = np.where(angle <= self._turning_point, angle, np.nan)
                scale = np.where(radius > 0, self._fisheye(angle)[0] / np.where(radius > 0, radius, 1), 0.0)
                a, b = x * scale, y * scale
            else:
                a, b = np.where(z > 0, x / z, np.nan), np.where(z > 0, y / z, np.nan)
                if self.model == "opencv":
                    seen = np.hypot(a, b) <= self._turning_point
                    a, b = self._distorted(np.where(seen, a, np.nan), np.where(seen, b, np.nan))[:2]
        return np.stack([self.fx * a + self.cx, self.fy * b + self.cy], axis=-1)

    @cached_property
    def largest_angle(self) -> float:
        """Largest angle between the axis and what the picture shows, in degrees."""
        z = self.rays(self._outline())[..., 2]
        return math.degrees(math.acos(float(np.clip(np.nanmin(z), -1, 1))))

    @property
    def depth_type(self) -> str:
        """`z_depth`, or `ray_distance` for a panorama and for a lens that sees beyond `LARGEST_Z_ANGLE`."""
        wide = self.model == "equirectangular" or self.largest_angle > LARGEST_Z_ANGLE
        return "ray_distance" if wide else "z_depth"

    def _outline(self) -> Array:
        """Return positions `(33, 33, 2)` over the whole picture, its borders included."""
        if self.width is None or self.height is None:
            raise ValueError("The size of this lens's picture is not known: use `scaled_to(width, height)` first.")
        return np.stack(np.meshgrid(np.linspace(0, self.width, 33), np.linspace(0, self.height, 33)), axis=-1)

    def _distorted(self, a: Array, b: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Return the distorted a and b of `opencv`, and the derivatives da'/da, da'/db = db'/da and db'/db."""
        k1, k2, p1, p2, k3, k4, k5, k6 = (*self.distortion, *(0.0,) * (8 - len(self.distortion)))
        r2 = a * a + b * b
        above, below = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        g = above / below
        slope = (k1 + r2 * (2 * k2 + 3 * r2 * k3) - g * (k4 + r2 * (2 * k5 + 3 * r2 * k6))) / below
        return (
            a * g + 2 * p1 * a * b + p2 * (r2 + 2 * a * a),
            b * g + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b,
            g + 2 * a * a * slope + 2 * p1 * b + 6 * p2 * a,
            2 * a * b * slope + 2 * p1 * a + 2 * p2 * b,
            g + 2 * b * b * slope + 6 * p1 * b + 2 * p2 * a,
        )

    def _undistorted(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return the pinhole's a and b of distorted ones, by Newton's method; NaN where there are none."""
        x, y = a.copy(), b.copy()
        with np.errstate(all="ignore"):  # what diverges becomes NaN below
            for _ in range(_STEPS):
                at_x, at_y, xx, xy, yy = self._distorted(x, y)
                error_x, error_y, determinant = at_x - a, at_y - b, xx * yy - xy * xy
                if max(np.abs(error_x).max(), np.abs(error_y).max()) < _CONVERGED / 10:
                    break
                x -= (yy * error_x - xy * error_y) / determinant
                y -= (xx * error_y - xy * error_x) / determinant
            at_x, at_y, *_ = self._distorted(x, y)
            found = (np.hypot(at_x - a, at_y - b) < _CONVERGED) & (np.hypot(x, y) <= self._turning_point)
        return np.where(found, x, np.nan), np.where(found, y, np.nan)

    def _fisheye(self, angle: Array) -> tuple[Array, Array]:
        """Return the radius of angles from the axis, in focal lengths, and its derivative."""
        k1, k2, k3, k4 = self.distortion or (0.0,) * 4
        t2 = angle * angle
        radius = angle * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        return radius, 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))

    def _angles(self, radius: Array) -> Array:
        """Return the angles from the axis at radii, by Newton's method; NaN beyond the turning point."""
        angle = np.minimum(radius, self._turning_point)
        with np.errstate(all="ignore"):
            for _ in range(_STEPS):
                at, slope = self._fisheye(angle)
                if np.abs(at - radius).max() < _CONVERGED / 10:
                    break
                angle = np.clip(angle - (at - radius) / slope, 0, self._turning_point)
            found = np.abs(self._fisheye(angle)[0] - radius) < _CONVERGED
        return np.where(found, angle, np.nan)

    @cached_property
    def _turning_point(self) -> float:
        """Radius `hypot(a, b)` of `opencv`, or angle of `fisheye`, up to which the distortion grows."""
        if self.model == "fisheye":
            values = np.linspace(0, math.pi, _SAMPLES)
            grows = self._fisheye(values)[1] > 0
        else:
            values = np.tan(np.linspace(0, math.radians(89), _SAMPLES))
            radial = replace(self, distortion=(*self.distortion[:2], 0.0, 0.0, *self.distortion[4:]))
            grows = radial._distorted(values, np.zeros_like(values))[2] > 0
        return float(values[-1] if grows.all() else values[max(int(np.argmin(grows)) - 1, 0)])


def pixel_centres(width: int, rows: range) -> Array:
    """Return the centres of the pixels of some rows, `(len(rows), width, 2)`: x and y, the first at (0.5, 0.5)."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.asarray(rows) + 0.5), axis=-1)
