"""
Renders the two pictures that come with the package, `depthvlm/assets/room.jpg` and `street.jpg`, their camera in EXIF.

    python scripts/make_assets.py
"""

from pathlib import Path

from depthvlm.benchmark.synthetic import render_scene
from PIL import ExifTags, Image

ASSETS = Path(__file__).resolve().parents[1] / "depthvlm" / "assets"
SCENES = {"room": 1_000_000_107, "street": 1_000_000_157}  # held-out seeds: nano has not seen them
FOCAL_LENGTH_MM = 4


def main() -> None:
    """Write the images."""
    ASSETS.mkdir(exist_ok=True)
    for kind, seed in SCENES.items():
        scene = render_scene(seed, kind=kind, width=640, height=480)
        exif = Image.Exif()
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        camera[ExifTags.Base.FocalLength] = FOCAL_LENGTH_MM
        per_centimetre = scene.focal_length / FOCAL_LENGTH_MM * 10
        camera[ExifTags.Base.FocalPlaneXResolution] = camera[ExifTags.Base.FocalPlaneYResolution] = per_centimetre
        camera[ExifTags.Base.FocalPlaneResolutionUnit] = 3  # centimetres
        exif[ExifTags.Base.ImageDescription] = f"Synthetic {kind}, seed {seed}"
        Image.fromarray(scene.image).save(ASSETS / f"{kind}.jpg", quality=92, exif=exif)
        print(f"{kind}: seed {seed}, focal length {scene.focal_length:.1f} px")


if __name__ == "__main__":
    main()
