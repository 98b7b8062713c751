"""Helpers that dense predictors share: pixels, maps, and checkpoints whose weights are all there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Example, PredictorError


def rgb_pixels(example: Example) -> NDArray[np.uint8]:
    """Return the pixels `(H, W, 3)` as stored: the EXIF orientation is ignored, as points are in stored pixels."""
    return np.array(example.image.convert("RGB"))


def stacked_pixels(examples: Sequence[Example]) -> NDArray[np.uint8]:
    """Return the pixels `(N, H, W, 3)` of images of one size.

    Raises:
        ValueError: The images have different sizes.
    """
    sizes = {example.image.size for example in examples}
    if len(sizes) != 1:
        raise ValueError(f"A batch holds images of one size, got {sorted(sizes)} (width, height).")
    return np.stack([rgb_pixels(example) for example in examples])


def load_whole(auto_class: Any, model: str, **kwargs: Any) -> Any:
    """Load a model by `auto_class.from_pretrained` and check that all its weights come from the checkpoint.

    Raises:
        PredictorError: The checkpoint lacks weights, which would then be random.
    """
    network, info = auto_class.from_pretrained(model, output_loading_info=True, **kwargs)
    wrong = sorted({*info["missing_keys"], *(entry[0] for entry in info.get("mismatched_keys") or ())})
    _refuse(wrong, type(network).__name__, model)
    return network


@contextmanager
def whole_checkpoint(model: str) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Watch another package load weights, as some packages accept a checkpoint that lacks some.

    Yields:
        A function that returns the network it is given. It raises PredictorError if the weights that were last loaded
        into the network left out some of its parameters.
    """
    original = nn.Module.load_state_dict
    missing: dict[int, list[str]] = {}

    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        missing[id(self)] = list(result.missing_keys)
        return result

    def check(network: nn.Module) -> nn.Module:
        parameters = {name for name, _ in network.named_parameters()}
        _refuse(sorted(parameters.intersection(missing.get(id(network), ()))), type(network).__name__, model)
        return network

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield check
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _refuse(missing: Sequence[str], kind: str, model: str) -> None:
    if missing:
        raise PredictorError(
            f"The checkpoint {model} lacks {len(missing)} of the weights of a {kind} ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}): they would be random. It is of another layout or version, or "
            "incomplete: download it again, or convert it."
        )


def resize_maps(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps `(N, h, w)` to `size` (height, width), bilinearly without aligned corners, as images are resized."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def to_maps(depth: Tensor) -> list[NDArray[np.float32]]:
    """Return maps `(N, H, W)` on any device as one float32 array each."""
    return list(depth.detach().float().cpu().numpy())
