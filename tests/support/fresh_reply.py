"""A reply as one prefill of a whole conversation gives it."""

from typing import Any

from PIL import Image

from depthvlm import DepthPredictor

SYSTEM = "You are a helpful assistant."


def fresh_reply(model: DepthPredictor, image: Image.Image, turns: list[dict], tokens: int, **camera: Any) -> str:
    """The reply to the last turn, with nothing cached: from the pixels and all of the text."""
    messages = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for index, turn in enumerate(turns):
        pixels = [{"type": "image", "image": image}] if index == 0 else []
        messages.append({"role": turn["role"], "content": [*pixels, {"type": "text", "text": turn["content"]}]})
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = model.processor.apply_chat_template(messages, **options, processor_kwargs=camera)
    ids = model.model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return model.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
