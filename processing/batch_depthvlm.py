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
"""The processor's result: metres and cameras in it are never cast below float32."""

from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

# Rounded to bfloat16 these would be wrong by up to 0.4 %.
FULL_PRECISION = ("focal_scale", "cameras", "depth_labels")


class DepthVLMBatchFeature(BatchFeature):
    """
    What the processor returns, ready for `model(**inputs)`. `.to(device, dtype)` moves everything, the tensors inside
    `depth_labels` included, but leaves `focal_scale`, `cameras` and `depth_labels` in float32.
    """

    def __init__(self, data: dict[str, Any] | None = None, tensor_type: Any = None, skip_tensor_conversion: Any = None):
        # Depth maps of unequal sizes cannot become one tensor.
        skip = {"depth_labels", *(skip_tensor_conversion or ())}
        super().__init__(data, tensor_type=tensor_type, skip_tensor_conversion=skip)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["data"])  # type: ignore[misc]

    def to(self, *args: Any, **kwargs: Any) -> "DepthVLMBatchFeature":
        """
        Moves and casts in place, as the parent does.

        Args:
            args, kwargs: Of [`torch.Tensor.to`]: a device, a dtype, `non_blocking`.

        Returns:
            [`DepthVLMBatchFeature`]: itself.
        """
        kept = {key: self.data[key] for key in FULL_PRECISION if key in self.data}
        order = list(self.data)
        self.data = {key: value for key, value in self.data.items() if key not in kept}
        super().to(*args, **kwargs)
        device = kwargs.get("device") or next((arg for arg in args if not isinstance(arg, torch.dtype)), None)
        if device is not None:
            kept = {key: _move(value, device, kwargs.get("non_blocking", False)) for key, value in kept.items()}
        self.data = {key: kept[key] if key in kept else self.data[key] for key in order}
        return self


def _move(value: Any, device: Any, non_blocking: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device=device, non_blocking=non_blocking)
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device, non_blocking) for item in value)
    return value
