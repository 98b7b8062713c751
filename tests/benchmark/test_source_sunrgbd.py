"""SUN RGB-D in its own layout, of real frames and of made ones; its bit rotation on real files beyond 8.192 m."""

import sys

import numpy as np
import pytest
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.sources.files import read_depth_png
from depthvlm.benchmark.sources.frames import FrameError, SourceError
from depthvlm.benchmark.sources.sunrgbd import SunRGBD, rotate_bits
from scipy.io import savemat
from toy_source_files import check_frame, frame_of, link, no_index, spoils, spread, write_depth, write_image, write_text

# As on the authors' disk; some end with a slash, some have two.
PREFIX = "/n/fs/sun3d/data/SUNRGBD/"
NYU = "kv1/NYUdata/NYU0001"
SUN3D = "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003438367"
KINECT2 = "kv2/align_kv2/2014-12-18_11-31-54_260595134347"


def write_splits(root, train: list[str], test: list[str]) -> None:
    cells = {name: np.array([folders], dtype=object) for name, folders in (("alltrain", train), ("alltest", test))}
    path = root / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, cells)


def write_frame(root, folder: str, raw: object = ((0, 8, 80),)) -> None:
    write_image(root / "SUNRGBD" / folder / "image/0001.jpg", (6, 2))
    write_depth(root / "SUNRGBD" / folder / "depth_bfx/0001_abs.png", raw)
    write_depth(root / "SUNRGBD" / folder / "depth/0001_abs.png", [[1, 1, 1]])
    write_text(root / "SUNRGBD" / folder / "intrinsics.txt", "529.5 0 365 \n0 530.5 265 \n0 0 1 \n")


@pytest.fixture
def root(tmp_path):
    for folder in (NYU, SUN3D, KINECT2):
        write_frame(tmp_path, folder)
    write_splits(tmp_path, [PREFIX + SUN3D.replace("bm_1/0", "bm_1//0"), PREFIX + KINECT2 + "/"], [PREFIX + NYU])
    return tmp_path


class TestRotation:
    def test_every_value(self):
        """The file holds `mm << 3`, its three highest bits moved to the lowest."""
        millimetres = [0, 1, 1000, 8191, 8192, 8193, 9870, 16384, 65535]
        written = [0, 8, 8000, 65528, 1, 9, 13425, 2, 65535]
        assert rotate_bits(np.array(written, dtype=np.uint16)).tolist() == millimetres
        values = np.arange(65536, dtype=np.uint16)
        binary = [int(f"{value:016b}"[-3:] + f"{value:016b}"[:-3], 2) for value in values]
        assert rotate_bits(values).tolist() == binary

    @pytest.mark.real_data
    def test_a_real_map_beyond_8_metres(self, shared):
        """1.057 / 2.723 / 9.870 m, 82 % valid; 2.3 % of its pixels lie beyond 8.191 m, where `raw / 8000` is wrong."""
        raw = read_depth_png(shared / "data/sunrgbd/open3d_other_formats/SUN_depth.png")
        metres = rotate_bits(raw) / np.float32(1000)
        assert raw.shape == (480, 640)
        assert spread(metres) == pytest.approx((1.057, 2.723, 9.870), abs=5e-4)
        assert (metres > 0).mean() == pytest.approx(0.82, abs=0.005)
        far = metres > 8.191
        assert far.mean() == pytest.approx(0.023, abs=5e-4)
        np.testing.assert_allclose(raw[~far] / 8000, metres[~far], atol=1e-6)
        divided = raw[far] / 8000
        assert (divided.min(), divided.max()) == pytest.approx((0.02, 1.68), abs=0.005)


def test_index(root):
    train = SunRGBD(root).index("train")
    assert [(ref.id, ref.scene, ref.camera) for ref in train] == [
        (KINECT2, KINECT2, "kv2"),
        (SUN3D, "xtion/sun3ddata/brown_bm_1/brown_bm_1", "xtion"),
    ]
    assert [(ref.id, ref.camera) for ref in SunRGBD(root).index("test")] == [(NYU, "kv1")]
    write_splits(root, [PREFIX + NYU], [PREFIX + SUN3D])  # one frame in a split
    assert [ref.id for ref in SunRGBD(root).index("train")] == [NYU]


