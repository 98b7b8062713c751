"""Runs in Youtu-VL's own environment: image files in, its replies out, one JSON object a line.

    python youtu_vl_worker.py MODEL DEVICE DTYPE ATTENTION

Needs Python 3.10, transformers 4.56 to 4.57.1, torch and what the model's remote code imports; nothing of depthvlm.
"""

import json
import os
import sys
from typing import Any

GENERATION = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.001,
    "repetition_penalty": 1.05,
    "max_new_tokens": 4096,
}
SYSTEM_PROMPT = "You are a helpful assistant."
DEPTH_PROMPT = "Estimate the depth."


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")  # remote code prints: what it prints goes to stderr
    os.dup2(2, 1)

    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    name, device, dtype, attention = sys.argv[1:]
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
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        image = json.loads(line)["image"]
        try:
            reply = {"text": answer(torch, model, processor, image)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def answer(torch: Any, model: Any, processor: Any, image: str) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": DEPTH_PROMPT}]
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    torch.manual_seed(0)
    with torch.inference_mode():
        tokens = model.generate(**inputs, img_input=image, **GENERATION)
    new = [row[len(given) :] for row, given in zip(tokens, inputs.input_ids, strict=True)]
    return processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0]


if __name__ == "__main__":
    main()
