"""Taskonomy: rendered views of 537 buildings."""

from __future__ import annotations

from .omnidata import OmnidataSource


class Taskonomy(OmnidataSource):
    """
    Taskonomy as the component of Omnidata that its authors now distribute (see [`OmnidataSource`] for the folders),
    with a table of its official splits (`splits_taskonomy.zip` of github.com/StanfordVL/taskonomy, `id,train,val,test`)
    in the root or in `splits/`: train_val_test_fullplus.csv, or the smaller full, medium or tiny; the largest there is
    used.

    `train` is the official train, `test` the official test; val is left out. The camera is in
    `point_*_view_*_domain_point_info.json`.
    """

    name = "taskonomy"
    title = "Taskonomy"
    depth_range = (0.005, 15.0)
    licence = "Taskonomy terms of use, research only, no redistribution"
    homepage = "https://github.com/StanfordVL/taskonomy/tree/master/data"
    component = "taskonomy"
    split_files = tuple(f"train_val_test_{size}.csv" for size in ("fullplus", "full", "medium", "tiny"))
    split_hint = "It is in splits_taskonomy.zip of github.com/StanfordVL/taskonomy, data/assets."
    official_test = "test"
