"""from_pretrained and save_pretrained: our checkpoints, published ones, plain Qwen3-VL, and broken ones."""

import json

import pytest
import torch
from depthvlm.modeling_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMForConditionalGeneration
from safetensors.torch import load_file, save_file
from toy_models import toy_config, toy_inputs, toy_model
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Qwen3VLForConditionalGeneration,
)

INPUTS = toy_inputs([[2, (2, 3), 4], [(1, 2), 3]])


@pytest.fixture
def model():
    return toy_model()


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def qwen(model, tmp_path):
    """A plain Qwen3-VL checkpoint with the toy's weights."""
    config = json.loads(toy_config().to_json_string(use_diff=False))
    plain = Qwen3VLForConditionalGeneration(
        type(toy_config()).__mro__[1](
            **{k: config[k] for k in ("text_config", "vision_config", "image_token_id", "video_token_id")}
        )
    )
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("depth_head.")})
    plain.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


@pytest.fixture
def published(model, qwen):
    """The published layout: Qwen3-VL's config with two more keys, the head's widths in its weights alone."""
    config = json.loads((qwen / "config.json").read_text())
    config |= {"depth_head_type": "dpt", "depth_loss_weight": 0.7}
    (qwen / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, qwen / "model.safetensors", {"format": "pt"})
    return qwen


def assert_same_depth(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_own_checkpoint_round_trip(model, checkpoint):
    loaded = DepthVLMForConditionalGeneration.from_pretrained(checkpoint)
    assert_same_depth(loaded.predict_depth(**INPUTS), model.predict_depth(**INPUTS))
    assert loaded.config.depth_config.features == 16
    assert list(loaded.config.depth_config.out_channels) == [8, 8, 16, 16]
    assert isinstance(loaded.config.depth_config, DepthHeadConfig)
    names = {path.name for path in checkpoint.iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]


def test_auto_classes(model, checkpoint):
    expected = model.predict_depth(**INPUTS)
    for auto in (AutoModel, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(checkpoint)
        assert isinstance(loaded, DepthVLMForConditionalGeneration)
        assert_same_depth(loaded.predict_depth(**INPUTS), expected)
    estimator = AutoModelForDepthEstimation.from_pretrained(checkpoint)
    assert_same_depth(estimator.predict_depth(**INPUTS), expected)


def test_sharded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = DepthVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_depth(loaded.predict_depth(**INPUTS), model.predict_depth(**INPUTS))


def test_published_layout(model, published):
    loaded, info = DepthVLMForConditionalGeneration.from_pretrained(published, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.depth_config.features == 16
    assert list(loaded.config.depth_config.out_channels) == [8, 8, 16, 16]
    assert loaded.config.depth_loss_weight == 0.7
    assert_same_depth(loaded.predict_depth(**INPUTS), model.predict_depth(**INPUTS))


def test_published_layout_in_shards(model, published):
    weights = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    split = {"a.safetensors": {}, "b.safetensors": {}}
    for name, value in weights.items():
        split["a.safetensors" if "resize" in name or "mlp" in name else "b.safetensors"][name] = value
    for file, part in split.items():
        save_file(part, published / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in split.items() for name in part}}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = DepthVLMForConditionalGeneration.from_pretrained(published)
    assert_same_depth(loaded.predict_depth(**INPUTS), model.predict_depth(**INPUTS))


def test_published_layout_without_its_head(published):
    weights = {k: v for k, v in load_file(published / "model.safetensors").items() if not k.startswith("depth_head.")}
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no `depth_head"):
        DepthVLMForConditionalGeneration.from_pretrained(published)


def test_plain_qwen_gets_a_new_head(model, qwen, caplog):
    head = {"features": 16, "out_channels": [8, 8, 16, 16]}
    loaded, info = DepthVLMForConditionalGeneration.from_pretrained(qwen, depth_config=head, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("depth_head.")}
    depth = torch.cat([d.flatten() for d in loaded.predict_depth(**INPUTS)])
    assert depth.min() > 0.9
    assert depth.max() < 1.1
    with torch.no_grad():
        torch.testing.assert_close(loaded(**INPUTS).logits, model(**INPUTS).logits)
    assert DepthVLMConfig.from_pretrained(qwen).depth_config.features == 256


def test_dtype_device_map_and_attention(model, checkpoint):
    expected = model.predict_depth(**INPUTS)
    for attention in ("eager", "sdpa"):
        loaded = DepthVLMForConditionalGeneration.from_pretrained(
            checkpoint, attn_implementation=attention, device_map="cpu", low_cpu_mem_usage=True
        )
        for one, other in zip(loaded.predict_depth(**INPUTS), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    half = DepthVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert half.depth_head.norm.weight.dtype == torch.bfloat16
    assert half.predict_depth(**INPUTS)[0].dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("head_type", ["dpt_light", "mlp"])
def test_quantisation_leaves_the_head_alone(bits, head_type, tmp_path):
    model = toy_model({"head_type": head_type}, width=64)  # blocks of 64 are what 4 bits are made of
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = DepthVLMForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
    assert type(quantised.model.language_model.layers[0].mlp.up_proj) is not torch.nn.Linear
    for name, value in model.depth_head.state_dict().items():
        torch.testing.assert_close(quantised.depth_head.state_dict()[name].float(), value, atol=1e-3, rtol=1e-2)
    for one, other in zip(quantised.predict_depth(**INPUTS), model.predict_depth(**INPUTS), strict=True):
        assert one.isfinite().all()
        assert one.shape == other.shape


def test_config_round_trips(tmp_path):
    config = toy_config(depth_loss_weight=0.3, silog_lambda=0.15, canonical_focal_length=500.0)
    config.save_pretrained(tmp_path)
    again = DepthVLMConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.canonical_focal_length == 500.0
    assert again.depth_prompt_ids == [92]
    assert len(DepthVLMConfig().depth_prompt_ids) == 15  # Qwen3-VL's vocabulary
    for kwargs, words in [({"silog_lambda": 1.5}, "0 to 1"), ({"canonical_focal_length": 0.0}, "above 0")]:
        with pytest.raises(ValueError, match=words):
            DepthVLMConfig(**kwargs)


def test_checkpoint_without_a_head(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("depth_head.")}
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    _, info = DepthVLMForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert len(info["missing_keys"]) == len(weights) - len(kept)


def test_checkpoint_with_a_head_of_other_widths(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["depth_config"]["features"] = 32
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint)


def test_truncated_weights(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(OSError, match=r"incomplete or damaged .*: model\.safetensors\. Copy or download it again"):
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint)


def test_pickled_weights_are_refused(model, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="safetensors"):
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint, use_safetensors=False)
