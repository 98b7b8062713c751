"""The report against numbers by hand: what stands beside what, what is never mixed, and what is said of it."""

import csv
import dataclasses
import io
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from depthvlm.benchmark.report.formats import to_csv, to_json, to_markdown, to_text
from depthvlm.benchmark.report.inputs import read_inputs
from depthvlm.benchmark.report.model import ReportRow, ReportTable
from depthvlm.benchmark.report.published import published_table
from depthvlm.benchmark.report.tables import MEASURED_GROUP, build_report
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.results import ImageResult, lines_path
from toy_results import HASH, NINE, make, write_lmms


def report_of(folder: Path, *tables: int):
    return build_report(read_inputs([folder]), tables or None)


def table_of(folder: Path, number: int = 1) -> ReportTable:
    return report_of(folder, number).tables[0]


def cells(table: ReportTable, row: ReportRow) -> dict[str, str]:
    return dict(zip((column.key for column in table.columns), (cell.text for cell in row.cells), strict=True))


def note(table: ReportTable, start: str) -> str:
    return next(note for note in table.notes if note.startswith(start))


class TestRows:
    def test_paper_rows_stay_as_they_are(self, tmp_path):
        make(tmp_path, "waymo", 0.5)
        for number in (1, 2, 3, 8):
            table = table_of(tmp_path, number)
            found = [(row.name, *(cell.text for cell in row.cells)) for row in table.rows if row.origin == "paper"]
            width = len(table.columns)
            published = [
                (row.name, *row.cells, *["-"] * (width - len(row.cells))) for row in published_table(number).rows()
            ]
            assert found == published

    def test_place_beside_the_same_system(self, tmp_path):
        make(tmp_path, "waymo", 0.75, name="qwen3-vl 4B", row="qwen3-vl-4b", parse_rate=0.9, failures=20)
        make(tmp_path, "waymo", 0.5, name="DepthVLM-4B", row="depthvlm-4b")
        make(tmp_path, "waymo", 0.25)
        for scenes in ("indoor", "outdoor"):
            make(tmp_path, "waymo", 0.5, name="DepthAnything", row=f"depth-anything-v1-{scenes}")
        table = table_of(tmp_path)
        rows, names = table.rows, [row.name for row in table.rows]
        assert names[names.index("Qwen3-VL-4B") + 1] == "qwen3-vl 4B"
        assert names[names.index("Ours-4B") + 1] == "DepthVLM-4B"
        assert (table.groups[-1].title, table.groups[-1].rows[-1].name) == (MEASURED_GROUP, "Mine")
        found = cells(table, rows[names.index("qwen3-vl 4B")])
        assert (found["waymo"], found["failures"], found["parse_rate"]) == ("0.750", "10.0%", "90.0%")
        assert (rows[-1].protocol, rows[-1].protocol_hash) == ("depthvlm", HASH)
        # Two systems of one name.
        names = [row.name for row in table_of(tmp_path, 2).rows]
        found = names[names.index("DepthAnything") + 1 :][:2]
        assert found == [f"DepthAnything [depth-anything-v1-{scenes}]" for scenes in ("indoor", "outdoor")]

    def test_what_stands_behind_a_score(self, tmp_path):
        make(tmp_path, "nyuv2", 0.5, failures=3, data_hash="b" * 64)
        [row] = table_of(tmp_path).measured
        [detail] = row.details
        assert (detail.set_name, detail.images, detail.done, detail.data_hash) == ("NYUv2", 20, 20, "b" * 64)
        assert (detail.failures, detail.pixels, detail.interval) == (3, 200, (0.45, 0.55))
        counts = "Images of the measured sets, and in the paper: NYUv2 20 (654)."
        assert note(table_of(tmp_path), "Images of") == counts

    def test_another_truth_than_the_papers(self, tmp_path):
        """The paper's labels of Argoverse 2 and Waymo are distances; its NYUv2 is of SUN RGB-D."""
        for dataset in ("argoverse2", "nyuv2", "ddad"):
            make(tmp_path, dataset, 0.5)
        make(tmp_path, "nyuv2-sunrgbd", 0.25, data_hash="b" * 64)
        table = table_of(tmp_path)
        assert note(table, "Argoverse2: the paper's labels are distances along the ray")
        assert note(table, "NYUv2: measured on the sensor's rawDepths; the paper's")
        assert {cells(table, row)["nyuv2"] for row in table.measured} == {"-", "0.500", "0.250"}
        folder = tmp_path / "ray"
        make(folder, "argoverse2", 0.5, protocol=get_protocol("depthvlm", depth_type="ray_truth"))
        assert not [each for each in table_of(folder).notes if "paper's labels" in each or "Not the paper's" in each]

    def test_outside(self, tmp_path):
        make(tmp_path, "synthetic", 0.5)
        make(tmp_path, "nyuv2", 0.75, split="train")
        report = report_of(tmp_path)
        assert [table.key for table in report.tables] == ["1", "2", "3", "8", "outside"]
        assert not report.tables[0].measured
        [row] = report.tables[-1].rows
        found = {"nyuv2 (train)": "0.750", "synthetic": "0.500", "failures": "0.0%", "parse_rate": "-"}
        assert cells(report.tables[-1], row) == found

    def test_no_results(self):
        report = build_report(read_inputs([]))
        assert [(table.key, table.measured) for table in report.tables] == [(key, []) for key in "1238"]
        with pytest.raises(ValueError, match="A report has no table 4: choose from 1, 2, 3, 8"):
            build_report(read_inputs([]), [4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("images"), "lacks images"),
        (lambda d: d.update(more=1), "has unknown fields: more"),
        (lambda d: d.update(metrics=[]), "wrong type in metrics"),
        (lambda d: d["metrics"]["images"].update(delta1="0.5"), "wrong type in metrics"),
        (lambda d: d.update(pixels="200"), "wrong type in pixels"),
        (lambda d: d.update(confidence={"delta1": [0.5]}), "wrong type in confidence"),
        (lambda d: d.update(speed={"seconds": "1"}), "wrong type in speed"),
        (lambda d: d.update(protocol={"name": "depthvlm"}), "lacks aggregation, hash of its protocol"),
        (lambda d: d["protocol"].update(aggregation="points"), "lacks the metrics of points"),
    ],
)
def test_results_that_lack_something(tmp_path, change, words):
    path = make(tmp_path, "waymo", 0.5)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"0\.json .*{words}\. Run its `bench eval` again"):
        read_inputs([path])


