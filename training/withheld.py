"""Cameras that are known but withheld from the model's input, so that the camera head can learn them.

An image that was resampled with its true camera always has the canonical focal length (equation 6), so its size in the
model's input tells the answer. The camera head therefore learns from images that are processed as if nothing was known.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..modeling_depthvlm.camera_head_depthvlm import UNIT_FOCAL_LENGTH
from ..processing import Camera
from .rows import TrainingRow


def withheld_cameras(rows: Sequence[TrainingRow], share: float) -> dict[int, Camera]:
    """Return the true cameras of the images whose camera is withheld, by their number in the batch.

    An image is chosen by its pixels alone, so that it is the same in every run, epoch and batch.

    Args:
        rows: The examples of a batch.
        share: Share of the images with a known camera.
    """
    images = [pair for row in rows if not row.repeated for pair in zip(row.images, row.resolved, strict=True)]
    numbers = [index for index, repeated in enumerate(row.repeated for row in rows for _ in row.images) if not repeated]
    return {
        number: camera
        for number, (image, camera) in zip(numbers, images, strict=True)
        if camera.source != "assumed" and _draw(image) < share
    }


def _draw(image: Image.Image) -> float:
    """Return a number in [0, 1) that depends on an image's pixels."""
    return zlib.crc32(image.resize((32, 32), Image.Resampling.NEAREST).tobytes()) / 2**32


def assumed_focal_length(camera: Camera, assumed_fov: float) -> float:
    """Return the focal length in pixels that is assumed for an image of this size whose camera is not known."""
    return max(camera.width, camera.height) / (2 * math.tan(math.radians(assumed_fov) / 2))


def label_withheld(features: Any, truths: Mapping[int, Camera]) -> None:
    """Put the true cameras into a batch that was processed without them, for its losses.

    `camera_labels` `(images,)` are the logarithms of the true focal lengths in the unit of the camera head, NaN for all
    other images; `cameras` and `focal_scale` become the true ones, since depth labels are in true metres.

    Args:
        features: The processor's output, which is changed.
        truths: True cameras by the number of their image, of the size as given.
    """
    labels = torch.full((len(features["cameras"]),), math.nan)
    for index, camera in truths.items():
        row = features["cameras"][index]
        # The image may have been read at a reduced size.
        camera = camera.scaled_to(round(float(row[5])), round(float(row[4])))
        labels[index] = math.log(camera.focal_length / (UNIT_FOCAL_LENGTH * max(camera.width, camera.height)))
        features["focal_scale"][index] *= camera.focal_length / float(row[0])
        features["cameras"][index] = torch.tensor(camera.to_row())
    features["camera_labels"] = labels