def test_a_frame_is_of_the_filled_depth(root):
    write_frame(root, NYU, [[0, 8000, 13425]])
    frame = frame_of(SunRGBD(root))
    image = (root / "SUNRGBD" / NYU / "image/0001.jpg").read_bytes()
    check_frame(frame, image, (6, 2), (1, 3), (529.5, 530.5, 365.5, 265.5))
    np.testing.assert_array_equal(frame.metres(), np.float32([[0, 1, 9.870]]))
    assert frame.metres(SunRGBD.depth_range).tolist() == [[0, 1, 0]]


def test_without_scipy(root, monkeypatch):
    source = SunRGBD(root)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r'pip install "depthvlm\[bench\]"'):
        source.index("test")


def test_split_file(root):
    no_index("expected the folder SUNRGBD/ in", SunRGBD, root / "SUNRGBDtoolbox")
    path = root / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    write_splits(root, ["/somewhere/else/NYU0001"], [])
    no_index("alltrain of .*'/somewhere/else/NYU0001', not a folder of SUNRGBD/", SunRGBD, root, "train")
    no_index("'test' has no frames", SunRGBD, root)
    savemat(path, {"other": [1]})
    no_index(r"allsplit\.mat has no variable 'alltrain'", SunRGBD, root, "train")
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(30))
    no_index(r"allsplit\.mat cannot be read", SunRGBD, root, "train")
    path.unlink()
    no_index(r"allsplit\.mat is missing.*SUNRGBDtoolbox\.zip", SunRGBD, root, "train")


def test_files_of_a_frame(root):
    source = SunRGBD(root)
    ref = source.index("test")[0]
    folder = root / "SUNRGBD" / NYU
    spoils(
        lambda: source.read(ref),
        folder,
        ("intrinsics.txt", "529.5 0 365 0 529.5", r"intrinsics\.txt.*fx, fy, cx, cy or a 3x3 matrix"),
        ("intrinsics.txt", None, r"intrinsics\.txt: no such file"),
        ("depth_bfx/0001_abs.png", 0.5, "depth_bfx/0001_abs.png.*truncated"),
        ("depth_bfx/0001_abs.png", None, r"depth_bfx: expected one file \(\.png\), found 0"),
        ("image/0002.jpg", "", r"image: expected one file \(\.jpg, \.png\), found 2"),
    )
    folder.rename(root / "elsewhere")
    with pytest.raises(FrameError, match="NYU0001/image: no such folder"):
        source.read(ref)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "size", "raw", "filled", "share", "focal_length"),
    [
        (KINECT2.split("/")[2], KINECT2, (730, 530), (0.640, 2.397, 3.783), (0.640, 2.378, 3.783), 0.87, 529.5),
        ("img_0063", "kv1/b3dodata/img_0063", (561, 427), (1.430, 1.963, 2.525), (1.430, 1.958, 2.525), 0.68, 520.53),
    ],
)
def test_real_frames(shared, tmp_path, name, folder, size, raw, filled, share, focal_length):
    link(shared / "data/sunrgbd" / name, tmp_path / "SUNRGBD" / folder)
    write_splits(tmp_path, [PREFIX + folder], [PREFIX + folder])
    source = SunRGBD(tmp_path)
    frame = source.read(source.index("test")[0])
    image = next((shared / "data/sunrgbd" / name / "image").iterdir())
    check_frame(frame, image.read_bytes(), size, size[::-1])
    metres = frame.metres(source.depth_range)
    assert spread(metres) == pytest.approx(filled, abs=5e-4)
    assert (metres > 0).all()
    assert frame.intrinsics[0] == pytest.approx(focal_length, abs=5e-3)
    measured = rotate_bits(read_depth_png(next((shared / "data/sunrgbd" / name / "depth").iterdir()))) / 1000
    assert spread(measured) == pytest.approx(raw, abs=5e-4)
    assert (measured > 0).mean() == pytest.approx(share, abs=0.005)


def test_the_papers_own_choice_of_nyuv2(root):
    """9870 mm lie in the file as 13425: / 8000 that is 1.678 m, as the paper has it."""
    write_frame(root, NYU, ((0, 8000, 13425, 65528, 40000, 1),))
    source = open_source("nyuv2-sunrgbd", root)
    [ref] = source.index("test")
    assert (ref.id, ref.camera) == (NYU, "kv1")
    frame = source.read(ref)
    np.testing.assert_allclose(frame.metres(source.depth_range), [[0, 1, 1.678125, 8.191, 5, 0]], rtol=1e-6)
    assert frame.depth_scale == 1  # not 8000: lines of that scale are rotated when they are read
    with pytest.raises(SourceError, match="'train' has no frames"):
        source.index("train")
