"""The `depthvlm` command, on a tiny model with random weights."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from depthvlm.hub_cards.space import server as demo_server
from toy_checkpoint import save_toy_checkpoint
from toy_images import save_picture
from typer.testing import CliRunner

from depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.cli.app import app
from depthvlm.inputs import find_images, result_stems


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a head that was never trained."""
    folder = save_toy_checkpoint(tmp_path_factory.mktemp("untrained"))
    DepthVLMForConditionalGeneration(DepthVLMConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two images in `photos`."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.png", "b.jpg")):
        save_picture(tmp_path / "photos" / name, seed=seed)
    return tmp_path


def names_in(folder: Path) -> set[str]:
    """The files in a folder, but for the records of what was written."""
    return {path.name for path in folder.iterdir() if path.name != ".depthvlm"}


class TestPredict:
    @pytest.fixture
    def predict(self, checkpoint):
        return functools.partial(run, "predict", "--model", checkpoint, "--device", "cpu")

    def test_a_folder_gives_files_for_each_image_clouds_and_meshes_on_request(self, predict, folder):
        result = predict("photos", "--focal-length", 70)
        suffixes = {"_depth.png", "_color.png", ".json"}
        assert names_in(folder / "depthvlm_results") == {f"{stem}{suffix}" for stem in "ab" for suffix in suffixes}
        predict("photos/a.png", "--formats", "ply,glb", "--out", "solid")
        assert names_in(folder / "solid") == {"a.ply", "a.glb"}
        assert "photos/a.png" in result.output
        assert "focal length 70.0 px (focal_length)" in result.output
        assert f"2 done, 0 failed. Results: {folder / 'depthvlm_results'}" in result.output
        record = json.loads((folder / "depthvlm_results/a.json").read_text())
        assert record["source"] == str(folder / "photos/a.png")
        assert record["focal_source"] == "focal_length"

    def test_the_reply_is_printed_and_saved(self, predict, folder):
        options = ("--prompt", "How far?", "--max-new-tokens", 4, "--formats", "json")
        predict("photos/a.png", "--fov", 60, *options)
        record = json.loads((folder / "depthvlm_results/a.json").read_text())
        assert record["prompt"] == "How far?"
        assert isinstance(record["text"], str)

    def test_the_option_of_formats_has_its_earlier_name_too(self, predict, folder):
        result = predict("photos/a.png", "--fov", 60, "--save", "npy")
        assert "FutureWarning: --save is now --formats." in result.stderr
        assert names_in(folder / "depthvlm_results") == {"a_depth.npy"}

    def test_an_assumed_field_of_view_is_said_once_and_summed_up(self, predict, folder):
        result = predict("photos", "--formats", "npy", "--batch-size", 1)
        assert result.output.count("Warning:") == 1
        assert "photos/a.png is not known" in result.output
        assert "Focal lengths: 2 assumed." in result.output

    def test_a_bad_file_is_reported_at_the_end_and_the_others_are_done(self, predict, folder):
        (folder / "photos/aa.jpg").write_text("no image")
        result = predict("photos", "missing.png", "--fov", 60, "--formats", "npy", code=1)
        assert "2 done, 2 failed" in result.output
        assert result.stderr.splitlines()[-2].startswith("Failed: photos/aa.jpg: photos/aa.jpg is not an image")
        assert result.stderr.splitlines()[-1].startswith("Failed: missing.png: There is no image file")
        assert names_in(folder / "depthvlm_results") == {"a_depth.npy", "b_depth.npy"}

    def test_what_is_complete_is_skipped_what_is_not_is_done_again(self, predict, folder, monkeypatch):
        options = ("--fov", 60, "--formats", "npy,json", "--out", "out")
        predict("photos", *options)
        before = (folder / "out/a_depth.npy").stat().st_mtime_ns
        (folder / "out/b_depth.npy").unlink()
        result = predict("photos", *options)
        assert "Skipped 1 complete" in result.output
        assert "1 done, 0 failed" in result.output
        assert (folder / "out/a_depth.npy").stat().st_mtime_ns == before

        result = predict("photos", *options, "--overwrite")
        assert "2 done" in result.output
        assert (folder / "out/a_depth.npy").stat().st_mtime_ns > before
        monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
        assert "Skipped 2 complete" in predict("photos", *options).output

    def test_ctrl_c_ends_cleanly(self, predict, folder, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("depthvlm.prediction.Prediction.save", interrupt)
        result = predict("photos", "--fov", 60, code=130)
        assert "Interrupted: 0 of 2 files done" in result.output

    def test_results_among_the_images_are_not_images(self, predict, folder):
        options = ("--fov", 60, "--formats", "png16,color", "--out", "photos")
        assert "2 done" in predict("photos", *options).output
        assert len(names_in(folder / "photos")) == 6
        assert "Skipped 2 complete" in predict("photos", *options).output
        assert len(names_in(folder / "photos")) == 6

    def test_intrinsics_from_a_file(self, predict, folder):
        (folder / "camera.txt").write_text("70 0 41\n0 71 29\n0 0 1\n")
        predict("photos/a.png", "--intrinsics", "camera.txt", "--formats", "json")
        record = json.loads((folder / "depthvlm_results/a.json").read_text())
        assert [record["camera"][name] for name in ("fx", "fy", "cx", "cy")] == [70, 71, 41, 29]
        assert record["focal_source"] == "intrinsics"

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("photos", "--fov", 60, "--focal-length", 70), 2, "--focal-length and --fov both name the camera"),
            (("photos", "--formats", "npy,tiff"), 2, "got tiff; choose from npy, png16, color, ply, glb, json"),
            (("photos", "--formats", ","), 2, "got none; choose from"),
            (("photos/*.tiff",), 2, "photos/*.tiff: no images there"),
            (("photos", "--focal-length", "0"), 1, "`focal_length` must be a finite number above 0"),
            (("photos", "--fov", "nan"), 1, "`fov` must be a finite number above 0"),
        ],
    )
    def test_errors_are_a_line_not_a_traceback(self, predict, folder, arguments, code, message):
        result = predict(*arguments, code=code)
        assert message in result.stderr
        assert isinstance(result.exception, SystemExit)
        assert not (folder / "depthvlm_results").exists()


