"""Depth averaged over views of a picture (`refine`): where the views lie, the mean, and the spread."""

import numpy as np
import pytest
import torch
from depthvlm.benchmark.scoring.metrics import ErrorSums
from depthvlm.benchmark.scoring.uncertainty import sparsification_gain
from depthvlm.benchmark.synthetic import HELD_OUT, render_scene
from PIL import Image
from typer.testing import CliRunner

import depthvlm
from depthvlm.cli.app import app
from depthvlm.export import SPREAD_SCALE
from depthvlm.refinement import View, combine, views

FOCAL_LENGTH = 160.0  # nano's canonical one: a picture of whole tokens is not resized


@pytest.fixture(scope="module")
def nano():
    return depthvlm.load("depthvlm-nano", dtype="float32")


@pytest.fixture(scope="module")
def room():
    return render_scene(HELD_OUT + 77, width=192, height=160, kind="room").image


def test_views_begin_with_the_picture_and_lie_on_half_tokens_then_quarters():
    assert views(4, 32) == [(0, 0, False), (16, 16, True), (0, 16, False), (16, 0, True)]
    eight = views(8, 28)
    assert {(down, right) for down, right, _ in eight} == {(0, 0), (14, 14), (0, 14), (14, 0)}
    assert len(set(eight)) == 8
    assert len(set(views(32, 32))) == 32
    quarters = {(y, x) for y in (0, 8, 16, 24) for x in (0, 8, 16, 24)}
    assert {(down, right) for down, right, _ in views(32, 32)} == quarters


@pytest.mark.parametrize("count", [0, 33, 2.0, True])
def test_numbers_of_views_that_cannot_be_are_refused(count, nano, room):
    with pytest.raises(ValueError, match="1 to 32"):
        nano.predict(room, fov=60, refine=count)


@pytest.mark.parametrize("view", [View(0, 0, False), View(16, 0, True), View(8, 24, False), View(24, 16, True)])
def test_a_view_is_undone_to_the_pixel(view):
    pixels = np.arange(32 * 64 * 3, dtype=np.uint32).reshape(32, 64, 3).astype(np.uint8)
    shown = np.asarray(view.of(Image.fromarray(pixels), 32))
    assert shown.shape == (32 + 32 * (view.down > 0), 64 + 32 * (view.right > 0), 3)
    assert (view.undo(torch.from_numpy(shown[..., 0].copy()), (32, 64)).numpy() == pixels[..., 0]).all()


def test_mean_and_spread_are_those_of_logarithms():
    depth = [torch.full((2, 2), 1.0)]
    mean, spread = combine(depth, [(View(0, 0, False), [torch.full((2, 2), 4.0)])])
    assert mean[0].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert torch.allclose(spread[0], torch.tensor(2.0).log())


def test_one_view_changes_nothing(nano, room):
    [plain], [one] = nano.predict(room, fov=60), nano.predict(room, fov=60, refine=1)
    assert (plain.depth == one.depth).all()
    assert one.spread is None


def test_two_views_are_the_mean_of_the_picture_and_its_mirrored_shift_by_hand(nano, room):
    [plain] = nano.predict(room, focal_length=FOCAL_LENGTH)
    shifted = np.pad(room[:, ::-1], ((16, 16), (16, 16), (0, 0)), mode="symmetric")
    [other] = nano.predict(shifted, focal_length=FOCAL_LENGTH)
    back = other.depth[16:-16, 16:-16][:, ::-1]
    [both] = nano.predict(room, focal_length=FOCAL_LENGTH, refine=2)
    np.testing.assert_allclose(both.depth, np.sqrt(plain.depth * back), rtol=1e-5)
    np.testing.assert_allclose(both.spread, np.abs(np.log(plain.depth / back)) / 2, atol=1e-5)


def test_views_of_a_resized_picture_keep_its_camera_and_size(nano):
    scene = render_scene(HELD_OUT + 78, width=320, height=240, kind="street")
    [plain] = nano.predict(scene.image, focal_length=scene.focal_length)
    [four] = nano.predict(scene.image, focal_length=scene.focal_length, refine=4)
    assert four.depth.shape == four.spread.shape == (240, 320)
    assert four.camera == plain.camera
    assert np.median(np.abs(np.log(four.depth / plain.depth))) < 0.1  # another focal scale would show here


