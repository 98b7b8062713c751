"""What the command line is given: which images, what to call their results, which camera."""

import glob
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The image files meant by files, folders and patterns, in that order, each once.

    A folder means the images directly in it, as their suffixes say; a pattern is expanded here where the shell has
    not done so (`**` reaches into folders). A file that is not there stays in the list: reading it will say so.

    Raises:
        ValueError: a folder or a pattern without any image.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.is_file() and _is_image_name(file)]
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
        if not files:
            raise ValueError(
                f"{argument}: no images there. Give image files, folders that hold some, or patterns like 'a/*.jpg'."
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def result_stems(paths: Sequence[Path]) -> list[str]:
    """What the results of each image are called: its name without suffix, or a longer one where names are alike.

    `a/x.png` and `b/x.png` give `a_x` and `b_x`; `x.png` and `x.jpg` give `x_png` and `x_jpg`. Letter case does not
    count, as it does not on the disks of Windows and macOS.
    """
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(path.stem.casefold(), []).append(index)
    stems = [path.stem for path in paths]
    taken: set[str] = set()
    for group in groups.values():
        for naming in ("{stem}", "{folder}_{stem}", "{stem}_{suffix}", "{folder}_{stem}_{suffix}"):
            names = [_fill(naming, paths[index]) for index in group]
            if len({name.casefold() for name in names}) == len(names):
                break
        for index, name in zip(group, names, strict=True):
            number = 2
            stems[index] = name
            while stems[index].casefold() in taken:
                stems[index] = f"{name}_{number}"
                number += 1
            taken.add(stems[index].casefold())
    return stems


def _fill(naming: str, path: Path) -> str:
    return naming.format(stem=path.stem, suffix=path.suffix.lstrip("."), folder=path.resolve().parent.name)


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """A camera from a file, in pixels: a 3x3 matrix, or `(4,)` for fx, fy, cx, cy.

    `.json`: a matrix, four or nine numbers, or an object with them under `intrinsics`, `K` or `camera`, or with `fx`,
    `fy`, `cx` and `cy` (the JSON of `depthvlm predict` is one). `.npy`: an array. Anything else: a text file of
    numbers.

    Raises:
        ValueError: the file cannot be read as one of these.
    """
    from .processing.depth_maps_depthvlm import load_array
    from .processing.images_depthvlm import require_file

    try:
        require_file(path)
        if path.suffix.lower() == ".npy":
            values = load_array(path)
        elif path.suffix.lower() == ".json":
            values = _camera_in(json.loads(path.read_text(encoding="utf-8")))
        else:
            values = [float(number) for number in path.read_text(encoding="utf-8").replace(",", " ").split()]
        values = np.asarray(values, dtype=np.float64).squeeze()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: no camera can be read from it ({type(error).__name__}: {error}). {_CAMERA_FILE}"
        ) from None
    if values.size == 9:
        values = values.reshape(3, 3)
    if values.shape not in ((3, 3), (4,)):
        raise ValueError(f"{path}: holds an array of shape {values.shape}. {_CAMERA_FILE}")
    return values


_CAMERA_FILE = "Give a 3x3 matrix or fx, fy, cx, cy in pixels, as .json, .npy or text."


def _camera_in(content: object) -> object:
    if isinstance(content, dict):
        for name in ("camera", "intrinsics", "K"):
            if name in content:
                return _camera_in(content[name])
        return [content[name] for name in ("fx", "fy", "cx", "cy")]
    return content


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions()
