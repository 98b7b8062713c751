"""NYU Depth V2's labelled file and splits, written with h5py and scipy as MATLAB lays them out."""

import io
import json
import sys

import h5py
import numpy as np
import pytest
from depthvlm.benchmark.sources.nyuv2 import NYUv2
from PIL import Image
from scipy.io import savemat
from toy_source_files import check_frame, fails, frame_of, no_index, spoil, spread

SCENES = ("kitchen_0004", "kitchen_0004", "office_0001a", "bedroom_0026")


def write_labeled(path, images: np.ndarray, depths: np.ndarray, scenes: tuple[str, ...]) -> None:
    """
    Images `(n, h, w, 3)` and raw metres `(n, h, w)`; the filled ones are 0.5 m farther everywhere. MATLAB's
    h x w x 3 x n is seen as (n, 3, w, h) from C.
    """
    with h5py.File(path, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = depths.transpose(0, 2, 1).astype(np.float32)
        file["depths"] = file["rawDepths"][()] + np.float32(0.5)
        references = []
        for number, scene in enumerate(scenes):
            file[f"#refs#/{number}"] = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            references.append(file[f"#refs#/{number}"].ref)
        file["scenes"] = np.array([references], dtype=h5py.ref_dtype)


@pytest.fixture
def root(tmp_path):
    """Frame i, counted from 0: red is 10 i, green the row, blue the column; depth is i + row / 4 + column / 64."""
    row, column = np.mgrid[:6, :8]
    images = np.stack([np.stack([np.full((6, 8), 10 * i), row, column], axis=-1) for i in range(4)]).astype(np.uint8)
    depths = np.stack([i + row / 4 + column / 64 for i in range(4)])
    write_labeled(tmp_path / "nyu_depth_v2_labeled.mat", images, depths, SCENES)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[4]]), "testNdxs": np.array([[1], [2], [3]])})
    return tmp_path


def test_splits_count_from_1(root):
    source = NYUv2(root)
    assert [(ref.id, ref.scene) for ref in source.index("train")] == [("0004", "bedroom_0026")]
    expected = [("0001", "kitchen_0004", 1), ("0002", "kitchen_0004", 2), ("0003", "office_0001a", 3)]
    assert [(ref.id, ref.scene, ref.order) for ref in source.index("test")] == expected


def test_arrays_upright_and_pixels_without_loss(root):
    frame = frame_of(NYUv2(root), 2)
    with Image.open(io.BytesIO(frame.image)) as image:
        assert np.asarray(image)[4, 7].tolist() == [20, 4, 7]
        assert (image.format, image.size, image.mode) == ("PNG", (8, 6), "RGB")
    check_frame(frame, frame_of(NYUv2(root), 2).image, (8, 6), (6, 8))
    assert (frame.depth.dtype, frame.depth_scale) == (np.float32, 1)
    assert frame.metres()[4, 7] == 2 + 1 + 7 / 64
    assert frame.intrinsics == pytest.approx((518.8579, 519.46961, 326.08245, 254.23617), abs=1e-5)


def test_raw_by_the_mask_of_bts_and_filled(root):
    """BTS scores 1e-3 < d < 10; the sensor's values end at 10. The filled maps are read as they are."""
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "r+") as file:
        file["rawDepths"][3, :4, 5] = [0, 0.001, 9.9995, 10]
    raw, filled = (frame_of(NYUv2(root, depth=depth), 0, "train").metres() for depth in ("raw", "filled"))
    np.testing.assert_allclose(raw[5, :4], [0, 0, 9.9995, 0])
    assert raw[4, 7] == 3 + 1 + 7 / 64
    assert filled[4, 7] == 3 + 1 + 7 / 64 + 0.5
    no_index("depth is raw or filled, got 'rawDepths'", NYUv2, root, depth="rawDepths")


@pytest.mark.parametrize("module", ["h5py", "scipy.io"])
def test_without_its_libraries(root, monkeypatch, module):
    source = NYUv2(root)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "depthvlm\[bench\]"'):
        source.index("test")


def test_files(root):
    no_index(r"expected the file nyu_depth_v2_labeled\.mat in", NYUv2, root.parent)
    savemat(root / "splits.mat", {"testNdxs": [[1], [1450]]})
    no_index(r"counts from 1 to 1450, but nyu_depth_v2_labeled\.mat has 4 frames", NYUv2, root)
    no_index(r"splits\.mat has no variable 'trainNdxs'", NYUv2, root, "train")
    savemat(root / "splits.mat", {"testNdxs": np.zeros((0, 1))})
    no_index("'test' has no frames", NYUv2, root)
    (root / "splits.mat").write_text("not a mat file")
    no_index(r"splits\.mat cannot be read", NYUv2, root)
    (root / "splits.mat").unlink()
    no_index(r"splits\.mat is missing", NYUv2, root)


def test_arrays_of_another_layout_and_a_truncated_download(root):
    source, path = NYUv2(root), root / "nyu_depth_v2_labeled.mat"
    ref = source.index("train")[0]
    with h5py.File(path, "r+") as file:
        del file["rawDepths"]
        file["rawDepths"] = np.ones((4, 6, 8), dtype=np.float32)
    fails(source, ref, "expected (3, 640, 480) and (640, 480), got (3, 8, 6) and (6, 8)")
    with h5py.File(path, "r+") as file:
        del file["rawDepths"]
    fails(source, ref, "frame 4 cannot be read", "rawDepths")
    spoil(path, 0.5)
    fails(source, ref, "nyu_depth_v2_labeled.mat: frame 4 cannot be read")
    no_index(r"nyu_depth_v2_labeled\.mat cannot be read", NYUv2, root, "train")


@pytest.mark.real_data
def test_real_frames(shared, tmp_path):
    """Three frames in the labelled file's layout: 1.390 / 3.258 / 6.625 m and so on, 73, 75 and 67 % valid."""
    folder = shared / "data/nyuv2/nyu_demo"
    files = json.loads((folder / "test_annotations.json").read_text())["files"]
    images, depths = [], []
    for entry in files:
        with Image.open(folder / "rgb" / entry["rgb"].split("/")[-1]) as image:
            images.append(np.asarray(image))
        with Image.open(folder / "depth" / entry["depth"].split("/")[-1]) as image:
            depths.append(np.asarray(image) / 1000)
    write_labeled(tmp_path / "nyu_depth_v2_labeled.mat", np.stack(images), np.stack(depths), ("room_0001",) * 3)
    savemat(tmp_path / "splits.mat", {"testNdxs": [[1], [2], [3]]})

    source = NYUv2(tmp_path)
    expected = [((1.390, 3.258, 6.625), 0.73), ((0.887, 3.208, 8.266), 0.75), ((0.713, 2.479, 6.446), 0.67)]
    for ref, pixels, (numbers, share) in zip(source.index("test"), images, expected, strict=True):
        frame = source.read(ref)
        assert frame.image_size == (640, 480)
        with Image.open(io.BytesIO(frame.image)) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)
        metres = frame.metres(source.depth_range)
        assert spread(metres) == pytest.approx(numbers, abs=5e-4)
        assert (metres > 0).mean() == pytest.approx(share, abs=0.005)
        assert frame.intrinsics[0] == pytest.approx(518.86, abs=5e-3)
