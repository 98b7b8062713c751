"""Load a model and its processor by name: keywords that locate files apply to both, and both come from one commit."""

import inspect
import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.utils.hub import cached_file, resolve_revision

from . import register
from .checkpoint import resolve_model_path, split_revision
from .compiling import compile_depth
from .modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from .modeling_depthvlm.checkpoints_depthvlm import ADAPTER_CONFIG, CONFIG, adapter_folder
from .modeling_depthvlm.configuration_depthvlm import HUB_KWARGS
from .processing import DepthVLMProcessor
from .processing.image_processing_depthvlm import LOADING_KEYWORDS, check_keywords
from .quantization import quantization_keywords, settle

register()  # for the `depthvlm` command; otherwise done on import of the package

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_SMALL_MODEL = 500_000_000  # parameters: up to here float32 on a CPU is faster than bfloat16 and needs at most 2 GB


def hub_keywords(model: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that locate files, for every part of a checkpoint.

    Args:
        model: Folder or Hub name.
        keywords: Keywords of `from_pretrained`; not modified.

    Returns:
        The keywords that are given of `token`, `revision`, `cache_dir`, `subfolder`, `local_files_only`,
        `force_download`, `proxies` and `trust_remote_code`. The revision is resolved to a commit, so that all parts
        come from the same one even if the repository changes.
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
    quantize: str | None = None,
    allow_untrained_head: bool = False,
    compile: bool = False,
    **kwargs: Any,
) -> tuple[DepthVLMForConditionalGeneration, DepthVLMProcessor]:
    """Load a model in eval mode, on its device, and its processor. An adapter is applied to its base model.

    Args:
        model: A checkpoint's folder, its name on the Hub (`owner/name` or `owner/name@revision`), or `depthvlm-nano`.
        device: `cuda`, `cuda:1`, `mps`, `cpu`; `auto`: the first of these that is available.
        dtype: `float32`, `bfloat16`, `float16`; `auto`: the checkpoint's own, but float32 for a small model on a CPU.
        quantize: See [`depthvlm.load`].
        allow_untrained_head: Also accept the new, untrained head of a plain backbone, whose depth is one metre
            everywhere.
        compile: Predict depth with compiled layers, on CUDA with CUDA graphs: see [`compile_depth`].
        **kwargs: Keywords of the model's `from_pretrained`. `canonical_focal_length` and those of [`hub_keywords`]
            reach the processor too.

    Raises:
        TypeError: A keyword is not known.
        ValueError: The device is not available, or `device_map` is given too; the dtype is not one; weights are
            missing; the depth head is untrained or holds NaN; model and processor were made for different canonical
            focal lengths; the model cannot be compiled or quantised, or is quantised already.
        ImportError: `quantize` needs a package that is not installed.
        OSError: There is no such model.
    """
    check_loading(kwargs, "load")
    if device != "auto" and kwargs.get("device_map") is not None:
        raise ValueError(f"`device={device!r}` and `device_map` both say where the model goes: give one of them.")
    if compile and quantize is not None:
        raise ValueError("`compile` and `quantize` do not go together: bitsandbytes' layers do not compile as a whole.")
    where, what = pick_device(device), pick_dtype(dtype)
    placed = {"device_map": {"": where}} if quantize is not None and kwargs.get("device_map") is None else {}
    network, processor, adapter = load_parts(model, what, quantize=quantize, **kwargs | placed)
    if adapter is not None:
        network.load_adapter(adapter)
    network = network.eval()
    settle(network, None if quantize is None else network.dtype)
    _check_canonical(network, processor, str(model))
    _check_head(network, str(model), allow_untrained_head)
    if quantize is None and kwargs.get("device_map") is None and kwargs.get("quantization_config") is None:
        network = network.to(where)
        is_small = where.type == "cpu" and network.num_parameters() <= _SMALL_MODEL
        if what == "auto" and is_small and not getattr(network, "is_quantized", False):
            network = network.float()
    if compile:
        compile_depth(network)
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
            "name a trained checkpoint; `--allow-untrained-head`, in Python `allow_untrained_head=True`, loads it all "
            "the same."
        )
    camera = network.depth_head.camera
    if camera is not None and camera.is_untrained() and not allow_untrained:
        raise ValueError(
            f"{path}: its camera head was never trained, and its estimates mean nothing. Train it (`depthvlm sft` with "
            "`camera_withheld`), load it with `depth_config={'predict_fov': False}` to assume cameras that are not "
            "known, or, all the same, with `allow_untrained_head=True`."
        )


def load_parts(
    model: str | PathLike[str], dtype: str | torch.dtype = "auto", *, quantize: str | None = None, **kwargs: Any
) -> tuple[DepthVLMForConditionalGeneration, DepthVLMProcessor, str | None]:
    """Load a model as stored in its checkpoint, and its processor.

    The arguments are those of [`load_checkpoint`].

    Returns:
        Model, processor, and, if `model` names an adapter, its folder; it is not applied yet.

    Raises:
        OSError, ValueError: There is no such model, or it has no safetensors.
    """
    parts = _find_parts(model, kwargs)
    processor, settings, keywords = parts.processor, parts.settings, parts.keywords
    if quantize is not None:
        keywords |= quantization_keywords(quantize, settings, parts.base, keywords, hub_keywords(parts.base, keywords))
    network = DepthVLMForConditionalGeneration.from_pretrained(parts.base, dtype=dtype, **keywords)
    if "depth_prompt_ids" not in settings and processor.chat_template:  # a plain backbone or a published checkpoint
        network.config.depth_prompt_ids = processor.depth_prompt_ids
    return network, processor, None if parts.adapter is None else str(parts.adapter)


