"""Steadied clips: the camera's motion against the renderer's, averages by hand, cuts, and going on after a break."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from command_line import run
from depthvlm.benchmark.synthetic import render_scene
from PIL import Image
from toy_clips import contents, pngs, values_of
from toy_models import last_layer

import depthvlm
from depthvlm.ego_motion import Pinhole, camera_motion, moved, sample
from depthvlm.steady import SteadyFrame, steadied

SIZE = {"width": 96, "height": 80, "fov": 60.0}
CAMERA = Pinhole(0.5 / np.tan(np.pi / 6), 96 / 80 * 0.5 / np.tan(np.pi / 6), 0.5, 0.5)
FOCAL = 48 / np.tan(np.pi / 6)
CUTS = [(seed, ("room", "street")[seed // 2 % 2]) for seed in range(1_000_002_400, 1_000_002_412)]


def step(yaw: float = 0.0, forward: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    pose[2, 3] = forward
    return pose


def shot(seed: int, kind: str, motions: list[np.ndarray]) -> list:
    return [render_scene(seed, kind=kind, motion=motion, frame=t, **SIZE) for t, motion in enumerate(motions)]


def frame_of(scene, factor: float = 1.0) -> SteadyFrame:
    depth = np.where(scene.depth > 0, scene.depth, 80.0)
    return SteadyFrame.of(Image.fromarray(scene.image), depth * factor)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Seven frames: four of a room, panned and approached, and after a cut three of a street."""
    folder = tmp_path_factory.mktemp("clip") / "frames"
    folder.mkdir()
    scenes = shot(5, "room", [step(0.02 * t, 0.03 * t) for t in range(4)])
    scenes += shot(8, "street", [step(0.0, 0.1 * t) for t in range(3)])
    for index, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def alone(clip, nano, tmp_path_factory):
    return depthvlm.predict_video(clip, tmp_path_factory.mktemp("alone"), nano, focal_length=FOCAL, batch_size=3)


@pytest.fixture(scope="module", params=[0, 2])
def done(request, clip, nano, tmp_path_factory):
    options = {"focal_length": FOCAL, "batch_size": 3, "steady": request.param}
    return depthvlm.predict_video(clip, tmp_path_factory.mktemp("done"), nano, **options), options


class TestMotion:
    @pytest.mark.parametrize(
        ("kind", "yaw", "forward"), [("room", 0.05, 0.0), ("room", 0.0, 0.1), ("street", 0.03, 0.3)]
    )
    def test_pose_is_that_of_the_renderer(self, kind, yaw, forward):
        """The way of the points, to a quarter of a pixel; an unmoved camera is off by several."""
        one, other = shot(1_000_002_100, kind, [np.eye(4), step(yaw, forward)])
        true = np.linalg.inv(other.camera_to_world) @ one.camera_to_world
        grey = [np.asarray(Image.fromarray(scene.image).convert("L"), np.float64) for scene in (one, other)]
        depth = np.where(one.depth > 0, one.depth, 80.0).astype(np.float64)
        found = camera_motion(grey[0], grey[1], depth, CAMERA)
        ways = [moved(depth, pose, CAMERA)[:2] for pose in (found.pose, true, np.eye(4))]
        error, motion = (np.median(np.hypot(*np.subtract(a, ways[1]))) for a in (ways[0], ways[2]))
        assert error < 0.25
        assert motion > 1.5
        assert found.correlation > 0.9

    def test_points_move_by_hand(self):
        """2 m ahead, 1 m forward: depth 1 m, and twice as far from the centre."""
        depth = np.full((4, 4), 2.0)
        column, row, z = moved(depth, step(forward=-1.0), Pinhole(1.0, 1.0, 0.5, 0.5))
        np.testing.assert_allclose(z, 1.0)
        np.testing.assert_allclose(column[0] + 0.5, 2 + 2 * (np.arange(4) - 1.5))
        np.testing.assert_allclose(row[:, 0] + 0.5, 2 + 2 * (np.arange(4) - 1.5))

    def test_samples_are_bilinear(self):
        values, inside = sample(
            np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([0.5, 1.0, 1.5]), np.array([0.5, 0.25, 0.0])
        )
        np.testing.assert_allclose(values[:2], [1.5, 1.5])
        np.testing.assert_array_equal(inside, [True, True, False])


