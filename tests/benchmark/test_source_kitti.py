"""KITTI: the official depth layout, lists of other splits, and the object benchmark's lidar."""

import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.sources.kitti import Kitti, split_projection
from lidar_reference import reference
from toy_source_files import check_frame, frame_of, no_index, png, spoil, spoils, write_text
from typer.testing import CliRunner

from depthvlm.cli.app import app

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"
RAW = np.array([[0, 256, 2560], [21000, 0, 1]], np.uint16)


def calibration(fx, fy, cx, cy, shift=(0, 0, 0)) -> str:
    numbers = f"{fx:e} 0.0 {cx:e} {shift[0]:e} 0.0 {fy:e} {cy:e} {shift[1]:e} 0.0 0.0 1.0 {shift[2]:e}"
    return f"calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\nP_rect_02: {numbers}\nP_rect_03: {numbers}\n"


def add_frame(root, folder, number, camera="image_02", depth=RAW, drive=DRIVE) -> None:
    spoil(root / folder / drive / "proj_depth" / "groundtruth" / camera / f"{number}.png", png(depth))
    spoil(root / drive[:10] / drive / camera / "data" / f"{number}.png", png(np.zeros((2, 3, 3), np.uint8)))


@pytest.fixture
def root(tmp_path):
    add_frame(tmp_path, "train", "0000000005")
    add_frame(tmp_path, "train", "0000000005", "image_03")
    add_frame(tmp_path, "val", "0000000069", drive="2011_09_26_drive_0036_sync")
    camera = calibration(707.0493, 707.05, 604.0814, 180.5066, (45, -0.1, 0.005))
    spoil(tmp_path / DATE / "calib_cam_to_cam.txt", camera)
    return tmp_path


class TestLidar:
    """The raw sweeps by the rule of Godard et al.'s `generate_depth_map`, worked out by hand."""

    def test_by_hand(self, tmp_path):
        """
        fx = fy = 10, cx = 5, cy = 3; the lidar's x is the camera's z, -y its x, -z its y; camera 2 is shifted by 1 m
        along x, P[0, 3] = 10. At z = 10 m, x = 0: u = (0 * 10 + 5 * 10 + 10) / 10 = 6, minus 1 is column 5; v = 3 is
        row 2.
        """
        raw, drive = tmp_path / DATE, tmp_path / DATE / DRIVE
        spoil(drive / "image_02/data/0000000005.png", png(np.zeros((6, 10, 3), np.uint8)))
        points = [
            [10, 0, 0, 0],  # column 5, row 2, 10 m
            [20, 0, 0, 0],  # u = 5.5 is rounded to even, 6: the same pixel, farther
            [10, -2, 1, 0],  # u = (2 * 10 + 50 + 10) / 10 = 8, v = 3 - 1: column 7, row 1
            [10, 5, 0, 0],  # u = 1: column 0
            [10, 6, 0, 0],  # u = 0: outside
            [-1, 0, 0, 0],  # behind
        ]
        spoil(drive / "velodyne_points/data/0000000005.bin", np.array(points, "<f4").tobytes())
        spoil(raw / "calib_cam_to_cam.txt", "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: 10 0 5 10 0 10 3 0 0 0 1 0\n")
        spoil(raw / "calib_velo_to_cam.txt", "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n")
        spoil(tmp_path / "eigen.txt", f"{DATE}/{DRIVE} 0000000005 l\n{DATE}/{DRIVE} 0000000006 l\n")
        source = open_source("kitti-lidar", tmp_path, split_files={"test": str(tmp_path / "eigen.txt")})
        with pytest.warns(UserWarning, match=r"1 of the 2 frames in .*eigen\.txt have no sweep"):
            [ref] = source.index("test")
        expected = np.zeros((6, 10))
        expected[2, [5, 0]], expected[1, 7] = 10, 10
        frame = source.read(ref)
        np.testing.assert_array_equal(frame.metres(), expected)
        assert frame.intrinsics == (10, 10, 5.5, 3.5)
        lidar = partial(open_source, "kitti-lidar")
        no_index("the raw data has no official test split: name a list, such as Eigen's", lidar, tmp_path)
        no_index("expected <date>/calib_velo_to_cam.txt", lidar, tmp_path / DATE)


