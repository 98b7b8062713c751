"""Cameras of a COLMAP model, text or binary, as https://colmap.github.io/format.html describes them."""

import re
import struct
from pathlib import Path

from .lens import Lens

# A camera's line: its number, model, width, height and parameters.
COLMAP_LINE = re.compile(r"^\s*(\d+)\s+([A-Z][A-Z_]+)\s+(\d+)\s+(\d+)\s+(\S.*)$", re.MULTILINE)

# COLMAP's numbers of its models, and how many parameters each has.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
_ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_UNREAD = ("FOV", "THIN_PRISM_FISHEYE")
_MOST_CAMERAS = 10**6


def colmap_cameras(content: str | bytes) -> dict[int, Lens]:
    """Return the cameras of `cameras.txt` or `cameras.bin` by their numbers; pixel centres are at half integers.

    Raises:
        ValueError: The content is not COLMAP's, or a model is not one of OpenCV's or simpler.
    """
    cameras = {}
    rows = _text_rows(content) if isinstance(content, str) else _binary_rows(content)
    for number, model, width, height, parameters in rows:
        counts = dict(_MODELS.values())
        if model not in counts or model in _UNREAD:
            known = ", ".join(name for name in counts if name not in _UNREAD)
            raise ValueError(f"the model of its camera {number} is {model}, which is not read; known are {known}")
        if len(parameters) != counts[model]:
            raise ValueError(f"its camera {number} has {len(parameters)} parameters; {model} has {counts[model]}")
        if model in _ONE_FOCAL_LENGTH:
            parameters = parameters[:1] + parameters
        fx, fy, cx, cy, *coefficients = parameters
        lens = "fisheye" if "FISHEYE" in model else "opencv" if coefficients else "pinhole"
        least = 0 if lens == "pinhole" else 4
        padded = (*coefficients, *(0.0,) * max(0, least - len(coefficients)))
        cameras[number] = Lens(fx, fy, cx, cy, padded, lens, width, height)
    return cameras


def colmap_names(path: Path) -> dict[str, int] | None:
    """Return the number of each image's camera by its name, from `images.txt` or `images.bin`; None without it."""
    if not path.is_file():
        return None
    if path.suffix == ".txt":
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        # Every second line lists the image's points, and may be empty.
        fields = [line.split(maxsplit=9) for line in lines[::2] if line.strip()]
        return {name: int(camera) for *_, camera, name in fields}
    content, names, at = path.read_bytes(), {}, 8
    for _ in range(struct.unpack_from("<Q", content)[0]):
        camera = struct.unpack_from("<I", content, at + 60)[0]  # after the number, 4 of the rotation, 3 of the place
        end = content.index(b"\0", at + 64)
        names[content[at + 64 : end].decode("utf-8")] = camera
        at = end + 9 + 24 * struct.unpack_from("<Q", content, end + 1)[0]  # x, y and the point's number
    return names


def _text_rows(content: str) -> list[tuple[int, str, int, int, list[float]]]:
    return [
        (int(number), model, int(width), int(height), [float(one) for one in parameters.split()])
        for number, model, width, height, parameters in COLMAP_LINE.findall(content)
    ]


def _binary_rows(content: bytes) -> list[tuple[int, str, int, int, list[float]]]:
    rows = []
    try:
        (count,), at = struct.unpack_from("<Q", content), 8
        if not 0 < count < _MOST_CAMERAS:
            raise ValueError
        for _ in range(count):
            number, model, width, height = struct.unpack_from("<IiQQ", content, at)
            name, size = _MODELS[model]
            rows.append((number, name, width, height, list(struct.unpack_from(f"<{size}d", content, at + 24))))
            at += 24 + 8 * size
        if at != len(content):
            raise ValueError
    except (struct.error, KeyError, ValueError):
        raise ValueError("it is neither text, nor an array of NumPy, nor COLMAP's cameras.bin") from None
    return rows
