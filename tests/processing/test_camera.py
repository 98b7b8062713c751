"""Cameras: which source wins, what EXIF data say, and the size and the factor that follow (equation 6)."""

import json
import math
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from depthvlm.processing import CAMERA_SOURCES, Camera, resolve_camera, resolve_cameras
from depthvlm.processing.camera_depthvlm import ORIENTATIONS, focal_length_from_exif
from depthvlm.processing.image_processing_depthvlm import canonical_size
from PIL import Image
from toy_images import exif_of

MATRIX = [[700.0, 0.0, 310.0], [0.0, 710.0, 250.0], [0.0, 0.0, 1.0]]


def camera(focal_length: float = 500.0, width: int = 640, height: int = 480) -> Camera:
    return Camera(focal_length, focal_length, width / 2, height / 2, width, height, "focal_length")


def size(focal_length: float, width: int = 640, height: int = 480, least: int = 1024, most: int = 10**7):
    return canonical_size(camera(focal_length, width, height), 1000.0, 32, least, most)


class TestCamera:
    def test_its_matrix_its_field_of_view_its_scaling_and_its_row(self):
        expected = torch.tensor([[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])
        assert torch.equal(camera().intrinsics, expected)
        assert camera(320.0).fov == pytest.approx(90.0)  # horizontal
        assert camera().scaled_to(320, 480) == Camera(250.0, 500.0, 160.0, 240.0, 320, 480, "focal_length")
        for source in CAMERA_SOURCES:
            original = Camera(700.0, 710.0, 310.0, 250.0, 640, 480, source)
            assert Camera.from_row(torch.tensor(original.to_row())) == original

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((0.0, 1.0, 0.0, 0.0, 4, 4, "exif"), "positive focal lengths"),
            ((1.0, math.nan, 0.0, 0.0, 4, 4, "exif"), "finite numbers"),
            ((1.0, 1.0, 0.0, 0.0, 0, 4, "exif"), "at least 1x1"),
            ((1.0, 1.0, 0.0, 0.0, 4, 4, "guess"), "must be one of"),
        ],
    )
    def test_it_refuses_what_is_no_camera(self, values, message):
        with pytest.raises(ValueError, match=message):
            Camera(*values)


class TestPrecedence:
    EXIF = exif_of(FocalLengthIn35mmFilm=28)
    ALL: ClassVar[dict] = {"intrinsics": MATRIX, "focal_length": 600.0, "fov": 90.0, "exif": EXIF}

    def test_each_source_gives_way_to_the_one_before_and_none_of_them_warns(self):
        known = dict(self.ALL)
        expected = {"intrinsics": 700.0, "focal_length": 600.0, "fov": 320.0, "exif": 28 * 800 / math.hypot(36, 24)}
        for source, focal_length in expected.items():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = resolve_camera((480, 640), **known)
            assert (found.source, found.fx) == (source, pytest.approx(focal_length))
            known.pop(source)
        with pytest.warns(UserWarning, match="60 degrees"):
            assert resolve_camera((480, 640)).source == "assumed"

    @pytest.mark.parametrize("given", [MATRIX, np.array(MATRIX), torch.tensor(MATRIX), [700.0, 710.0, 310.0, 250.0]])
    def test_intrinsics_may_be_a_matrix_or_four_numbers(self, given):
        found = resolve_camera((480, 640), intrinsics=given)
        assert (found.fx, found.fy, found.cx, found.cy) == (700.0, 710.0, 310.0, 250.0)

    def test_a_list_gives_one_for_each_image(self):
        sizes = [(480, 640)] * 3
        found = resolve_cameras(sizes, intrinsics=[None, MATRIX, None], focal_length=[500.0, 500.0, None], fov=90)
        assert [one.source for one in found] == ["focal_length", "intrinsics", "fov"]
        for given, expected in (
            ({"focal_length": torch.tensor([1e2, 2e2, 3e2])}, [1e2, 2e2, 3e2]),
            ({"focal_length": [[500.0], [400.0, 300.0]]}, [5e2, 4e2, 3e2]),  # nested as the images of two conversations
            ({"focal_length": 500}, [500.0] * 3),  # one for all
            ({"intrinsics": torch.tensor([MATRIX] * 3)}, [700.0] * 3),
            ({"intrinsics": [[700, 710, 310, 250]] * 3}, [700.0] * 3),
            ({"intrinsics": MATRIX}, [700.0] * 3),
        ):
            assert [one.fx for one in resolve_cameras(sizes, **given)] == expected

    def test_one_warning_for_all_unknown_images(self):
        with pytest.warns(UserWarning, match="is not known") as caught:
            found = resolve_cameras([(480, 640), (480, 640), (640, 480)], focal_length=[None, 500.0, None])
        assert len(caught) == 1
        for words in ("2 of 3 image(s)", "0, 2", "`focal_length` (pixels)", "`fov`", "`intrinsics`", "EXIF"):
            assert words in str(caught[0].message)
        # 60 degrees across 640 pixels, whichever way the camera was held.
        assert found[0].fx == found[2].fx == pytest.approx(320 / math.tan(math.radians(30)))


