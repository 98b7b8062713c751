"""The pictures that a tracker gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from depthvlm.training.callbacks import input_image, picture_grid
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_checkpoint import save_toy_checkpoint
from toy_training import settings, toy_dataset, toy_row, toy_rows

from depthvlm import DepthSFTTrainer, DepthVLMProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy_checkpoint(tmp_path_factory.mktemp("toy")))


def test_the_image_is_read_back_from_its_patches(checkpoint: str) -> None:
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    features = processor.image_processor(Image.fromarray(picture), focal_length=1000.0, return_tensors="pt")
    grid = features["image_grid_thw"][0].tolist()
    assert grid == [1, 4, 6]  # 64x96 pixels of 16x16: nothing was resized
    np.testing.assert_array_equal(input_image(features["pixel_values"], grid, processor.image_processor), picture)


def test_truth_and_prediction_share_one_range(checkpoint: str) -> None:
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    features = processor.image_processor(Image.new("RGB", (96, 64)), focal_length=1000.0, return_tensors="pt")
    truth = torch.linspace(1, 9, 96).expand(64, 96)
    grid = picture_grid(dict(features), [truth], [truth.clone()], processor.image_processor)
    assert grid is not None
    pixels = np.asarray(grid)[:64]
    np.testing.assert_array_equal(pixels[:, 96:192], pixels[:, 192:288])
    half = picture_grid(dict(features), [truth], [truth / 2], processor.image_processor)
    pixels = np.asarray(half)[:64]
    # 4.5 m stands in the middle of the truth and at the end of the prediction, in the same colour.
    where = int((4.5 - 1) / 8 * 95)
    assert np.abs(pixels[0, 96 + where].astype(int) - pixels[0, 192 + 95].astype(int)).max() < 12
    assert picture_grid(dict(features), [None], [truth], processor.image_processor) is None


def test_tensorboard_gets_a_picture_every_so_many_steps(checkpoint: str, tmp_path: Path) -> None:
    rows = [toy_row(i) for i in range(4)] + toy_rows(4)
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, max_steps=4, depth_log_images=2, report_to="tensorboard"),
        train_dataset=toy_dataset(rows),
    )
    trainer.train()
    logs = EventAccumulator(next(str(f.parent) for f in tmp_path.rglob("events.out.tfevents.*")), {"images": 0})
    logs.Reload()
    (tag,) = logs.Tags()["images"]
    assert [event.step for event in logs.Images(tag)] == [0, 2]
