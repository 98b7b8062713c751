"""A camera that the model predicts: in predictions, refinement, files, the command, clips and compiled layers."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from depthvlm.processing import DepthVLMProcessor
from PIL import Image
from toy_models import toy_inputs, toy_model
from typer.testing import CliRunner

import depthvlm
from depthvlm import DepthVLMForConditionalGeneration
from depthvlm.checkpoint import resolve_model_path
from depthvlm.cli.app import app
from depthvlm.compiling import compile_depth

ASSUMED = 320 / math.tan(math.pi / 6)  # pixels, 60 degrees across 640 of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """nano with a camera head that finds half of the assumed focal length in every picture, and a spread of 0.1."""
    where, nano = tmp_path_factory.mktemp("camera") / "nano", resolve_model_path("depthvlm-nano")
    model = DepthVLMForConditionalGeneration.from_pretrained(
        nano, dtype=torch.float32, depth_config={"predict_fov": True}
    )
    last = model.depth_head.camera.output[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([math.log(0.5), math.log(0.1)]))
    model.save_pretrained(where)
    DepthVLMProcessor.from_pretrained(nano).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def half(folder):
    return depthvlm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def room():
    """A picture of 640x480 pixels with a focal length in its EXIF data, and its pixels alone."""
    from importlib.resources import files

    path = str(files("depthvlm") / "assets" / "room.jpg")
    return path, np.asarray(Image.open(path))


def test_half_the_focal_length_and_half_the_metres(half, room):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [found] = half.predict(room[1])
    camera = found.camera
    assert camera.source == "predicted"
    assert camera.fx == camera.fy == pytest.approx(ASSUMED / 2, rel=1e-5)
    assert camera.fov == pytest.approx(98.2132, abs=1e-3)
    assert camera.fov_spread == pytest.approx(5.6708, abs=1e-3)
    [assumed] = half.predict(room[1], focal_length=ASSUMED)
    np.testing.assert_allclose(found.depth, assumed.depth / 2, rtol=1e-5)
    # x = (column - 320) * z / 277.128
    z = found.depth[100, 600]
    np.testing.assert_allclose(found.points[100, 600], [280.5 * z / 277.1281, -139.5 * z / 277.1281, z], rtol=1e-5)
    assert found.record()["focal_source"] == "predicted"
    assert found.record()["fov_spread"] == pytest.approx(5.6708, abs=1e-3)


def test_a_known_camera_wins_in_a_mixed_batch(half, nano, room):
    path, pixels = room
    unknown, given, exif = half.predict([pixels, pixels, path], fov=[None, 60, None])
    assert [one.camera.source for one in (unknown, given, exif)] == ["predicted", "fov", "exif"]
    expected = nano.predict([pixels, pixels, path], fov=[60, 60, None])
    for one, other in zip((given, exif), expected[1:], strict=True):
        assert one.camera == other.camera
        np.testing.assert_array_equal(one.depth, other.depth)
        assert one.record().keys() == other.record().keys()


def test_views_have_the_camera_of_the_picture(half, room):
    [found] = half.predict(room[1], refine=2)
    [assumed] = half.predict(room[1], refine=2, focal_length=ASSUMED)
    assert found.camera.source == "predicted"
    np.testing.assert_allclose(found.depth, assumed.depth / 2, rtol=1e-4)
    np.testing.assert_allclose(found.spread, assumed.spread, atol=1e-5)


def test_reply_and_depth_of_one_pass(half, room):
    [found] = half.predict(room[1], prompt="How far?", max_new_tokens=2)
    [alone] = half.predict(room[1])
    assert found.camera.fx == pytest.approx(alone.camera.fx)
    np.testing.assert_allclose(found.depth, alone.depth, rtol=1e-4)


def test_the_command_says_so(folder, room, tmp_path):
    Image.fromarray(room[1]).save(tmp_path / "plain.png")
    options = ["--model", str(folder), "--formats", "json", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "plain.png"), *options])
    assert done.exit_code == 0, done.output
    assert "field of view 98 degrees +- 6, predicted by the model" in done.output
    assert "Focal lengths: 1 predicted." in done.output
    assert "is not known" not in done.output
    record = json.loads((tmp_path / "out" / "plain.json").read_text())
    assert record["focal_source"] == "predicted"
    assert record["fov"] == pytest.approx(98.2132, abs=1e-3)


def test_a_clip_has_one_camera(half, clip, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", depthvlm.processing.AssumedCameraWarning)
        done = depthvlm.predict_video(clip, tmp_path, half)
    assert done.camera.source == "predicted"
    assert done.camera.fx == pytest.approx(48 / math.tan(math.pi / 6) / 2, rel=1e-4)  # of 96 pixels
    assert done.camera.fov_spread == pytest.approx(5.6708, abs=1e-3)


def test_an_untrained_camera_head_is_refused():
    with pytest.raises(ValueError, match="camera head was never trained"):
        depthvlm.load("depthvlm-nano", depth_config={"predict_fov": True})
    loaded = depthvlm.load("depthvlm-nano", depth_config={"predict_fov": True}, allow_untrained_head=True)
    assert loaded.model.depth_head.camera.is_untrained()


def test_compiled_layers_have_the_same_cameras():
    model = toy_model({"predict_fov": True, "feature_source": "vit"})
    inputs = toy_inputs([[3, (2, 4), 4], [7, (3, 4)]])
    cameras = torch.tensor([[90.0, 90, 60, 45, 90, 120, 4], [80, 80, 60, 45, 90, 120, 1]])
    inputs |= {"cameras": cameras, "focal_scale": torch.tensor([1.0, 0.5])}
    expected = model.predict_depth(**inputs)
    compile_depth(model, backend=lambda graph, _: graph.forward, buckets=(16,))
    found = model.predict_depth(**inputs)
    torch.testing.assert_close(list(found), list(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.cameras, expected.cameras, equal_nan=True)
    assert found.cameras[:, 6].tolist() == [5, 1]