INTRINSICS = [
    ([*MATRIX[:2], [0, 1, 0]], "last row"),
    ([[0.0, 0, 310], *MATRIX[1:]], "must be positive"),
    ([[-700.0, 0, 310], *MATRIX[1:]], "must be positive"),
    ([[math.nan, 0, 310], *MATRIX[1:]], "must be finite"),
    ([[700.0, 50.0, 310], *MATRIX[1:]], "without skew"),
    ([0.0, 710.0, 310.0, 250.0], "must be positive"),
    *((given, "3x3 matrix or") for given in ([700.0, 710.0, 310.0], 700.0, "camera.txt", [True] * 4)),
    (np.ma.masked_array([700.0] * 4, [True, False, False, False]), "must be finite"),
    ([5e-324, 710.0, 310.0, 250.0], "0.001 to 1e9 pixels"),
    ({"fx": 700.0, "fy": 700.0, "cx": 320.0, "cy": 240.0, "k1": 0.1}, "has the keys"),
    (torch.eye(4), "3x3 matrix or|entries for 1"),
]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            ({name: value}, f"`{name}` must be a finite number above 0")
            for name in ("focal_length", "fov")
            for value in (0, -3.0, math.nan, math.inf, "500", True, np.True_)
        ),
        *(({"fov": radians}, "degrees, and not be in radians") for radians in (1.047, 0.5, 3.14)),
        ({"fov": 180}, "between 0 and 180"),
        *(({"intrinsics": value}, message) for value, message in INTRINSICS),
        ({"focal_length": [90.0] * 3}, r"`focal_length` has 3 entries for 1 image\(s\)"),
        ({"fov": []}, r"`fov` has 0 entries for 1 image\(s\)"),
        ({"intrinsics": [MATRIX] * 2}, r"`intrinsics` has 2 entries for 1 image\(s\)"),
    ],
)
def test_what_is_no_camera_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        resolve_cameras([(480, 640)], **given)


def test_another_unit_or_size_is_noticed():
    with pytest.warns(UserWarning, match="not in millimetres"):
        resolve_camera((3000, 4000), focal_length=35)
    with pytest.warns(UserWarning, match="Scale `intrinsics` if they belong to another size"):
        resolve_camera((480, 640), intrinsics=[1400.0, 1400.0, 960.0, 720.0])


class TestCameraOfAnotherSize:
    SIZED: ClassVar[list[float]] = [300.0, 310.0, 170.0, 110.0, 320, 240]

    def test_it_is_scaled_to_a_picture_of_the_same_shape(self):
        for given in (
            self.SIZED,
            torch.tensor(self.SIZED, dtype=torch.bfloat16),  # whose 8 bits hold these numbers
            dict(zip(("fx", "fy", "cx", "cy", "width", "height"), self.SIZED, strict=True)),
            Camera(*self.SIZED[:4], 320, 240, "intrinsics"),
        ):
            found = resolve_camera((120, 160), intrinsics=given)
            assert (found.fx, found.fy, found.cx, found.cy) == (150.0, 155.0, 85.0, 55.0)
            assert (found.width, found.height, found.source) == (160, 120, "intrinsics")
        # 1280 * 427 / 640 is 854.0, of a picture rounded to 853.
        assert resolve_camera((853, 1280), intrinsics=[500, 500, 320, 213, 640, 427]).fx == 1000.0

    @pytest.mark.parametrize("size", [(160, 160), (320, 240)])
    def test_another_shape_is_refused_with_both_sizes(self, size):
        with pytest.raises(ValueError, match=f"of a picture of 320x240 pixels, and it has {size[1]}x{size[0]}"):
            resolve_camera(size, intrinsics=self.SIZED)

    # The principal point (170, 110) of the stored 320x240 picture, where a viewer sees it: transposed; turned to the
    # right, where its row 110 is 240 - 110 columns from the left; transposed and turned by a half; turned to the left.
    @pytest.mark.parametrize(
        ("orientation", "principal"), [(5, (110, 170)), (6, (130, 170)), (7, (130, 150)), (8, (110, 150))]
    )
    def test_a_calibration_of_the_stored_picture_is_turned_with_it(self, orientation, principal):
        found = resolve_camera((320, 240), exif_of(Orientation=orientation), intrinsics=self.SIZED)
        assert (found.fx, found.fy, found.cx, found.cy) == (310.0, 300.0, *principal)
        # As Pillow turns a pixel: the one whose centre is at (170.5, 110.5).
        stored = np.zeros((240, 320), np.uint8)
        stored[110, 170] = 255
        upright = Image.fromarray(stored).transpose(ORIENTATIONS[orientation])
        row, column = np.argwhere(np.asarray(upright))[0]
        pixel = Camera(300, 310, 170.5, 110.5, 320, 240, "intrinsics").turned(orientation)
        assert (pixel.cx, pixel.cy) == (column + 0.5, row + 0.5)

    def test_intrinsics_of_the_upright_picture_stay_and_those_of_the_stored_are_refused(self):
        exif = exif_of(Orientation=6)
        upright = [310.0, 300.0, 130.0, 170.0]
        assert resolve_camera((320, 240), exif, intrinsics=upright).cy == 170.0
        with pytest.raises(ValueError, match=r"here \[310, 300, 130, 170\], or add the size .* 320, 240\]"):
            resolve_camera((320, 240), exif, intrinsics=[300.0, 310.0, 170.0, 110.0])


