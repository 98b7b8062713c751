"""Clips: every frame as `predict` gives it, one unit, one camera, one range of colours, and nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from toy_clips import decode, scene, write_clip
from toy_models import last_layer
from typer.testing import CliRunner

import depthvlm
from depthvlm.cli import app
from depthvlm.video_frames import natural_sorted, open_clip
from depthvlm.video_run import range_of
from depthvlm.video_writer import SideBySide, write_video
from depthvlm.visualize import DepthRange, colorize, scale_bar

FOCAL = 90.0
SEEDS = (1, 2, 3, 4, 1)


@pytest.fixture(scope="module")
def nano() -> depthvlm.DepthVLM:
    return depthvlm.load()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "walk.mp4", SEEDS)


@pytest.fixture(scope="module")
def done(clip, nano, tmp_path_factory):
    """The clip, predicted frame by frame."""
    return depthvlm.predict_video(clip, tmp_path_factory.mktemp("done"), nano, focal_length=FOCAL, batch_size=1)


def farther(factor: float) -> depthvlm.DepthVLM:
    """nano with depths about `factor` times as far: its rooms end below 65.535 m, its streets beyond."""
    model = depthvlm.load()
    layer = last_layer(model.model.depth_head)
    with torch.no_grad():
        layer.weight *= factor
        layer.bias *= factor
    return model


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def values_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestDepth:
    def test_frames_are_those_of_predict_bit_for_bit(self, done, clip, nano):
        pictures, _ = decode(clip)
        assert [path.name for path in pngs(done.files.depth)] == [f"{index:06d}.png" for index in range(len(SEEDS))]
        for path, picture in zip(pngs(done.files.depth), pictures, strict=True):
            [expected] = nano.predict(picture, focal_length=FOCAL)
            np.testing.assert_array_equal(values_of(path), np.round(expected.depth.astype(np.float64) * 1000))
            assert Image.open(path).text["depth_scale"] == "1000"

    def test_in_batches_they_are_the_same_but_for_rounding(self, done, clip, nano, tmp_path):
        batched = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, batch_size=3)
        for one, other in zip(pngs(done.files.depth), pngs(batched.files.depth), strict=True):
            assert np.abs(values_of(one) - values_of(other)).max() <= 1

    def test_one_far_frame_makes_its_unit_that_of_all(self, clip, tmp_path):
        far = farther(3.0)
        result = depthvlm.predict_video(clip, tmp_path, far, focal_length=FOCAL, batch_size=1)
        assert result.record["depth_scale"] == 256
        assert result.record["clipped_pixels"] == 0
        farthest = []
        for path, picture in zip(pngs(result.files.depth), decode(clip)[0], strict=True):
            [expected] = far.predict(picture, focal_length=FOCAL)
            farthest.append(expected.depth.max())
            assert Image.open(path).text["depth_scale"] == "256"
            # Half of 1/256 m, and half of the millimetre that a near frame was in before.
            assert np.abs(values_of(path) / 256 - expected.depth).max() <= 0.5 / 256 + 0.00051
        assert min(farthest) < 65.5 < max(farthest) < 255

    def test_what_no_png_holds_is_clipped_counted_and_said_once(self, clip, tmp_path):
        far = farther(12.0)
        with pytest.warns(UserWarning, match="pixels of the clip are beyond 256.0 m") as caught:
            result = depthvlm.predict_video(clip, tmp_path, far, focal_length=FOCAL, batch_size=1)
        assert len(caught) == 1
        expected = sum(
            int((prediction.depth >= 65534.5 / 256).sum())
            for picture in decode(clip)[0]
            for prediction in far.predict(picture, focal_length=FOCAL)
        )
        assert result.record["clipped_pixels"] == expected > 0

    def test_the_assumed_camera_is_one_and_said_once(self, clip, nano, tmp_path):
        with pytest.warns(UserWarning, match=r"walk\.mp4 is not known.* 60 degrees") as caught:
            result = depthvlm.predict_video(clip, tmp_path, nano, batch_size=1, max_frames=2)
        assert len(caught) == 1
        assert result.camera.source == "assumed"
        assert result.camera.fx == pytest.approx(48 / np.tan(np.pi / 6))
        [expected] = nano.predict(decode(clip)[0][1], focal_length=result.camera.fx)
        np.testing.assert_array_equal(
            values_of(result.files.depth / "000001.png"), np.round(expected.depth.astype(np.float64) * 1000)
        )


class TestRecord:
    def test_it_holds_camera_unit_and_range(self, done, clip):
        record = json.loads(done.files.record.read_text())
        assert record == done.record
        assert record["source"] == str(clip)
        assert record["camera"] == {"fx": FOCAL, "fy": FOCAL, "cx": 48.0, "cy": 36.0, "width": 96, "height": 72}
        assert (record["frames"], record["frame_rate"], record["duration"]) == (5, 25.0, 0.16)
        assert record["depth_scale"] == 1000
        assert record["problem"] is None
        assert "independently" in record["note"]

    def test_every_frame_has_its_time_and_depths(self, done):
        lines = lines_of(done.files.frames)
        assert [line["time"] for line in lines] == [0.0, 0.04, 0.08, 0.12, 0.16]
        for line, path in zip(lines, pngs(done.files.depth), strict=True):
            assert line["frame"] == path.stem
            values = values_of(path) / 1000
            assert (line["min"], line["max"]) == (values.min(), values.max())
            assert line["median"] == pytest.approx(np.median(values))

    def test_the_range_of_colours_is_that_of_all_pixels_together(self, done):
        values = np.concatenate([values_of(path).ravel() for path in pngs(done.files.depth)])
        expected = np.percentile(values, (1, 99), method="inverted_cdf") / 1000
        assert list(done.record["depth_range"].values()) == pytest.approx(expected)

    def test_range_of_a_histogram(self):
        values = np.random.default_rng(0).integers(1, 9000, 1234)
        histogram = np.bincount(np.append(values, [0] * 500), minlength=65536)
        expected = np.percentile(values, (1, 99), method="inverted_cdf") / 256
        assert range_of(histogram, 256) == pytest.approx(expected)
        assert range_of(np.bincount([0, 0], minlength=65536), 256) == (0.0, 1.0)


class TestSideBySide:
    def test_it_shows_each_frame_and_its_depth_at_its_time(self, done, clip):
        pictures, times = decode(done.files.video)
        limits = DepthRange(*done.record["depth_range"].values())
        bar = scale_bar(96, limits)
        width = 2 * 96 + bar.width
        assert {picture.size for picture in pictures} == {(width + width % 2, 96)}
        assert times == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16], abs=1e-6)
        for shown, source, png in zip(pictures, decode(clip)[0], pngs(done.files.depth), strict=True):
            shown = np.asarray(shown).astype(int)
            assert np.abs(shown[:72, :96] - np.asarray(source)).mean() < 6
            assert np.abs(shown[:72, 96:192] - colorize(values_of(png) / 1000, limits)).mean() < 12
            assert np.abs(shown[:, 192 : 192 + bar.width] - np.asarray(bar)).mean() < 12

    def test_the_same_depth_has_the_same_colour_in_every_frame(self):
        """A near frame and a far one share pixels of 5 m: painted alike, and apart from those of 1 m and 9 m."""
        board = SideBySide((40, 100), DepthRange(0.0, 10.0))
        near, far = np.full((100, 40), 1.0), np.full((100, 40), 9.0)
        near[:50], far[50:] = 5.0, 5.0
        black = Image.new("RGB", (40, 100))
        one, other = (np.asarray(board.draw(black, depth)) for depth in (near, far))
        np.testing.assert_array_equal(one[:50, 40:80], other[50:100, 40:80])
        assert (one[0, 40] != one[99, 40]).any()
        assert (one[99, 40] != other[0, 40]).any()

    def test_large_frames_are_scaled_to_what_players_take(self):
        for size in ((1920, 1080), (3840, 2160), (1080, 1920), (9000, 500)):
            board = SideBySide(size, DepthRange(0.0, 80.0))
            assert board.size[0] <= 4096
            assert board.size[1] <= 1080
            assert board.pane[0] / board.pane[1] == pytest.approx(size[0] / size[1], rel=0.01)
        assert SideBySide((1920, 1080), DepthRange(0.0, 80.0)).pane == (1920, 1080)

    def test_without_h264_it_is_mpeg4_whose_time_base_is_limited(self, tmp_path, monkeypatch):
        monkeypatch.setattr(av.codec, "codecs_available", av.codec.codecs_available - {"libx264"})
        path = tmp_path / "a.mp4"
        with write_video(path, (64, 48), Fraction(1, 90_000), Fraction(30)) as video:
            for index in range(4):
                video.write(Image.fromarray(scene(2, 64, 48)), index * 3000)
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "mpeg4"
        pictures, times = decode(path)
        assert times == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30], abs=1e-4)
        assert np.abs(np.asarray(pictures[3]).astype(int) - scene(2, 64, 48)).mean() < 8

    def test_an_error_leaves_no_video(self, tmp_path):
        def fail():
            raise RuntimeError("stop")

        with (
            pytest.raises(RuntimeError, match="stop"),
            write_video(tmp_path / "a.mp4", (64, 48), Fraction(1, 25), Fraction(25)),
        ):
            fail()
        assert list(tmp_path.iterdir()) == []


class TestSources:
    def test_times_of_a_variable_frame_rate_are_kept(self, nano, tmp_path):
        times = [0, 40, 100, 101, 700]
        clip = write_clip(tmp_path / "phone.mp4", SEEDS, times=times)
        result = depthvlm.predict_video(clip, tmp_path / "out", nano, focal_length=FOCAL)
        expected = [time / 1000 for time in times]
        assert [line["time"] for line in lines_of(result.files.frames)] == pytest.approx(expected, abs=1e-4)
        assert decode(result.files.video)[1] == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize(("rotation", "quarter_turns"), [(-90, -1), (90, 1), (180, 2)])
    def test_rotation_metadata_turn_the_frames_upright(self, tmp_path, rotation, quarter_turns):
        """-90 is the clockwise quarter turn that phones write for a portrait clip."""
        clip = open_clip(write_clip(tmp_path / "portrait.mp4", (1, 2), rotation=rotation))
        stored = np.asarray(decode(clip.path)[0][0])
        frame = np.asarray(next(clip.frames()).picture())
        np.testing.assert_array_equal(frame, np.rot90(stored, quarter_turns))
        assert clip.size == frame.shape[1::-1]

    def test_pixels_that_are_not_square_become_so(self, tmp_path):
        clip = open_clip(write_clip(tmp_path / "dv.mp4", (1,), pixel_aspect=Fraction(3, 2)))
        assert clip.size == (144, 72)

    def test_odd_sizes(self, nano, tmp_path):
        for index, seed in enumerate((1, 2)):
            path = tmp_path / "odd" / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(scene(seed)[:71, :95]).save(path)
        result = depthvlm.predict_video(tmp_path / "odd", tmp_path / "out", nano, focal_length=FOCAL)
        assert values_of(result.files.depth / "1.png").shape == (71, 95)
        width, height = decode(result.files.video)[0][0].size
        assert (width % 2, height % 2) == (0, 0)

    def test_a_folder_is_taken_in_natural_order_with_the_camera_of_its_first_image(self, nano, tmp_path):
        folder = tmp_path / "frames"
        folder.mkdir()
        exif = Image.Exif()
        exif[0x8769] = {0xA405: 50}  # FocalLengthIn35mmFilm
        for number in (10, 2, 1):
            Image.fromarray(scene(number % 4)).save(folder / f"f{number}.png", exif=exif if number == 1 else None)
        result = depthvlm.predict_video(folder, tmp_path / "out", nano, fps=10)
        assert [line["frame"] for line in lines_of(result.files.frames)] == ["f1", "f2", "f10"]
        assert [line["time"] for line in lines_of(result.files.frames)] == [0.0, 0.1, 0.2]
        assert result.camera.source == "exif"
        focal_length = 50 * np.hypot(96, 72) / np.hypot(36, 24)
        assert result.camera.fx == pytest.approx(focal_length)
        [expected] = nano.predict(Image.fromarray(scene(2)), focal_length=focal_length)
        difference = values_of(result.files.depth / "f10.png") - expected.depth * 1000
        assert np.abs(difference).max() <= 1

    def test_natural_order(self):
        names = ["b2.png", "a10.png", "a9.png", "A1.png", "a09.png", "10.png", "9.png"]
        ordered = [path.name for path in natural_sorted([Path(name) for name in names])]
        assert ordered == ["9.png", "10.png", "A1.png", "a09.png", "a9.png", "a10.png", "b2.png"]

    def test_every_nth_frame_and_at_most_so_many(self, clip, nano, tmp_path):
        result = depthvlm.predict_video(clip, tmp_path, nano, focal_length=FOCAL, every=2, max_frames=2)
        assert [path.name for path in pngs(result.files.depth)] == ["000000.png", "000002.png"]
        assert [line["time"] for line in lines_of(result.files.frames)] == [0.0, 0.08]
        assert decode(result.files.video)[1] == pytest.approx([0.0, 0.08])


class TestGoingOn:
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
    def test_not_a_video(self, tmp_path):
        path = tmp_path / "text.mp4"
        path.write_text("hello")
        with pytest.raises(ValueError, match=r"text\.mp4 is not a video that can be read"):
            open_clip(path)
        with pytest.raises(FileNotFoundError, match=r"missing\.mp4"):
            open_clip(tmp_path / "missing.mp4")

    def test_sound_alone(self, tmp_path):
        path = tmp_path / "sound.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(1600))
        with pytest.raises(ValueError, match="has no video stream"):
            open_clip(path)

    def test_no_frame(self, tmp_path):
        """A file that was cut within its first frame."""
        whole = write_clip(tmp_path / "whole.mkv", SEEDS).read_bytes()
        path = tmp_path / "empty.mkv"
        path.write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75") + 60])  # the first cluster begins there
        with pytest.raises(ValueError, match="no frame of it can be decoded"):
            open_clip(path)

    def test_of_a_truncated_file_what_can_be_decoded_is_done_and_the_exit_code_says_so(self, tmp_path):
        whole = write_clip(tmp_path / "whole.mkv", [1, 2, 3, 4] * 10).read_bytes()
        path = tmp_path / "cut.mkv"
        path.write_bytes(whole[: len(whole) * 6 // 10])
        arguments = ["predict", str(path), "--focal-length", str(FOCAL), "--out", str(tmp_path / "out")]
        for expected in ("colours", "complete already"):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 1, result.output
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
        result = CliRunner().invoke(app, ["predict", str(clip), "--out", str(tmp_path)])
        assert result.exit_code == 1
        assert 'pip install "depthvlm[video]"' in result.stderr

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
    def run(self, *arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
        return result.exit_code, result.output

    def test_images_and_clips_in_one_call(self, clip, tmp_path):
        Image.fromarray(scene(2)).save(tmp_path / "walk.png")
        (tmp_path / "walk.mp4").write_bytes(clip.read_bytes())
        code, output = self.run(
            tmp_path / "walk.png",
            tmp_path / "walk.mp4",
            "--fov",
            60,
            "--depth-range",
            1,
            30,
            "--max-frames",
            2,
            "--out",
            tmp_path / "out",
        )
        assert code == 0, output
        assert "2 frames  colours 1.00 to 30.00 m" in output
        assert "Frames are predicted independently" in output
        assert "2 done, 0 failed" in output
        assert (tmp_path / "out/walk_png.json").exists()
        assert len(pngs(tmp_path / "out/walk_mp4_depth")) == 2

    def test_a_folder_as_a_sequence_and_a_pattern_of_clips(self, clip, tmp_path):
        (tmp_path / "frames").mkdir()
        for index in range(2):
            Image.fromarray(scene(index)).save(tmp_path / f"frames/{index}.png")
        code, output = self.run(tmp_path / "frames", "--sequence", "--fov", 60, "--fps", 5, "--out", tmp_path / "out")
        assert code == 0, output
        assert decode(tmp_path / "out/frames_depth.mp4")[1] == pytest.approx([0.0, 0.2])
        code, output = self.run(clip.parent / "*.mp4", "--max-frames", 1, "--fov", 60, "--out", tmp_path / "out")
        assert code == 0, output
        assert (tmp_path / "out/walk_depth.mp4").exists()

    def test_options_that_do_not_go_together(self, clip, tmp_path):
        for arguments, words in [
            (("--prompt", "What?"), "--prompt is for images"),
            (("--save", "npy"), "--save is for images"),
            (("--sequence",), "--sequence takes folders"),
        ]:
            code, output = self.run(clip, *arguments, "--out", tmp_path)
            assert code == 2
            assert words in output
