"""Interface of the benchmark's systems: registry entry, examples in, answers out; and two baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class PredictorError(RuntimeError):
    """A predictor cannot be made, or its answer is not one depth map for every image."""


@dataclass(frozen=True)
class Requirement:
    """Everything that a system needs on this machine."""

    packages: tuple[str, ...] = ()  # names of the modules that must be installed
    environment: tuple[str, ...] = ()  # names of the environment variables that must be set
    gpu_gib: float = 0.0  # GPU memory, in GiB
    install: str = ""  # how to get what is missing, for messages
    # import statements that must work: an installed package may lack what is imported from it
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class System:
    """A depth model or VLM that can be chosen by name."""

    name: str  # the name in the paper's tables, or the system's own name if it is not in them
    target: str  # `module:Class`, relative to this package; imported when the system is chosen
    # "dense" for one depth map per image, "points" for one answer in words per point
    kind: Literal["dense", "points"] = "dense"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    requirement: Requirement = field(default_factory=Requirement)
    # numbers of the paper's tables that show the system; none for a variant; the scores of table 3 come from lmms-eval,
    # not from this benchmark
    tables: tuple[int, ...] = ()
    weights: str = ""  # Hub name or folder of the checkpoint, or "torch.hub:FILE"; "" if there is none on this machine
    required_options: tuple[str, ...] = ()  # keyword arguments without a good default, which the user must give


@dataclass(frozen=True)
class Example:
    """One image of the benchmark, as a predictor sees it."""

    id: str  # identifier of the image in its set
    image: Image.Image  # the RGB image as stored
    # fx, fy, cx, cy in pixels, with the centre of the top left pixel at (0.5, 0.5)
    intrinsics: tuple[float, float, float, float]
    # `(n, 2)` float64 columns and rows, in pixels, where depth is scored; dense predictors do not need them
    points: NDArray[np.float64]
    # `(n,)` depths in metres, for the oracle alone
    truth: NDArray[np.float64] = field(repr=False, compare=False, default_factory=lambda: np.zeros(0))


class Predictor:
    """A system with its weights loaded."""

    name: ClassVar[str] = ""

    def checkpoint(self) -> str | None:
        """Return the hash of the weights and settings if a card can be written about them, else None."""
        return None

    def close(self) -> None:
        """Release everything besides memory, such as another process. Called once, at the end."""


class TokenGrid(NamedTuple):
    """Visual tokens of an image inside a model."""

    rows: int
    columns: int
    stride: int  # pixels of the model's input per token and axis


class DensePredictor(Predictor, ABC):
    """A predictor that answers with a depth map per image."""

    def token_grid(self, example: Example) -> TokenGrid | None:
        """Return the tokens into which the model cuts an image, for the grid artefact; None where that is not known."""
        return None

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return one `(H, W)` map of z-depth in metres per image; all images of a call have one size.

        Values that are not finite or not positive are failures and count as wrong.
        """


@dataclass(frozen=True)
class PointAnswer:
    """An answer about one point."""

    metres: float  # the depth, or NaN if none can be read from `text`
    text: str = ""  # the system's own words


class PointPredictor(Predictor, ABC):
    """A predictor that answers in words, about one point at a time."""

    @abstractmethod
    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """Return one answer for every point of every example, in their order."""


class Constant(DensePredictor):
    """The same distance everywhere: "Always Output 2.0m" of table 1.

    Args:
        metres: A distance above 0.

    Raises:
        ValueError: `metres` is not a finite number above 0.
    """

    def __init__(self, metres: float = 2.0):
        if not (np.isfinite(metres) and metres > 0):
            raise ValueError(f"A constant prediction must be a finite number of metres above 0, got {metres}.")
        self.metres = float(metres)
        self.name = f"Always Output {self.metres}m"  # type: ignore[misc]

    def predict(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Return maps that hold `metres` everywhere."""
        return [np.full(example.image.size[::-1], self.metres, dtype=np.float32) for example in examples]


class Oracle(PointPredictor):
    """The truth at every point: the score that a perfect system would have under the protocol."""

    name = "Oracle"

    def predict(self, examples: Sequence[Example]) -> list[list[PointAnswer]]:
        """Return the truth of the examples.

        Raises:
            ValueError: An example holds no truth.
        """
        for example in examples:
            if len(example.truth) != len(example.points):
                raise ValueError(
                    f"The oracle needs the truth of all {len(example.points)} points of {example.id!r}, got "
                    f"{len(example.truth)}."
                )
        return [[PointAnswer(float(metres)) for metres in example.truth] for example in examples]


def check_maps(maps: Any, examples: Sequence[Example], name: str = "") -> list[NDArray[np.float32]]:
    """Check the answer of a dense predictor and return it as float32.

    NaN, infinite, zero and negative values pass: they are failures, which the protocol counts as wrong.

    Args:
        maps: One `(H, W)` array of real numbers per image, of the size of the image.
        examples: The images that the predictor was given.
        name: Name of the system, for messages.

    Raises:
        PredictorError: Nothing was returned, or not one map per image; or a map has another size than its image or
            does not hold real numbers. The message names the system and the image.
    """
    who = f"The predictor {name!r}" if name else "The predictor"
    if maps is None:
        raise PredictorError(f"{who} returned nothing for {len(examples)} image(s), the first {examples[0].id!r}.")
    found = [np.asarray(depth) for depth in maps]
    if len(found) != len(examples):
        raise PredictorError(f"{who} returned {len(found)} map(s) for {len(examples)} image(s).")
    for depth, example in zip(found, examples, strict=True):
        width, height = example.image.size
        if depth.shape != (height, width):
            raise PredictorError(
                f"{who} returned a map of shape {depth.shape} for the image {example.id!r}: ({height}, {width}), its "
                "height and width, was expected. Resize the map in the predictor; it knows how it resized the image."
            )
        if depth.dtype.kind not in "fiu":
            raise PredictorError(f"{who} returned a map of {depth.dtype} for the image {example.id!r}, not of metres.")
    return [depth.astype(np.float32, copy=False) for depth in found]
