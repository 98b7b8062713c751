"""Labels beside points of a picture: whole, and apart from each other where there is room."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

GAP = 7
"""Pixels between a point and its label."""
_OUTLINE = 2
_FONT_SIZE = 12


def label_corners(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[tuple[float, float]]:
    """Where labels go: to the right of their points, and where that is outside or taken to the left, below or above.

    Args:
        points: column and row of each point.
        sizes: width and height of each label.
        picture: width and height.

    Returns:
        Left and top of each label, inside the picture where it fits at all. Where no side is free, labels overlap.
    """
    taken: list[tuple[float, float, float, float]] = []
    corners = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        beside = [(x + GAP, y - height / 2), (x - GAP - width, y - height / 2)]
        around = [(x - width / 2, y + GAP), (x - width / 2, y - GAP - height)]
        diagonal = [(left, y + down) for left, _ in beside for down in (GAP, -GAP - height)]
        boxes = []
        for left, top in (*beside, *around, *diagonal):
            # A little outside is moved in; it may then touch its own point, but can be read.
            left_in = min(max(left, 0.0), max(picture[0] - width, 0.0))
            top_in = min(max(top, 0.0), max(picture[1] - height, 0.0))
            moved = abs(left_in - left) + abs(top_in - top)
            boxes.append((moved > height / 2, (left_in, top_in, left_in + width, top_in + height)))
        free = [box for far, box in boxes if not far and not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else next((box for far, box in boxes if not far), boxes[0][1])
        taken.append(chosen)
        corners.append((chosen[0], chosen[1]))
    return corners


def draw_labels(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], texts: Sequence[str], picture: tuple[int, int]
) -> None:
    """White, outlined in black, beside `points` (column and row) of a picture of this width and height."""
    font = ImageFont.load_default(_FONT_SIZE)
    boxes = [draw.textbbox((0, 0), text, font, stroke_width=_OUTLINE) for text in texts]
    sizes = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    for (x, y), text, (left, top, _, _) in zip(label_corners(points, sizes, picture), texts, boxes, strict=True):
        draw.text((x - left, y - top), text, "white", font, stroke_width=_OUTLINE, stroke_fill="black")


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
