"""DepthVLM itself as a system of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from PIL import Image

from ...checkpoint import BUNDLED_MODEL, checkpoint_hash, resolve_model_path, split_revision, weight_files
from ...loading import load_checkpoint
from ...processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT
from .dense import rgb_pixels
from .interface import DensePredictor, Example, TokenGrid


class DepthVLMSystem(DensePredictor):
    """A DepthVLM checkpoint in its own or the published layout: one prefill per batch, no text.

    The focal length comes from the intrinsics (section 3.3 of the paper). As in `depthvlm predict`, the map is resized
    bilinearly to the image.

    Args:
        model: A folder, a name on the Hub, or `depthvlm-nano` for the bundled small model.
        device: `auto`, `cuda`, `cuda:1`, `mps` or `cpu`.
        dtype: Name of a dtype; `auto` for the checkpoint's own, but float32 for a small model on a CPU.
        focal_length: Pixels, for all images instead of their own focal lengths. The canonical one (1000) leaves images
            at their own size, as in the row of the paper's table 7 that was trained without normalisation.
        **kwargs: See [`depthvlm.load`], such as `attn_implementation`, `revision` or `token`.

    Raises:
        OSError: There is no such model.
        ValueError: `focal_length` is not positive.
    """

    def __init__(
        self,
        model: str | Path = BUNDLED_MODEL,
        *,
        device: str = "auto",
        dtype: str = "auto",
        focal_length: float | None = None,
        **kwargs: Any,
    ):
        if focal_length is not None and not focal_length > 0:
            raise ValueError(f"`focal_length` is in pixels and positive, got {focal_length}.")
        self.focal_length = focal_length
        path = resolve_model_path(str(model))
        self.model, self.processor = load_checkpoint(path, device, dtype, **kwargs)
        self._files = _local_folder(path, getattr(self.model.config, "_commit_hash", None), **kwargs)
        conversation: list[Any] = [
            {"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": DEPTH_PROMPT}]},
        ]
        self._text = self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)

    def checkpoint(self) -> str | None:
        """Return the checkpoint's [`~depthvlm.checkpoint.checkpoint_hash`]; None without safetensors."""
        return self._hash

    @cached_property
    def _hash(self) -> str | None:
        return checkpoint_hash(self._files) if weight_files(self._files) else None

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return the maps; images of several sizes may share a batch."""
        inputs = self.processor(
            images=[Image.fromarray(rgb_pixels(example)) for example in examples],
            text=[self._text] * len(examples),
            intrinsics=[self._camera(example) for example in examples],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            depths = self.processor.post_process_depth_estimation(self.model.predict_depth(**inputs))
        return [depth["predicted_depth"].cpu().numpy() for depth in depths]

    def token_grid(self, example: Example) -> TokenGrid:
        """Return the tokens of an image at the size of the model's input, which its camera decides."""
        stride = self.model.config.input_stride
        blank = Image.new("RGB", example.image.size)  # without EXIF data, as the pixels that `predict` takes
        image, _, _ = self.processor.image_processor.canonical_image(blank, intrinsics=self._camera(example))
        return TokenGrid(image.height // stride, image.width // stride, stride)

    def _camera(self, example: Example) -> list[float]:
        if self.focal_length is None:
            return list(example.intrinsics)
        return [self.focal_length, self.focal_length, *example.intrinsics[2:]]


def _local_folder(path: str, commit: str | None, subfolder: str = "", cache_dir: Any = None, **_: Any) -> Path:
    """Return the folder that `from_pretrained` has just read: the checkpoint's own, or that of the Hub's cache."""
    if Path(path).is_dir():
        return Path(path, subfolder)
    path, revision = split_revision(path)
    return Path(
        snapshot_download(path, revision=commit or revision, cache_dir=cache_dir, local_files_only=True), subfolder
    )
