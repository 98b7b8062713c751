"""Sets to evaluate on: the splits of a finished build, decoded image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..build.shards import build_hash, finished_builds, load_build

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class EvalItem:
    """
    One image with its truth.

    Args:
        id: unique in its set.
        image: as stored, decoded.
        intrinsics: fx, fy, cx, cy in pixels of the image, the centre of the top left pixel at (0.5, 0.5).
        depth: z-depth `(h, w)` in metres, 0 where there is none.
        depth_range: metres that the source counts as measured.
        points: `(n, 2)` column and row in pixels of the depth map, sampled by the builder or brought by the source.
        point_depths: `(n,)` metres there.
    """

    id: str
    image: Image.Image
    intrinsics: tuple[float, float, float, float]
    depth: NDArray[np.float32]
    depth_range: tuple[float, float]
    points: NDArray[np.int64]
    point_depths: NDArray[np.float64]


class EvalSet:
    """
    A split of one source, as `depthvlm bench build` wrote it.

    Args:
        folder: of the build.
        source: its name.
        split: "test" or "train".

    Raises:
        FileNotFoundError: there is no such folder.
        BuildError: no such build is finished there, or a file is not what the manifest says.
    """

    def __init__(self, folder: str | Path, source: str, split: str = "test"):
        from datasets import Image as ImageFeature

        [entry] = finished_builds(folder, split, source).values()
        self.source, self.split = source, split
        self.seed: int | None = entry["parameters"]["seed"]  # None: the source brought its points, none was drawn
        self.options: dict[str, Any] = entry["parameters"].get("options") or {}
        self.hash = build_hash(entry)
        rows = load_build(folder, split, source, verify=True)
        for column in ("image", "depth"):
            rows = rows.cast_column(column, ImageFeature(decode=False))
        self._rows: Dataset = rows
        self.ids: list[str] = list(rows["id"])
        self.sizes: list[tuple[int, int]] = list(zip(rows["width"], rows["height"], strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> EvalItem:
        """One image, decoded. Callable from several threads at once.

        Raises:
            ValueError: a picture cannot be decoded; the message names the image.
        """
        from ...processing import read_depth
        from ...processing.images_depthvlm import open_image

        row: dict[str, Any] = self._rows[index]
        try:
            image = open_image(row["image"]["bytes"], reduce=False)
            depth = read_depth(open_image(row["depth"]["bytes"], reduce=False), row["depth_scale"])
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"The image {row['id']!r} of {self.source} {self.split} cannot be read: {error}"
            ) from error
        points = row["points"]
        return EvalItem(
            row["id"],
            image.convert("RGB"),
            tuple(row["intrinsics"]),
            depth,
            tuple(row["depth_range"]),
            np.array([(point["column"], point["row"]) for point in points], dtype=np.int64).reshape(-1, 2),
            np.array([point["depth"] for point in points], dtype=np.float64),
        )


def open_sets(folder: str | Path, split: str = "test", sources: tuple[str, ...] = ()) -> list[EvalSet]:
    """
    The sets of a folder of builds, those of `sources` or all, in the order of their names; or the one of a Parquet
    file, see [`~depthvlm.benchmark.scoring.eval_rows.EvalRows`].

    Raises:
        FileNotFoundError: there is no such folder or file.
        BuildError: one that is asked for is not finished there; the message says what there is.
        ValueError: the file is no set, or not of the sources that are asked for.
    """
    if Path(folder).suffix.lower() in (".parquet", ".jsonl", ".json") or Path(folder).is_file():
        from .eval_rows import EvalRows

        rows = EvalRows(folder, split)
        if sources and set(sources) != {rows.source}:
            raise ValueError(f"{folder} is of {rows.source}, not of {', '.join(sources)}.")
        return [rows]
    if not sources:
        sources = tuple(entry["source"] for entry in finished_builds(folder, split).values())
    return [EvalSet(folder, source, split) for source in sources]
