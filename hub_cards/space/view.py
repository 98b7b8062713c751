"""The picture of a depth map that shows the distance under the pointer and between two points.

Everything is computed in the visitor's browser from the depth map itself (float32), not from its colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...prediction import Prediction
from ...visualize import colorize, depth_range, scale_bar

MAX_SIDE = 768  # of what the browser gets: at most 2.4 MB of depth; a larger map is sampled, not averaged

_FILES = {"depth": ".f32", "colors": ".jpg", "photo": ".jpg", "scale": ".jpg"}
_SCALE_HEIGHT = 600
_FOLDER = Path(__file__).parent


def depth_view(**kwargs: Any) -> gr.HTML:
    """Return the component; its value is what [`view_of`] returns, or None."""
    return gr.HTML(
        html_template=(_FOLDER / "view.html").read_text(encoding="utf-8"),
        css_template=(_FOLDER / "view.css").read_text(encoding="utf-8"),
        js_on_load=(_FOLDER / "view.js").read_text(encoding="utf-8"),
        **kwargs,
    )


def view_of(prediction: Prediction, folder: Path) -> dict[str, Any]:
    """Write the files that the browser fetches into a folder, and return the value of the view.

    Returns:
        A dictionary with `width` and `height` of the picture in pixels; `columns` and `rows` of the picture that were
        sampled; `camera`: fx, fy, cx, cy in pixels; `scale_width`: the scale's width beside a picture of that many
        columns; and files, as Gradio serves them: `depth`, float32 little-endian metres, row by row, and the pictures
        `colors`, `photo` and `scale`.
    """
    height, width = prediction.depth.shape
    rows, columns = sampled(height, width)
    depth = prediction.depth[np.ix_(rows, columns)].astype("<f4")
    limits = depth_range(depth)
    photo = prediction.image.resize((len(columns), len(rows)), Image.Resampling.BILINEAR)
    enlarged = -(-_SCALE_HEIGHT // len(rows))  # so that its letters are sharp beside a small picture
    scale = scale_bar(len(rows) * enlarged, limits)
    camera = prediction.camera
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}{suffix}" for name, suffix in _FILES.items()}
    paths["depth"].write_bytes(depth.tobytes())
    # JPEG, for a tenth of PNG's time: the metres are read from `depth`, not from colours.
    Image.fromarray(colorize(depth, limits)).save(paths["colors"], quality=92, subsampling=0)
    photo.save(paths["photo"], quality=90)
    scale.save(paths["scale"], quality=92, subsampling=0)
    return {
        "width": width,
        "height": height,
        "columns": columns.tolist(),
        "rows": rows.tolist(),
        "camera": [camera.fx, camera.fy, camera.cx, camera.cy],
        "scale_width": scale.width / enlarged,
        # An address in place of its content: Gradio keeps a session's values, and copies them at each step.
        **{name: {"path": str(path), "meta": {"_type": "gradio.FileData"}} for name, path in paths.items()},
    }


def sampled(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the displayed rows and columns of a map of this size: all, or evenly spaced ones."""
    shrink = max(1.0, max(height, width) / MAX_SIDE)
    count = max(1, round(height / shrink)), max(1, round(width / shrink))
    rows, columns = ((np.arange(n) + 0.5) * (size / n) for n, size in zip(count, (height, width), strict=True))
    return rows.astype(np.intp), columns.astype(np.intp)
