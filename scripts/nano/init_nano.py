"""
depthvlm-nano before it has learnt anything: sizes, tokenizer, chat template, processor, random weights.

    python scripts/nano/init_nano.py outputs/nano/init

The four recipes `nano_stage0.yaml` to `nano_stage3.yaml` train it (`make nano`).
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from depthvlm.modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.processing import (
    DEPTH_PROMPT,
    DEPTH_REPLY,
    DEPTH_SYSTEM_PROMPT,
    DepthVLMImageProcessor,
    DepthVLMProcessor,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CANONICAL_FOCAL_LENGTH = 160.0
VISION: dict[str, Any] = {
    "depth": 6,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_heads": 4,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "deepstack_visual_indexes": [1, 3, 5],
    "num_position_embeddings": 256,
}
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
HEAD: dict[str, Any] = {"features": 32, "out_channels": [32, 48, 64, 96]}
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen3-VL's turns; `generation` marks what an assistant-only loss may see.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{%- set text = message['content'] %}
{%- else %}
{%- set parts = namespace(text='') %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}
{%- set parts.text = parts.text + '<|vision_start|><|image_pad|><|vision_end|>' %}
{%- elif part['type'] == 'video' %}
{%- set parts.text = parts.text + '<|vision_start|><|video_pad|><|vision_end|>' %}
{%- else %}
{%- set parts.text = parts.text + part['text'] %}
{%- endif %}
{%- endfor %}
{%- set text = parts.text %}
{%- endif %}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- text + '<|im_end|>\\n' }}{%- endgeneration %}
{%- else %}
{{- text + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

WORDS = (
    "a an the one two three four five six seven eight nine ten is are there in on at of to and or no yes not it I "
    "this that image picture scene room street floor wall ceiling sky door window car crate ball box pole table "
    "building road red green blue yellow orange purple white black grey brown cyan pink far near nearer nearest "
    "farther farthest closer closest left right above below behind front between meter meters metre metres "
    "centimeters away from camera how many which what where color colour distance depth object objects point "
    "pixel see tall wide high large small big size count answer question describe describes shows show visible "
    "estimate about approximately does do can you tell me please with for than its inside outside indoors "
    "outdoors first second third order then cabinet gym crates boxes tables cabinets balls cars poles doors pictures "
    "windows Map"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens for the words of synthetic scenes; any other text is spelt in bytes."""
    words = WORDS.split()
    corpus = [DEPTH_SYSTEM_PROMPT, DEPTH_PROMPT, DEPTH_REPLY, "system\nuser\nassistant\n"] * 8
    corpus += [f"{first} {second}. {second.capitalize()}? {first}," for first in words for second in words[::7]]
    corpus += [f"{word.capitalize()}\n{word}" for word in words for _ in range(8)]  # as a turn begins: without a space
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")  # digits stay apart: numbers are read and written so
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024 - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor() -> DepthVLMProcessor:
    images = DepthVLMImageProcessor(
        canonical_focal_length=CANONICAL_FOCAL_LENGTH, size={"shortest_edge": 32 * 32, "longest_edge": 384 * 384}
    )
    return DepthVLMProcessor(image_processor=images, tokenizer=build_tokenizer(), chat_template=CHAT_TEMPLATE)


def nano_config(tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int]) -> DepthVLMConfig:
    """The shape of depthvlm-nano, with the special tokens of its tokenizer."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    return DepthVLMConfig(
        text_config=TEXT | {"vocab_size": 64 * math.ceil(len(tokenizer) / 64)},
        vision_config=VISION | {"out_hidden_size": TEXT["hidden_size"]},
        depth_config=HEAD,
        canonical_focal_length=CANONICAL_FOCAL_LENGTH,
        depth_prompt_ids=prompt_ids,
        tie_word_embeddings=True,
        **ids,
    )


def position_waves(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of rows and columns, (side * side, width): position embeddings to begin with.

    Drawn at random with a deviation of 0.02 they drown in the patches' embeddings, and the model never learns what is
    left and what is right.
    """
    shares = (torch.arange(side) + 0.5) / side
    angles = shares[:, None] * math.pi * 2 ** torch.linspace(-1, 3, width // 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], dim=1)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write the untrained checkpoint."""
    processor = build_processor()
    torch.manual_seed(seed)
    model = DepthVLMForConditionalGeneration(nano_config(processor.tokenizer, processor.depth_prompt_ids))
    positions = model.model.visual.pos_embed.weight
    with torch.no_grad():
        positions.copy_(position_waves(math.isqrt(len(positions)), positions.shape[1]))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(out)
    processor.save_pretrained(out)
    print(f"Wrote {out}")


if __name__ == "__main__":
    typer.run(main)
