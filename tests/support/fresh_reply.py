"""A reply as one prefill of a whole conversation gives it, and what ran for a reply."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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


@contextmanager
def runs_of(module: torch.nn.Module) -> Iterator[list[int]]:
    """The number of positions of every run of a module."""
    runs: list[int] = []

    def note(_, args, kwargs) -> None:
        states = args[0] if args else kwargs["inputs_embeds"]
        runs.append((states[0] if isinstance(states, (list, tuple)) else states).shape[-2])

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield runs
    finally:
        handle.remove()
