"""Known distances for `depthvlm predict`: the options, their files, and the calibration of a prediction by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..calibration import POINTS_NEEDED
from ..inputs import path_of_url
from ..prediction import Prediction
from ..processing.depth_maps_depthvlm import load_array
from ..processing.images_depthvlm import FULL_SIZE_KEY, require_file
from ..result_records import fingerprint

_SUFFIXES = (".csv", ".txt", ".npy")
_EXPECTED = "three columns, x and y in pixels and metres, as .csv, .txt or .npy"
_POSITIONS = (("x", "y"), ("u", "v"), ("col", "row"), ("column", "row"))  # headers of the first two columns


@dataclass(frozen=True, eq=False)
class KnownPoints:
    """Known distances in one image, `(n, 3)` of x, y and metres, and how to use them."""

    points: NDArray[np.float64]
    model: str
    along: str

    @property
    def origin(self) -> dict[str, str]:
        """Values that determine the calibration, for the record of results."""
        points = fingerprint({"points": self.points.tolist()})
        return {"model": self.model, "along": self.along, "points": points}

    def calibrated(self, prediction: Prediction) -> Prediction:
        """Return the prediction calibrated by the points, which are in pixels of the image as given."""
        points = self.points.copy()
        full = prediction.image.info.get(FULL_SIZE_KEY)
        if full is not None:  # a huge image is predicted at a fraction of its size
            points[:, :2] *= max(prediction.depth.shape) / max(full)
        return prediction.calibrate(points, self.model, self.along)


def known_points(
    known: Sequence[str] | None, lidar: Path | None, model: str | None, along: str, images: Sequence[Path | str]
) -> list[KnownPoints | None]:
    """Return the known points of each image from `--known`, `--lidar`, `--calibrate` and `--along`.

    Raises:
        ValueError: The options do not fit together, or to the number of images, or points cannot be read.
    """
    if not known and lidar is None:
        if model is not None or along != "z":
            raise ValueError("--calibrate and --along need known distances: give --known X,Y,METRES or --lidar FILE.")
        return [None] * len(images)
    if known and lidar is not None:
        raise ValueError("--known and --lidar both give known distances: give one of them.")
    model = model or "scale"
    if model not in POINTS_NEEDED or along not in ("z", "ray"):
        raise ValueError(
            f"--calibrate is {', '.join(POINTS_NEEDED)}, got {model!r}; --along is z or ray, got {along!r}."
        )
    if lidar is not None and lidar.is_dir():
        files = [_file_of(lidar, image) for image in images]
        return [KnownPoints(read_known_points(file), model, along) for file in files]
    if len(images) != 1:
        option = "--known" if known else "--lidar with one file"
        raise ValueError(
            f"{option} is for one image, got {len(images)}: positions in one are not those in another. For several, "
            "give --lidar FOLDER with a file for each, named like it."
        )
    points = read_known_points(lidar) if lidar is not None else np.array([_point(text) for text in known or ()])
    if len(points) < POINTS_NEEDED[model]:
        raise ValueError(
            f"--calibrate {model} needs at least {POINTS_NEEDED[model]} known distances, got {len(points)}."
        )
    return [KnownPoints(points, model, along)]


def _point(text: str) -> list[float]:
    try:
        x, y, metres = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--known takes X,Y,METRES such as 412,300,3.2, got {text!r}.") from None
    return [x, y, metres]


def _file_of(folder: Path, image: Path | str) -> Path:
    stem = (image if isinstance(image, Path) else path_of_url(image)).stem
    found = [path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(
            f"{folder} must have one file of known distances for {image}, such as {stem}.csv, and has {names}."
        )
    return found[0]


def read_known_points(path: Path) -> NDArray[np.float64]:
    """Read known distances from a file of three columns: x and y in pixels, and metres.

    `.npy`: an array `(n, 3)`. `.csv` and `.txt`: numbers separated by commas or spaces, after a line of names if it
    begins with x,y (or u,v or column,row).

    Raises:
        ValueError: The file holds something else; the message says what.
    """
    try:
        require_file(path)
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"it is a {path.suffix or 'nameless'} file")
        if path.suffix.lower() == ".npy":
            values = np.asarray(load_array(path), dtype=np.float64)
        else:
            lines = path.read_text(encoding="utf-8-sig").replace(",", " ").replace(";", " ").splitlines()
            rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            values = np.array([[float(number) for number in row] for row in rows[_has_names(rows) :]])
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: no known distances can be read from it ({error}). Expected {_EXPECTED}.") from None
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"{path}: holds an array of shape {values.shape}. Expected {_EXPECTED}.")
    return values


def _has_names(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row holds names; raise ValueError if these are of another order than x, y."""
    try:
        [float(word) for word in rows[0]] if rows else []
    except ValueError:
        names = [word.strip("\"'").lower() for word in rows[0]]
        if len(names) != 3 or tuple(names[:2]) not in _POSITIONS:
            raise ValueError(f"its columns are named {', '.join(rows[0])}") from None
        return True
    return False
