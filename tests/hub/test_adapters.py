"""Adapters, loaded with the model that they are for: it is held to what a model alone is held to."""

import pytest
import torch
from depthvlm.modeling_depthvlm import DepthVLMForConditionalGeneration
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from toy_checkpoint import leave_out, save_toy_checkpoint
from transformers import AutoModel

import depthvlm


@pytest.fixture
def checkpoint(tmp_path):
    return save_toy_checkpoint(tmp_path / "base")


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """An adapter of the first layer of `checkpoint`."""
    network = get_peft_model(
        DepthVLMForConditionalGeneration.from_pretrained(checkpoint),
        LoraConfig(r=2, target_modules=r".*language_model.layers.0.self_attn.q_proj", init_lora_weights=False),
    )
    network.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "load",
    [
        DepthVLMForConditionalGeneration.from_pretrained,
        AutoModel.from_pretrained,
        lambda path: depthvlm.load(path, device="cpu").model,
    ],
    ids=["class", "auto", "load"],
)
class TestAdapters:
    def test_it_is_put_on_its_model(self, adapter, checkpoint, load):
        alone, both = load_file(adapter / "adapter_model.safetensors"), dict(load(adapter).named_parameters())
        base = load_file(checkpoint / "model.safetensors")
        layer = "model.language_model.layers.0.self_attn.q_proj"
        assert torch.equal(both[f"{layer}.base_layer.weight"].float(), base[f"{layer}.weight"].float())
        for letter in "AB":
            stored = alone[f"base_model.model.{layer}.lora_{letter}.weight"]
            assert torch.equal(both[f"{layer}.lora_{letter}.default.weight"].float(), stored.float())

    def test_a_model_that_lacks_weights_or_layers(self, adapter, checkpoint, load):
        for part, message in {
            "language_model.norm.": r"lacks 1 of the model's weights: model\.language_model\.norm\.weight",
            ".language_model.layers.1.": "num_hidden_layers",
        }.items():
            leave_out(checkpoint, part)
            with pytest.raises(ValueError, match=message):
                load(adapter)

    @pytest.mark.parametrize("beside", [False, True])
    def test_pickled_ones_are_never_opened(self, adapter, checkpoint, load, beside, monkeypatch):
        (adapter / "adapter_model.safetensors").unlink()
        torch.save({}, adapter / "adapter_model.bin")
        if beside:  # the model that it is for lies in the same folder
            for file in checkpoint.iterdir():
                file.rename(adapter / file.name)
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
        with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors: pickled weights are never read"):
            load(adapter)

    def test_a_model_beside_its_adapter(self, adapter, checkpoint, load):
        for file in adapter.glob("adapter_*"):
            file.rename(checkpoint / file.name)
        assert any("lora_A" in name for name, _ in load(checkpoint).named_parameters())
        leave_out(checkpoint, "language_model.norm.")
        with pytest.raises(ValueError, match=r"lacks 1 of the model's weights: model\.language_model\.norm\.weight"):
            load(checkpoint)
