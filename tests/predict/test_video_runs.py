"""Clips from the command line and in Python: runs that were cut off, what cannot be read, what is asked wrongly."""

import json
import os
import signal
import subprocess
import sys
import time
import wave

import pytest
import torch
from command_line import run
from PIL import Image
from toy_clips import FOCAL, SEEDS, contents, decode, pngs, scene, write_clip

import depthvlm
from depthvlm.video_frames import open_clip


class TestGoingOn:
    @pytest.mark.slow
    def test_killed_and_started_again_it_gives_the_same_files(self, nano, tmp_path):
        clip = write_clip(tmp_path / "long.mp4", [1, 2, 3, 4] * 10)
        options = ["--focal-length", str(FOCAL), "--batch-size", "2", "--device", "cpu"]
        command = [sys.executable, "-m", "depthvlm", "predict", clip, "--out", tmp_path / "cut", *options]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        depth = tmp_path / "cut/long_depth"
        while process.poll() is None and len(pngs(depth)) < 5:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = {path: path.stat().st_mtime_ns for path in pngs(depth)}
        assert 5 <= len(kept) < 40
        assert not (tmp_path / "cut/long.json").exists()
        assert not (tmp_path / "cut/long_depth.mp4").exists()

        for folder in ("cut", "whole"):
            depthvlm.predict_video(clip, tmp_path / folder, nano, focal_length=FOCAL, batch_size=2)
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
        assert len(contents(tmp_path / "cut")) == 43
        assert {path: path.stat().st_mtime_ns for path in kept} == kept

    def test_what_is_complete_is_skipped_and_a_missing_frame_is_done_alone(self, clip, nano, tmp_path):
        first = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL)
        before = contents(tmp_path)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        assert depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL).skipped
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == times

        (first.files.depth / "000002.png").unlink()
        again = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL)
        assert not again.skipped
        assert contents(tmp_path) == before
        assert (first.files.depth / "000001.png").stat().st_mtime_ns == times[first.files.depth / "000001.png"]

    def test_another_range_of_colours_predicts_nothing_again(self, clip, nano, tmp_path):
        first = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL)
        video, depth = first.files.video.read_bytes(), contents(first.files.depth)
        times = [path.stat().st_mtime_ns for path in pngs(first.files.depth)]
        second = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, depth_range=(0.5, 20))
        assert second.record["depth_range"] == {"near": 0.5, "far": 20}
        assert second.files.video.read_bytes() != video
        assert contents(first.files.depth) == depth
        assert [path.stat().st_mtime_ns for path in pngs(first.files.depth)] == times

    def test_frames_of_other_settings_are_never_mixed(self, clip, nano, tmp_path):
        depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, max_frames=2)
        with pytest.raises(ValueError, match=r"made otherwise \(focal_length: 90.0 there, 95.0 now\)"):
            depthvlm.predict_video(clip, tmp_path, nano, focal_length=95.0, max_frames=2)
        other = depthvlm.predict_video(clip, tmp_path, nano, focal_length=95.0, max_frames=1, overwrite=True)
        assert len(pngs(other.files.depth)) == 1
        assert other.camera.fx == 95.0

    def test_files_of_something_else_are_left_alone(self, clip, nano, tmp_path):
        (tmp_path / "walk_depth").mkdir()
        Image.new("L", (2, 2)).save(tmp_path / "walk_depth/mine.png")
        with pytest.raises(ValueError, match="no record says of which clip"):
            depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, overwrite=True)
        (tmp_path / "walk.json").write_text('{"mine": 1}')
        with pytest.raises(ValueError, match="not the record of a clip"):
            depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, overwrite=True)
        assert (tmp_path / "walk_depth/mine.png").exists()


