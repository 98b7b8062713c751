"""The systems of the paper's tables 1, 2, 3 and 8, and how to name any other model."""

from __future__ import annotations

import inspect
import os
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from .availability import TORCH_HUB
from .interface import Predictor, Requirement, System

OURS = ".ours:DepthVLMSystem"
PIPELINE = ".transformers_depth:TransformersDepth"
VLM = ".arrow_vlm:ArrowVLM"
API = ".api:ApiVLM"

PREFIXES = {
    "depthvlm:": "depthvlm:PATH_OR_HUB_ID, a DepthVLM checkpoint",
    "pipeline:": "pipeline:HUB_ID, a metric depth estimator of transformers",
    "vlm:": "vlm:HUB_ID, an image-text-to-text model of transformers, asked with the arrow",
    "api:": "api:MODEL@BASE_URL, a model on an OpenAI-compatible server, asked with the arrow",
}
"""Prefixes of names that stand for any model of a kind, with their form."""


def _dense(
    target: str, model: str, name: str, tables: tuple[int, ...] = (), gpu_gib: float = 0, **kwargs: Any
) -> System:
    return System(name, target, "dense", {"model": model, **kwargs}, Requirement(gpu_gib=gpu_gib), tables, model)


def _metric3d(model: str, name: str, checkpoint: str, gpu_gib: float, tables: tuple[int, ...] = ()) -> System:
    needs = Requirement(
        packages=("mmcv", "mmengine", "timm", "torchvision"),
        gpu_gib=gpu_gib,
        install='pip install "depthvlm[metric3d]"',
        imports=("import mmcv.utils, timm, torchvision; from mmengine import Config",),
    )
    return System(name, ".packages:Metric3D", "dense", {"model": model}, needs, tables, f"{TORCH_HUB}{checkpoint}")


def _unidepth(model: str, version: str, name: str, tables: tuple[int, ...] = ()) -> System:
    install = 'pip install "unidepth @ git+https://github.com/lpiccinelli-eth/UniDepth"'
    imports: tuple[str, ...] = (f"from unidepth.models import UniDepth{version.upper()}",)
    if version == "v1":
        install += ", with an xformers that still has NystromAttention: none of those for torch 2.6 and later does"
        imports += ("from xformers.components.attention import NystromAttention",)
    needs = Requirement(packages=("unidepth",), install=install, imports=imports)
    return System(name, ".packages:UniDepth", "dense", {"model": model, "version": version}, needs, tables, model)


def _depth_anything_1(scenes: str) -> System:
    needs = Requirement(
        packages=("torchvision",),
        environment=("DEPTH_ANYTHING_ROOT",),
        install="pip install torchvision, git clone https://github.com/LiheYoung/Depth-Anything, and set "
        "DEPTH_ANYTHING_ROOT to its folder",
    )
    return System("DepthAnything", ".packages:DepthAnything1", "dense", {"scenes": scenes}, needs, (2,))


def _depth_anything_3(model: str, name: str, gpu_gib: float, tables: tuple[int, ...] = ()) -> System:
    needs = Requirement(
        packages=("depth_anything_3",),
        gpu_gib=gpu_gib,
        install='pip install "depthvlm[depth-anything-3]"',
        imports=("from depth_anything_3.api import DepthAnything3",),
    )
    return System(name, ".packages:DepthAnything3", "dense", {"model": model}, needs, tables, model)


def _vlm(
    model: str,
    name: str,
    gpu_gib: float,
    tables: tuple[int, ...] = (1,),
    target: str = VLM,
    packages: tuple[str, ...] = (),
) -> System:
    needs = Requirement(packages, gpu_gib=gpu_gib, install=f"pip install {' '.join(packages)}" if packages else "")
    return System(name, target, "points", {"model": model}, needs, tables, model)


_SERVER = Requirement(packages=("openai",), install='pip install "depthvlm[bench]"')
_OPENAI = Requirement(
    packages=("openai",),
    environment=("OPENAI_API_KEY",),
    install='pip install "depthvlm[bench]", and set OPENAI_API_KEY to your key of api.openai.com',
)


def _openai(model: str, name: str, **kwargs: Any) -> System:
    return System(name, API, "points", {"model": model, **kwargs}, _OPENAI, (1,))


# Reasoning models of OpenAI take no temperature, and their thoughts count as new tokens.
_REASONING: dict[str, Any] = {
    "temperature": None,
    "token_parameter": "max_completion_tokens",
    "max_new_tokens": 8192,
}
_V2 = "depth-anything/Depth-Anything-V2-Metric-{}-Large-hf"

