"""`depthvlm.load(quantize=)`: 8- and 4-bit weights beside numbers by hand and beside the float model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from nano_depth import delta1, predict_scenes
from peft import LoraConfig, get_peft_model
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_images import picture
from toy_models import last_layer
from transformers import BitsAndBytesConfig

import depthvlm
from depthvlm import DepthPredictor, DepthVLMForConditionalGeneration, DepthVLMProcessor

# The 16 values of NF4: appendix E of QLoRA, https://arxiv.org/abs/2305.14314.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
TOLERANCE = {"int8": 0.02, "int4": 0.15}  # of the median pixel of a random toy, whose head is steep
MOE = [name for name in FAMILY_NAMES if name.endswith("moe")]
DENSE = [name for name in FAMILY_NAMES if name not in MOE]


def save_family(folder: Path, family: str) -> Path:
    """A checkpoint of a family whose head varies."""
    plain = save_plain_checkpoint(folder / "plain", family)
    network = DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=HEAD)
    torch.manual_seed(0)
    torch.nn.init.normal_(last_layer(network.depth_head).weight, std=30.0)
    network.save_pretrained(folder / "ours")
    DepthVLMProcessor.from_pretrained(plain).save_pretrained(folder / "ours")
    return folder / "ours"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("qwen"), "qwen3_vl")


def depth_of(model: DepthPredictor) -> np.ndarray:
    return model.predict(picture(96, 64), fov=60)[0].depth


def assert_close(depth: np.ndarray, expected: np.ndarray, scheme: str) -> None:
    assert not np.array_equal(depth, expected)
    assert np.median(np.abs(depth / expected - 1)) < TOLERANCE[scheme]


def by_hand(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """The weight as its bits say it: 255 steps a row, or the nearest of NF4's values in a block of 64."""
    if scheme == "int8":
        step = weight.abs().amax(1, keepdim=True) / 127
        return (weight / step).round() * step
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    return (NF4[(blocks / scale)[..., None].sub(NF4).abs().argmin(-1)] * scale).reshape(weight.shape)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_weights_are_those_by_hand_and_the_rest_is_as_stored(qwen, scheme):
    expected, found = depthvlm.load(qwen).model, depthvlm.load(qwen, quantize=scheme).model
    layers = {name: layer for name, layer in expected.named_modules() if type(layer) is torch.nn.Linear}
    stored = {name: weight for name, weight in found.named_parameters() if weight.is_floating_point()}
    quantised = {name for name in layers if f"{name}.weight" not in stored}
    whole = 1 if scheme == "int8" else 64  # weights that share a scale lie in one row
    assert quantised == {name for name, layer in layers.items() if name != "lm_head" and not layer.in_features % whole}
    assert any(".visual." in name for name in quantised)
    assert any(".language_model." in name for name in quantised)
    for name, weight in stored.items():
        torch.testing.assert_close(weight, expected.get_parameter(name), rtol=0, atol=0)
    for name in quantised:
        layer, weight = found.get_submodule(name), layers[name].weight.detach()
        with torch.no_grad():
            rows = layer(torch.eye(layer.in_features))
        if layer.bias is not None:
            rows = rows - layer.bias
        scale = weight.abs().max()
        # 8 bits: a step, as weights are first rounded to float16. 4 bits: their scales have 8 bits themselves.
        limit = 1.01 / 127 if scheme == "int8" else 0.03
        error = (rows.T - by_hand(weight, scheme)).abs() / scale
        assert error.max() < limit, name
        assert error.median() < 0.005, name


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("family", DENSE)
def test_every_dense_family_gives_depth_and_words_and_saves(family, scheme, tmp_path):
    folder = save_family(tmp_path, family)
    expected = depth_of(depthvlm.load(folder))
    model = depthvlm.load(folder, quantize=scheme)
    places = {name: weight.data_ptr() for name, weight in model.model.named_parameters()}
    depth = depth_of(model)
    # Nothing is left to the first call, which threads may share.
    assert places == {name: weight.data_ptr() for name, weight in model.model.named_parameters()}
    assert_close(depth, expected, scheme)
    [asked] = model.predict(picture(96, 64), fov=60, prompt="How far?", max_new_tokens=4)
    assert asked.text is not None
    np.testing.assert_allclose(asked.depth, depth, rtol=1e-5)
    model.model.save_pretrained(tmp_path / "saved")
    model.processor.save_pretrained(tmp_path / "saved")
    again = depthvlm.load(tmp_path / "saved")
    np.testing.assert_allclose(depth_of(again), depth_of(model), rtol=1e-5)
    # Saving 4 bits from a CPU rounds their scales once more.
    np.testing.assert_allclose(depth_of(again), depth, rtol=1e-5 if scheme == "int8" else 0.02)
    with pytest.raises(ValueError, match=r"stored quantised .* already: leave out `quantize`"):
        depthvlm.load(tmp_path / "saved", quantize=scheme)


