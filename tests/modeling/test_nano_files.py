"""The bundled nano loads through Auto classes: with the package imported, or with its `auto_map` trusted."""

import json

import torch
from datasets import Dataset
from depthvlm.modeling_depthvlm import DepthVLMConfig, DepthVLMForConditionalGeneration
from depthvlm.modeling_depthvlm.backbones_depthvlm import FAMILIES
from depthvlm.processing import DepthVLMProcessor
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from trl import SFTConfig, SFTTrainer

from depthvlm.checkpoint import bundled_model_path

NANO = bundled_model_path()


def test_its_auto_map_names_the_classes_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    auto_map = json.loads((NANO / "config.json").read_text())["auto_map"]
    assert {name: reference.split(".")[1] for name, reference in auto_map.items()} == {
        name: reference.split(".")[1] for name, reference in FAMILIES["qwen3_vl"].auto_map.items()
    }
    processor_map = json.loads((NANO / "processor_config.json").read_text())["auto_map"]
    expected = {"AutoConfig": DepthVLMConfig, "AutoModelForImageTextToText": DepthVLMForConditionalGeneration}
    expected["AutoProcessor"] = DepthVLMProcessor
    for name, found in expected.items():
        assert get_class_from_dynamic_module((auto_map | processor_map)[name], str(NANO)) is found


def test_the_prompt_of_a_depth_estimator_is_what_its_chat_template_writes_before_an_image():
    stored = json.loads((NANO / "config.json").read_text())["depth_prompt_ids"]
    assert DepthVLMProcessor.from_pretrained(NANO).depth_prompt_ids == stored


def test_trls_own_trainer_takes_its_folder(tmp_path):
    turns = {"prompt": [{"role": "user", "content": "How far?"}], "completion": [{"role": "assistant", "content": "2"}]}
    data = Dataset.from_list([{"images": [Image.new("RGB", (64, 64), (9, 9, i))], **turns} for i in range(2)])
    options = {"max_steps": 1, "report_to": "none", "bf16": False, "use_cpu": True, "save_strategy": "no"}
    trainer = SFTTrainer(str(NANO), args=SFTConfig(str(tmp_path), max_length=None, **options), train_dataset=data)
    assert type(trainer.model) is DepthVLMForConditionalGeneration
    assert type(trainer.processing_class) is DepthVLMProcessor
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
