"""The head against the plain order of operations, written out here."""

import pytest
import torch
import torch.nn.functional as F
from depthvlm.modeling_depthvlm import DepthHeadConfig
from depthvlm.modeling_depthvlm.depth_heads import build_depth_head
from toy_models import last_layer


def plain_dpt(head, features, grid):
    """DPT as usually written: normalise, permute, project, upsample before the 1x1, everything in place."""
    height, width = grid
    levels = []
    for x, project, resize in zip(features, head.projects, head.resize_layers, strict=True):
        x = head.norm(x).permute(0, 2, 1).reshape(x.shape[0], -1, height, width)
        levels.append(resize(F.conv2d(x, project.weight, project.bias)))
    s = head.scratch
    levels = [layer(x) for layer, x in zip((s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn), levels, strict=True)]

    def unit(module, x):
        x = F.relu(x)
        return module.conv2(F.relu(module.conv1(x))) + x

    def fuse(block, x, skip, size):
        if skip is not None:
            x = x + unit(block.resConfUnit1, skip)
        x = F.interpolate(unit(block.resConfUnit2, x), size=size, mode="bilinear", align_corners=True)
        return block.out_conv(x)

    x = fuse(s.refinenet4, levels[3], None, levels[2].shape[2:])
    x = fuse(s.refinenet3, x, levels[2], levels[1].shape[2:])
    x = fuse(s.refinenet2, x, levels[1], levels[0].shape[2:])
    x = fuse(s.refinenet1, x, levels[0], [2 * side for side in levels[0].shape[2:]])
    x = F.interpolate(s.output_conv1(x), (height * 32, width * 32), mode="bilinear", align_corners=True)
    return F.softplus(s.output_conv2(x))[:, 0]


@pytest.mark.parametrize("head_type", ["dpt_light", "dpt"])
def test_equal_to_the_plain_order(head_type):
    torch.manual_seed(0)
    config = DepthHeadConfig(head_type=head_type, features=16, out_channels=[8, 12, 16, 20])
    head = build_depth_head(config, hidden_size=24, stride=32).eval()
    torch.nn.init.normal_(last_layer(head).weight, std=3.0)
    features = [torch.randn(2, 15, 24) for _ in range(4)]
    depth = head(features, (3, 5))
    assert depth.shape == (2, 96, 160)
    assert depth.std() > 0.01
    torch.testing.assert_close(depth, plain_dpt(head, features, (3, 5)), atol=1e-5, rtol=1e-5)


def test_original_dpt_pyramid():
    config = DepthHeadConfig(head_type="dpt", features=16, out_channels=[8, 8, 8, 8])
    head = build_depth_head(config, hidden_size=24, stride=32)
    sizes = []
    for resize in head.resize_layers:
        resize.register_forward_hook(lambda m, a, o: sizes.append(tuple(o.shape[2:])))
    head([torch.randn(1, 24, 24) for _ in range(4)], (4, 6))
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_light_dpt_pyramid():
    head = build_depth_head(DepthHeadConfig(features=16, out_channels=[8, 8, 8, 8]), hidden_size=24, stride=32)
    sizes = []
    for resize in head.resize_layers:
        resize.register_forward_hook(lambda m, a, o: sizes.append(tuple(o.shape[2:])))
    head([torch.randn(1, 24, 24) for _ in range(4)], (4, 6))
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6)]


def test_mlp_puts_each_token_into_its_own_square():
    torch.manual_seed(0)
    config = DepthHeadConfig(head_type="mlp", feature_source="llm_final", hidden_size=8)
    head = build_depth_head(config, hidden_size=6, stride=4)
    tokens = torch.randn(1, 6, 6)
    depth = head([tokens], (2, 3))[0]
    alone = head([tokens[:, 4:5]], (1, 1))[0]  # the token of row 1, column 1
    torch.testing.assert_close(depth[4:8, 4:8], alone)


def test_configuration_errors():
    for kwargs, words in [
        ({"head_type": "conv"}, "expected one of dpt_light, dpt, mlp"),
        ({"feature_source": "both"}, "expected one of"),
        ({"feature_source": "llm_final"}, "head_type='mlp'"),
        ({"out_channels": [1, 2, 3]}, "four widths"),
        ({"features": 7}, "even"),
    ]:
        with pytest.raises(ValueError, match=words):
            DepthHeadConfig(**kwargs)
