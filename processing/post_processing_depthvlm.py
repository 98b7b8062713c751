# Copyright 2026 The DepthVLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""From the model's output to metres at the size of each image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .batch_depthvlm import names_keywords
from .camera_depthvlm import Camera


@names_keywords
def post_process_depth(outputs: Any, target_sizes: Any = None) -> list[dict[str, Any]]:
    """
    Depth in metres at the size of each image, with the camera that was used.

    Args:
        outputs ([`~transformers.utils.ModelOutput`]): Has `predicted_depth`, a list with one `(h, w)` tensor for every
            image or one `(N, h, w)` tensor, in metres, and may have `cameras`, the `(N, 7)` tensor of the processor.
        target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(N, 2)`, *optional*): Height and width in
            pixels for every image. By default the size of the image as given, or of the prediction without `cameras`.

    Returns:
        `list[dict]`, for every image: `predicted_depth` (`torch.Tensor` of shape `(H, W)`, float32, metres), `camera`
        ([`Camera`] at that size, None where unknown), `intrinsics` (`torch.Tensor` of shape `(3, 3)`, pixels of that
        size, or None) and `focal_source` (`str` or None).

    Raises:
        ValueError: if there is no predicted depth, it is not finite, or the numbers of images, cameras and sizes
            differ.
    """
    predicted = outputs.predicted_depth
    if predicted is None:
        raise ValueError(
            "`outputs` has no `predicted_depth`: the model was called without images or `output_depth=False`."
        )
    count = len(predicted)
    rows = getattr(outputs, "cameras", None)  # outputs of other depth models have no such field
    if rows is not None and len(rows) != count:
        raise ValueError(
            f"`outputs` has {count} depth maps but {len(rows)} cameras. Pass the processor's `cameras` as it was."
        )
    if target_sizes is not None and len(target_sizes) != count:
        raise ValueError(f"`target_sizes` has {len(target_sizes)} entries for {count} predicted depth maps.")

    results = []
    for index, depth in enumerate(predicted):
        camera = None if rows is None else Camera.from_row(rows[index].tolist())
        if target_sizes is not None and target_sizes[index] is not None:
            height, width = _size(target_sizes[index], index)
        elif camera is not None:
            height, width = camera.height, camera.width
        else:
            height, width = depth.shape[-2:]
        depth = depth.float()
        if not torch.isfinite(depth).all():
            raise ValueError(
                f"The predicted depth of image {index} holds NaN or infinity: the model's weights are damaged, or its "
                "numbers overflow in float16 (try bfloat16 or float32)."
            )
        if tuple(depth.shape[-2:]) != (height, width):
            depth = F.interpolate(depth[None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
        camera = None if camera is None else camera.scaled_to(width, height)
        results.append(
            {
                "predicted_depth": depth,
                "camera": camera,
                "intrinsics": None if camera is None else camera.intrinsics,
                "focal_source": None if camera is None else camera.source,
            }
        )
    return results


def _size(size: Sequence[int] | torch.Tensor, index: int) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(
            f"`target_sizes[{index}]` must be a height and a width of at least 1 pixel, got {tuple(size)}."
        )
    return height, width
