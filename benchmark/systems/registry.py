"""Every system of the paper's tables 1, 2, 3 and 8 as data: which class runs it, with what, and what that needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .availability import TORCH_HUB
from .interface import Requirement

Kind = Literal["dense", "points"]


@dataclass(frozen=True)
class Row:
    """
    A system that can be chosen by name.

    Args:
        name: as in the paper's tables; of a system that is not in them, its own.
        target: "module:Class". The module is imported when the row is chosen.
        kind: "dense", one map an image, or "points", one answer in words a point.
        kwargs: of the class.
        requirement: packages, environment variables and GPU memory.
        tables: of the paper in which it stands; none for a variant. Table 3 is filled by lmms-eval, not by this row.
        weights: Hub name or folder of its checkpoint, or "torch.hub:FILE"; "" where it has none on this machine.
        required_options: keyword arguments that have no right default and must be given.
    """

    name: str
    target: str
    kind: Kind = "dense"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    requirement: Requirement = field(default_factory=Requirement)
    tables: tuple[int, ...] = ()
    weights: str = ""
    required_options: tuple[str, ...] = ()


def target(module: str, name: str) -> str:
    """Of a class in this package's folder."""
    return f"{__package__}.{module}:{name}"


OURS = target("ours", "DepthVLM")
PIPELINE = target("transformers_depth", "TransformersDepth")
VLM = target("arrow_vlm", "ArrowVLM")
API = target("api", "ApiVLM")


def _ours(model: str, name: str, tables: tuple[int, ...], gpu_gib: float) -> Row:
    return Row(name, OURS, "dense", {"model": model}, Requirement(gpu_gib=gpu_gib), tables, model)


def _pipeline(model: str, name: str, tables: tuple[int, ...] = (2,), **kwargs: Any) -> Row:
    return Row(name, PIPELINE, "dense", {"model": model, **kwargs}, Requirement(), tables, model)


def _metric3d(model: str, name: str, checkpoint: str, gpu_gib: float, tables: tuple[int, ...] = ()) -> Row:
    needs = Requirement(
        ("mmcv", "mmengine", "timm", "torchvision"),
        (),
        gpu_gib,
        'pip install "depthvlm[metric3d]"',
        ("import mmcv.utils, timm, torchvision; from mmengine import Config",),
    )
    return Row(
        name, target("metric3d", "Metric3D"), "dense", {"model": model}, needs, tables, f"{TORCH_HUB}{checkpoint}"
    )


def _unidepth(model: str, version: str, name: str, tables: tuple[int, ...] = ()) -> Row:
    install = 'pip install "unidepth @ git+https://github.com/lpiccinelli-eth/UniDepth"'
    imports = [f"from unidepth.models import UniDepth{version.upper()}"]
    if version == "v1":
        install += ", with an xformers that still has NystromAttention: none of those for torch 2.6 and later does"
        imports.append("from xformers.components.attention import NystromAttention")
    kwargs = {"model": model, "version": version}
    return Row(
        name,
        target("unidepth", "UniDepth"),
        "dense",
        kwargs,
        Requirement(("unidepth",), install=install, imports=tuple(imports)),
        tables,
        model,
    )


def _depth_anything_1(scenes: str, name: str) -> Row:
    needs = Requirement(
        packages=("torchvision",),
        environment=("DEPTH_ANYTHING_ROOT",),
        install="git clone https://github.com/LiheYoung/Depth-Anything and name its folder there",
    )
    return Row(name, target("depth_anything_1", "DepthAnything1"), "dense", {"scenes": scenes}, needs, (2,))


def _depth_anything_3(model: str, name: str, tables: tuple[int, ...] = (), gpu_gib: float = 4) -> Row:
    imports = ("from depth_anything_3.api import DepthAnything3",)
    needs = Requirement(("depth_anything_3",), (), gpu_gib, 'pip install "depthvlm[depth-anything-3]"', imports)
    return Row(name, target("depth_anything_3", "DepthAnything3"), "dense", {"model": model}, needs, tables, model)


def _vlm(model: str, name: str, gpu_gib: float, tables: tuple[int, ...] = (1,)) -> Row:
    return Row(name, VLM, "points", {"model": model}, Requirement(gpu_gib=gpu_gib), tables, model)


def _api(model: str, name: str, **kwargs: Any) -> Row:
    needs = Requirement(environment=("OPENAI_API_KEY",), install="Set it to your key of api.openai.com")
    return Row(name, API, "points", {"model": model, **kwargs}, needs, (1,))


