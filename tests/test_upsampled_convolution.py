"""A 3x3 convolution of a bilinearly upsampled map, made before the upsampling."""

import pytest
import torch
import torch.nn.functional as F
from depthvlm.modeling_depthvlm import upsampled_convolution
from depthvlm.modeling_depthvlm.upsampled_convolution import convolve_upsampled
from torch import nn

SIZES = [
    ((1, 1), (8, 8)),
    ((1, 7), (2, 14)),
    ((3, 5), (96, 33)),
    ((16, 20), (32, 40)),
    ((40, 33), (80, 132)),  # more than a strip on both axes
    ((6, 9), (6, 9)),
]


def by_pytorch(x: torch.Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> torch.Tensor:
    return conv(F.interpolate(x, size=size, mode="bilinear", align_corners=True))


@pytest.fixture
def banded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the maps that are made in bands."""
    calls: list[int] = []
    bands = upsampled_convolution._bands
    monkeypatch.setattr(upsampled_convolution, "_bands", lambda *a: (calls.append(1), bands(*a))[1])
    return calls


@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_pytorchs_upsampling_and_convolution(grid, size, bias, banded):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 5, *grid).contiguous(memory_format=layout)
        with torch.no_grad():
            found, expected = convolve_upsampled(x, conv, size), by_pytorch(x, conv, size)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert len(banded) == 4


def test_a_number_by_hand():
    """Two pixels, 0 and 1, upsampled to 0, 1/3, 2/3, 1; taps 1, 10, 100 along the row; beyond the edges are zeros."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1] = torch.tensor([1.0, 10.0, 100.0])
        found = convolve_upsampled(torch.tensor([[[[0.0, 1.0]]]]), conv, (1, 4))
    expected = [100 / 3, 10 / 3 + 200 / 3, 1 / 3 + 20 / 3 + 100, 2 / 3 + 10]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected))


def test_gradients_and_half_precision_take_the_two_layers_as_they_stand(banded):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 2, 3, padding=1), torch.randn(1, 4, 5, 6)
    found, expected = convolve_upsampled(x, conv, (10, 12)), by_pytorch(x, conv, (10, 12))
    assert torch.equal(found, expected)
    assert found.requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolve_upsampled(x, conv, (10, 12)), by_pytorch(x, conv, (10, 12)))
    with torch.no_grad():
        half = conv.bfloat16()
        assert torch.equal(convolve_upsampled(x.bfloat16(), half, (10, 12)), by_pytorch(x.bfloat16(), half, (10, 12)))
    assert not banded
