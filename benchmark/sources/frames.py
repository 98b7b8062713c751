"""The sources of DepthVLM-Bench and their frames: untouched images, true depth and cameras."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Intrinsics: TypeAlias = tuple[float, float, float, float]
"""fx, fy, cx, cy in pixels."""


class FrameError(Exception):
    """An unreadable frame, with its file and the reason. The builder lists it and continues."""


class SourceError(Exception):
    """An unusable download, such as a wrong root or a missing split file; the message says what was expected where."""


@dataclass(frozen=True, order=True, slots=True)
class FrameRef:
    """A frame in the index of its source, undecoded. Picklable, and small: an index may have millions."""

    id: str  # unique in its source and split, of letters, digits and `/_-.`; stable from machine to machine
    scene: str  # group of neighbouring frames: a drive, a building, a room
    camera: str = ""  # of the rig; "" where there is only one
    order: int = 0  # place within its scene and camera (a time stamp or a number), against near-duplicates
    # Data that the source needs to read it: a dictionary, or where there are very many frames a tuple, which takes a
    # third of the memory; `()` where the other fields tell all.
    files: Any = field(default=(), compare=False, hash=False)

    def __post_init__(self) -> None:
        # Many frames share these: one string for all of them, however often a reader makes it anew.
        object.__setattr__(self, "scene", sys.intern(self.scene))
        object.__setattr__(self, "camera", sys.intern(self.camera))


@dataclass(frozen=True)
class Frame:
    """One image with its true depth."""

    ref: FrameRef
    image: bytes  # of the encoded file, as downloaded (JPEG, PNG)
    image_size: tuple[int, int]  # width and height in pixels
    # z-depth `(h, w)` in the source's own encoding or metres, 0 where there is none; not always of the image's size
    depth: NDArray[np.uint16] | NDArray[np.float32]
    depth_scale: float  # raw value / scale = metres; 1 for float32
    intrinsics: Intrinsics  # of the image, the centre of the top left pixel at (0.5, 0.5)
    mask: NDArray[np.bool_] | None = None  # `(h, w)`, False where the source says that depth is not to be used
    # `(n, 3)` column and row in pixels of the depth map, and metres: what is scored of the frame, as it is, of a source
    # that [`Source.has_points`]
    points: NDArray[np.float64] | None = None

    def metres(self, depth_range: tuple[float, float] | None = None) -> NDArray[np.float32]:
        """Return z-depth `(h, w)` in metres, 0 where it is missing, masked or outside `depth_range` (inclusive)."""
        depth = self.depth.astype(np.float32) / np.float32(self.depth_scale)
        valid = np.isfinite(depth) & (depth > 0)
        if self.mask is not None:
            valid &= self.mask
        if depth_range is not None:
            valid &= (depth >= depth_range[0]) & (depth <= depth_range[1])
        return np.where(valid, depth, np.float32(0))


class Source(ABC):
    """A dataset in its official download layout. Subclasses write `_frames` and `read`.

    Args:
        root: Folder of the download.

    Raises:
        SourceError: The root does not have the layout; the message names the folder or file that was expected.
    """

    name: ClassVar[str]
    """Name on the command line: "argoverse2", "nyuv2-sunrgbd"."""
    title: ClassVar[str]
    """Name in the paper's tables: "Argoverse 2"."""
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    """Splits by the benchmark's names; the reader's docstring says which official split each one is."""
    depth_range: ClassVar[tuple[float, float]]
    """Metres that count as measured."""
    published_depth: ClassVar[Literal["z", "ray"]] = "z"
    """Depth of the labels that the paper's authors released: z-depth, or distance along the ray. Readers give z."""
    sparse: ClassVar[bool] = False
    """True where depth is a projected lidar sweep."""
    has_points: ClassVar[bool] = False
    """True where frames bring the points to be scored; the builder samples some for all others."""
    licence: ClassVar[str] = ""
    """Terms of the data, in a few words."""
    homepage: ClassVar[str] = ""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.notes: list[str] = []
        """Files that [`index`] passed over, counted and named; for the manifest of a build."""

    def index(self, split: str) -> list[FrameRef]:
        """List all frames of a split, sorted by id, without decoding any.

        Raises:
            SourceError: No such split, a split file is missing, or the split is empty.
        """
        self.check_split(split)
        refs = sorted(self._frames(split), key=attrgetter("id"))
        if not refs:
            raise SourceError(f"{self.title}: the split {split!r} has no frames in {self.root}.")
        return refs

    def check_split(self, split: str) -> None:
        """Raise SourceError if the source has no such split."""
        if split not in self.splits:
            raise SourceError(f"{self.title} has the splits {', '.join(self.splits)}, not {split!r}.")

    def _frames(self, split: str) -> Iterable[FrameRef]:
        """Find the frames of a split, in any order."""
        raise NotImplementedError(f"{type(self).__name__} needs _frames or index.")

    @abstractmethod
    def read(self, ref: FrameRef) -> Frame:
        """Read one frame. Several processes may call it at once.

        Raises:
            FrameError: A file is missing, truncated or not what the layout says.
        """
