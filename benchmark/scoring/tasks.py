"""From an image to the example that a predictor sees under a protocol, and from its answer to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ...geometry import intrinsics_of_map, ray_factors
from ..build.sampling import sample_points
from ..systems.interface import Example, PointAnswer, TokenGrid
from .boundary import boundary_f1
from .eval_sets import EvalItem, EvalSet
from .metrics import Array, ErrorSums
from .point_clouds import point_cloud_f_score
from .protocols import Coordinates, Protocol
from .results import ImageResult
from .shape import grid_powers, shape_metrics

EXTRA_METRICS = ("boundary_f1", "boundary_f1_released", "point_cloud_f_score")
"""Metrics of dense maps that are computed on request: they cost more than the others together. `boundary_f1` follows
Depth Pro's paper, `boundary_f1_released` its program, see [`boundary_f1`]."""


def make_example(item: EvalItem, eval_set: EvalSet, protocol: Protocol) -> Example:
    """Return what a predictor sees of an image; its points are empty where whole maps are scored.

    The points are the builder's where the protocol has its seed; otherwise as many are drawn again. Points that the
    source itself gave, such as released ones, are all scored, whatever the seed.

    Raises:
        ValueError: There are fewer points per image than the protocol wants though the map has more, or no point is
            left under the published reading of coordinates.
    """
    if protocol.points is None:
        return Example(item.id, item.image, item.intrinsics, np.zeros((0, 2)))
    chosen, metres = item.points, item.point_depths
    count = len(chosen)
    if count < protocol.points and count < np.count_nonzero(item.depth):
        remedy = (
            f"build it with --points {protocol.points}" if eval_set.seed is not None else f"--change points={count}"
        )
        raise ValueError(
            f"The protocol {protocol.name!r} scores {protocol.points} points an image, the build has {count} of "
            f"{item.id!r}: {remedy}."
        )
    if eval_set.seed is not None and protocol.seed != eval_set.seed:
        chosen = sample_points(item.depth > 0, count, protocol.seed, eval_set.source, eval_set.split, item.id)
        metres = item.depth[chosen[:, 1], chosen[:, 0]].astype(np.float64)
    if protocol.coordinates == "published":
        scale = 1000 / item.intrinsics[0]  # to the paper's canonical focal length of 1000 px
        canonical = (round(item.image.width * scale), round(item.image.height * scale))
        metres = published_truth(item.depth, chosen, metres, item.image.size, canonical)
        chosen, metres = chosen[metres > 0], metres[metres > 0]
        if not len(chosen):
            raise ValueError(f"No point of {item.id!r} lies inside its image as the published evaluation reads them.")
    height, width = item.depth.shape
    places = point_pixels(chosen, (width, height), item.image.size, protocol.coordinates)
    return Example(item.id, item.image, item.intrinsics, places, metres)


