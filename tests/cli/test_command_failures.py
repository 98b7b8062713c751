"""How commands end: expected failures in one message, faults of the program with their traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from command_line import run
from toy_images import save_picture

from depthvlm.checkpoint import bundled_model_path
from depthvlm.cli.failures import expected_failures, printable
from depthvlm.files import partial_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each kind of wrong thing."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("text")
    Path("empty").mkdir()
    for name, config, weights in (
        ("broken_config", "{", b""),
        ("list_config", "[1]", b""),
        ("broken_weights", '{"model_type": "depthvlm"}', b"no weights"),
        ("cut_weights", '{"model_type": "depthvlm"}', (bundled_model_path() / "model.safetensors").read_bytes()[:5000]),
    ):
        Path(name).mkdir()
        Path(name, "config.json").write_text(config)
        Path(name, "model.safetensors").write_bytes(weights)
    lacks = {"format": 1, "row": "nano", "dataset": "x", "protocol": {}, "metrics": {}, "confidence": {}}
    Path("lacks.json").write_text(json.dumps(lacks))
    Path("lmms.json").write_text(json.dumps({"results": {"task": 3}, "model_name": "m"}))
    Path("build").mkdir()
    Path("build/manifest.json").write_text("{")
    save_picture("photo.png")
    return tmp_path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rendered images as a build of the benchmark."""
    folder = tmp_path_factory.mktemp("build")
    options = ("--num-images", 2, "--split", "test", "--workers", 1)
    run("bench", "build", "synthetic", "--root", ".", "--out", folder, *options)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "broken_config"), ("broken_config/config.json", "is no JSON file that can be read")),
        (("info", "list_config"), ("list_config/config.json", "a JSON object is expected")),
        (("info", "broken_weights"), ("broken_weights/model.safetensors", "Copy or download it again")),
        (("info", "cut_weights"), ("cut_weights/model.safetensors", "Copy or download it again")),
        (("info", "file"), ("file is a file", "give the folder of a checkpoint")),
        (("info", "./nowhere"), ("There is no model folder ./nowhere",)),
        (("convert", "file", "new"), ("file is a file",)),
        (("convert", "depthvlm-nano", "file"), ("file is there already", "give a new or an empty folder")),
        (("convert", "depthvlm-nano", "file/below"), ("file",)),
        (("predict", "photo.png", "--model", "file"), ("file is a file",)),
        (("export", "onnx", "depthvlm-nano", "--out", "empty"), ("empty is a folder", "give --out the file")),
        (("export", "onnx", "depthvlm-nano", "--out", "file"), ("file is there already", "--overwrite")),
        (("bench", "report", "lacks.json"), ("lacks.json", "lacks data_hash, ", "Run its `bench eval` again")),
        (("bench", "report", "lmms.json"), ("lmms.json", "a field is of another kind")),
        (("bench", "report", "file"), ("file is no JSON file",)),
        (("bench", "report", "--out", "file"), ("file: nothing can be written there", "Choose another folder")),
        (("bench", "inspect", "build"), ("build/manifest.json is damaged",)),
        (("bench", "inspect", "file"), ("There is no folder file",)),
        (("bench", "eval", "-p", "nano", "-d", "build"), ("build/manifest.json is damaged",)),
        (("bench", "build", "nyuv2", "--root", "empty", "--out", "o", "--option", "foo=1"), ("does not take foo",)),
        (("push", "broken_config", "--repo", "me/x", "--dry-run"), ("broken_config",)),
    ],
)
def test_expected_failures_are_a_message(here, arguments, words):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    result = run(*arguments, code=None)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    assert result.stderr.lstrip().startswith("Error: ") or "\nError: " in result.stderr
    for word in words:
        assert word in result.stderr
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_fault_shows_its_traceback_and_where_to_report_it(here, monkeypatch):
    def fault(*_):
        return {}["depth"]

    monkeypatch.setattr("depthvlm.cli.info.describe", fault)
    result = run("info", "empty", code=1)
    assert "Traceback (most recent call last)" in result.stderr
    assert "KeyError: 'depth'" in result.stderr
    assert "Please report it" in result.stderr


