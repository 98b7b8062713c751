"""Clips: settings, the paths of the results, and what a finished clip says of itself."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .files import read_json
from .processing import Camera


@dataclass(frozen=True)
class ClipSettings:
    """Settings of a clip's prediction; frames with different settings are never mixed. See [`predict_video`]."""

    focal_length: float | None = None
    fov: float | None = None
    intrinsics: list[Any] | None = None
    every: int = 1
    max_frames: int | None = None
    steady: int | None = None

    @property
    def camera(self) -> dict[str, Any]:
        """The given camera options."""
        options = {"focal_length": self.focal_length, "fov": self.fov, "intrinsics": self.intrinsics}
        return {name: value for name, value in options.items() if value is not None}


class ClipFiles(NamedTuple):
    """Paths of a clip's results.

    Attributes:
        depth: Folder of 16-bit PNGs.
        video: Side-by-side video.
        frames: One line of JSON for every frame.
        record: JSON of the clip.
        unfinished: The file instead of `record` while the clip is unfinished.
    """

    depth: Path
    video: Path
    frames: Path
    record: Path
    unfinished: Path

    @classmethod
    def of(cls, out: Path, stem: str) -> "ClipFiles":
        """Return the paths for a clip called `stem`."""
        names = ("_depth", "_depth.mp4", "_frames.jsonl", ".json", ".unfinished.json")
        return cls(*(out / f"{stem}{name}" for name in names))

    @property
    def whole(self) -> tuple[Path, Path]:
        """The files whose sizes are in the record."""
        return self.video, self.frames

    def earlier_record(self) -> dict[str, Any] | None:
        """Return the record of an earlier run, finished or not, or None.

        Raises:
            ValueError: A file of that name is not the record of a clip.
        """
        for path in (self.record, self.unfinished):
            try:
                record = read_json(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                reason = f" ({error})"
            else:
                if "every" in record:
                    return record
                reason = ""
            raise ValueError(f"{path} is not the record of a clip{reason}: choose another --out, or move it away.")
        return None

    def check_owner(self, overwrite: bool) -> None:
        """Check that no files from elsewhere block the results.

        Args:
            overwrite: Allow replacing a video and lines of JSON. Other records and PNGs are never replaced.

        Raises:
            FileExistsError, ValueError: There is such a file; the message names it.
        """
        record = self.earlier_record()
        if record is None and any(self.depth.glob("*.png")):
            raise ValueError(
                f"{self.depth} holds PNG files, but no record says of which clip: choose another --out, or "
                "move them away."
            )
        sizes = None if record is None else record.get("sizes", {})
        for path in () if overwrite else self.whole:
            size = path.stat().st_size if path.exists() else None
            if os.path.lexists(path) and (sizes is None or size not in (0, sizes.get(path.name, size))):
                raise FileExistsError(
                    f"{path} was not written by depthvlm, or was changed since: choose another --out, move it away, "
                    "or replace it with --overwrite."
                )


@dataclass(frozen=True)
class ClipPrediction:
    """The prediction of a clip.

    Attributes:
        files: Paths of the results.
        record: Number of frames, camera, unit, range of colours, and unreadable parts (`problem`).
        skipped: True if everything was already there.
    """

    files: ClipFiles
    record: dict[str, Any]
    skipped: bool = False

    @property
    def camera(self) -> Camera:
        """The camera of all frames."""
        return Camera(**self.record["camera"], source=self.record["focal_source"])
