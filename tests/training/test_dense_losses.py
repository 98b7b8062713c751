"""Losses for dense truth: numbers by hand, loops in numpy, and runs of the trainer with both."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depthvlm.training.dense_losses import (
    EDGE_RATIO,
    SCALES,
    DenseWeights,
    gradient_matching_per_image,
    normal_loss_per_image,
)
from depthvlm.training.forward import DepthTargets, score_depth
from PIL import Image as Pictures
from toy_training import settings, toy_dataset, toy_row, toy_rows

from depthvlm import DepthSFTTrainer

DENSE = {"gradient_matching_weight": 0.5, "normal_weight": 0.25}
HOLES = (0.0, -1.0, math.nan, math.inf)


def camera(fx: float, fy: float, cx: float, cy: float, height: int, width: int) -> torch.Tensor:
    """A row of the processor's `cameras`."""
    return torch.tensor([[fx, fy, cx, cy, height, width, 0.0]])


def gradient_matching(prediction: Any, target: Any) -> float:
    return float(gradient_matching_per_image(torch.as_tensor(prediction)[None], torch.as_tensor(target)[None]))


def normal_loss(prediction: Any, target: Any, cameras: torch.Tensor) -> float:
    return float(normal_loss_per_image(torch.as_tensor(prediction)[None], torch.as_tensor(target)[None], cameras))


def plane(normal: tuple[float, float, float], offset: float, cameras: torch.Tensor) -> torch.Tensor:
    """The z-depth of the points with `normal . point = offset`."""
    fx, fy, cx, cy, height, width, _ = cameras[0].double().tolist()
    x = (torch.arange(int(width)).double() + 0.5 - cx) / fx
    y = (torch.arange(int(height)).double() + 0.5 - cy) / fy
    return offset / (normal[0] * x[None, :] + normal[1] * y[:, None] + normal[2])


# Gradient matching


@pytest.mark.parametrize("hole", HOLES)
def test_gradient_matching_by_hand(hole: float) -> None:
    e = math.e
    # d = log(prediction / truth) is   0 1 3      without the pixel x, which has no truth.
    #                                  0 x 3
    #                                  2 2 2
    # Scale 1: in rows 1 + 2, none (both have x), 0 + 0: 4 pairs. In columns 0 + 2, none (x), 0 + 1: 4 pairs. 6 / 8.
    # Scale 2, every second pixel, 0 3 / 2 2: rows 3 + 0, columns 2 + 1: 6 / 4. Scales 4 and 8: a pixel, no pair.
    d = torch.tensor([[0.0, 1.0, 3.0], [0.0, 9.0, 3.0], [2.0, 2.0, 2.0]])
    truth = torch.tensor([[1.0, 2.0, 3.0], [e, hole, 1.0], [1.0, 5.0, 7.0]])
    prediction = torch.where(torch.isfinite(truth) & (truth > 0), truth, 1.0) * d.exp()
    assert gradient_matching(prediction, truth) == pytest.approx(6 / 8 + 6 / 4, abs=1e-6)


def test_gradient_matching_of_a_step_that_is_missed() -> None:
    # A step of a factor of 2 in a row of 9 pixels, the prediction flat: one pair in 8, 4, 2 and 1 differs by log 2.
    truth = torch.tensor([[1.0] * 5 + [2.0] * 4])
    expected = math.log(2) * (1 / 8 + 1 / 4 + 1 / 2 + 1)
    assert gradient_matching(torch.full((1, 9), 1.7), truth) == pytest.approx(expected, abs=1e-6)
    assert gradient_matching(truth * 1.7, truth) == pytest.approx(0, abs=1e-6)


# Normals


