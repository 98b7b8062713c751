"""A checkpoint folder with a tiny random model, a byte tokenizer and a processor, as `from_pretrained` wants it."""

from pathlib import Path

import torch
from toy_models import last_layer, toy_config
from toy_tokenizer import build_toy_tokenizer

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMImageProcessor, DepthVLMProcessor


def save_toy_checkpoint(folder: Path) -> Path:
    """Images become at most 128x128 pixels (16 visual tokens) in it; depth varies over the image."""
    tokenizer = build_toy_tokenizer()
    config = toy_config()
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.pad_token_id = tokenizer.pad_token_id
    for name, token in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration(config).eval()
    torch.nn.init.normal_(last_layer(model.depth_head).weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    image_processor = DepthVLMImageProcessor(min_pixels=64 * 64, max_pixels=128 * 128)
    DepthVLMProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder
