"""The camera head: metres and angles by hand, its likelihood by scipy, given cameras unchanged, files and gradients."""

import math

import pytest
import torch
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation
from depthvlm.modeling_depthvlm.camera_head_depthvlm import (
    ASSUMED,
    PREDICTED,
    CameraEstimate,
    camera_nll,
    fill_in,
    mean_camera_loss,
)
from depthvlm.processing import CAMERA_SOURCES, Camera, post_process_depth
from scipy.stats import norm
from toy_models import toy_inputs, toy_model

ROWS = [[3, (2, 3), 4, (3, 2), 2], [1, (2, 3), 6]]
# 60 degrees across 640 pixels: 320 / tan(30 degrees).
FOCAL = 554.2562584220407
GIVEN, UNKNOWN = CAMERA_SOURCES.index("focal_length"), CAMERA_SOURCES.index("assumed")
CAMERAS = torch.tensor(
    [
        [FOCAL, FOCAL, 320, 240, 480, 640, UNKNOWN],
        [700, 700, 240, 320, 640, 480, GIVEN],
        [FOCAL, FOCAL, 240, 320, 640, 480, UNKNOWN],
    ]
)
SCALES = torch.tensor([1.0, 0.9, 0.8])


def test_sources_are_those_of_the_processor():
    assert (CAMERA_SOURCES[ASSUMED], CAMERA_SOURCES[PREDICTED]) == ("assumed", "predicted")


def test_focal_ratio_to_field_of_view_and_metres_by_hand():
    """Half of the assumed focal length: 277.128 pixels, 98.213 degrees across 640 pixels and 81.787 across 480."""
    estimate = CameraEstimate(torch.full((3,), math.log(0.5)), torch.full((3,), 0.1))
    rows, scales = fill_in(CAMERAS, SCALES, estimate)
    wide, given, tall = (Camera.from_row(row) for row in rows)
    assert [camera.source for camera in (wide, given, tall)] == ["predicted", "focal_length", "predicted"]
    assert wide.fx == wide.fy == tall.fx == pytest.approx(277.1281, abs=1e-3)
    assert wide.fov == pytest.approx(98.2132, abs=1e-3)
    assert tall.fov == pytest.approx(81.7868, abs=1e-3)
    # The derivative of the angle: 0.1 * sin(98.2132 degrees) and 0.1 * sin(81.7868 degrees), in degrees.
    assert wide.fov_spread == pytest.approx(5.6708, abs=1e-3)
    assert tall.fov_spread == pytest.approx(5.6708, abs=1e-3)
    # The third image had hit the pixel limit, with an effective focal length of 0.8 of the canonical one if assumed.
    assert scales.tolist() == pytest.approx([0.5, 0.9, 0.4])
    assert given == Camera.from_row(CAMERAS[1])
    assert given.fov_spread is None


def test_likelihood_is_that_of_scipy():
    labels = torch.tensor([0.3, torch.nan, -0.2])
    estimate = CameraEstimate(torch.tensor([0.1, 0.7, -0.25]), torch.tensor([0.2, 0.1, 0.05]))
    expected = -norm.logpdf(0.3, 0.1, 0.2) - norm.logpdf(-0.2, -0.25, 0.05)
    assert camera_nll(estimate, labels).item() == pytest.approx(expected, abs=1e-5)
    assert mean_camera_loss(estimate, labels).item() == pytest.approx(expected / 2, abs=1e-5)
    assert mean_camera_loss(estimate, None).item() == 0


@pytest.fixture
def pair():
    """A model with a camera head, and the same without."""
    model = toy_model({"predict_fov": True})
    plain = toy_model()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert all(name.startswith("depth_head.camera.") for name in missing.unexpected_keys)
    return model, plain


def test_given_cameras_are_unchanged_bit_for_bit(pair):
    model, plain = pair
    inputs = toy_inputs(ROWS) | {"focal_scale": SCALES}
    mixed, without = model.predict_depth(**inputs, cameras=CAMERAS), plain.predict_depth(**inputs, cameras=CAMERAS)
    assert torch.equal(mixed[1], without[1])
    assert torch.equal(mixed.cameras[1, :7], CAMERAS[1])
    assert mixed.cameras[1, 7].isnan()
    assert torch.equal(without.cameras, CAMERAS)
    # Metres, like focal lengths, are multiplied by the ratio to what was assumed.
    for index in (0, 2):
        ratio = mixed.cameras[index, 0] / CAMERAS[index, 0]
        assert abs(ratio - 1) > 1e-3
        torch.testing.assert_close(mixed[index], without[index] * ratio)
    # Without records nothing says that a camera was assumed.
    assert all(
        torch.equal(*maps) for maps in zip(model.predict_depth(**inputs), plain.predict_depth(**inputs), strict=True)
    )


def test_every_way_gives_the_same_camera(pair):
    model, _ = pair
    inputs = toy_inputs(ROWS, side="left") | {"focal_scale": SCALES, "cameras": CAMERAS}
    depth = model.predict_depth(**inputs)
    with torch.no_grad():
        forward = model(**inputs)
        generated = model.generate(**inputs, return_dict_in_generate=True, max_new_tokens=2, do_sample=False)
    for output in (forward, generated):
        torch.testing.assert_close(output.cameras, depth.cameras, equal_nan=True, rtol=1e-5, atol=1e-4)
        for one, other in zip(output.predicted_depth, depth, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    results = post_process_depth(forward)
    assert [result["focal_source"] for result in results] == ["predicted", "focal_length", "predicted"]
    assert results[0]["intrinsics"][0, 0].item() == pytest.approx(depth.cameras[0, 0].item())
    assert results[0]["predicted_depth"].shape == (480, 640)


def test_with_labels_metres_are_those_of_the_given_focal_scale(pair):
    model, plain = pair
    inputs = toy_inputs(ROWS) | {"focal_scale": SCALES, "cameras": CAMERAS}
    depth = [torch.full((8, 8), 2.0), None, torch.full((5, 7), 3.0)]
    labels = torch.tensor([0.2, torch.nan, torch.nan])
    output = model(**inputs, depth_labels=depth, camera_labels=labels)
    assert output.depth_loss.item() == plain(**inputs, depth_labels=depth).depth_loss.item()
    estimate = model.run_backbone(True, **toy_inputs(ROWS))[1].estimate
    expected = -norm.logpdf(0.2, estimate.log_focal[0].item(), estimate.spread[0].item())
    assert output.camera_loss.item() == pytest.approx(expected, abs=1e-4)
    assert output.loss.item() == pytest.approx((output.depth_loss + output.camera_loss).item(), abs=1e-5)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.depth_head.parameters())
    assert model.depth_head.camera.project.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="predict_fov"):
        plain(**inputs, camera_labels=labels)


def test_without_camera_labels_every_parameter_has_a_gradient_of_zero(pair):
    model, _ = pair
    depth = [torch.full((8, 8), 2.0), None, None]
    model.train()(**toy_inputs(ROWS), depth_labels=depth).loss.backward()
    assert all(p.grad.eq(0).all() for p in model.depth_head.camera.parameters())
    model.zero_grad()
    inputs = toy_inputs([[5]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad.eq(0).all() for p in model.depth_head.camera.parameters())


def test_resampling_does_not_change_the_position_of_what_is_seen():
    """The same maps, each token twice in a row and a column, lie at the same places of the image."""
    head = toy_model({"predict_fov": True}).depth_head.camera
    for block in head.blocks:  # neighbours are others in a finer grid
        torch.nn.init.zeros_(block[3].weight)
    torch.nn.init.zeros_(head.project.weight[:, -2:])  # and so are the centres of tokens
    coarse = torch.randn(4, 1, 2, 3, 32)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    one = head(list(coarse.flatten(2, 3)), (2, 3))
    other = head(list(fine.flatten(2, 3)), (4, 6))
    torch.testing.assert_close(torch.cat(one), torch.cat(other))


def test_save_and_load(pair, tmp_path):
    model, plain = pair
    model.save_pretrained(tmp_path / "camera")
    assert (tmp_path / "camera" / "camera_head_depthvlm.py").is_file()  # travels with the checkpoint
    inputs = toy_inputs(ROWS) | {"focal_scale": SCALES, "cameras": CAMERAS}
    expected = model.predict_depth(**inputs)
    for kind in (DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation):
        loaded = kind.from_pretrained(tmp_path / "camera").eval()
        torch.testing.assert_close(loaded.predict_depth(**inputs).cameras, expected.cameras, equal_nan=True)
    pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "focal_scale", "cameras")}
    assert loaded(**pixels).cameras[:, 6].tolist() == [PREDICTED, GIVEN, PREDICTED]

    # An older checkpoint gets a new camera head where it is asked for, and is refused where it should have one.
    plain.save_pretrained(tmp_path / "plain")
    started = DepthVLMForConditionalGeneration.from_pretrained(tmp_path / "plain", depth_config={"predict_fov": True})
    assert started.depth_head.camera.is_untrained()
    config = (tmp_path / "plain" / "config.json").read_text()
    (tmp_path / "plain" / "config.json").write_text(config.replace('"predict_fov": false', '"predict_fov": true'))
    with pytest.raises(ValueError, match=r"lacks 24 of the model's weights: depth_head\.camera\."):
        DepthVLMForConditionalGeneration.from_pretrained(tmp_path / "plain")


def test_wrong_number_of_cameras(pair):
    with pytest.raises(ValueError, match="2 records for 3 images"):
        pair[0].predict_depth(**toy_inputs(ROWS), cameras=CAMERAS[:2])
