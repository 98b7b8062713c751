"""The runner on builds whose truth is known by hand: scores, resuming, processes, and predictors that misbehave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_builds import build_toy
from bench_source import INTRINSICS, make_toy
from conftest import REPOSITORY
from depthvlm.benchmark.build.shard_writer import BuildError
from depthvlm.benchmark.scoring.eval_sets import EvalSet, open_sets
from depthvlm.benchmark.scoring.point_clouds import point_cloud_f_score
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.results import EvaluationError, ImageResult, Result, lines_path, read_lines
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate
from depthvlm.benchmark.scoring.tasks import make_example, score_map
from depthvlm.benchmark.systems import PredictorError, make_predictor
from depthvlm.benchmark.systems.interface import DensePredictor, PointAnswer, PointPredictor
from torch.nn import functional
from typer.testing import CliRunner

from depthvlm.cli import app as cli


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    build_toy(make_toy(folder / "download"), folder / "build", "test")  # 16 images of 64x48 with depth of 32x24
    return folder / "build"


@pytest.fixture(scope="module")
def toy(build) -> EvalSet:
    [one] = open_sets(build)
    return one


def system(predictor, row="mine", **options) -> LoadedSystem:
    return LoadedSystem(row, row, predictor, options)


def run(predictor, toy, out, protocol="depthvlm", row="mine", options=None, **settings) -> Result:
    return evaluate(system(predictor, row, **(options or {})), toy, get_protocol(protocol), out, **settings)


class Map(DensePredictor):
    """A map of 2 m, and what `change` makes of it; counts its batches."""

    name = "map"

    def __init__(self, change=lambda depth: depth, fail_at: int | None = None):
        self.change, self.fail_at, self.batches = change, fail_at, []

    def predict(self, examples):
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append([example.id for example in examples])
        return [self.change(np.full(example.image.size[::-1], 2.0, np.float32)) for example in examples]


def scored(item, toy, prediction, protocol) -> ImageResult:
    return score_map(item, make_example(item, toy, protocol), prediction, protocol)


def test_the_constant_scores_what_is_counted_by_hand(toy, tmp_path):
    result = run(make_predictor("always-2m"), toy, tmp_path)
    truth = [np.array(toy.read(index).point_depths) for index in range(len(toy))]
    shares = [np.mean(np.maximum(2 / one, one / 2) < 1.25) for one in truth]
    assert 0 < np.mean(shares) < 1
    assert result.metrics["images"]["delta1"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert result.metrics["images"]["abs_rel"] == pytest.approx(np.mean([np.mean(abs(2 - t) / t) for t in truth]))
    assert (result.images, result.done, result.pixels, result.failures, result.complete) == (16, 16, 160, 0, True)
    assert result == Result.load(tmp_path / "mine" / "toy-test" / "depthvlm.json")
    low, high = result.confidence["delta1"]
    assert low < result.score() < high


def test_the_oracle_is_right_everywhere(toy, tmp_path):
    result = run(make_predictor("oracle"), toy, tmp_path)
    assert (result.score(), result.metrics["pixels"]["rmse"], result.parse_rate) == (1, 0, 1)


def test_a_point_is_read_where_it_lies_in_the_larger_image(toy):
    """Depth pixel c of 32 has its centre at (c + 0.5) * 2 - 0.5 of 64: between 2c and 2c + 1, and nearer to neither."""
    item, protocol = toy.read(0), get_protocol("depthvlm")
    expected = (item.points + 0.5) * 2 - 0.5
    assert np.array_equal(make_example(item, toy, protocol).points, expected)
    # A map that says at every pixel which depth pixel it belongs to, scaled to be the truth there.
    upsampled = np.kron(item.depth, np.ones((2, 2), np.float32))
    assert scored(item, toy, upsampled, protocol).metrics["abs_rel"] < 1e-6
    # Another seed draws other points.
    other = make_example(item, toy, get_protocol("depthvlm", seed=1))
    assert not np.array_equal(other.points, expected)
    columns, rows = ((other.points + 0.5) / 2 - 0.5).astype(int).T
    assert np.allclose(other.truth, item.depth[rows, columns])


def test_the_published_reading_takes_them_for_pixels_of_the_image(toy):
    item = toy.read(0)
    example = make_example(item, toy, get_protocol("depthvlm-published"))
    assert np.array_equal(example.points, item.points)
    # The canonical size is 1000 / 50 times the image's; there the point reads the depth pixel at half its place.
    columns, rows = (item.points * 20 * np.array([32, 24]) // (np.array([64, 48]) * 20)).T
    at_half = item.depth[rows, columns]
    assert np.allclose(example.truth, np.where(at_half > 0, at_half, item.point_depths))


def test_a_dense_map_is_read_at_the_pixels_of_the_truth(toy):
    item, valid = toy.read(0), toy.read(0).depth > 0
    prediction = np.random.default_rng(0).uniform(1, 3, (48, 64)).astype(np.float32)
    resized = functional.interpolate(torch.from_numpy(prediction)[None, None], size=(24, 32), mode="bilinear")[0, 0]
    expected = np.mean(np.abs(resized.numpy()[valid] - item.depth[valid]) / item.depth[valid])
    result = scored(item, toy, prediction, get_protocol("dense"))
    assert result.pixels == valid.sum()
    assert result.metrics["abs_rel"] == pytest.approx(expected, rel=1e-5)
    # Distances along the ray.
    result = scored(item, toy, np.full((48, 64), 2.0, np.float32), get_protocol("dense", depth_type="ray"))
    fx, fy, cx, cy = INTRINSICS
    rows, columns = np.indices((24, 32))
    x, y = ((columns + 0.5) * 2 - cx) / fx, ((rows + 0.5) * 2 - cy) / fy
    error = (np.sqrt(x**2 + y**2 + 1) * (2 - item.depth))[valid]
    assert result.metrics["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)


def test_a_place_that_takes_no_results_is_said_before_the_model_is_loaded(build, tmp_path, monkeypatch):
    monkeypatch.setattr("depthvlm.benchmark.systems.make_predictor", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below", "/proc/results"):
        place = tmp_path / out
        result = command("-p", "always-2m", "--data", str(build), out=place)
        assert result.exit_code == 2
        assert f"{place}: no results can be written there" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("line", ["{}", "[]", "cut off", '{"id": 1}'])
def test_a_damaged_line_is_named(toy, tmp_path, line):
    run(Map(), toy, tmp_path)
    [path] = tmp_path.rglob("*.images.jsonl")
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"images\.jsonl, line 1, is no result of an image .*Delete that file"):
        run(Map(), toy, tmp_path)


def test_extra_metrics_where_they_are_asked_for(toy, tmp_path):
    both = ["boundary_f1", "boundary_f1_released", "point_cloud_f_score"]
    found = run(Map(lambda d: d * np.float32(0.65)), toy, tmp_path, "dense", extra=both).metrics["images"]
    camera = tuple(number / 2 for number in INTRINSICS)
    depths = [toy.read(index).depth for index in range(len(toy))]
    expected = [point_cloud_f_score(np.full_like(depth, 1.3), depth, camera, depth > 0) for depth in depths]
    assert 0 < np.mean(expected) < 1
    assert found["point_cloud_f_score"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert "boundary_f1" not in found  # the truth is a slope without any: undefined
    assert found["boundary_f1_released"] == 0  # which the released program counts as 0
    with pytest.raises(ValueError, match="choose a dense protocol, not 'depthvlm'"):
        run(Map(), toy, tmp_path, extra=["boundary_f1"])


def scores(path: Path) -> list[dict]:
    return [json.loads(one.to_json()) | {"seconds": 0} for one in read_lines(path)]


def test_an_interrupted_run_goes_on_where_it_was(toy, tmp_path):
    whole = run(Map(), toy, tmp_path / "whole", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run(Map(fail_at=3), toy, tmp_path / "broken", batch_size=3)
    folder = tmp_path / "broken" / "mine" / "toy-test"
    assert not (folder / "depthvlm.json").exists()  # no score of a part
    [part] = folder.glob("*.part0.jsonl")
    kept = {one.id for one in read_lines(part)}
    assert 0 < len(kept) < 16
    with part.open("a") as file:
        file.write('{"id": "cut of')  # as a kill leaves it
    again = Map()
    assert run(again, toy, tmp_path / "broken", batch_size=3).metrics == whole.metrics
    assert sorted(image for batch in again.batches for image in batch) == sorted(set(toy.ids) - kept)
    ours, theirs = (lines_path(tmp_path / name / "mine" / "toy-test" / "depthvlm.json") for name in ("broken", "whole"))
    assert scores(ours) == scores(theirs)
    assert not list(folder.glob("*.part*"))
    done = Map()
    assert run(done, toy, tmp_path / "broken").metrics == whole.metrics
    assert done.batches == []


def test_other_settings_in_the_same_place_are_refused(toy, tmp_path):
    run(Map(), toy, tmp_path, options={"dtype": "float32"})
    with pytest.raises(EvaluationError, match=r"options: .*float32.* there, .*bfloat16.* now"):
        run(Map(), toy, tmp_path, options={"dtype": "bfloat16"})


def test_a_part_of_a_set_is_called_one(toy, build, tmp_path):
    some = run(Map(), toy, tmp_path, limit=4)
    assert (some.done, some.images, some.limit, some.complete) == (4, 16, 4, False)
    lines = read_lines(tmp_path / "mine" / "toy-test" / "depthvlm-first4.images.jsonl")
    assert [one.id for one in lines] == [toy.ids[index] for index in (0, 4, 8, 12)]
    assert run(Map(), toy, tmp_path, limit=16).complete
    given = ("-p", "always-2m", "-d", str(build))
    shown = command(*given, "--limit", "4", out=tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "4 of 16, partial" in shown.output
    assert "partial" not in command(*given, out=tmp_path).output


@pytest.mark.slow
def test_two_processes_score_each_image_once(build, toy, tmp_path):
    command = ["bench", "eval", "-p", "always-2m", "-d", str(build), "--batch-size", "3", "-o", str(tmp_path / "two")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "depthvlm"]
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one = run(make_predictor("always-2m"), toy, tmp_path / "one", row="always-2m")
    two = Result.load(tmp_path / "two" / "always-2m" / "toy-test" / "depthvlm.json")
    assert (two.metrics, two.confidence) == (one.metrics, one.confidence)
    found, expected = (scores(lines_path(tmp_path / n / "always-2m/toy-test/depthvlm.json")) for n in ("two", "one"))
    assert found == expected


def test_what_is_no_depth_counts_as_wrong(toy, tmp_path):
    def spoil(depth):
        depth[:, ::4], depth[:, 1::4], depth[:, 2::4] = np.nan, -2.0, 0.0
        return depth

    result = run(Map(spoil), toy, tmp_path, "dense")
    assert (result.failures, result.score()) == (result.pixels, 0)
    assert "abs_rel" not in result.metrics["images"]


class Answers(PointPredictor):
    """What `answer` makes of an image."""

    name = "few"

    def __init__(self, answer):
        self.answer = answer

    def predict(self, examples):
        return [self.answer(example) for example in examples]


class Nothing(DensePredictor):
    name = "nothing"

    def predict(self, examples):
        return None


FEW = Answers(lambda example: [PointAnswer(1.0, "1 m")])


@pytest.mark.parametrize(
    ("predictor", "protocol", "error", "message"),
    [
        (Map(lambda depth: depth[:-1]), "depthvlm", PredictorError, r"shape \(47, 64\) for the image"),
        (Map(lambda depth: depth.astype(str)), "depthvlm", PredictorError, "not of metres"),
        (Nothing(), "depthvlm", PredictorError, "returned nothing"),
        (FEW, "depthvlm", PredictorError, "'few' gave"),
        (FEW, "dense", ValueError, "scores whole maps"),
    ],
)
def test_answers_that_are_none(toy, tmp_path, predictor, protocol, error, message):
    with pytest.raises(error, match=message):
        run(predictor, toy, tmp_path, protocol, predictor.name)


def test_what_cannot_be_read_in_words_is_wrong_and_counted(toy, tmp_path):
    nan = float("nan")
    mumbles = Answers(lambda e: [PointAnswer(t if i % 2 else nan, "?") for i, t in enumerate(e.truth)])
    result = run(mumbles, toy, tmp_path)
    assert (result.parse_rate, result.failures, result.score()) == (0.5, 80, 0.5)
    [first, *_] = read_lines(tmp_path / "mine" / "toy-test" / "depthvlm.images.jsonl")
    assert first.answers[0] is None
    assert first.texts == ["?"] * 10


def test_sets_that_are_not_there_or_too_small(build, toy, tmp_path):
    with pytest.raises(ValueError, match=r"scores 20 points an image, the build has 10 .*--points 20"):
        make_example(toy.read(0), toy, get_protocol("depthvlm", points=20))
    with pytest.raises(FileNotFoundError):
        open_sets(tmp_path / "nothing")
    with pytest.raises(BuildError, match="no finished build of ddad test"):
        open_sets(build, sources=("ddad",))


def command(*arguments: str, out: Path):
    return CliRunner().invoke(cli.app, ["bench", "eval", *arguments, "-o", str(out)], env={"COLUMNS": "120"})


STOPPED = ("127.0.0.1:9", "the same command goes on")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-p", "always2m"), 2, ["Did you mean always-2m"]),
        (("-p", "always-2m", "--protocol", "nope"), 2, ["Unknown protocol 'nope'"]),
        # A server that is not there: what was scored is kept, and there is no summary.
        (("-p", "api:m@http://127.0.0.1:9", "--option", "max_retries=0", "--option", "timeout=2"), 1, STOPPED),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(build, tmp_path, arguments, code, words):
    cache = ("--option", f"cache={tmp_path / 'cache'}") if code == 1 else ()
    shown = command(*arguments, *cache, "-d", str(build), out=tmp_path / "out")
    assert shown.exit_code == code, shown.stderr
    assert [word for word in words if word not in shown.stderr] == []
    assert "Traceback" not in shown.stderr
    assert not list((tmp_path / "out").rglob("*.json"))
