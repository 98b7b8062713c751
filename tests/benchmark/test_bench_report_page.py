"""The page, its plots and the command: numbers by hand, escapes, pictures, and a run from build to report."""

import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from bench_builds import build_toy
from bench_source import make_toy
from depthvlm.benchmark.build.inspection import label_corners
from depthvlm.benchmark.report.inputs import SameImages, read_inputs, same_images
from depthvlm.benchmark.report.model import plain, time_text
from depthvlm.benchmark.report.page import compare_systems, picture_uri, to_page, worst_images, worst_points
from depthvlm.benchmark.report.plots import (
    BarSeries,
    SpeedPoint,
    _label_points,
    bars_of,
    bin_by_distance,
    distance_bins,
    plot_bars,
    plot_distance,
    plot_speed,
    speed_points,
)
from depthvlm.benchmark.report.tables import build_report
from depthvlm.benchmark.scoring.eval_sets import EvalSet
from depthvlm.benchmark.scoring.protocols import PROTOCOLS, get_protocol
from depthvlm.benchmark.scoring.results import ImageResult, lines_path
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate
from depthvlm.benchmark.systems.interface import Constant, Oracle
from matplotlib.figure import Figure
from toy_pages import Page, embedded
from toy_results import make
from toy_source_files import png
from typer.testing import CliRunner

from depthvlm.cli import app as cli


def with_lines(path: Path, scores: dict[str, float], truth=(1.0,), answers=(1.0,)) -> Path:
    """Lines of single images beside a result."""
    rest = 10, 0, {}, list(truth), list(answers), [(5.0, 5.0)]
    write_lines(path, *((name, {"delta1": score, "abs_rel": 1 - score}, *rest) for name, score in scores.items()))
    return path


def write_lines(path: Path, *lines: tuple) -> None:
    lines_path(path).write_text("".join(ImageResult(*line).to_json() + "\n" for line in lines))


def pair(folder: Path, first: dict[str, float], second: dict[str, float]) -> tuple[SameImages, dict]:
    """Two systems under one protocol, and the lines of their images."""
    for name, scores, score in (("First", first, 0.5), ("Second", second, 0.25)):
        result = make(folder, "nyuv2", score, name=name, row=name.lower(), images=3, done=len(scores), pixels=30)
        with_lines(result, scores)
    group = only_group(folder)
    return group, group.lines([])


def drawn(size: tuple[int, int], points: list) -> np.ndarray:
    """The pixels of a blue picture with its worst points."""
    image = png(np.full((size[1], size[0], 3), (0, 0, 255), np.uint8))
    uri = picture_uri(image, worst_points(ImageResult("a", {}, len(points), 0, {}, *zip(*points, strict=True)), 9))
    return embedded(uri).astype(int)


def only_group(folder: Path) -> SameImages:
    [group] = same_images(read_inputs([folder]).measured)
    return group


def command(*arguments: object):
    return CliRunner().invoke(cli.app, ["bench", "report", *map(str, arguments)])


class TestDistance:
    def test_by_hand(self):
        # Up to 1 m: one right (error 0.2), one failure. Up to 2 m: none. Up to 4 m: off by 100 %, off by 10 %.
        near, none, far = bin_by_distance([0.5, 0.9, 2.0, 3.0], [0.6, math.nan, 4.0, 3.3], (0, 1, 2, 4))
        assert none is None
        for sums, failures, abs_rel in ((near, 1, 0.2), (far, 0, 0.55)):
            assert (sums.pixels, sums.failures) == (2, failures)
            assert (sums.metrics()["delta1"], sums.metrics()["abs_rel"]) == (0.5, pytest.approx(abs_rel))

    def test_edges_and_errors(self):
        bins = bin_by_distance([1.0, 2.0, 500.0], [1.0, 1.0, 500.0])
        assert [place for place, sums in enumerate(bins) if sums] == [1, 2, len(bins) - 1]
        with pytest.raises(ValueError, match=r"must be \(n,\) both, got \(2,\) and \(1,\)"):
            bin_by_distance([1.0, 2.0], [1.0])
        with pytest.raises(ValueError, match="no true depth above 0 m"):
            bin_by_distance([0.0], [1.0])

    def test_out_of_lines(self, tmp_path):
        path = make(tmp_path, "nyuv2", 0.5, images=2, done=2)
        with_lines(path, {"a": 1.0, "b": 0.0}, truth=[1.5, 7.0], answers=[1.5, None])
        group = only_group(tmp_path)
        found = [sums for sums in distance_bins(group.lines([]))["Mine"] if sums]
        assert [(sums.pixels, sums.failures, sums.metrics()["delta1"]) for sums in found] == [(2, 0, 1), (2, 2, 0)]