SYSTEMS: dict[str, System] = {
    # Baselines: the lower and the upper end of every table.
    "always-2m": System("Always Output 2.0m", ".interface:Constant", kwargs={"metres": 2.0}, tables=(1,)),
    "oracle": System("Oracle", ".interface:Oracle", "points"),
    # Ours.
    "nano": System("depthvlm-nano", OURS),
    "depthvlm-4b": _dense(OURS, "JonnyYu828/DepthVLM-4B", "Ours-4B", (1, 2, 3, 8), 12),
    "depthvlm-8b": _dense(OURS, "JonnyYu828/DepthVLM-8B", "Ours-8B", (1, 2, 3), 21),
    # Pure vision models, table 2. If the paper does not name the checkpoint, the one that it most likely means.
    "zoedepth": _dense(PIPELINE, "Intel/zoedepth-nyu-kitti", "ZoeDepth", (2,)),
    "depth-pro": _dense(PIPELINE, "apple/DepthPro-hf", "Depth Pro", (2,), focal_length="given"),
    "metric3d-v1-l": _metric3d(
        "metric3d_convnext_large", "Metric3D", "convlarge_hourglass_0.3_150_step750k_v1.1.pth", 4, (2,)
    ),
    "metric3d-v2-s": _metric3d("metric3d_vit_small", "Metric3Dv2 (ViT-S)", "metric_depth_vit_small_800k.pth", 2),
    "metric3d-v2-l": _metric3d("metric3d_vit_large", "Metric3Dv2", "metric_depth_vit_large_800k.pth", 4, (2,)),
    "metric3d-v2-g": _metric3d("metric3d_vit_giant2", "Metric3Dv2 (ViT-g)", "metric_depth_vit_giant2_800k.pth", 8),
    "unidepth-v1-l": _unidepth("lpiccinelli/unidepth-v1-vitl14", "v1", "UniDepth", (2,)),
    "unidepth-v1-convnext": _unidepth("lpiccinelli/unidepth-v1-cnvnxtl", "v1", "UniDepth (ConvNeXt-L)"),
    "unidepth-v2-s": _unidepth("lpiccinelli/unidepth-v2-vits14", "v2", "UniDepthV2 (ViT-S)"),
    "unidepth-v2-l": _unidepth("lpiccinelli/unidepth-v2-vitl14", "v2", "UniDepthV2", (2,)),
    "depth-anything-v1-indoor": _depth_anything_1("indoor"),
    "depth-anything-v1-outdoor": _depth_anything_1("outdoor"),
    "depth-anything-v2-indoor": _dense(PIPELINE, _V2.format("Indoor"), "DepthAnythingV2", (2,)),
    "depth-anything-v2-outdoor": _dense(PIPELINE, _V2.format("Outdoor"), "DepthAnythingV2", (2,)),
    "depth-anything-v3": _depth_anything_3("depth-anything/DA3METRIC-LARGE", "DepthAnythingV3", 4, (2,)),
    "depth-anything-v3-nested": _depth_anything_3(
        "depth-anything/DA3NESTED-GIANT-LARGE-1.1", "DepthAnythingV3 (nested)", 10
    ),
    "dpt-nyu": _dense(PIPELINE, "facebook/dpt-dinov2-large-nyu", "DPT (DINOv2-L, NYUv2)", metric=True),
    "dpt-kitti": _dense(PIPELINE, "facebook/dpt-dinov2-large-kitti", "DPT (DINOv2-L, KITTI)", metric=True),
    # VLMs that are asked in words, table 1.
    "gpt-4o": _openai("gpt-4o", "GPT-4o"),
    "gpt-5.5": _openai("gpt-5.5", "GPT-5.5", **_REASONING),
    "qwen3-vl-4b": _vlm("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL-4B", 11, (1, 3)),
    "qwen3-vl-8b": _vlm("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL-8B", 20, (1, 3)),
    "qwen3-vl-32b": _vlm("Qwen/Qwen3-VL-32B-Instruct", "Qwen3-VL-32B", 72),
    "internvl3.5-8b": _vlm("OpenGVLab/InternVL3_5-8B-HF", "InternVL3.5-8B", 20),
    "internvl3.5-14b": _vlm("OpenGVLab/InternVL3_5-14B-HF", "InternVL3.5-14B", 34),
    "internvl3.5-38b": _vlm("OpenGVLab/InternVL3_5-38B-HF", "InternVL3.5-38B", 84),
    "spacellava": _vlm("remyxai/SpaceLLaVA", "SpaceLLaVA-13B", 30),
    "cambrian-s-7b": System(  # transformers has no class for it: it runs behind a server of its own code
        "Cambrian-S-7B",
        API,
        "points",
        {"model": "nyu-visionx/Cambrian-S-7B", "api_key_env": None},
        _SERVER,
        (1,),
        required_options=("base_url",),
    ),
    "spatialrgpt-8b": System(
        "SpatialRGPT-8B",
        ".workers:SpatialRGPT",
        "points",
        {"model": "a8cheng/SpatialRGPT-VILA1.5-8B"},
        Requirement(
            environment=("SPATIAL_RGPT_PYTHON",),
            gpu_gib=20,
            install="Name the python of the environment that github.com/AnjieCheng/SpatialRGPT sets up there",
        ),
        (1,),
        "a8cheng/SpatialRGPT-VILA1.5-8B",
    ),
    # DepthLM's base, of table 3 alone.
    "pixtral-12b": _vlm("mistral-community/pixtral-12b", "Pixtral-12B", 28, (3,), packages=("torchvision",)),
    # VLMs that were trained to measure, tables 1, 3 and 8.
    "depthlm-12b": _vlm(
        "facebook/DepthLM", "DepthLM-12B", 28, (1, 3, 8), ".arrow_vlm:DepthLM", packages=("torchvision",)
    ),
    "youtu-vl-4b": System(
        "Youtu-VL-4B",
        ".workers:YoutuVL",
        "dense",
        {"model": "tencent/Youtu-VL-4B-Instruct"},
        Requirement(
            environment=("YOUTU_VL_PYTHON",),
            gpu_gib=12,
            install="Name the python of an environment with transformers 4.56 to 4.57.1 there",
        ),
        (1, 8),
        "tencent/Youtu-VL-4B-Instruct",
        required_options=("depth_range", "levels"),
    ),
}
"""The systems by key."""