class TestExif:
    DIAGONAL = math.hypot(36, 24)  # 43.27 mm

    def test_35_mm_equivalent_by_the_diagonal_rule(self):
        # 26 mm on a 4032x3024 picture, whose diagonal is 5040: 26 * 5040 / 43.27 = 3028.7 pixels.
        found = resolve_camera((3024, 4032), exif_of(FocalLengthIn35mmFilm=26))
        assert found.fx == found.fy == pytest.approx(3028.66, abs=0.01)
        assert (found.source, found.cx, found.cy) == ("exif", 2016.0, 1512.0)

    @pytest.mark.parametrize(("unit", "resolution"), [(None, 5080.0), (2, 5080.0), (3, 2000.0), (4, 200.0), (5, 0.2)])
    def test_focal_length_with_resolution(self, unit, resolution):
        # 200 pixels a millimetre in each unit: inch (the default), centimetre, millimetre, micrometre.
        tags = {"FocalLength": 18.0, "FocalPlaneXResolution": resolution, "FocalPlaneYResolution": resolution / 2}
        if unit is not None:
            tags["FocalPlaneResolutionUnit"] = unit
        found = resolve_camera((3000, 4000), exif_of(**tags))
        assert (found.fx, found.fy) == (pytest.approx(3600), pytest.approx(1800))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_it_turns_with_the_picture(self, orientation):
        tags = {"FocalLength": 18.0, "FocalPlaneXResolution": 200.0, "FocalPlaneYResolution": 100.0}
        resolution = exif_of(Orientation=orientation, FocalPlaneResolutionUnit=4, **tags)
        turned = orientation >= 5
        found = resolve_camera((4000, 3000) if turned else (3000, 4000), resolution)
        assert (found.fx, found.fy) == ((1800, 3600) if turned else (3600, 1800))
        equivalent = exif_of(Orientation=orientation, FocalLengthIn35mmFilm=26)
        found = resolve_camera((4032, 3024) if turned else (3024, 4032), equivalent)
        assert found.fx == pytest.approx(3028.66, abs=0.01)

    def test_a_resolution_belongs_to_the_size_at_which_the_picture_was_taken(self):
        tags = {"FocalLength": 18.0, "FocalPlaneXResolution": 200.0, "FocalPlaneResolutionUnit": 4}
        exif = exif_of(ExifImageWidth=4000, ExifImageHeight=3000, **tags)
        assert resolve_camera((300, 400), exif).fx == pytest.approx(360)

    def test_a_cropped_picture_is_not_trusted_and_a_turned_one_is(self):
        exif = exif_of(ExifImageWidth=4000, ExifImageHeight=3000, FocalLengthIn35mmFilm=26)
        with pytest.warns(UserWarning, match="the picture was cropped"):
            assert resolve_camera((1000, 1000), exif).source == "assumed"
        assert resolve_camera((4000, 3000), exif).source == "exif"

    @pytest.mark.parametrize(
        ("tags", "reason"),
        [
            ({"FocalLengthIn35mmFilm": 65535}, "65535 mm, which no lens has"),
            ({"FocalLengthIn35mmFilm": "wide"}, "FocalLengthIn35mmFilm is 'wide'"),
            ({"FocalLength": 4.2}, "neither its 35 mm equivalent nor a resolution"),
            ({"FocalLength": -1.0}, "FocalLength is -1.0"),
            ({"FocalLength": (1, 2)}, r"FocalLength is \(1, 2\)"),
            ({"FocalLength": 5.0, "FocalPlaneXResolution": 9.0, "FocalPlaneResolutionUnit": 7}, "is 7, not 2"),
            ({"FocalLength": 5.0, "FocalPlaneXResolution": 1e9}, "which no camera has"),
            ({"FocalLength": 5.0, "FocalPlaneXResolution": math.nan}, "FocalPlaneXResolution is nan"),
        ],
    )
    def test_garbage_is_ignored_with_its_reason(self, tags, reason):
        with pytest.warns(UserWarning, match=reason) as caught:
            assert resolve_camera((480, 640), exif_of(**tags)).source == "assumed"
        assert len(caught) == 1

    def test_garbage_beside_a_good_value_is_named(self):
        tags = {"FocalLength": 18.0, "FocalPlaneXResolution": 200.0, "FocalPlaneResolutionUnit": 4}
        with pytest.warns(UserWarning, match="do not tell the focal length for sure: EXIF FocalLengthIn35mm"):
            assert resolve_camera((3000, 4000), exif_of(FocalLengthIn35mmFilm=1, **tags)).source == "exif"

    def test_zero_means_unknown(self):
        assert focal_length_from_exif(exif_of(FocalLengthIn35mmFilm=0, FocalLength=0.0), 640, 480) == (None, None)

    def test_rationals_as_files_hold_them(self, tmp_path):
        path = tmp_path / "photo.jpg"
        exif = exif_of(FocalLength=6.25, FocalPlaneXResolution=3000.5, FocalPlaneResolutionUnit=3)
        Image.new("RGB", (1600, 1200)).save(path, exif=exif)
        with Image.open(path) as image, pytest.warns(UserWarning, match="which nothing else in them confirms"):
            found = resolve_camera((1200, 1600), image.getexif())
        assert found.fx == pytest.approx(6.25 * 300.05)