class TestSteadied:
    def test_average_in_log_depth_by_hand(self):
        """The last frame has the weight 3, this one and one ahead 1 each; a twentieth is near to full agreement."""
        [scene] = shot(3, "room", [np.eye(4)])
        now, last, ahead = frame_of(scene), frame_of(scene, 1.05), frame_of(scene, 0.95)
        agreeing = 1 - (np.log([1.05, 0.95]) / 1.5) ** 2
        alone = np.exp(agreeing[0] * np.log(1.05) * 3 / 4)
        both = np.exp((agreeing[0] * np.log(1.05) * 3 + agreeing[1] * np.log(0.95)) / 5)
        inner = slice(2, -2), slice(2, -2)
        np.testing.assert_allclose((steadied(now, last, [], CAMERA) / now.depth)[inner], alone, rtol=1e-4)
        np.testing.assert_allclose((steadied(now, last, [ahead], CAMERA) / now.depth)[inner], both, rtol=1e-4)

    @pytest.mark.parametrize(("kind", "motion"), [("room", step(0.0, 0.1)), ("street", step(0.02, 0.4))])
    def test_what_the_motion_changes_is_kept(self, kind, motion):
        """With true depth in both frames the nearer points stay nearer: within 1 %, though the motion changes more."""
        before, after = shot(1_000_002_203, kind, [np.eye(4), motion])
        result = steadied(frame_of(after), frame_of(before), [], CAMERA)
        valid = after.depth > 0
        assert np.median(np.abs(result / frame_of(after).depth - 1)[valid]) < 0.01
        assert np.median(np.abs(before.depth[valid] / after.depth[valid] - 1)) > 0.02

    def test_noise_of_a_scale_is_reduced_to_less_than_half(self):
        factors = np.exp(np.random.default_rng(0).normal(0, 0.05, 12))
        scenes = shot(1_000_002_300, "room", [step(0.01 * t, 0.02 * t) for t in range(12)])
        logs, last = [], None
        for scene, factor in zip(scenes, factors, strict=True):
            depth = steadied(frame_of(scene, factor), last, [], CAMERA)
            last = SteadyFrame(frame_of(scene).grey, depth)
            logs.append(np.median(np.log(depth / frame_of(scene).depth)))
        assert np.std(np.diff(logs)) < 0.5 * np.std(np.diff(np.log(factors)))

    @pytest.mark.parametrize("ahead", [0, 2])
    def test_first_frame_of_a_shot_is_left_alone(self, ahead):
        scenes = [shot(seed, kind, [step(0.0, 0.02 * t) for t in range(3)]) for seed, kind in CUTS]
        for before, after in itertools.pairwise(scenes):
            frames = [frame_of(scene) for scene in after]
            assert steadied(frames[0], frame_of(before[-1]), frames[1 : 1 + ahead], CAMERA) is frames[0].depth
            assert steadied(frames[1], frames[0], frames[2 : 2 + ahead], CAMERA) is not frames[1].depth

    def test_a_cut_ahead_does_not_count(self):
        room, street = shot(5, "room", [np.eye(4)] * 2), shot(8, "street", [np.eye(4)])
        last, now, other = frame_of(room[0], 1.1), frame_of(room[1]), frame_of(street[0])
        np.testing.assert_array_equal(steadied(now, last, [other], CAMERA), steadied(now, last, [], CAMERA))


