"""Depth averaged over views of one picture: shifted by parts of a visual token, and mirrored.

A depth head that upsamples token by token leaves traces of the token grid in a map. In a shifted view the grid lies
elsewhere in the picture, so that its traces, and the network's own noise, average out; where the views disagree, the
depth is uncertain.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .modeling_depthvlm import PredictedDepth
from .processing import DepthVLMProcessor, post_process_depth

MOST_VIEWS = 32


class View(NamedTuple):
    """A view of a picture, which begins so many pixels before its upper left corner, and may be mirrored.

    Attributes:
        down: Rows of padding above the picture.
        right: Columns of padding on the left of the picture, after mirroring.
        mirrored: True if left and right are exchanged.
    """

    down: int
    right: int
    mirrored: bool

    def of(self, picture: Image.Image, cell: int) -> Image.Image:
        """Return the view of a picture whose sides are multiples of `cell`, padded with its own reflection."""
        pixels = np.asarray(picture)[:, ::-1] if self.mirrored else np.asarray(picture)
        margins = [(shift, cell - shift if shift else 0) for shift in (self.down, self.right)]
        return Image.fromarray(np.pad(pixels, [*margins, (0, 0)], mode="symmetric"))

    def undo(self, depth: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the part of a view's depth that shows the picture, `size` (height, width), at its own place."""
        height, width = size
        part = depth[self.down : self.down + height, self.right : self.right + width]
        return part.flip(-1) if self.mirrored else part


def views(count: int, cell: int) -> list[View]:
    """Return so many views: the picture itself, by half tokens and mirrored, then also by quarters.

    Args:
        count: Number of views, 1 to 32.
        cell: Side of a visual token in pixels of the model's input.

    Raises:
        ValueError: There are not so many views.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_VIEWS:
        raise ValueError(f"`refine` is the number of views to average, 1 to {MOST_VIEWS}, got {count!r}.")
    half, quarter = cell // 2, cell // 4
    # Any first two, four and eight of them lie as far apart as so many can, and half are mirrored.
    halves = [(0, 0, False), (half, half, True), (0, half, False), (half, 0, True)]
    halves += [(down, right, not mirrored) for down, right, mirrored in halves]
    offsets = [(0, 0), (quarter, quarter), (0, quarter), (quarter, 0)]
    return [View(down + y, right + x, mirrored) for y, x in offsets for down, right, mirrored in halves][:count]


def view_inputs(
    processor: DepthVLMProcessor, images: Sequence[Any], text: str, count: int, cameras: Mapping[str, Sequence[Any]]
) -> list[tuple[View, Any]]:
    """Return the second and further views of all images, each with the processor's output for it.

    Args:
        processor: The model's processor.
        images: Images as given.
        text: The prompt of depth, for each of them.
        count: Number of views with the first, the images themselves.
        cameras: `focal_length`, `fov` and `intrinsics` of the images, as far as they are given.

    Raises:
        ValueError: There are not so many views.
    """
    image_processor = processor.image_processor
    cell = image_processor.patch_size * image_processor.merge_size
    shown = views(count, cell)[1:]
    if not shown:
        return []
    given = [{name: values[index] for name, values in cameras.items()} for index in range(len(images))]
    canonical = [image_processor.canonical_image(image, **one) for image, one in zip(images, given, strict=True)]
    focal_lengths = [scale * image_processor.canonical_focal_length for _, _, scale in canonical]
    return [
        (
            view,
            processor(
                images=[view.of(picture, cell) for picture, _, _ in canonical],
                text=[text] * len(images),
                padding=True,
                padding_side="left",
                return_tensors="pt",
                do_resize=False,
                focal_length=focal_lengths,
            ),
        )
        for view in shown
    ]


def combine(
    first: Sequence[Tensor], others: Sequence[tuple[View, Sequence[Tensor]]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the mean of the views' depth, and how far they spread.

    Args:
        first: Depth of each picture itself, `(h, w)` in metres at the model's input size.
        others: Further views, each with the depth of every picture's view.

    Returns:
        The geometric mean, `(h, w)` in metres, and the standard deviation of the logarithm, which for small spreads is
        the relative one; both for each picture.
    """
    means, spreads = [], []
    for index, depth in enumerate(first):
        size = (depth.shape[0], depth.shape[1])
        logs = torch.stack([depth.log(), *(view.undo(maps[index], size).log() for view, maps in others)])
        means.append(logs.mean(0).exp())
        spreads.append(logs.std(0, correction=0))
    return means, spreads


def resize_spread(spreads: Sequence[Tensor], cameras: Tensor) -> list[Tensor]:
    """Return the spread of every picture at its own size, `(H, W)`, resized as its depth is."""
    return [one["predicted_depth"] for one in post_process_depth(PredictedDepth(spreads, cameras))]
