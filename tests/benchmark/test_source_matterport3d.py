"""Matterport3D's undistorted images in its own layout, with the camera numbers of a real house."""

import numpy as np
import pytest
from depthvlm.benchmark.sources.frames import SourceError
from depthvlm.benchmark.sources.matterport3d import Matterport3D
from toy_source_files import check_frame, frame_of, spoils, write_depth, write_image, write_text

PANORAMA = "03a8325e3b054e3fad7e1e7091f9d283"
POSE = "0.90525 0.275848 0.323155 -2.99825 0.42464 -0.612795 -0.666455 -14.4532 0.0142 0.74053 -0.67187 1.33124 0 0 0 1"
SIZE = (5, 1024)  # as high as real images: their rows are counted from the bottom


def write_house(scans, house: str) -> None:
    lines = ["dataset matterport", "n_images 4", "depth_directory undistorted_depth_images"]
    lines += ["color_directory undistorted_color_images", ""]
    for camera, intrinsics in (
        (0, "1076.45 0 631.116  0 1077.19 509.202  0 0 1"),
        (1, "1076.01 0 635.509  0 1076.38 511.999  0 0 1"),
    ):
        lines.append(f"intrinsics_matrix {intrinsics}")
        for yaw in (0, 1):
            depth, image = f"{PANORAMA}_d{camera}_{yaw}.png", f"{PANORAMA}_i{camera}_{yaw}.jpg"
            lines.append(f"scan {depth} {image} {POSE}")
            write_image(scans / house / "undistorted_color_images" / image, SIZE)
            write_depth(scans / house / "undistorted_depth_images" / depth, [[0, 1, 4000, 40000, 65535]] * 1024)
        lines.append("")
    write_text(scans / house / f"undistorted_camera_parameters/{house}.conf", "\n".join(lines))


@pytest.fixture
def root(tmp_path):
    for house in ("17DRP5sb8fy", "2t7WUuJeko7", "8194nk5LbLH"):
        write_house(tmp_path / "v1/scans", house)
    write_text(tmp_path / "scenes_train.txt", "17DRP5sb8fy\n")
    write_text(tmp_path / "scenes_val.txt", "8194nk5LbLH\n")
    write_text(tmp_path / "scenes_test.txt", "2t7WUuJeko7\n")
    return tmp_path


def test_index(root):
    refs = Matterport3D(root).index("train")
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(ref.id, ref.scene, ref.camera, ref.order) for ref in refs] == [
        (f"17DRP5sb8fy/{PANORAMA}_{c}_{y}", "17DRP5sb8fy", str(c), order) for order, (c, y) in enumerate(places)
    ]
    assert {ref.scene for ref in Matterport3D(root).index("test")} == {"2t7WUuJeko7"}


@pytest.mark.parametrize("folder", ["scans", "."])
def test_where_the_houses_lie(tmp_path, folder):
    write_house(tmp_path / folder, "17DRP5sb8fy")
    write_text(tmp_path / "scenes_train.txt", "17DRP5sb8fy\n")
    assert frame_of(Matterport3D(tmp_path), 0, "train").image_size == SIZE


def test_frames(root):
    """matterport_camera_intrinsics gives the same camera as `1280 1024 1076.45 1077.19 631.116 513.798`, from 0."""
    source = Matterport3D(root)
    frame = frame_of(source, 2, "train")
    image = root / f"v1/scans/17DRP5sb8fy/undistorted_color_images/{PANORAMA}_i1_0.jpg"
    check_frame(frame, image.read_bytes(), SIZE, SIZE[::-1])
    np.testing.assert_array_equal(frame.metres()[5], np.float32([0, 0.00025, 1, 10, 16.38375]))
    assert frame.metres(source.depth_range)[5].tolist() == [0, 0, 1, 10, 0]
    # Rows of the cameras are counted from the bottom.
    assert frame_of(source, 0, "train").intrinsics == pytest.approx((1076.45, 1077.19, 631.616, 514.298))
    assert frame_of(source, 3, "train").intrinsics == pytest.approx((1076.01, 1076.38, 636.009, 511.501))


def test_splits(root):
    spoils(
        lambda: Matterport3D(root).index("test"),
        root,
        ("scenes_test.txt", "zzzzzzzzzzz\n", "none of the 1 scenes .*v1/scans/zzzzzzzzzzz/undistorted_camera_param"),
        ("scenes_test.txt", "", r"scenes_test\.txt is empty"),
        ("scenes_test.txt", None, r"scenes_test\.txt is not in .*tasks/benchmark"),
        error=SourceError,
    )


def test_camera_parameters(root):
    name, unread = "17DRP5sb8fy.conf", r"line \d of .*17DRP5sb8fy\.conf cannot be read"
    spoils(
        lambda: Matterport3D(root).index("train"),
        root / "v1/scans/17DRP5sb8fy/undistorted_camera_parameters",
        (name, "scan a_d0_0.png a_i0_0.jpg 1 0 0 0\n", unread),
        (name, "intrinsics_matrix 1076 0 631 0\n", unread),
        (name, "intrinsics_matrix 1076 0 x 0 1077 509 0 0 1\n", unread),
        (name, "intrinsics_matrix 1076 0 631 0 1077 509 0 0 1\nscan a.png\n", unread),
        (name, "dataset matterport\n", "'train' has no frames"),
        (name, None, r"17DRP5sb8fy\.conf are missing"),
        error=SourceError,
    )


def test_files_of_a_frame(root):
    source = Matterport3D(root)
    ref = source.index("train")[0]
    depth, image = f"undistorted_depth_images/{PANORAMA}_d0_0.png", f"undistorted_color_images/{PANORAMA}_i0_0.jpg"
    spoils(
        lambda: source.read(ref),
        root / "v1/scans/17DRP5sb8fy",
        (depth, 0.5, f"{PANORAMA}_d0_0.png.*truncated"),
        (depth, None, f"{PANORAMA}_d0_0.png: no such file"),
        (image, None, f"{PANORAMA}_i0_0.jpg: no such file"),
    )