class TestClip:
    def test_first_frames_are_those_of_frame_by_frame_and_no_others(self, done, alone):
        pairs = zip(pngs(done[0].files.depth), pngs(alone.files.depth), strict=True)
        same = [path.read_bytes() == other.read_bytes() for path, other in pairs]
        assert same == [True, False, False, False, True, False, False]

    def test_record_says_so(self, done, alone):
        assert (done[0].record["steady"], alone.record["steady"]) == (done[1]["steady"], None)
        assert "steadied" in done[0].record["note"]

    @pytest.mark.parametrize("missing", [range(1, 7), range(2, 7), range(3, 7), [3], [0], [6]])
    def test_after_a_break_the_bytes_are_the_same(self, done, clip, nano, tmp_path, missing):
        result, options = done
        whole = contents(result.files.depth.parent)
        shutil.copytree(result.files.depth.parent, tmp_path / "out")
        for index in missing:
            (tmp_path / f"out/frames_depth/{index}.png").unlink()
        if len(missing) > 1:  # as a killed run leaves it
            (tmp_path / "out/frames_depth.mp4").unlink()
            (tmp_path / "out/frames_frames.jsonl").unlink()
            (tmp_path / "out/frames.json").rename(tmp_path / "out/frames.unfinished.json")
        depthvlm.predict_video(clip, tmp_path / "out", nano, **options)
        assert contents(tmp_path / "out") == whole

    @pytest.mark.parametrize("missing", [1, 3, 6])
    def test_after_a_break_in_a_clip_whose_unit_had_to_change(self, clip, tmp_path, missing):
        """For the street the room's frames are written again, in 1/256 m; before, they steadied in millimetres."""
        far = depthvlm.load()
        layer = last_layer(far.model.depth_head)
        with torch.no_grad():
            layer.weight *= 3
            layer.bias *= 3
        options = {"focal_length": FOCAL, "batch_size": 1, "steady": 0}
        first = depthvlm.predict_video(clip, tmp_path, far, **options)
        assert first.record["depth_scale"] == 256
        assert (
            values_of(first.files.depth / "3.png").max() / 256 < 65 < values_of(first.files.depth / "6.png").max() / 256
        )
        whole = contents(tmp_path)
        (first.files.depth / f"{missing}.png").unlink()
        depthvlm.predict_video(clip, tmp_path, far, **options)
        assert contents(tmp_path) == whole

    @pytest.mark.parametrize("change", ["replaced", "removed", "added"])
    def test_frames_near_a_changed_image_are_made_again(self, clip, nano, tmp_path, change):
        options = {"focal_length": FOCAL, "batch_size": 1, "steady": 1}
        shutil.copytree(clip, tmp_path / "frames")
        if change == "added":
            (tmp_path / "frames/6.png").unlink()
        depthvlm.predict_video(tmp_path / "frames", tmp_path / "out", nano, **options)
        if change == "replaced":
            shutil.copy(clip / "1.png", tmp_path / "frames/2.png")
        elif change == "removed":
            (tmp_path / "frames/2.png").unlink()
        else:
            shutil.copy(clip / "6.png", tmp_path / "frames/6.png")
        changed = depthvlm.predict_video(tmp_path / "frames", tmp_path / "out", nano, **options)
        fresh = depthvlm.predict_video(tmp_path / "frames", tmp_path / "fresh", nano, **options)
        names = {path.name for path in pngs(fresh.files.depth)}
        for name in names:
            assert (changed.files.depth / name).read_bytes() == (fresh.files.depth / name).read_bytes()

    def test_complete_clips_are_skipped_and_other_values_refused(self, done, clip, nano, tmp_path):
        result, options = done
        shutil.copytree(result.files.depth.parent, tmp_path / "out")
        assert depthvlm.predict_video(clip, tmp_path / "out", nano, **options).skipped
        times = {path: path.stat().st_mtime_ns for path in pngs(tmp_path / "out/frames_depth")}
        depthvlm.predict_video(clip, tmp_path / "out", nano, **options, depth_range=(0.5, 20))
        assert {path: path.stat().st_mtime_ns for path in times} == times
        other = options | {"steady": 5}
        with pytest.raises(ValueError, match=rf"made otherwise \(steady: {options['steady']} there, 5 now\)"):
            depthvlm.predict_video(clip, tmp_path / "out", nano, **other)
        again = depthvlm.predict_video(clip, tmp_path / "out", nano, **other, overwrite=True)
        assert not again.skipped
        assert json.loads((tmp_path / "out/frames.json").read_text())["steady"] == 5

    def test_values_out_of_range(self, clip, nano, tmp_path):
        with pytest.raises(ValueError, match="0 or more, got -1"):
            depthvlm.predict_video(clip, tmp_path, nano, steady=-1)

    def test_command(self, clip, alone, tmp_path):
        options = ("--focal-length", FOCAL, "--steady", 0, "--out", tmp_path / "out")
        output = run("predict", clip, "--sequence", *options, "--batch-size", 3).output
        assert "Frames are steadied" in output
        moved = np.abs(values_of(tmp_path / "out/frames_depth/1.png") - values_of(alone.files.depth / "1.png"))
        assert moved.max() > 10
        refused = run("predict", clip / "0.png", *options, code=2).output
        assert "--steady is for clips" in refused
        assert "0.png" in refused
