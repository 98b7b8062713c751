"""A stand-in for a model that finds objects by their names: nano's depth, and words that are given."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from depthvlm import DepthPredictor, Prediction, load


class FixedWords(DepthPredictor):
    """Nano with a fixed reply to every prompt."""

    def __init__(self, reply: str) -> None:
        self.nano = load()
        super().__init__(self.nano.model, self.nano.processor, "fixed-words")
        self.reply = reply

    def predict_iter(
        self, images: Any, *, prompt: str | None = None, **kwargs: Any
    ) -> Iterator[tuple[int, Prediction]]:
        for index, prediction in self.nano.predict_iter(images, **kwargs):
            yield index, dataclasses.replace(prediction, prompt=prompt, text=self.reply)
