"""Taskonomy and HM3D in the layout of Omnidata's starter dataset: rendered views of scanned buildings."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from .files import downloaded_scenes, expect_folders, find_split_file, read_depth_png, read_image, read_json
from .frames import Frame, FrameError, FrameRef, Source, SourceError

_VIEW = re.compile(r"(point_(\d+)_view_(\d+))_domain_rgb\.png")

_NO_RENDERING = 65535  # where the mesh has a hole

# Orders the views of a building by point, then by view: no point has that many.
_VIEWS_PER_POINT = 10_000


class OmnidataSource(Source):
    """One component of a download by `omnitools.download` (docs.omnidata.vision).

        rgb/<component>/<building>/point_0_view_0_domain_rgb.png                        512x512
        depth_zbuffer/<component>/<building>/point_0_view_0_domain_depth_zbuffer.png    512x512, uint16
        point_info/<component>/<building>/point_0_view_0_domain_<pose>.json             "field_of_view_rads"

    Depth is `depth_zbuffer`, along the optical axis: raw / 512 metres, 65535 where the mesh has a hole (read as 0).
    `depth_euclidean`, distances along the ray, is not read. The images are rendered by a pinhole camera whose field of
    view spans the width: fx = fy = width / (2 tan(fov / 2)), and whose principal point is the image's centre.
    """

    poses: ClassVar[tuple[str, ...]]
    split_files: ClassVar[tuple[str, ...]]
    split_hint: ClassVar[str]
    official_test: ClassVar[str]

    def __init__(self, root: str | Path):
        super().__init__(root)
        kinds = ("rgb", "depth_zbuffer", "point_info")
        hint = f"Omnidata's tool makes it: omnitools.download {' '.join(kinds)} --components {self.name}."
        expect_folders(self, *(f"{kind}/{self.name}" for kind in kinds), hint=hint)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        path = find_split_file(self, self.split_files, (".", "splits", "splits_taskonomy"), self.split_hint)
        wanted = "train" if split == "train" else self.official_test
        buildings = [building for building, official in self._buildings(path) if official == wanted]
        if not buildings:
            raise SourceError(f"{self.title}: the split file {path} has no building of {wanted!r}.")
        folder = self.root / "rgb" / self.name
        return [
            FrameRef(f"{building}/{match[1]}", scene=building, order=int(match[2]) * _VIEWS_PER_POINT + int(match[3]))
            for building in downloaded_scenes(self, buildings, lambda building: folder / building)
            for path in (folder / building).iterdir()
            if (match := _VIEW.fullmatch(path.name))
        ]

    def read(self, ref: FrameRef) -> Frame:
        """Read one view, see [`Source.read`]."""
        image, (width, height) = read_image(self._file(ref, "rgb"))
        if width != height:
            raise FrameError(f"{self._file(ref, 'rgb')}: views are square, this one is {width}x{height}.")
        depth = read_depth_png(self._file(ref, "depth_zbuffer"), hole=_NO_RENDERING)
        focal_length = width / (2 * math.tan(self._field_of_view(ref) / 2))
        return Frame(ref, image, (width, height), depth, 512.0, (focal_length, focal_length, width / 2, width / 2))

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
        return self.root / kind / self.name / ref.scene / f"{view}_domain_{domain or kind}.{suffix}"

    def _buildings(self, path: Path) -> list[tuple[str, str]]:
        """Return building and official split, of a table with `id,train,val,test` (0 or 1) or with `scene,split`."""
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = set(table.fieldnames or ())
            if {"scene", "split"} <= columns:
                return [(line["scene"], line["split"]) for line in table]
            names = ("train", "val", "test")
            if {"id", *names} <= columns:
                return [(line["id"], name) for line in table for name in names if (line[name] or "").strip() == "1"]
        raise SourceError(
            f"{self.title}: the split file {path} should have the columns id,train,val,test or scene,split, not "
            f"{','.join(sorted(columns)) or 'none'}."
        )


class Taskonomy(OmnidataSource):
    """Taskonomy as the component of Omnidata that its authors now distribute (see [`OmnidataSource`] for the folders).

    A table of its official splits (`splits_taskonomy.zip` of github.com/StanfordVL/taskonomy, `id,train,val,test`) is
    in the root or in `splits/`: train_val_test_fullplus.csv, or the smaller full, medium or tiny; the largest there is
    used. `train` is the official train, `test` the official test; val is left out. The camera is in
    `point_*_view_*_domain_point_info.json`.
    """

    name = "taskonomy"
    title = "Taskonomy"
    depth_range = (0.005, 15.0)
    licence = "Taskonomy terms of use, research only, no redistribution"
    homepage = "https://github.com/StanfordVL/taskonomy/tree/master/data"
    poses = ("point_info", "fixatedpose")
    split_files = tuple(f"train_val_test_{size}.csv" for size in ("fullplus", "full", "medium", "tiny"))
    split_hint = "It is in splits_taskonomy.zip of github.com/StanfordVL/taskonomy, data/assets."
    official_test = "test"


class HM3D(OmnidataSource):
    """HM3D, 1000 buildings, as the component of Omnidata (see [`OmnidataSource`] for the folders).

    The official splits are in the root or in `splits/`: metadata.csv of
    github.com/matterport/habitat-matterport-3dresearch (`scene,split,...`), or Omnidata's train_val_test_hm3d.csv
    (`id,train,val,test`). `train` is the official train (800 buildings), `test` the official val (100): as in the
    released annotations. The camera is in `point_*_view_*_domain_fixatedpose.json`. Other runs of Omnidata's annotator
    may store depth / 8192; this reader takes the published release, / 512.
    """

    name = "hm3d"
    title = "HM3D"
    depth_range = (0.01, 10.0)
    licence = "HM3D terms of use (Matterport), academic, no redistribution"
    homepage = "https://aihabitat.org/datasets/hm3d/"
    poses = ("fixatedpose", "point_info")
    split_files = ("metadata.csv", "train_val_test_hm3d.csv")
    split_hint = "metadata.csv is in github.com/matterport/habitat-matterport-3dresearch."
    official_test = "val"
