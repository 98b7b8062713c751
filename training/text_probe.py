"""Did the words survive? How far a model's replies moved from those of the model that training began with."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset, load_from_disk
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from trl.data_utils import is_conversational, prepare_multimodal_messages

logger = logging.getLogger(__name__)

# The likeliest tokens of the base model whose probabilities are kept; the rest of the vocabulary counts as one.
KEPT_TOKENS = 128


class TextProbe:
    """
    Replies of the base model to a set of prompts, and how far the trained model is from them.

    The base model's greedy replies and the probabilities of its 128 likeliest tokens are written to
    `OUTPUT_DIR/text_probe.safetensors` before the first step, so that a resumed run compares with the same model.

    Args:
        rows: conversations (`messages`, or conversational `prompt` and `completion`) with `images`; their own last
            replies are not read.
        processor: of the model.
        file: where the base model's replies are kept.
        max_new_tokens: greatest length of a reply.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], processor: Any, file: str | os.PathLike, max_new_tokens: int = 32
    ):
        if not rows:
            raise ValueError("The text probe has no examples: check --text_probe and --text_probe_split.")
        self.prompts = [probe_prompt(row, index) for index, row in enumerate(rows)]
        self.processor = processor
        self.file = Path(file)
        self.max_new_tokens = max_new_tokens

    def remember(self, model: Any, again: bool = False) -> None:
        """Take `model` for the base model, unless its replies are in the file already and not asked for `again`."""
        if self.file.exists() and not again:
            return
        tensors: dict[str, Tensor] = {}
        replies = []
        for index in range(len(self.prompts)):
            inputs = self._inputs(index, model)
            reply = self._generate(model, inputs)
            top = self._log_probs(model, inputs, reply).topk(_kept_tokens(model), dim=-1)
            tensors |= {
                f"{index}.reply": reply.cpu(),
                f"{index}.tokens": top.indices.cpu(),
                f"{index}.log_probs": top.values.cpu(),
            }
            replies.append(self._decode(reply))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(self.file.name + ".tmp")
        save_file(tensors, temporary, {"replies": json.dumps(replies)})
        os.replace(temporary, self.file)

    def compare(self, model: Any) -> dict[str, float]:
        """
        Returns:
            `text_probe_match`, the share of prompts that get exactly the base model's reply, and `text_probe_kl`, the
            mean over the tokens of the base model's replies of KL(base || model) in nats, where all tokens but the
            base model's 128 likeliest count as one: a lower bound of the full divergence.
        """
        matches = tokens = 0
        divergence = 0.0
        with safe_open(self.file, framework="pt") as kept:
            for index in range(len(self.prompts)):
                inputs = self._inputs(index, model)
                reply = kept.get_tensor(f"{index}.reply").to(model.device)
                matches += int(torch.equal(self._generate(model, inputs), reply))
                base = kept.get_tensor(f"{index}.log_probs").to(model.device)
                now = self._log_probs(model, inputs, reply)
                now = now.gather(-1, kept.get_tensor(f"{index}.tokens").to(model.device))
                divergence += _coarse_kl(base, now).sum().item()
                tokens += reply.shape[0]
        return {"text_probe_match": matches / len(self.prompts), "text_probe_kl": divergence / max(1, tokens)}

    def _inputs(self, index: int, model: Any) -> dict[str, Any]:
        inputs = self.processor.apply_chat_template(
            [self.prompts[index]],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        kept = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        inputs = {name: inputs[name].to(model.device) for name in kept if name in inputs}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        return inputs

    @torch.no_grad()
    def _generate(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        output = model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens, return_dict_in_generate=False
        )
        return output[0, inputs["input_ids"].shape[1] :]

    @torch.no_grad()
    def _log_probs(self, model: Any, inputs: dict[str, Any], reply: Tensor) -> Tensor:
        """`(reply tokens, vocabulary)`, float32: what the model expects at each token of a reply."""
        ids = torch.cat([inputs["input_ids"], reply[None]], dim=1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            more["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(reply))], dim=1)
        logits = model(**(inputs | more), output_depth=False, use_cache=False, logits_to_keep=len(reply) + 1).logits
        return logits[0, :-1].float().log_softmax(-1)

    def _decode(self, reply: Tensor) -> str:
        return self.processor.tokenizer.decode(reply, skip_special_tokens=True)


def probe_rows(name: str, split: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a data set: a Hub name, a folder, or what `Dataset.save_to_disk` wrote."""
    if (Path(name) / "state.json").is_file():
        return list(load_from_disk(name).take(count))
    return list(load_dataset(name, split=split, streaming=True).take(count))


def probe_prompt(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
    """
    The conversation up to its last reply, with the row's images in it.

    Raises:
        ValueError: when the row is no conversation.
    """
    row = {key: value for key, value in row.items() if value is not None}
    messages = row.get("messages") or row.get("prompt")
    if not isinstance(messages, list) or not is_conversational({"messages": messages}):
        raise ValueError(
            f"Example {index} of the text probe is no conversation: give `messages`, or `prompt` as a list of messages."
        )
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    images = row.get("images") or ([row["image"]] if "image" in row else [])
    return prepare_multimodal_messages([dict(message) for message in messages], images=list(images))


def _coarse_kl(base: Tensor, now: Tensor) -> Tensor:
    """KL(base || now) per position from log-probabilities of some tokens, all others taken as one."""
    rest_base = (1 - base.exp().sum(-1)).clamp(min=0)
    rest_now = (1 - now.exp().sum(-1)).clamp(min=1e-12)
    rest = torch.where(rest_base > 1e-12, rest_base * (rest_base.clamp(min=1e-12).log() - rest_now.log()), 0.0)
    return ((base.exp() * (base - now)).sum(-1) + rest).clamp(min=0)


def _kept_tokens(model: Any) -> int:
    """Never more tokens than the vocabulary has."""
    return min(KEPT_TOKENS, model.config.get_text_config().vocab_size)