class TestPairs:
    def test_by_hand(self, tmp_path):
        # The same difference on every image: every resample gives it.
        group, lines = pair(tmp_path, {"a": 0.75, "b": 0.5, "c": 0.25}, {"a": 0.5, "b": 0.25, "c": 0.0})
        [row] = compare_systems(group, lines, None, [])
        assert (row.first, row.second, row.of) == ("Second", "First", 3)  # against the best
        assert (row.comparison.estimate, row.comparison.low, row.comparison.high) == pytest.approx((-0.25,) * 3)
        [row] = compare_systems(group, lines, "Second", [])
        assert (row.first, row.comparison.estimate, row.comparison.images) == ("First", pytest.approx(0.25), 3)

    def test_common_images_alone(self, tmp_path):
        group, lines = pair(tmp_path, {"a": 1.0, "b": 1.0}, {"b": 0.5, "c": 0.0})
        [row] = compare_systems(group, lines, "Second", [])
        assert (row.comparison.images, row.of, row.comparison.estimate) == (1, 2, 0.5)

    def test_never_across_protocols_or_data(self, tmp_path):
        for changes in ({"protocol": "dense"}, {"data_hash": "b" * 64}, {"split": "train"}, {}):
            with_lines(make(tmp_path, "nyuv2", 0.5, images=1, done=1, **changes), {"a": 1.0})
        groups = same_images(read_inputs([tmp_path]).measured)
        assert [len(group.systems) for group in groups] == [1, 1, 1, 1]

    def test_lines_that_are_not_there(self, tmp_path):
        make(tmp_path, "nyuv2", 0.5)
        notes: list[str] = []
        assert only_group(tmp_path).lines(notes) == {}
        assert "no lines of single images beside 0.json" in notes[0]


class TestWorst:
    def test_order(self, tmp_path):
        scores = {"a": {"delta1": 0.5, "abs_rel": 9.0}, "b": {"delta1": 0.0, "abs_rel": 0.5}}
        scores |= {"c": {"delta1": 0.0}, "d": {"delta1": 0.0, "abs_rel": 0.75}}
        path = make(tmp_path, "nyuv2", 0.5, images=4, done=4)
        write_lines(path, *((name, metrics, 10, 0) for name, metrics in scores.items()))
        found = worst_images(only_group(tmp_path).lines([])["Mine"], 3)
        assert [image.id for image in found] == ["c", "d", "b"]  # without any answer, then by abs_rel

    def test_points(self):
        truth, answers = [1.0, 2.0, 4.0, 3.0], [1.2, 4.0, None, 3.0]
        rows = worst_points(ImageResult("a", {}, 4, 1, {}, truth, answers, [(i, 0) for i in range(4)]), 3)
        assert [(row.number, row.place, row.truth, row.answer, row.right) for row in rows] == [
            (1, (2, 0), 4.0, None, False),
            (2, (1, 0), 2.0, 4.0, False),
            (3, (0, 0), 1.0, 1.2, True),
        ]

    def test_pictures(self):
        picture = drawn((840, 200), [(1.0, 1.0, (200, 100)), (1.0, 3.0, (600, 100))])
        assert picture.shape == (100, 420, 3)
        # Half the size: the right point is green at (100, 50), the wrong one red at (300, 50).
        assert [picture[row, column].argmax() for row, column in ((50, 100), (50, 300), (10, 10))] == [1, 0, 2]
        small = drawn((84, 40), [(1.0, 3.0, (20, 10))])
        assert small.shape == (200, 420, 3)
        assert small[52, 102].argmax() == 0  # five times the size: the middle of the pixel 20, 10


class TestLabels:
    def test_sides(self):
        """In a picture of 100x60: to the right, to the left at the right border, inside at the upper border."""
        corners = label_corners([(20, 30), (95, 30), (20, 1)], [(10, 8)] * 3, (100, 60))
        assert corners == [(27, 26), (78, 26), (27, 0)]
        assert label_corners([(5, 5)], [(40, 20)], (10, 10)) == [(0, 0)]  # larger than the picture

    def test_none_lies_over_another(self):
        points = [(50.0, 40.0), (52.0, 41.0), (48.0, 42.0), (51.0, 38.0)]
        corners = label_corners(points, [(12, 8)] * 4, (100, 80))
        for (left, top), (other_left, other_top) in combinations(corners, 2):
            assert abs(left - other_left) >= 12 or abs(top - other_top) >= 8


