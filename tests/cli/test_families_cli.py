"""Every family of backbones through the commands, as a user types them."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from depthvlm.hub_cards.cards.model_card import make_model_card
from depthvlm.hub_cards.push.package import select_checkpoint_files
from depthvlm.modeling_depthvlm import FAMILIES
from PIL import Image
from toy_families import FAMILY_NAMES, HEAD, plain_model, save_plain_checkpoint
from transformers import AutoModel, PreTrainedConfig
from typer.testing import CliRunner

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMProcessor
from depthvlm.cli.app import app
from depthvlm.convert import convert_checkpoint
from depthvlm.recipe_file import write_recipe


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def rows_of(told: str) -> dict[str, str]:
    """The lines of `depthvlm info` by their names."""
    lines = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in told.splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2}


def millions(modules: list[torch.nn.Module]) -> str:
    return f"{sum(p.numel() for module in modules for p in module.parameters()) / 1e6:,.2f} M parameters"


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_checkpoint(tmp_path_factory.mktemp(family) / "plain", family)


@pytest.fixture(scope="module")
def converted(plain: Path) -> Path:
    """What `depthvlm convert` writes, with a small head."""
    return convert_checkpoint(plain, plain.with_name("ours"), depth_config=HEAD)


def test_what_is_converted_is_of_the_familys_class_with_the_plain_weights(family, plain, converted):
    model, original = AutoModel.from_pretrained(converted), plain_model(family)
    assert type(model) is FAMILIES[family].model
    weights = model.state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    assert {name.split(".")[0] for name in weights.keys() - original.state_dict().keys()} == {"depth_head"}


def test_info_counts_the_parts_of_both(family, plain, converted):
    original = plain_model(family)
    parts = {
        "vision tower": [original.model.visual],
        "language model": [original.model.language_model],
        "output layer": [original.lm_head],
    }
    found = rows_of(run("info", plain))
    assert found["kind"] == f"{family}, without a depth head (`depthvlm convert` adds one)"
    assert {name: found[name] for name in parts} == {name: millions(modules) for name, modules in parts.items()}
    found = rows_of(run("info", converted))
    assert found["kind"] == f"DepthVLM on {family}"
    assert found["head type"] == "dpt_light, features from vit+llm"
    head = DepthVLMForConditionalGeneration.from_pretrained(converted).depth_head
    assert {name: found[name] for name in parts} == {name: millions(modules) for name, modules in parts.items()}
    assert found["depth head"] == millions([head])


def test_info_of_another_model_says_that_it_is_not_supported(plain, tmp_path):
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    (tmp_path / "model.safetensors").symlink_to(plain / "model.safetensors")
    kind = rows_of(run("info", tmp_path))["kind"]
    assert kind == "llava, without a depth head (not supported)"


def test_predict_writes_what_it_says(converted, tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(picture)
    options = ["--model", converted, "--fov", 60, "--formats", "npy", "--out", tmp_path / "r", "--device", "cpu"]
    assert "its depth head was never trained" in run("predict", picture, *options, code=1)
    told = run("predict", picture, *options, "--allow-untrained-head")
    assert "1 done, 0 failed" in told
    depth = np.load(tmp_path / "r" / "a_depth.npy")
    assert depth.shape == (96, 128)
    np.testing.assert_allclose(depth, 1.0, rtol=0.1)  # an untrained head says one metre


def test_the_heads_onnx_file_turns_the_models_features_into_its_depth(family, converted, tmp_path):
    model = DepthVLMForConditionalGeneration.from_pretrained(converted)
    torch.manual_seed(0)
    torch.nn.init.normal_([m for m in model.depth_head.modules() if hasattr(m, "weight")][-1].weight, std=30.0)
    model.save_pretrained(tmp_path / "ours")
    told = run("export", "onnx", tmp_path / "ours", "--out", tmp_path / "head.onnx")
    assert f"  backbone: {family}\n" in told
    processor = DepthVLMProcessor.from_pretrained(converted)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How far?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[image], text=[text], fov=60, return_tensors="pt")
    [features] = model.depth_features(**inputs)
    arrays = {f"F{level + 1}": each[None].numpy() for level, each in enumerate(features.maps)}
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, arrays | {"focal_scale": inputs["focal_scale"].numpy()})
    [expected] = model.predict_depth(**inputs)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-3, atol=1e-3)


def test_a_pushed_checkpoint_has_the_code_of_its_family_alone(family, converted):
    files = select_checkpoint_files(converted).files
    config = json.loads((converted / "config.json").read_text())
    code = {name for name in files if name.endswith(".py")}
    assert {f"{reference.split('.')[0]}.py" for reference in config["auto_map"].values()} <= code
    families = {"qwen3_vl": "qwen3_vl_moe", "qwen3_5_moe": "qwen3_5", "glm46v": "glm4v"}
    own = {f"{families.get(family, family)}_depthvlm.py"} if family != "qwen3_vl" else set()
    others = {f"{families.get(name, name)}_depthvlm.py" for name in FAMILY_NAMES}
    assert code & others == own


BASES = {
    "qwen3_vl": ("Qwen/Qwen3-VL-4B-Instruct", "apache-2.0"),
    "qwen3_vl_moe": ("Qwen/Qwen3-VL-30B-A3B-Instruct", "apache-2.0"),
    "qwen3_5": ("Qwen/Qwen3.5-4B", "apache-2.0"),
    "qwen3_5_moe": ("Qwen/Qwen3.5-35B-A3B", "apache-2.0"),
    "qwen2_5_vl": ("Qwen/Qwen2.5-VL-3B-Instruct", "other"),  # Qwen's research licence
    "glm46v": ("zai-org/GLM-4.6V-Flash", "mit"),
    "glm4v": ("zai-org/GLM-4.1V-9B-Thinking", "mit"),
}


def test_the_card_names_backbone_base_and_licence(family, converted, tmp_path):
    base, licence = BASES[family]
    for file in converted.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_recipe(tmp_path, [{"base_model": base, "trained": [], "converted_by": "depthvlm"}])
    card = make_model_card(tmp_path, "ada/toy")
    assert (card.data.base_model, card.data.license) == (base, licence)
    write_recipe(tmp_path, [{"base_model": base, "trained": ["head"], "data": {"sources": {"waymo": 3}, "rows": 3}}])
    assert make_model_card(tmp_path, "ada/toy").data.license == "other"
    assert f"| backbone | `{family}` |" in card.text
    assert "The depth head is untrained" in card.text


@pytest.mark.slow
def test_convert_and_push_in_fresh_processes(family, plain, tmp_path):
    """With the head's real widths; the proof loads the folder with and without the package."""
    assert "Written to" in run("convert", plain, tmp_path / "ours")
    told = run("push", tmp_path / "ours", "--repo", "ada/toy", "--dry-run")
    assert "loads without the package, and gives the same depth bit for bit" in told
    assert f"| backbone | `{family}` |" in told
    assert PreTrainedConfig.get_config_dict(tmp_path / "ours")[0]["model_type"] == FAMILIES[family].config.model_type