class TestBadInput:
    def test_what_is_no_video(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
            open_clip(tmp_path / "missing.mp4")
        with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
        (tmp_path / "text.mp4").write_text("hello")
        whole = write_clip(tmp_path / "whole.mkv", SEEDS).read_bytes()
        first_cluster = whole.index(b"\x1f\x43\xb6\x75")
        (tmp_path / "empty.mkv").write_bytes(whole[: first_cluster + 60])  # cut within the first frame
        for name, message in {
            "text.mp4": r"text\.mp4 is not a video that can be read",
            "sound.wav": "has no video stream",
            "empty.mkv": "no frame of it can be decoded",
        }.items():
            with pytest.raises(ValueError, match=message):
                open_clip(tmp_path / name)

    def test_of_a_truncated_file_what_can_be_decoded_is_done_and_the_exit_code_says_so(self, tmp_path):
        whole = write_clip(tmp_path / "whole.mkv", [1, 2, 3, 4] * 10).read_bytes()
        path = tmp_path / "cut.mkv"
        path.write_bytes(whole[: len(whole) * 6 // 10])
        for expected in ("colours", "complete already"):
            result = run("predict", path, "--focal-length", FOCAL, "--out", tmp_path / "out", code=1)
            assert expected in result.output
            assert "Failed: " in result.stderr
            assert "may be truncated" in result.stderr
        record = json.loads((tmp_path / "out/cut.json").read_text())
        assert 10 <= record["frames"] < 40
        assert "1.60 s long" in record["problem"]
        assert len(decode(tmp_path / "out/cut_depth.mp4")[0]) == record["frames"]

    def test_a_size_that_changes_on_the_way(self, nano, tmp_path):
        one = write_clip(tmp_path / "one.ts", (1, 2)).read_bytes()
        other = write_clip(tmp_path / "other.ts", (1, 2), size=(128, 96)).read_bytes()
        (tmp_path / "both.ts").write_bytes(one + other)
        with pytest.raises(ValueError, match=r"both\.ts: frame 000002 has 128x96 pixels, the first one 96x72"):
            depthvlm.predict_video(tmp_path / "both.ts", tmp_path / "out", nano, focal_length=FOCAL, batch_size=1)

    def test_an_image_of_another_size_or_none_is_named(self, nano, tmp_path):
        for name, size in (("a.png", (96, 72)), ("b.png", (96, 72)), ("c.png", (64, 48))):
            Image.fromarray(scene(2, *size)).save(tmp_path / name)
        with pytest.raises(ValueError, match=r"c\.png has 64x48 pixels, but the first frame, a\.png, has 96x72"):
            open_clip(tmp_path)
        (tmp_path / "c.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"c\.png is not an image"):
            open_clip(tmp_path)
        (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:-3000])
        with pytest.raises(ValueError, match=r"c\.png cannot be decoded"):
            depthvlm.predict_video(tmp_path, tmp_path / "out", nano, focal_length=FOCAL)

    def test_without_pyav(self, clip, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "av", None)
        assert 'pip install "depthvlm[video]"' in run("predict", clip, "--out", tmp_path, code=1).stderr

    def test_options_out_of_range(self, clip, nano, tmp_path):
        for options, words in [
            ({"every": 0}, "at least 1"),
            ({"max_frames": 0}, "at least 1"),
            ({"depth_range": (5, 5)}, "0 <= near < far"),
            ({"fov": 60, "focal_length": 90}, "both name the camera"),
        ]:
            with pytest.raises(ValueError, match=words):
                depthvlm.predict_video(clip, tmp_path, nano, **options)
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    def test_images_and_clips_in_one_call(self, clip, tmp_path):
        Image.fromarray(scene(2)).save(tmp_path / "walk.png")
        (tmp_path / "walk.mp4").write_bytes(clip.read_bytes())
        options = ("--fov", 60, "--depth-range", 1, 30, "--max-frames", 2, "--out", tmp_path / "out")
        output = run("predict", tmp_path / "walk.png", tmp_path / "walk.mp4", *options).output
        assert "2 frames  colours 1.00 to 30.00 m" in output
        assert "Frames are predicted independently" in output
        assert "2 done, 0 failed" in output
        assert (tmp_path / "out/walk_png.json").exists()
        assert len(pngs(tmp_path / "out/walk_mp4_depth")) == 2

    def test_a_folder_as_a_sequence_and_a_pattern_of_clips(self, clip, tmp_path):
        (tmp_path / "frames").mkdir()
        for index in range(2):
            Image.fromarray(scene(index)).save(tmp_path / f"frames/{index}.png")
        out = ("--fov", 60, "--out", tmp_path / "out")
        run("predict", tmp_path / "frames", "--sequence", "--fps", 5, *out)
        assert decode(tmp_path / "out/frames_depth.mp4")[1] == pytest.approx([0.0, 0.2])
        run("predict", clip.parent / "*.mp4", "--max-frames", 1, *out)
        assert (tmp_path / "out/walk_depth.mp4").exists()

    def test_options_that_do_not_go_together(self, clip, tmp_path):
        for arguments, words in [
            (("--prompt", "What?"), "--prompt is for images"),
            (("--formats", "npy"), "--formats is for images"),
            (("--sequence",), "--sequence takes folders"),
        ]:
            assert words in run("predict", clip, *arguments, "--out", tmp_path, code=2).output