FULL = OSError(28, "No space left on device", "a/depth.npy")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("action", "shown", "words"),
    [
        (lambda: 1 / 0, True, "ZeroDivisionError: division by zero"),
        (lambda: np.zeros(3).reshape(2, 2), True, "ValueError: cannot reshape"),
        (lambda: fail(ValueError("Not right. Give another.")), False, "Error: Not right. Give another."),
        (lambda: fail(FULL), False, "Error: a/depth.npy: no space left on device. Free some space, or choose another"),
    ],
)
def test_what_is_a_fault_and_what_is_expected(capsys, action, shown, words):
    with pytest.raises(typer.Exit), expected_failures():
        action()
    error = capsys.readouterr().err
    assert words in error
    assert ("Traceback" in error) == ("Please report it" in error) == shown


def test_in_predict_the_disk_that_is_full_ends_the_run(here, monkeypatch):
    def no_space(path, *_):
        raise OSError(28, "No space left on device", str(path))

    save_picture("other.png", seed=1)
    monkeypatch.setattr("depthvlm.export.write_npy", no_space)
    result = run("predict", "photo.png", "other.png", "--fov", 60, "--batch-size", 1, "--formats", "npy", code=1)
    assert "photo_depth.npy: no space left on device. Free some space" in result.output
    assert "0 done, 1 failed" in result.output


class TestNames:
    def test_what_a_terminal_would_obey_is_escaped(self):
        assert printable("a\x1b[31m\nb\udcff\u2028c\u202f写真é") == "a\\x1b[31m\\nb\\udcff\\u2028c\u202f写真é"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["写真\n\x1b[2J.png", os.fsdecode(b"by\xfft.png")])
    def test_any_name_works_on_a_console_of_ascii(self, tmp_path, name):
        os.rename(save_picture(tmp_path / "plain.png"), tmp_path / name)
        command = [sys.executable, "-m", "depthvlm", "predict", name, "nothere\x1b.png", "--fov", "60", "--out", "out"]
        environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert result.returncode == 1
        output = (result.stdout + result.stderr).decode("ascii")
        assert printable(name).encode("ascii", "backslashreplace").decode() in output
        assert "1 done, 1 failed" in output
        assert "Failed: nothere\\x1b.png: There is no image file 'nothere\\x1b.png'." in output
        assert "\x1b" not in output
        record = json.loads(Path(tmp_path / "out" / f"{Path(name).stem}.json").read_text())
        assert record["source"] == str(tmp_path / name)

    def test_a_name_that_results_cannot_have_is_refused_before_the_run(self, here, monkeypatch):
        name = "n" * 250 + ".png"
        os.rename("photo.png", name)
        monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
        result = run("predict", name, "--fov", 60, code=1)
        assert "would be a name of more than 255 bytes: rename the input" in result.stderr


def test_a_killed_convert_leaves_nothing_once_it_is_run_again(here):
    left = partial_path(Path("new"))
    gone = left.with_name(left.name.replace(f".{os.getpid()}.", f".{2**22 - 1}."))
    gone.mkdir()
    (gone / "model.safetensors").write_bytes(b"half")
    run("convert", "depthvlm-nano", "new")
    assert not gone.exists()
    assert not list(here.glob(".*.part"))


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_a_page_is_replaced_only_if_the_command_wrote_it(tmp_path, build, command):
    out = tmp_path / "out"
    page = out / ("inspect.html" if command == "inspect" else "report.html")
    arguments = ("bench", command, build, "--out", page) if command == "inspect" else ("bench", command, "--out", out)
    for _ in range(2):
        run(*arguments)
        assert "<html" in page.read_text()
    page.write_text("my notes")
    result = run(*arguments, code=1)
    assert f"{page}: there already, and not written by this command, or changed since" in result.stderr
    assert page.read_text() == "my notes"
    run(*arguments, "--overwrite")
    assert "<html" in page.read_text()


def test_a_build_and_an_evaluation_replace_nothing_that_they_did_not_write(tmp_path, build):
    name = next(build.glob("*.parquet")).name
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / name).write_text("mine")
    arguments = ("bench", "build", "synthetic", "--root", ".", "--num-images", 2, "--split", "test", "--workers", 1)
    result = run(*arguments, "--out", tmp_path / "new", code=1)
    assert f"{name}, which no build wrote" in result.stderr
    assert (tmp_path / "new" / name).read_text() == "mine"

    scores = ("bench", "eval", "-p", "always-2m", "-d", build, "--out", tmp_path / "results")
    run(*scores)
    [summary] = (tmp_path / "results").rglob("depthvlm.json")
    summary.with_suffix(".run").unlink()
    summary.write_text("mine")
    result = run(*scores, code=1)
    assert f"{summary}" in result.stderr
    assert summary.read_text() == "mine"
