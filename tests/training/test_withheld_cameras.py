"""Cameras that are withheld: the model's input does not tell them, the losses know them, the choice is reproducible."""

import math

import numpy as np
import pytest
import torch
from depthvlm.training.collator import DepthDataCollator
from PIL import ExifTags, Image
from toy_rows import FOCAL, depth_row, picture

INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
UNIT = 0.5 / math.tan(math.pi / 6)


def test_input_does_not_tell_the_camera(processor):
    """The same picture with two cameras gives the same input, which is that of the picture without any."""
    collate = DepthDataCollator(processor, camera_withheld=1.0)
    first, second = (collate([depth_row(focal_length=focal)]) for focal in (FOCAL, 60.0))
    unknown = DepthDataCollator(processor)([{"image": picture()}])
    for name in INPUTS:
        assert torch.equal(first[name], second[name])
        assert name.startswith(("input", "attention", "mm")) or torch.equal(first[name], unknown[name])
    assumed = 128 * UNIT
    assert first["camera_labels"].tolist() == pytest.approx([math.log(FOCAL / assumed)])
    assert second["camera_labels"].tolist() == pytest.approx([math.log(60 / assumed)])
    # In true metres: equation 6 with the true focal length of the input, which the picture's size limits.
    ratio = first["focal_scale"] / unknown["focal_scale"]
    assert ratio.item() == pytest.approx(FOCAL / assumed)
    assert first["cameras"][0].tolist() == [FOCAL, FOCAL, 64, 48, 96, 128, 1]


def test_exif_data_are_withheld_too(processor):
    """A 35 mm equivalent of 28 mm is 28 / 43.27 of the diagonal, 160 pixels."""
    image = Image.new("RGB", (128, 96))
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
    image.info["exif"] = exif.tobytes()
    image.getexif().load(exif.tobytes())
    batch = DepthDataCollator(processor, camera_withheld=1.0)([{"image": image}])
    unknown = DepthDataCollator(processor)([{"image": Image.new("RGB", (128, 96))}])
    assert torch.equal(batch["image_grid_thw"], unknown["image_grid_thw"])
    assert batch["camera_labels"].item() == pytest.approx(math.log(28 / 43.2666 * 160 / (128 * UNIT)), abs=1e-4)


def test_images_without_a_camera_and_those_that_keep_theirs_have_no_label(processor):
    rows = [depth_row(image=picture(seed)) for seed in range(40)] + [{"image": picture(99)}]
    batch = DepthDataCollator(processor, camera_withheld=0.5, return_info=True)(rows)
    plain = DepthDataCollator(processor)(rows)
    labels, kept = batch["camera_labels"], batch["camera_labels"].isnan()
    assert "camera_labels" not in plain
    assert kept[-1]
    assert 10 <= (~kept).sum() <= 30
    assert batch["batch_info"].camera_images == (~kept).sum()
    assert torch.equal(batch["cameras"], plain["cameras"])
    assert torch.equal(batch["focal_scale"][kept], plain["focal_scale"][kept])
    assert torch.equal(batch["image_grid_thw"][kept], plain["image_grid_thw"][kept])
    # Whatever else is in the batch, the same images are chosen.
    again = [DepthDataCollator(processor, camera_withheld=0.5)([row])["camera_labels"] for row in rows]
    assert torch.equal(torch.cat(again).isnan(), labels.isnan())
    more = DepthDataCollator(processor, camera_withheld=0.8)(rows)["camera_labels"]
    assert not (more.isnan() & ~kept).any()


def test_depth_labels_stay(processor):
    batch = DepthDataCollator(processor, camera_withheld=1.0)([depth_row()])
    assert np.unique(batch["depth_labels"][0].numpy()).tolist() == [2.5]


def test_share_out_of_range(processor):
    with pytest.raises(ValueError, match="camera_withheld"):
        DepthDataCollator(processor, camera_withheld=1.5)