def test_a_prompt_gets_the_reply_of_the_picture_itself(nano, room):
    question = "How many objects are there?"
    [plain] = nano.predict(room, fov=60, prompt=question, max_new_tokens=8)
    [two] = nano.predict([room], fov=60, prompt=question, max_new_tokens=8, refine=2)
    assert two.text == plain.text
    assert (two.depth != plain.depth).any()


def test_batches_of_unequal_pictures_are_the_pictures_alone(nano, room):
    other = render_scene(HELD_OUT + 79, width=256, height=128, kind="street").image
    together = nano.predict([room, other], fov=[60, 70], refine=2, batch_size=2)
    alone = [nano.predict(image, fov=fov, refine=2)[0] for image, fov in ((room, 60), (other, 70))]
    for one, same in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.depth, same.depth, rtol=1e-4)
        np.testing.assert_allclose(one.spread, same.spread, atol=1e-4)


def test_the_command_writes_the_spread(tmp_path, nano, room):
    picture, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(room).save(picture)
    command = ["predict", str(picture), "--fov", "60", "--out", str(out), "--dtype", "float32"]
    result = CliRunner().invoke(app, [*command, "--formats", "spread,json"])
    assert result.exit_code == 2
    assert "--refine 2" in result.output
    result = CliRunner().invoke(app, [*command, "--formats", "spread,npy", "--refine", "3"])
    assert result.exit_code == 0, result.output
    [expected] = nano.predict(room, fov=60, refine=3)
    saved = np.asarray(Image.open(out / "a_spread.png")) / SPREAD_SCALE
    np.testing.assert_allclose(saved, expected.spread, atol=0.5 / SPREAD_SCALE + 1e-5)
    np.testing.assert_allclose(np.load(out / "a_depth.npy"), expected.depth, rtol=1e-5)
    # Another number of views is another result.
    result = CliRunner().invoke(app, [*command, "--formats", "npy", "--refine", "2"])
    assert result.exit_code == 0, result.output
    assert (np.load(out / "a_depth.npy") != expected.depth).any()


def test_sparsification_by_hand():
    # Left in: all (mean 2.5), without the 4 (2), without the 3 (1.5), the 1 alone (1): 1.75 on average.
    assert sparsification_gain([4, 3, 2, 1], [40, 30, 20, 10]) == pytest.approx(1 - 1.75 / 2.5)
    assert sparsification_gain([1, 2, 3, 4], [40, 30, 20, 10]) == pytest.approx(1 - 3.25 / 2.5)
    assert sparsification_gain([4, 1, 1, 2], [7, 7, 7, 7]) == 0
    with pytest.raises(ValueError, match="as many"):
        sparsification_gain([1, 2], [1])
    with pytest.raises(ValueError, match="nothing to rank"):
        sparsification_gain([0, 0], [1, 2])


@pytest.mark.slow
def test_views_lower_the_error_and_their_spread_ranks_it(nano):
    found = {1: [], 4: []}
    errors, doubts = [], []
    for number in range(100):
        scene = render_scene(HELD_OUT + 3000 + number, kind="street" if number % 2 else "room")
        for count, abs_rel in found.items():
            [prediction] = nano.predict(scene.image, focal_length=scene.focal_length, refine=count)
            abs_rel.append(ErrorSums.of(prediction.depth, scene.depth).metrics()["abs_rel"])
        valid = scene.depth > 0
        errors.append(np.abs(prediction.depth - scene.depth)[valid] / scene.depth[valid])
        doubts.append(prediction.spread[valid])
    assert np.mean(found[4]) < np.mean(found[1])
    assert sparsification_gain(np.concatenate(errors), np.concatenate(doubts)) >= 0.2


def test_views_through_a_lens_have_the_spread_of_their_pinhole_views(nano):
    scene = render_scene(HELD_OUT + 80, width=192, height=160, kind="room")
    lens = depthvlm.Lens(FOCAL_LENGTH, FOCAL_LENGTH, 96, 80, distortion=(1e-9, 0, 0, 0, 0), model="opencv")
    [through] = nano.predict(scene.image, camera=lens, refine=2)
    [plain] = nano.predict(scene.image, focal_length=FOCAL_LENGTH, refine=2)
    inside = np.s_[8:-8, 8:-8]  # a lens is seen in views that reach a little beyond it
    assert np.median(np.abs(np.log(through.depth / plain.depth)[inside])) < 0.05
    assert np.isfinite(through.spread[inside]).all()
    assert 0.5 < np.median(through.spread[inside]) / np.median(plain.spread[inside]) < 2
