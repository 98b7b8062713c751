"""A 3x3 convolution of a bilinearly upsampled map, made before the upsampling."""

import pytest
import torch
import torch.nn.functional as F
from depthvlm.modeling_depthvlm import cpu_kernels_depthvlm as upsampled_convolution
from depthvlm.modeling_depthvlm.cpu_kernels_depthvlm import convolve_upsampled
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


class Operations(TorchDispatchMode):
    """Shapes of what the operations of a name return."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.shapes = name, list[tuple[int, ...]]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__.startswith(self.name):
            self.shapes.append(tuple(result.shape))
        return result


def test_few_images_at_once(monkeypatch: pytest.MonkeyPatch):
    """CUDA refuses a map of 2^31 numbers, which a batch of 32 images of 1024x768 is."""
    assert upsampled_convolution._AT_ONCE < 2**31
    monkeypatch.setattr(upsampled_convolution, "_AT_ONCE", 2 * 4 * 10 * 12)
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 2, 3, padding=1), torch.randn(5, 4, 5, 6)
    with Operations("upsample_bilinear2d.") as made:
        found = convolve_upsampled(x, conv, (10, 12))
    assert made.shapes == [(2, 4, 10, 12), (2, 4, 10, 12), (1, 4, 10, 12)]
    torch.testing.assert_close(found, by_pytorch(x, conv, (10, 12)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("at_once", [10**9, 1])
def test_gradients_without_the_upsampled_map(monkeypatch: pytest.MonkeyPatch, at_once: int):
    """They are PyTorch's; the map is not kept but made again, and the convolution not."""
    monkeypatch.setattr(upsampled_convolution, "_AT_ONCE", at_once)
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 2, 3, padding=1), torch.randn(3, 4, 5, 6, requires_grad=True)
    weights = torch.randn(3, 2, 10, 12)
    expected = torch.autograd.grad((by_pytorch(x, conv, (10, 12)) * weights).sum(), [x, *conv.parameters()])
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        found = convolve_upsampled(x, conv, (10, 12))
    assert not [shape for shape in kept if shape[-2:] == (10, 12)]
    with Operations("convolution.") as convolved, Operations("upsample_bilinear2d.") as made:
        gradients = torch.autograd.grad((found * weights).sum(), [x, *conv.parameters()])
    assert not convolved.shapes
    assert sum(shape[0] for shape in made.shapes) == 3
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
