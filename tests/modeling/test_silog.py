"""Equation 4 by hand, and gradients without NaN."""

import math

import pytest
import torch
from depthvlm.modeling_depthvlm import silog_loss


def by_hand(prediction: list[float], truth: list[float], silog_lambda: float) -> float:
    d = [math.log(p) - math.log(t) for p, t in zip(prediction, truth, strict=True)]
    mean = sum(d) / len(d)
    return math.sqrt(sum(x * x for x in d) / len(d) - silog_lambda * mean**2 + 1e-8)


@pytest.mark.parametrize("silog_lambda", [0.0, 0.5, 1.0])
def test_by_hand_over_valid_pixels(silog_lambda):
    prediction = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    truth = torch.tensor([[2.0, 2.0, 1.0], [5.0, 0.0, math.nan]])
    expected = by_hand([1, 2, 3, 4], [2, 2, 1, 5], silog_lambda)
    assert silog_loss(prediction, truth, silog_lambda).item() == pytest.approx(expected, abs=1e-6)


def test_a_constant_factor():
    """A constant offset c in log depth gives |c| sqrt(1 - lambda): bounded below, unlike the printed form."""
    truth = torch.rand(3, 5, 7) + 0.5
    loss = silog_loss(math.e**3 * truth, truth, 0.5)
    assert loss.item() == pytest.approx(3 * math.sqrt(0.5), abs=1e-5)
    assert silog_loss(math.e**3 * truth, truth, 1.0).item() < 1e-3


def test_mean_over_images_with_depth():
    prediction = [torch.full((2, 2), 2.0), torch.full((2, 3), 1.0), torch.full((2, 2), 1.0), torch.full((2, 2), 5.0)]
    truth = [torch.full((2, 2), 1.0), torch.full((4, 6), math.e), torch.zeros(2, 2), None]
    expected = (math.sqrt(0.5) * math.log(2) + math.sqrt(0.5)) / 2
    assert silog_loss(prediction, truth).item() == pytest.approx(expected, abs=1e-6)


def test_the_prediction_is_resized_to_the_truth():
    ramp = torch.linspace(1, 3, 3).expand(2, 3)
    fine = torch.linspace(1, 3, 5).expand(4, 5)
    assert silog_loss(ramp, fine).item() == pytest.approx(1e-4, abs=1e-6)  # sqrt(eps): a perfect prediction


@pytest.mark.parametrize("invalid", [0.0, -1.0, math.nan, math.inf])
def test_no_valid_pixel_is_exactly_zero(invalid):
    prediction = torch.ones(4, 4, requires_grad=True)
    loss = silog_loss(prediction, torch.full((4, 4), invalid))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(prediction.grad, torch.zeros(4, 4))


def test_gradients_are_finite_where_the_root_is_steepest():
    for truth in (torch.ones(4, 4), torch.diag(torch.tensor([1.0, 0, 0, 0]))):  # perfect everywhere; one valid pixel
        prediction = torch.ones(4, 4, requires_grad=True)
        silog_loss(prediction, truth).backward()
        assert prediction.grad.isfinite().all()
    prediction = torch.full((4, 4), 2.0, requires_grad=True)
    silog_loss(prediction, torch.diag(torch.tensor([1.0, 0, 0, math.inf])), 1.0).backward()
    assert prediction.grad.isfinite().all()
    assert not prediction.grad[1:].any()


def test_gradient_against_finite_differences():
    generator = torch.Generator().manual_seed(0)
    prediction = (torch.rand(2, 3, 4, generator=generator) + 0.5).requires_grad_()
    truth = torch.rand(2, 3, 4, generator=generator).round(decimals=1)
    silog_loss(prediction, truth).backward()
    step = 1e-3
    for index in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        values = []
        for sign in (1, -1):
            moved = prediction.detach().clone()
            moved[index] += sign * step
            values.append(silog_loss(moved, truth).item())
        assert prediction.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


def test_float32_whatever_comes_in():
    prediction = torch.full((4, 4), 1.0, dtype=torch.bfloat16)
    truth = torch.full((4, 4), 1.001, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = silog_loss(prediction, truth)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.sqrt(0.5 * math.log(1.001) ** 2 + 1e-8), rel=1e-3)


def test_numbers_of_images_must_match():
    with pytest.raises(ValueError, match="2 predicted depth maps and 1 targets"):
        silog_loss(torch.ones(2, 3, 3), torch.ones(1, 3, 3))
