"""The small interface behind which every system of the paper is a row that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Example:
    """
    What a predictor may see of one image of the benchmark.

    Args:
        id: of the image in its set.
        image: RGB, as stored.
        intrinsics: fx, fy, cx, cy in pixels of the image, the centre of the top left pixel at (0.5, 0.5).
        points: `(n, 2)` float64, column and row in pixels of the image, where depth will be scored; a dense predictor
            needs none of them.
        truth: `(n,)` metres, for the oracle alone.
    """

    id: str
    image: Image.Image
    intrinsics: tuple[float, float, float, float]
    points: NDArray[np.float64]
    truth: NDArray[np.float64] = field(repr=False, compare=False, default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Requirement:
    """
    What a row needs: Python packages, an environment variable, a GPU; how to get it; and the import statements that
    must work, since a package may be there and lack what is imported from it.
    """

    packages: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    gpu_gib: float = 0.0
    install: str = ""
    imports: tuple[str, ...] = ()


class Predictor:
    """A depth model or a VLM with its weights loaded."""

    name: ClassVar[str] = ""
    requires: ClassVar[Requirement] = Requirement()

    def checkpoint(self) -> str | None:
        """Hash of its weights and settings, where a card can be written of it; None else."""
        return None

    def close(self) -> None:
        """Frees what it holds besides memory, such as a process of its own. Called once, at the end."""


class DensePredictor(Predictor, ABC):
    """Answers with a map."""

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Z-depth in metres of images of one size, `(H, W)` of the image each. Non-finite or non-positive values are
        failures and count as wrong."""


@dataclass(frozen=True)
class PointAnswer:
    """`metres`: NaN where nothing could be read from `text`, the system's own words."""

    metres: float
    text: str = ""


class PointPredictor(Predictor, ABC):
    """Answers in words, about one point at a time."""

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """One answer for every point of every example, in their order."""