# Reasoning models of OpenAI take no temperature, and their thoughts count as new tokens.
_REASONING: dict[str, Any] = {
    "temperature": None,
    "token_parameter": "max_completion_tokens",
    "max_new_tokens": 8192,
}


PREDICTORS: dict[str, Row] = {
    # Not learned: what the tables lie between.
    "always-2m": Row("Always Output 2.0m", target("simple", "Constant"), "dense", {"metres": 2.0}, tables=(1,)),
    "oracle": Row("Oracle", target("simple", "Oracle"), "points"),
    # Ours.
    "nano": Row("depthvlm-nano", OURS),
    "depthvlm-4b": _ours("JonnyYu828/DepthVLM-4B", "Ours-4B", (1, 2, 3, 8), 12),
    "depthvlm-8b": _ours("JonnyYu828/DepthVLM-8B", "Ours-8B", (1, 2, 3), 21),
    # Pure vision models, table 2. Where the paper does not say which checkpoint, the one it most likely means.
    "zoedepth": _pipeline("Intel/zoedepth-nyu-kitti", "ZoeDepth"),
    "depth-pro": _pipeline("apple/DepthPro-hf", "Depth Pro", focal_length="given"),
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
    "depth-anything-v1-indoor": _depth_anything_1("indoor", "DepthAnything"),
    "depth-anything-v1-outdoor": _depth_anything_1("outdoor", "DepthAnything"),
    "depth-anything-v2-indoor": _pipeline("depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf", "DepthAnythingV2"),
    "depth-anything-v2-outdoor": _pipeline(
        "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf", "DepthAnythingV2"
    ),
    "depth-anything-v3": _depth_anything_3("depth-anything/DA3METRIC-LARGE", "DepthAnythingV3", (2,)),
    "depth-anything-v3-nested": _depth_anything_3(
        "depth-anything/DA3NESTED-GIANT-LARGE-1.1", "DepthAnythingV3 (nested)", gpu_gib=10
    ),
    "dpt-nyu": _pipeline("facebook/dpt-dinov2-large-nyu", "DPT (DINOv2-L, NYUv2)", (), metric=True),
    "dpt-kitti": _pipeline("facebook/dpt-dinov2-large-kitti", "DPT (DINOv2-L, KITTI)", (), metric=True),
    # VLMs that are asked in words, table 1.
    "gpt-4o": _api("gpt-4o", "GPT-4o"),
    "gpt-5.5": _api("gpt-5.5", "GPT-5.5", **_REASONING),
    "qwen3-vl-4b": _vlm("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL-4B", 11, (1, 3)),
    "qwen3-vl-8b": _vlm("Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL-8B", 20, (1, 3)),
    "qwen3-vl-32b": _vlm("Qwen/Qwen3-VL-32B-Instruct", "Qwen3-VL-32B", 72),
    "internvl3.5-8b": _vlm("OpenGVLab/InternVL3_5-8B-HF", "InternVL3.5-8B", 20),
    "internvl3.5-14b": _vlm("OpenGVLab/InternVL3_5-14B-HF", "InternVL3.5-14B", 34),
    "internvl3.5-38b": _vlm("OpenGVLab/InternVL3_5-38B-HF", "InternVL3.5-38B", 84),
    "spacellava": _vlm("remyxai/SpaceLLaVA", "SpaceLLaVA-13B", 30),
    "cambrian-s-7b": Row(  # no class of transformers: behind a server of its own code
        "Cambrian-S-7B",
        API,
        "points",
        {"model": "nyu-visionx/Cambrian-S-7B", "api_key_env": None},
        tables=(1,),
        required_options=("base_url",),
    ),
    "spatialrgpt-8b": Row(
        "SpatialRGPT-8B",
        target("spatial_rgpt", "SpatialRGPT"),
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
    "pixtral-12b": Row(
        "Pixtral-12B",
        VLM,
        "points",
        {"model": "mistral-community/pixtral-12b"},
        Requirement(packages=("torchvision",), gpu_gib=28, install="pip install torchvision"),
        (3,),
        "mistral-community/pixtral-12b",
    ),
    # VLMs that were trained to measure, tables 1, 3 and 8.
    "depthlm-12b": Row(
        "DepthLM-12B",
        target("depthlm", "DepthLM"),
        "points",
        {"model": "facebook/DepthLM"},
        Requirement(packages=("torchvision",), gpu_gib=28, install="pip install torchvision"),
        (1, 3, 8),
        "facebook/DepthLM",
    ),
    "youtu-vl-4b": Row(
        "Youtu-VL-4B",
        target("youtu_vl", "YoutuVL"),
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
