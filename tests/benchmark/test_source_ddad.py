"""DDAD in the DGP format: the sample's numbers, and poses worked out by hand."""

import json

import numpy as np
import pytest
from depthvlm.benchmark.sources.ddad import Ddad
from lidar_reference import check_reference, matrix, reference
from toy_source_files import change, check_frame, frame_of, jpeg, no_index, refuses, spoil, spoils, write_text

SIZE = (40, 30)
SCENE, CALIBRATION = "000000/scene_ab.json", "000000/calibration/cal.json"
IMAGE, CLOUD = "000000/rgb/CAMERA_01/1.jpg", "000000/point_cloud/LIDAR/1.npz"


def pose(quaternion, translation) -> dict:
    rotation = dict(zip(("qw", "qx", "qy", "qz"), map(float, quaternion), strict=True))
    return {"rotation": rotation, "translation": dict(zip("xyz", map(float, translation), strict=True))}


def datum(key, name, **content) -> dict:
    return {"key": key, "id": {"name": name, "timestamp": "2020-01-01T00:00:00.1Z"}, "datum": content, "next_key": ""}


@pytest.fixture
def root(tmp_path):
    """One sample: the lidar stands at (100, 0, 0) and looks along the world's x; the camera has moved on to 103."""
    image = {"filename": "rgb/CAMERA_01/1.jpg", "width": 40, "height": 30, "annotations": {"0": "gone/1.json"}}
    cloud = {"filename": "point_cloud/LIDAR/1.npz", "annotations": {"1": "gone/2.json"}}
    lidar = datum("l", "LIDAR", point_cloud=cloud | {"pose": pose((1, 0, 0, 0), (100, 0, 0))})
    camera = datum("c", "CAMERA_01", image=image | {"pose": pose((0.5, -0.5, 0.5, -0.5), (103, 0, 0))})
    samples = [{"calibration_key": "cal", "datum_keys": ["l", "c"], "id": {"index": "0"}}]
    none = dict.fromkeys(("fx", "fy", "cx", "cy", "skew"), 0.0)
    inner = {"fx": 50.0, "fy": 50.0, "cx": 20.0, "cy": 15.0, "skew": 0.0}
    calibration = {"names": ["LIDAR", "CAMERA_01"], "intrinsics": [none, inner], "extrinsics": []}
    splits = {"scene_splits": {"0": {"filenames": []}, "1": {"filenames": [SCENE]}}}
    write_text(tmp_path / "ddad.json", json.dumps(splits))
    write_text(tmp_path / SCENE, json.dumps({"data": [lidar, camera], "samples": samples}))
    write_text(tmp_path / CALIBRATION, json.dumps(calibration))
    spoil(tmp_path / IMAGE, jpeg(SIZE))
    (tmp_path / CLOUD).parent.mkdir(parents=True)
    np.savez_compressed(tmp_path / CLOUD, data=np.array([[13.0, 1, 0.4, 7], [2, 0, 0, 7]]))
    return tmp_path


def test_poses_of_both_times(root):
    """The files of annotations that the scene names are not needed."""
    source = Ddad(root)
    (ref,) = source.index("test")
    assert (ref.id, ref.scene, ref.camera, ref.order) == ("000000/00000/CAMERA_01", "000000", "CAMERA_01", 0)
    frame = source.read(ref)
    # 13 m before the lidar are 10 m before the camera, 3 m further on: 20 - 50 / 10 and 15 - 20 / 10. The point at
    # 2 m lies behind the camera by now.
    assert np.argwhere(frame.depth).tolist() == [[13, 15]]
    assert frame.depth[13, 15] == 2560
    check_frame(frame, jpeg(SIZE), SIZE, SIZE[::-1], (50, 50, 20.5, 15.5))


NO_POSE = pose((0, 0, 0, 0), (0, 0, 0))


