"""Released DepthVLM-Bench annotation lines: images, depth maps and the exact points that the authors scored."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...annotated_depth import (
    AnnotatedDepth,
    below,
    check_inside,
    is_ray_distance,
    listed_points,
    map_size,
    points_to_map,
)
from ...geometry import intrinsics_of_map, ray_factors, ray_to_z
from ...processing import Camera
from .files import expect_folders, pinhole, read_image
from .frames import Frame, FrameError, FrameRef, Intrinsics, Source, SourceError

# Listed metres may be rounded, the prompt says to two decimals; a wrong scale is farther from the map than this.
_ROUNDING_METRES, _ROUNDING_SHARE = 0.0051, 1e-4

_OTHERS = re.compile(r"[^\w.-]", re.ASCII)


class AnnotationLines(Source):
    """JSON lines as released and as `bench build --jsonl` writes them, with the images and depth maps that they name.

        <file>.jsonl
        <image_root>/<image>                   paths of a line; one that begins with a slash is relative too
        <depth_root>/<depth_path>, masks       none where a line has points alone, as DepthLM's iBims-1 file

    Depth is z-depth, encoded as the lines say: `depth_scale`, the bits of SUN RGB-D rotated (8000), a float32 raster
    (`depth_format: binary_float32`), `mask_valid_path` or `mask_invalid_path` and `mask_transp_path`; metres out of the
    range that is known for a source named in the path are 0. The listed `pixel_coords` with their `depth` are the
    points of the build, all of them in their order, even where the map has none: nothing is sampled, so `--points`
    and `--seed` change nothing. A line whose listed depth is not what its map says there cannot be used. Prompt and
    solution of the lines are not read: every row of a build has the paper's.

    The camera is `intrinsics` (fx, fy, cx, cy), or `original_fx` and what there is of `original_fy`, `original_cx` and
    `original_cy`, in pixels of the image, the centre of the first at (0.5, 0.5). The released lines have `original_fx`
    alone: then fy = fx, and the principal point is assumed at the image's centre.

    The released lines of Argoverse 2 and Waymo say `z_depth` and hold the distance along the ray. They are read as they
    are, with a warning, unless `ray_to_z` is true.

    The file does not say which split it is, so either name may be given to it.

    Args:
        root: Folder that the others are relative to.
        file: File of the lines; by default the one `.jsonl` file of the root.
        image_root, depth_root: Folders that the paths of the lines are relative to.
        ray_to_z: True if all depth of the file is distance along the ray, to be turned into z-depth by its camera.
    """

    name = "lines"
    title = "Annotation lines"
    depth_range = (0.001, 1000.0)
    has_points = True
    licence = "of the datasets that the lines are of"
    homepage = "https://github.com/hanxunyu/DepthVLM"

    def __init__(
        self,
        root: str | Path,
        file: str | None = None,
        image_root: str = ".",
        depth_root: str = ".",
        ray_to_z: bool = False,
    ):
        super().__init__(root)
        if not isinstance(ray_to_z, bool):
            raise SourceError(f"{self.title}: ray_to_z is true or false, got {ray_to_z!r}.")
        self.ray_to_z = ray_to_z
        expect_folders(self, *(folder for folder in (image_root, depth_root) if folder != "."))
        self.file = self.root / file if file else self._only_file()
        if not self.file.is_file():
            raise SourceError(f"{self.title}: there is no file {self.file}; name it by --option file=NAME.jsonl.")
        self.image_root, self.depth_root = str(self.root / image_root), str(self.root / depth_root)

    def _frames(self, split: str) -> Iterable[FrameRef]:
        refs = list(self._refs())
        if self._rays and not self.ray_to_z:
            warnings.warn(
                f"{self.title}: {self._rays} of the {len(refs)} lines in {self.file} are released ones of Argoverse 2 "
                "or Waymo. Their depth is the distance along the ray, although they say z_depth; it is kept as it is. "
                "For z-depth: --option ray_to_z=true.",
                stacklevel=3,
            )
        return refs

    def read(self, ref: FrameRef) -> Frame:
        """Read the frame of one line, see [`Source.read`]."""
        offset, number = ref.files
        try:
            with self.file.open("rb") as file:
                file.seek(offset)
                line = _parse(file.readline())
            return self._frame(ref, line)
        except (FrameError, OSError, ValueError, TypeError) as error:
            raise FrameError(f"{self.file}, line {number}: {error}") from error

    def _frame(self, ref: FrameRef, line: Mapping[str, Any]) -> Frame:
        for key in ("image", "pixel_coords", "depth"):
            if not line.get(key):
                raise FrameError(f"it has no `{key}`.")
        if line.get("depth_type", "z_depth") != "z_depth":
            raise FrameError(f"its depth_type is {line['depth_type']!r}; only z_depth is read.")
        image, size = read_image(Path(below(line["image"], self.image_root)))
        _check_size("image", size, line.get("original_rgb_size") or (line.get("intrinsics") or [])[4:6])
        points = listed_points(line)
        depth: NDArray[np.uint16] | NDArray[np.float32]
        if line.get("depth_path"):
            depth, scale = AnnotatedDepth.of_line(line).read_encoded(self.depth_root)
            _check_size("depth map", (depth.shape[1], depth.shape[0]), line.get("original_depth_size"))
            check_inside(points, (depth.shape[1], depth.shape[0]))
        else:
            depth, scale = points_to_map(points, map_size(line)), 1.0
        _check_points(points, depth / np.float64(scale))
        camera = _camera(line, size)
        if self.ray_to_z:
            of_map = intrinsics_of_map(camera, size, depth.shape)
            depth, scale = ray_to_z(depth / np.float64(scale), Camera(*camera, *size, "intrinsics")), 1.0
            points = np.column_stack([points[:, :2], points[:, 2] / ray_factors(points[:, :2], of_map)])
        return Frame(ref, image, size, depth, scale, camera, points=points)

    def _refs(self) -> Iterator[FrameRef]:
        offset = self._rays = 0
        with self.file.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    frame_id, scene = f"{number:07d}", ""
                    with suppress(ValueError):  # `read` will say what is wrong with this line
                        line = _parse(text)
                        path = PurePosixPath(str(line.get("image")))
                        frame_id += f"/{_OTHERS.sub('_', path.stem)}"
                        scene = str(line.get("scene_id") or path.parent)
                        self._rays += is_ray_distance(line)
                    yield FrameRef(frame_id, scene, "", number, (offset, number))
                offset += len(text)

    def _only_file(self) -> Path:
        found = sorted(self.root.glob("*.jsonl"))
        if len(found) == 1:
            return found[0]
        names = ", ".join(path.name for path in found) or "none"
        raise SourceError(
            f"{self.title}: expected one .jsonl file in {self.root}, there is {names}: name it by --option "
            "file=NAME.jsonl."
        )


def _parse(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON, it may be truncated: {error}.") from error
    if not isinstance(line, dict):
        raise ValueError(f"not a JSON object, but {type(line).__name__}.")
    return line


def _check_size(what: str, size: tuple[int, int], stated: Any) -> None:
    if stated and tuple(stated) != size:
        raise FrameError(f"its {what} has {size[0]}x{size[1]} pixels (width x height), the line says {stated}.")


def _check_points(points: NDArray[np.float64], metres: NDArray[np.float64]) -> None:
    """Raise FrameError where a listed depth is not above 0, or not what the map, which may have a hole, says."""
    columns, rows = points[:, :2].astype(np.int64).T
    listed, found = points[:, 2], metres[rows, columns]
    if not (np.isfinite(listed) & (listed > 0)).all():
        raise FrameError("a listed depth is not a number of metres above 0.")
    wrong = (found > 0) & (np.abs(listed - found) > _ROUNDING_METRES + _ROUNDING_SHARE * found)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise FrameError(
            f"{wrong.sum()} of {len(points)} listed depths are not those of the map: at column {columns[first]}, row "
            f"{rows[first]} it lists {listed[first]:g} m, the map says {found[first]:g} m. Is its depth_scale right?"
        )


def _camera(line: Mapping[str, Any], size: tuple[int, int]) -> Intrinsics:
    """Return fx, fy, cx, cy; fy = fx and the image's centre where the line does not say them."""
    if line.get("intrinsics") is not None:
        return pinhole(line["intrinsics"][:4], Path("its camera"))
    fx = line.get("original_fx")
    if fx is None:
        raise FrameError("its focal length is not known: it has neither `intrinsics` nor `original_fx`.")
    assumed = {"original_fy": fx, "original_cx": size[0] / 2, "original_cy": size[1] / 2}
    others = [value if line.get(key) is None else line[key] for key, value in assumed.items()]
    return pinhole([fx, *others], Path("its camera"))
