"""The composed convolution is the two that it is made of, to its edges and corners, and follows their weights."""

import copy

import pytest
import torch
from depthvlm.modeling_depthvlm.cpu_kernels_depthvlm import ComposedConvolution, may_compose
from torch import nn
from toy_models import toy_inputs, toy_model


def layers(stride: int) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    torch.manual_seed(stride)
    return nn.ConvTranspose2d(6, 6, stride, stride=stride), nn.Conv2d(6, 4, 3, padding=1, bias=False)


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (3, 5)])
@torch.no_grad()
def test_it_is_the_two_layers(stride: int, grid: tuple[int, int]) -> None:
    up, conv = layers(stride)
    up.bias.fill_(2.0)  # large, so that a wrong edge shows
    x = torch.randn(2, 6, *grid)
    torch.testing.assert_close(ComposedConvolution(up, conv)(x), conv(up(x)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_follows_the_weights() -> None:
    up, conv = layers(2)
    composed = ComposedConvolution(up, conv)
    x = torch.randn(1, 6, 2, 2)
    composed(x)
    kept = composed.kernel
    composed(x)
    assert composed.kernel is kept
    for change in (
        lambda: up.bias.add_(1),
        lambda: conv.weight.mul_(0.5),
        lambda: up.load_state_dict({k: v + 1 for k, v in up.state_dict().items()}),
        lambda: setattr(conv, "weight", nn.Parameter(torch.randn_like(conv.weight))),
    ):
        change()
        torch.testing.assert_close(composed(x), conv(up(x)), rtol=0, atol=1e-5)
    up.double()
    conv.double()
    torch.testing.assert_close(composed(x.double()), conv(up(x.double())), rtol=0, atol=1e-5)
    other = copy.deepcopy(composed)
    other.up.weight.add_(1)
    torch.testing.assert_close(other(x.double()), other.conv(other.up(x.double())), rtol=0, atol=1e-5)


def test_not_with_gradients() -> None:
    up, conv = layers(2)
    assert not may_compose(up.weight, conv.weight)
    with torch.no_grad():
        assert may_compose(up.weight, conv.weight)
        assert not may_compose(up.weight.to("meta"), conv.weight)


@pytest.mark.parametrize("head", ["dpt_light", "dpt"])
def test_depth_is_the_same_with_and_without_gradients(head: str) -> None:
    model = toy_model({"head_type": head})
    inputs = toy_inputs([[5, (2, 3), 4], [(3, 2), 2]])
    expected = model(**inputs, output_depth=True).predicted_depth
    assert expected[0].requires_grad
    for ours, theirs in zip(model.predict_depth(**inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5)
    assert all(composed.made_of for composed in model.depth_head.composed.values())
    assert not any("composed" in name for name in model.state_dict())
