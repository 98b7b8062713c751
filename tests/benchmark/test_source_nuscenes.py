"""nuScenes from its tables: the sample's numbers, poses worked out by hand, and the official splits."""

import json

import numpy as np
import pytest
from depthvlm.benchmark.sources.frames import SourceError
from depthvlm.benchmark.sources.nuscenes import MINI_VAL_SCENES, VAL_SCENES, NuScenes, scene_names
from lidar_reference import check_reference, matrix, reference
from toy_source_files import change, check_frame, frame_of, jpeg, no_index, refuses, spoils

SIZE = (32, 24)
UPRIGHT, FORWARD = [1.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.5, -0.5]
CAMERA_MATRIX = [[40.0, 0.0, 16.0], [0.0, 40.0, 12.0], [0.0, 0.0, 1.0]]
SWEEP = "samples/LIDAR_TOP/a__1000.pcd.bin"
IMAGE = "samples/CAM_FRONT/a__900.jpg"


def mount(token, translation, rotation, intrinsic=()) -> dict:
    row = {"token": token, "sensor_token": f"sensor of {token}", "translation": translation, "rotation": rotation}
    return row | {"camera_intrinsic": list(intrinsic)}


def ego(token, translation) -> dict:
    return {"token": token, "timestamp": 0, "rotation": UPRIGHT, "translation": translation}


def data(token, sample, sensor, file, time, key=True) -> dict:
    width, height = SIZE if sensor == "front" else (0, 0)
    row = {"token": token, "sample_token": sample, "ego_pose_token": token, "calibrated_sensor_token": sensor}
    row |= {"timestamp": time, "is_key_frame": key, "width": width, "height": height, "filename": file}
    return row | {"prev": "", "next": ""}


def tables() -> dict[str, list[dict]]:
    """Two scenes; of the first a key frame with camera, lidar and radar, and an image between key frames."""
    sensors = (("front", "CAM_FRONT", "camera"), ("top", "LIDAR_TOP", "lidar"), ("radar", "RADAR_FRONT", "radar"))
    poses = {"d1": 600.0, "d2": 602.0, "d3": 602.0, "d4": 601.0}
    return {
        "scene": [{"token": "s1", "name": "scene-0003"}, {"token": "s2", "name": "scene-0553"}],
        "sample": [
            {"token": "a", "scene_token": "s1", "timestamp": 1000, "prev": "", "next": ""},
            {"token": "b", "scene_token": "s2", "timestamp": 2000, "prev": "", "next": ""},
        ],
        "sensor": [{"token": f"sensor of {name}", "channel": c, "modality": m} for name, c, m in sensors],
        "calibrated_sensor": [
            mount("front", [1.5, 0.0, 1.0], FORWARD, CAMERA_MATRIX),
            mount("top", [0.5, 0.0, 2.0], UPRIGHT),
            mount("radar", [3.0, 0.0, 0.5], UPRIGHT),
        ],
        "sample_data": [
            data("d1", "a", "front", IMAGE, 900),
            data("d2", "a", "top", SWEEP, 1000),
            data("d3", "a", "radar", "samples/RADAR_FRONT/a.pcd", 1000),
            data("d4", "a", "front", "sweeps/CAM_FRONT/a__950.jpg", 950, key=False),
            data("d5", "b", "front", "samples/CAM_FRONT/b.jpg", 2000),
        ],
        "ego_pose": [*(ego(token, [x, 10.0, 0.0]) for token, x in poses.items()), ego("d5", [0.0, 0.0, 0.0])],
    }


def write_tables(root, content, version="v1.0-trainval") -> None:
    (root / version).mkdir(exist_ok=True)
    for name, rows in content.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))


