"""Clips: every frame as `predict` gives it, one unit, one camera, one range of colours, and nothing done twice."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from toy_clips import FOCAL, SEEDS, decode, lines_of, pngs, scene, values_of, write_clip
from toy_images import exif_of
from toy_models import last_layer

import depthvlm
from depthvlm.video import range_of
from depthvlm.video_frames import natural_sorted, open_clip
from depthvlm.video_writer import SideBySide, write_video
from depthvlm.visualize import DepthRange, colorize, scale_bar


@pytest.fixture(scope="module")
def done(clip, nano, tmp_path_factory):
    """The clip, predicted frame by frame."""
    return depthvlm.predict_video(clip, tmp_path_factory.mktemp("done"), nano, focal_length=FOCAL, batch_size=1)


def farther(factor: float) -> depthvlm.DepthPredictor:
    """nano with depths about `factor` times as far: its rooms end below 65.535 m, its streets beyond."""
    model = depthvlm.load()
    layer = last_layer(model.model.depth_head)
    with torch.no_grad():
        layer.weight *= factor
        layer.bias *= factor
    return model


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
        predictions = [far.predict(picture, focal_length=FOCAL)[0] for picture in decode(clip)[0]]
        expected = sum(int((prediction.depth >= 65534.5 / 256).sum()) for prediction in predictions)
        assert result.record["clipped_pixels"] == expected > 0

    def test_the_assumed_camera_is_one_and_said_once(self, clip, nano, tmp_path):
        with pytest.warns(UserWarning, match=r"walk\.mp4 is not known.* 60 degrees") as caught:
            result = depthvlm.predict_video(clip, tmp_path, nano, batch_size=1, max_frames=2)
        assert len(caught) == 1
        assert result.camera.source == "assumed"
        assert result.camera.fx == pytest.approx(48 / np.tan(np.pi / 6))
        [expected] = nano.predict(decode(clip)[0][1], focal_length=result.camera.fx)
        millimetres = np.round(expected.depth.astype(np.float64) * 1000)
        np.testing.assert_array_equal(values_of(result.files.depth / "000001.png"), millimetres)


class TestRecord:
    def test_it_holds_camera_unit_and_range(self, done, clip):
        record = json.loads(done.files.record.read_text())
        assert record == done.record
        camera = {"fx": FOCAL, "fy": FOCAL, "cx": 48.0, "cy": 36.0, "width": 96, "height": 72}
        expected = {"source": str(clip), "camera": camera, "frames": 5, "frame_rate": 25.0, "duration": 0.16}
        expected |= {"depth_scale": 1000, "problem": None}
        assert {name: record[name] for name in expected} == expected
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
        video = write_video(tmp_path / "a.mp4", (64, 48), Fraction(1, 25), Fraction(25))
        with pytest.raises(RuntimeError, match="stop"), video:
            raise RuntimeError("stop")
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
        (tmp_path / "odd").mkdir()
        for index, seed in enumerate((1, 2)):
            Image.fromarray(scene(seed)[:71, :95]).save(tmp_path / "odd" / f"{index}.png")
        result = depthvlm.predict_video(tmp_path / "odd", tmp_path / "out", nano, focal_length=FOCAL)
        assert values_of(result.files.depth / "1.png").shape == (71, 95)
        width, height = decode(result.files.video)[0][0].size
        assert (width % 2, height % 2) == (0, 0)

    def test_a_folder_is_taken_in_natural_order_with_the_camera_of_its_first_image(self, nano, tmp_path):
        folder = tmp_path / "frames"
        folder.mkdir()
        exif = exif_of(FocalLengthIn35mmFilm=50).tobytes()
        for number in (10, 2, 1):
            Image.fromarray(scene(number % 4)).save(folder / f"f{number}.png", exif=exif if number == 1 else b"")
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
