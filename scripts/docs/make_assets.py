"""
Renders the two pictures that come with the package, `depthvlm/assets/room.jpg` and `street.jpg`, their camera in EXIF.

    python scripts/docs/make_assets.py
"""

import argparse
import math
from pathlib import Path

from depthvlm.benchmark.synthetic import render_scene
from PIL import ExifTags, Image

ASSETS = Path(__file__).resolve().parents[2] / "depthvlm" / "assets"
SCENES = {"room": 1_000_000_107, "street": 1_000_000_157}  # held-out seeds: nano has not seen them
SENSOR_MM = 36.0, 27.0  # as large as film, so that its pixels may be as large as these
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)


def main() -> None:
    """Write the images."""
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


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
