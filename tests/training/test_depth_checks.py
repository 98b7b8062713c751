"""Plausible nonsense in the data is named with its likely cause, and good data are not."""

import logging
import warnings

import numpy as np
import pytest
import torch
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.synthetic.scenes import render_scene
from depthvlm.training.depth_checks import find_nonsense
from depthvlm.training.dry_run import describe
from rich.console import Console
from sample_layouts import SOURCES, arrange
from toy_training import settings, toy_dataset, toy_row

from depthvlm import DepthSFTTrainer

WIDTH, HEIGHT, FOCAL = 160, 120, 138.6  # 60 degrees


def cameras(count: int, focal: float = FOCAL, size: tuple[int, int] = (WIDTH, HEIGHT)) -> torch.Tensor:
    width, height = size
    return torch.tensor([[focal, focal, width / 2, height / 2, height, width, 0.0]]).repeat(count, 1)


@pytest.fixture(scope="module")
def scenes() -> list[torch.Tensor]:
    maps = [
        torch.from_numpy(render_scene(seed, width=WIDTH, height=HEIGHT).depth.astype(np.float32)) for seed in range(24)
    ]
    return [torch.where(depth.isfinite(), depth, 0) for depth in maps]


def test_rendered_scenes_are_in_order(scenes):
    for start in range(0, 24, 4):
        assert find_nonsense(scenes[start : start + 4], cameras(4)) == []


@pytest.mark.real_data
@pytest.mark.parametrize("source", SOURCES)
def test_real_samples_are_in_order(shared, source, tmp_path):
    root, split = arrange(shared / "data", source, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = open_source(source, root)
        frames = [reader.read(ref) for ref in reader.index(split)[:12]]
    rows = []
    for frame in frames:
        fx, fy, cx, cy = frame.intrinsics
        rows.append([fx, fy, cx, cy, frame.image_size[1], frame.image_size[0], 0.0])
    maps = [torch.from_numpy(np.asarray(frame.metres(), dtype=np.float32)) for frame in frames]
    assert find_nonsense(maps, torch.tensor(rows)) == []


def test_millimetres_taken_for_metres(scenes):
    [sign] = find_nonsense([depth * 1000 for depth in scenes[:4]], cameras(4))
    low, high = (1000 * extreme(depth[depth > 0].median().item() for depth in scenes[:4]) for extreme in (min, max))
    assert sign.startswith(f"The medians of all 4 depth maps are {low:,.0f} to {high:,.0f} m.")
    assert "`depth_scale` to 1000" in sign


def test_relative_depth(scenes):
    signs = find_nonsense([depth / depth.max() / 100 for depth in scenes[:4]], cameras(4))
    assert len(signs) == 1
    assert "relative depth" in signs[0]


def test_relative_depth_up_to_one(scenes):
    [sign] = find_nonsense([depth / depth.max() for depth in scenes[:4]], cameras(4))
    assert sign.startswith("The farthest pixel of all 4 depth maps is at 1 m.")


def test_eight_bits(scenes):
    """Steps of 5 cm up to 10 m are 200."""
    [sign] = find_nonsense([(depth / depth.max() * 200).round() / 20 for depth in scenes[:4]], cameras(4))
    assert "at most 200 equal steps" in sign


def test_disparity(scenes):
    for start in range(0, 24, 8):
        disparity = [torch.where(depth > 0, 10 / depth, 0) for depth in scenes[start : start + 8]]
        [sign] = find_nonsense(disparity, cameras(8))
        assert "disparity or inverse depth" in sign


def test_a_slope_towards_the_camera_by_hand():
    """Rows 1 to 4 hold 1 to 4 m: the rank correlation is 1; upside down it is -1."""
    slope = torch.arange(1.0, 5.0)[:, None].expand(4, 3)
    [sign] = find_nonsense([slope] * 4, cameras(4))
    assert "rank correlation with the row 1.00" in sign
    assert find_nonsense([slope.flip(0)] * 4, cameras(4)) == []


def test_a_focal_length_four_times_too_large(scenes):
    """2 atan(tan(30 degrees) / 4) = 16.4 degrees."""
    [sign] = find_nonsense(scenes[:4], cameras(4, 4 * FOCAL))
    assert "is 16 to 16 degrees" in sign


def test_a_portrait_through_a_long_lens_is_in_order(scenes):
    """A phone's three-fold lens, 77 mm on film: 26 degrees across the longer side, 18 across the shorter."""
    focal = HEIGHT * 77 / 36
    assert find_nonsense([depth[:, :90] for depth in scenes[:4]], cameras(4, focal, (90, HEIGHT))) == []


def test_a_dry_run_looks_beyond_a_small_batch(checkpoint, tmp_path):
    rows = [{**toy_row(index), "depth_scale": 1.0} for index in range(8)]
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, per_device_train_batch_size=1),
        train_dataset=toy_dataset(rows),
    )
    console = Console(width=400)
    with console.capture() as said:
        console.print(describe(trainer))
    assert said.get().count("Look again: The medians of all 8 depth maps") == 1


def test_training_says_it_once(checkpoint, tmp_path, caplog):
    rows = [{**toy_row(index), "depth_scale": 1.0} for index in range(8)]
    trainer = DepthSFTTrainer(checkpoint, settings(tmp_path, max_steps=4), train_dataset=toy_dataset(rows))
    with caplog.at_level(logging.WARNING, "depthvlm"):
        trainer.train()
    said = [record.message for record in caplog.records if "`depth_scale` to 1000" in record.message]
    assert len(said) == 1
    assert said[0].startswith("The first images look wrong. The medians of all 8 depth maps")