def find_system(spec: str) -> System:
    """Return the system that `spec` names: a key of `SYSTEMS`, or one of `PREFIXES` with what follows it.

    Raises:
        ValueError: There is no such system; the message names the nearest ones.
    """
    prefix = next((prefix for prefix in PREFIXES if spec.startswith(prefix)), None)
    if prefix is not None:
        return _any_model(prefix, spec, spec.removeprefix(prefix).strip())
    key = spec.strip().lower().replace(" ", "-").replace("_", "-")
    if key in SYSTEMS:
        return SYSTEMS[key]
    names = {system.name.lower().replace(" ", "-"): known for known, system in SYSTEMS.items()}
    names |= {known: known for known in SYSTEMS}
    near = list(dict.fromkeys(names[name] for name in get_close_matches(key, names, n=4, cutoff=0.5)))
    raise ValueError(
        f"There is no predictor {spec!r}. "
        + (f"Did you mean {' or '.join(near)}? " if near else "")
        + f"`depthvlm bench list` shows all {len(SYSTEMS)}; or give {'; '.join(PREFIXES.values())}."
    )


def make_predictor(spec: str, **options: Any) -> Predictor:
    """Load the system that `spec` names.

    Args:
        spec: See [`find_system`].
        **options: Keyword arguments of the system's class, such as `device` or `dtype`. They override those of the
            registry.

    Returns:
        The predictor, with the system's name, followed by the options that change what the system is.

    Raises:
        ValueError: There is no such system, its class does not take an option, or an option that it needs is missing.
        ImportError: A package that it needs is not installed.
        PredictorError: Its checkpoint cannot be scored.
    """
    system = find_system(spec)
    missing = [name for name in system.required_options if name not in options]
    if missing:
        raise ValueError(f"The predictor {spec!r} needs to be told {' and '.join(missing)}.")
    module, _, name = system.target.partition(":")
    loaded = getattr(import_module(module, __package__), name)
    parameters = inspect.signature(loaded).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if unknown := [] if takes_any else [name for name in options if name not in parameters]:
        takes = ", ".join(parameters) or "nothing"
        raise ValueError(f"The predictor {spec!r} does not take {', '.join(unknown)}. It takes {takes}.")
    try:
        predictor = loaded(**{**system.kwargs, **options})
    except ImportError as error:
        if not system.requirement.packages:
            raise
        packages = ", ".join(system.requirement.packages)
        raise ImportError(f"{system.name} needs {packages} ({error}). {system.requirement.install}") from error
    changed = [f"{key}={value}" for key, value in options.items() if system.kwargs.get(key, value) != value]
    predictor.name = f"{system.name} ({', '.join(changed)})" if changed else system.name
    return predictor


def _any_model(prefix: str, spec: str, rest: str) -> System:
    model, at, url = rest.rpartition("@") if prefix == "api:" else (rest, "", "")
    model = model if at else rest
    if not model or (at and not url.startswith(("http://", "https://"))):
        raise ValueError(f"The predictor {spec!r} is not complete: give {PREFIXES[prefix]}.")
    if prefix == "api:":
        # The key of one server is not shown to another: the option api_key_env names its variable.
        if at:
            return System(spec, API, "points", {"model": model, "base_url": url, "api_key_env": None}, _SERVER)
        return System(spec, API, "points", {"model": model}, _OPENAI)
    model = os.path.expanduser(model)
    if prefix == "vlm:":
        return System(spec, VLM, "points", {"model": model}, weights=model)
    return System(spec, OURS if prefix == "depthvlm:" else PIPELINE, "dense", {"model": model}, weights=model)
