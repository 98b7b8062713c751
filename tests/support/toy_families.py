"""Plain toy checkpoints of every supported family, with random weights, a byte tokenizer and settings as on the Hub."""

import json
from pathlib import Path
from typing import Any

import torch
from toy_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, build_toy_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

FAMILY_NAMES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_vl", "glm46v", "glm4v")
HEAD = {"features": 16, "out_channels": [8, 8, 16, 16], "hidden_size": 24}
GLM_TOKENS = (
    *("<|begin_of_image|>", "<|end_of_image|>", "<|image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
)
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
LINEAR = {f"linear_num_{kind}_heads": 2 for kind in ("key", "value")} | {
    f"linear_{kind}_head_dim": 8 for kind in ("key", "value")
}


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with the special tokens of the family, and a chat template that writes them."""
    tokenizer = build_toy_tokenizer()
    if family.startswith("glm"):
        tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS[3:], *GLM_TOKENS]})
        template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "".join(GLM_TOKENS[:3:2]))
        template = template.replace("<|begin_of_image|><|image|>", "<|begin_of_image|><|image|><|end_of_image|>")
        tokenizer.chat_template = template.replace(
            "<|vision_start|><|video_pad|><|vision_end|>", "<|begin_of_video|><|video|><|end_of_video|>"
        )
    return tokenizer


def family_config(family: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """A configuration of 4 LLM layers and 8 ViT layers, 32 wide."""
    is_glm, moe = family.startswith("glm"), family.endswith("moe")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    if family.startswith("qwen3_5"):
        rope |= {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    if family == "qwen2_5_vl":
        rope |= {"mrope_section": [2, 1, 1]}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2 if is_glm else 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": rope,
        **({} if family == "qwen2_5_vl" else {"head_dim": 16}),
        **(EXPERTS if moe else {}),
        **(LINEAR if family.startswith("qwen3_5") else {}),
    }
    vision = {
        "depth": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        **({"deepstack_visual_indexes": [1, 3, 5]} if family.startswith("qwen3_vl") else {}),
        **({"fullatt_block_indexes": [1, 3, 5, 7]} if family == "qwen2_5_vl" else {}),
    }
    if is_glm:
        names = {"image": "<|image|>", "video": "<|video|>", "image_start": GLM_TOKENS[0], "image_end": GLM_TOKENS[1]}
        names |= {"video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
    else:
        names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
        names |= {f"vision_{end}": f"<|vision_{end}|>" for end in ("start", "end")}
    tokens = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return AutoConfig.for_model(family, text_config=text, vision_config=vision, **tokens, **changes)


def plain_model(family: str, **changes: Any) -> PreTrainedModel:
    """The plain model of the family, in eval mode, with weights large enough that its layers matter."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(family_config(family, family_tokenizer(family), **changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def save_plain_checkpoint(folder: Path, family: str, **changes: Any) -> Path:
    """A plain checkpoint of the family, with the files that its repository has; images become few tokens."""
    model, tokenizer = plain_model(family, **changes), family_tokenizer(family)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vision = model.config.vision_config
    cell = vision.patch_size * vision.spatial_merge_size
    settings = {
        "image_processor_type": "Glm46VImageProcessor" if family.startswith("glm") else "Qwen2VLImageProcessorFast",
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "size": {"shortest_edge": cell**2, "longest_edge": 100 * cell**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
