"""ETH3D's training scenes in their own layout, with a tiny camera: distorted images, raw float32 rasters."""

import numpy as np
import pytest
from depthvlm.benchmark.sources.eth3d import ETH3D, TRAINING_SCENES
from depthvlm.benchmark.sources.frames import SourceError
from toy_source_files import check_frame, fails, no_index, spoils, write_image, write_text

# Courtyard's own numbers, for an image of 6 x 4 pixels.
CAMERA = (
    "0 THIN_PRISM_FISHEYE 6 4 3411.42 3410.02 3041.29 2014.07 0.21047 0.21102 -5.4e-06 0.0005 -0.158 0.4 -8e-05 0.0009"
)
POSE = "0.6 0.5 0.4 0.3 -1.1 2.2 3.3"
DEPTH = [[np.inf, 0.005, 0.01, 1.5, 49.5, 50.5], [2.0] * 6, [np.nan, -1.0, 0.0, 3.0, 3.0, 3.0], [4.25] * 6]


def write_scene(root, scene: str, numbers: tuple[int, ...]) -> None:
    folder = root / scene
    header = "# Camera list with one line of data per camera:\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n"
    write_text(folder / "dslr_calibration_jpg/cameras.txt", f"{header}{CAMERA}\n1 PINHOLE 8 4 10 11 4 2\n")
    lines = ["# Image list with two lines of data per image:", "#   POINTS2D[] as (X, Y, POINT3D_ID)"]
    for row, number in enumerate(numbers):
        name = f"dslr_images/DSC_{number:04d}.JPG"
        # Keypoints, of which the first image has ten words and the others none.
        keypoints = " 1 2 -1 3 4 -1 5 6 -1 0" if row == 0 else ""
        lines += [f"{number} {POSE} 0 {name}", keypoints]
        write_image(folder / "images" / name, (6, 4), format="JPEG")
        path = folder / "ground_truth_depth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.array(DEPTH, dtype="<f4").tobytes())
    write_text(folder / "dslr_calibration_jpg/images.txt", "\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    write_scene(tmp_path, "courtyard", (287, 286, 288))
    write_scene(tmp_path, "relief_2", (427,))
    write_scene(tmp_path, "botanical_garden", (1,))  # of the test set: its truth is not public
    return tmp_path


@pytest.fixture
def source(root):
    return ETH3D(root)


@pytest.fixture
def refs(source):
    with pytest.warns(UserWarning, match="11 of the 13 scenes .*delivery_area"):
        return source.index("test")


def test_index(refs):
    courtyard = [(f"courtyard/DSC_0{order}", "courtyard", order) for order in (286, 287, 288)]
    assert [(ref.id, ref.scene, ref.order) for ref in refs] == [*courtyard, ("relief_2/DSC_0427", "relief_2", 427)]


def test_the_thirteen_scenes(tmp_path, recwarn):
    for scene in TRAINING_SCENES:
        write_scene(tmp_path, scene, (1, 2))
    assert len({ref.scene for ref in ETH3D(tmp_path).index("test")}) == 13
    assert not recwarn.list


def test_a_frame(root, source, refs):
    """The first pixel's centre is at 0.5, as in COLMAP."""
    frame = source.read(refs[0])
    image = (root / "courtyard/images/dslr_images/DSC_0286.JPG").read_bytes()
    check_frame(frame, image, (6, 4), (4, 6), pytest.approx((3411.42, 3410.02, 3041.29, 2014.07)))
    expected = [[0, 0.005, 0.01, 1.5, 49.5, 50.5], [2] * 6, [0, 0, 0, 3, 3, 3], [4.25] * 6]
    np.testing.assert_array_equal(frame.depth, np.float32(expected))
    assert frame.depth_scale == 1
    assert frame.metres(source.depth_range)[0].tolist() == [0, 0, np.float32(0.01), 1.5, 49.5, 0]


def test_files_of_a_frame(root, source, refs):
    raster, image = "ground_truth_depth/dslr_images/DSC_0286.JPG", "images/dslr_images/DSC_0286.JPG"
    size = "has 96 bytes, the file has"
    spoils(
        lambda: source.read(refs[0]),
        root / "courtyard",
        (raster, 0.5, f"DSC_0286.JPG: a raster of 6x4 float32 values {size} 48"),
        (raster, bytes(97), f"{size} 97"),
        (raster, None, f"{raster}: no such file"),
    )
    write_image(root / "courtyard" / image, (8, 4), format="JPEG")
    fails(source, refs[0], "8x4 pixels, but its camera says 6x4")
    spoils(
        lambda: source.read(refs[0]),
        root / "courtyard",
        (image, 0.5, "DSC_0286.JPG.*truncated"),
        (image, None, f"{image}: no such file"),
    )


@pytest.mark.filterwarnings("ignore:.*13 scenes")
def test_roots_and_calibration(root, source):
    no_index(r"expected folders like courtyard/dslr_calibration_jpg/ in .*relief_2", ETH3D, root / "relief_2")
    no_index("has the splits test, not 'train'", ETH3D, root, "train")
    spoils(
        lambda: source.index("test"),
        root / "courtyard/dslr_calibration_jpg",
        ("images.txt", f"1 {POSE} 7 dslr_images/DSC_0286.JPG\n\n", r"images\.txt: no known camera in '1 0\.6"),
        ("images.txt", "1 2 3\n\n", r"images\.txt: no known camera in '1 2 3'"),
        ("cameras.txt", "0 PINHOLE 6\n", r"cameras\.txt: not a camera: '0 PINHOLE 6'"),
        ("cameras.txt", None, r"cameras\.txt is missing"),
        error=SourceError,
    )
