"""A plain folder of images and depth maps, in every form that it may have."""

import json

import numpy as np
import pytest
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.sources.folder import PNG_SCALE_KEY, RGBDFolder
from depthvlm.benchmark.sources.frames import SourceError
from depthvlm.processing import depth_maps_depthvlm
from PIL import Image
from toy_source_files import (
    check_frame,
    frame_of,
    no_index,
    refuses,
    spoils,
    spread,
    write_depth,
    write_image,
    write_text,
)

ROWS = [[0, 500, 1000, 2500], [0, 500, 1000, 65535]]


@pytest.fixture
def root(tmp_path):
    for stem in ("hall/a", "hall/b", "c"):
        write_image(tmp_path / f"rgb/{stem}.jpg", (40, 20))
        write_depth(tmp_path / f"depth/{stem}.png", ROWS)
    write_text(tmp_path / "intrinsics.txt", "50 0 19.5\n0 51 9.5\n0 0 1\n")
    write_text(tmp_path / "depth.json", '{"depth_scale": 1000}')
    return tmp_path


def write_any_depth(path, metres: np.ndarray) -> None:
    """Metres as people store them: 16-bit millimetres, or where the format has floats these times 1000."""
    path.parent.mkdir(parents=True, exist_ok=True)
    millimetres = metres.astype(np.float32) * 1000
    if path.suffix == ".npz":
        np.savez(path, depth=millimetres)
    elif path.suffix == ".npy":
        np.save(path, millimetres.astype(np.int32)[..., None])
    elif path.suffix == ".pfm":  # by hand: little-endian, rows from the bottom
        path.write_bytes(b"Pf\n4 2\n-1.0\n" + millimetres[::-1].astype("<f4").tobytes())
    elif path.suffix == ".TIF":
        Image.fromarray(millimetres).save(path)
    else:
        Image.fromarray(millimetres.astype(np.uint16)).save(path)


