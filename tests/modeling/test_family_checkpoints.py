"""Checkpoints of the families: layouts of the Hub, levels of the vision tower, and what is refused before loading."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_checkpoint import change_config, change_weights, leave_out
from toy_families import FAMILY_NAMES, HEAD, family_config, family_tokenizer, save_plain_checkpoint
from transformers import AutoModelForImageTextToText

from depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Plain checkpoints by family, made when first asked for."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = save_plain_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture
def plain(originals, tmp_path):
    """A copy of the plain checkpoint of a family."""
    return lambda family: shutil.copytree(originals(family), tmp_path / family)


def inputs_for(config, seed=0):
    """Words, an image of 2x3 tokens, words."""
    generator = torch.Generator().manual_seed(seed)
    vision = config.vision_config
    ids = torch.tensor([[5, 6, *[config.image_token_id] * 6, 7, 8, 9]])
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(24, width, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


def logits_of(folder, kind=AutoModelForImageTextToText, **options):
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    assert not [name for name in info["missing_keys"] if not name.startswith("depth_head.")]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        return model.eval()(**inputs_for(model.config)).logits


def assert_loads_as_the_plain_class(folder, expected):
    """Both classes give these logits, also after saving."""
    plain, own = logits_of(folder), logits_of(folder, DepthVLMForConditionalGeneration, depth_config=HEAD)
    assert torch.equal(own, plain)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    again = folder.parent / "again"
    DepthVLMForConditionalGeneration.from_pretrained(folder, depth_config=HEAD).save_pretrained(again)
    saved = logits_of(again, DepthVLMForConditionalGeneration)
    torch.testing.assert_close(saved, expected, atol=1e-5, rtol=1e-5)


def full_names(folder):
    """Save the weights by the names of the module, whatever layout transformers has saved them in."""
    weights = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    weights = {name: value.contiguous() for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


def old_names(folder):
    """Save the weights as Qwen2.5-VL's repositories have them: `visual.*` beside `model.layers.*`."""
    weights = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in full_names(folder).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


class TestLayoutsOfTheHub:
    def test_old_names_of_qwen2_5_vl(self, plain):
        folder = plain("qwen2_5_vl")
        expected = logits_of(folder)
        assert {"visual.blocks.0.norm1.weight", "model.layers.0.mlp.up_proj.weight"} <= old_names(folder).keys()
        assert_loads_as_the_plain_class(folder, expected)

    def test_flat_configuration_of_qwen2_5_vl(self, plain):
        """As in Qwen/Qwen2.5-VL-3B-Instruct: the text's settings beside the rest, `rope_scaling` of type mrope."""
        folder = plain("qwen2_5_vl")
        expected = logits_of(folder)
        old_names(folder)
        config = json.loads((folder / "config.json").read_text())
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        kept = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
        kept += ["max_position_embeddings", "vocab_size", "rms_norm_eps", "hidden_act", "pad_token_id"]
        flat = {name: text[name] for name in kept} | {
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
            "tie_word_embeddings": False,
        }
        vision = config["vision_config"]
        vision |= {"in_chans": vision.pop("in_channels"), "spatial_patch_size": vision["patch_size"]}
        (folder / "config.json").write_text(json.dumps(config | flat))
        assert_loads_as_the_plain_class(folder, expected)

    def test_transposed_experts_of_qwen3_vl_moe(self, plain):
        """`gate_up_proj` is (experts, hidden, 2 * width) and `down_proj` (experts, width, hidden)."""
        folder = plain("qwen3_vl_moe")
        expected = logits_of(folder)
        experts = {name: value for name, value in full_names(folder).items() if ".experts." in name}
        assert {tuple(value.shape) for value in experts.values()} == {(4, 48, 32), (4, 32, 24)}
        transposed = {name: value.transpose(1, 2).contiguous() for name, value in experts.items()}
        change_weights(folder, lambda weights: weights | transposed)
        assert_loads_as_the_plain_class(folder, expected)

    def test_experts_of_qwen3_5_moe_one_by_one(self, plain):
        folder = plain("qwen3_5_moe")
        expected = logits_of(folder)

        def split(weights):
            found = {}
            for name, value in weights.items():
                stem = name.rpartition(".")[0]
                if name.endswith("experts.gate_up_proj"):
                    for index, one in enumerate(value):
                        gate, up = one.chunk(2)
                        found[f"{stem}.{index}.gate_proj.weight"] = gate.contiguous()
                        found[f"{stem}.{index}.up_proj.weight"] = up.contiguous()
                elif name.endswith("experts.down_proj"):
                    found |= {f"{stem}.{index}.down_proj.weight": one.contiguous() for index, one in enumerate(value)}
                else:
                    found[name] = value
            return found

        full_names(folder)
        change_weights(folder, split)
        assert len(load_file(folder / "model.safetensors")) > 100
        assert_loads_as_the_plain_class(folder, expected)

    @pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
    def test_layers_for_speculative_decoding_are_left_out(self, plain, family):
        """Qwen3.5's checkpoints carry `mtp.*`, which the plain class leaves out as well."""
        folder = plain(family)
        expected = logits_of(folder)
        change_weights(folder, lambda weights: weights | {"mtp.fc.weight": torch.ones(4, 8)})
        assert_loads_as_the_plain_class(folder, expected)