class TestAverages:
    def test_of_all_sets(self, tmp_path):
        for place, dataset in enumerate(NINE):
            make(tmp_path, dataset, (place + 1) / 10)
        one, two = report_of(tmp_path, 1, 2).tables
        # Waymo 0.2, nuScenes 0.4, ETH3D 0.5, SUN RGB-D 0.7, iBims-1 0.8 in table 2.
        assert [cells(table, table.measured[0])["average"] for table in (one, two)] == ["0.500", "0.520"]
        for path in sorted(tmp_path.glob("*.json"))[-2:]:
            path.unlink()
        table = table_of(tmp_path)
        found = cells(table, table.measured[0])
        assert (found["average"], found["nyuv2"]) == ("-", "-")
        assert note(table, "Mine") == f"Mine (depthvlm {HASH}): no average; not measured: IBims-1, NYUv2."

    def test_none_with_a_partial_set(self, tmp_path):
        for dataset in NINE:
            make(tmp_path, dataset, 0.5, done=12 if dataset == "ddad" else 20)
        make(tmp_path, "ddad", 0.5, name="Other", row="other", done=5, limit=5)
        table = table_of(tmp_path)
        mine, other = table.measured
        assert (cells(table, mine)["ddad"], cells(table, mine)["average"]) == ("0.500*", "-")
        assert (mine.details[2].partial, other.details[0].partial) == ("12 of 20 images", "5 of 20 images (--limit 5)")
        partial = [note for note in table.notes if note.startswith("* Partial")]
        assert partial[0] == f"* Partial, not a score of the set: Mine (depthvlm {HASH}) on DDAD: 12 of 20 images."
        assert "5 of 20 images (--limit 5)" in partial[1]
        assert note(table, "Mine").endswith("no average; partial: DDAD.")
        for shown in (to_text(report_of(tmp_path)), to_markdown(report_of(tmp_path)).replace("\\", "")):
            assert "0.500*" in shown
            assert "12 of 20*" in shown

    def test_interval_over_the_sets(self, tmp_path):
        # One image a set, so that every resample is the set itself.
        for place, dataset in enumerate(NINE):
            score = (place + 1) / 10
            path = make(tmp_path, dataset, score, images=1, done=1)
            lines_path(path).write_text(ImageResult("a", {"delta1": score}, 10, 0).to_json() + "\n")
        assert table_of(tmp_path).measured[0].cells[9].interval == pytest.approx((0.5, 0.5))
        text = to_text(report_of(tmp_path, 1))
        assert "Avg." in text
        assert "0.500 to 0.500" in text


