"""HM3D: rendered views of 1000 buildings."""

from __future__ import annotations

from .omnidata import OmnidataSource


class HM3D(OmnidataSource):
    """
    HM3D as the component of Omnidata (see [`OmnidataSource`] for the folders), with the official splits in the root or
    in `splits/`: metadata.csv of github.com/matterport/habitat-matterport-3dresearch (`scene,split,...`), or Omnidata's
    train_val_test_hm3d.csv (`id,train,val,test`).

    `train` is the official train (800 buildings), `test` the official val (100): as in the released annotations. The
    camera is in `point_*_view_*_domain_fixatedpose.json`. Other runs of Omnidata's annotator may store depth / 8192;
    this reader takes the published release, / 512.
    """

    name = "hm3d"
    title = "HM3D"
    depth_range = (0.01, 10.0)
    licence = "HM3D terms of use (Matterport), academic, no redistribution"
    homepage = "https://aihabitat.org/datasets/hm3d/"
    component = "hm3d"
    poses = ("fixatedpose", "point_info")
    split_files = ("metadata.csv", "train_val_test_hm3d.csv")
    split_hint = "metadata.csv is in github.com/matterport/habitat-matterport-3dresearch."
    official_test = "val"
