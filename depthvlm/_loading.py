"""Load a model and its processor by name: what says where files come from reaches both, and both are of one commit."""

from os import PathLike
from typing import Any

import torch
from transformers.utils.hub import resolve_revision

from ._bundled import resolve_model_path
from ._keywords import check_loading
from ._registration import register
from .modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from .modeling_depthvlm.configuration_depthvlm import HUB_KWARGS
from .processing import DepthVLMProcessor

register()  # for the `depthvlm` command; otherwise done when the package was imported

_SMALL_MODEL = 500_000_000  # parameters: up to here float32 on a CPU is faster than bfloat16, and takes at most 2 GB


def hub_keywords(model: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return those of `from_pretrained`'s keywords that say where files come from, for every part of a checkpoint.

    Args:
        model: folder or Hub name.
        keywords: of `from_pretrained`; they are not changed.

    Returns:
        The keywords that are given of `token`, `revision`, `cache_dir`, `subfolder`, `local_files_only`,
        `force_download`, `proxies` and `trust_remote_code`. The revision is resolved to a commit, so that all parts
        are of the same one even if the repository changes in between.
    """
    names = (*HUB_KWARGS, "trust_remote_code")
    where = {name: keywords[name] for name in names if keywords.get(name) is not None}
    asked = {name: where[name] for name in ("token", "local_files_only", "cache_dir") if name in where}
    revision = resolve_revision(model, where.get("revision"), **asked)
    return where if revision is None else where | {"revision": revision}


def load_checkpoint(
    model: str | PathLike[str],
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    allow_untrained_head: bool = False,
    **kwargs: Any,
) -> tuple[DepthVLMForConditionalGeneration, DepthVLMProcessor]:
    """Load a model in eval mode, on its device, and its processor.

    Args:
        model: a checkpoint's folder, its name on the Hub, or `depthvlm-nano`.
        device: `cuda`, `cuda:1`, `mps`, `cpu`; `auto`: the first of these that is there.
        dtype: `float32`, `bfloat16`, `float16`; `auto`: the checkpoint's own, but float32 for a small model on a CPU.
        allow_untrained_head: also load a head that was never trained, whose depth is one metre everywhere: the new
            head of a plain Qwen3-VL.
        **kwargs: of the model's `from_pretrained`. `canonical_focal_length` and those of [`hub_keywords`] reach the
            processor too.

    Raises:
        TypeError: a keyword is not known.
        ValueError: the device is not there, or the dtype is not one; weights are missing; the depth head is untrained
            or holds NaN.
        OSError: there is no such model.
    """
    check_loading(kwargs, "load")
    path = resolve_model_path(str(model))
    where, what = pick_device(device), pick_dtype(dtype)
    origin = hub_keywords(path, kwargs)
    camera = {name: kwargs[name] for name in ("canonical_focal_length",) if name in kwargs}
    DepthVLMConfig.get_config_dict(path, **origin)  # first: what it says of a model that is not there is clear
    processor = DepthVLMProcessor.from_pretrained(path, **origin, **camera)
    network = DepthVLMForConditionalGeneration.from_pretrained(path, dtype=what, **{**kwargs, **origin}).eval()
    _check_head(network, path, allow_untrained_head)
    if kwargs.get("device_map") is None and kwargs.get("quantization_config") is None:
        network = network.to(where)
        if what == "auto" and where.type == "cpu" and network.num_parameters() <= _SMALL_MODEL:
            network = network.float()
    return network, processor


def _check_head(network: DepthVLMForConditionalGeneration, path: str, allow_untrained: bool) -> None:
    weights = [(name, weight) for name, weight in network.depth_head.named_parameters() if not weight.is_meta]
    broken = [name for name, weight in weights if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(
            f"{path}: the depth head's weights {', '.join(broken[:3])} hold NaN or infinity. Get it again."
        )
    if network.depth_head.is_untrained() and not allow_untrained:
        raise ValueError(
            f"{path}: its depth head was never trained, and says one metre everywhere. Train it (`depthvlm sft`) or "
            "name a trained checkpoint; `allow_untrained_head=True` loads it all the same."
        )


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto`: CUDA, else MPS, else the CPU.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The device {name!r} cannot be used here ({reason}). Give 'auto', 'cpu', 'cuda' or 'mps'."
        ) from None
    return device


def pick_dtype(name: str | torch.dtype) -> str | torch.dtype:
    """Return the dtype of that name, or `auto` as it is.

    Raises:
        ValueError: it is no floating-point type.
    """
    if name == "auto" or isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"The dtype {name!r} is not known: give 'auto', 'float32', 'bfloat16' or 'float16'.")
    return dtype