class TestPairs:
    def test_two_folders(self, root):
        source = RGBDFolder(root)
        refs = source.index("train")
        expected = [("c", "", 0), ("hall/a", "hall", 1), ("hall/b", "hall", 2)]
        assert [(ref.id, ref.scene, ref.order) for ref in refs] == expected
        frame = source.read(refs[1])
        check_frame(frame, (root / "rgb/hall/a.jpg").read_bytes(), (40, 20), (2, 4), (50, 51, 19.5, 9.5))
        np.testing.assert_array_equal(frame.metres(), np.float32([[0, 0.5, 1, 2.5], [0, 0.5, 1, 65.535]]))
        (root / "rgb").rename(root / "images")  # other names
        (root / "depth").rename(root / "depths")
        assert len(RGBDFolder(root).index("test")) == 3

    @pytest.mark.parametrize("ending", ["rgb", "color", "image"])
    def test_one_folder(self, tmp_path, ending):
        for stem in ("001", "seq/002"):
            write_image(tmp_path / f"{stem}_{ending}.png", (8, 4))
            write_depth(tmp_path / f"{stem}_depth.png", ROWS)
        write_text(tmp_path / "intrinsics.json", "[5, 5, 3.5, 1.5]")
        source = RGBDFolder(tmp_path, depth_scale=1000)
        assert [ref.id for ref in source.index("test")] == ["001", "seq/002"]
        assert frame_of(source).metres()[0].tolist() == [0, 0.5, 1, 2.5]

    @pytest.mark.parametrize(
        ("image", "depth", "ids"),
        [
            ("color/{}.jpg", "depth/{}.png", ["0", "1"]),  # ScanNet
            ("color/frame-{}.color.jpg", "depth/frame-{}.depth.pgm", ["frame-0", "frame-1"]),  # BundleFusion
            ("frame-{}.color.png", "frame-{}.depth.png", ["frame-0", "frame-1"]),  # 7-Scenes
            ("kitchen/rgb_{}.jpg", "kitchen/sync_depth_{}.png", ["kitchen/0", "kitchen/1"]),  # NYUv2 of BTS
            ("hall/rgb/{}.JPG", "hall/depth/{}.TIF", ["hall/0", "hall/1"]),
            ("hall/a/images/{}.bmp", "hall/a/depths/{}.npz", ["hall/a/0", "hall/a/1"]),
            ("rgb/image_{}.png", "depth/image_{}.pfm", ["image_0", "image_1"]),
            ("rgb/{}.png", "depth/{}_depth.npy", ["0", "1"]),
        ],
    )
    def test_layouts_that_people_have(self, tmp_path, image, depth, ids):
        """Map k is 1 + k metres, the last column none."""
        for k in range(2):
            write_image(tmp_path / image.format(k), (8, 4))
            write_any_depth(tmp_path / depth.format(k), np.array([[1 + k] * 3 + [0]] * 2))
        write_text(tmp_path / "intrinsics.txt", "5 0 3.5 0\n0 5 1.5 0\n0 0 1 0\n0 0 0 1\n")
        source = RGBDFolder(tmp_path, depth_scale=1000)
        refs = source.index("test")
        assert [ref.id for ref in refs] == ids
        for k, ref in enumerate(refs):
            np.testing.assert_allclose(source.read(ref).metres(), [[1 + k] * 3 + [0]] * 2)
        assert source.notes == []

    def test_times_as_tums_associate(self, tmp_path):
        """Of couples nearer than 0.02 s the nearest first, each file once; 1.00 and 1.02 are not nearer."""
        for time in ("1.000", "1.030", "1.045", "2.000"):
            write_image(tmp_path / f"rgb/{time}.png", (8, 4))
        for time, millimetres in (("1.020", 1000), ("1.040", 2000), ("1.061", 3000), ("5.000", 4000)):
            write_depth(tmp_path / f"depth/{time}.png", [[millimetres] * 4] * 2)
        write_text(tmp_path / "intrinsics.txt", "5 5 3.5 1.5")
        source = RGBDFolder(tmp_path, depth_scale=1000)
        found = {ref.id: source.read(ref).metres().max() for ref in source.index("test")}
        # 1.045 takes 1.040 (0.005), then 1.030 takes 1.020 (0.010); 1.061 and 1.000 are left.
        assert found == {"1.030": 1, "1.045": 2}
        assert source.notes == [
            "2 depth maps have no image, depth/1.061.png first.",
            "2 images have no depth map within 0.02 s, rgb/1.000.png first: passed over.",
        ]

    def test_what_is_passed_over_is_counted_and_named(self, root):
        for name in ("rgb/._c.jpg", "depth/hall/._a.png", "rgb/manual.pdf", "rgb/IMG_1.HEIC"):
            write_text(root / name, "\0\5\26\7")
        source = RGBDFolder(root)
        assert len(source.index("test")) == 3
        assert source.notes == [
            "4 files are passed over: 2 hidden (rgb/._c.jpg), 1 .heic (rgb/IMG_1.HEIC), 1 .pdf (rgb/manual.pdf)."
        ]

    def test_folders_by_name(self, root):
        (root / "rgb").rename(root / "left")
        (root / "depth").rename(root / "lidar")
        assert len(RGBDFolder(root, images="left", depths="lidar").index("test")) == 3
        no_index("give both options, or none", RGBDFolder, root, images="left")
        no_index("there is no folder .*right", RGBDFolder, root, images="right", depths="lidar")
        for name in ("rgb", "color", "depth"):
            (root / name).mkdir()
        no_index("has rgb/, color/, depth/: name the two that belong together", RGBDFolder, root)

    def test_splits(self, root):
        assert RGBDFolder(root).index("train") == RGBDFolder(root).index("test")
        write_text(root / "splits/train.txt", "hall/b\nhall/a\nhall/b\n")
        assert [ref.id for ref in RGBDFolder(root).index("train")] == ["hall/a", "hall/b"]
        no_index(r"test\.txt is missing", RGBDFolder, root)
        unknown = r"1 stems of .*test\.txt have no image in .*rgb, the first is 'd\.jpg'"
        steps = ("test.txt", "", r"test\.txt is empty"), ("test.txt", "c\nd.jpg\n", unknown)
        spoils(lambda: RGBDFolder(root).index("test"), root / "splits", *steps, error=SourceError)


