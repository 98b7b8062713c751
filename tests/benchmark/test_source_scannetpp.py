"""ScanNet++ in the layout that its toolkit extracts, of real frames and of made ones."""

import json

import numpy as np
import pytest
from depthvlm.benchmark.sources.scannetpp import ScanNetPP
from toy_source_files import check_frame, frame_of, link, no_index, spoils, spread, write_depth, write_image, write_text


def write_cameras(iphone, cameras: dict[str, list[float]]) -> None:
    """`pose_intrinsic_imu.json` of frame -> fx, fy, cx, cy, with the other entries that it has."""
    others = {"timestamp": 1.5, "pose": np.eye(4).tolist(), "aligned_pose": np.eye(4).tolist()}
    others["imu"] = {"rotate_rate": [0.1, 0.2, 0.3], "magnet": [0.0] * 4}
    entries = {
        frame: others | {"intrinsic": [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]}
        for frame, (fx, fy, cx, cy) in cameras.items()
    }
    write_text(iphone / "pose_intrinsic_imu.json", json.dumps(entries))


@pytest.fixture
def root(tmp_path):
    for scene, frames in (("0a7cc12c0e", (0, 60, 1200)), ("9b74afd2d2", (20,)), ("f00dfeed00", (10,))):
        iphone = tmp_path / "data" / scene / "iphone"
        for frame in frames:
            write_image(iphone / f"rgb/frame_{frame:06d}.jpg", (60, 45))
            write_depth(iphone / f"depth/frame_{frame:06d}.png", [[0, 1, 1500, frame]] * 3)
        write_cameras(iphone, {f"frame_{frame:06d}": [1400 + frame, 1401 + frame, 959.5, 719.5] for frame in frames})
    write_text(tmp_path / "splits/nvs_sem_train.txt", "9b74afd2d2\n0a7cc12c0e\n")
    write_text(tmp_path / "splits/nvs_sem_val.txt", "f00dfeed00\n")
    return tmp_path


def test_index(root):
    source = ScanNetPP(root)
    train = [(ref.id, ref.scene, ref.order) for ref in source.index("train")]
    expected = [(f"0a7cc12c0e/frame_{order:06d}", "0a7cc12c0e", order) for order in (0, 60, 1200)]
    assert train == [*expected, ("9b74afd2d2/frame_000020", "9b74afd2d2", 20)]
    assert [ref.id for ref in source.index("test")] == ["f00dfeed00/frame_000010"]
    write_text(root / "splits/nvs_sem_train.txt", "0a7cc12c0e\n1111111111\n0000000000\n")
    with pytest.warns(UserWarning, match="2 of the 3 scenes of the split are not in .* first is 0000000000"):
        assert len(ScanNetPP(root).index("train")) == 3


def test_depth_and_image_of_different_size_and_each_frames_own_camera(root):
    frame = frame_of(ScanNetPP(root), 2, "train")
    image = (root / "data/0a7cc12c0e/iphone/rgb/frame_001200.jpg").read_bytes()
    check_frame(frame, image, (60, 45), (3, 4), (2600, 2601, 960, 720))
    np.testing.assert_array_equal(frame.metres(), np.float32([[0, 0.001, 1.5, 1.2]] * 3))


def test_roots_and_splits(root):
    no_index(r"expected the folder data/ in", ScanNetPP, root / "data")
    no_index("the splits train, test, not 'val'", ScanNetPP, root, "val")
    iphone = root / "data/f00dfeed00/iphone"
    (iphone / "rgb").rename(iphone / "other")
    no_index(r"none of the 1 scenes .*f00dfeed00/iphone/rgb.*prepare_iphone_data", ScanNetPP, root)
    (iphone / "rgb").mkdir()
    no_index("'test' has no frames", ScanNetPP, root)
    (root / "splits/nvs_sem_val.txt").write_text("\n")
    no_index(r"nvs_sem_val\.txt is empty", ScanNetPP, root)
    (root / "splits/nvs_sem_val.txt").unlink()
    no_index(r"nvs_sem_val\.txt is missing", ScanNetPP, root)


def test_files_of_a_frame(root):
    source = ScanNetPP(root)
    ref = source.index("test")[0]
    cameras = "pose_intrinsic_imu.json"
    spoils(
        lambda: source.read(ref),
        root / "data/f00dfeed00/iphone",
        (cameras, 0.3, f"{cameras}.* may be truncated"),
        (cameras, '{"frame_000011": {}}', f"{cameras}.* has no entry 'frame_000010'"),
        (cameras, '{"frame_000010": {"pose": []}}', 'has no "intrinsic"'),
        (cameras, "", cameras),
        (cameras, None, f"{cameras}: no such file"),
        ("depth/frame_000010.png", 0.5, "depth/frame_000010.png.*truncated"),
        ("depth/frame_000010.png", None, "depth/frame_000010.png: no such file"),
        ("rgb/frame_000010.jpg", 0.5, "rgb/frame_000010.jpg.*truncated"),
    )


@pytest.mark.real_data
def test_real_frames(shared, tmp_path):
    """12 frames of 9 scenes: 0.586 / 2.045 / 7.652 m, fx from 1423.4 to 1434.3; every listed point is exact."""
    rows = [json.loads(line) for line in (shared / "data/scannetpp/examples.jsonl").read_text().splitlines()]
    cameras: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scene, stem = row["scene_id"], row["image"].removeprefix(f"{row['scene_id']}_").removesuffix(".jpg")
        iphone = tmp_path / "data" / scene / "iphone"
        link(shared / "data/scannetpp/rgb" / row["image"], iphone / f"rgb/{stem}.jpg")
        link(shared / "data/scannetpp/depth" / row["depth_path"], iphone / f"depth/{stem}.png")
        cameras.setdefault(scene, {})[stem] = [row["original_fx"], row["original_fx"], 959.5, 719.5]
    for scene, entries in cameras.items():
        write_cameras(tmp_path / "data" / scene / "iphone", entries)
    write_text(tmp_path / "splits/nvs_sem_val.txt", "\n".join(cameras))

    source = ScanNetPP(tmp_path)
    frames = {frame.ref.id.replace("/", "_"): frame for frame in map(source.read, source.index("test"))}
    assert len(frames) == 12
    assert len({frame.ref.scene for frame in frames.values()}) == 9
    for row in rows:
        frame = frames[row["image"].removesuffix(".jpg")]
        check_frame(frame, (shared / "data/scannetpp/rgb" / row["image"]).read_bytes(), (1920, 1440), (192, 256))
        columns, lines = np.transpose(row["pixel_coords"])
        np.testing.assert_array_equal(frame.metres()[lines, columns], np.float32(row["depth"]))
        assert frame.intrinsics[0] == row["original_fx"]
    every = np.stack([frame.metres(source.depth_range) for frame in frames.values()])
    assert spread(every) == pytest.approx((0.586, 2.045, 7.652), abs=5e-4)
    focal_lengths = [frame.intrinsics[0] for frame in frames.values()]
    assert (min(focal_lengths), max(focal_lengths)) == pytest.approx((1423.4, 1434.3), abs=0.05)
