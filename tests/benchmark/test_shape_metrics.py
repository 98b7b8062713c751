"""Metrics of shape in an evaluation: what is known of a source, token grids, other views, and the report's tables."""

from dataclasses import replace

import numpy as np
import pytest
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.report.inputs import read_inputs
from depthvlm.benchmark.report.shape import shape_tables
from depthvlm.benchmark.scoring.consistency import consistency
from depthvlm.benchmark.scoring.eval_sets import open_sets
from depthvlm.benchmark.scoring.grid_artefact import grid_spectrum, pooled_spectrum
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.results import lines_path, read_lines
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate, result_path
from depthvlm.benchmark.scoring.scene_masks import mask_reader
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.synthetic.scenes import render_scene
from depthvlm.benchmark.systems.interface import DensePredictor, TokenGrid
from scipy.io import savemat
from toy_examples import toy_example
from typer.testing import CliRunner

from depthvlm.cli import app as cli

COUNT = 6


class Brightness(DensePredictor):
    """A map of 1 m, and 1 m more where a pixel is white."""

    name = "brightness"

    def predict(self, examples):
        return [np.asarray(one.image.convert("L"), np.float32) / 255 + 1 for one in examples]


class Truth(DensePredictor):
    """The renderer's depth, with a wave of three periods a token across the picture; sky is 80 m."""

    name = "truth"

    def __init__(self, wave: float = 0.0):
        self.wave = wave

    def predict(self, examples):
        found = []
        for one in examples:
            kind, _, seed = one.id.partition("/")
            depth = render_scene(int(seed), kind=kind).depth
            column = np.arange(256)
            found.append(np.where(depth > 0, depth, 80) * np.exp(self.wave * np.cos(2 * np.pi * 3 * column / 32)))
        return [depth.astype(np.float32) for depth in found]

    def token_grid(self, example):
        return TokenGrid(6, 8, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def scenes(folder):
    plan = plan_build(open_source("synthetic", "."), "test", COUNT, 10, 0, None, {})
    run_build(plan, open_source, ".", folder, workers=1)
    [one] = open_sets(folder)
    return one


def run(predictor, scenes, out, **settings):
    system = LoadedSystem(predictor.name, predictor.name, predictor, {})
    result = evaluate(system, scenes, get_protocol("dense"), out, **settings)
    return result, result_path(out, system, scenes, get_protocol("dense"))


def test_the_truth_has_no_error_of_shape(scenes, tmp_path):
    result, path = run(Truth(), scenes, tmp_path)
    scores = result.metrics["images"]
    assert scores["delta1"] == 1
    assert scores["edge_width"] == pytest.approx(0.8, abs=0.01)
    assert scores["edge_shown"] == 1
    assert scores["plane_flatness"] < 0.01
    assert scores["plane_orientation"] < 0.01
    assert [scores[name] for name in scores if name.startswith("ordinal")] == [0] * 7
    # The detector smooths, and finds edges of less than the ratio 1.25 too.
    assert scores["dbe_accuracy"] < 2
    assert "mirror" not in scores
    assert len(result.grid["x"]) == len(result.grid["y"]) == 16
    assert max(result.grid["x"][1:]) < 2
    lines = list(read_lines(lines_path(path)))
    assert len(lines) == COUNT


def test_a_wave_of_the_grid_is_found_and_reported(scenes, tmp_path):
    result, path = run(Truth(wave=0.03), scenes, tmp_path)
    own = [grid_spectrum(Truth(0.03).predict([toy(scenes, index)])[0], 32) for index in range(COUNT)]
    assert result.grid["x"] == pytest.approx(pooled_spectrum(own).ratios.tolist())
    assert int(np.argmax(result.grid["x"])) == 2
    tables = {table.key: table for table in shape_tables(read_inputs([path]).measured)}
    assert list(tables) == ["edges", "planes", "order", "grid"]
    [row] = tables["grid"].rows
    worst = row.cells[[column.key for column in tables["grid"].columns].index("grid_x_worst")]
    assert worst.value == pytest.approx(result.grid["x"][2])
    assert worst.interval[0] < worst.value < worst.interval[1]
    assert worst.text.endswith("harmonic 3)")
    assert row.cells[0].text == f"synthetic, {COUNT} images"
    # Columns that nothing fills are left out: no boundary F1 was asked for.
    assert [column.key for column in tables["edges"].columns][:2] == ["set", "edge_width"]


def toy(scenes, index):
    item = scenes.read(index)
    return replace(toy_example(pixels=np.asarray(item.image), intrinsics=item.intrinsics), id=item.id)


def test_other_views_by_hand():
    """The left half is 1 m, the right 2 m: mirrored back, every pixel is as it was; a constant in pixels is not."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 12:] = 255
    example = toy_example(pixels=pixels, intrinsics=(30.0, 30.0, 10.0, 8.0))
    maps = Brightness().predict([example])
    [found] = consistency(Brightness(), [example], maps)
    assert found["mirror"] == 0
    assert found["scale_median_0.5"] == found["scale_median_0.75"] == found["scale_median_1.5"] == 0

    class Side(Brightness):
        """Twice as far on the right, and as far as the image is wide; remembers the cameras that it was told."""

        def __init__(self):
            self.cameras = []

        def predict(self, examples):
            self.cameras += [one.intrinsics for one in examples]
            width, height = examples[0].image.size
            ramp = np.where(np.arange(width) < width // 2, 1.0, 2.0) * np.ones((height, 1))
            return [(width * ramp).astype(np.float32)] * len(examples)

    side = Side()
    [found] = consistency(side, [example], side.predict([example]))
    assert found["mirror"] == pytest.approx(np.log(2))
    assert found["scale_median_0.5"] == pytest.approx(np.log(0.5), abs=1e-6)
    assert found["scale_median_1.5"] == pytest.approx(np.log(1.5), abs=1e-6)
    assert side.cameras[1:] == [(15, 15, 5, 4), (22.5, 22.5, 7.5, 6), (45, 45, 15, 12), (30, 30, 14, 8)]


def test_consistency_and_its_settings(scenes, tmp_path):
    result, _ = run(Brightness(), scenes, tmp_path, extra=("consistency",), limit=2)
    assert result.metrics["images"]["mirror"] == 0
    assert result.metrics["images"]["scale_std_0.5"] > 0
    assert result.grid == {}
    with pytest.raises(ValueError, match="consistency are metrics of dense maps"):
        evaluate(
            LoadedSystem("b", "b", Brightness(), {}), scenes, get_protocol("depthvlm"), tmp_path, extra=("consistency",)
        )


def test_ibims_annotations(tmp_path):
    """Two walls and a table: three planes; where two kinds overlap, the later one counts."""
    wall = np.array([[1, 1, 2], [0, 0, 2]])
    table = np.array([[0, 0, 0], [1, 0, 0]])
    edges = np.array([[0, 1, 0], [0, 1, 0]], np.uint8)
    fields = {"edges": edges, "mask_wall": wall, "mask_table": table, "mask_floor": 0 * wall}
    savemat(tmp_path / "office_03.mat", {"data": fields})
    reader = mask_reader("ibims1", tmp_path)
    item = type("Item", (), {"id": "office_03", "depth": np.ones((2, 3))})()
    masks = reader(item)
    assert masks.planes.tolist() == [[1, 1, 2], [3, -1, 2]]
    assert masks.edges.tolist() == [[False, True, False]] * 2
    assert mask_reader("ibims1") is None
    assert mask_reader("nyuv2", tmp_path) is None
    item.depth = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"office_03.mat have the shapes \[\(2, 3\)"):
        reader(item)
    (tmp_path / "office_03.mat").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"office_03.mat cannot be read .*ibims1_core_mat.zip"):
        reader(item)
    with pytest.raises(FileNotFoundError, match="holds no"):
        mask_reader("ibims1", tmp_path / "nowhere")


@pytest.mark.usefixtures("scenes")
def test_masks_without_the_set_that_has_them_are_refused(folder, tmp_path):
    arguments = ["bench", "eval", "-p", "always-2m", "-d", str(folder), "-o", str(tmp_path), "--masks", "."]
    result = CliRunner().invoke(cli.app, [*arguments, "--protocol", "dense"])
    assert result.exit_code == 2
    assert "--masks is for the set ibims1" in result.stderr
