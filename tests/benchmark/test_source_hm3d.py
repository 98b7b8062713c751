"""HM3D in the layout of Omnidata's download, with either table of its splits."""

import json
import math

import pytest
from depthvlm.benchmark.sources.frames import SourceError
from depthvlm.benchmark.sources.hm3d import HM3D
from toy_source_files import check_frame, fails, write_depth, write_image, write_text

TRAIN, VAL = "00000-kfPV7w3FaU5", "00800-TEEsavR23oF"


@pytest.fixture
def root(tmp_path):
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


def test_train_and_val(root):
    source = HM3D(root)
    assert [ref.id for ref in source.index("train")] == [f"{TRAIN}/point_3_view_0"]
    assert [ref.id for ref in source.index("test")] == [f"{VAL}/point_3_view_0"]


def test_omnidatas_own_table(root):
    (root / "metadata.csv").unlink()
    write_text(root / "splits/train_val_test_hm3d.csv", f"id,train,val,test\n{TRAIN},0,1,0\n{VAL},1,0,0\n")
    assert HM3D(root).index("test")[0].scene == TRAIN


def test_a_view(root):
    """The camera sees 1/4 to each side of its axis, over 2 of 4 pixels: f = 8."""
    source = HM3D(root)
    frame = source.read(source.index("test")[0])
    image = (root / f"rgb/hm3d/{VAL}/point_3_view_0_domain_rgb.png").read_bytes()
    check_frame(frame, image, (4, 4), (4, 4))
    assert frame.metres(source.depth_range)[0].tolist() == [0, 0, 1, 5]
    assert frame.intrinsics == pytest.approx((8, 8, 2, 2))


def test_missing_files(root):
    source = HM3D(root)
    ref = source.index("test")[0]
    (root / f"point_info/hm3d/{VAL}/point_3_view_0_domain_fixatedpose.json").unlink()
    fails(source, ref, "point_3_view_0_domain_fixatedpose.json: no such file")
    (root / "metadata.csv").unlink()
    with pytest.raises(SourceError, match=r"metadata\.csv or train_val_test_hm3d\.csv.*habitat-matterport"):
        source.index("train")
    with pytest.raises(SourceError, match=r"expected the folder rgb/hm3d/ in .*--components hm3d"):
        HM3D(root / "rgb")