class TestDepth:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_are_metres(self, root, dtype):
        (root / "depth.json").unlink()
        (root / "depth/c.png").unlink()
        np.save(root / "depth/c.npy", np.array([[0.5, np.nan], [np.inf, -1]], dtype=dtype).repeat(2, axis=1))
        frame = frame_of(RGBDFolder(root))
        assert (frame.depth.dtype, frame.depth_scale) == (np.float32, 1)
        assert frame.metres().tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0]]

    @pytest.mark.parametrize(("dtype", "stored", "scale"), [("f4", "f4", 1), ("u2", "u2", 1000)])
    def test_arrays_with_a_scale(self, root, dtype, stored, scale):
        (root / "depth/c.png").unlink()
        np.save(root / "depth/c.npy", np.array(ROWS, dtype=dtype))
        frame = frame_of(RGBDFolder(root))
        assert (frame.depth.dtype, frame.depth_scale) == (stored, scale)
        assert frame.metres()[0].tolist() == [0, 0.5, 1, 2.5]

    def test_the_scale_in_the_png(self, root):
        """As this package writes its own maps."""
        assert PNG_SCALE_KEY == depth_maps_depthvlm.PNG_SCALE_KEY
        (root / "depth.json").unlink()
        words = r"depth/c\.png: integers need a scale.*depth\.json, or pass depth_scale"
        no_index(words, RGBDFolder, root)
        write_depth(root / "depth/c.png", ROWS, depth_scale="500")
        assert frame_of(RGBDFolder(root)).metres()[0].tolist() == [0, 1, 2, 5]
        words = r"depth/c\.png.*depth_scale is '500', but the scale given is 1000"
        refuses(RGBDFolder(root, depth_scale=1000), words)
        refuses(RGBDFolder(root), r"hall/a\.png: integers need a scale", place=1)
        write_depth(root / "depth/c.png", ROWS, depth_scale="mm")
        refuses(RGBDFolder(root), r"depth/c\.png.*depth_scale is 'mm'")

    def test_a_value_that_means_none(self, root):
        write_text(root / "depth.json", '{"depth_scale": 1000, "invalid": 65535}')
        frame = frame_of(RGBDFolder(root))
        assert frame.depth.dtype == np.uint16
        assert frame.metres()[1].tolist() == [0, 0.5, 1, 0]

    @pytest.mark.parametrize("scale", [0, -1000, float("nan"), float("inf"), "mm"])
    def test_no_number(self, root, scale):
        write_text(root / "depth.json", json.dumps({"depth_scale": scale}))
        no_index(r"depth\.json must be a finite number above 0", RGBDFolder, root)
        (root / "depth.json").unlink()
        no_index("the argument depth_scale must be a finite number above 0", RGBDFolder, root, depth_scale=scale)

    def test_settings(self, root):
        assert frame_of(RGBDFolder(root, depth_scale=1000.0)).depth_scale == 1000
        no_index(r"depth\.json says depth_scale = 1000, but 5000 was given", RGBDFolder, root, depth_scale=5000)
        wrong = ('{"scale": 1000}', "1000", "{", '{"depth_scale": 1000, "invalid": "65535"}')
        steps = [("depth.json", text, r"depth\.json") for text in wrong]
        spoils(lambda: RGBDFolder(root), root, *steps, error=SourceError)

    def test_a_picture_too_large_is_one_bad_file(self, root):
        """16000x16000 are 256 million pixels, above the bound."""
        (root / "rgb/c.jpg").unlink()
        Image.new("1", (16000, 16000)).save(root / "rgb/c.png")
        source = RGBDFolder(root)
        refuses(source, r"rgb/c\.png.*16000x16000 pixels \(width x height\), more than the")
        entry = run_build(plan_build(source, "test", num_images=3), open_source, root, root / "out", workers=1)
        assert (entry["counts"]["rows"], entry["counts"]["bad"]) == (2, 1)
        assert entry["notes"] == [
            "1 frame(s) cannot be used: left out, none is replaced.",
            "3 images were asked for, 2 are written.",
            "2 images have fewer valid pixels than points were asked for: all of those are taken.",
        ]

    def test_files(self, root):
        source, depth = RGBDFolder(root), root / "depth/c.npy"
        ref = source.index("test")[0]
        spoils(lambda: source.read(ref), root, ("depth/c.png", 0.5, "depth/c.png.*truncated"))
        write_depth(root / "depth/c.png", [[1000] * 20] * 20)
        refuses(source, r"depth/c\.png: 20x20 pixels do not have the aspect ratio of the image, 40x20")
        (root / "depth/c.png").unlink()
        refuses(source, r"rgb/c\.jpg: has no depth map with the stem 'c'")
        for array in (np.zeros((2, 4, 3)), np.zeros((0, 4)), np.zeros((2, 4), dtype=complex), np.array(None)):
            np.save(depth, array, allow_pickle=True)
            refuses(source, r"depth/c\.npy")
        spoils(lambda: frame_of(source), root, ("depth/c.npy", 0.3, r"depth/c\.npy.*truncated"))


