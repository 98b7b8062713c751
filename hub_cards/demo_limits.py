"""What one visitor of the demo may ask of the machine."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..conversation import Conversation
    from ..modeling_depthvlm import DepthVLMForConditionalGeneration


@dataclass(frozen=True)
class Limits:
    """Limits of the demo.

    Args:
        file_bytes: greatest size of an upload.
        image_pixels: greatest width times height of a picture, read from its header before anything is decoded.
        request_seconds: time for one request from its turn on; waiting in the queue does not count.
        new_tokens: greatest length of a reply.
        question_characters: greatest length of a question.
        conversation_tokens: greatest length of a conversation with its image, in tokens.
        waiting: requests in the queue; more are told to come back.
        kept_seconds: after so long, uploads, results and conversations are removed.
        live_caches: conversations whose key-value cache stays in memory; older ones encode their image again.
        sessions: visitors whose conversations are remembered at a time.
        disk_bytes: size of the temporary folder from which on uploads are refused.
    """

    file_bytes: int = 20 * 2**20
    image_pixels: int = 25_000_000
    request_seconds: float = 60.0
    new_tokens: int = 256
    question_characters: int = 2000
    conversation_tokens: int = 4096
    waiting: int = 20
    kept_seconds: int = 1800
    live_caches: int = 4
    sessions: int = 64
    disk_bytes: int = 4 * 2**30


@contextmanager
def deadline(model: DepthVLMForConditionalGeneration, seconds: float) -> Iterator[None]:
    """Break off what the model does after so many seconds, between two of its layers.

    Raises:
        TimeoutError: the time is over.
    """
    end = time.monotonic() + seconds

    def check(*_: Any) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"This took longer than {seconds:g} seconds and was broken off. Try a smaller picture.")

    layers = [*model.model.visual.blocks, *model.model.language_model.layers, model.depth_head]
    handles = [layer.register_forward_pre_hook(check) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LiveCaches:
    """Keeps the caches of the conversations that were used last, and releases the others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._live: OrderedDict[int, Conversation] = OrderedDict()

    def used(self, conversation: Conversation) -> None:
        """Note that a conversation has just been used."""
        self._live[id(conversation)] = conversation
        self._live.move_to_end(id(conversation))
        while len(self._live) > self.size:
            self._live.popitem(last=False)[1].release()

    def forget(self, conversation: Conversation | None) -> None:
        """Release a conversation that has ended."""
        if conversation is not None:
            self._live.pop(id(conversation), None)
            conversation.release()

    def __len__(self) -> int:
        return len(self._live)
