"""The head without a grid: its finer maps, its overlapping steps, its size and where it works."""

import numpy as np
import pytest
import torch
from depthvlm.modeling_depthvlm import DepthHeadConfig, DepthVLMForConditionalGeneration
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import build_depth_head
from depthvlm.modeling_depthvlm.glm4v_depthvlm import DepthVLMGlm4vConfig
from depthvlm.modeling_depthvlm.qwen2_5_vl_depthvlm import DepthVLMQwen2_5_VLConfig
from depthvlm.modeling_depthvlm.sharp_head_depthvlm import picture_of, raster_order
from depthvlm.processing import DepthVLMImageProcessor
from PIL import Image
from toy_models import last_layer, toy_config, toy_inputs, toy_model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

SHARP = {"head_type": "dpt_sharp"}


def sharp_head(width: int = 24, features: int = 16) -> torch.nn.Module:
    torch.manual_seed(0)
    vision = toy_config(width=width).vision_config
    head = build_depth_head(DepthHeadConfig(**SHARP, features=features), width, 32, vision).eval()
    torch.nn.init.normal_(last_layer(head).weight, std=0.5)
    return head


def features_of(tokens: torch.Tensor, patches: torch.Tensor, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The head's six maps `(N, rows, width)` from three maps in raster order, `(N, width, height, width)`."""
    count, _, height, width = tokens.shape
    cells = patches.unflatten(2, (height, 2)).unflatten(4, (width, 2)).permute(0, 2, 4, 3, 5, 1)
    cut = pixels.unflatten(2, (height, 2, 16)).unflatten(5, (width, 2, 16)).permute(0, 2, 5, 3, 6, 1, 4, 7)
    both_frames = cut.flatten(1, 4)[:, :, :, None].expand(-1, -1, -1, 2, -1, -1)
    return [*[tokens.flatten(2).mT] * 4, cells.reshape(count, -1, patches.shape[1]), both_frames.flatten(2)]


def test_the_picture_is_the_processors_own():
    """Normalised once more by numpy; the size is one that the processor leaves alone."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 352, 3), np.uint8))
    patches = DepthVLMImageProcessor(canonical_focal_length=100.0)(
        images=[picture], focal_length=[100.0], return_tensors="pt"
    )
    [[_, height, width]] = patches["image_grid_thw"].tolist()
    assert (height, width) == (14, 22)
    found = picture_of(patches["pixel_values"][None], (7, 11), 2, 16)[0]
    expected = (np.asarray(picture, np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_patches_in_raster_order():
    """Of a grid of 2x3 tokens, numbered along the rows of patches by hand."""
    by_cell = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    by_cell += [number + 12 for number in by_cell]
    cells = torch.tensor(by_cell, dtype=torch.float32)[None, :, None]
    assert torch.equal(raster_order(cells, (2, 3), 2).flatten(), torch.arange(24.0))


def test_states_before_the_merger_are_those_that_it_merges():
    model = toy_model(SHARP)
    inputs = toy_inputs([[2, (2, 3), 1, (1, 2)]])
    with torch.no_grad():
        _, maps = model.encode_images(inputs["pixel_values"], inputs["image_grid_thw"])
        for states, pooled, patches in zip(maps.fine[0], maps.pooled, (24, 8), strict=True):
            assert len(states) == patches
            torch.testing.assert_close(model.model.visual.merger(states), pooled)
    assert torch.equal(torch.cat(list(maps.fine[1])), inputs["pixel_values"])


def test_a_token_reaches_into_its_neighbours():
    """By half a token to either side, where `dpt_light` stops at its border; a token is 8 pixels of the finest map."""
    tokens = torch.zeros(1, 24, 1, 5)
    tokens[0, :, 0, 2] = torch.randn(24)
    for head_type, reach in (("dpt_sharp", 4), ("dpt_light", 0)):
        config = DepthHeadConfig(head_type=head_type, features=16, out_channels=[16] * 4)
        head = build_depth_head(config, 24, 32, toy_config(width=24).vision_config)
        with torch.no_grad():
            with_it, without = (
                head.resize_layers[0](head.projects[0](one.flatten(2).mT, (1, 5)))
                for one in (tokens, torch.zeros_like(tokens))
            )
        written = with_it - without
        columns = written.abs().sum((0, 1, 2)).nonzero().flatten()
        assert (columns.min(), columns.max()) == (16 - reach, 23 + reach)


def test_the_picture_shows_at_its_own_resolution():
    """A column of the picture changes no more than the pixels that convolutions of 1, 2 and 4 pixels can reach."""
    head = sharp_head()
    tokens, patches, pixels = torch.zeros(1, 24, 3, 3), torch.zeros(1, 24, 6, 6), torch.zeros(1, 3, 96, 96)
    changed = pixels.clone()
    changed[..., 48] = 1.0
    with torch.no_grad():
        one, other = (head(features_of(tokens, patches, picture), (3, 3))[0] for picture in (pixels, changed))
    row = (other - one)[48].abs()
    assert row.argmax() in range(45, 52)


@pytest.mark.parametrize("size", [(2048, 1024), (2560, 1024), (4096, 1152)], ids=["2B", "4B", "8B"])
def test_at_most_45_million_parameters(size):
    hidden_size, width = size
    with torch.device("meta"):
        head = build_depth_head(DepthHeadConfig(**SHARP), hidden_size, 32, Qwen3VLVisionConfig(hidden_size=width))
    assert 5e6 < sum(p.numel() for p in head.parameters()) <= 45e6


@pytest.mark.parametrize("config", [DepthVLMQwen2_5_VLConfig, DepthVLMGlm4vConfig])
def test_other_families_are_refused(config):
    with pytest.raises(ValueError, match=r"families of Qwen3-VL or Qwen3\.5"):
        config(depth_config=SHARP)


def test_features_for_other_heads_stay_the_four_maps():
    inputs = toy_inputs([[2, (2, 3), 1]])
    [features] = toy_model(SHARP).depth_features(**inputs)
    [plain] = toy_model().depth_features(**inputs)
    assert features.maps.shape == plain.maps.shape == (4, 2, 3, 32)


def test_every_parameter_learns_from_depth():
    model = toy_model(SHARP).train().requires_grad_(False)
    model.depth_head.requires_grad_(True)
    inputs = toy_inputs([[2, (2, 3), 1]])
    depth = torch.rand(64, 96) + 1
    model(**inputs, depth_labels=[depth]).depth_loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.depth_head.parameters())


def test_saved_and_loaded(tmp_path):
    model = toy_model(SHARP)
    inputs = toy_inputs([[2, (2, 3), 1]])
    [expected] = model.predict_depth(**inputs)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "sharp_head_depthvlm.py").is_file()
    loaded = DepthVLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded.predict_depth(**inputs)[0], expected)
