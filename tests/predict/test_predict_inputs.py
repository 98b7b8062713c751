"""What the arguments of `depthvlm predict` mean, and what is said of them before a model is loaded."""

import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image
from toy_images import save_picture

from depthvlm.camera_files import read_cameras
from depthvlm.inputs import look_for_images, result_stems


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_picture("photos/a.jpg")
    save_picture("photos/b.png")
    return tmp_path


predict = functools.partial(run, "predict", "--device", "cpu")


class TestFolders:
    def test_of_phones_and_cards(self):
        for name in ("._a.jpg", ".DS_Store", "manual.pdf", "data.h5", "drawing.eps", "clip.txt"):
            Path("photos", name).write_bytes(b"\x00\x05\x16\x07")
        Path("photos/gone.jpg").symlink_to("nowhere.jpg")
        Path("photos/c.HEIC").write_bytes(b"")
        found = look_for_images(["photos"])
        assert found.images == [Path("photos", name) for name in ("a.jpg", "b.png", "c.HEIC")]
        assert {kind: [file.name for file in files] for kind, files in found.passed_over.items()} == {
            "hidden": [".DS_Store", "._a.jpg"],
            "no images": ["clip.txt", "data.h5", "drawing.eps", "manual.pdf"],
            "broken links": ["gone.jpg"],
        }
        Path("photos/c.HEIC").unlink()
        output = predict("photos", "--fov", 60, "--formats", "npy").output
        assert "Passed over: 2 hidden (.DS_Store, ._a.jpg); 4 no images (clip.txt, data.h5, drawing.eps" in output
        assert "2 done, 0 failed" in output

    def test_heic_is_read_and_without_its_package_the_error_names_it(self, monkeypatch):
        import pillow_heif as heif

        heif.from_pillow(Image.open("photos/a.jpg")).save("photos/c.HEIC")
        result = predict("photos/c.HEIC", "--fov", 60, "--formats", "npy")
        assert np.load("depthvlm_results/c_depth.npy").shape == (60, 80)
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        monkeypatch.setattr(Image, "OPEN", {name: one for name, one in Image.OPEN.items() if name != "HEIF"})
        result = predict("photos/c.HEIC", "--fov", 60, "--formats", "npy", "--overwrite", code=1)
        assert 'pip install "depthvlm[heic]"' in result.stderr

    def test_without_images_the_folders_that_have_some_are_named(self):
        Path("empty/none").mkdir(parents=True)
        save_picture("empty/day/one/x.jpg")
        with pytest.raises(ValueError, match=r"empty: no images there, but in empty/day/one \(1\)"):
            look_for_images(["empty"])
        with pytest.raises(ValueError, match=r"empty/none: no images there\. Give"):
            look_for_images(["empty/none"])

    def test_links_to_one_file_are_predicted_once_and_said(self):
        Path("photos/link.jpg").symlink_to("a.jpg")
        output = predict("photos", "photos/../photos/a.jpg", "--fov", 60, "--formats", "npy").output
        assert "photos/link.jpg is the same file as photos/a.jpg: predicted once." in output
        assert output.count("predicted once") == 1
        assert "2 done" in output

    def test_urls_are_images(self):
        urls = ["https://example.org/a/cat.jpg?size=1", "http://example.org/b/cat.jpg"]
        assert look_for_images([*urls, urls[0]]).images == urls
        assert result_stems(urls) == ["a_cat", "b_cat"]


class TestCameras:
    def test_one_for_each_image_by_name(self):
        cameras = {"a.jpg": [70, 71, 40, 30], "b.png": {"fx": 90, "fy": 91, "cx": 41, "cy": 31}}
        Path("cameras.json").write_text(json.dumps(cameras))
        for name, numbers in (("a", [70, 71, 40, 30]), ("b", [90, 91, 41, 31])):
            Path("k").mkdir(exist_ok=True)
            Path("k", f"{name}.txt").write_text(" ".join(map(str, numbers)))
        for place in ("cameras.json", "k"):
            predict("photos", "--intrinsics", place, "--formats", "json", "--out", f"out_{place}")
            for name, fx in (("a", 70), ("b", 90)):
                record = json.loads(Path(f"out_{place}/{name}.json").read_text())
                assert (record["camera"]["fx"], record["focal_source"]) == (fx, "intrinsics")

    def test_an_image_without_one_is_named(self):
        for other, message in {
            '"other.png": [1, 1, 1, 1]': r"cameras\.json has no camera for photos/b\.png: each image needs one",
            '"b.png": [70]': r"cameras\.json, b\.png: no camera can be read from it \(it holds an array of shape",
        }.items():
            Path("cameras.json").write_text(f'{{"a.jpg": [70, 71, 40, 30], {other}}}')
            with pytest.raises(ValueError, match=message):
                read_cameras(Path("cameras.json"), [Path("photos/a.jpg"), Path("photos/b.png")])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothere.jpg"], "There is no image file 'nothere.jpg'."),
        (["photos/a.jpg", "--formats", "tga"], "got tga; choose from"),
        (["photos/a.jpg", "--device", "abacus"], "The device 'abacus' cannot be used here"),
        (["photos/a.jpg", "--dtype", "float8"], "The dtype 'float8' is not known"),
        (["photos/a.jpg", "--out", "photos/b.png"], "photos/b.png: nothing can be written there"),
        (["photos/a.jpg", "--intrinsics", "nothere.txt"], "nothere.txt: no camera can be read from it"),
        (["photos/a.jpg", "--fov", "190"], "`fov`"),
        (["photos/a.jpg", "--prompt", " "], "--prompt is empty"),
        (
            ["photos/a.jpg", "--prompt", "<|image_pad|>?"],
            "--prompt holds <|image_pad|>, a mark that is the model's",
        ),
        (["photos/a.jpg", "--prompt", os.fsdecode(b"\xff?")], "--prompt holds bytes that are no text"),
        (["nothere.mp4"], "There is no image file 'nothere.mp4'."),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(monkeypatch, arguments, words):
    monkeypatch.setattr("depthvlm.inference.load", lambda *_: pytest.fail("loaded"))
    result = predict(*arguments, code=None)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert not Path("depthvlm_results").exists()