class TestMissingWeights:
    @pytest.mark.parametrize("family", FAMILY_NAMES)
    @pytest.mark.parametrize("layer", ["language_model.layers.3.", "visual.blocks.7."])
    def test_a_layer_is_missing(self, plain, family, layer):
        folder = plain(family)
        full_names(folder)
        leave_out(folder, layer)
        what = "text_config.num_hidden_layers=4" if "layers" in layer else "vision_config.depth=8"
        with pytest.raises(ValueError, match=f"{what}, but its weights hold {3 if 'layers' in layer else 7}"):
            DepthVLMForConditionalGeneration.from_pretrained(folder)

    @pytest.mark.parametrize("flat", [True, False])
    @pytest.mark.parametrize("layer", ["model.layers.3.", "visual.blocks.7."])
    def test_a_layer_is_missing_in_an_old_layout(self, plain, layer, flat):
        folder = plain("qwen2_5_vl")
        old_names(folder)
        if flat:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config.pop("text_config") | config))
        leave_out(folder, layer)
        with pytest.raises(ValueError, match=f"its weights hold {3 if 'layers' in layer else 7} such layers"):
            DepthVLMForConditionalGeneration.from_pretrained(folder)

    @pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
    def test_experts_are_missing(self, plain, family):
        folder = plain(family)
        leave_out(folder, "layers.2.mlp.experts.")
        with pytest.raises(ValueError, match=r"lacks 2 of the model's weights: .*layers.2.mlp.experts"):
            DepthVLMForConditionalGeneration.from_pretrained(folder)


