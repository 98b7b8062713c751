"""Colour pictures of depth maps: near is blue, far is red, with a scale in metres."""

from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

DEFAULT_COLORMAP = "turbo"
_INVALID_RGB = (72, 72, 72)
# the dark ends of a colour map look alike in print: use only the part where near is blue and far is red
_COLORMAP_PART = (0.06, 0.95)


class DepthRange(NamedTuple):
    """Depths in metres of the first and the last colour; depths outside take the end colours."""

    near: float
    far: float


def valid_mask(depth: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the mask of valid pixels of a depth map `(H, W)`: finite and positive."""
    return np.isfinite(depth) & (depth > 0)


def depth_range(*depths: NDArray[np.floating], percentiles: tuple[float, float] = (1.0, 99.0)) -> DepthRange:
    """Return the range of colours for depth maps in metres: percentiles of their valid pixels taken together.

    Give several maps (the frames of a video, a prediction and its truth) the same range to make their colours
    comparable. Without a valid pixel the range is 0 to 1 m.
    """
    values = np.concatenate([depth[valid_mask(depth)] for depth in depths])
    if not values.size:
        return DepthRange(0.0, 1.0)
    near, far = np.percentile(values, percentiles)
    return DepthRange(float(near), float(max(far, near + 1e-3)))


def colorize(
    depth: NDArray[np.floating], limits: DepthRange | None = None, colormap: str = DEFAULT_COLORMAP
) -> NDArray[np.uint8]:
    """Return a depth map `(H, W)` in metres in colour, `(H, W, 3)` uint8: near blue, far red, invalid grey.

    `limits` defaults to the map's own `depth_range`; `colormap` is the name of one of matplotlib's.
    """
    near, far = limits or depth_range(depth)
    valid = valid_mask(depth)
    position = (np.where(valid, depth, near) - near) / (far - near)
    # `take` is four times as fast as indexing
    rgb = _lookup_table(colormap).take(np.clip(position * 255, 0, 255).round().astype(np.uint8), axis=0)
    rgb[~valid] = _INVALID_RGB
    return rgb


def color_picture(
    depth: NDArray[np.floating], limits: DepthRange | None = None, colormap: str = DEFAULT_COLORMAP
) -> Image.Image:
    """Return the coloured depth map, pixel for pixel, with a scale bar in metres to its right."""
    limits = limits or depth_range(depth)
    picture = Image.fromarray(colorize(depth, limits, colormap))
    bar = scale_bar(max(picture.height, 96), limits, colormap)
    canvas = Image.new("RGB", (picture.width + bar.width, bar.height), "white")
    canvas.paste(picture, (0, 0))
    canvas.paste(bar, (picture.width, 0))
    return canvas


def scale_bar(height: int, limits: DepthRange, colormap: str = DEFAULT_COLORMAP) -> Image.Image:
    """Draw a vertical scale of this height in pixels, near at the bottom, with ticks at round numbers of metres."""
    near, far = limits
    font = ImageFont.load_default(size=max(10, min(height // 24, 64)))
    em = int(font.getbbox("0")[3])
    locator = MaxNLocator(nbins=max(2, min(8, height // (3 * em))), steps=[1, 2, 2.5, 5, 10])
    ticks = [tick for tick in locator.tick_values(near, far) if near <= tick <= far]
    labels = [f"{tick:.6g} m" for tick in ticks]
    text_width = max((int(font.getlength(label)) for label in labels), default=0)

    top, bottom, left, bar_width, tick_length = em, height - 1 - em, em, em, max(2, em // 3)
    bar = Image.new("RGB", (left + bar_width + 2 * tick_length + text_width + em, height), "white")
    ramp = _lookup_table(colormap)[np.linspace(255, 0, bottom - top + 1).round().astype(np.uint8)]
    bar.paste(Image.fromarray(np.repeat(ramp[:, None], bar_width, axis=1)), (left, top))
    draw = ImageDraw.Draw(bar)
    draw.rectangle((left - 1, top - 1, left + bar_width, bottom + 1), outline="black")
    for tick, label in zip(ticks, labels, strict=True):
        y = round(bottom - (tick - near) / (far - near) * (bottom - top))
        x = left + bar_width
        draw.line((x, y, x + tick_length, y), fill="black", width=max(1, em // 12))
        draw.text((x + 2 * tick_length, y), label, fill="black", font=font, anchor="lm")
    return bar


def _lookup_table(colormap: str) -> NDArray[np.uint8]:
    """Return the colour map as 256 RGB entries, near first."""
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"Unknown colour map {colormap!r}: give the name of one of matplotlib's, such as 'turbo'.")
    return matplotlib.colormaps[colormap](np.linspace(*_COLORMAP_PART, 256), bytes=True)[:, :3]