def test_normals_by_hand() -> None:
    # One cell of four pixels at x, y = -1/2 or 1/2. True points (-1, -1, 2), (1, -1, 2), (-1, 1, 2), (1, 1, 2):
    # diagonals (2, 2, 0) and (2, -2, 0), normal (0, 0, -8). The right half predicted at 4: (-1, -1, 2), (2, -2, 4),
    # (-1, 1, 2), (2, 2, 4): diagonals (3, 3, 2) and (3, -3, 2), normal (12, 0, -18); cos = 18 / sqrt(144 + 324).
    truth, prediction = torch.full((2, 2), 2.0), torch.tensor([[2.0, 4.0], [2.0, 4.0]])
    pinhole = camera(1, 1, 1, 1, 2, 2)
    expected = 1 - 18 / math.sqrt(468)
    assert normal_loss(prediction, truth, pinhole) == pytest.approx(expected, abs=1e-6)
    # The map at twice the size of the image that the camera belongs to.
    assert normal_loss(prediction, truth, camera(0.5, 0.5, 0.5, 0.5, 1, 1)) == pytest.approx(expected, abs=1e-6)


def test_planes_by_their_normals() -> None:
    # Two planes through the same camera: wherever a cell lies, and at every scale, the angle is that of their normals.
    pinhole = camera(30, 36, 9, 14.5, 24, 20)
    truth, prediction = plane((0, 0, 1), 3, pinhole), plane((0.6, 0, 0.8), 2, pinhole)
    assert normal_loss(truth, truth, pinhole) == 0
    assert normal_loss(prediction, truth, pinhole) == pytest.approx(1 - 0.8, abs=1e-4)
    # A plane at 45 degrees and one at 45 degrees the other way are at right angles.
    up, down = plane((0, 1, 1), 3, camera(90, 90, 10, 12, 24, 20)), plane((0, -1, 1), 3, camera(90, 90, 10, 12, 24, 20))
    assert normal_loss(up, down, camera(90, 90, 10, 12, 24, 20)) == pytest.approx(1, abs=1e-3)


def test_the_sides_of_a_true_step_count_and_the_step_does_not() -> None:
    pinhole = camera(40, 40, 8, 8, 16, 16)
    truth = torch.full((16, 16), 2.0)
    truth[:, 9:] = 2 * EDGE_RATIO * 1.01
    blurred = truth.clone()
    blurred[:, 8:10] = 2.05  # in the two columns of the step, which are also parts of flat cells beside it
    assert normal_loss(truth, truth, pinhole) == 0
    assert normal_loss(torch.where(truth > 2, truth * 3, truth), truth, pinhole) == pytest.approx(0, abs=1e-6)
    assert normal_loss(blurred, truth, pinhole) > 0.01


# Both


def loops(prediction: np.ndarray, truth: np.ndarray, row: np.ndarray) -> tuple[float, float]:
    """Both losses of an image, pixel by pixel."""
    valid = np.isfinite(truth) & (truth > 0)
    (height, width), (fx, fy, cx, cy, full_height, full_width, _) = truth.shape, row.astype(np.float64)
    fx, cx, fy, cy = *(n * width / full_width for n in (fx, cx)), *(n * height / full_height for n in (fy, cy))

    def point(depth: np.ndarray, y: int, x: int) -> np.ndarray:
        return np.array([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, 1]) * depth[y, x]

    gradients, angles = 0.0, []
    for step in (2**k for k in range(SCALES)):
        steps, cells = [], []
        for y in range(0, height, step):
            for x in range(0, width, step):
                for v, u in ((y, x + step), (y + step, x)):
                    if v < height and u < width and valid[y, x] and valid[v, u]:
                        one, other = (math.log(prediction[j, i] / truth[j, i]) for j, i in ((y, x), (v, u)))
                        steps.append(abs(one - other))
                corners = [(y, x), (y + step, x + step), (y, x + step), (y + step, x)]
                if y + step < height and x + step < width and all(valid[c] for c in corners):
                    depths = [truth[c] for c in corners]
                    if max(depths) <= EDGE_RATIO * min(depths):
                        normals = []
                        for depth in (prediction, truth):
                            a, b, c, d = (point(depth, *corner) for corner in corners)
                            normals.append(np.cross(b - a, c - d))
                        cosine = normals[0] @ normals[1] / np.prod([np.linalg.norm(n) for n in normals])
                        cells.append(1 - cosine)
        gradients += float(np.mean(steps)) if steps else 0.0
        angles += [float(np.mean(cells))] if cells else []
    return gradients, float(np.mean(angles)) if angles else 0.0


@pytest.mark.parametrize("size", [(13, 17), (2, 9), (1, 5), (1, 1), (30, 8)])
def test_against_loops(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    truth = 3 * np.exp(np.cumsum(rng.normal(0, 0.012, (2, *size)), axis=-1))
    truth[rng.random((2, *size)) < 0.05] = rng.choice(HOLES)
    prediction = np.exp(rng.normal(1, 0.02, (2, *size)))
    rows = np.array([[50, 60, 20, 10, 24, 40, 0], [9.0, 8, 7, 6, 12, 14, 4]])
    given = torch.tensor(prediction), torch.tensor(truth)
    expected = [loops(*one) for one in zip(prediction, truth, rows, strict=True)]
    gradients, normals = gradient_matching_per_image(*given), normal_loss_per_image(*given, torch.tensor(rows))
    torch.testing.assert_close(gradients, torch.tensor([g for g, _ in expected]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(normals, torch.tensor([n for _, n in expected]), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_does_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    truth, prediction = 2 + torch.rand(1, 20, 30) * 0.05, 2 + torch.rand(1, 20, 30)
    pinhole = camera(1000, 1000, 15, 10, 20, 30)
    for loss in (gradient_matching_per_image, lambda p, t: normal_loss_per_image(p, t, pinhole)):
        expected = loss(prediction, truth)
        assert float(expected) > 0.1
        torch.testing.assert_close(loss(prediction * scale, truth), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(loss(prediction, truth * scale), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (12, 20)])
@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("whole", [True, False], ids=["no valid pixel", "holes"])
def test_gradients_are_finite_and_zero_in_holes(size: tuple[int, int], hole: float, whole: bool) -> None:
    torch.manual_seed(0)
    truth, prediction = 2 + torch.rand(2, *size) * 0.05, (2 + torch.rand(2, *size)).requires_grad_()
    holes = torch.ones(2, *size, dtype=torch.bool) if whole else torch.rand(2, *size) < 0.2
    truth[holes] = hole
    with torch.no_grad():
        prediction[holes] = math.inf  # nothing in a hole matters
    pinhole = camera(50, 50, 10, 6, 12, 20).repeat(2, 1)
    for losses in (gradient_matching_per_image(prediction, truth), normal_loss_per_image(prediction, truth, pinhole)):
        (gradient,) = torch.autograd.grad(losses.sum(), prediction)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()
        assert not gradient[holes].any()
        if whole or size == (1, 1):
            assert not losses.any()
        elif size == (12, 20):
            assert (losses > 0).all()
            assert gradient[~holes].any()


@pytest.mark.parametrize("focal", [1e-3, 1e9])
def test_extreme_cameras_and_depths_are_finite(focal: float) -> None:
    for metres in (1e-3, 6e4):
        prediction = (metres * (1 + torch.rand(1, 16, 16))).requires_grad_()
        loss = normal_loss_per_image(prediction, torch.full((1, 16, 16), metres), camera(focal, focal, 8, 8, 16, 16))
        loss.sum().backward()
        assert 0 <= loss.item() <= 2
        assert torch.isfinite(prediction.grad).all()


def test_single_precision_under_autocast() -> None:
    truth, prediction = 2 + torch.rand(1, 16, 16) * 0.05, 2 + torch.rand(1, 16, 16)
    pinhole = camera(500, 500, 8, 8, 16, 16)
    expected = gradient_matching_per_image(prediction, truth), normal_loss_per_image(prediction, truth, pinhole)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient_matching_per_image(prediction, truth), normal_loss_per_image(prediction, truth, pinhole)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# In training


def test_the_sum_of_a_batch_of_several_sizes() -> None:
    torch.manual_seed(0)
    prediction = [1 + torch.rand(8, 12) for _ in range(4)]
    labels = [3 + torch.rand(8, 12) * 0.02, None, 3 + torch.rand(16, 24) * 0.02, 3 + torch.rand(8, 12) * 0.02]
    cameras = torch.cat([camera(f, f, 12, 8, 16, 24) for f in (20, 30, 40, 50)])
    targets = DepthTargets(labels, None, cameras=cameras)
    silog, _ = score_depth(prediction, targets, 0.5, DenseWeights())
    loss, totals = score_depth(prediction, targets, 0.5, DenseWeights(0.5, 0.25))
    expected = [0.0, 0.0]
    for index, truth in enumerate(labels):
        if truth is not None:
            resized = torch.nn.functional.interpolate(
                prediction[index][None, None], size=truth.shape, mode="bilinear", align_corners=True
            )[0, 0]
            both = loops(resized.double().numpy(), truth.double().numpy(), cameras[index].numpy())
            expected = [one + other for one, other in zip(expected, both, strict=True)]
    assert totals[:4].tolist() == pytest.approx([float(silog), *expected, 3], rel=1e-4)
    assert float(loss) == pytest.approx(float(silog) + 0.5 * expected[0] + 0.25 * expected[1], rel=1e-4)
    with pytest.raises(ValueError, match="`normal_weight` is above 0, but the batch has no `cameras`"):
        score_depth(prediction, DepthTargets(labels, None), 0.5, DenseWeights(normal=1.0))


def run(checkpoint: str, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DepthSFTTrainer:
    data = toy_dataset(rows)
    trainer = DepthSFTTrainer(checkpoint, settings(folder, **changes), train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("trainable", [["all"], ["head"]])
def test_accumulated_micro_batches_equal_one_batch(checkpoint: str, tmp_path: Path, trainable: list[str]) -> None:
    rows = toy_rows(8)
    whole = run(checkpoint, tmp_path, rows, trainable=trainable, per_device_train_batch_size=8, **DENSE)
    cut = run(
        checkpoint,
        tmp_path,
        rows,
        trainable=trainable,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **DENSE,
    )
    before, after = whole.state.log_history[0], cut.state.log_history[0]
    for name in ("loss", "depth_loss", "silog", "gradient_matching", "normal"):
        assert after[name] == pytest.approx(before[name], abs=1e-5)
    for prefix, log in (("", before), ("eval_", whole.evaluate())):
        parts = log[f"{prefix}silog"] + 0.5 * log[f"{prefix}gradient_matching"] + 0.25 * log[f"{prefix}normal"]
        assert log[f"{prefix}depth_loss"] == pytest.approx(parts, abs=1e-5)
    expected = dict(whole.model.named_parameters())
    for name, p in cut.model.named_parameters():
        torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-6)


def test_a_weight_of_zero_changes_no_bit(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = toy_rows(4)
    with monkeypatch.context() as patched:
        for name in ("gradient_matching_per_image", "normal_loss_per_image"):
            patched.delattr(f"depthvlm.training.forward.{name}")  # not even called
        plain = run(checkpoint, tmp_path, rows)
    log = plain.state.log_history[0]
    assert not {"silog", "gradient_matching", "normal"} & log.keys()
    one = run(checkpoint, tmp_path, rows, gradient_matching_weight=0.5)
    assert one.state.log_history[0]["silog"] == log["depth_loss"]
    assert "normal" not in one.state.log_history[0]
    assert one.state.log_history[0]["depth_loss"] > log["depth_loss"]


def test_sparse_truth_teaches_its_depth_and_no_error(checkpoint: str, tmp_path: Path) -> None:
    row = toy_row(0)
    metres = np.zeros((64, 96), np.uint16)
    metres[3::16, 5::16] = 2000  # no two neighbours, at any scale: 3 and 5 are odd
    row["depth"] = [Pictures.fromarray(metres)]
    log = run(checkpoint, tmp_path, [row], **DENSE).state.log_history[0]
    assert (log["gradient_matching"], log["normal"]) == (0, 0)
    assert log["depth_loss"] == log["silog"] > 0
