"""What a predictor is shown of an image under a protocol, and what its answer scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...geometry import intrinsics_of_map, ray_factors
from ..build.sampling import sample_points
from ..systems.interface import Example, PointAnswer
from .boundary import boundary_f1
from .error_sums import ErrorSums
from .eval_sets import EvalItem, EvalSet
from .metrics import ImageRow
from .point_clouds import point_cloud_f_score
from .point_coordinates import point_pixels, published_truth
from .protocols import Protocol
from .results import ImageResult

EXTRA_METRICS = ("boundary_f1", "boundary_f1_released", "point_cloud_f_score")
"""Of dense maps, and only where they are asked for: they cost more than the others together. `boundary_f1` by the
convention of Depth Pro's paper, `boundary_f1_released` by that of its program, see [`boundary_f1`]."""


@dataclass(frozen=True)
class Task:
    """
    An image under a protocol.

    Args:
        example: what the predictor sees.
        item: image and truth.
        points: `(n, 2)` scored columns and rows in pixels of the depth map; None where all are.
    """

    example: Example
    item: EvalItem
    points: NDArray[np.int64] | None


def make_task(item: EvalItem, eval_set: EvalSet, protocol: Protocol) -> Task:
    """
    The points are the builder's where the protocol has its seed, else they are drawn anew, as many. Points that the
    source itself brought, such as released ones, are scored whatever the seed, all of them.

    Raises:
        ValueError: there are fewer points an image than the protocol wants, though the map has more; or no point
            is left under the published reading of coordinates.
    """
    if protocol.points is None:
        return Task(Example(item.id, item.image, item.intrinsics, np.zeros((0, 2))), item, None)
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
        canonical = _canonical_size(item)
        metres = published_truth(item.depth, chosen, metres, item.image.size, canonical)
        chosen, metres = chosen[metres > 0], metres[metres > 0]
        if not len(chosen):
            raise ValueError(f"No point of {item.id!r} lies inside its image as the published evaluation reads them.")
    height, width = item.depth.shape
    places = point_pixels(chosen, (width, height), item.image.size, protocol.coordinates)
    return Task(Example(item.id, item.image, item.intrinsics, places, metres), item, chosen)


def score_map(
    task: Task, prediction: NDArray[np.float32], protocol: Protocol, extra: Sequence[str] = ()
) -> ImageResult:
    """
    Scores a map of the image's size `(H, W)`, metres. A point takes the value of the pixel that it lies in.

    Args:
        extra: of `EXTRA_METRICS`, for dense protocols.
    """
    item, example = task.item, task.example
    if task.points is None:
        depth = _at_size(prediction, item.depth.shape)
        camera = intrinsics_of_map(item.intrinsics, item.image.size, item.depth.shape)
        factors = None
        if protocol.depth_type != "z":
            rows, columns = np.indices(item.depth.shape)
            factors = ray_factors(np.stack([columns.ravel(), rows.ravel()], axis=1), camera)
        p, g, mask = protocol.prepare(depth, item.depth, item.depth_range, factors, repr(item.id))
        values: dict[str, float] = {}
        if "boundary_f1" in extra:
            values["boundary_f1"] = boundary_f1(p, g, mask)
        if "boundary_f1_released" in extra:
            values["boundary_f1_released"] = boundary_f1(p, g, mask, convention="released")
        if "point_cloud_f_score" in extra:
            z = np.ones(g.shape) if factors is None else 1 / factors.reshape(g.shape)
            answered_z = p * z if protocol.depth_type == "ray" else p
            values["point_cloud_f_score"] = point_cloud_f_score(answered_z, g * z, camera, mask)
        return _result(ImageRow(item.id, ErrorSums.of(p, g, mask, repr(item.id)), values))
    height, width = prediction.shape
    columns, rows = np.floor(example.points + 0.5).astype(np.int64).T
    return score_points(task, prediction[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)], protocol)


def score_answers(task: Task, answers: Sequence[PointAnswer], protocol: Protocol) -> ImageResult:
    """Scores answers in words, one for each point."""
    result = score_points(task, np.array([answer.metres for answer in answers], dtype=np.float64), protocol)
    result.texts.extend(answer.text for answer in answers)
    return result


def score_points(task: Task, metres: NDArray[np.floating], protocol: Protocol) -> ImageResult:
    """Scores metres `(n,)` at the points of the task."""
    item, example = task.item, task.example
    factors = ray_factors(example.points, item.intrinsics) if protocol.depth_type != "z" else None
    p, g, mask = protocol.prepare(metres, example.truth, item.depth_range, factors, repr(item.id))
    result = _result(ImageRow(item.id, ErrorSums.of(p, g, mask, repr(item.id))))
    answers = [None if math.isnan(value) else float(value) for value in p[mask]]
    result.answers.extend(answers)
    result.truth.extend(g[mask].tolist())
    result.points.extend(tuple(place) for place in example.points[mask].tolist())
    return result


def image_row(result: ImageResult) -> ImageRow:
    """The accumulator's row of a result."""
    sums = ErrorSums(**result.sums)  # type: ignore[arg-type]
    known = sums.metrics()
    return ImageRow(result.id, sums, {name: value for name, value in result.metrics.items() if name not in known})


def _result(row: ImageRow) -> ImageResult:
    metrics = {name: value for name, value in row.metrics().items() if not math.isnan(value)}
    return ImageResult(row.id, metrics, row.sums.pixels, row.sums.failures, asdict(row.sums))


def _at_size(prediction: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The map read at the centres of the pixels of a map of another size, bilinearly; failures stay failures."""
    if prediction.shape == shape:
        return prediction
    good = np.isfinite(prediction) & (prediction > 0)
    size = (shape[1], shape[0])
    picture = Image.fromarray(np.where(good, prediction, np.float32(np.nan)).astype(np.float32))
    # Not Pillow's `resize`, which averages over many pixels when it makes a picture smaller.
    scale = (picture.width / size[0], 0.0, 0.0, 0.0, picture.height / size[1], 0.0)
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR))


def _canonical_size(item: EvalItem) -> tuple[int, int]:
    """Width and height at the paper's canonical focal length of 1000 px."""
    scale = 1000 / item.intrinsics[0]
    return round(item.image.width * scale), round(item.image.height * scale)
