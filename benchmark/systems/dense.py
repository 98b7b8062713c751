"""What the dense predictors share: pixels and cameras in, one device, maps out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .interface import Example


class PredictorError(RuntimeError):
    """A predictor that cannot be made, or that answered with something which is not one map for every image."""


def rgb_pixels(example: Example) -> NDArray[np.uint8]:
    """Its pixels `(H, W, 3)` as stored: an EXIF orientation is not followed, as the points are in stored pixels."""
    return np.array(example.image.convert("RGB"))


def stacked_pixels(examples: Sequence[Example]) -> NDArray[np.uint8]:
    """`(N, H, W, 3)` of images of one size.

    Raises:
        ValueError: their sizes differ.
    """
    sizes = {example.image.size for example in examples}
    if len(sizes) != 1:
        raise ValueError(f"A batch holds images of one size, got {sorted(sizes)} (width, height).")
    return np.stack([rgb_pixels(example) for example in examples])


def camera_matrix(intrinsics: tuple[float, float, float, float]) -> NDArray[np.float32]:
    """`(3, 3)` in pixels, the centre of the top left pixel at (0.5, 0.5)."""
    fx, fy, cx, cy = intrinsics
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float32)


def checkpoint_path(model: str | Path) -> str:
    """A Hub name as it is, or the folder of a checkpoint.

    Raises:
        FileNotFoundError: it looks like a folder, and there is none.
    """
    name = str(model)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no model folder {name}. Give a folder, or a name on the Hub (owner/name)."
            )
        return str(folder)
    return name


def load_whole(auto_class: Any, model: str, **kwargs: Any) -> Any:
    """
    A model of transformers, all of whose weights come from its checkpoint.

    Args:
        auto_class: with `from_pretrained`.
        model: folder or Hub name.
        **kwargs: of `from_pretrained`.

    Raises:
        PredictorError: the checkpoint lacks weights, which would then be random.
    """
    network, info = auto_class.from_pretrained(model, output_loading_info=True, **kwargs)
    wrong = sorted({*info["missing_keys"], *(entry[0] for entry in info.get("mismatched_keys") or ())})
    _refuse(wrong, type(network).__name__, model)
    return network


@contextmanager
def whole_checkpoint(model: str) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """
    Watch other packages load weights; some of them accept a checkpoint that lacks some.

    Yields:
        A function that returns the network it is given, or raises PredictorError where the last weights that were
        loaded into it left out some of its parameters.
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


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str) -> torch.dtype:
    """Of its name.

    Raises:
        ValueError: it is not a floating-point type.
    """
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"The dtype {name!r} is not known: give 'float32', 'bfloat16' or 'float16'.")
    return dtype


def resize_maps(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """`(N, h, w)` to `(N, *size)`, bilinearly, edges on edges: as the images were resized."""
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def to_maps(depth: Tensor) -> list[NDArray[np.float32]]:
    """`(N, H, W)` on any device as one float32 array for each."""
    return list(depth.detach().float().cpu().numpy())


def import_optional(module: str, install: str, what: str) -> Any:
    """A module that only one row needs.

    Raises:
        ImportError: it is not installed, with what to do.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the package {module.split('.')[0]!r} ({error}). Install it: {install}"
        ) from error


def check_maps(maps: Any, examples: Sequence[Example], name: str = "") -> list[NDArray[np.float32]]:
    """
    What a dense predictor returned for `examples`, as float32.

    NaN, infinite, zero and negative values pass: they are failures, which the protocol counts as wrong.

    Args:
        maps: one `(H, W)` array of real numbers for every image, H and W those of the image.
        name: of the row, for messages.

    Raises:
        PredictorError: nothing was returned, another number of maps, a map of another size, or something else than
            real numbers. The message names the row and the image.
    """
    who = f"The predictor {name!r}" if name else "The predictor"
    if maps is None:
        raise PredictorError(f"{who} returned nothing for {len(examples)} image(s), the first {examples[0].id!r}.")
    found = [np.asarray(depth) for depth in maps]
    if len(found) != len(examples):
        raise PredictorError(f"{who} returned {len(found)} map(s) for {len(examples)} image(s).")
    for depth, example in zip(found, examples, strict=True):
        width, height = example.image.size
        if depth.shape != (height, width):
            raise PredictorError(
                f"{who} returned a map of shape {depth.shape} for the image {example.id!r}: ({height}, {width}), its "
                "height and width, was expected. Resize the map in the predictor; it knows how it resized the image."
            )
        if depth.dtype.kind not in "fiu":
            raise PredictorError(f"{who} returned a map of {depth.dtype} for the image {example.id!r}, not of metres.")
    return [depth.astype(np.float32, copy=False) for depth in found]
