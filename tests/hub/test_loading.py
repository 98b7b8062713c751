"""from_pretrained and save_pretrained: our checkpoints, published ones, plain Qwen3-VL, and broken ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from depthvlm.modeling_depthvlm import DepthHeadConfig, DepthVLMConfig, DepthVLMForConditionalGeneration
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from toy_checkpoint import change_config, change_weights, leave_out, save_toy_checkpoint
from toy_models import last_layer, toy_config, toy_inputs, toy_model
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import depthvlm
from depthvlm.conversation import Conversation

INPUTS = toy_inputs([[2, (2, 3), 4], [(1, 2), 3]])
load = DepthVLMForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The toy model as it saves itself, and its backbone as a plain Qwen3-VL: for copies."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "own")
    config = {name: getattr(model.config, name) for name in ("image_token_id", "video_token_id")}
    config |= {name: getattr(model.config, name).to_dict() for name in ("text_config", "vision_config")}
    plain = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("depth_head.")})
    plain.save_pretrained(folder / "qwen")
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    return shutil.copytree(saved / "own", tmp_path / "own")


@pytest.fixture
def qwen(saved, tmp_path):
    return shutil.copytree(saved / "qwen", tmp_path / "qwen")


@pytest.fixture
def published(model, qwen):
    """The published layout: Qwen3-VL's config with two more keys, the head's widths in its weights alone."""
    change_config(qwen, depth_head_type="dpt", depth_loss_weight=0.7)
    change_weights(qwen, lambda _: {k: v.contiguous() for k, v in model.state_dict().items()})
    return qwen


def assert_same_depth(loaded, model):
    for one, other in zip(loaded.predict_depth(**INPUTS), model.predict_depth(**INPUTS), strict=True):
        assert torch.equal(one, other)


LIGHT = {"features": 16, "out_channels": [8, 8, 16, 16]}


@pytest.mark.parametrize("layout", ["checkpoint", "published"])
@pytest.mark.parametrize("shards", [False, True])
def test_round_trip_of_our_own_and_of_the_published_layout(model, layout, shards, request):
    folder = request.getfixturevalue(layout)
    if shards:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        save_torch_state_dict(weights, str(folder), max_shard_size="50KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    loaded, info = load(folder, output_loading_info=True)
    assert not {*info["missing_keys"], *info["unexpected_keys"]}
    assert isinstance(loaded.config.depth_config, DepthHeadConfig)
    assert {name: getattr(loaded.config.depth_config, name) for name in LIGHT} == LIGHT
    assert loaded.config.depth_loss_weight == (0.7 if layout == "published" else model.config.depth_loss_weight)
    assert_same_depth(loaded, model)
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_auto_classes(model, checkpoint):
    for auto in (AutoModel, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(checkpoint)
        assert isinstance(loaded, DepthVLMForConditionalGeneration)
        assert_same_depth(loaded, model)
    assert_same_depth(AutoModelForDepthEstimation.from_pretrained(checkpoint), model)


def test_plain_qwen_gets_a_new_head(model, qwen):
    loaded, info = load(qwen, depth_config=LIGHT, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("depth_head.")}
    depth = torch.cat([d.flatten() for d in loaded.predict_depth(**INPUTS)])
    assert 0.9 < depth.min() < depth.max() < 1.1
    with torch.no_grad():
        torch.testing.assert_close(loaded(**INPUTS).logits, model(**INPUTS).logits)
    assert DepthVLMConfig.from_pretrained(qwen).depth_config.features == 256


def test_dtype_device_map_and_attention(model, checkpoint):
    expected = model.predict_depth(**INPUTS)
    for attention in ("eager", "sdpa"):
        loaded = load(checkpoint, attn_implementation=attention, device_map="cpu", low_cpu_mem_usage=True)
        for one, other in zip(loaded.predict_depth(**INPUTS), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    half = load(checkpoint, dtype=torch.bfloat16)
    assert half.depth_head.norm.weight.dtype == torch.bfloat16
    assert half.predict_depth(**INPUTS)[0].dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("head_type", ["dpt_light", "mlp"])
def test_quantisation_leaves_the_head_alone(bits, head_type, tmp_path):
    model = toy_model({"head_type": head_type}, width=64)  # blocks of 64 are what 4 bits are made of
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = load(tmp_path, quantization_config=config)
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


def test_checkpoint_without_a_head(model, checkpoint, published):
    for folder in (checkpoint, published):
        leave_out(folder, "depth_head.")
        with pytest.raises(ValueError, match="no `depth_head"):
            load(folder)
    _, info = load(checkpoint, output_loading_info=True)
    assert info["missing_keys"] == {k for k in model.state_dict() if k.startswith("depth_head.")}


@pytest.mark.parametrize("lost", ["depth_head.projects.2.weight", "model.visual.blocks.1.attn.proj.bias"])
def test_checkpoint_without_one_weight(lost, checkpoint, qwen):
    leave_out(checkpoint, lost)
    for auto in (DepthVLMForConditionalGeneration, AutoModel, AutoModelForDepthEstimation):
        with pytest.raises(ValueError, match=rf"lacks 1 of the model's weights: {lost}\. Copy"):
            auto.from_pretrained(checkpoint)
    if "visual" in lost:  # in a plain Qwen3-VL only the head is new
        leave_out(qwen, lost)
        with pytest.raises(ValueError, match=lost):
            load(qwen)


def test_more_layers_than_the_weights_have_are_refused_before_they_are_built(checkpoint):
    for part, key in (("text_config", "num_hidden_layers"), ("vision_config", "depth")):
        change_config(checkpoint, **{part: {key: 10**9}})
        with pytest.raises(ValueError, match=rf"{part}\.{key}=1000000000, but its weights hold 4"):
            load(checkpoint)
        change_config(checkpoint, **{part: {key: 4}})


@pytest.mark.parametrize("model_type", ["llava", "gemma3", "internvl", "nonsense", None])
def test_other_backbones_are_refused_at_once(model_type, qwen):
    change_config(qwen, model_type=model_type)
    (qwen / "model.safetensors").unlink()  # nothing of it is looked at
    for cls in (DepthVLMForConditionalGeneration, DepthVLMConfig):
        with pytest.raises(ValueError, match=rf"model_type={model_type!r}.*Supported are qwen3_vl"):
            cls.from_pretrained(qwen)


@pytest.mark.parametrize("levels", [[0, 1], [1, 1, 2], [0, 1, 4], []])
def test_deepstack_levels_that_the_head_cannot_read(levels, qwen):
    change_config(qwen, vision_config={"deepstack_visual_indexes": levels})
    for cls in (DepthVLMForConditionalGeneration, DepthVLMConfig):
        with pytest.raises(ValueError, match=r"deepstack_visual_indexes.*with 4 ViT layers.*reads three"):
            cls.from_pretrained(qwen)
    assert DepthVLMConfig.from_pretrained(qwen, depth_config={"feature_source": "llm"}).head.feature_source == "llm"


def test_an_index_that_names_pickled_weights_is_refused(model, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), "weights.bin")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    for auto in (DepthVLMForConditionalGeneration, AutoModel):
        with pytest.raises(ValueError, match=r"names weights\.bin: DepthVLM reads safetensors alone"):
            auto.from_pretrained(checkpoint)


@pytest.mark.parametrize("head_type", ["dpt_light", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_head_is_known(head_type, dtype):
    config = toy_config({"head_type": head_type})
    head = DepthVLMForConditionalGeneration(config).to(dtype).depth_head
    assert head.is_untrained()
    with torch.no_grad():
        last_layer(head).bias += 0.01
    assert not head.is_untrained()
    assert not toy_model({"head_type": head_type}).depth_head.is_untrained()


def test_load_and_predict_refuse_untrained_and_broken_heads(tmp_path):
    save_toy_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    image = np.zeros((64, 64, 3), np.uint8)

    change_weights(tmp_path, lambda _: weights | {"model.language_model.norm.weight": torch.full((32,), torch.nan)})
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        depthvlm.predict(image, tmp_path, fov=60, device="cpu")
    change_weights(tmp_path, lambda _: {k: torch.full_like(v, torch.nan) for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"head's weights .* hold NaN"):
        depthvlm.load(tmp_path, device="cpu")

    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration(DepthVLMConfig.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)  # as `depthvlm convert` makes of a plain Qwen3-VL
    with pytest.raises(ValueError, match="never trained"):
        depthvlm.predict(image, tmp_path, fov=60, device="cpu")
    [prediction] = depthvlm.load(tmp_path, device="cpu", allow_untrained_head=True).predict(image, fov=60)
    assert prediction.depth.max() / prediction.depth.min() < 1.1


PARTS = ("model.visual", "model.language_model", "lm_head", "depth_head")
HEAD_PARTS = ("norm", "projects", "resize_layers", "scratch")


@pytest.fixture(scope="module")
def seen():
    """Depth, words, and a conversation's depth and words, of nano as it is. Its embedding and output layer are tied."""
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)

    def look(model):
        [prediction] = model.predict(pixels, focal_length=1000)
        [answered] = model.predict(pixels, focal_length=1000, prompt="How far?", max_new_tokens=3)
        conversation = Conversation(pixels, model, focal_length=1000)
        texts = answered.text, conversation.ask("And behind it?", max_new_tokens=3)
        return [prediction.depth, answered.depth, conversation.depth], texts

    return look, look(depthvlm.load(device="cpu", dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "device_map",
    [
        *({part: "disk" if part == moved else "cpu" for part in PARTS} for moved in PARTS),
        {"": "disk"},
        {"model": "disk", "lm_head": "cpu", **{f"depth_head.{part}": "cpu" for part in HEAD_PARTS[1:]}}
        | {"depth_head.norm": "disk", "depth_head.scratch": "disk"},
        "auto",
        "cpu",
    ],
    ids=str,
)
def test_every_part_may_lie_elsewhere(device_map, seen, tmp_path):
    look, (depths, words) = seen
    model = depthvlm.load(device_map=device_map, offload_folder=tmp_path, dtype="float32")
    found, found_words = look(model)
    assert found_words == words
    for one, other in zip(found, depths, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(ValueError, match="`device_map` both say"):
        depthvlm.load(device="cpu", device_map=device_map)


def by_hand_mlp(weights, tokens):
    hidden = torch.nn.functional.gelu(tokens @ weights["mlp.0.weight"].T + weights["mlp.0.bias"])
    return torch.nn.functional.softplus(hidden @ weights["mlp.2.weight"].T + weights["mlp.2.bias"])


@pytest.mark.parametrize("mode", ["concat", "sum", "sum by depth_config", "llm_last"])
def test_published_mlp_heads(mode, qwen):
    """Each mode's number from its formula: LayerNorm over all four maps side by side, or over their sum."""
    torch.manual_seed(1)
    width = 4 * 32 if mode == "concat" else 32
    shapes = {"norm.weight": (width,), "norm.bias": (width,), "mlp.0.weight": (24, width), "mlp.0.bias": (24,)}
    shapes |= {"mlp.2.weight": (1024, 24), "mlp.2.bias": (1024,)}
    head = {name: torch.randn(shape) for name, shape in shapes.items()}
    change_weights(qwen, lambda weights: weights | {f"depth_head.{k}": v for k, v in head.items()})
    change_config(qwen, depth_head_type="mlp", depth_head_mlp_hidden=24)
    if mode in ("sum", "llm_last"):
        change_config(qwen, depth_head_feature_mode=mode)
    given = {"depth_config": {"feature_source": "vit+llm", "mlp_fusion": "sum"}} if "by" in mode else {}
    model = load(qwen, **given).eval()
    inputs = toy_inputs([[2, (1, 1), 3]])
    with torch.no_grad():
        vision = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        last = model.model(**inputs).last_hidden_state[0, 3]
    maps = [*(level[0][0] for level in vision.deepstack_features), last]
    tokens = {"concat": torch.cat(maps), "llm_last": last}.get(mode, maps[0] + maps[1] + maps[2] + maps[3])
    normed = torch.nn.functional.layer_norm(tokens, (width,), head["norm.weight"], head["norm.bias"], 1e-5)
    [depth] = model.predict_depth(**inputs)
    torch.testing.assert_close(depth.flatten(), by_hand_mlp(head, normed), atol=1e-5, rtol=1e-5)
    model.save_pretrained(qwen / "again")
    [again] = load(qwen / "again").predict_depth(**inputs)
    assert torch.equal(again, depth)


def test_weights_of_other_widths_truncated_or_pickled(model, checkpoint):
    change_config(checkpoint, depth_config={"features": 32})
    with pytest.raises(RuntimeError, match="mismatch"):
        load(checkpoint)
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(OSError, match=r"incomplete or damaged .*: model\.safetensors\. Copy or download it again"):
        load(checkpoint)
    file.unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(checkpoint)
    with pytest.raises(ValueError, match="safetensors"):
        load(checkpoint, use_safetensors=False)
