"""The prediction for an image: depth in metres, camera, reply; and its output files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .files import write_json
from .visualize import valid_mask

if TYPE_CHECKING:
    import trimesh

    from .calibration import Calibration
    from .lens import Lens
    from .processing import Camera


MAX_POINTS = 2**21  # a full HD frame: 31 MB of PLY
MAX_VERTICES = 2**19  # about 1 M triangles: 18 MB of GLB, which a phone still shows

# suffix of each format of `Prediction.save` after the image's name
SUFFIXES = {
    "npy": "_depth.npy",
    "png16": "_depth.png",
    "color": "_color.png",
    "ply": ".ply",
    "glb": ".glb",
    "json": ".json",
    "npz": "_depth.npz",
    "exr": "_depth.exr",
    "pfm": "_depth.pfm",
    "normals": "_normals.png",
    "spread": "_spread.png",
}
FORMATS = ("npy", "png16", "color", "ply", "glb", "json")  # of `Prediction.save`, unless others are asked for
DEFAULT_FORMATS = "png16,color,json"  # of the command; at 12 megapixels npy is 48 MB, a cloud and a mesh up to 50


@dataclasses.dataclass(eq=False)
class Prediction:
    """The prediction for one image of height H and width W.

    Attributes:
        depth: `(H, W)` float32, z-depth in metres; of a panorama or a wide fisheye the distance along the ray, see
            `depth_type`.
        camera: The intrinsics used, in pixels of this image, and their origin (`camera.source`); a `Lens` where the
            picture is not a pinhole's. Where the model predicted it, `camera.fov_spread` is the standard deviation of
            `camera.fov` in degrees.
        image: The upright image, RGB, `(W, H)`.
        text: The model's reply, or None when no prompt was given.
        prompt: The prompt, or None.
        source: The file that the image was read from, or None.
        model: Name or path of the model.
        calibration: The calibration that `calibrate` applied to `depth`, or None.
        spread: `(H, W)` float32, standard deviation of the logarithm of depth over the views of `refine`, close to the
            relative one; None with one view. Depth is less certain where it is large.
    """

    depth: NDArray[np.float32]
    camera: "Camera | Lens"
    image: Image.Image
    text: str | None = None
    prompt: str | None = None
    source: Path | None = None
    model: str | None = None
    calibration: "Calibration | None" = None
    spread: NDArray[np.float32] | None = None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Mask of finite, positive depth, `(H, W)` bool."""
        return valid_mask(self.depth)

    @property
    def depth_type(self) -> str:
        """`z_depth`, along the optical axis; or `ray_distance`, along each pixel's ray, of a lens that is too wide."""
        return getattr(self.camera, "depth_type", "z_depth")

    def summary(self) -> dict[str, float | None]:
        """Return the smallest, median and largest valid depth in metres: see `depth_summary`."""
        return depth_summary(self.depth)

    @property
    def points(self) -> NDArray[np.float32]:
        """The 3D point of each pixel's centre, `(H, W, 3)` float32: x right, y down, z forward, in metres.

        NaN where there is no depth. The centre of the first pixel is at (0.5, 0.5).
        """
        from .geometry import back_project

        return back_project(self.depth, self.camera).points

    def normals(self, max_jump: float | None = None) -> NDArray[np.float32]:
        """Return the unit normals of the visible surface, `(H, W, 3)` float32, in the axes of `points`.

        They point towards the camera, so that of a wall straight ahead is (0, 0, -1). They are differences of
        neighbouring points, across no depth step; NaN where a pixel has no depth, or no neighbour on its surface in
        a row or in a column.

        Args:
            max_jump: See `to_point_cloud`.
        """
        from .geometry import back_project, surface_normals

        return surface_normals(back_project(self.depth, self.camera, max_jump=max_jump))

    def at(self, x: float, y: float) -> float:
        """Return the depth in metres at a position of the image, or NaN if there is none.

        Args:
            x: Column in pixels from the left edge, so that the centre of the first pixel is at 0.5.
            y: Row in pixels from the upper edge; `at(x, y)` is `depth[int(y), int(x)]`.

        Raises:
            ValueError: The position is outside the image.
        """
        height, width = self.depth.shape
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"({x}, {y}) is outside the image of {width}x{height} pixels: x from 0 to below {width}, y from 0 to "
                f"below {height}."
            )
        value = float(self.depth[int(y), int(x)])
        return value if np.isfinite(value) and value > 0 else float("nan")

    def distance(self, a: tuple[float, float], b: tuple[float, float]) -> float:
        """Return the straight-line distance in metres between the points seen at two positions of the image.

        Args:
            a: `(x, y)` in pixels, as for `at`.
            b: The other position.

        Raises:
            ValueError: A position is outside the image.
        """
        return float(np.linalg.norm(self._point(*a) - self._point(*b)))

    def calibrate(
        self, points: Mapping[tuple[float, float], float] | ArrayLike, model: str = "scale", along: str = "z"
    ) -> "Prediction":
        """Return this prediction corrected by known distances: one from a tape measure, or some lidar returns.

        The correction is in metres of depth, not of its inverse, where a small shift sends what is far to infinity.
        Wrong points among the right ones are rejected; `calibration` of the result says what was done. Camera and text
        stay as they are.

        Examples:
            >>> door = prediction.calibrate({(412, 300): 3.20})
            >>> print(door.calibration.factor, door.at(412, 300))

        Args:
            points: `{(x, y): metres}`, positions in pixels as for `at`; or an array `(n, 3)` of x, y and metres.
            model: `scale`: one factor, from 1 point on. `scale+shift`: a factor and an offset, from 3 points at
                different depths on; with fewer than 100 or so, `scale` is usually as good. `field`: factors that vary
                smoothly over the picture, from 10 points on.
            along: `z`: the distances are along the optical axis, as `depth` is. `ray`: they are from the camera to the
                point in a straight line, as a laser rangefinder measures.

        Raises:
            ValueError: A point is outside the image, its distance not positive or the map has no depth there; there are
                too few points for the model; the prediction is calibrated already; no positive scale fits the points.
        """
        from . import calibration

        if self.calibration is not None:
            raise ValueError(
                "This prediction is calibrated already. Call `calibrate` of the original one with all points together."
            )
        known = calibration.checked_points(points, model, along, self.depth)
        columns, rows = known[:, 0].astype(int), known[:, 1].astype(int)
        distance = known[:, 2]
        if self.depth_type == "ray_distance":
            if along != "ray":
                raise ValueError("The depth of this prediction is along the rays, and so are known ones: along='ray'.")
        elif along == "ray":
            seen = self.points[rows, columns].astype(np.float64)
            distance = distance * seen[:, 2] / np.linalg.norm(seen, axis=1)
        depth, record = calibration.calibrated(self.depth, known, distance, model)
        return dataclasses.replace(self, depth=depth, calibration=record)

    def _point(self, x: float, y: float) -> NDArray[np.float64]:
        from .lens import Lens

        z, camera = self.at(x, y), self.camera
        if isinstance(camera, Lens):
            return np.asarray(camera.depth_rays((x, y)) * z)
        return np.array([(x - camera.cx) / camera.fx * z, (y - camera.cy) / camera.fy * z, z])

    def record(self) -> dict[str, Any]:
        """Return the content of the JSON file: image, camera, depth statistics in metres, and the reply."""
        from .lens import Lens

        lens = {}
        if isinstance(self.camera, Lens):
            lens = {"lens": self.camera.model, "distortion": list(self.camera.distortion)}
        fov = {}
        if not isinstance(self.camera, Lens) and self.camera.fov_spread is not None:
            fov = {"fov": self.camera.fov, "fov_spread": self.camera.fov_spread}
        return {
            "source": None if self.source is None else str(self.source.resolve()),
            "model": self.model,
            "width": self.depth.shape[1],
            "height": self.depth.shape[0],
            "camera": {name: getattr(self.camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")} | lens,
            "focal_source": self.camera.source,
            **fov,
            "unit": "metres",
            "depth_type": self.depth_type,
            **self.summary(),
            **({"calibration": dataclasses.asdict(self.calibration)} if self.calibration else {}),
            **({} if self.spread is None else {"median_spread": float(np.nanmedian(self.spread))}),
            "prompt": self.prompt,
            "text": self.text,
            "replies": [] if self.prompt is None else [{"prompt": self.prompt, "text": self.text}],
        }

    def to_point_cloud(
        self, max_jump: float | None = None, max_points: int | None = MAX_POINTS
    ) -> "trimesh.PointCloud":
        """Return the valid pixels as coloured points in metres: x right, y down, z forward.

        Args:
            max_jump: Relative depth step above which neighbouring pixels are on different surfaces; pixels that float
                between two surfaces are dropped. None: see `depthvlm.geometry.GRAZING`.
            max_points: Take every n-th pixel in both directions if there are more (None: all).
        """
        import trimesh

        from .geometry import back_project, flying_pixels

        grid = back_project(self.depth, self.camera, max_points, max_jump)
        keep = grid.valid & ~flying_pixels(grid)
        return trimesh.PointCloud(grid.points[keep], colors=self._colors(grid.stride)[keep])

    def to_mesh(self, max_jump: float | None = None, max_vertices: int | None = MAX_VERTICES) -> "trimesh.Trimesh":
        """Return the visible surface as a mesh with vertex colours, in metres: x right, y down, z forward.

        No triangle spans a depth discontinuity. The arguments are those of `to_point_cloud`.
        """
        import trimesh

        from .geometry import back_project, surface_triangles

        grid = back_project(self.depth, self.camera, max_vertices, max_jump)
        triangles = surface_triangles(grid)
        used = np.zeros(grid.valid.size, dtype=bool)
        used[triangles] = True
        return trimesh.Trimesh(
            grid.points.reshape(-1, 3)[used],
            (np.cumsum(used) - 1)[triangles],
            vertex_colors=self._colors(grid.stride).reshape(-1, 3)[used],
            process=False,  # keeps the vertices unchanged
        )

    def save(
        self,
        directory: str | Path,
        stem: str | None = None,
        formats: Sequence[str] = FORMATS,
        overwrite: bool = False,
    ) -> dict[str, Path]:
        """Write the prediction, and return the path of each format.

        Args:
            directory: Created if missing.
            stem: Start of the files' names; the image's own name by default.
            formats: `npy` (float32 metres), `png16` (16-bit PNG with its scale in the metadata), `color` (near blue
                to far red, with a scale bar), `ply` (point cloud), `glb` (mesh), `json` (camera, statistics, reply);
                and, only on request, `npz` (float32 metres as `depth`, 3x3 matrix as `K`), `exr` (OpenEXR, float32
                metres in the channel Z), `pfm` (float32 metres), `normals` (8-bit colours: red right, green up, blue
                towards the camera), `spread` (16-bit PNG: value / 10000; needs `refine`).
            overwrite: Replace existing files.

        Raises:
            ValueError: A format is not known, `spread` was not predicted, or the files have no name.
            FileExistsError: A file exists and `overwrite` is false; nothing is written.
            ImportError: `exr` is asked for and the package OpenEXR is not installed; nothing is written.
        """
        stem = stem or (self.source.stem if self.source else None)
        if not stem:
            raise ValueError(
                "This prediction's image did not come from a file: give save() a `stem` to name its files by."
            )
        paths = output_paths(Path(directory), stem, formats)
        if "spread" in paths and self.spread is None:
            raise ValueError("`spread` compares several views of an image: predict it with `refine=2` or more.")
        existing = [str(path) for path in paths.values() if path.exists()]
        if existing and not overwrite:
            raise FileExistsError(
                f"{', '.join(existing)}: already there. Pass overwrite=True or another directory or stem."
            )
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._write(paths)
        return paths

    def _write(self, paths: dict[str, Path]) -> None:
        from . import export
        from .visualize import color_picture

        record = self.record() | {"files": {name: path.name for name, path in paths.items() if name != "json"}}
        writers: dict[str, Callable[[Path], Any]] = {
            "npy": lambda path: export.write_npy(path, self.depth),
            "png16": lambda path: record.update(export.write_png16(path, self.depth, self.depth_type)._asdict()),
            "color": lambda path: export.write_png(path, color_picture(self.depth)),
            "ply": lambda path: export.write_ply(path, self.to_point_cloud()),
            "glb": lambda path: export.write_glb(path, self.to_mesh(), self.image, self.camera),
            "json": lambda path: write_json(path, record),
            "npz": lambda path: export.write_npz(path, self.depth, self.camera),
            "exr": lambda path: export.write_exr(path, self.depth),
            "pfm": lambda path: export.write_pfm(path, self.depth),
            "normals": lambda path: export.write_normals(path, self.normals()),
            "spread": lambda path: export.write_spread(path, self.spread),
        }
        with ThreadPoolExecutor() as threads:
            written = [threads.submit(writers[name], path) for name, path in paths.items() if name != "json"]
        for one in written:
            one.result()
        if "json" in paths:  # last: it describes the other files
            writers["json"](paths["json"])

    def _colors(self, stride: int) -> NDArray[np.uint8]:
        return np.asarray(self.image)[::stride, ::stride]


def depth_summary(depth: NDArray[np.floating]) -> dict[str, float | None]:
    """Return the smallest, median and largest valid depth, under `min`, `median` and `max` (None without any)."""
    values = depth[valid_mask(depth)]
    if not values.size:
        return {"min": None, "median": None, "max": None}
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def output_paths(directory: Path, stem: str, formats: Sequence[str]) -> dict[str, Path]:
    """Return the path of each format's file.

    Raises:
        ValueError: A format is not known, or none is given.
        ImportError: A format needs a package that is not installed.
    """
    unknown = [name for name in formats if name not in SUFFIXES]
    if unknown or not formats:
        raise ValueError(f"Formats to save: got {', '.join(unknown) or 'none'}; choose from {', '.join(SUFFIXES)}.")
    if "exr" in formats:
        from .export import require_exr

        require_exr()
    return {name: directory / f"{stem}{SUFFIXES[name]}" for name in formats}
