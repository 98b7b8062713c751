"""Temporal steadiness: the depth of a frame, averaged in log depth with what its neighbours say of the same points.

The motion of the camera between frames is estimated (`ego_motion`), so that a point's depth is compared with its own
in the last frame, and what the motion itself changes is kept. Where the picture or the depth of the other frame does
not agree, as at moving and at hidden things, it does not count. At a cut nothing before it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .ego_motion import (
    LONGEST_SIDE,
    Array,
    Motion,
    Pinhole,
    camera_motion,
    difference,
    moved,
    resized,
    sample,
    shape_within,
)

PREVIOUS_WEIGHT = 3.0  # of the last steadied frame; this frame and those ahead have 1 each
_MAX_LOG_RATIO = 1.5  # depths that differ by more than this factor, as a logarithm, are of other things
_GREY_TOLERANCE = 25.0  # grey values, of 255, at which the weight of the other frame is halved
_CORRECTION_SIDE = 384  # pixels; the correction is computed at this size at most
_MIN_CORRELATION = 0.7  # of the aligned pictures; and
_MIN_AGREEMENT = 0.5  # share of the pixels whose depth agrees to within the following; below either there is a cut
_AGREEING_LOG_RATIO = 0.2


@dataclass(frozen=True, eq=False)
class SteadyFrame:
    """A frame for `steadied`.

    Attributes:
        grey: Grey values `(h, w)`, small.
        depth: z-depth `(H, W)` in metres.
    """

    grey: Array
    depth: NDArray[np.floating]

    @classmethod
    def of(cls, picture: Image.Image, depth: NDArray[np.floating]) -> "SteadyFrame":
        """Return the frame of a picture and its depth map `(H, W)` in metres."""
        grey = np.asarray(picture.convert("L"), np.float64)
        return cls(resized(grey, shape_within(grey.shape, LONGEST_SIDE)), depth)

    @cached_property
    def log_depth(self) -> Array:
        """Logarithm of the depth at the size at which corrections are computed."""
        logs = np.log(np.maximum(self.depth, 1e-3))
        return resized(logs, shape_within(logs.shape, _CORRECTION_SIDE))


def steadied(
    frame: SteadyFrame, previous: SteadyFrame | None, ahead: Sequence[SteadyFrame], camera: Pinhole
) -> NDArray[np.floating]:
    """Return the steadied depth `(H, W)` of a frame in metres.

    The first frame of a clip, and the first after a cut, is returned as it is.

    Args:
        frame: The frame as predicted.
        previous: The frame before it, with steadied depth; None for the first.
        ahead: The frames that follow it, as predicted, nearest first; may be empty.
        camera: The camera of all of them.
    """
    motion = None if previous is None else _motion(frame, previous, camera, None)
    if previous is None or motion is None:
        return frame.depth
    total = PREVIOUS_WEIGHT * _correction(frame, previous, motion, camera)
    weight = 1 + PREVIOUS_WEIGHT
    pose = np.asarray(np.linalg.inv(motion.pose), np.float64)  # a camera goes on as it came
    for other in ahead:
        motion = _motion(frame, other, camera, pose)
        if motion is None:
            break
        pose = motion.pose
        total += _correction(frame, other, motion, camera)
        weight += 1
    correction = resized(total / weight, frame.depth.shape, Image.Resampling.BILINEAR)  # type: ignore[arg-type]
    return (frame.depth * np.exp(correction)).astype(np.float32)


def _motion(frame: SteadyFrame, other: SteadyFrame, camera: Pinhole, start: Array | None) -> Motion | None:
    """Return the motion between frames, or None where they do not show the same scene."""
    depth = np.exp(resized(frame.log_depth, frame.grey.shape))  # type: ignore[arg-type]
    motion = camera_motion(frame.grey, other.grey, depth, camera, start)
    if motion.correlation < _MIN_CORRELATION:
        return None
    ratio, inside = _log_ratio(frame, other, motion, camera)
    agreement = float((inside & (np.abs(ratio) < _AGREEING_LOG_RATIO)).mean())
    return motion if agreement >= _MIN_AGREEMENT else None


def _log_ratio(
    frame: SteadyFrame, other: SteadyFrame, motion: Motion, camera: Pinhole
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the logarithm of the other frame's depth over this one's, point by point, and where it is in view."""
    column, row, depth = moved(np.exp(frame.log_depth), motion.pose, camera)
    found, inside = sample(other.log_depth, column, row)
    return found - np.log(depth), inside


def _correction(frame: SteadyFrame, other: SteadyFrame, motion: Motion, camera: Pinhole) -> Array:
    """Return what has to be added to the log depth to agree with the other frame, less where that is doubtful."""
    ratio, inside = _log_ratio(frame, other, motion, camera)
    weights = inside * np.maximum(0, 1 - (ratio / _MAX_LOG_RATIO) ** 2)
    small = np.exp(resized(frame.log_depth, frame.grey.shape))  # type: ignore[arg-type]
    column, row, _ = moved(small, motion.pose, camera)
    grey, _ = difference(frame.grey, other.grey, column, row)
    doubt = _mean_of_3x3(np.abs(grey)) / _GREY_TOLERANCE
    return ratio * weights * resized(1 / (1 + doubt**2), ratio.shape, Image.Resampling.BILINEAR)  # type: ignore[arg-type]


def _mean_of_3x3(values: Array) -> Array:
    padded = np.pad(values, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    mean: Array = windows.mean(axis=(2, 3))
    return mean