class TestDepthLayout:
    def test_frame(self, root):
        source = Kitti(root)
        refs = source.index("train")
        assert [ref.id for ref in refs] == [f"{DRIVE}/0000000005/image_02", f"{DRIVE}/0000000005/image_03"]
        assert [ref.scene for ref in source.index("test")] == ["2011_09_26_drive_0036_sync"]
        frame = source.read(refs[1])
        check_frame(frame, png(np.zeros((2, 3, 3), np.uint8)), (3, 2), (2, 3), (707.0493, 707.05, 604.5814, 181.0066))
        np.testing.assert_array_equal(frame.depth, RAW)
        np.testing.assert_allclose(frame.metres(), RAW / 256)
        # Metres that count end at 80: 21000 / 256 is 82.
        assert frame.metres(Kitti.depth_range).tolist() == [[0, 1, 10], [0, 0, 0.00390625]]

    def test_wrong_root_and_missing_split(self, root):
        no_index("expected the folder train/ or val/ .*proj_depth/groundtruth/image_02", Kitti, root / DATE)
        for file in root.glob("val/*/*/*/*/*"):
            file.unlink()
        no_index("'test' has no frames", Kitti, root)
        (root / "val").rename(root / "elsewhere")
        no_index(r"the test split needs .*val, with the files <drive>/proj_depth", Kitti, root)

    def test_bad_files(self, root):
        source, camera = Kitti(root), f"{DATE}/calib_cam_to_cam.txt"
        image, depth = f"{DATE}/{DRIVE}/image_02/data/0000000005.png", f"train/{DRIVE}/proj_depth/groundtruth/image_02/"
        depth += "0000000005.png"
        ref, good = source.index("train")[0], {name: (root / name).read_bytes() for name in (image, depth, camera)}
        for name, content, words in (
            (image, None, "0000000005.png: no such file"),
            (image, png(np.zeros((9, 9, 3), np.uint8))[:-20], "truncated"),
            (depth, png(RAW)[:-30], "truncated"),
            (depth, png(RAW.T), "2x3 pixels, its image has 3x2"),
            (depth, png(RAW.astype(np.uint8)), "16 bits"),
            (camera, None, "calib_cam_to_cam.txt: no such file"),
            (camera, "P_rect_00: 1 2 3\n", "calib_cam_to_cam.txt: .*it has no 'P_rect_02'"),
            (camera, "P_rect_02: 1 2 3\n", "calib_cam_to_cam.txt: truncated"),
        ):
            spoils(lambda: source.read(ref), root, (name, content, words))
            (root / name).write_bytes(good[name])