def test_numbers():
    seconds = {13 * 3600.0: "46,800s", 2.484: "2.48s", 0.42: "0.42s", 0.0621: "62.1ms", 1.05e-4: "0.105ms"}
    seconds |= {9.48e-5: "94.8µs", 1e-6: "1µs"}
    assert {each: time_text(each) for each in seconds} == seconds
    rates = {10_554.0: "10,600", 16.1: "16.1", 4.0: "4", 0.002: "0.002", 0.99999: "1"}
    assert {each: plain(each) for each in rates} == rates


class TestPlots:
    def test_what_the_bars_show(self, tmp_path):
        ours = {"name": "DepthVLM-4B", "row": "depthvlm-4b"}
        make(tmp_path, "waymo", 0.75, **ours, done=4)
        make(tmp_path, "synthetic", 0.5)
        make(tmp_path, "waymo", 0.25, "dense", **ours)
        found = bars_of(build_report(read_inputs([tmp_path])))
        names = ["dense", "depthvlm", "depthvlm"]
        assert [bars.title.split()[-2:] for bars in found] == [[name, PROTOCOLS[name].hash()] for name in names]
        assert [bars.sets for bars in found] == [["Waymo"], ["Waymo"], ["synthetic"]]
        [dense], [mine], [outside] = (bars.series for bars in found)
        assert (mine.scores, mine.partial) == ({"Waymo": 0.75}, {"Waymo"})
        assert mine.published["Waymo"] == 0.879  # table 1, Ours-4B
        assert mine.intervals == {"Waymo": pytest.approx((0.7, 0.8))}
        assert (dense.scores, dense.published) == ({"Waymo": 0.25}, {})  # not the paper's protocol
        assert (outside.scores, outside.published) == ({"synthetic": 0.5}, {})

    def test_speed(self, tmp_path):
        speed = {"seconds": 10.0, "images_per_second": 4.0, "device": "cpu"}
        make(tmp_path, "waymo", 0.5, speed=speed)
        make(tmp_path, "ddad", 0.5, speed=speed, done=4)
        points = speed_points(read_inputs([tmp_path]).measured)
        assert [(point.label, point.seconds, point.score, point.published) for point in points] == [
            ("waymo", 0.25, 0.5, False),
            ("DepthLM-12B, Avg. (paper)", 46_800, 0.730, True),
            ("Youtu-VL-4B, Avg. (paper)", 2.48, 0.603, True),
            ("Ours-4B, Avg. (paper)", 0.42, 0.868, True),
        ]

    def test_same_plot_same_bytes(self):
        bins = {"$a_b$ <x>": bin_by_distance([1.5, 7], [1.5, math.nan]), "_y": bin_by_distance([1.5], [3.0])}
        series = [
            BarSeries("$x", {"A": 0.5}, {"A": (0.4, 0.6)}, {"A": 0.8}),
            BarSeries("y", {"B": 1}, {}, {}, frozenset("B")),
        ]
        points = [SpeedPoint("$x", "A", 0.1, 0.5), SpeedPoint("y", "A", 100.0, 0.6, published=True)]
        for draw in (lambda: plot_bars(["A", "B"], series), lambda: plot_distance(bins), lambda: plot_speed(points)):
            svg = draw()
            assert svg == draw()
            assert b"<dc:date>" not in svg
            assert re.search(rb"<svg [^>]*viewBox=", svg)

    def test_labels_of_points_that_lie_together(self):
        """A line of type of 7 points is 8 high: the second of two equal points has its label that much higher."""
        points = [SpeedPoint(name, name, 1.0, 0.5) for name in "AB"] + [SpeedPoint("C", "C", 1000.0, 0.5)]
        figure = Figure(figsize=(8, 4))
        axes = figure.subplots()
        axes.set(xscale="log", xlim=(0.1, 10_000), ylim=(0, 1))
        _label_points(axes, points, ["black"] * 3)
        assert [label.xyann for label in axes.texts] == [(7, 0), (7, pytest.approx(8)), (7, 0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """
    A toy set built, and scored with 2 m everywhere and with the truth. Depth of order o (0 to 3) is
    1 + 0.1 o + 0.01 column + 0.001 row metres at columns 2 to 31 and rows 1 to 23, and all of them are points.
    """
    root = tmp_path_factory.mktemp("run")
    make_toy(root / "download")
    build_toy(root / "download", root / "build", "test", "nyuv2", points=690)
    toy = EvalSet(root / "build", "nyuv2")
    protocol = get_protocol("depthvlm")
    evaluate(LoadedSystem("always-2m", "Always Output 2.0m", Constant(2.0), {}), toy, protocol, root / "results")
    evaluate(LoadedSystem("oracle", "Oracle", Oracle(), {}), toy, protocol, root / "results", limit=4)
    return root


class TestFromBuildToReport:
    def test_scores(self, run):
        [table] = build_report(read_inputs([run / "results"]), [1]).tables
        constant, oracle = table.measured
        # 2 m is right beyond 1.6 m: in the 4 of 16 frames of order 3 where 10 column + row > 300, 62 of 690 points.
        assert constant.cells[8].value == pytest.approx(62 / 690 / 4)
        assert (oracle.cells[8].text, oracle.details[0].partial) == ("1.000*", "4 of 16 images (--limit 4)")
        assert [row.name for row in table.rows][:2] == ["Always Output 2.0m"] * 2

    def test_command(self, run, tmp_path):
        outputs = []
        for name in ("one", "two"):
            result = command(run / "results", "--out", tmp_path / name, "--data", run / "build", "--worst", "2")
            assert result.exit_code == 0, result.output
            files = sorted(path for path in (tmp_path / name).iterdir() if path.is_file())
            outputs.append({path.name: path.read_bytes() for path in files})
        assert outputs[0] == outputs[1]
        assert list(outputs[0]) == ["report.csv", "report.html", "report.json", "report.md"]
        assert "0.022" in result.stdout
        assert "4 of 16 images (--limit 4)" in result.stdout
        page = Page(outputs[0]["report.html"].decode())
        kinds = [source.split(";")[0] for source in page.sources]
        # Bars, distance, two worst images of either system, speed.
        assert kinds == ["data:image/svg+xml"] * 2 + ["data:image/jpeg"] * 4 + ["data:image/svg+xml"]
        assert "Table 1. Vision-language models" in page.text
        # Behind table 1, and beside the difference of the pair.
        assert page.text.count("4 of 16*") == 2

    @pytest.mark.parametrize(
        ("name", "start"),
        [("csv", "table,group,system"), ("json", "{"), ("markdown", "# "), ("text", "DepthVLM-Bench")],
    )
    def test_formats(self, run, name, start):
        result = command(run / "results", "--table", "1", "--format", name)
        assert result.exit_code == 0
        assert result.stdout.startswith(start)
        assert "Pixtral" not in result.stdout  # of table 3

    def test_pictures_of_other_data(self, run, tmp_path):
        build_toy(make_toy(tmp_path / "download", frames=1), tmp_path / "build", "test", "nyuv2", points=690)
        inputs = read_inputs([run / "results"])
        page = Page(to_page(build_report(inputs), inputs, [tmp_path / "build"], worst=1))
        assert not any(source.startswith("data:image/jpeg") for source in page.sources)
        # Each system's worst; both are the same image or two.
        assert re.search("No pictures of [12] of the worst images: no build given with --data holds", page.text)

    def test_errors(self, run, tmp_path):
        results, out = run / "results", ("--out", tmp_path / "out")
        for arguments, words in (
            (("--table", "5"), "A report has no table 5: choose from 1, 2, 3, 8"),
            ((tmp_path / "gone",), "There is no"),
            (("--data", run / "build"), "give --out too"),
            ((results, *out, "--baseline", "x"), "No measured system is called 'x': there are Always"),
            ((results, *out, "--data", tmp_path), "has no finished build"),
        ):
            result = command(*arguments)
            assert result.exit_code != 0
            assert words in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    path = make(tmp_path, evil, 0.5, name=evil, row=evil, images=1, done=1, speed={"seconds": 1.0, "device": evil})
    with_lines(path, {evil: 0.5})
    inputs = read_inputs([tmp_path])
    text = to_page(build_report(inputs, date=evil), inputs)
    page = Page(text)
    assert "<script" not in text
    assert page.text.count("<script>alert(1)</script>") > 5
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
