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
"""What the processor takes by name, and its result: metres and cameras in it are never cast below float32."""

import difflib
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import TextKwargs, VideosKwargs
from transformers.utils.hub import cached_file

P = ParamSpec("P")
R = TypeVar("R")

# What `from_pretrained` takes for the Hub and for a model, which pipelines hand to every part, and for a tokenizer.
_LOADING = """
cache_dir force_download local_files_only token revision subfolder proxies trust_remote_code code_revision use_fast
backend user_agent return_unused_kwargs resume_download image_processor_filename dtype torch_dtype device_map max_memory
offload_folder offload_buffers quantization_config attn_implementation experts_implementation tp_plan tp_size
device_mesh distributed_config variant state_dict key_mapping gguf_file generation_config use_kernels kernel_config
adapter_name adapter_kwargs low_cpu_mem_usage output_loading_info use_safetensors
"""
_TOKENIZER = """
image_processor tokenizer video_processor chat_template padding_side truncation_side model_max_length
clean_up_tokenization_spaces split_special_tokens additional_special_tokens extra_special_tokens bos_token eos_token
unk_token sep_token pad_token cls_token mask_token add_bos_token add_eos_token add_prefix_space tokenizer_file
tokenizer_type vocab_file merges_file errors from_slow legacy gguf_file
"""
LOADING_KEYWORDS = frozenset(_LOADING.split())
SETTINGS_KEYWORDS = LOADING_KEYWORDS.union(_TOKENIZER.split(), TextKwargs.__annotations__, VideosKwargs.__annotations__)

# Rounded to bfloat16 these would be wrong by up to 0.4 %.
FULL_PRECISION = ("focal_scale", "cameras", "depth_labels")


HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def hub_keywords(given: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s keywords that say where a file comes from."""
    return {name: given[name] for name in HUB_KEYWORDS if given.get(name) is not None}


def read_json(model: Any, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """A JSON file of a checkpoint, a folder or a name on the Hub; empty where it has none."""
    if os.path.isfile(model):
        return {}
    file = cached_file(model, name, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None:
        return {}
    with open(file, encoding="utf-8") as stream:
        return json.load(stream)


def check_keywords(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises TypeError for the first name that is not known, with the nearest one that is."""
    known = sorted(known)
    for name in given:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise TypeError(f"{where} got an unexpected keyword argument `{name}`.{hint}")


def names_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function without `**kwargs` name the nearest keyword too when it gets one that it does not know."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_keywords(kwargs, known, function.__qualname__.removesuffix(".__init__"))
        return function(*args, **kwargs)

    return checked


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
