"""From the model's output to metres at the size of each image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from depthvlm.processing import Camera, DepthVLMImageProcessor, DepthVLMProcessor, post_process_depth
from PIL import Image
from toy_tokenizer import build_toy_tokenizer
from transformers.utils import ModelOutput

CAMERAS = torch.tensor([[500.0, 510.0, 320.0, 240.0, 480.0, 640.0, 1.0], [90.0, 90.0, 50.0, 30.0, 60.0, 100.0, 4.0]])
DEPTHS = [torch.full((96, 128), 2.0), torch.full((32, 64), 3.0)]


def outputs(depths=DEPTHS, cameras=CAMERAS) -> ModelOutput:
    return ModelOutput(predicted_depth=depths, cameras=cameras)


def test_the_image_s_own_size_by_default():
    first, second = post_process_depth(outputs())
    assert torch.equal(first["predicted_depth"], torch.full((480, 640), 2.0))
    assert torch.equal(second["predicted_depth"], torch.full((60, 100), 3.0))
    assert first["camera"] == Camera(500.0, 510.0, 320.0, 240.0, 640, 480, "focal_length")
    assert (first["focal_source"], second["focal_source"]) == ("focal_length", "assumed")
    assert first["intrinsics"].tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]]


@pytest.mark.parametrize(
    "sizes", [[(240, 160), None], [torch.tensor([240, 160]), None], torch.tensor([[240, 160], [60, 100]])]
)
def test_a_target_size_scales_the_camera_too(sizes):
    first, second = post_process_depth(outputs(), sizes)
    assert first["predicted_depth"].shape == (240, 160)
    assert first["intrinsics"].tolist() == [[125, 0, 80], [0, 255, 120], [0, 0, 1]]
    assert (first["camera"].width, first["camera"].height) == (160, 240)
    assert second["predicted_depth"].shape == (60, 100)


def test_without_cameras_the_prediction_keeps_its_size():
    stacked = torch.rand(2, 32, 64)
    for given in (ModelOutput(predicted_depth=stacked), SimpleNamespace(predicted_depth=list(stacked), cameras=None)):
        results = post_process_depth(given)
        assert torch.equal(torch.stack([one["predicted_depth"] for one in results]), stacked)
        assert [(one["camera"], one["intrinsics"], one["focal_source"]) for one in results] == [(None, None, None)] * 2


def test_bilinear_between_pixel_centres_and_float32_whatever_comes():
    (result,) = post_process_depth(ModelOutput(predicted_depth=torch.tensor([[[1.0, 3.0]]])), [(1, 4)])
    assert result["predicted_depth"].tolist() == [[1.0, 1.5, 2.5, 3.0]]
    (result,) = post_process_depth(ModelOutput(predicted_depth=torch.ones(1, 4, 4, dtype=torch.bfloat16)))
    assert result["predicted_depth"].dtype == torch.float32


def test_both_processors_have_it():
    image_processor = DepthVLMImageProcessor()
    for one in (image_processor, DepthVLMProcessor(image_processor, build_toy_tokenizer())):
        _, second = one.post_process_depth_estimation(outputs(), target_sizes=[(4, 4), (5, 5)])
        assert second["focal_source"] == "assumed"


def test_what_the_depth_estimation_pipeline_does():
    image = Image.fromarray(np.zeros((60, 100, 3), np.uint8))
    image_processor = DepthVLMImageProcessor(focal_length=90.0, max_pixels=65536)
    inputs = image_processor(images=image, return_tensors="pt").to(torch.bfloat16)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    rows, columns = (inputs["image_grid_thw"][0, 1:] * 16).tolist()
    predicted = ModelOutput(
        predicted_depth=[torch.ones(rows, columns)], cameras=inputs["cameras"], target_size=(60, 100)
    )
    (result,) = image_processor.post_process_depth_estimation(predicted, [predicted["target_size"]])
    assert result["predicted_depth"].detach().cpu().numpy().shape == (60, 100)
    assert result["camera"].fx == 90


@pytest.mark.parametrize(
    ("given", "sizes", "message"),
    [
        (SimpleNamespace(predicted_depth=None), None, "no `predicted_depth`"),
        (outputs(cameras=CAMERAS[:1]), None, "2 depth maps but 1 cameras"),
        (outputs(), [(4, 4)], "`target_sizes` has 1 entries for 2"),
        (outputs(), [(4, 4), (0, 4)], "at least 1 pixel"),
    ],
)
def test_what_does_not_fit_is_refused(given, sizes, message):
    with pytest.raises(ValueError, match=message):
        post_process_depth(given, sizes)