@pytest.mark.parametrize("family", MOE)
def test_mixtures_of_experts_are_refused_by_name(family, tmp_path):
    folder = save_family(tmp_path, family)
    for path in (folder, folder.with_name("plain")):
        with pytest.raises(ValueError, match=rf"\(depthvlm_{family}\) is a mixture of experts"):
            depthvlm.load(path, quantize="int8")


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", torch.float16])
@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}])
def test_dtypes_and_device_maps(qwen, scheme, dtype, device_map):
    model = depthvlm.load(qwen, dtype=dtype, quantize=scheme, device_map=device_map)
    name = {"auto": "float32"}.get(dtype, dtype)
    assert str(model.model.dtype).removeprefix("torch.") == str(name).removeprefix("torch.")
    assert model.model.depth_head.norm.weight.dtype == model.model.dtype
    assert model.model.device.type == "cpu"
    assert model.model.config.quantization_config.bnb_4bit_compute_dtype in (model.model.dtype, torch.float32)
    assert_close(depth_of(model), depth_of(depthvlm.load(qwen)), scheme)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_an_adapter_on_quantised_weights(qwen, scheme, tmp_path):
    network = DepthVLMForConditionalGeneration.from_pretrained(qwen)
    adapted = get_peft_model(network, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    expected = depth_of(depthvlm.load(tmp_path))
    assert not np.allclose(expected, depth_of(depthvlm.load(qwen)), rtol=1e-3)
    assert_close(depth_of(depthvlm.load(tmp_path, quantize=scheme)), expected, scheme)


def test_what_is_refused(qwen, monkeypatch):
    with pytest.raises(ValueError, match="`compile` and `quantize` do not go together"):
        depthvlm.load(qwen, quantize="int8", compile=True)
    with pytest.raises(ValueError, match="`quantize` is 'int8' or 'int4', got 'int3'"):
        depthvlm.load(qwen, quantize="int3")
    with pytest.raises(ValueError, match="both say how to quantise: give one of them"):
        depthvlm.load(qwen, quantize="int8", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    monkeypatch.setattr("depthvlm.quantization.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'bitsandbytes and accelerate: pip install "depthvlm\[quantize\]"'):
        depthvlm.load(qwen, quantize="int4")


def test_the_command_predicts_again_with_other_bits(tmp_path):
    picture(96, 64).save(tmp_path / "a.png")
    command = ["predict", tmp_path / "a.png", "--fov", 60, "--out", tmp_path / "out", "--formats", "npy"]
    depths = []
    for scheme in (None, "int8", "int4"):
        result = run(*command, *([] if scheme is None else ["--quantize", scheme]))
        assert (f"with {scheme} weights" in result.output) == (scheme is not None)
        depths.append(np.load(tmp_path / "out" / "a_depth.npy"))
    for depth, scheme in zip(depths[1:], TOLERANCE, strict=True):
        assert_close(depth, depths[0], scheme)
    result = run(*command, "--quantize", "8", code=2)
    assert "'8' is neither int8 nor int4" in " ".join(result.output.split())


@pytest.mark.slow
def test_delta1_of_nano(nano):
    expected = delta1(predict_scenes(nano, 40, 16)["both"])
    assert expected > 0.9
    for scheme, limit in (("int8", 0.005), ("int4", 0.02)):
        found = delta1(predict_scenes(depthvlm.load("depthvlm-nano", quantize=scheme), 40, 16)["both"])
        assert found != expected
        assert abs(found - expected) < limit, scheme
