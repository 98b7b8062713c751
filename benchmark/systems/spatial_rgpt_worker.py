"""Runs in SpatialRGPT's own environment: image files and boxes in, its replies out, one JSON object a line.

    python spatial_rgpt_worker.py MODEL CONVERSATION DEVICE MAX_NEW_TOKENS

Needs what github.com/AnjieCheng/SpatialRGPT installs (its package is called `llava`), and nothing of depthvlm.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any


def main() -> None:
    reply: dict[str, Any]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")  # the package prints: what it prints goes to stderr
    os.dup2(2, 1)
    model, conversation, device, max_new_tokens = sys.argv[1:]
    parts = load(model, conversation, device, int(max_new_tokens))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = {"texts": answer(parts, json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def load(name: str, conversation: str, device: str, max_new_tokens: int) -> Any:
    import torch
    from huggingface_hub import snapshot_download
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    path = name if os.path.isdir(name) else snapshot_download(name)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        path, get_model_name_from_path(name), None, device=device
    )
    return SimpleNamespace(
        tokenizer=tokenizer,
        model=model.to(dtype=torch.bfloat16),
        image_processor=image_processor,
        conversation=conversation,
        max_new_tokens=max_new_tokens,
    )


def answer(parts: Any, message: Any) -> "list[str]":
    """One reply for each box: left, top, right and bottom in pixels."""
    import numpy as np
    import torch
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import SeparatorStyle, conv_templates
    from llava.mm_utils import process_images, process_regions, tokenizer_image_token
    from PIL import Image

    model = parts.model
    where = {"device": model.device, "dtype": torch.bfloat16}
    image = Image.open(message["image"], formats=["PNG"]).convert("RGB")
    images = process_images([image], parts.image_processor, model.config).to(**where)
    depths = None
    if message["depth"]:
        depth = Image.open(message["depth"], formats=["PNG"]).convert("RGB")
        depths = process_images([depth], parts.image_processor, model.config).to(**where)
    talk = conv_templates[parts.conversation].copy()
    talk.append_message(talk.roles[0], message["question"])
    talk.append_message(talk.roles[1], None)
    tokens = tokenizer_image_token(talk.get_prompt(), parts.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    stop = talk.sep2 if talk.sep_style == SeparatorStyle.TWO else talk.sep
    texts = []
    for left, top, right, bottom in message["boxes"]:
        region = np.zeros((image.height, image.width), dtype=np.uint8)
        region[top:bottom, left:right] = 1
        regions = process_regions([region], parts.image_processor, model.config).to(**where)
        with torch.inference_mode():
            output = model.generate(
                tokens.unsqueeze(0).to(model.device),
                images=images,
                depths=depths,
                masks=[regions],
                do_sample=False,
                num_beams=1,
                max_new_tokens=parts.max_new_tokens,
                use_cache=True,
            )
        text = parts.tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
        texts.append(text[: -len(stop)].strip() if stop and text.endswith(stop) else text)
    return texts


if __name__ == "__main__":
    main()
