"""Camera files of other tools: told apart by their content, and read as a `Lens` in pixels of the upright picture.

Where a tool puts the centre of the first pixel at (0, 0), as OpenCV does, 0.5 is added to cx and cy. Sources: OpenCV's
FileStorage and `calib3d`, ROS `sensor_msgs/CameraInfo`, librealsense's `doc/projection.md`, Apple's ARKit and
Record3D, COLMAP's output format, nerfstudio's data conventions, the KITTI development kits, ScanNet's readme.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .colmap import COLMAP_LINE, colmap_cameras, colmap_names
from .lens import Lens

_MOST_NAMED = 5  # number of names in a message
_EXPECTED = (
    "Give a 3x3 or 4x4 matrix, or fx, fy, cx, cy in pixels, with or without width and height, as .json, .npy or text; "
    "or the camera file of OpenCV, ROS, RealSense, Record3D, ARKit, COLMAP, nerfstudio, KITTI or ScanNet."
)
SUFFIXES = (".json", ".yaml", ".yml", ".txt", ".csv", ".npy")
_NESTED = ("camera", "intrinsics", "intrinsic", "K", "k", "camera_matrix", "cameraMatrix", "intrinsic_matrix")
_NUMBERS = {"fx": ("fx", "fl_x"), "fy": ("fy", "fl_y"), "cx": ("cx", "ppx"), "cy": ("cy", "ppy")}
_SIZES = (("width", "w", "image_width"), ("height", "h", "image_height"))
_DISTORTION = ("distortion_coefficients", "distortion", "dist_coeffs", "distCoeffs", "coeffs", "D", "d")
_SCALARS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_MODELS = ("distortion_model", "camera_model", "model", "lens")
# The presence of one says that the first pixel's centre is at (0, 0).
_FROM_ZERO = ("camera_matrix", "cameraMatrix", "intrinsic_matrix", "distortion_model", "ppx", "D", "d")
_KNOWN = {*_NESTED, *_DISTORTION, *_MODELS, *sum(_NUMBERS.values(), ()), *sum(_SIZES, ()), "frames", "data"}

# The field's names of lens models, in lower case, and ours.
LENS_NAMES = {
    **dict.fromkeys(("none", "pinhole", "simple_pinhole", "perspective", "0"), "pinhole"),
    **dict.fromkeys(("plumb_bob", "rational_polynomial", "opencv", "full_opencv", "brown_conrady", "4"), "opencv"),
    **dict.fromkeys(("simple_radial", "radial", "radtan"), "opencv"),
    **dict.fromkeys(("modified_brown_conrady", "inverse_brown_conrady", "1", "2"), "opencv"),
    **dict.fromkeys(("equidistant", "fisheye", "opencv_fisheye", "kannala_brandt4", "5"), "fisheye"),
    **dict.fromkeys(("equirectangular", "spherical"), "equirectangular"),
}

Reader: TypeAlias = Callable[[Path | None], Lens]


def read_camera(path: str | Path, image: str | Path | None = None) -> Lens:
    """Read a camera from a file, told by its content.

    These are read: a 3x3 matrix or fx, fy, cx, cy (with width and height or not) as JSON, `.npy` or text, and the JSON
    of `depthvlm predict`; OpenCV's and ROS's YAML; RealSense's intrinsics as JSON or as `rs-enumerate-devices -c`
    prints them; Record3D's metadata and ARKit's matrix, which are column by column; COLMAP's `cameras.txt` or
    `cameras.bin`, or the folder of a model; nerfstudio's `transforms.json`; KITTI's `calib.txt` and
    `calib_cam_to_cam.txt`; ScanNet's 4x4 matrix.

    Args:
        path: The file, or a folder with a COLMAP model.
        image: Path of the picture, for files with several cameras: COLMAP's and nerfstudio's name their pictures,
            and KITTI's folder `image_03` is of the right camera.

    Returns:
        The lens, with the size that its numbers belong to if the file says it.

    Raises:
        ValueError: The file cannot be read, or holds none of these, or several cameras and none for `image`; the
            message says what was found.
    """
    return _reader(Path(path))(None if image is None else Path(image))


def read_cameras(path: Path, images: Sequence[Path]) -> list[Lens]:
    """Return the camera of each image: from one file for all, or one for each.

    Args:
        path: A file for [`read_camera`]; a `.json` file with an object of cameras by image name (`{"a.jpg": [fx, fy,
            cx, cy], ...}`); or a folder with a file for each image, such as `a.json` or `a.txt` for `a.jpg`.
        images: Paths of the images.

    Raises:
        ValueError: A camera cannot be read, or an image has none; the message names it.
    """
    if path.is_dir() and not _is_colmap_model(path):
        files = [[path / f"{image.stem}{suffix}" for suffix in SUFFIXES] for image in images]
        found = [next((file for file in candidates if file.is_file()), None) for candidates in files]
        _require_all(path, images, found, f"a file such as {files[0][0].name}" if files else "")
        return [read_camera(file, image) for file, image in zip(found, images, strict=True) if file is not None]
    by_name = _cameras_by_name(path)
    if by_name is None:
        read = _reader(path)
        return [read(image) for image in images]
    keys = [next((key for key in (str(image), image.name, image.stem) if key in by_name), None) for image in images]
    _require_all(path, images, keys, f'an entry such as "{images[0].name}"' if images else "")
    return [_explained(f"{path}, {key}", partial(_lens_of, by_name[key])) for key in keys if key]


def _is_colmap_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("cameras.txt", "cameras.bin"))


def _require_all(path: Path, images: Sequence[Path], found: Sequence[object], expected: str) -> None:
    missing = [str(image) for image, one in zip(images, found, strict=True) if one is None]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise ValueError(
            f"{path} has no camera for {', '.join(missing[:_MOST_NAMED])}{more}: each image needs one, {expected}."
        )


def _cameras_by_name(path: Path) -> dict[str, object] | None:
    """Return the object of a `.json` file with cameras by image name; None for any other file."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # `read_camera` reports it
        return None
    return None if not isinstance(content, dict) or not content or content.keys() & _KNOWN else content


