"""Taskonomy and HM3D in the layout of Omnidata's download."""

import json
import math

import numpy as np
import pytest
from depthvlm.benchmark.sources.omnidata import HM3D, Taskonomy
from toy_source_files import check_frame, frame_of, no_index, refuses, spoils, write_depth, write_image, write_text

TRAIN, VAL = "00000-kfPV7w3FaU5", "00800-TEEsavR23oF"


def write_view(root, building: str, view: str, fov: float = math.pi / 2) -> None:
    write_image(root / f"rgb/taskonomy/{building}/{view}_domain_rgb.png", (8, 8))
    rows = [[0, 1, 512, 1024, 5120, 7680, 65534, 65535]] * 8
    write_depth(root / f"depth_zbuffer/taskonomy/{building}/{view}_domain_depth_zbuffer.png", rows)
    info = {"field_of_view_rads": fov, "resolution": 1024, "camera_uuid": "cafe", "point_uuid": 3}
    write_text(root / f"point_info/taskonomy/{building}/{view}_domain_point_info.json", json.dumps(info))


@pytest.fixture
def root(tmp_path):
    for building, views in (
        ("ackermanville", ("point_2_view_0", "point_10_view_3", "point_2_view_1")),
        ("allensville", ("point_0_view_0",)),
        ("muleshoe", ("point_7_view_0",)),
    ):
        for view in views:
            write_view(tmp_path, building, view)
    write_text(
        tmp_path / "splits/train_val_test_fullplus.csv",
        "id,train,val,test\nackermanville,1,0,0\nallensville,0,1,0\nmuleshoe,0,0,1\n",
    )
    return tmp_path


def test_official_splits(root):
    source = Taskonomy(root)
    train = source.index("train")
    views = ("10_view_3", "2_view_0", "2_view_1")
    assert [(ref.id, ref.scene) for ref in train] == [(f"ackermanville/point_{v}", "ackermanville") for v in views]
    by_order = sorted(train, key=lambda ref: ref.order)
    assert [ref.id[14:] for ref in by_order] == ["point_2_view_0", "point_2_view_1", "point_10_view_3"]
    assert [ref.id for ref in source.index("test")] == ["muleshoe/point_7_view_0"]
    # The largest table there is is used.
    write_text(root / "train_val_test_tiny.csv", "id,train,val,test\nallensville,1,0,0\n")
    assert Taskonomy(root).index("train")[0].scene == "ackermanville"
    (root / "splits/train_val_test_fullplus.csv").unlink()
    assert Taskonomy(root).index("train")[0].scene == "allensville"


def test_depth_and_65535(root):
    frame = frame_of(Taskonomy(root))
    image = (root / "rgb/taskonomy/muleshoe/point_7_view_0_domain_rgb.png").read_bytes()
    check_frame(frame, image, (8, 8), (8, 8))
    assert (frame.depth.dtype, frame.depth_scale) == (np.uint16, 512)
    assert frame.depth[0].tolist() == [0, 1, 512, 1024, 5120, 7680, 65534, 0]
    np.testing.assert_allclose(frame.metres()[0], [0, 1 / 512, 1, 2, 10, 15, 127.99609375, 0], rtol=0)
    assert frame.metres(Taskonomy.depth_range)[0].tolist() == [0, 0, 1, 2, 10, 15, 0, 0]


def test_focal_length_of_the_field_of_view(root):
    """90 degrees over 8 pixels: f = 4; 53.13 degrees (a slope of 1/2): f = 8. The centre is between two pixels."""
    write_view(root, "muleshoe", "point_8_view_0", 2 * math.atan(0.5))
    for place, camera in enumerate([(4, 4, 4, 4), (8, 8, 4, 4)]):
        assert frame_of(Taskonomy(root), place).intrinsics == pytest.approx(camera)


