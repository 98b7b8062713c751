"""The page of a build: its statistics against numbers by hand, its pictures by their pixels."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import typer
from bench_source import ToySource654, make_toy, open_toy, toy_image
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.inspection import row_pictures, write_inspection
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.records import encode_depth
from toy_pages import Page, embedded
from typer.testing import CliRunner

from depthvlm.cli import bench_build as _command_bench_build


@pytest.fixture
def folder(tmp_path) -> Path:
    root = make_toy(tmp_path / "root", fail=["scene1/left_001"])
    for name, points in (("toy", 10_000), ("nyuv2", 5)):
        plan = plan_build(open_toy(name, root), "train", points=points, rows_per_shard=6)
        run_build(plan, open_toy, root, tmp_path / "build", workers=1)
    return tmp_path / "build"


def row(depth: np.ndarray, points: list[tuple[int, int]], scale: float = 1000.0) -> dict:
    depth_file = {"bytes": encode_depth(depth, scale)[0]}
    sizes = dict(zip(("depth_height", "depth_width"), depth.shape, strict=True))
    listed = [{"column": c, "row": r, "depth": depth[r, c] / scale} for c, r in points]
    return {"image": {"bytes": toy_image("a")}, "depth": depth_file, "depth_scale": scale, "points": listed} | sizes


def test_statistics(folder, tmp_path):
    found = write_inspection(folder, tmp_path / "page.html")["toy-train"]
    # 23 of 24 rows and 30 of 32 columns of every map, and all of them are points.
    assert (found.rows, found.scenes, found.cameras, found.points) == (15, 2, 2, 15 * 23 * 30)
    assert found.valid == pytest.approx((690 / 768,) * 3)
    # 1 m + 0.1 m an order (0 to 3) + 10 mm a column (2 to 31) + 1 mm a row (1 to 23).
    assert (found.metres[0], found.metres[-1]) == (1.021, 1.633)
    columns, rows = np.meshgrid(range(2, 32), range(1, 24))
    orders = [0, 1, 2, 3] * 3 + [0, 2, 3]
    everything = np.concatenate([(1000 + 100 * order + 10 * columns + rows).ravel() for order in orders]) / 1000
    assert found.metres == pytest.approx([np.quantile(everything, q) for q in (0, 0.05, 0.5, 0.95, 1)])
    assert found.focal_length == (50, 50, 50)
    assert found.fov == pytest.approx((2 * np.degrees(np.arctan(0.64)),) * 3)
    sizes = (found.image_sizes, found.depth_sizes, found.encodings)
    assert sizes == ([("64x48", 15)], [("32x24", 15)], [("uint16 / 1000", 15)])


def test_page(folder, tmp_path):
    write_inspection(folder, tmp_path / "page.html", samples=4)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert [embedded(uri).shape for uri in page.sources] == [(360, 480, 3)] * (2 * 4 * 3)
    # Nothing is loaded from elsewhere.
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", text)
    assert page.text.count("Toy <frames>, train") == 2
    assert "15 of 16 planned, 1 unusable" in page.text
    assert "1 frame(s) cannot be used: left out, none is replaced." in page.text
    # The midpoints of four stretches of 15 rows.
    everything = [f"scene{s}/{side}_{o:03d}" for s in range(2) for o in range(4) for side in ("left", "right")]
    everything.remove("scene1/left_001")
    assert re.findall(r"<b>(\S+) ·", text) == [everything[i] for i in (1, 5, 9, 13)] * 2
    assert re.search(r"64x48 px, depth 32x24 · fx 50.0 px · valid 89.8% · 1.02 m", page.text)


class TestPictures:
    def test_colours_are_places_between_the_ends(self):
        depth = np.zeros((24, 32), np.uint16)
        depth[:, 8:16], depth[:, 16:24], depth[:, 24:] = 1000, 4000, 16000
        pictures = row_pictures(row(depth, [(10, 3)]))
        assert (pictures.low, pictures.high, pictures.valid) == (1, 16, 0.75)
        colours, scale = embedded(pictures.depth), matplotlib.colormaps["turbo_r"]
        assert (colours[180, 60] == 0).all()
        for column, place in ((180, 0.0), (300, 0.5), (420, 1.0)):  # 4 m is half-way from 1 to 16, by ratio
            np.testing.assert_allclose(colours[180, column], np.array(scale(place)[:3]) * 255, atol=4)
        # The image shows where there is no depth.
        depth[:, :16], depth[:, 16:] = 0, 2000
        overlay = embedded(row_pictures(row(depth, [(20, 3)])).overlay).astype(int)
        colourful = np.ptp(overlay, axis=2).mean(axis=0)
        assert colourful[:230].max() < 6
        assert colourful[250:].min() > 30

    def test_no_lidar_point_is_lost(self):
        depth = np.zeros((1200, 1600), np.uint16)
        places = [(7, 3), (801, 600), (1599, 1199)]
        for column, down in places:
            depth[down, column] = 5000
        depth[601, 802] = 9000  # in the same pixel of the picture, behind
        pictures = row_pictures(row(depth, []))
        colours = embedded(pictures.depth)
        near = np.array(matplotlib.colormaps["turbo_r"](0.0)[:3]) * 255
        for column, down in places:
            found = colours[min(int(down * 0.3), 359), min(int(column * 0.3), 479)]
            np.testing.assert_allclose(found, near, atol=4)
        assert np.count_nonzero(colours.any(axis=2)) <= 9 * 4

    def test_points_lie_where_they_were_sampled(self):
        depth = np.full((24, 32), 2000, np.uint16)
        depth[20, 24] = 1000
        plain, marked = (embedded(row_pictures(row(depth, points)).image).astype(int) for points in ([], [(24, 20)]))
        changed = np.argwhere(np.abs(plain - marked).max(axis=2) > 60)
        # Pixel (24, 20) of 32x24 is at (24.5 * 15, 20.5 * 15) of 480x360; its label is to the right.
        left, (top, bottom) = changed[:, 1].min(), (changed[:, 0].min(), changed[:, 0].max())
        assert abs(left + 4 - 24.5 * 15) <= 6
        assert top > 20.5 * 15 - 18
        assert bottom < 20.5 * 15 + 18


def test_command(folder, tmp_path):
    app = typer.Typer()
    app.command()(_command_bench_build.inspect)

    def inspect(root: Path, name: str, *options: str):
        return CliRunner().invoke(app, [str(root), "--out", str(tmp_path / name), *options])

    run = inspect(folder, "a.html", "--samples", "1")
    assert run.exit_code == 0, run.output
    assert "toy-train" in run.output
    assert (tmp_path / "a.html").stat().st_size > 10_000
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["builds"]["toy-train"]["shards"][0]["file"]).unlink()
    run = inspect(folder, "b.html")
    assert run.exit_code == 1
    assert "is missing" in run.output
    assert not (tmp_path / "b.html").exists()
    assert "has no finished build" in inspect(tmp_path, "b.html").output


def test_names_are_text(tmp_path, monkeypatch):
    monkeypatch.setattr(ToySource654, "title", "<script>alert(1)</script>")
    root = make_toy(tmp_path / "root", frames=1)
    run_build(plan_build(open_toy("nyuv2", root), "train"), open_toy, root, tmp_path / "build", workers=1)
    write_inspection(tmp_path / "build", tmp_path / "page.html", samples=1)
    assert "<script" not in (tmp_path / "page.html").read_text()