def _explained(label: str, read: Callable[[], Any]) -> Any:
    """Return what `read` returns, with the file's name in its error."""
    try:
        return read()
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        reason = reason.rstrip(".")
        raise ValueError(f"{label}: no camera can be read from it ({reason}). {_EXPECTED}") from None


def _reader(path: Path) -> Reader:
    """Read a file once, and return the function from an image's path to its camera."""
    reader: Reader = _explained(str(path), partial(_open, path))
    return lambda image: _explained(str(path), partial(reader, image))


def _open(path: Path) -> Reader:
    from .processing.depth_maps_depthvlm import load_array
    from .processing.images_depthvlm import require_file

    if path.is_dir():
        path = next(file for name in ("cameras.bin", "cameras.txt") if (file := path / name).is_file())
    require_file(path)
    content = path.read_bytes()
    if not content.strip():
        raise ValueError("the file is empty")
    if content.startswith(b"\x93NUMPY"):
        array = load_array(content)
        return lambda _: _lens_of(array)
    if path.suffix.lower() == ".npy":
        raise ValueError("it is no array of NumPy")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return _of_names(colmap_cameras(content), colmap_names(path.with_name("images.bin")))
    if text.lstrip().startswith(("{", "[")):
        return partial(_of_object, json.loads(text))
    if COLMAP_LINE.search(text):
        return _of_names(colmap_cameras(text), colmap_names(path.with_name("images.txt")))
    if re.search(r"^P(_rect_0)?\d+:", text, re.MULTILINE):
        return partial(_of_kitti, text)
    if re.search(r"^\s*PPX:", text, re.MULTILINE):
        return lambda _: _of_realsense_text(text)
    if re.search(r"^\s*\w+ *:", text, re.MULTILINE):
        return partial(_of_object, _yaml(text))
    lens = _lens_of([float(number) for number in text.replace(",", " ").split()])
    return lambda _: lens


