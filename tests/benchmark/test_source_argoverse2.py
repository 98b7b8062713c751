"""Argoverse 2 in its native layout: the sample's numbers, and motion worked out by hand."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from depthvlm.benchmark.sources.argoverse2 import Argoverse2, read_calibration, read_sweep
from lidar_reference import check_reference, matrix, reference
from pyarrow import feather
from toy_source_files import check_frame, frame_of, jpeg, no_index, refuses, spoils

START = 315_966_265_259_836_000
MS = 1_000_000
FORWARD = (0.5, -0.5, 0.5, -0.5)  # a camera that looks along the vehicle's x
LEFT_TURN = (np.sqrt(0.5), 0, 0, np.sqrt(0.5))
SIZE = (64, 48)


def write(file, columns) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), str(file))


def write_poses(log, poses) -> None:
    """Of time: quaternion and translation."""
    quaternions, translations = (np.array(parts, float).T for parts in zip(*poses.values(), strict=True))
    columns = {"timestamp_ns": pa.array(list(poses), pa.int64())}
    columns |= {f"q{axis}": part for axis, part in zip("wxyz", quaternions, strict=True)}
    columns |= {f"t{axis}_m": part for axis, part in zip("xyz", translations, strict=True)}
    write(log / "city_SE3_egovehicle.feather", columns)


def write_sweep(log, time, points) -> None:
    points = np.asarray(points, np.float16)
    columns = {axis: pa.array(points[:, place]) for place, axis in enumerate("xyz")}
    count = len(points)
    columns |= {"intensity": pa.array([9] * count, pa.uint8()), "laser_number": pa.array([3] * count, pa.uint8())}
    write(log / "sensors" / "lidar" / f"{time}.feather", columns | {"offset_ns": pa.array([5] * count, pa.int32())})


def write_calibration(log, translation=(0, 0, 0), k1=0.0) -> None:
    names = ["ring_front_center", "stereo_front_left"]
    mount = {"sensor_name": names}
    mount |= {f"q{axis}": [part] * 2 for axis, part in zip("wxyz", FORWARD, strict=True)}
    mount |= {f"t{axis}_m": [float(part)] * 2 for axis, part in zip("xyz", translation, strict=True)}
    write(log / "calibration" / "egovehicle_SE3_sensor.feather", mount)
    inner = {"sensor_name": names, "fx_px": [60.0] * 2, "fy_px": [60.0] * 2, "cx_px": [32.0] * 2, "cy_px": [24.0] * 2}
    inner |= {"k1": [k1] * 2, "k2": [k1] * 2, "k3": [k1] * 2}
    sizes = {"height_px": pa.array([SIZE[1]] * 2, pa.int64()), "width_px": pa.array([SIZE[0]] * 2, pa.int64())}
    write(log / "calibration" / "intrinsics.feather", inner | sizes)


@pytest.fixture
def log(tmp_path):
    """A log whose vehicle drives 10 m/s along x; one sweep, one image 50 ms later."""
    log = tmp_path / "val" / "log-a"
    write_calibration(log)
    write_poses(log, {START - 200 * MS: ((1, 0, 0, 0), (-2, 0, 0)), START + 400 * MS: ((1, 0, 0, 0), (4, 0, 0))})
    write_sweep(log, START, [[20, 2, 1], [30, 3, 1.5], [-5, 0, 0]])
    add_image(log, START + 50 * MS)
    return log


def add_image(log, time, camera="ring_front_center", data=None) -> None:
    folder = log / "sensors" / "cameras" / camera
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{time}.jpg").write_bytes(jpeg(SIZE) if data is None else data)


def only(source):
    (ref,) = source.index("test")
    return ref


class TestMotion:
    def test_drive(self, log):
        source = Argoverse2(log.parents[1])
        ref = only(source)
        assert (ref.scene, ref.camera) == ("log-a", "ring_front_center")
        assert ref.id == f"log-a/{START + 50 * MS}/ring_front_center"
        frame = source.read(ref)
        # 0.5 m driven: 20 m become 19.5 at column 32 - 60 * 2 / 19.5 = 25.8 and row 24 - 60 / 19.5 = 20.9; 30 m become
        # 29.5 at 25.9, 20.9, behind it in the same pixel.
        assert np.argwhere(frame.depth).tolist() == [[21, 26]]
        assert (frame.depth[21, 26], frame.depth_scale) == (19.5 * 256, 256)
        check_frame(frame, jpeg(SIZE), SIZE, SIZE[::-1], (60, 60, 32.5, 24.5))  # half a pixel more than the file
        write_calibration(log, k1=-0.3)  # images are undistorted
        assert np.argwhere(frame_of(Argoverse2(log.parents[1])).depth).tolist() == [[21, 26]]

    def test_turn(self, log):
        # The vehicle turns left by 90 degrees in 0.1 s on the spot: what was 12 m to its left is 12 m ahead.
        write_poses(log, {START: ((1, 0, 0, 0), (100, 50, 0)), START + 100 * MS: (LEFT_TURN, (100, 50, 0))})
        write_sweep(log, START, [[0, 12, 0], [15, 0, 0]])
        add_image(log, START + 100 * MS)
        write_sweep(log, START + 200 * MS, [[1, 0, 0]])
        depth = frame_of(Argoverse2(log.parents[1]), -1).depth
        assert np.argwhere(depth).tolist() == [[24, 32]]
        assert depth[24, 32] == 12 * 256

    def test_coordinates_of_half_precision(self, log):
        # In float16 130.125 - 0.1 is 130: the map would say 33280.
        write_calibration(log, translation=(0.1, 0, 0))
        write_poses(log, {START: ((1, 0, 0, 0), (0, 0, 0)), START + 50 * MS: ((1, 0, 0, 0), (0, 0, 0))})
        write_sweep(log, START, [[130.125, 0, 0]])
        assert frame_of(Argoverse2(log.parents[1])).depth.max() == round(130.025 * 256) == 33286

    def test_the_sweep_that_was_being_measured(self, log):
        write_sweep(log, START + 100 * MS, [[9, 0, 0]])
        for after in (-20, 75, 99, 100, 130):
            add_image(log, START + after * MS)
        refs = Argoverse2(log.parents[1]).index("test")
        pairs = {(ref.order - START) // MS: (ref.files[1] - START) // MS for ref in refs}
        assert pairs == {-20: 0, 50: 0, 75: 0, 99: 0, 100: 100, 130: 100}


def test_order_and_cameras(log):
    add_image(log, START + 20 * MS, "ring_side_left")
    add_image(log, START + 10 * MS, "stereo_front_left")
    (log / "sensors" / "cameras" / "ring_side_left" / "notes.txt").write_text("no image")
    refs = Argoverse2(log.parents[1]).index("test")
    # Stereo images are monochrome; those of one moment stand together, so that their sweep is read once.
    assert [ref.camera for ref in refs] == ["ring_side_left", "ring_front_center"]
    assert pickle.loads(pickle.dumps(refs)) == refs


def test_roots_and_splits(log, tmp_path):
    no_index("expected the folder train/ or val/ in .*<log>/sensors/cameras", Argoverse2, tmp_path / "val")
    no_index("the train split needs .*train", Argoverse2, tmp_path, "train")
    no_index("has the splits train, test, not 'val'", Argoverse2, tmp_path, "val")
    (tmp_path / "train").mkdir()
    no_index("'train' has no frames", Argoverse2, tmp_path, "train")


@pytest.mark.parametrize(
    "name",
    [
        f"sensors/lidar/{START}.feather",
        "calibration/intrinsics.feather",
        "calibration/egovehicle_SE3_sensor.feather",
        "city_SE3_egovehicle.feather",
    ],
)
def test_truncated_and_missing_tables(log, name):
    file, data = log / name, (log / name).read_bytes()
    file.write_bytes(data[:200])
    refuses(Argoverse2(log.parents[1]), f"{file.name}: truncated, or not what was expected")
    file.unlink()
    refuses(Argoverse2(log.parents[1]), "no lidar sweep" if "lidar" in name else f"{file.name}: no such file")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda log: add_image(log, START + 50 * MS, data=jpeg(SIZE)[:-80]), r"\.jpg: .*truncated"),
        (
            lambda log: add_image(log, START + 50 * MS, data=jpeg((60, 48))),
            r"60x48 pixels, but its calibration/intrinsics.feather says 64x48",
        ),
        (
            lambda log: write(log / "calibration" / "intrinsics.feather", {"sensor_name": ["ring_front_center"]}),
            r"intrinsics.feather: truncated, or not what was expected",
        ),
        (lambda log: add_image(log, START + 60 * MS, "ring_side_left"), "no calibration of ring_side_left"),
        (lambda log: add_image(log, START + 200 * MS), "no lidar sweep in .* was measured at its time"),
        (
            lambda log: write_poses(log, {START + i * MS: ((1, 0, 0, 0), (0, 0, 0)) for i in (0, 40)}),
            rf"city_SE3_egovehicle.feather: .*no pose at {START + 50 * MS}",
        ),
    ],
)
def test_what_does_not_fit(log, spoil, words):
    spoil(log)
    refuses(Argoverse2(log.parents[1]), words, place=-1)


def test_no_image(log):
    source, image = Argoverse2(log.parents[1]), f"sensors/cameras/ring_front_center/{START + 50 * MS}.jpg"
    ref = only(source)
    spoils(lambda: source.read(ref), log, (image, None, r"\.jpg: no such file"))


@pytest.mark.real_data
class TestSample:
    LOG = "7fab2350-7eaf-3b7e-a39d-6937a4c1bede"
    SWEEPS = (315966265259836000, 315966265360032000)

    def test_the_sample_has_no_images(self, shared):
        no_index("'test' has no frames", Argoverse2, shared / "data" / "argoverse2")

    def test_numbers_of_the_sample(self, shared, tmp_path):
        native = shared / "data" / "argoverse2" / "val" / self.LOG
        log = tmp_path / "val" / self.LOG
        (log / "sensors").mkdir(parents=True)
        for name in ("calibration", "city_SE3_egovehicle.feather", "sensors/lidar"):
            (log / name).symlink_to(native / name)
        # At the sweep's own time nothing moves, which is how the numbers of the sample were made.
        add_image(log, self.SWEEPS[0], data=jpeg((1550, 2048)))
        source = Argoverse2(tmp_path)
        frame = source.read(only(source))

        mount = feather.read_table(native / "calibration" / "egovehicle_SE3_sensor.feather").to_pylist()[0]
        rotation, place = [mount[f"q{axis}"] for axis in "wxyz"], [mount[f"t{axis}_m"] for axis in "xyz"]
        to_camera = np.linalg.inv(matrix(rotation, place))
        points = read_sweep(native / "sensors" / "lidar" / f"{self.SWEEPS[0]}.feather")
        assert points.shape == (99229, 3)
        known = reference(points, to_camera, frame.intrinsics, (1550, 2048))
        check_reference(frame, known, 1776.0, 11461, 3.75, 29.19, 208.5)

    def test_every_camera_of_the_sample(self, shared):
        cameras = read_calibration(shared / "data" / "argoverse2" / "val" / self.LOG / "calibration")
        assert len(cameras) == 9
        assert {(camera.width, camera.height) for camera, _ in cameras.values()} == {(1550, 2048), (2048, 1550)}
