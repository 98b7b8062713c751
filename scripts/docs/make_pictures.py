"""
Renders the two pictures that come with the package, their camera in EXIF, or shows what nano makes of them.

    python scripts/docs/make_pictures.py assets    # depthvlm/assets/room.jpg and street.jpg
    python scripts/docs/make_pictures.py demo      # docs/images/demo.png, the README's picture
"""

import math
from pathlib import Path

import typer
from depthvlm.benchmark.synthetic import render_scene
from PIL import ExifTags, Image

import depthvlm
from depthvlm.visualize import color_picture

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "depthvlm" / "assets"
SCENES = {"room": 1_000_000_107, "street": 1_000_000_157}  # held-out seeds: nano has not seen them
SENSOR_MM = 36.0, 27.0  # as large as film, so that its pixels may be as large as these
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
app = typer.Typer(help=__doc__)


@app.command()
def assets() -> None:
    """Render the pictures that come with the package."""
    ASSETS.mkdir(exist_ok=True)
    for kind, seed in SCENES.items():
        scene = render_scene(seed, kind=kind, width=640, height=480)
        exif = Image.Exif()
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        millimetres = scene.focal_length * SENSOR_MM[0] / 640
        camera[ExifTags.Base.FocalLength] = millimetres
        camera[ExifTags.Base.FocalLengthIn35mmFilm] = round(millimetres * FILM_DIAGONAL_MM / math.hypot(*SENSOR_MM))
        per_centimetre = 640 / SENSOR_MM[0] * 10
        camera[ExifTags.Base.FocalPlaneXResolution] = camera[ExifTags.Base.FocalPlaneYResolution] = per_centimetre
        camera[ExifTags.Base.FocalPlaneResolutionUnit] = 3  # centimetres
        exif[ExifTags.Base.ImageDescription] = f"Synthetic {kind}, seed {seed}"
        Image.fromarray(scene.image).save(ASSETS / f"{kind}.jpg", quality=92, exif=exif)
        print(f"{kind}: seed {seed}, focal length {scene.focal_length:.1f} px")


@app.command()
def demo() -> None:
    """Show the pictures beside their depth by nano."""
    rows = [(p.image, color_picture(p.depth)) for p in depthvlm.predict([ASSETS / f"{kind}.jpg" for kind in SCENES])]
    page = Image.new("RGB", (max(a.width + b.width for a, b in rows), sum(a.height for a, _ in rows)), "white")
    top = 0
    for photo, depth in rows:
        page.paste(photo, (0, top))
        page.paste(depth, (photo.width, top))
        top += photo.height
    page = page.resize((page.width * 2 // 3, page.height * 2 // 3), Image.Resampling.LANCZOS)
    page.save(ROOT / "docs" / "images" / "demo.png", optimize=True)


if __name__ == "__main__":
    app()