def _yaml(text: str) -> Any:
    """Return the content of YAML, or of OpenCV's FileStorage, whose first line and type names are not YAML's."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Loader that takes an `!!opencv-matrix` as the mapping it is."""

    Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", lambda loader, node: loader.construct_mapping(node, True))
    try:
        return yaml.load(re.sub(r"\A%YAML:.*\n(---)?", "", text), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from None


def _of_names(cameras: Mapping[Any, Lens], names: Mapping[str, Any] | None) -> Reader:
    """Return the reader of several cameras, with the key of each image's camera by its name."""

    def read(image: Path | None) -> Lens:
        if len(cameras) == 1:
            return next(iter(cameras.values()))
        if names is None or image is None:
            missing = "the name of the image is not given" if names else "there is no images file of COLMAP beside it"
            raise ValueError(f"it holds {len(cameras)} cameras, and {missing}")
        return cameras[_of_image(names, image)]

    return read


def _of_image(values: Mapping[str, Any], image: Path) -> Any:
    """Return the value of the name that ends as the image's path does, in as many parts as possible."""
    best: dict[int, list[Any]] = {}
    for name, value in values.items():
        path = Path(name)
        if image.name == path.name or (not path.suffix and image.stem == path.name):
            parts = zip(reversed(path.parent.parts), reversed(image.absolute().parent.parts), strict=False)
            same = next((count for count, (a, b) in enumerate(parts) if a != b), len(path.parent.parts))
            best.setdefault(same, []).append(value)
    found = best[max(best)] if best else []
    if not found:
        raise ValueError(f"it names {len(values)} pictures, and {image.name} is not among them")
    if any(value != found[0] for value in found):
        raise ValueError(f"it names {len(found)} pictures {image.name} with different cameras")
    return found[0]


def _of_object(content: Any, image: Path | None) -> Lens:
    """Return the lens of a JSON or YAML file, and of one frame of nerfstudio's."""
    frames = content.get("frames") if isinstance(content, Mapping) else None
    if isinstance(frames, list):
        own = {frame["file_path"]: frame for frame in frames if any(key in frame for key in ("fl_x", "camera_model"))}
        if own and image is not None:
            content = {**content, **_of_image(own, image)}
        elif own and "fl_x" not in content:
            raise ValueError(f"it holds a camera for each of {len(own)} pictures, and the image's name is not given")
    return _lens_of(content)


def _of_kitti(text: str, image: Path | None) -> Lens:
    """Return the rectified left colour camera (02), or 03 for a picture in a folder `image_03` or `image_3`."""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    folders = re.findall(r"image_0?([0-3])\b", "/".join(image.absolute().parts[:-1]) if image else "")
    number = folders[-1] if folders else "2"
    name = next((name for name in (f"P_rect_0{number}", f"P{number}") if name in lines), None)
    if name is None:
        raise ValueError(f"it has no P_rect_0{number} or P{number}, the camera of image_0{number}")
    projection = np.array(lines[name].split(), dtype=np.float64)
    if projection.size != 12:
        raise ValueError(f"its {name} has {projection.size} numbers, not the 12 of a 3x4 matrix")
    size = [float(side) for side in lines.get(f"S_rect_0{number}", "").split()]
    return _lens(_focal_and_centre(projection.reshape(3, 4)[:, :3]), size, from_zero=True)


def _of_realsense_text(text: str) -> Lens:
    """Return the camera that `rs-enumerate-devices -c` prints."""
    if (count := len(re.findall(r"^\s*PPX:", text, re.MULTILINE))) > 1:
        raise ValueError(f"it lists the cameras of {count} streams: keep the one of your picture's stream and size")
    fields = {name.lower(): value.strip() for name, value in re.findall(r"^\s*(\w+):(.*)$", text, re.MULTILINE)}
    coefficients = [float(number) for number in fields["coeffs"].split()]
    numbers = {name: float(fields[name]) for name in ("ppx", "ppy", "fx", "fy", "width", "height")}
    return _lens_of({**numbers, "model": fields["distortion"], "coeffs": coefficients})


def _lens_of(content: Any) -> Lens:
    """Return the lens of numbers, or of an object with them under the names that tools use."""
    if not isinstance(content, Mapping):
        array = np.asarray(content, dtype=np.float64).squeeze()
        if array.size in (9, 16):
            return _lens(_focal_and_centre(array), [], from_zero=array.size == 16)
        if array.shape not in ((4,), (6,)):
            raise ValueError(f"it holds an array of shape {array.shape}")
        return _lens(array.tolist()[:4], array.tolist()[4:])
    content = {name: value for name, value in content.items() if value is not None}
    from_zero = any(name in content for name in _FROM_ZERO)
    inner = next((content[name] for name in _NESTED if name in content), None)
    if isinstance(inner, Mapping) and "data" not in inner:
        outer = {name: value for name, value in content.items() if name not in (*_NESTED, "model")}
        return _lens_of({**outer, **inner})
    if isinstance(inner, list) and any(isinstance(one, Mapping) for one in inner):
        raise ValueError(f"it lists {len(inner)} cameras without the names of pictures: give the one of your picture")
    if inner is not None:
        inner = np.asarray(inner["data"] if isinstance(inner, Mapping) else inner, dtype=np.float64).squeeze()
    size = [_first(content, names) for names in _SIZES] if any(n in content for names in _SIZES for n in names) else []
    model, coefficients = _distortion_in(content)
    values: list[float]
    if inner is not None and inner.shape in ((4,), (6,)):
        values = inner.tolist()
    elif inner is not None:
        values = _focal_and_centre(inner)
    elif model == "equirectangular" and "fl_x" not in content and "fx" not in content and len(size) == 2:
        return Lens.panorama(round(size[0]), round(size[1]))
    else:
        values = [_first(content, names) for names in _NUMBERS.values()]
    lens = _lens(values[:4], size or values[4:], coefficients, model, from_zero)
    return _checked_realsense(lens, str(_model_in(content)))


def _lens(
    numbers: Sequence[float],
    size: Sequence[float],
    coefficients: Sequence[float] = (),
    model: str = "pinhole",
    from_zero: bool = False,
) -> Lens:
    from .processing.camera_depthvlm import camera_numbers

    fx, fy, cx, cy, *size = camera_numbers([*numbers, *size])
    half = 0.5 if from_zero else 0.0
    width, height = (round(side) for side in size) if size else (None, None)
    return Lens(fx, fy, cx + half, cy + half, tuple(coefficients), model, width, height)


def _focal_and_centre(values: NDArray[np.float64]) -> list[float]:
    """Return fx, fy, cx, cy of a 3x3 or 4x4 matrix, row by row or, as ARKit and Open3D write it, column by column."""
    from .processing.camera_depthvlm import camera_numbers

    if values.size not in (9, 16):
        raise ValueError(f"it holds an array of shape {values.shape}")
    matrix = values.reshape((3, 3) if values.size == 9 else (4, 4))
    if matrix[-1, :-1].any() and matrix[:-1, -1].any():
        raise ValueError(
            f"the matrix {matrix.tolist()} has numbers both in its last row and in its last column: it is no camera "
            "matrix, row by row or column by column"
        )
    rows = matrix
    if values.size == 16:
        if not np.array_equal(matrix[3], [0, 0, 0, 1]) or matrix[:3, 3].any():
            raise ValueError(f"the 4x4 matrix {matrix.tolist()} holds a translation: it is a pose, not a camera")
        rows = matrix[:3, :3]
        if rows[2, :2].any() and rows[:2, 2].any():
            raise ValueError(f"the 4x4 matrix {matrix.tolist()} holds a rotation: it is a pose, not a camera")
    return camera_numbers(rows.T if rows[2, :2].any() else rows)


def _distortion_in(content: Mapping[str, Any]) -> tuple[str, list[float]]:
    """Return the lens model and its coefficients."""
    named = _model_in(content)
    if named is not None and named not in LENS_NAMES:
        raise ValueError(f"its lens model is {named!r}, which is not read; known are {', '.join(LENS_NAMES)}")
    model = None if named is None else LENS_NAMES[named]
    listed = next((content[name] for name in _DISTORTION if content.get(name) is not None), None)
    if isinstance(listed, Mapping):
        listed = listed["data"]
    if listed is not None:
        values = np.asarray(listed, dtype=np.float64).ravel().tolist()
        if model is None and len(values) == 4 and any(values):
            raise ValueError(
                "its 4 distortion coefficients may be OpenCV's k1, k2, p1, p2 or a fisheye's k1 to k4: add "
                "distortion_model: plumb_bob, or equidistant"
            )
    else:
        given = {name: float(content[name]) for name in _SCALARS if content.get(name) is not None}
        if model == "fisheye":
            values = [given.get(name, 0.0) for name in ("k1", "k2", "k3", "k4")]
        elif given.get("k4") and not {"k5", "k6"} & given.keys():
            raise ValueError(
                f"its k4 = {given['k4']} without k5 and k6 is a fisheye's, and its lens model is {named!r}"
            )
        else:
            values = [given.get(name, 0.0) for name in _SCALARS]
    if model == "fisheye":
        return model, values[:4] if not any(values[4:]) else values  # RealSense writes a fifth, 0
    if not any(values):
        return model or "pinhole", [] if model != "opencv" else [0.0] * 5
    if model == "pinhole":
        raise ValueError(f"its lens model is {named!r}, and its distortion coefficients are {values}")
    count = next((count for count in (4, 5, 8) if not any(values[count:])), len(values))
    return model or "opencv", (values + [0.0] * 8)[: max(count, 4)]


def _model_in(content: Mapping[str, Any]) -> str | None:
    """Return the lens model's name in lower case, without what RealSense puts before it; None without one."""
    if content.get("fisheye_model"):
        return "fisheye"
    named = next((content[name] for name in _MODELS if content.get(name) not in (None, "")), None)
    words = "" if named is None else str(named).lower().rsplit(".", 1)[-1].removeprefix("rs2_distortion_")
    return re.sub(r"[\s-]+", "_", words.strip()) or None


def _checked_realsense(lens: Lens, model: str) -> Lens:
    """Warn of RealSense's variants of Brown and Conrady's model, which are read as OpenCV's."""
    if model in ("modified_brown_conrady", "inverse_brown_conrady", "1", "2") and any(lens.distortion):
        warnings.warn(
            f"The RealSense lens model {model!r} is read as OpenCV's: the tangential part is then applied before the "
            "radial one, not after it, which moves pixels by the product of the two.",
            stacklevel=2,
        )
    return lens


def _first(content: Mapping[str, Any], names: Sequence[str]) -> float:
    return float(content[next((name for name in names if name in content), names[0])])