@pytest.fixture
def root(tmp_path):
    write_tables(tmp_path, tables())
    for name, content in (
        (IMAGE, jpeg(SIZE)),
        (SWEEP, np.array([[19, 2, 1, 0.5, 3], [-4, 0, 0, 0.5, 3]], "<f4").tobytes()),
        ("samples/CAM_FRONT/b.jpg", jpeg(SIZE)),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


class TestFrames:
    def test_four_transforms(self, root):
        source = NuScenes(root)
        ref = source.index("test")[0]
        assert (ref.id, ref.scene) == ("scene-0003/1000/CAM_FRONT", "scene-0003")
        assert (ref.camera, ref.order) == ("CAM_FRONT", 900)
        frame = source.read(ref)
        # 19 m before the lidar: at x = 602 + 0.5 + 19 = 621.5, y = 12, z = 3 in the world. The camera stands at 601.5,
        # 10, 1: 20 m ahead, 2 m left, 2 m up, so at 16 - 4 and 12 - 4.
        assert np.argwhere(frame.depth).tolist() == [[8, 12]]
        assert (frame.depth[8, 12], frame.depth_scale) == (20 * 256, 256)
        check_frame(frame, jpeg(SIZE), SIZE, SIZE[::-1], (40, 40, 16.5, 12.5))

    def test_pixels_as_published(self, root):
        """The published extraction rounds u and v down; 12.6 lies in pixel 13 if the first has its centre at 0."""
        for pixels, column in (("nearest", 13), ("floor", 12)):
            source = NuScenes(root, pixels=pixels)
            ref = source.index("test")[0]
            ref.files["intrinsics"][0][2] += 0.6
            assert np.argwhere(source.read(ref).depth).tolist() == [[8, column]]
        no_index("pixels is nearest or floor, got 'round'", NuScenes, root, pixels="round")

    def test_official_splits(self, root):
        # scene-0553 is a val scene of the large version, and a training scene of the small one.
        assert [ref.scene for ref in NuScenes(root).index("test")] == ["scene-0003", "scene-0553"]
        no_index("'train' has no frames", NuScenes, root, "train")
        write_tables(root, tables(), "v1.0-mini")
        assert NuScenes(root).version == "v1.0-trainval"
        mini = NuScenes(root, version="v1.0-mini")
        assert [ref.scene for ref in mini.index("train")] == ["scene-0003", "scene-0553"]
        no_index("'test' has no frames", NuScenes, root, version="v1.0-mini")

    def test_val_scenes(self):
        # nuscenes-devkit, utils/splits.py: 150 names, whose numbers add up to 88948.
        val = scene_names(VAL_SCENES)
        assert len(val) == 150
        assert sum(int(name[-4:]) for name in val) == 88948
        assert {"scene-0003", "scene-0092", "scene-0221", "scene-0916", "scene-1073"} <= val
        assert not {"scene-0001", "scene-0037", "scene-0628", "scene-0918", "scene-0970", "scene-1074"} & val
        assert scene_names(MINI_VAL_SCENES) == {"scene-0103", "scene-0916"} <= val


def test_bad_files(root):
    sweep, image, rows = (root / SWEEP).read_bytes(), (root / IMAGE).read_bytes(), root / "v1.0-trainval"
    refuses(NuScenes(root), "its key frame has no LIDAR_TOP", place=1)
    spoils(
        lambda: frame_of(NuScenes(root)),
        root,
        (SWEEP, sweep[:27], "27 bytes are not whole points of 5 float32"),
        (SWEEP, None, r"a__1000\.pcd\.bin: no such file"),
        (IMAGE, image[:-40], "truncated"),
        (IMAGE, None, r"a__900\.jpg: no such file"),
    )
    (root / IMAGE).write_bytes(image)
    change(rows / "sample_data.json", lambda rows: rows[0].update(width=33))
    refuses(NuScenes(root), r"32x24 pixels, but its row of sample_data\.json says 33x24")
    change(rows / "sample_data.json", lambda rows: rows[0].update(width=32))
    change(rows / "calibrated_sensor.json", lambda rows: rows[0].update(camera_intrinsic=[]))
    refuses(NuScenes(root), "its calibration: truncated, or not what was expected")


def test_roots_and_tables(root):
    no_index(r"expected the folder v1\.0-trainval/ or v1\.0-mini/ in .*samples", NuScenes, root / "samples")
    no_index(r"expected the folder v1\.0-mini/ in", NuScenes, root, version="v1.0-mini")
    spoils(
        lambda: NuScenes(root).index("test"),
        root / "v1.0-trainval",
        ("ego_pose.json", "[]", "do not fit together: there is no 'd1'"),
        ("ego_pose.json", '[{"token": "d1"', r"ego_pose\.json: not JSON"),
        ("ego_pose.json", None, r"ego_pose\.json: no such file"),
        error=SourceError,
    )


@pytest.mark.real_data
class TestSample:
    @pytest.fixture
    def source(self, shared):
        return NuScenes(shared / "data" / "nuscenes")

    def test_index(self, source):
        # Its tables link to nothing before and after: `prev` and `next` are empty.
        assert [ref.camera for ref in source.index("train")] == [
            *("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")
        ]
        with pytest.raises(SourceError, match="'test' has no frames"):
            source.index("test")

    @pytest.mark.parametrize(
        ("camera", "focal_length", "count", "least", "median", "largest"),
        [("CAM_FRONT", 1266.4, 3067, 4.53, 10.36, 98.1), ("CAM_BACK", 809.2, 4826, 3.15, 10.18, 95.1)],
    )
    def test_numbers(self, source, camera, focal_length, count, least, median, largest):
        ref = next(ref for ref in source.index("train") if ref.camera == camera)
        frame = source.read(ref)
        sensor, vehicle = (matrix(*pose) for pose in ref.files["lidar_poses"])
        mounted, later = (matrix(*pose) for pose in ref.files["poses"])
        points = np.fromfile(source.root / ref.files["lidar"], np.float32).reshape(-1, 5)[:, :3]
        assert len(points) == 34688
        to_camera = np.linalg.inv(later @ mounted) @ vehicle @ sensor
        known = reference(points, to_camera, frame.intrinsics, (1600, 900), nearest=1.0)
        check_reference(frame, known, focal_length, count, least, median, largest)
        assert frame.image == (source.root / ref.files["image"]).read_bytes()
