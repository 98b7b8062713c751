"""Numbers of the published implementation, at toy size (`tests/golden/`)."""

import json

import pytest
import torch
from depthvlm.modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from safetensors.torch import load_file


@pytest.fixture(params=["dpt", "mlp"])
def case(request, golden):
    folder = golden / request.param
    expected = load_file(folder / "expected.safetensors")
    model = DepthVLMForConditionalGeneration.from_pretrained(folder)
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    truth = [expected[f"depth_gt.{i}"] for i in range(2)]
    return model, inputs, truth, expected


def test_depth_and_logits(case):
    model, inputs, _, expected = case
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    torch.testing.assert_close(outputs.logits, expected["logits"], atol=1e-5, rtol=1e-5)
    for i, depth in enumerate(outputs.predicted_depth):
        torch.testing.assert_close(depth, expected[f"depth_pred.{i}"], atol=1e-5, rtol=1e-5)


def test_losses_and_gradients(case):
    model, inputs, truth, expected = case
    outputs = model(**inputs, labels=expected["labels"], depth_labels=truth)
    torch.testing.assert_close(outputs.depth_loss, expected["depth_loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.loss, expected["loss"], atol=1e-5, rtol=1e-5)
    outputs.loss.backward()
    gradients = {name.removeprefix("grad."): value for name, value in expected.items() if name.startswith("grad.")}
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", ["4b", "8b"])
def test_full_size_layout(size, golden):
    layout = json.loads((golden / "full_size_layout.json").read_text())[size]
    config = {k: v for k, v in layout["config"].items() if k not in ("model_type", "depth_head_type", "architectures")}
    with torch.device("meta"):
        model = DepthVLMForConditionalGeneration(DepthVLMConfig(**config))
    weights = dict(model.named_parameters())
    head = {name: list(value.shape) for name, value in weights.items() if name.startswith("depth_head.")}
    assert head == layout["depth_head"]
    assert len(weights) == layout["n_tensors"]
    assert sum(value.numel() for value in weights.values()) == layout["n_params"]
