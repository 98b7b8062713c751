"""DepthLM by its own protocol: one focal length for all images, its short arrow."""

from __future__ import annotations

from typing import Any, ClassVar

from .answers import ARROW_PROMPT
from .arrow import resize_image
from .arrow_vlm import ArrowVLM, Question
from .interface import Example, Requirement

FOCAL_LENGTH = 750.0
"""Pixels; what DepthLM's released evaluation sets for the released Pixtral-12B checkpoint (eval.py of
facebookresearch/DepthLM_Official). The paper's unified focal length, for its Qwen2.5-VL models, is 1000."""


class DepthLM(ArrowVLM):
    """
    DepthLM (arXiv 2509.25413): images are resized to one focal length, then the arrow is drawn.

    As in its released evaluation the resizing is isotropic, by `focal_length / fx` (bicubic, sizes rounded down),
    without the limit of 1024 pixels that other VLMs have; the arrow is 5 pixels long, and
    the pixel of a point (x, y) is `int(x * scale), int(y * scale)`. Left out is that evaluation's
    remapping of images with `fx != fy`: it has no distortion coefficients, and so next to no effect. Points near a
    border, which it replaces by other points, get the arrow from another side.

    Args:
        model: name on the Hub, or folder; `facebook/DepthLM`.
        focal_length: in pixels; 1000 for models trained with the paper's.
        arrow_length: in pixels.
        device, dtype, batch_size, max_new_tokens, prompt, trust_remote_code, **kwargs: see [`ArrowVLM`].
    """

    name = "depthlm"
    requires: ClassVar[Requirement] = Requirement(
        packages=("torchvision",), gpu_gib=28.0, install='pip install "depthvlm[bench,video]"'
    )

    def __init__(
        self,
        model: str = "facebook/DepthLM",
        *,
        focal_length: float = FOCAL_LENGTH,
        arrow_length: int = 5,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 4096,
        prompt: str = ARROW_PROMPT,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ):
        if not focal_length > 0:
            raise ValueError(f"`focal_length` is in pixels and positive, got {focal_length}.")
        super().__init__(
            model,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            prompt=prompt,
            arrow_length=arrow_length,
            longest_edge=None,
            trust_remote_code=trust_remote_code,
            **kwargs,
        )
        self.focal_length = focal_length

    def questions(self, example: Example) -> list[Question]:
        """The image at the common focal length, once with an arrow for each point."""
        scale = self.focal_length / example.intrinsics[0]
        size = (max(1, int(example.image.width * scale)), max(1, int(example.image.height * scale)))
        pixels = [
            [min(max(int(place * scale), 0), side - 1) for place, side in zip(point, size, strict=True)]
            for point in example.points.tolist()
        ]
        return self._questions(example, resize_image(example.image, size), pixels)
