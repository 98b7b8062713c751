"""The two ends of every table: one constant for all pixels, and the truth itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .interface import DensePredictor, Example, PointAnswer, PointPredictor


class Constant(DensePredictor):
    """
    Says the same distance everywhere: "Always Output 2.0m" of table 1.

    Args:
        metres: above 0.

    Raises:
        ValueError: `metres` is not a finite number above 0.
    """

    name = "Always Output 2.0m"

    def __init__(self, metres: float = 2.0):
        if not (np.isfinite(metres) and metres > 0):
            raise ValueError(f"A constant prediction must be a finite number of metres above 0, got {metres}.")
        self.metres = float(metres)
        self.name = f"Always Output {self.metres}m"  # type: ignore[misc]

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Maps of `metres`."""
        return [np.full(example.image.size[::-1], self.metres, dtype=np.float32) for example in examples]


class Oracle(PointPredictor):
    """Says the truth at every point: what a perfect system would score under the protocol."""

    name = "Oracle"

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """
        The examples' own truth.

        Raises:
            ValueError: an example was made without its truth.
        """
        for example in examples:
            if len(example.truth) != len(example.points):
                raise ValueError(
                    f"The oracle needs the truth of all {len(example.points)} points of {example.id!r}, got "
                    f"{len(example.truth)}."
                )
        return [[PointAnswer(float(metres)) for metres in example.truth] for example in examples]
