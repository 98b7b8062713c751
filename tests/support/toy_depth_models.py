"""Tiny random depth estimators of transformers, saved with their image processors."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessor,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

OUTPUTS: dict[str, Any] = {
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "reshape_hidden_states": False,
}
NECK: dict[str, Any] = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def save(model: Any, folder: Path, processor: Any = None) -> str:
    """With weights redrawn so that predictions vary over the image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2, generator=generator)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


def depth_anything(folder: Path, kind: str = "metric") -> str:
    backbone = Dinov2Config(image_size=28, patch_size=14, apply_layernorm=True, **OUTPUTS, **LAYERS)
    head = {"reassemble_hidden_size": 32, "head_hidden_size": 8, "max_depth": 20}
    config = DepthAnythingConfig(backbone_config=backbone, depth_estimation_type=kind, **head, **NECK)
    processor = DPTImageProcessor(size={"height": 42, "width": 42}, keep_aspect_ratio=True, ensure_multiple_of=14)
    return save(DepthAnythingForDepthEstimation(config), folder, processor)


def dpt(folder: Path) -> str:
    sizes = {"intermediate_size": 37, "image_size": 32, "patch_size": 16}
    config = DPTConfig(**sizes, backbone_out_indices=[0, 1, 2, 3], **LAYERS, **NECK)
    return save(DPTForDepthEstimation(config), folder, DPTImageProcessor(size={"height": 32, "width": 32}))


def glpn(folder: Path) -> str:
    sizes = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    config = GLPNConfig(**sizes, depths=[1] * 4, max_depth=10)
    return save(GLPNForDepthEstimation(config), folder, GLPNImageProcessor())


def zoedepth(folder: Path) -> str:
    sizes = {"image_size": 32, "patch_size": 16, "intermediate_size": 37}
    backbone = BeitConfig(**sizes, use_relative_position_bias=True, **OUTPUTS, **LAYERS)
    config = ZoeDepthConfig(backbone_config=backbone, bottleneck_features=16, bin_embedding_dim=16, **NECK)
    processor = ZoeDepthImageProcessor(size={"height": 32, "width": 48}, ensure_multiple_of=16)
    return save(ZoeDepthForDepthEstimation(config), folder, processor)


def depth_pro(folder: Path, fov: bool = True) -> str:
    """Its input is 64 x 64 pixels, its answer 128 x 128."""
    encoder = {"model_type": "dinov2", "image_size": 32, "patch_size": 8, "mlp_ratio": 2}
    encoder |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoders = {f"{part}_model_config": dict(encoder) for part in ("image", "patch", "fov")}
    middle = {"intermediate_hook_ids": [1, 0], "intermediate_feature_dims": [10, 8], "merge_padding_value": 1}
    scaled = {"ratios": [0.5, 1.0], "overlap_ratios": [0.0, 0.2], "feature_dims": [12, 12]}
    scaled = {f"scaled_images_{name}": value for name, value in scaled.items()}
    head = {"patch_size": 32, "fusion_hidden_size": 16, "use_fov_model": fov, "num_fov_head_layers": 0}
    config = DepthProConfig(**head, **middle, **scaled, **encoders)
    name = save(DepthProForDepthEstimation(config), folder)
    settings = '{"image_processor_type": "DepthProImageProcessor", "size": {"height": 64, "width": 64}}'
    (folder / "preprocessor_config.json").write_text(settings)
    return name
