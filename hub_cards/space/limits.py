"""What one visitor of the demo may ask of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...modeling_depthvlm import DepthVLMForConditionalGeneration


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
        request_bytes: greatest size of a request that is not an upload.
        upload_seconds: time for the body of a request to arrive.
        waiting: requests for the model in the queue; more are told to come back.
        kept_seconds: so long after their last use, uploads, results and conversations are removed.
        unused_seconds: so long after it came, an upload that no step has named is removed.
        live_caches: conversations whose image and key-value cache stay in memory; older ones encode it again.
        sessions: visitors whose conversations are remembered at a time.
        disk_bytes: size of the temporary folder from which on uploads are refused.
    """

    file_bytes: int = 20 * 2**20
    image_pixels: int = 25_000_000
    request_seconds: float = 60.0
    new_tokens: int = 256
    question_characters: int = 2000
    conversation_tokens: int = 4096
    request_bytes: int = 2**16
    upload_seconds: float = 60.0
    waiting: int = 64
    kept_seconds: int = 1800
    unused_seconds: int = 120
    live_caches: int = 4
    sessions: int = 128
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
