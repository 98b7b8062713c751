"""
The picture of docs/architecture.md: the way of an image through the code.

    python scripts/docs/make_architecture.py docs/images/architecture.svg

Boxes are light with dark text and arrows are mid grey, so that it reads on white and on black.
"""

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT, TOP = 960, 460, 50
COLORS = {"input": "#e8e8e8", "processing": "#d5e8f7", "modeling": "#fbe3c4", "head": "#d9efd3", "output": "#ecdcf3"}
INK, ARROW = "#1c1c1c", "#8a8a8a"

RESOLVE = ("processing/", "focal length f", "resize by s = f_c / f", "(once, whole tokens)", "patches, focal_scale")
VIT = ("ViT (Qwen3-VL)", "runs once", "three DeepStack levels", "F1, F2, F3", "and image tokens")
HEAD = ("depth head", "F1..F4 at strides", "4, 8, 16, 32", "fused, Softplus", "x focal_scale")
# Name: (left, top, width, height, color, lines of text; the first is bold).
BOXES: dict[str, tuple[int, int, int, int, str, tuple[str, ...]]] = {
    "image": (10, 60, 130, 60, "input", ("image, EXIF", "H x W")),
    "camera": (10, 150, 130, 60, "input", ("camera, if known", "f, fov or K")),
    "text": (10, 300, 130, 60, "input", ("text", "messages")),
    "resolve": (180, 60, 170, 150, "processing", RESOLVE),
    "tokens": (180, 300, 170, 60, "processing", ("processing/", "chat template, tokens")),
    "vit": (390, 60, 170, 150, "modeling", VIT),
    "llm": (390, 285, 170, 90, "modeling", ("LLM (Qwen3-VL)", "one prefill", "final state: F4")),
    "head": (610, 60, 160, 150, "head", HEAD),
    "words": (610, 285, 160, 90, "modeling", ("LM head", "first token, then", "decoding steps")),
    "depth": (820, 60, 130, 70, "output", ("predicted_depth", "metres, float32")),
    "post": (820, 150, 130, 60, "output", ("post-processing", "H x W, camera")),
    "reply": (820, 300, 130, 60, "output", ("reply", "text")),
}
# From, to, and where on each box: (right, left, top or bottom; share of that side).
ARROWS = (
    ("image", "right", 0.5, "resolve", "left", 0.2),
    ("camera", "right", 0.5, "resolve", "left", 0.8),
    ("text", "right", 0.5, "tokens", "left", 0.5),
    ("resolve", "right", 0.5, "vit", "left", 0.5),
    ("tokens", "right", 0.5, "llm", "left", 0.5),
    ("vit", "right", 0.3, "head", "left", 0.3),
    ("vit", "bottom", 0.5, "llm", "top", 0.5),
    ("llm", "top", 0.85, "head", "bottom", 0.3),
    ("llm", "right", 0.5, "words", "left", 0.5),
    ("head", "right", 0.233, "depth", "left", 0.5),
    ("depth", "bottom", 0.5, "post", "top", 0.5),
    ("words", "right", 0.5, "reply", "left", 0.5),
)
LABELS = (
    (595, 240, "F4"),
    (10, 420, "Training adds: text_loss on the reply + alpha x SILog on predicted_depth (training/)."),
    (10, 444, "processing/ and modeling_depthvlm/ travel to the Hub beside the weights."),
)


def point(box: str, side: str, share: float) -> tuple[float, float]:
    """A point on a side of a box, in pixels."""
    left, top, width, height, *_ = BOXES[box]
    if side in ("left", "right"):
        return left + width * (side == "right"), top + height * share
    return left + width * share, top + height * (side == "bottom")


def draw() -> str:
    """The SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {TOP} {WIDTH} {HEIGHT - TOP}" font-family="sans-serif" '
        'font-size="14" role="img">',
        "<title>The way of an image through the code</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{ARROW}"/></marker></defs>',
    ]
    for start, start_side, start_share, end, end_side, end_share in ARROWS:
        (x0, y0), (x1, y1) = point(start, start_side, start_share), point(end, end_side, end_share)
        bend = f"H{(x0 + x1) / 2:g}V{y1:g}H{x1:g}"
        if start_side != "right":
            bend = f"V{(y0 + y1) / 2:g}H{x1:g}V{y1:g}"
        parts.append(
            f'<path d="M{x0:g} {y0:g}{bend}" fill="none" stroke="{ARROW}" stroke-width="2" marker-end="url(#tip)"/>'
        )
    for left, top, width, height, color, lines in BOXES.values():
        fill = COLORS[color]
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{ARROW}"/>'
        )
        first = top + height / 2 - 10 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            weight = ' font-weight="bold"' if number == 0 else ""
            parts.append(
                f'<text x="{left + width / 2:g}" y="{first + 20 * number:g}" text-anchor="middle" fill="{INK}"{weight}>'
                f"{escape(line)}</text>"
            )
    for x, y, label in LABELS:
        anchor = "start" if y > 400 else "middle"
        parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{ARROW}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the architecture figure.")
    parser.add_argument("output", type=Path, help="the SVG to write: docs/images/architecture.svg in the repository")
    parser.parse_args().output.write_text(draw(), encoding="utf-8")