class TestSplitFiles:
    def test_both_forms_of_eigens_list(self, root):
        paths, columns = root / "test.txt", root / "train.txt"
        image = f"{DATE}/{DRIVE}/image_02/data/0000000005.png"
        paths.write_text(f"{image} {DRIVE}/proj_depth/groundtruth/image_02/0000000005.png 721.5377\n")
        columns.write_text(f"{DATE}/2011_09_26_drive_0036_sync 69 l\n\n{DATE}/{DRIVE} 0000000005 r\n")
        source = Kitti(root, split_files={"test": paths, "train": columns})
        assert [ref.id for ref in source.index("test")] == [f"{DRIVE}/0000000005/image_02"]
        other = "2011_09_26_drive_0036_sync/0000000069/image_02"
        assert [ref.id for ref in source.index("train")] == [f"{DRIVE}/0000000005/image_03", other]
        np.testing.assert_array_equal(frame_of(source, 1, "train").depth, RAW)

    def test_frames_without_annotation(self, root):
        lines = [
            f"{DATE}/{DRIVE} 5 l",
            f"{DATE}/{DRIVE} 6 l",
            f"{DATE}/{DRIVE}/image_02/data/0000000007.png None 721.5",
        ]
        write_text(root / "eigen.txt", "\n".join(lines))
        with pytest.warns(UserWarning, match="2 of the 3 frames in .*eigen.txt have no annotated depth"):
            assert len(Kitti(root, {"test": root / "eigen.txt"}).index("test")) == 1

    def test_as_an_option_of_the_command(self, root):
        listed = root / "eigen.txt"
        listed.write_text(f"{DATE}/{DRIVE} 5 l\n")
        arguments = ["bench", "build", "kitti", "--split", "test", "--workers", "1", "--root", str(root)]
        arguments += ["--out", str(root / "out"), "--option"]
        result = CliRunner().invoke(app, [*arguments, "split_files=" + json.dumps({"test": str(listed)})])
        assert result.exit_code == 0, result.output
        built = pq.read_table(next((root / "out").glob("*.parquet")))
        assert built["id"].to_pylist() == [f"{DRIVE}/0000000005/image_02"]
        result = CliRunner().invoke(app, [*arguments, f"split_files={listed}"])
        assert result.exit_code == 1
        assert 'split_files is a file for each split, such as {"test": "eigen.txt"}' in result.output

    def test_lists_that_are_none(self, root):
        listed = root / "eigen.txt"
        no_index(r"the split file .*eigen\.txt is missing", Kitti, root, split_files={"test": listed})
        listed.write_text("000008\n")
        words = r"eigen\.txt names no drive, frame and camera in its line '000008'"
        no_index(words, Kitti, root, split_files={"test": listed})
        no_index("has the splits train, test, not 'val'", Kitti, root, split_files={"val": listed})
        words = "split files were given, but none for the train split"
        no_index(words, Kitti, root, "train", split_files={"test": listed})


class TestObjectLayout:
    @pytest.fixture
    def root(self, tmp_path):
        # The lidar looks along x, 0.25 m before camera 0.
        camera = "P2: 5e+01 0 2e+01 2.5e+01 0 5e+01 1.5e+01 0 0 0 1 2.5e-01\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
        spoil(tmp_path / "training/calib/000008.txt", camera + "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 -0.25\n")
        spoil(tmp_path / "training/image_2/000008.png", png(np.zeros((30, 40, 3), np.uint8)))
        points = np.array([[10, 1, 0, 0.3], [-3, 0, 0, 0]], "<f4")
        spoil(tmp_path / "training/velodyne/000008.bin", points.tobytes())
        return tmp_path

    def test_by_hand(self, root):
        source = Kitti(root)
        (ref,) = source.index("train")
        assert (ref.id, ref.order) == ("object/000008", 8)
        frame = source.read(ref)
        # In camera 0 the point is (-1, 0, 9.75); P2 brings its depth to 10.
        column, row = (-50 + 20 * 9.75 + 25) / 10, 15 * 9.75 / 10
        assert np.argwhere(frame.depth).tolist() == [[round(row), round(column)]] == [[15, 17]]
        assert frame.depth[15, 17] == 2560
        assert frame.intrinsics == (50, 50, 20.5, 15.5)

    def test_splits_and_bad_files(self, root):
        no_index("no official test split: pass `split_files`", Kitti, root)
        (root / "val.txt").write_text("000008\n")
        source = Kitti(root, {"test": root / "val.txt"})
        assert [ref.scene for ref in source.index("test")] == ["000008"]
        calibration = "P2: 1 1 1 0 0 1 1 0 0 0 1 0\n"
        spoils(
            lambda: frame_of(source),
            root / "training",
            ("velodyne/000008.bin", bytes(29), r"000008\.bin: 29 bytes are not whole points of 4 float32"),
            ("velodyne/000008.bin", None, r"000008\.bin: no such file"),
            ("calib/000008.txt", calibration, r"000008\.txt: .*P2 is not a rectified projection"),
        )


