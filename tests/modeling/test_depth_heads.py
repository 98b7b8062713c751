"""The head against the plain order of operations (scripts/perf/forward.py), and the shapes of its pyramids."""

import pytest
import torch
from depthvlm.modeling_depthvlm import DepthHeadConfig
from depthvlm.modeling_depthvlm.depth_heads_depthvlm import build_depth_head
from forward import plain_dpt
from toy_models import last_layer


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
        ({"head_type": "conv"}, "expected one of dpt_light, dpt, mlp, dpt_sharp"),
        ({"feature_source": "both"}, "expected one of"),
        ({"feature_source": "llm_final"}, "head_type='mlp'"),
        ({"out_channels": [1, 2, 3]}, "four widths"),
        ({"features": 7}, "even"),
    ]:
        with pytest.raises(ValueError, match=words):
            DepthHeadConfig(**kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("head_type", ["dpt_light", "dpt", "mlp"])
def test_compiled_it_has_the_same_gradients(head_type):
    """As a matrix product the last layer, compiled, let none through to the layers before it (torch 2.13)."""
    torch.manual_seed(0)
    config = DepthHeadConfig(head_type=head_type, features=16, out_channels=[8, 8, 16, 16], hidden_size=24)
    head = build_depth_head(config, 32, 32)
    features = [torch.randn(2, 6, 32) for _ in range(4)]

    def loss() -> torch.Tensor:
        return head(features, (2, 3)).square().mean()

    parameters = list(head.parameters())
    expected = torch.autograd.grad(loss(), parameters)
    torch._dynamo.reset()
    for ours, theirs in zip(torch.autograd.grad(torch.compile(loss)(), parameters), expected, strict=True):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
