"""`depthvlm predict --known` and `--lidar`, on a tiny model with random weights, and the files of known distances."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from toy_images import save_picture

from depthvlm.cli.known_points import read_known_points


@pytest.fixture
def predict(checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command in a folder with two images; the results are in `out`."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.png", "b.jpg")):
        save_picture(tmp_path / "photos" / name, seed=seed)
    options = ("--model", checkpoint, "--device", "cpu", "--fov", 60, "--formats", "npy,json", "--out", "out")
    return functools.partial(run, "predict", *options)


def test_a_known_distance_is_met_and_another_one_predicts_again(predict):
    plain = predict("photos/a.png", "--out", "plain")
    before = np.load("plain/a_depth.npy")
    result = predict("photos/a.png", "--known", "10.5,20.5,3.5")
    after = np.load("out/a_depth.npy")
    assert after[20, 10] == pytest.approx(3.5)
    np.testing.assert_allclose(after, before * np.float32(3.5 / before[20, 10]), rtol=1e-5)
    assert "calibrated" not in plain.output
    assert "calibrated by scale: factor" in result.output
    assert "used 1 of 1 known distances" in result.output
    record = json.loads(Path("out/a.json").read_text())["calibration"]
    assert record["factor"] == pytest.approx(3.5 / before[20, 10])

    assert "Skipped 1 complete" in predict("photos/a.png", "--known", "10.5,20.5,3.5").output
    assert "1 done" in predict("photos/a.png", "--known", "10.5,20.5,7").output
    assert np.load("out/a_depth.npy")[20, 10] == pytest.approx(7)
    assert "1 done" in predict("photos/a.png").output
    np.testing.assert_array_equal(np.load("out/a_depth.npy"), before)


def test_a_folder_of_lidar_has_a_file_for_each_image(predict):
    predict("photos", "--out", "plain")
    Path("lidar").mkdir()
    for name, factor in (("a", 2.0), ("b", 3.0)):
        depth = np.load(f"plain/{name}_depth.npy")
        rows = [(x + 0.5, y + 0.5, factor * depth[y, x]) for x, y in ((1, 2), (30, 5), (7, 40), (50, 30))]
        Path(f"lidar/{name}.csv").write_text("x,y,depth\n" + "".join(f"{x},{y},{m:.9g}\n" for x, y, m in rows))
    result = predict("photos", "--lidar", "lidar")
    for name, factor in (("a", 2.0), ("b", 3.0)):
        np.testing.assert_allclose(
            np.load(f"out/{name}_depth.npy"), factor * np.load(f"plain/{name}_depth.npy"), rtol=1e-5
        )
    assert result.output.count("used 4 of 4 known distances") == 2

    Path("lidar/b.csv").unlink()
    result = predict("photos", "--lidar", "lidar", code=2)
    assert "lidar must have one file of known distances for photos/b.jpg, such as b.csv, and has none" in result.stderr


def test_a_point_outside_of_the_image_fails_this_image(predict):
    result = predict("photos/a.png", "--known", "5000,2,1", code=1)
    assert "Failed: photos/a.png: The known point (5000, 2) is outside the image of" in result.stderr
    assert not Path("out/a_depth.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "--known", "1,2,3"), "--known is for one image, got 2"),
        (("photos", "--lidar", "l.csv"), "--lidar with one file is for one image, got 2"),
        (("photos/a.png", "--known", "1,2"), "--known takes X,Y,METRES such as 412,300,3.2, got '1,2'"),
        (("photos/a.png", "--known", "1,2,3", "--lidar", "l.csv"), "give one of them"),
        (("photos/a.png", "--known", "1,2,3", "--calibrate", "affine"), "--calibrate is scale, scale+shift, field"),
        (("photos/a.png", "--known", "1,2,3", "--calibrate", "field"), "needs at least 10 known distances, got 1"),
        (("photos/a.png", "--calibrate", "scale"), "need known distances"),
        (("photos/a.png", "--lidar", "none.csv"), "There is no file none.csv"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(predict, arguments, message):
    result = predict(*arguments, code=2)
    assert message in result.stderr
    assert not Path("out").exists()


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.csv", "1,2,3.5\n4,5,6\n"),
            ("a.csv", "\ufeffx,y,metres\n1,2,3.5\n4,5,6\n"),
            ("a.csv", '"u";"v";"range"\n1;2;3.5\n4;5;6\n'),
            ("a.txt", "# column row metres\n1 2 3.5\n\n4\t5\t6"),
        ],
    )
    def test_of_text(self, tmp_path, name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        np.testing.assert_array_equal(read_known_points(tmp_path / name), [[1, 2, 3.5], [4, 5, 6]])

    def test_of_numpy(self, tmp_path):
        np.save(tmp_path / "a.npy", np.float32([[1, 2, 3.5]]))
        np.testing.assert_array_equal(read_known_points(tmp_path / "a.npy"), [[1, 2, 3.5]])

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.csv", "depth,x,y\n1,2,3\n", "its columns are named depth, x, y"),
            ("a.csv", "1,2\n3,4\n", r"holds an array of shape \(2, 2\)"),
            ("a.csv", "1,2,3\n3,4\n", "inhomogeneous"),
            ("a.csv", "", r"holds an array of shape \(0,\)"),
            ("a.txt", "1 2 far\n1 2 3\n", "its columns are named 1, 2, far"),
            ("a.pcd", "1 2 3", "it is a .pcd file"),
            ("a.npy", "1 2 3", "no known distances can be read"),
        ],
    )
    def test_of_anything_else_are_refused_with_what_was_found(self, tmp_path, name, text, message):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_known_points(tmp_path / name)
