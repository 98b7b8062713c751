"""What `depthvlm predict` takes for complete, what it replaces, and what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from toy_checkpoint import save_toy_checkpoint
from toy_clips import FOCAL, write_clip
from toy_images import save_picture
from typer.testing import Result

from depthvlm.files import atomic_write, remove_partial_files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_picture("a/photo.jpg")
    return tmp_path


@pytest.fixture
def predict(checkpoint):
    def predict(*arguments: object, model: object = checkpoint, code: int = 0) -> Result:
        return run("predict", *arguments, "--model", model, "--device", "cpu", code=code)

    return predict


class TestComplete:
    OPTIONS = ("--fov", 60, "--formats", "npy,png16,color", "--out", "out")

    @pytest.mark.parametrize("change", ["picture", "camera", "model", "dtype", "empty", "cut", "gone"])
    def test_whatever_makes_it_another_result_is_done_again(self, predict, here, checkpoint, change):
        assert "1 done" in predict("a/photo.jpg", *self.OPTIONS).output
        assert "Skipped 1 complete" in predict("a/photo.jpg", *self.OPTIONS).output
        file = here / "out/photo_depth.npy"
        before = file.read_bytes()
        options, model = list(self.OPTIONS), checkpoint
        if change == "picture":
            save_picture("a/photo.jpg", seed=1)
        elif change == "camera":
            options[1] = 70
        elif change == "model":
            model = save_toy_checkpoint(here / "other")
        elif change == "dtype":
            options += ["--dtype", "bfloat16"]
        elif change == "gone":
            file.unlink()
        else:
            file.write_bytes(b"" if change == "empty" else before[:1000])
        result = predict("a/photo.jpg", *options, model=model)
        assert ("1 done" in result.output, "Skipped" in result.output) == (True, False)
        assert np.load(file).shape == (60, 80)
        assert (file.read_bytes() == before) == (change in ("model", "empty", "cut", "gone"))

    def test_another_picture_of_the_same_name_is_refused_before_anything_is_predicted(self, predict, here, monkeypatch):
        predict("a/photo.jpg", *self.OPTIONS)
        save_picture("b/photo.jpg", seed=1)
        monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
        result = predict("b/photo.jpg", *self.OPTIONS, code=1)
        assert f"holds the results of {here}/a/photo.jpg, not of {here}/b/photo.jpg" in result.stderr
        monkeypatch.undo()
        monkeypatch.chdir(here)
        predict("b/photo.jpg", *self.OPTIONS, "--overwrite")

    def test_other_formats_are_added(self, predict, here):
        for formats, said in (("npy,json", "1 done"), ("glb,json", "1 done"), ("npy,glb,json", "Skipped 1 complete")):
            assert said in predict("a/photo.jpg", "--fov", 60, "--formats", formats, "--out", "out").output
        record = json.loads((here / "out/photo.json").read_text())
        assert record["files"] == {"glb": "photo.glb", "npy": "photo_depth.npy"}

    def test_another_prompt_adds_its_reply(self, predict, here):
        options = ("--fov", 60, "--formats", "npy,json", "--out", "out", "--max-new-tokens", 4)
        predict("a/photo.jpg", *options, "--prompt", "One?", "--prompt", "Two?")
        depth = (here / "out/photo_depth.npy").stat().st_mtime_ns
        assert "Skipped 1 complete" in predict("a/photo.jpg", *options, "--prompt", "Two?").output
        result = predict("a/photo.jpg", *options, "--prompt", "Three?")
        assert "Adding replies to 1" in result.output
        record = json.loads((here / "out/photo.json").read_text())
        assert [reply["prompt"] for reply in record["replies"]] == ["One?", "Two?", "Three?"]
        assert all(isinstance(reply["text"], str) for reply in record["replies"])
        assert (record["prompt"], record["text"]) == ("Three?", record["replies"][2]["text"])
        assert record["width"] == 80
        assert (here / "out/photo_depth.npy").stat().st_mtime_ns == depth
        assert "Skipped 1 complete" in predict("a/photo.jpg", *options).output


class TestFilesOfTheUser:
    @pytest.mark.parametrize("name", ["photo.json", "photo_depth.png", "photo.ply", "photo_depth.npy"])
    def test_they_are_named_before_anything_is_predicted_and_stay(self, predict, here, monkeypatch, name):
        (here / "a" / name).write_text("mine")
        monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
        result = predict("a/photo.jpg", "--fov", 60, "--formats", "npy,png16,ply,json", "--out", "a", code=1)
        assert f"a/{name} was not written by depthvlm" in result.stderr
        assert sorted(path.name for path in (here / "a").iterdir()) == sorted(["photo.jpg", name])
        assert (here / "a" / name).read_text() == "mine"

    def test_a_result_that_the_user_changed_is_the_users(self, predict, here):
        predict("a/photo.jpg", "--fov", 60, "--formats", "npy,json", "--out", "out")
        for text in ('{"notes": "a long text, ' + "x" * 2000 + '"}', '{"notes": 1}'):
            (here / "out/photo.json").write_text(text)
            result = predict("a/photo.jpg", "--fov", 70, "--formats", "npy,json", "--out", "out", code=1)
            assert "out/photo.json was not written by depthvlm, or was changed since" in result.stderr
            assert (here / "out/photo.json").read_text() == text

    def test_a_link_to_the_users_file_is_replaced_by_overwrite_alone(self, predict, here):
        (here / "a/photo_color.png").symlink_to("measured.png")
        predict("a/photo.jpg", "--fov", 60, "--out", "a", code=1)
        assert (here / "a/photo_color.png").is_symlink()
        predict("a/photo.jpg", "--fov", 60, "--out", "a", "--overwrite")
        assert json.loads((here / "a/photo.json").read_text())["width"] == 80

    def test_an_image_to_predict_is_never_a_result(self, predict, here):
        """Measured depth beside the photo, under the name that the photo's result would have."""
        save_picture("a/photo_depth.png", seed=3)
        before = (here / "a/photo_depth.png").read_bytes()
        result = predict("a", "--fov", 60, "--out", "a", "--overwrite", code=1)
        assert "a/photo_depth.png is one of the images to predict" in result.stderr
        assert (here / "a/photo_depth.png").read_bytes() == before

    def test_of_a_clip_too(self, predict, here):
        clip = write_clip(here / "walk.mp4", (1, 2))
        (here / "walk_depth.mp4").write_text("mine")
        for model in ("depthvlm-nano", "./not-even-there"):
            predict(clip, "--focal-length", FOCAL, "--out", ".", model=model, code=1)
            assert (here / "walk_depth.mp4").read_text() == "mine"
        predict(clip, "--focal-length", FOCAL, "--out", ".", "--overwrite", model="depthvlm-nano")
        again = predict(clip, "--focal-length", FOCAL, "--out", ".", model="depthvlm-nano")
        assert "complete already" in again.output
        (here / "walk_depth/000001.png").write_bytes(b"")
        again = predict(clip, "--focal-length", FOCAL, "--out", ".", model="depthvlm-nano")
        assert "complete already" not in again.output
        assert (here / "walk_depth/000001.png").stat().st_size