class TestInputs:
    def test_files_folders_and_patterns(self, folder):
        save_picture(folder / "photos/deep/c.png")
        (folder / "photos/notes.txt").write_text("not an image")
        assert find_images(["photos"]) == [Path("photos/a.png"), Path("photos/b.jpg")]
        assert find_images(["photos/*.jpg", "photos"]) == [Path("photos/b.jpg"), Path("photos/a.png")]
        assert find_images(["photos/**/*.png"]) == [Path("photos/a.png"), Path("photos/deep/c.png")]
        given = ["photos/a.png", "photos/../photos/a.png", "no.png"]
        assert find_images(given) == [Path("photos/a.png"), Path("no.png")]
        save_picture(folder / "photos/[1].png")  # a file, and so no pattern
        assert find_images(["photos/[1].png"]) == [Path("photos/[1].png")]

    @pytest.mark.parametrize(
        ("paths", "stems"),
        [
            (["a/x.png", "a/y.png"], ["x", "y"]),
            (["a/x.png", "b/x.png", "b/y.png"], ["a_x", "b_x", "y"]),
            (["a/x.png", "a/x.jpg"], ["x_png", "x_jpg"]),
            (["a/x.png", "a/x.jpg", "b/x.png"], ["a_x_png", "a_x_jpg", "b_x_png"]),
            (["a/X.png", "b/x.png"], ["a_X", "b_x"]),
            (["c/a/x.png", "d/a/x.png"], ["a_x_png", "a_x_png_2"]),
            (["a/x.png", "b/x.png", "a_x.png"], ["a_x", "b_x", "a_x_2"]),
        ],
    )
    def test_images_of_one_name_get_results_of_their_own(self, paths, stems):
        assert result_stems([Path(path) for path in paths]) == stems


class TestOtherCommands:
    def test_convert(self, checkpoint, tmp_path):
        run("convert", checkpoint, tmp_path / "new")
        assert {"model.safetensors", "processor_config.json"} <= names_in(tmp_path / "new")
        again = run("convert", checkpoint, tmp_path / "new", code=1)
        assert "is there already" in again.stderr

    def test_convert_the_published_layout(self, golden, checkpoint, tmp_path):
        source = tmp_path / "published"
        source.mkdir()
        for name in ("config.json", "model.safetensors"):
            (source / name).symlink_to(golden / "dpt" / name)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
            (source / name).symlink_to(Path(checkpoint) / name)
        assert "published layout" in run("info", source).output
        assert "dpt_light, features from vit+llm" in run("info", source).output
        run("convert", source, tmp_path / "new")
        assert json.loads((tmp_path / "new/config.json").read_text())["model_type"] == "depthvlm"
        assert "DepthVLM" in run("info", tmp_path / "new").output

    def test_info_counts_without_loading(self, checkpoint):
        result = run("info", checkpoint)
        parts = ("dpt_light, features from vit+llm", "vision tower", "language model", "depth head", "total")
        assert not [part for part in (*parts, "transformers") if part not in result.output]

    def test_version(self):
        assert run("--version").output.startswith("depthvlm 0.")


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("predict", "(the bundled depthvlm-nano)"),
        ("push", "(main)"),
        ("bench report", "(all, and what is in none)"),
        ("bench report", "(the best on each set)"),
    ],
)
def test_help_tells_defaults_in_words(command, default):
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert f"[default: {default}]" in result.output


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['depthvlm', *{arguments}]\n"
        "from depthvlm.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'trimesh', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "depthvlm" in done.stdout


class TestUntrainedHead:
    """A head that was never trained is refused by the name of the option that loads it."""

    def test_predict(self, untrained, folder):
        command = ("predict", "photos/a.png", "--model", untrained, "--device", "cpu", "--fov", 60)
        refused = run(*command, code=1)
        assert re.search("(?s)never trained.*--allow-untrained-head", refused.output)
        run(*command, "--formats", "npy", "--allow-untrained-head")
        depth = np.load(folder / "depthvlm_results" / "a_depth.npy")
        assert depth.shape == (60, 80)
        assert depth.max() / depth.min() < 1.1  # the camera's focal length apart, one metre everywhere

    def test_demo(self, untrained, monkeypatch):
        served = []
        monkeypatch.setattr(demo_server, "serve", lambda demo, **_: served.append(demo))
        command = ("demo", "--model", untrained, "--device", "cpu")
        refused = run(*command, code=1)
        assert "--allow-untrained-head" in refused.output
        assert not served
        run(*command, "--allow-untrained-head")
        assert len(served) == 1

    def test_bench_eval(self, untrained, folder):
        source = ("--split", "test", "--num-images", 2, "--workers", 1)
        run("bench", "build", "synthetic", "--root", folder / "rooms", "--out", folder / "bench", *source)
        command = ("bench", "eval", "-p", f"depthvlm:{untrained}", "-d", folder / "bench", "--option", "device=cpu")
        refused = run(*command, code=2)
        assert "--allow-untrained-head" in refused.output
        assert not list((folder / "results").rglob("*.json"))
        run(*command, "--allow-untrained-head")
        assert list((folder / "results").rglob("*.json"))