def test_roots_and_split_files(root):
    table = root / "splits/train_val_test_fullplus.csv"
    table.write_text("id,train,val,test\nackermanville,1,0,0\nzzyzx,1,0,0\nyscloskey,0,0,1\n")
    with pytest.warns(UserWarning, match="1 of the 2 scenes of the split are not in .*zzyzx"):
        assert len(Taskonomy(root).index("train")) == 3
    no_index("none of the 1 scenes .*yscloskey", Taskonomy, root)
    table.write_text("id,train,val,test\nackermanville,1,0,0\n")
    no_index("no building of 'test'", Taskonomy, root)
    table.write_text("building\nackermanville\n")
    no_index("should have the columns id,train,val,test", Taskonomy, root, "train")
    table.unlink()
    no_index(r"train_val_test_fullplus\.csv or .*splits_taskonomy\.zip", Taskonomy, root, "train")
    (root / "depth_zbuffer").rename(root / "depth_euclidean")  # distances along the ray
    no_index(r"expected the folder depth_zbuffer/taskonomy/ in .*omnitools\.download", Taskonomy, root)


def test_files_of_a_view(root):
    source = Taskonomy(root)
    ref = source.index("test")[0]
    info, depth, rgb = (f"point_7_view_0_domain_{name}" for name in ("point_info.json", "depth_zbuffer.png", "rgb.png"))
    spoils(
        lambda: source.read(ref),
        root / "point_info/taskonomy/muleshoe",
        (info, '{"field_of_view_rads": 61.2}', f"{info}.* must be between 0 and pi, got 61.2"),
        (info, "{}", f"{info}.* got None"),
        (info, '{"field_of_view', f"{info}.* not JSON"),
        (info, None, f"{info}: no such file"),
    )
    maps = root / "depth_zbuffer/taskonomy/muleshoe"
    spoils(lambda: source.read(ref), maps, (depth, 0.5, "truncated"), (depth, None, f"{depth}: no such file"))
    write_image(root / "rgb/taskonomy/muleshoe" / rgb, (8, 6))
    refuses(source, f"{rgb}.* views are square, this one is 8x6")


class TestHM3D:
    @pytest.fixture
    def root(self, tmp_path):
        for building in (TRAIN, VAL):
            view = f"{building}/point_3_view_0_domain"
            write_image(tmp_path / f"rgb/hm3d/{view}_rgb.png", (4, 4))
            write_depth(tmp_path / f"depth_zbuffer/hm3d/{view}_depth_zbuffer.png", [[65535, 0, 512, 2560]] * 4)
            info = {"field_of_view_rads": 2 * math.atan(0.25), "resolution": 512}
            write_text(tmp_path / f"point_info/hm3d/{view}_fixatedpose.json", json.dumps(info))
        write_text(
            tmp_path / "metadata.csv",
            f"scene,split,furnished,num_floors\n{TRAIN},train,TRUE,2\n{VAL},val,TRUE,1\n00900-aaaaaaaaaaa,test,TRUE,1\n",
        )
        return tmp_path

    def test_splits(self, root):
        for split, building in (("train", TRAIN), ("test", VAL)):
            assert [ref.id for ref in HM3D(root).index(split)] == [f"{building}/point_3_view_0"]
        (root / "metadata.csv").unlink()  # Omnidata's own table:
        write_text(root / "splits/train_val_test_hm3d.csv", f"id,train,val,test\n{TRAIN},0,1,0\n{VAL},1,0,0\n")
        assert HM3D(root).index("test")[0].scene == TRAIN

    def test_a_view(self, root):
        """The camera sees 1/4 to each side of its axis, over 2 of 4 pixels: f = 8."""
        frame = frame_of(HM3D(root))
        image = (root / f"rgb/hm3d/{VAL}/point_3_view_0_domain_rgb.png").read_bytes()
        check_frame(frame, image, (4, 4), (4, 4), pytest.approx((8, 8, 2, 2)))
        assert frame.metres(HM3D.depth_range)[0].tolist() == [0, 0, 1, 5]
        (root / f"point_info/hm3d/{VAL}/point_3_view_0_domain_fixatedpose.json").unlink()
        refuses(HM3D(root), "point_3_view_0_domain_fixatedpose.json: no such file")
        (root / "metadata.csv").unlink()
        no_index(r"metadata\.csv or train_val_test_hm3d\.csv.*habitat-matterport", HM3D, root, "train")
        no_index(r"expected the folder rgb/hm3d/ in .*--components hm3d", HM3D, root / "rgb")
