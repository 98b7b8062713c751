"""
Makes the README's picture again: the two bundled pictures beside what nano makes of them.

    python scripts/docs/make_pictures.py
"""

import argparse
from pathlib import Path

from PIL import Image

import depthvlm
from depthvlm.visualize import color_picture

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write docs/images/demo.png."""
    pictures = [ROOT / "depthvlm" / "assets" / f"{kind}.jpg" for kind in ("room", "street")]
    rows = [(p.image, color_picture(p.depth)) for p in depthvlm.predict(pictures)]
    width = max(photo.width + depth.width for photo, depth in rows)
    page = Image.new("RGB", (width, sum(photo.height for photo, _ in rows)), "white")
    top = 0
    for photo, depth in rows:
        page.paste(photo, (0, top))
        page.paste(depth, (photo.width, top))
        top += photo.height
    target = ROOT / "docs" / "images" / "demo.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.resize((page.width * 2 // 3, page.height * 2 // 3), Image.Resampling.LANCZOS).save(target, optimize=True)
    print(target.relative_to(ROOT))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
