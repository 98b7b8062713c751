"""The layout in which Omnidata's starter dataset holds Taskonomy and HM3D: rendered views of scanned buildings."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from .files import (
    NO_RENDERING,
    downloaded_scenes,
    expect_folders,
    expect_split,
    find_split_file,
    read_depth_png,
    read_image,
    read_json,
    sorted_refs,
)
from .frames import Frame, FrameError, FrameRef, Source, SourceError

_VIEW = re.compile(r"(point_(\d+)_view_(\d+))_domain_rgb\.png")

# Orders the views of a building by point, then by view: no point has that many.
_VIEWS_PER_POINT = 10_000


class OmnidataSource(Source):
    """
    One component of a download by `omnitools.download` (docs.omnidata.vision):

        rgb/<component>/<building>/point_0_view_0_domain_rgb.png                        512x512
        depth_zbuffer/<component>/<building>/point_0_view_0_domain_depth_zbuffer.png    512x512, uint16
        point_info/<component>/<building>/point_0_view_0_domain_<pose>.json             "field_of_view_rads"

    Depth is `depth_zbuffer`, along the optical axis: raw / 512 metres, 65535 where the mesh has a hole (read as 0).
    `depth_euclidean`, distances along the ray, is not read. The images are rendered by a pinhole camera whose field of
    view spans the width: fx = fy = width / (2 tan(fov / 2)), and whose principal point is the image's centre.
    """

    component: ClassVar[str]
    poses: ClassVar[tuple[str, ...]] = ("point_info", "fixatedpose")
    split_files: ClassVar[tuple[str, ...]]
    split_hint: ClassVar[str]
    official_test: ClassVar[str]
    splits = ("train", "test")

    def __init__(self, root: str | Path):
        super().__init__(root)
        kinds = ("rgb", "depth_zbuffer", "point_info")
        hint = f"Omnidata's tool makes it: omnitools.download {' '.join(kinds)} --components {self.component}."
        expect_folders(self, *(f"{kind}/{self.component}" for kind in kinds), hint=hint)

    def index(self, split: str) -> list[FrameRef]:
        """All views of the split's buildings, see [`Source.index`]."""
        expect_split(self, split)
        path = find_split_file(self, self.split_files, (".", "splits", "splits_taskonomy"), self.split_hint)
        wanted = "train" if split == "train" else self.official_test
        buildings = [building for building, official in self._buildings(path) if official == wanted]
        if not buildings:
            raise SourceError(f"{self.title}: the split file {path} has no building of {wanted!r}.")
        folder = self.root / "rgb" / self.component
        refs = [
            FrameRef(f"{building}/{match.group(1)}", scene=building, order=_order(match))
            for building in downloaded_scenes(self, buildings, lambda building: folder / building)
            for path in (folder / building).iterdir()
            if (match := _VIEW.fullmatch(path.name))
        ]
        return sorted_refs(self, split, refs)

    def read(self, ref: FrameRef) -> Frame:
        """One view, see [`Source.read`]."""
        image, (width, height) = read_image(self._file(ref, "rgb"))
        if width != height:
            raise FrameError(f"{self._file(ref, 'rgb')}: views are square, this one is {width}x{height}.")
        raw = read_depth_png(self._file(ref, "depth_zbuffer"))
        depth = np.where(raw == NO_RENDERING, np.uint16(0), raw)
        focal_length = width / (2 * math.tan(self._field_of_view(ref) / 2))
        centre = width / 2
        return Frame(ref, image, (width, height), depth, 512.0, (focal_length, focal_length, centre, centre))

    def _field_of_view(self, ref: FrameRef) -> float:
        candidates = [self._file(ref, "point_info", domain) for domain in self.poses]
        path = next((path for path in candidates if path.is_file()), candidates[0])
        info = read_json(path)
        fov = info.get("field_of_view_rads") if isinstance(info, dict) else None
        if not isinstance(fov, (int, float)) or not 0 < fov < math.pi:
            raise FrameError(f'{path}: "field_of_view_rads" must be between 0 and pi, got {fov!r}.')
        return float(fov)

    def _file(self, ref: FrameRef, kind: str, domain: str | None = None) -> Path:
        suffix = "json" if kind == "point_info" else "png"
        view = ref.id.rpartition("/")[2]
        return self.root / kind / self.component / ref.scene / f"{view}_domain_{domain or kind}.{suffix}"

    def _buildings(self, path: Path) -> list[tuple[str, str]]:
        """Building and official split, of a table with `id,train,val,test` (0 or 1) or with `scene,split`."""
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            columns = set(rows.fieldnames or ())
            if {"scene", "split"} <= columns:
                return [(row["scene"], row["split"]) for row in rows]
            if {"id", "train", "val", "test"} <= columns:
                names = ("train", "val", "test")
                return [(row["id"], name) for row in rows for name in names if (row[name] or "").strip() == "1"]
        raise SourceError(
            f"{self.title}: the split file {path} should have the columns id,train,val,test or scene,split, not "
            f"{','.join(sorted(columns)) or 'none'}."
        )


def _order(match: re.Match[str]) -> int:
    return int(match.group(2)) * _VIEWS_PER_POINT + int(match.group(3))
