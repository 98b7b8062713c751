"""Tiny random checkpoints of other VLMs, saved as `from_pretrained` wants them; one token for every byte of text."""

from pathlib import Path
from typing import Any

import torch
from toy_tokenizer import SPECIAL_TOKENS, build_toy_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLProcessor,
    LlavaConfig,
    LlavaProcessor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)

IMAGE = "<|image_pad|>"
TEXT: dict[str, Any] = {
    **{"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024},
}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def without_videos(processor_class: type) -> type:
    """Processors with a part for videos need torchvision for it, which these tests do without."""
    parts = [part for part in processor_class.get_attributes() if part != "video_processor"]
    return type(processor_class.__name__, (processor_class,), {"get_attributes": classmethod(lambda _: parts)})


def _tokenizer(template: str | None = None) -> Any:
    tokenizer = build_toy_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(f"<|vision_start|>{IMAGE}<|vision_end|>", IMAGE)
    if template:
        tokenizer.chat_template = template
    return tokenizer


def _save(config: Any, processor: Any, folder: Path) -> str:
    """With a generation config that asks for random sampling, as many published checkpoints have."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    generation = model.generation_config
    generation.do_sample, generation.temperature, generation.top_k, generation.top_p = True, 5.0, 50, 0.9
    generation.eos_token_id = processor.tokenizer.eos_token_id
    generation.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def qwen3_vl(folder: Path) -> str:
    """Sizes in steps of 32 pixels, 64x64 to 128x128."""
    tokenizer = build_toy_tokenizer()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": rope, "pad_token_id": tokenizer.pad_token_id},
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "depth": 2, "out_hidden_size": 32},
            **{"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        **ids,
    )
    images = Qwen2VLImageProcessorPil(min_pixels=64 * 64, max_pixels=128 * 128, patch_size=16, merge_size=2)
    return _save(config, without_videos(Qwen3VLProcessor)(images, tokenizer), folder)


def internvl(folder: Path) -> str:
    """Tiles of 56x56 pixels, 4 tokens each."""
    plain = _tokenizer()
    tokens = {"start_image_token": SPECIAL_TOKENS[3], "end_image_token": SPECIAL_TOKENS[4]}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        extra_special_tokens=tokens | {"context_image_token": IMAGE, "video_token": SPECIAL_TOKENS[6]},
        chat_template=plain.chat_template,
    )
    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2"},
        vision_config=VISION | {"num_hidden_layers": 2, "image_size": [56, 56], "patch_size": [14, 14]},
        image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    images = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56})
    return _save(config, without_videos(InternVLProcessor)(images, tokenizer, image_seq_length=4), folder)


def llava(folder: Path) -> str:
    """56x56 pixels from the middle of the image."""
    tokenizer = _tokenizer()
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 2, "image_size": 56, "patch_size": 14}
    config = LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | vision | {"projection_dim": 32},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=16,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return _save(config, LlavaProcessor(images, tokenizer, image_token=IMAGE, **options), folder)


def pixtral(folder: Path) -> str:
    """
    Pixtral as DepthLM has it: LLaVA with a vision tower for any size, and `content` for text in its template. Pixtral's
    own processor needs torchvision; LLaVA's with Pixtral's image processor differs in the tokens between rows alone.
    """
    template = (
        "{%- for message in messages %}[INST]{%- for part in message.content %}{%- if part.type == 'image' %}"
        + IMAGE
        + "{%- else %}{{ part.content }}{%- endif %}{%- endfor %}[/INST]{%- endfor %}"
    )
    tokenizer = _tokenizer(template)
    vision = {"model_type": "pixtral", "num_hidden_layers": 2, "image_size": 1024, "patch_size": 16, "head_dim": 16}
    config = LlavaConfig(
        text_config=TEXT | {"model_type": "mistral"},
        vision_config=VISION | vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 1024}, patch_size={"height": 16, "width": 16})
    options = {"patch_size": 16, "vision_feature_select_strategy": "full"}
    return _save(config, LlavaProcessor(images, tokenizer, image_token=IMAGE, **options), folder)