class TestDeepStack:
    @pytest.mark.parametrize(
        ("levels", "read"), [([1, 4, 6], [1, 4, 6]), ([0, 2, 4, 6], [0, 4, 6]), ([0, 1, 3, 4, 7], [0, 3, 7])]
    )
    @pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
    def test_any_number_of_levels(self, family, levels, read, tmp_path):
        """The first, the middle and the last by default, and those that are named; the LLM sees all of them."""
        config = family_config(family, family_tokenizer(family))
        config.vision_config.deepstack_visual_indexes = levels
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
        inputs = inputs_for(config)
        pixels = inputs["pixel_values"], inputs["image_grid_thw"]
        with torch.no_grad():
            features, logits = plain.model.visual(*pixels).deepstack_features, plain(**inputs).logits
        named = [levels[-1], levels[0], levels[1]]
        for chosen, head in ((read, HEAD), (named, HEAD | {"vision_layers": named})):
            model = DepthVLMForConditionalGeneration.from_pretrained(tmp_path, depth_config=head).eval()
            _, vision = model.encode_images(*pixels)
            for layer, level in zip(chosen, vision.levels, strict=True):
                assert torch.equal(torch.cat(list(level)), features[levels.index(layer)])
            with torch.no_grad():
                assert torch.equal(model(**inputs).logits, logits)

    @pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
    @pytest.mark.parametrize("levels", [[], [3], [1, 5], [1, 1, 5], [1, 5, 99]])
    def test_fewer_than_three_levels(self, family, levels, tmp_path):
        """There are no weights in the folder: nothing of them was read."""
        family_config(family, family_tokenizer(family)).save_pretrained(tmp_path)
        change_config(tmp_path, vision_config={"deepstack_visual_indexes": levels})
        for load in (DepthVLMConfig.from_pretrained, DepthVLMForConditionalGeneration.from_pretrained):
            with pytest.raises(ValueError, match=r"deepstack_visual_indexes.*at least three"):
                load(tmp_path)
        config = DepthVLMConfig.from_pretrained(tmp_path, depth_config={"feature_source": "llm"})
        assert not config.reads_vision

    @pytest.mark.parametrize("layers", [[1, 3], [1, 3, 3], [1, 3, 8], [-1, 3, 5], [0, 1, 2, 3]])
    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_layers_that_are_not_there(self, family, layers, tmp_path):
        family_config(family, family_tokenizer(family)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="the depth head reads three of them"):
            DepthVLMForConditionalGeneration.from_pretrained(tmp_path, depth_config={"vision_layers": layers})


# What config.json of such repositories says, as far as it matters.
UNSUPPORTED = {
    "internvl_chat": {"max_dynamic_patch": 12, "dynamic_image_size": True, "use_thumbnail": True},
    "llava_next": {"image_grid_pinpoints": [[336, 672], [672, 336]], "vision_config": {}, "text_config": {}},
    "gemma3": {"mm_tokens_per_image": 256, "vision_config": {}, "text_config": {}},
    "gemma4": {"text_config": {"use_bidirectional_attention": "vision"}, "vision_config": {}},
    "paligemma": {"text_config": {"model_type": "gemma"}, "vision_config": {}},
    "mllama": {"vision_config": {"max_num_tiles": 4}, "text_config": {}},
    "qwen2_vl": {"vision_config": {}},
    "llama": {"num_hidden_layers": 2},
}
ATTENTION = [{"text_config": {"use_bidirectional_attention": True}}, {"text_config": {"is_causal": False}}]


@pytest.mark.parametrize(
    "load",
    [
        DepthVLMConfig.from_pretrained,
        DepthVLMForConditionalGeneration.from_pretrained,
        DepthVLMForDepthEstimation.from_pretrained,
    ],
    ids=["config", "model", "estimator"],
)
class TestUnsupported:
    """The folder holds a configuration alone: no weight was looked for."""

    def refused(self, load, folder, config):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="does not support") as caught:
            load(folder)
        message = str(caught.value)
        assert all(family in message for family in FAMILY_NAMES)
        assert "docs/backbones.md" in message
        assert repr(config["model_type"]) in message
        return message

    @pytest.mark.parametrize("model_type", UNSUPPORTED)
    def test_other_families(self, load, model_type, tmp_path):
        message = self.refused(load, tmp_path, {"model_type": model_type, **UNSUPPORTED[model_type]})
        assert ("tiles" in message) == (model_type in ("internvl_chat", "llava_next", "mllama"))
        assert ("attend to later ones" in message) == (model_type in ("gemma3", "gemma4"))

    @pytest.mark.parametrize("change", ATTENTION, ids=str)
    @pytest.mark.parametrize("family", FAMILY_NAMES)
    def test_attention_over_later_tokens(self, load, change, family, tmp_path):
        config = family_config(family, family_tokenizer(family)).to_dict()
        config["text_config"] |= change["text_config"]
        assert "attend to later ones" in self.refused(load, tmp_path, config)


@pytest.mark.parametrize("change", ATTENTION, ids=str)
def test_a_configuration_object_with_attention_over_later_tokens(change):
    with pytest.raises(ValueError, match="attend to later ones"):
        DepthVLMConfig(**change)