class TestCanonicalSize:
    @pytest.mark.parametrize(
        ("expected", "focal_length", "options"),
        [
            # Equation 6, rounded once. s = 2: whole cells; s = 1.25: 800x600 -> 600 / 32 = 18.75 -> 19 cells.
            ((960, 1280, 1.0), 500.0, {}),
            ((608, 800, 1.0), 800.0, {}),
            # The budget: s = 2 would be 1.2 million pixels; 307,200 allow s = 1, so f_eff = 500 and metres are halved.
            ((480, 640, 0.5), 500.0, {"most": 640 * 480}),
            ((480, 640, 1.0), 1000.0, {"most": 640 * 480}),
            # 200,000 allow s = 0.8069; with a whole number of cells on one side 0.8, 384x512.
            ((384, 512, pytest.approx(0.4)), 500.0, {"most": 200_000}),
            # The least size: s = 1/4 would be 160x120; 65,536 need s = 0.4619, and 0.5 cuts the width into 10 cells.
            ((256, 320, 2.0), 4000.0, {"least": 65536}),
            # At least one cell.
            ((32, 32 * round(640 / 480), pytest.approx(10.0**6 * 32 / 480)), 10.0**9, {}),
            ((32, 32, 4.0), 1000.0, {"width": 8, "height": 8}),
        ],
    )
    def test_the_size_and_by_how_much_focal_scale_differs(self, expected, focal_length, options):
        assert size(focal_length, **options) == expected

    @pytest.mark.parametrize("most", [65536, 200_000, 3 * 1024 * 1024])
    def test_doubling_the_focal_length_doubles_metres_exactly(self, most):
        generator = np.random.default_rng(0)
        equal = 0
        for _ in range(3000):
            width, height = generator.integers(50, 3000, 2).tolist()
            focal_length = float(np.exp(generator.uniform(math.log(20), math.log(20000))))
            once = size(focal_length, width, height, 1024, most)
            twice = size(2 * focal_length, width, height, 1024, most)
            assert once[0] % 32 == once[1] % 32 == 0
            assert 1024 <= once[0] * once[1] <= most
            if once[:2] == twice[:2]:
                equal += 1
                assert twice[2] == 2 * once[2]
        assert equal > 300

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"width": 4020, "height": 20}, "more than 200 times"),
            ({"width": 2000, "height": 20, "most": 65536}, "Raise `max_pixels`"),
        ],
    )
    def test_shapes_for_which_there_is_no_size(self, options, message):
        with pytest.raises(ValueError, match=message):
            size(1000.0, **options)