class TestCameras:
    @pytest.mark.parametrize(
        "camera",
        [
            [50, 51, 19.5, 9.5],
            {"fx": 50, "fy": 51, "cx": 19.5, "cy": 9.5},
            [[50, 0, 19.5], [0, 51, 9.5], [0, 0, 1]],
            {"fx": 100, "fy": 102, "cx": 39, "cy": 19, "width": 80, "height": 40},  # the images have 40x20 pixels
        ],
    )
    def test_one_for_all_or_each_its_own(self, root, camera):
        (root / "intrinsics.txt").unlink()
        write_text(root / "intrinsics.json", json.dumps(camera))
        assert frame_of(RGBDFolder(root)).intrinsics == (50, 51, 19.5, 9.5)
        write_text(root / "intrinsics.json", json.dumps({"hall/a": camera, "c": [7, 7, 1, 1]}))
        source = RGBDFolder(root)
        assert [frame_of(source, place).intrinsics for place in (0, 1)] == [(7, 7, 1, 1), (50, 51, 19.5, 9.5)]
        refuses(source, r"intrinsics\.json: has no intrinsics for 'hall/b'", place=2)

    def test_none(self, root):
        camera = {"fx": 100, "fy": 102, "cx": 39, "cy": 19, "width": 80, "height": 60}
        write_text(root / "intrinsics.json", json.dumps({"c": camera}))
        refuses(RGBDFolder(root), "of a picture of 80x60 pixels, and it has 40x20")
        unread = "the intrinsics cannot be read"
        wrong = ("[50, 51]", "{", '{"fx": 50, "fy": 51}', "[0, 51, 19.5, 9.5]", "3")
        steps = [("intrinsics.json", text, unread) for text in wrong]
        spoils(lambda: RGBDFolder(root), root, *steps, error=SourceError)
        (root / "intrinsics.json").unlink()
        (root / "intrinsics.txt").unlink()
        no_index(r"depth without intrinsics: expected intrinsics\.json or intrinsics\.txt in", RGBDFolder, root)


def test_roots(root):
    write_image(root / "rgb/c.png", (40, 20))
    no_index(r"rgb/c\.jpg and rgb/c\.png in .* have the same stem", RGBDFolder, root)
    (root / "rgb/c.png").unlink()
    for path in (root / "depth").rglob("*.png"):
        path.rename(path.with_suffix(".bin"))
    no_index(r"depth has no files of \.png, .*, but of \.bin: convert them", RGBDFolder, root)
    (root / "depth").rename(root / "disparity")
    no_index(r"the folders rgb/ \(or images/.*or files named .*images=DIR", RGBDFolder, root)


def test_names_become_ids(root):
    """Letters lose their accents, the rest becomes "_"; what comes to be alike gets the CRC-32 of its name."""
    for stem in ("Küche 1", "living room", "living\u3042room", "living_room"):
        write_image(root / f"rgb/{stem}.jpg", (40, 20))
        write_depth(root / f"depth/{stem}.png", ROWS)
    write_text(root / "intrinsics.json", json.dumps({"Küche 1": [7, 7, 1, 1]}))
    source = RGBDFolder(root)
    refs = {ref.files["stem"]: ref for ref in source.index("test")}
    assert refs["Küche 1"].id == "Kuche_1"
    assert refs["living_room"].id == "living_room"
    assert refs["living room"].id == "living_room-0cc432bf"
    assert len({ref.id for ref in refs.values()}) == 7
    assert source.read(refs["Küche 1"]).intrinsics[0] == 7


@pytest.mark.real_data
def test_a_real_pair(shared, tmp_path):
    """UniDepth's demo pair: 1.653 / 3.495 / 10.000 m, 68 % valid, fx 518.86."""
    folder = shared / "data/nyuv2/unidepth_demo"
    for name, kind in (("rgb.png", "rgb"), ("depth.png", "depth")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "demo.png").symlink_to(folder / name)
    np.savetxt(tmp_path / "intrinsics.txt", np.load(folder / "intrinsics.npy"))
    frame = frame_of(RGBDFolder(tmp_path, depth_scale=1000))
    check_frame(frame, (folder / "rgb.png").read_bytes(), (640, 480), (480, 640))
    assert spread(frame.metres()) == pytest.approx((1.653, 3.495, 10.0), abs=5e-4)
    assert (frame.metres() > 0).mean() == pytest.approx(0.68, abs=0.005)
    assert frame.intrinsics[0] == pytest.approx(518.86, abs=5e-3)
