"""Tiny models with random weights, and inputs for them that need no processor."""

from typing import Any

import torch
from depthvlm.modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import Float32Conv2d, Float32Linear

IMAGE, VIDEO, START, END, PAD = 90, 91, 92, 93, 0


def toy_config(head: dict[str, Any] | None = None, width: int = 32, **kwargs: Any) -> DepthVLMConfig:
    """4 LLM layers, 4 ViT layers, vocabulary 99."""
    return DepthVLMConfig(
        text_config={
            "vocab_size": 99,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "pad_token_id": PAD,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 2,
            "out_hidden_size": width,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 64,
        },
        depth_config={"features": 16, "out_channels": [8, 8, 16, 16], "hidden_size": 24} | (head or {}),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **kwargs,
    )


def last_layer(head: torch.nn.Module) -> torch.nn.Module:
    """The layer of a depth head before Softplus."""
    return next(m for m in head.modules() if isinstance(m, Float32Conv2d | Float32Linear))


def toy_model(head: dict[str, Any] | None = None, seed: int = 0, **kwargs: Any) -> DepthVLMForConditionalGeneration:
    """A toy model in eval mode whose predictions vary: the last layer of the head is redrawn at a larger scale."""
    torch.manual_seed(seed)
    model = DepthVLMForConditionalGeneration(toy_config(head, **kwargs)).eval()
    torch.nn.init.normal_(last_layer(model.depth_head).weight, std=0.3)
    return model


def toy_inputs(
    rows: list[list[tuple[int, int] | int]], *, side: str = "right", seed: int = 0
) -> dict[str, torch.Tensor]:
    """
    A batch. Each row is a list of parts: `(h, w)` an image of that many visual tokens, an int that many text tokens.
    Pixels and words come from the seed, the same for the same part at the same place of the batch's order of images.
    """
    generator = torch.Generator().manual_seed(seed)
    sequences, pixels, grids = [], [], []
    for row in rows:
        ids: list[int] = []
        for part in row:
            if isinstance(part, int):
                ids += torch.randint(1, 80, (part,), generator=generator).tolist()
            else:
                height, width = part
                ids += [START, *[IMAGE] * (height * width), END]
                pixels.append(torch.randn(4 * height * width, 1536, generator=generator))
                grids.append([1, 2 * height, 2 * width])
        sequences.append(ids)
    length = max(map(len, sequences))
    input_ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(sequences):
        place = slice(length - len(ids), None) if side == "left" else slice(0, len(ids))
        input_ids[i, place] = torch.tensor(ids)
        mask[i, place] = 1
    inputs = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": (input_ids == IMAGE).int()}
    if pixels:
        inputs |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
    return inputs