@pytest.mark.real_data
class TestRealCameras:
    def test_canonical_sizes_of_the_benchmark(self, shared):
        lines = (shared / "data/scannetpp/examples.jsonl").read_text().splitlines()
        for line in lines:
            row = json.loads(line)
            width, height = row["original_rgb_size"]
            found = resolve_camera((height, width), focal_length=row["original_fx"])
            rows, columns, focal_scale = canonical_size(found, row["canonical_fx"], 32, 65536, 3 * 1024 * 1024)
            # The published size is rounded to pixels; ours, from the unrounded size, to cells of 32.
            exact = [side * row["canonical_fx"] / row["original_fx"] for side in (width, height)]
            assert [round(side) for side in exact] == row["canonical_size"]
            assert [columns, rows] == [32 * round(side / 32) for side in exact]
            assert focal_scale == 1.0

    def test_every_benchmark_camera_fits_the_default_budget(self):
        # Width, height and focal length: nuScenes CAM_BACK, DDAD, Argoverse 2, ETH3D.
        widest = [(1600, 900, 809.2), (1936, 1216, 1054.9), (1550, 2048, 1776), (6048, 4032, 3400)]
        for width, height, focal_length in widest:
            assert canonical_size(camera(focal_length, width, height), 1000.0, 32, 65536, 3 * 1024 * 1024)[2] == 1.0


# Width and height in pixels, focal length in pixels, and the published grid by hand: s = 1000 / f, whole pixels, the
# nearest multiple of 28, then of 32 (a half goes to the even count), for example
# 1440 x 1000 / 1434.29 = 1004 -> 36 x 28 = 1008 = 31.5 x 32 -> 1024, where 1004 itself would be 31 x 32 = 992.
# The twelve examples of the published data.
SCANNETPP = (1434.29, 1432.49, 1425.24, 1429.7, 1429.61, 1426.68, 1428.65, 1428.51, 1423.36, 1427.9, 1429.35, 1431.33)
PUBLISHED_GRIDS = [
    *((1920, 1440, focal_length, 1344, 1024) for focal_length in SCANNETPP),
    (640, 480, 518.8579, 1216, 928),  # NYUv2: 1233 -> 1232 = 38.5 x 32 -> 38; 925 -> 924 = 28.875 x 32 -> 29
    (1920, 1280, 2059.0, 928, 608),  # Waymo: 932 -> 924 -> 29; 622 -> 616 = 19.25 x 32 -> 19
    (1600, 900, 1266.4, 1248, 704),  # nuScenes: 1263 -> 1260 = 39.375 -> 39; 711 -> 700 = 21.875 -> 22
    (1936, 1216, 2181.0, 896, 576),  # DDAD: 888 -> 896 -> 28; 558 -> 560 = 17.5 x 32 -> 18
    (1242, 375, 721.5377, 1696, 544),  # KITTI: 1721 -> 1708 = 53.375 -> 53; 520 -> 532 = 16.625 -> 17
    (2048, 1550, 1776.0, 1152, 864),  # Argoverse 2: 1153 -> 1148 = 35.875 -> 36; 873 -> 868 = 27.125 -> 27
    (730, 530, 529.5, 1376, 1024),  # SUN RGB-D (Kinect v2): 1379 -> 1372 = 42.875 -> 43; 1001 -> 1008 = 31.5 -> 32
    (640, 480, 1100.0, 576, 448),  # a telephoto lens: 582 -> 588 = 18.375 -> 18; 436 -> 448 -> 14
]


@pytest.mark.parametrize(("width", "height", "focal_length", "columns", "rows"), PUBLISHED_GRIDS)
def test_the_published_grid(width, height, focal_length, columns, rows):
    found = canonical_size(camera(focal_length, width, height), 1000.0, 32, 65536, 3 * 1024 * 1024, True)
    assert found == (rows, columns, 1.0)


def test_the_published_grid_is_not_ours():
    """Where the two differ: 7 of the 12 of ScanNet++, NYUv2, DDAD, KITTI and SUN RGB-D."""
    own = [size(focal_length, width, height)[:2] for width, height, focal_length, *_ in PUBLISHED_GRIDS]
    differs = [found != (rows, columns) for found, (*_, columns, rows) in zip(own, PUBLISHED_GRIDS, strict=True)]
    assert sum(differs[:12]) == 7
    assert differs[12:] == [True, False, False, True, True, False, True, False]


def test_the_published_grid_within_the_budget():
    """A size that the budget does not allow is bounded as without it, so metres stay exact."""
    for_both = [
        canonical_size(camera(4000.0, 4000, 3000), 1000.0, 32, 65536, 500_000, rounding) for rounding in (True, False)
    ]
    assert for_both[0] == for_both[1]
    assert for_both[0][2] < 1