class TestNothingMixed:
    def test_protocols(self, tmp_path):
        for dataset in NINE:
            make(tmp_path, dataset, 0.5, "dense" if dataset == "waymo" else "depthvlm")
        table = table_of(tmp_path)
        assert [(row.protocol, cells(table, row)["average"]) for row in table.measured] == [
            ("dense", "-"),
            ("depthvlm", "-"),
        ]
        assert note(table, "Rows under different protocols").endswith(f"depthvlm {HASH}.")
        assert "Not the paper's protocol, so not comparable with its rows: dense." in table.notes

    def test_aggregation_of_the_protocol(self, tmp_path):
        both = {"images": {"delta1": 0.25}, "pixels": {"delta1": 0.75}}
        make(tmp_path, "waymo", 0, metrics=both)
        make(tmp_path, "waymo", 0, "depthlm", metrics=both)
        table = table_of(tmp_path)
        assert [cells(table, row)["waymo"] for row in table.measured] == ["0.750", "0.250"]

    def test_data_of_one_system(self, tmp_path):
        for dataset in NINE:
            make(tmp_path, dataset, 0.5)
        make(tmp_path, "waymo", 0.75, data_hash="b" * 64)
        table = table_of(tmp_path)
        rows = [cells(table, row) for row in table.measured]
        expected = [("-", "0.500", "-"), ("0.500", "-", "-"), ("0.750", "-", "-")]
        assert [(row["waymo"], row["ddad"], row["average"]) for row in rows] == expected
        assert f"2 results for Waymo on different data ({'a' * 12}, {'b' * 12})" in note(table, "Mine")
        assert f"({'a' * 12}, {'b' * 12})" in note(table, "Waymo: measured on 2 different data")

    def test_data_of_two_systems(self, tmp_path):
        path = make(tmp_path, "waymo", 0.5)
        make(tmp_path, "waymo", 0.75, data_hash="b" * 64, name="Other", row="other")
        assert f"({'a' * 12}, {'b' * 12})" in note(table_of(tmp_path), "Waymo: measured on 2 different data")
        (tmp_path / "copy.json").write_bytes(path.read_bytes())  # the same result twice
        assert len(read_inputs([tmp_path, path, tmp_path]).measured) == 2

    def test_a_partial_run_beside_a_whole_one(self, tmp_path):
        make(tmp_path, "waymo", 0.5)
        make(tmp_path, "waymo", 0.75, done=4, limit=4)
        table = table_of(tmp_path)
        assert [cells(table, row)["waymo"] for row in table.measured] == ["0.500"]
        assert "a partial result for Waymo (4 of 20 images (--limit 4)) is left out" in note(table, "Mine")