class TestInterrupted:
    @pytest.mark.slow
    def test_killed_at_any_moment_it_goes_on_and_leaves_nothing(self, here):
        for seed in range(12):
            save_picture(f"many/{seed}.png", seed=seed)
        options = ["--fov", "60", "--out", "out", "--batch-size", "1"]
        command = [sys.executable, "-m", "depthvlm", "predict", "many", *options]
        for moment in range(4):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(list((here / "out").glob("*.json"))) < 2 * moment + 1:
                time.sleep(0.001)
            time.sleep(0.003 * moment)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        end = subprocess.run(command, capture_output=True, text=True, check=False)
        assert end.returncode == 0, end.stdout + end.stderr
        assert "Skipped" in end.stdout
        assert len(list((here / "out").iterdir())) == 12 * 3 + 1
        assert not list((here / "out").rglob("*.part"))
        assert "Skipped 12 complete" in subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def test_of_partial_files_those_of_living_processes_stay(self, tmp_path):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            with atomic_write(tmp_path / "x.npy") as file:
                mine = Path(file.name)
                names = {mine.name.replace(str(os.getpid()), str(pid)) for pid in (other.pid, 2**22 - 1)}
                for name in names:
                    (tmp_path / name).write_bytes(b"half")
            (tmp_path / ".notes.1.part").write_text("of another program")
            remove_partial_files(tmp_path)
            left = {path.name for path in tmp_path.iterdir()}
            assert left == {"x.npy", ".notes.1.part", mine.name.replace(str(os.getpid()), str(other.pid))}
            other.communicate(b"\n")

    def test_where_nothing_can_be_written_is_said_before_predicting(self, predict, here, monkeypatch):
        (here / "file").write_text("mine")
        monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
        for out in ("file", "file/below", "/proc/nowhere"):
            result = predict("a/photo.jpg", "--fov", 60, "--out", out, code=1)
            assert f"{out}: nothing can be written there" in result.stderr
