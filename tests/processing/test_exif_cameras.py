"""EXIF data of real camera families, right and contradictory, against focal lengths worked out from their sensors."""

import math
import struct
import warnings

import pytest
from conftest import REPOSITORY
from depthvlm.processing import resolve_camera
from depthvlm.processing.camera_depthvlm import panorama_reason, read_exif
from PIL import ExifTags, Image, PngImagePlugin
from toy_images import exif_of

Tag = ExifTags.Base
GPANO = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:ProjectionType="equirectangular"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def camera_of(width: int, height: int, exif: Image.Exif):
    """The camera, and the warnings about it as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        camera = resolve_camera((height, width), exif)
    return camera, " ".join(str(warning.message) for warning in caught)


def inches(pixels: int, millimetres: float) -> float:
    return pixels / (millimetres / 25.4)


# Make, model, width, height, tags, focal length in pixels: millimetres / millimetres of the sensor's width * width.
FAMILIES = [
    ("Canon", "Canon EOS 5D Mark III", 5760, 3840, {"FocalLength": 35.0}, 35 / 36 * 5760),
    ("Canon", "Canon EOS-1D Mark IV", 4896, 3264, {"FocalLength": 24.0}, 24 / 27.9 * 4896),
    ("Canon", "Canon EOS 70D", 5472, 3648, {"FocalLength": 18.0}, 18 / 22.5 * 5472),
    ("Canon", "Canon EOS R7", 6960, 4640, {"FocalLength": 18.0}, 18 / 22.3 * 6960),
    ("Canon", "Canon EOS R6m2", 6000, 4000, {"FocalLength": 50.0}, 50 / 35.9 * 6000),
    ("Canon", "Canon PowerShot G7 X Mark II", 5472, 3648, {"FocalLength": 8.8}, 8.8 / 13.2 * 5472),
    ("Canon", "Canon PowerShot S95", 3648, 2736, {"FocalLength": 6.0}, 6 / 7.44 * 3648),
    ("NIKON CORPORATION", "NIKON D90", 4288, 2848, {"FocalLength": 18.0}, 18 / 23.6 * 4288),
    ("NIKON CORPORATION", "NIKON D850", 8256, 5504, {"FocalLength": 85.0}, 85 / 35.9 * 8256),
    ("NIKON CORPORATION", "NIKON Z 6_2", 6048, 4024, {"FocalLength": 24.0}, 24 / 35.9 * 6048),
    ("NIKON CORPORATION", "NIKON Z 50", 5568, 3712, {"FocalLength": 16.0}, 16 / 23.5 * 5568),
    ("SONY", "ILCE-7M3", 6000, 4000, {"FocalLength": 28.0}, 28 / 35.6 * 6000),
    ("SONY", "ILCE-6400", 6000, 4000, {"FocalLength": 16.0}, 16 / 23.5 * 6000),
    ("SONY", "DSC-RX100M3", 5472, 3648, {"FocalLength": 8.8}, 8.8 / 13.2 * 5472),
    ("FUJIFILM", "X-T3", 6240, 4160, {"FocalLength": 23.0}, 23 / 23.5 * 6240),
    ("FUJIFILM", "GFX 50S", 8256, 6192, {"FocalLength": 63.0}, 63 / 43.8 * 8256),
    ("OLYMPUS IMAGING CORP.", "E-M5", 4608, 3456, {"FocalLength": 12.0}, 12 / 17.3 * 4608),
    ("Panasonic", "DC-GH5", 5184, 3888, {"FocalLength": 25.0}, 25 / 17.3 * 5184),
    ("Panasonic", "DC-S1", 6000, 4000, {"FocalLength": 50.0}, 50 / 35.6 * 6000),
    ("RICOH IMAGING COMPANY, LTD.", "PENTAX K-70", 6000, 4000, {"FocalLength": 18.0}, 18 / 23.5 * 6000),
    ("RICOH IMAGING COMPANY, LTD.", "RICOH GR III", 6000, 4000, {"FocalLength": 18.3}, 18.3 / 23.5 * 6000),
    ("LEICA CAMERA AG", "LEICA Q2", 8368, 5584, {"FocalLength": 28.0}, 28 / 36 * 8368),
    ("DJI", "FC6310", 5472, 3648, {"FocalLength": 8.8}, 8.8 / 13.2 * 5472),
    # Pixel pitch 1.4 and 1.22 micrometres.
    ("Apple", "iPhone XS", 4032, 3024, {"FocalLength": 4.25}, 4.25 / 0.0014),
    ("Apple", "iPhone 7", 4032, 3024, {"FocalLength": 3.99}, 3.99 / 0.00122),
    ("Google", "Pixel 3", 4032, 3024, {"FocalLength": 4.44}, 4.44 / 0.0014),
]


@pytest.mark.parametrize(
    ("make", "model", "width", "height", "tags", "expected"), FAMILIES, ids=lambda value: str(value)
)
def test_millimetres_and_a_known_sensor(make, model, width, height, tags, expected):
    camera, said = camera_of(width, height, exif_of(Make=make, Model=model, **tags))
    assert (camera.source, said) == ("exif", "")
    assert camera.fx == camera.fy == pytest.approx(expected, rel=0.015)
    # The same on its side, reduced, and cut to 16:9 and 1:1 in the camera, which keep a whole side of the sensor.
    for size, orientation, focal_length in (
        ((height, width), 6, pytest.approx(expected, rel=0.015)),
        ((width // 4, height // 4), 1, pytest.approx(expected / 4, rel=0.02)),
        ((width, round(width * 9 / 16)), 1, pytest.approx(expected, rel=0.015)),
        ((height, height), 1, pytest.approx(expected, rel=0.03)),
    ):
        assert camera_of(*size, exif_of(Make=make, Model=model, Orientation=orientation, **tags))[0].fx == focal_length


CANON_6D2 = {
    "FocalLength": 50.0,
    "FocalPlaneXResolution": 6673.8,  # says 23.75 mm, and the sensor has 35.9
    "FocalPlaneYResolution": 6720.52,
    "ExifImageWidth": 6240,
    "ExifImageHeight": 4160,
}
CANON_7D = {"FocalLength": 57.0, "FocalPlaneXResolution": 5184000 / 907, "FocalPlaneYResolution": 3456000 / 595}
NEW_SIZE = {"ExifImageWidth": 900, "ExifImageHeight": 600}
FUJI = {"FocalLength": 25.6, "FocalPlaneXResolution": 820, "FocalPlaneResolutionUnit": 3}  # of the raw file's preview
IPHONE = {"Make": "Apple", "Model": "iPhone XS", "FocalLength": 4.25}
DIAGONAL = math.hypot(36, 24)

CONTRADICTIONS = {
    "firmware writes 24 mm for 36": (
        (6240, 4160, {"Make": "Canon", "Model": "Canon EOS 6D Mark II", **CANON_6D2}),
        (50 / 35.9 * 6240, ["13137", "8667"]),
    ),
    "reduced, with the resolution of the original": (
        (900, 600, {"Make": "Canon", "Model": "Canon EOS 7D", **CANON_7D}),
        (57 / 22.3 * 900, ["12826", "2300"]),
    ),
    "reduced, and its new size entered": (
        (900, 600, {"Make": "Canon", "Model": "Canon EOS 7D", **CANON_7D, **NEW_SIZE}),
        (57 / 22.3 * 900, ["12826", "2300"]),
    ),
    "a resolution of the raw file's preview": (
        (4896, 3264, {"FocalLengthIn35mmFilm": 38, **FUJI}),
        (25.6 / 23.6 * 4896, ["2099", "59.7 x 39.8 mm"]),
    ),
    "centimetres said to be inches": (
        (4896, 3264, {"FocalLengthIn35mmFilm": 38, "FocalLength": 25.6, "FocalPlaneXResolution": 2092}),
        (25.6 / 23.6 * 4896, ["sensor of 59.4 x 39.6 mm"]),
    ),
    "an iPhone 8's 640x480 frames say 177 mm": (
        (640, 480, {"Make": "Apple", "Model": "iPhone 8", "FocalLength": 3.99, "FocalLengthIn35mmFilm": 177}),
        (3.99 / 0.00122 * 640 / 4032, ["177", "0.975 mm"]),
    ),
    "a lens that the file names": (
        (6000, 4000, {"FocalLengthIn35mmFilm": 27, "FocalLength": 180.0, "LensSpecification": (18.0, 55.0, 3.5, 5.6)}),
        (18 / 23.5 * 6000, ["180", "18 to 55 mm"]),
    ),
    "a part of the sensor is read out": (
        (5408, 3600, {"Make": "NIKON", "Model": "NIKON D850", "FocalLength": 50.0, "FocalLengthIn35mmFilm": 75}),
        (50 / 23.5 * 5408, ["11262", "7532"]),
    ),
    "a square from a 4:3 sensor": (
        (3024, 3024, {**IPHONE, "FocalLengthIn35mmFilm": 26}),
        (4.25 / 0.0014, ["2570", "3038"]),
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_said_with_both_numbers(name):
    (width, height, tags), (expected, numbers) = CONTRADICTIONS[name]
    camera, said = camera_of(width, height, exif_of(**tags))
    assert camera.fx == pytest.approx(expected, rel=0.04)
    assert camera.source == "exif"
    for number in numbers:
        assert number in said


def test_what_nothing_confirms_is_assumed_or_said():
    for size, tags, found, words in (
        # Pixels of 4.4 micrometres on a sensor 4 mm wide: the file of a larger camera, reduced.
        ((900, 600), CANON_7D, ("assumed", 779), ("12826", "779")),
        ((6240, 4160), CANON_6D2, ("exif", 13137), ("nothing else in them confirms",)),
        ((640, 480), {"FocalLength": 3.99, "FocalLengthIn35mmFilm": 177}, ("assumed", 554), ("177", "554")),
    ):
        camera, said = camera_of(*size, exif_of(**tags))
        assert (camera.source, round(camera.fx)) == found
        assert not [word for word in words if word not in said]


def test_small_picture_mode(tmp_path):
    # 2272 pixels on 7.11 mm, stored as 640x480: the interoperability tags say of which size the resolution is.
    tags = {"FocalLength": 21.0, "ExifImageWidth": 640, "ExifImageHeight": 480}
    exif = exif_of(related=(2272, 1704), FocalPlaneXResolution=inches(2272, 7.11), **tags)
    Image.new("RGB", (640, 480)).save(tmp_path / "small.jpg", exif=exif)
    with Image.open(tmp_path / "small.jpg") as image:
        camera, _ = camera_of(640, 480, read_exif(image))
    assert (camera.source, camera.fx) == ("exif", pytest.approx(21 / 7.11 * 640, rel=1e-3))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        # Phones write the 35 mm equivalent with the zoom, Olympus without it; the sensor tells.
        ({**IPHONE, "FocalLengthIn35mmFilm": 52, "DigitalZoomRatio": 2.0}, 2 * 4.25 / 0.0014),
        ({"Make": "OLYMPUS", "Model": "E-M5", "FocalLength": 25.0, "FocalLengthIn35mmFilm": 50}, 50 / 17.3 * 4032),
        # 390 mm over 15 is a phone's 26 mm; a lens of 4.25 mm has no 390 mm by itself.
        ({"FocalLength": 4.25, "FocalLengthIn35mmFilm": 390, "DigitalZoomRatio": 15.0}, 390 * 5040 / DIAGONAL),
        ({**IPHONE, "DigitalZoomRatio": 2.0}, 2 * 4.25 / 0.0014),
        ({**IPHONE, "FocalLengthIn35mmFilm": 26, "DigitalZoomRatio": 1.0}, 4.25 / 0.0014),
    ],
)
def test_digital_zoom(tags, expected):
    camera, said = camera_of(4032, 3024, exif_of(**{"DigitalZoomRatio": 2.0, **tags}))
    assert (camera.source, said) == ("exif", "")
    assert camera.fx == pytest.approx(expected, rel=0.02)


def test_a_zoom_that_nothing_tells_about_is_said_with_both_numbers():
    camera, said = camera_of(4000, 3000, exif_of(FocalLengthIn35mmFilm=48, DigitalZoomRatio=2.0))
    assert camera.fx == pytest.approx(48 * 5000 / DIAGONAL)
    assert "5547 pixels, or else 11094" in said


def test_orientation_turns_a_resolution_even_if_the_pixels_were_turned():
    # The sensor is 36 x 24 mm; its file was turned upright by software that left the size and the resolution.
    tags = {"FocalLength": 50.0, "FocalPlaneXResolution": inches(6000, 36), "FocalPlaneYResolution": inches(4000, 24)}
    exif = exif_of(ExifImageWidth=6000, ExifImageHeight=4000, **tags)
    assert camera_of(4000, 6000, exif)[0].fx == pytest.approx(50 / 24 * 4000)


@pytest.mark.parametrize("value", [5e-324, 1e308, -1.0, math.inf, math.nan, (1, 2, 3), "wide", b"\0\0", (), None, 0])
@pytest.mark.parametrize(
    "name", ["FocalLength", "FocalLengthIn35mmFilm", "DigitalZoomRatio", "FocalPlaneXResolution", "ExifImageWidth"]
)
def test_no_value_stops_it(name, value):
    tags = {"FocalLength": 18.0, "FocalPlaneXResolution": 200.0, "FocalPlaneResolutionUnit": 4, "ExifImageHeight": 3000}
    camera, said = camera_of(4000, 3000, exif_of(**{**tags, name: value}))
    assert camera.source in ("exif", "assumed")
    assert 5 < camera.fov < 150
    assert said


def test_a_denormal_double_in_a_file(tmp_path):
    block = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 26) + b"\0" * 4
    block += struct.pack("<HHHII", 1, Tag.FocalLength, 12, 1, 44) + b"\0" * 4 + struct.pack("<d", 5e-324)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    with Image.open(tmp_path / "a.jpg") as image:
        camera, said = camera_of(64, 48, read_exif(image))
    assert (camera.source, "5e-324" in said) == ("assumed", True)


class TestPanorama:
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    def test_gpano_is_refused_and_a_given_camera_lets_it_pass(self, tmp_path, suffix):
        path = tmp_path / f"sphere.{suffix}"
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", GPANO.decode())
        given = {"tif": {"tiffinfo": {700: GPANO}}, "png": {"pnginfo": text}}
        Image.new("RGB", (512, 256)).save(path, **given.get(suffix, {"xmp": GPANO}))
        with Image.open(path) as image:
            exif = read_exif(image)
        with pytest.raises(ValueError, match=r"'equirectangular'.*--panorama.*cut it into views.*`fov`"):
            resolve_camera((256, 512), exif)
        assert resolve_camera((256, 512), exif, fov=90).source == "fov"

    def test_two_to_one_from_a_360_degree_camera(self):
        theta = exif_of(Make="RICOH", Model="RICOH THETA Z1", FocalLength=2.6)
        assert "360-degree camera" in panorama_reason(theta, 6720, 3360)
        assert panorama_reason(theta, 1024, 768) is None  # a view cut from it
        assert panorama_reason(exif_of(Make="Canon", Model="Canon EOS R5"), 6720, 3360) is None
        iphone = exif_of(Make="Apple", Model="iPhone 11", CustomRendered=6, FocalLengthIn35mmFilm=26)
        assert "panorama" in panorama_reason(iphone, 10000, 3000)


def test_the_whole_number_of_the_35_mm_equivalent_gives_way_to_what_it_was_rounded_from():
    for name, focal_length in {"room": 571.7657, "street": 454.7818}.items():  # scripts/docs/make_pictures.py
        with Image.open(REPOSITORY / "depthvlm" / "assets" / f"{name}.jpg") as image, warnings.catch_warnings():
            warnings.simplefilter("error")
            camera = resolve_camera((480, 640), read_exif(image))
        assert camera.source == "exif"
        assert camera.fx == pytest.approx(focal_length, rel=1e-6)