def test_rows_of_speed(tmp_path):
    speed = {"seconds": 30.0, "images_per_second": 4.0, "device": "H100"}
    make(tmp_path, "waymo", 0.5, name="Ours-4B", row="depthvlm-4b", speed=speed)
    make(tmp_path, "waymo", 0.5, speed=speed | {"images_per_second": None}, parse_rate=1.0)
    make(tmp_path, "ddad", 0.5)
    table = table_of(tmp_path, 8)
    ours, mine = table.measured
    measured = {"latency": "0.25s", "set": "Waymo", "images_per_second": "4", "device": "H100"}
    unknown = dict.fromkeys(("forward_passes", "output_pattern", "post_processing"), "-")
    assert cells(table, ours) == unknown | measured
    assert cells(table, mine)["latency"] == "1.5s"  # 30 s for 20 images
    assert [row.name for row in table.rows][2:4] == ["Ours-4B", "Ours-4B"]
    assert note(table, "Mine: answers single points")


class TestLmmsEval:
    def test_scales(self, tmp_path):
        write_lmms(tmp_path / "20250101_results.json")
        table = table_of(tmp_path, 3)
        [row] = table.measured
        measured = {"mmbench_en": "83.1", "mmstar": "60.4", "blink": "63.0*", "ocrbench": "832", "pope": "90.0*"}
        assert cells(table, row) == measured | dict.fromkeys(("mmbench_cn", "scienceqa", "countbench"), "-")
        # 1.96 standard errors of one per cent.
        assert row.cells[-1].interval == pytest.approx((88.04, 91.96), abs=1e-3)
        assert note(table, "* Partial, not a score: Qwen/Qwen3-VL-4B-Instruct on POPE").endswith("8 of 9000 samples.")
        assert note(table, "* Partial, not a score: Qwen/Qwen3-VL-4B-Instruct on BLINK").endswith("21 of 22 samples.")
        names = [row.name for row in table.rows]
        assert names[names.index("Qwen3-VL-4B") + 1] == row.name
        tasks = report_of(tmp_path).tables[-1]
        assert tasks.key == "tasks"
        assert [tuple(cell.text for cell in row.cells) for row in tasks.rows] == [
            ("cv_bench", "score", "0.75", "-"),
            ("cv_bench", "score,flexible-extract", "0.5", "-"),
        ]

    def test_files_of_one_model_are_one_row(self, tmp_path):
        write_lmms(tmp_path / "a_results.json", results={"pope": {"pope_accuracy,none": 0.9}}, **{"n-samples": {}})
        write_lmms(tmp_path / "b_results.json", results={"ocrbench": {"ocrbench_accuracy,none": 0.5}})
        other = {"model": "qwen3_vl", "model_args": "pretrained=Qwen/Qwen3-VL-4B-Instruct,max_pixels=9"}
        write_lmms(tmp_path / "c_results.json", results={"pope": {"pope_accuracy,none": 0.8}}, config=other)
        table = table_of(tmp_path, 3)
        found = [cells(table, row) for row in table.measured]
        assert sorted((row["pope"], row["ocrbench"]) for row in found) == [("80.0*", "-"), ("90.0", "500")]