def test_shift_of_a_projection(tmp_path):
    matrix = np.array([[50, 0, 20, 25], [0, 100, 15, 10], [0, 0, 1, 0.25]])
    intrinsics, shift = split_projection({"P2": matrix.ravel()}, "P2", tmp_path)
    assert intrinsics == (50, 100, 20, 15)
    # K t = (25, 10, 0.25): t = ((25 - 20 * 0.25) / 50, (10 - 15 * 0.25) / 100, 0.25)
    np.testing.assert_allclose(shift.translation, [0.4, 0.0625, 0.25])


@pytest.mark.real_data
class TestSample:
    @pytest.mark.parametrize(
        ("number", "least", "median", "largest", "valid"),
        [
            ("0000000005", 5.332, 13.844, 84.895, 20),
            ("0000000050", 5.203, 13.438, 83.230, 21),
            ("0000000100", 5.129, 13.242, 80.809, 18),
        ],
    )
    def test_depth_numbers(self, shared, tmp_path, number, least, median, largest, valid):
        demo = shared / "data" / "kitti" / "kitti_demo"
        places = {
            "depth": tmp_path / "val" / DRIVE / "proj_depth" / "groundtruth" / "image_02",
            "rgb": tmp_path / DATE / DRIVE / "image_02" / "data",
        }
        for kind, folder in places.items():
            folder.mkdir(parents=True)
            (folder / f"{number}.png").symlink_to(demo / kind / f"{number}.png")
        spoil(tmp_path / DATE / "calib_cam_to_cam.txt", calibration(707.0493, 707.0493, 604.0814, 180.5066))
        source = Kitti(tmp_path)
        (ref,) = source.index("test")
        frame = source.read(ref)
        metres = frame.metres()
        found = metres[metres > 0]
        assert (found.min(), np.median(found), found.max()) == pytest.approx((least, median, largest), abs=0.0006)
        assert 100 * found.size / metres.size == pytest.approx(valid, abs=0.6)
        assert metres.shape == (375, 1242)
        assert frame.intrinsics == (707.0493, 707.0493, 604.5814, 181.0066)
        assert frame.image == (demo / "rgb" / f"{number}.png").read_bytes()

    def test_object_numbers(self, shared, tmp_path):
        sample = shared / "data" / "kitti" / "000008"
        for folder, name in (("image_2", "000008.png"), ("velodyne", "000008.bin"), ("calib", "000008_calib.txt")):
            (tmp_path / "training" / folder).mkdir(parents=True)
            (tmp_path / "training" / folder / name.replace("_calib", "")).symlink_to(sample / name)
        source = Kitti(tmp_path)
        (ref,) = source.index("train")
        frame = source.read(ref)
        lines = dict(line.split(":") for line in (sample / "000008_calib.txt").read_text().splitlines() if ":" in line)
        p2, rectify, mount = (np.array(lines[key].split(), float) for key in ("P2", "R0_rect", "Tr_velo_to_cam"))
        to_rectified, rotation = np.eye(4), np.eye(4)
        to_rectified[:3], rotation[:3, :3] = mount.reshape(3, 4), rectify.reshape(3, 3)
        inner, full = p2.reshape(3, 4)[:, :3], np.eye(4)
        full[:3] = np.linalg.inv(inner) @ p2.reshape(3, 4)
        points = np.fromfile(sample / "000008.bin", np.float32).reshape(-1, 4)[:, :3]
        known = reference(points, full @ rotation @ to_rectified, frame.intrinsics, (1242, 375))
        assert (known.count, len(points)) == (17238, 17238)
        assert (known.least, known.median, known.largest) == pytest.approx((2.612, 9.966, 76.580), abs=0.0006)
        assert frame.intrinsics == pytest.approx((721.5377, 721.5377, 610.0593, 173.354))
        np.testing.assert_array_equal(frame.depth, known.depth)
