"""Run a VLM in a separate environment: image files in, replies out, one JSON object a line.

    python worker_script.py spatial_rgpt MODEL CONVERSATION DEVICE MAX_NEW_TOKENS
    python worker_script.py youtu_vl MODEL DEVICE DTYPE ATTENTION

The script needs Python 3.10 and the model's packages: for SpatialRGPT what github.com/AnjieCheng/SpatialRGPT installs
(its package is called `llava`), for Youtu-VL transformers 4.56 to 4.57.1, torch and the imports of its remote code. It
needs nothing of depthvlm. It prints `{"ready": true}` once the model is loaded, then answers each line with one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Load the model that the arguments name and answer the lines of the standard input."""
    reply: dict[str, Any]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what the model's code prints goes to stderr
    os.dup2(2, 1)
    kind, *arguments = sys.argv[1:]
    answer = MODELS[kind](*arguments)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = {"answer": answer(json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def spatial_rgpt(name: str, conversation: str, device: str, max_new_tokens: str) -> Callable[[Any], list[str]]:
    """Load SpatialRGPT and return a function that gives one reply per box of an image."""
    import numpy as np
    import torch
    from huggingface_hub import snapshot_download
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import SeparatorStyle, conv_templates
    from llava.mm_utils import get_model_name_from_path, process_images, process_regions, tokenizer_image_token
    from llava.model.builder import load_pretrained_model
    from PIL import Image

    path = name if os.path.isdir(name) else snapshot_download(name)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        path, get_model_name_from_path(name), None, device=device
    )
    model = model.to(dtype=torch.bfloat16)
    where = {"device": model.device, "dtype": torch.bfloat16}

    def pixels(file: str) -> Any:
        image = Image.open(file, formats=["PNG"]).convert("RGB")
        return image.size, process_images([image], image_processor, model.config).to(**where)

    def answer(message: Any) -> list[str]:
        (width, height), images = pixels(message["image"])
        depths = pixels(message["depth"])[1] if message["depth"] else None
        talk = conv_templates[conversation].copy()
        talk.append_message(talk.roles[0], message["question"])
        talk.append_message(talk.roles[1], None)
        tokens = tokenizer_image_token(talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        stop = talk.sep2 if talk.sep_style == SeparatorStyle.TWO else talk.sep
        texts = []
        for left, top, right, bottom in message["boxes"]:
            region = np.zeros((height, width), dtype=np.uint8)
            region[top:bottom, left:right] = 1
            with torch.inference_mode():
                output = model.generate(
                    tokens.unsqueeze(0).to(model.device),
                    images=images,
                    depths=depths,
                    masks=[process_regions([region], image_processor, model.config).to(**where)],
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=int(max_new_tokens),
                    use_cache=True,
                )
            text = tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
            texts.append(text[: -len(stop)].strip() if stop and text.endswith(stop) else text)
        return texts

    return answer


def youtu_vl(name: str, device: str, dtype: str, attention: str) -> Callable[[Any], str]:
    """Load Youtu-VL and return a function that gives the reply to an image, generated as in the model's demo."""
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name,
        output_loading_info=True,
        attn_implementation=attention,
        torch_dtype=getattr(torch, dtype),
        device_map=device,
        trust_remote_code=True,
    )
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"the checkpoint {name} lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}, ...")
    model.eval()
    processor = AutoProcessor.from_pretrained(name, use_fast=True, trust_remote_code=True)

    def answer(message: Any) -> str:
        image = message["image"]
        question = [{"type": "image", "image": image}, {"type": "text", "text": "Estimate the depth."}]
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ]
        inputs = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        torch.manual_seed(0)
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                img_input=image,
                do_sample=True,
                temperature=0.1,
                top_p=0.001,
                repetition_penalty=1.05,
                max_new_tokens=4096,
            )
        new = [row[len(given) :] for row, given in zip(tokens, inputs.input_ids, strict=True)]
        return processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]

    return answer


MODELS: dict[str, Callable[..., Callable[[Any], Any]]] = {"spatial_rgpt": spatial_rgpt, "youtu_vl": youtu_vl}

if __name__ == "__main__":
    main()