class TestFormats:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        speed = {"seconds": 1.0, "images_per_second": 20.0, "device": "NVIDIA H100 80GB"}
        for dataset in NINE:
            make(tmp_path, dataset, 0.5, speed=speed)
        make(tmp_path, "synthetic", 0.5, name="<b>|_x_*", row="other", done=3)
        write_lmms(tmp_path / "lmms" / "a_results.json")
        return tmp_path

    def test_text_is_120_columns_wide(self, folder):
        lines = to_text(report_of(folder)).splitlines()
        assert max(map(len, lines)) <= 120
        paper = next(line for line in lines if line.split()[:2] == ["Ours-8B", "paper"])
        printed = "0.798 0.865 0.813 0.831 0.928 0.901 0.889 0.936 0.920 0.876 - -"
        assert paper.split()[2:] == printed.split()
        mine = next(line for line in lines if line.split()[:2] == ["Mine", "measured"])
        assert mine.split()[2:] == ["0.500"] * 10 + ["0.0%", "-"]
        assert any(line.split()[:5] == ["Waymo", "20", "0.500", "0.450", "to"] for line in lines)

    def test_markdown(self, folder):
        lines = to_markdown(report_of(folder)).splitlines()
        assert "| UniDepthV2 | paper | 0.730 | 0.872 | 0.657 | 0.911 | 0.941 | 0.823 | - | - |" in lines
        assert any(line.startswith("| **&lt;b&gt;\\|\\_x\\_\\* (depthvlm ") for line in lines)
        for line, following in pairwise(lines):
            if line.startswith("|") and following.startswith("|"):
                assert line.replace("\\|", "").count("|") == following.replace("\\|", "").count("|")

    def test_csv(self, folder):
        report = report_of(folder)
        rows = list(csv.DictReader(io.StringIO(to_csv(report))))
        [pope] = [row for row in rows if row["column"] == "pope" and row["from"] == "measured"]
        assert float(pope["value"]) == pytest.approx(90)
        assert pope["partial"] == "8 of 9000 samples"
        [mine] = [row for row in rows if (row["table"], row["system"], row["column"]) == ("1", "Mine", "waymo")]
        assert [float(mine[key]) for key in ("value", "low", "high")] == pytest.approx([0.5, 0.45, 0.55])
        assert (mine["images"], mine["protocol_hash"], mine["data_hash"]) == ("20", HASH, "a" * 64)
        shown = sum(cell.text != "-" for table in report.tables for row in table.rows for cell in row.cells)
        assert len(rows) == shown

    def test_json(self, folder):
        report = report_of(folder)
        values = json.loads(to_json(report))
        assert values.pop("kind") == "depthvlm-bench-report"
        assert values == json.loads(json.dumps(dataclasses.asdict(report)))

    def test_same_results_same_bytes(self, folder, tmp_path_factory):
        there = tmp_path_factory.mktemp("elsewhere")
        for number, path in enumerate(sorted(folder.rglob("*.json"), reverse=True)):
            (there / f"{number:02d}_results.json").write_bytes(path.read_bytes())
        one, two = report_of(folder), report_of(there)
        for to in (to_text, to_markdown, to_csv, to_json):
            assert to(one) == to(two)
        assert "2025-01-02" in to_text(build_report(read_inputs([folder]), date="2025-01-02"))


class TestInputs:
    def test_errors(self, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken.json").write_text('{"row": ')
        (tmp_path / "other.json").write_text('{"a": 1}')
        old = make(tmp_path, "waymo", 0.5, format=0).name
        for name, words, error in (
            ("gone", "There is no .*gone: give result files", FileNotFoundError),
            ("empty", "holds no results", ValueError),
            ("broken.json", r"broken\.json is no JSON file", ValueError),
            ("other.json", r"other\.json is no result of `depthvlm bench eval`", ValueError),
            (old, "of format 1", ValueError),
        ):
            with pytest.raises(error, match=words):
                read_inputs([tmp_path / name])

    def test_what_else_lies_in_a_folder(self, tmp_path):
        path = make(tmp_path, "waymo", 0.5)
        (tmp_path / "report.json").write_text(to_json(report_of(tmp_path)))
        for name in ("0.run.json", "begun.run.json", "notes.json"):
            (tmp_path / name).write_text("{}")
        inputs = read_inputs([tmp_path])
        assert [one.name for one in inputs.unfinished] == ["begun.run.json"]
        assert [one.name for one in inputs.passed_over] == ["notes.json"]
        lines_path(path).write_text(ImageResult("a", {"delta1": math.pi}, 10, 0).to_json() + "\n")
        [item] = inputs.measured
        with pytest.raises(ValueError, match=r"holds 1 images, .* counts 20"):
            _ = item.images
