"""The paper's numbers: against its text, against each other, and some by hand."""

import re
from decimal import ROUND_HALF_UP, Decimal

import pytest
from depthvlm.benchmark.build.sampling import EVALUATION_IMAGES, TRAINING_IMAGES
from depthvlm.benchmark.report.published import number_in, published_table, published_tables, same_name


def test_some_numbers():
    # Read off the page.
    numbers = {
        **{(1, "Ours-4B", "argoverse2"): "0.810", (1, "Ours-8B", "average"): "0.876"},
        **{(1, "Always Output 2.0m", "sunrgbd"): "0.380", (1, "Youtu-VL-4B", "eth3d"): "0.286"},
        **{(2, "Metric3Dv2", "waymo"): "0.923", (2, "DepthAnythingV3", "average"): "0.877"},
        **{(3, "Ours-8B", "ocrbench"): "862 (↑ 29)", (3, "DepthLM-12B", "pope"): "N/A"},
        (6, "Stage-1 + Stage-2 (unfreeze ViT)", "mmstar"): "54.60",
        **{(7, "Raw mixed-source", "ibims1"): "0.630", (8, "DepthLM-12B", "latency"): "13h"},
    }
    assert {(table, *cell): published_table(table).cell(*cell) for table, *cell in numbers} == numbers
    assert [len(list(published_table(number).rows())) for number in range(1, 11)] == [16, 11, 6, 4, 4, 4, 4, 3, 1, 1]


def test_every_average_as_printed():
    # delta1 of 0.8222 is printed as 0.823; the data say so.
    disagreeing = []
    for table in published_tables().values():
        for row in table.rows() if table.mean else ():
            cells = [Decimal(cell) for cell in row.cells]
            mean = (sum(cells[:-1]) / len(cells[:-1])).quantize(Decimal("0.001"), ROUND_HALF_UP)
            if mean != cells[-1]:
                disagreeing.append((table.number, row.name, str(mean), str(cells[-1])))
                assert any(row.name in note and str(cells[-1]) in note for note in table.notes)
    assert disagreeing == [(2, "UniDepthV2", "0.822", "0.823")]
    assert [table.number for table in published_tables().values() if table.mean] == [1, 2]


def test_changes_in_brackets():
    table = published_table(3)
    for size in ("4B", "8B"):
        for column in table.columns:
            ours, base = table.cell(f"Ours-{size}", column.key), table.cell(f"Qwen3-VL-{size}", column.key)
            score, sign, change = re.fullmatch(r"([\d.]+) \(([↑↓]) ([\d.]+)\)", ours).groups()
            assert Decimal(score) - Decimal(base) == Decimal(change) * (1 if sign == "↑" else -1)


@pytest.mark.parametrize(
    ("number", "row"),
    [
        (2, "Ours-4B"),
        (2, "Ours-8B"),
        (4, "Ours (Lightweight DPT)"),
        (5, "ViT Inter. + LLM Final (Two-stage)"),
        (6, "Stage-1 + Stage-2 (freeze ViT)"),
        (7, "Canonical f_c = 1000"),
    ],
)
def test_one_model_in_several_tables(number, row):
    one, table = published_table(1), published_table(number)
    keys = [column.key for column in table.scored if column.unit == "delta1"]
    assert set(keys) >= {"waymo", "nuscenes", "sunrgbd", "ibims1"}
    model = "Ours-8B" if "8B" in row else "Ours-4B"
    assert [table.cell(row, key) for key in keys] == [one.cell(model, key) for key in keys]


def test_image_counts():
    nine, ten = published_table(9), published_table(10)
    training = {column.key: number_in(nine.cell("Images", column.key)) for column in nine.columns}
    # "In total, the training set comprises 4.4M images" (appendix A).
    assert round(sum(training.values()) / 1e6, 1) == 4.4
    assert training == TRAINING_IMAGES
    assert {column.key: number_in(ten.cell("Images", column.key)) for column in ten.columns} == EVALUATION_IMAGES


def test_shape_of_the_data():
    assert list(published_tables()) == list(range(1, 11))
    for number, table in published_tables().items():
        assert table.source == f"Unlocking Dense Metric Depth Estimation in VLMs, table {number}"
        assert all(len(row.cells) == len(table.columns) for row in table.rows())
        assert len({column.key for column in table.columns}) == len(table.columns)
        numeric = [i for i, column in enumerate(table.columns) if column.unit != "text"]
        for row in table.rows():
            assert all(number_in(row.cells[i]) is not None or row.cells[i] == "N/A" for i in numeric)
        assert all((column.lmms_eval is not None) == (number == 3) for column in table.columns)


def test_numbers_and_names():
    cells = {"0.810": 0.81, "82.9 (↓ 0.5)": 82.9, "832 (↑ 15)": 832, "800K": 800_000, "13h": 46_800, "2.48s": 2.48}
    assert {cell: number_in(cell) for cell in cells} == cells
    assert [number_in(cell) for cell in ("N/A", "✗", "H × W", "dense pixel-level", "")] == [None] * 5
    assert same_name("Depth-Pro") == same_name("depth pro") != same_name("Depth Pro 2")
    assert same_name("Always Output 2.0m") != same_name("Always Output 20m")


def test_unknown():
    with pytest.raises(ValueError, match="No table 11: the paper's tables 1 to 10"):
        published_table(11)
    with pytest.raises(KeyError, match=r"table 1 has no cell \('Ours-4B', 'kitti'\)"):
        published_table(1).cell("Ours-4B", "kitti")


@pytest.mark.real_data
def test_against_the_text(shared):
    text = (shared / "paper" / "unlocking_dense_metric_depth_in_vlms.txt").read_text(encoding="utf-8")
    plain = re.sub(r"</?u>| \[(?:\d+|†|‡)\]|\$", "", text).replace(r"H \times W", "H × W")
    for number, table in published_tables().items():
        block = plain[plain.index(f"\nTable {number}: ") :].split("\n\n")[1]
        printed = [tuple(line.split("\t")) for line in block.splitlines()]
        rows = [(row.name if row.name != "Images" else "# Images", *row.cells) for row in table.rows()]
        assert [line for line in printed if line in rows] == rows
        # What is left are the heads of the columns and the titles of groups.
        assert not any(re.fullmatch(r"[\d.]+", cell) for line in printed if line not in rows for cell in line)
        for column in table.columns:
            assert column.title in block