def score_map(
    item: EvalItem,
    example: Example,
    prediction: NDArray[np.float32],
    protocol: Protocol,
    extra: Sequence[str] = (),
    tokens: TokenGrid | None = None,
) -> ImageResult:
    """Score a map of z-depth in metres, of the image's size `(H, W)`.

    A point takes the value of the pixel that it lies in. Where whole maps are scored, `extra` names further metrics,
    and the metrics of shape are added; those of the grid need the model's `tokens`.
    """
    if protocol.points is not None:
        height, width = prediction.shape
        columns, rows = np.floor(example.points + 0.5).astype(np.int64).T
        metres = prediction[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
        return score_points(item, example, metres, protocol)
    camera = intrinsics_of_map(item.intrinsics, item.image.size, item.depth.shape)
    factors = None
    if protocol.depth_type != "z":
        rows, columns = np.indices(item.depth.shape)
        factors = ray_factors(np.stack([columns.ravel(), rows.ravel()], axis=1), camera)
    depth = at_size(prediction, item.depth.shape)
    p, g, mask = protocol.prepare(depth, item.depth, item.depth_range, factors, repr(item.id))
    z = np.ones(g.shape) if factors is None else 1 / factors.reshape(g.shape)
    answered_z = p * z if protocol.depth_type == "ray" else p
    values = shape_metrics(answered_z, g * z, mask, camera, item.masks)
    if "boundary_f1" in extra:
        values["boundary_f1"] = boundary_f1(p, g, mask)
    if "boundary_f1_released" in extra:
        values["boundary_f1_released"] = boundary_f1(p, g, mask, convention="released")
    if "point_cloud_f_score" in extra:
        values["point_cloud_f_score"] = point_cloud_f_score(answered_z, g * z, camera, mask)
    result = _result(item.id, ErrorSums.of(p, g, mask, repr(item.id)), values)
    return replace(result, grid=grid_powers(prediction, tokens))


def score_answers(item: EvalItem, example: Example, answers: Sequence[PointAnswer], protocol: Protocol) -> ImageResult:
    """Score answers in words, one for each point."""
    metres = np.array([answer.metres for answer in answers], dtype=np.float64)
    result = score_points(item, example, metres, protocol)
    result.texts.extend(answer.text for answer in answers)
    return result


def score_points(item: EvalItem, example: Example, metres: NDArray[np.floating], protocol: Protocol) -> ImageResult:
    """Score metres `(n,)` at the points of the example."""
    factors = ray_factors(example.points, item.intrinsics) if protocol.depth_type != "z" else None
    p, g, mask = protocol.prepare(metres, example.truth, item.depth_range, factors, repr(item.id))
    result = _result(item.id, ErrorSums.of(p, g, mask, repr(item.id)), {})
    result.answers.extend(None if math.isnan(value) else float(value) for value in p[mask])
    result.truth.extend(g[mask].tolist())
    result.points.extend(tuple(place) for place in example.points[mask].tolist())
    return result


def _result(name: str, sums: ErrorSums, extra: Mapping[str, float]) -> ImageResult:
    metrics = {key: value for key, value in {**sums.metrics(), **extra}.items() if not math.isnan(value)}
    return ImageResult(name, metrics, sums.pixels, sums.failures, asdict(sums))


def at_size(prediction: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read the map at the pixel centres of a map of another size, bilinearly; failures stay failures."""
    if prediction.shape == shape:
        return prediction
    good = np.isfinite(prediction) & (prediction > 0)
    size = (shape[1], shape[0])
    picture = Image.fromarray(np.where(good, prediction, np.float32(np.nan)).astype(np.float32))
    # Pillow's `resize` would average over many pixels when it makes a picture smaller.
    scale = (picture.width / size[0], 0.0, 0.0, 0.0, picture.height / size[1], 0.0)
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR))


def point_pixels(
    pixel_coords: ArrayLike,
    depth_size: tuple[int, int],
    image_size: tuple[int, int],
    coordinates: Coordinates = "depth",
) -> Array:
    """Return where in the image the points of an annotation line lie.

    Args:
        pixel_coords: `(n, 2)`, column and row in pixels of the depth map.
        depth_size: Width and height of the depth map in pixels.
        image_size: Width and height of the image in pixels.
        coordinates: "depth" aligns the two pictures: `(c + 0.5) * image / depth - 0.5`. "published" takes the numbers
            for pixels of the image, as the paper's released evaluation does; with a smaller depth map its points all
            lie in the top left of the image. Its truth differs too, see [`published_truth`].

    Returns:
        `(n, 2)` float64, column and row in pixels of the image, the centre of the first pixel at (0, 0).

    Raises:
        ValueError: The points are not `(n, 2)`, or lie outside the map in which they are read.
    """
    if coordinates not in ("depth", "published"):
        raise ValueError(f'`coordinates` must be "depth" or "published", got {coordinates!r}.')
    points = _points(pixel_coords)
    size = depth_size if coordinates == "depth" else image_size
    if points.size and not ((points >= 0).all() and (points < size).all()):
        raise ValueError(f"`pixel_coords` has points outside the map of {size[0]}x{size[1]} pixels (width x height).")
    if coordinates == "published":
        return points
    return (points + 0.5) * (np.asarray(image_size) / np.asarray(depth_size)) - 0.5


def published_truth(
    depth: ArrayLike,
    pixel_coords: ArrayLike,
    listed: ArrayLike,
    image_size: tuple[int, int],
    canonical_size: tuple[int, int] | None = None,
) -> Array:
    """Return the truth that the paper's released evaluation compares with at "published" coordinates.

    That evaluation brings the points, as if they were pixels of the image, and the depth map (nearest neighbour) to the
    canonical size and reads the map there; where the map has no depth, it takes the listed one.

    Args:
        depth: Metres `(h, w)`, 0 where there is none or out of the source's range.
        pixel_coords: `(n, 2)`, column and row.
        listed: `(n,)` metres of the annotation line.
        image_size: Width and height of the image in pixels.
        canonical_size: Width and height of the canonical size in pixels, by default the image's.

    Returns:
        `(n,)` float64 in metres; 0 for a point that falls outside, which that evaluation leaves out.
    """
    metres, points = np.asarray(depth, dtype=np.float64), _points(pixel_coords)
    canonical = np.asarray(canonical_size or image_size)
    places = np.rint(points * (canonical / np.asarray(image_size))).astype(np.int64)
    inside = ((places >= 0) & (places < canonical)).all(axis=1)
    height, width = metres.shape
    columns, rows = (np.where(inside[:, None], places, 0) * np.array([width, height]) // canonical).T
    found = metres[rows, columns]
    return np.where(inside, np.where(found > 0, found, np.asarray(listed, dtype=np.float64)), 0.0)


def _points(pixel_coords: ArrayLike) -> Array:
    points = np.asarray(pixel_coords, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"`pixel_coords` must be (n, 2), column and row, got {points.shape}.")
    return points