def load_processor(model: str | PathLike[str], **kwargs: Any) -> tuple[DepthVLMProcessor, DepthVLMConfig]:
    """Load the processor and the configuration of a checkpoint, without its weights.

    The arguments are those of [`load_checkpoint`].

    Raises:
        OSError, ValueError: There is no such model.
    """
    parts = _find_parts(model, kwargs)
    return parts.processor, DepthVLMConfig.from_pretrained(parts.base, **parts.keywords)


class _Parts(NamedTuple):
    """The files of a model: its base with the keywords that load it, its processor, its adapter."""

    base: str
    keywords: dict[str, Any]
    settings: dict[str, Any]
    processor: DepthVLMProcessor
    adapter: Path | None


def _find_parts(model: str | PathLike[str], kwargs: dict[str, Any]) -> _Parts:
    path, revision = split_revision(resolve_model_path(str(model)))
    if revision is not None:
        if kwargs.get("revision") not in (None, revision):
            raise ValueError(f"{model} and revision={kwargs['revision']!r} name two revisions: give one of them.")
        kwargs["revision"] = revision
    origin = hub_keywords(path, kwargs)
    adapter = find_adapter(path, origin)
    base, base_origin = path, origin
    if adapter is not None:
        base, base_revision = base_of_adapter(adapter)
        of_adapter_alone = ("revision", "subfolder")
        kwargs = {name: value for name, value in kwargs.items() if name not in of_adapter_alone}
        base_origin = hub_keywords(base, kwargs | {"revision": base_revision})
    # First, as its error for a missing model is clear.
    settings, _ = DepthVLMConfig.get_config_dict(base, **base_origin)
    if not settings:
        raise FileNotFoundError(f"{base} holds no config.json: it is no checkpoint.")
    camera = {name: kwargs[name] for name in ("canonical_focal_length",) if name in kwargs}
    # An adapter usually comes with the processor that it was trained with; one made elsewhere may not.
    has_processor = adapter is None or any((adapter / name).is_file() for name in PROCESSOR_FILES)
    processor_path, processor_origin = (path, origin) if has_processor else (base, base_origin)
    processor = DepthVLMProcessor.from_pretrained(processor_path, **processor_origin, **camera)
    return _Parts(base, {**kwargs, **base_origin}, settings, processor, adapter)


def processor_of(network: DepthVLMForConditionalGeneration) -> DepthVLMProcessor:
    """Return the processor from the source of a loaded model, with the model's canonical camera."""
    name, commit = network.config._name_or_path, getattr(network.config, "_commit_hash", None)
    processor = DepthVLMProcessor.from_pretrained(name, **hub_keywords(name, {"revision": commit}))
    processor.image_processor.canonical_focal_length = network.config.canonical_focal_length
    return processor


def find_adapter(path: str, origin: dict[str, Any]) -> Path | None:
    """Return the folder of a PEFT adapter, downloaded if necessary, or None if `path` is a whole model.

    Args:
        path: Folder or Hub name.
        origin: See [`hub_keywords`].

    Raises:
        FileNotFoundError: Its weights are not safetensors.
    """
    optional: Any = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    where = {name: value for name, value in origin.items() if name != "trust_remote_code"}
    if cached_file(path, CONFIG, **where, **optional) or (adapter := adapter_folder(path, where)) is None:
        return None
    for name in (*PROCESSOR_FILES, "training_recipe.yaml"):
        cached_file(path, name, **where, **optional)
    return adapter


def base_of_adapter(adapter: Path) -> tuple[str, str | None]:
    """Return folder or Hub name of an adapter's base model, and its revision on the Hub, if known.

    Raises:
        FileNotFoundError: The base is a folder that does not exist.
        ValueError: The adapter does not name its base.
    """
    settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter / ADAPTER_CONFIG} does not say for which model it is: `base_model_name_or_path`.")
    try:
        return resolve_model_path(str(base)), settings.get("revision")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"The adapter {adapter} is for the model {base}, which is not there. Put it there, or name its place as "
            f"`base_model_name_or_path` in {adapter / ADAPTER_CONFIG}."
        ) from None


def _check_canonical(network: DepthVLMForConditionalGeneration, processor: DepthVLMProcessor, name: str) -> None:
    """Raise ValueError if processor and model have different canonical focal lengths."""
    trained, seen = network.config.canonical_focal_length, processor.image_processor.canonical_focal_length
    if trained != seen:
        raise ValueError(
            f"{name}: its config.json has `canonical_focal_length` {trained:g}, its preprocessor_config.json {seen:g} "
            f"pixels: all depths would be wrong, by a factor of {max(trained / seen, seen / trained):.3g}. Correct the "
            "one that is wrong, or pass `canonical_focal_length`, which holds for both."
        )


def pick_device(name: str) -> torch.device:
    """Return the named device; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: It is not available.
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
    """Return the named dtype, or `auto` unchanged.

    Raises:
        ValueError: It is not a floating-point type.
    """
    if name == "auto" or isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"The dtype {name!r} is not known: give 'auto', 'float32', 'bfloat16' or 'float16'.")
    return dtype


def check_generation(given: Iterable[str], where: str, own: Iterable[str] = ()) -> None:
    """Raise TypeError for a keyword that neither `own` nor `generate` knows, before anything is loaded."""
    generate = {*inspect.signature(GenerationMixin.generate).parameters, *GenerationConfig().to_dict()}
    check_keywords(given, {*own, *generate} - {"images", "self", "kwargs"}, where)


def check_loading(given: Iterable[str], where: str) -> None:
    """Raise TypeError for a keyword that `from_pretrained` of the model does not take."""
    own = inspect.signature(DepthVLMForConditionalGeneration.from_pretrained).parameters
    known = {*own, *LOADING_KEYWORDS, *DepthVLMConfig().to_dict()}
    check_keywords(given, known - {"args", "kwargs"}, where)