class TestBadFiles:
    @pytest.mark.parametrize("name", [IMAGE, CLOUD, CALIBRATION])
    def test_missing_and_truncated(self, root, name):
        file = (root / name).name
        steps = (name, 0.5, f"{file}: .*truncated"), (name, None, f"{file}: no such file")
        spoils(lambda: frame_of(Ddad(root)), root, *steps)
        np.savez(root / CLOUD, points=np.zeros((3, 4)))  # an archive without points
        if name == CLOUD:
            refuses(Ddad(root), r"1\.npz: truncated, or not what was expected")

    @pytest.mark.parametrize(
        ("file", "edit", "words"),
        [
            (CALIBRATION, lambda one: one["names"].__setitem__(1, "CAMERA_09"), r"cal\.json: .*CAMERA_01"),
            (
                CALIBRATION,
                lambda one: one["intrinsics"][1].update(skew=1.0),
                r"cal\.json: .*CAMERA_01 has a skew of 1\.0",
            ),
            (
                SCENE,
                lambda one: one["data"][1]["datum"]["image"].update(pose=NO_POSE),
                r"1\.jpg, its pose: .*zero norm",
            ),
            (SCENE, lambda one: one["samples"][0].update(datum_keys=["c"]), "its sample has no point cloud"),
        ],
    )
    def test_what_does_not_fit(self, root, file, edit, words):
        change(root / file, edit)
        refuses(Ddad(root), words)


def test_roots_splits_and_scenes(root):
    no_index(r"expected ddad\.json in .*000000, the folder ddad_train_val/", Ddad, root / "000000")
    no_index("there is no folder", Ddad, root / "nowhere")
    no_index("not 'val'", Ddad, root, "val")
    no_index("'train' has no frames", Ddad, root, "train")
    change(root / "ddad.json", lambda one: one["scene_splits"].pop("0"))
    no_index(r"ddad\.json lists no scenes of the train split: it has no '0'", Ddad, root, "train")
    change(root / SCENE, lambda one: one["data"].pop(0))
    no_index(r"scene_ab\.json is not a scene of the DGP format: it has no 'l'", Ddad, root)
    (root / SCENE).write_text('{"data": [')
    no_index(r"scene_ab\.json: not JSON", Ddad, root)
    (root / SCENE).unlink()
    no_index(r"scene_ab\.json: no such file", Ddad, root)


@pytest.mark.real_data
class TestSample:
    @pytest.fixture
    def source(self, shared):
        return Ddad(shared / "data" / "ddad")

    def test_index(self, source, shared):
        train = source.index("train")
        assert len(train) == 27
        assert train == source.index("test")  # the sample lists both scenes in both splits
        assert not list((shared / "data" / "ddad").rglob("bounding_box_*"))

    @pytest.mark.parametrize(
        ("scene", "camera", "focal_length", "count", "least", "median", "largest"),
        [
            ("scene_01", "CAMERA_01", 2167.7, 4819, 5.06, 11.43, 226.1),
            ("scene_01", "CAMERA_05", 1062.4, 10872, 2.59, 20.73, 167.6),
            ("scene_01", "CAMERA_06", 1054.9, 10354, 2.60, 7.15, 159.2),
            ("scene_02", "CAMERA_01", 2181.5, 5157, 5.13, 26.10, 176.0),
        ],
    )
    def test_numbers(self, source, scene, camera, focal_length, count, least, median, largest):
        ref = next(ref for ref in source.index("train") if (ref.scene, ref.camera, ref.order) == (scene, camera, 0))
        frame = source.read(ref)
        to_world, from_world = (
            matrix([one["rotation"][f"q{axis}"] for axis in "wxyz"], [one["translation"][axis] for axis in "xyz"])
            for one in (ref.files["lidar_pose"], ref.files["pose"])
        )
        points = np.load(source.root / ref.files["lidar"])["data"][:, :3]
        assert len(points) == {"scene_01": 40733, "scene_02": 47230}[scene]
        known = reference(points, np.linalg.inv(from_world) @ to_world, frame.intrinsics, (1936, 1216))
        check_reference(frame, known, focal_length, count, least, median, largest)
        assert frame.image_size == (1936, 1216)
        assert frame.image == (source.root / ref.files["image"]).read_bytes()
