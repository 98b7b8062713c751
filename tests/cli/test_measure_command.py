"""`depthvlm measure`, with nano's depth and fixed words, and with nano's own words."""

import json
import subprocess
import sys

import numpy as np
import pytest
from command_line import run
from conftest import REPOSITORY
from fixed_words import FixedWords
from PIL import Image

ROOM = REPOSITORY / "depthvlm" / "assets" / "room.jpg"
BOX = '[{"bbox_2d": [250, 250, 750, 750], "label": "middle"}]'


@pytest.fixture
def fixed_words(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("depthvlm.inference.load", lambda *_, **__: FixedWords(BOX))


def test_a_table_and_a_picture(fixed_words, tmp_path):
    result = run("measure", ROOM, "the middle", "--fov", 60, "--out", "seen/room.png")
    assert "middle" in result.stdout
    assert result.stdout.count(" m ") == 3
    with Image.open(tmp_path / "seen/room.png") as picture, Image.open(ROOM) as room:
        assert picture.size == room.size
        assert picture.getpixel((room.width // 4, room.height // 2)) == (255, 64, 32)
    again = run("measure", ROOM, "the middle", "--out", "seen/room.png", code=2)
    assert "is there already: give another --out, or --overwrite" in again.stderr


def test_json_alone_on_standard_output(fixed_words):
    record = json.loads(run("measure", ROOM, "the middle", "--fov", 60, "--json").stdout)
    [found] = record["objects"]
    with Image.open(ROOM) as room:
        assert found["box"] == [room.width / 4, room.height / 4, room.width * 3 / 4, room.height * 3 / 4]
    assert record["min"] <= found["depth"] <= record["max"]
    assert record["focal_source"] == "fov"


def test_a_camera_file(fixed_words, tmp_path):
    with Image.open(ROOM) as room:
        width, height = room.size
    (tmp_path / "camera.txt").write_text(f"400 400 {width / 2} {height / 2}")
    one, same = (
        json.loads(run("measure", ROOM, "the middle", *camera, "--json").stdout)
        for camera in (("--intrinsics", tmp_path / "camera.txt"), ("--focal-length", 400))
    )
    assert one["focal_source"] == "intrinsics"
    assert one["objects"] == same["objects"]
    (tmp_path / "camera.txt").write_text("no camera")
    result = run("measure", ROOM, "the middle", "--intrinsics", tmp_path / "camera.txt", code=2)
    assert "camera.txt" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.gif"), "--out is a picture, .png or .jpg, got a.gif"),
        (("--fov", 60, "--focal-length", 70), "--focal-length and --fov both name the camera"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(arguments, message):
    assert message in run("measure", ROOM, "the middle", *arguments, code=2).stderr


def test_nano_says_no_box_in_a_process_of_its_own(tmp_path):
    command = [
        sys.executable,
        "-m",
        "depthvlm",
        "measure",
        ROOM,
        "the red chair",
        "--fov",
        "60",
        "--max-new-tokens",
        "8",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("No box in the reply: ")
    assert "Focal length" in done.stdout
    assert "Traceback" not in done.stderr


def test_refined_depth_is_that_of_predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--fov", 60, "--refine", 2, "--device", "cpu")
    record = json.loads(run("measure", ROOM, "chair", *options, "--max-new-tokens", 2, "--json").stdout)
    run("predict", ROOM, *options, "--formats", "npy", "--out", "results")
    depth = np.load("results/room_depth.npy")
    assert (record["min"], record["max"]) == pytest.approx((depth.min(), depth.max()), rel=1e-4)
