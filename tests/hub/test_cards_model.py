"""Model cards: every field, what is known of the weights and what is not, and bad input."""

import json
import re
import shutil
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from depthvlm.benchmark.sources import source_names
from depthvlm.hub_cards.cards.card_text import CITATION, TERMS
from depthvlm.hub_cards.cards.model_card import make_model_card
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_cards import results_of
from toy_checkpoint import change_weights

from depthvlm import DepthVLMForConditionalGeneration
from depthvlm.recipe_file import RECIPE_FILE, convert_recipe, write_recipe

STAGE = {
    "base_model": "Qwen/Qwen3-VL-4B-Instruct",
    "base_revision": "f" * 40,
    "trained": ["head"],
    "loss": {"depth_loss_weight": 1.0, "silog_lambda": 0.5},
    "data": {"names": ["you/rgbd", "local: mine.jsonl"], "rows": 90, "sources": {"ddad": 60, "waymo": 30}},
    "steps": 123,
    "epochs": 1.0,
    "world_size": 80,
    "per_device_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "global_batch_size": 2560,
    "device": "NVIDIA H20",
    "settings": {"learning_rate": 0.00035, "optim": "adamw_torch"},
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
}


def assert_said(text: str, *words: str) -> None:
    assert [each for each in words if each not in text] == []


def test_every_field(trained_toy, tmp_path):
    write_recipe(trained_toy, [STAGE])
    files = results_of(trained_toy, tmp_path / "results")
    card = make_model_card(trained_toy, "you/depthvlm-4b", files, note="Made for a test.")
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert str(loaded) == str(card)  # the metadata goes through YAML and back
    data = loaded.data
    expected = {
        **{"library_name": "transformers", "pipeline_tag": "depth-estimation", "language": ["en"]},
        **{"base_model": "Qwen/Qwen3-VL-4B-Instruct", "base_model_relation": "finetune"},
        "datasets": ["you/rgbd"],  # the local file is none on the Hub
        **{"license": "other", "license_name": "base-model-and-training-data", "model_name": "depthvlm-4b"},
        "license_link": "https://huggingface.co/you/depthvlm-4b#licences",
    }
    assert {name: data[name] for name in expected} == expected
    assert {"depth-estimation", "metric-depth", "depthvlm", "image-text-to-text"} <= set(data.tags)
    assert data.eval_results == card.data.eval_results
    titles = ("Intended use", "Camera requirements", "Limits", "Results", "Training recipe", "Environment")
    assert_said(
        card.text,
        *(f"\n## {title}\n" for title in titles),
        "Made for a test.",
        "canonical focal length of 1000 px",
        "and to 16384 pixels at most",  # 128x128
        "(60 degrees across the longer side)",
        f"```bibtex\n{CITATION}\n```",
        "- Code (the Python files here and the package `depthvlm`): Apache-2.0.",
        "| DDAD | CC BY-NC-SA 4.0 |",
        "| Waymo | Waymo Dataset License Agreement for Non-Commercial Use |",
    )
    assert "untrained" not in card.text
    assert "not known" not in card.text


def test_the_recipe_is_shown_as_it_was_run(trained_toy):
    second = STAGE | {"base_model": None, "base_revision": None, "trained": ["head", "llm"], "steps": 456}
    write_recipe(trained_toy, [STAGE, second])
    text = make_model_card(trained_toy, None).text
    assert text.index("### Step 1 of 2") < text.index("### Step 2 of 2")
    assert_said(
        text,
        f"| started from | Qwen/Qwen3-VL-4B-Instruct, revision {'f' * 40} |",
        "| started from | the step before |",
        "| trained parts | depth head, language model |",
        "| batch | 2560 = 8 x 4 accumulated x 80 ranks |",
        "| device | 80 x NVIDIA H20 |",
        "| settings | learning_rate 0.00035, optim adamw_torch |",
        "| data | you/rgbd, local: mine.jsonl; 90 rows; ddad 60, waymo 30 |",
        "Versions in the last training run: torch 2.13.0, trl 1.16.0.",
    )


def test_the_parts_are_counted_from_the_weights(trained_toy):
    model = DepthVLMForConditionalGeneration.from_pretrained(trained_toy)
    parts = {"depth head": model.depth_head, "vision tower": model.model.visual}
    counted = (f"| {name} | {sum(p.numel() for p in part.parameters()):,} parameters |" for name, part in parts.items())
    text = make_model_card(trained_toy, None).text
    assert_said(text, *counted, "| head type | `dpt_light`, features from `vit+llm` |")


def test_the_citation_is_that_of_the_repository():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["preferred-citation"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in cited["authors"])
    assert_said(
        CITATION,
        f"title   = {{{cited['title']}}}",
        f"author  = {{{authors}}}",
        f"year    = {{{cited['year']}}}",
    )


def test_an_untrained_head_is_said_in_bfloat16_too(toy_folder, tmp_path):
    shutil.copytree(toy_folder, tmp_path / "toy")
    change_weights(tmp_path / "toy", lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})
    for folder in (toy_folder, tmp_path / "toy"):
        assert "**The depth head is untrained**" in make_model_card(folder, None).text


def test_nothing_is_claimed_without_a_record(trained_toy):
    card = make_model_card(trained_toy, None)
    assert (card.data.base_model, card.data.datasets, card.data.license) == (None, None, "other")
    assert_said(
        card.text,
        f"Not recorded: there is no `{RECIPE_FILE}`",
        "The versions of the training are not recorded.",
        "They derive from a base model that is not recorded",
    )


def test_a_conversion_keeps_where_it_comes_from(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(toy_folder, tmp_path / "toy")
    base = "Qwen/Qwen3-VL-4B-Instruct"
    convert_recipe(base, tmp_path / "toy", base, "a1b2c3")
    card = make_model_card(tmp_path / "toy", "a/b")
    assert card.data.base_model == "Qwen/Qwen3-VL-4B-Instruct"
    assert card.data.license == "apache-2.0"  # of Qwen3-VL: nothing else is in it
    assert "**The depth head is untrained**" in card.text
    assert "### Conversion" in card.text
    convert_recipe(str(tmp_path / "toy"), tmp_path, str(tmp_path / "toy"), None)  # and on to the next one
    assert (tmp_path / RECIPE_FILE).read_text() == (tmp_path / "toy" / RECIPE_FILE).read_text()


def test_the_licence_of_weights_follows_the_data(trained_toy):
    data = {"names": [], "rows": 5, "sources": {"synthetic": 5}}
    write_recipe(trained_toy, [STAGE | {"data": data}])
    assert make_model_card(trained_toy, None).data.license == "apache-2.0"
    write_recipe(trained_toy, [STAGE | {"data": data | {"rows": 6}}])  # one row of nobody knows where
    assert make_model_card(trained_toy, None).data.license == "other"
    assert make_model_card(trained_toy, None, license="cc-by-nc-4.0").data.license == "cc-by-nc-4.0"


def test_an_adapter(trained_toy, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = load_file(trained_toy / "model.safetensors")
    head = {f"base_model.model.{name}": weights[name] for name in weights if name.startswith("depth_head.")}
    lora = {"base_model.model.model.visual.blocks.0.lora_A.weight": torch.ones(2, 3)}
    save_file(head | lora, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "you/depthvlm-4b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    card = make_model_card(folder, "you/lora")
    found = [card.data[name] for name in ("library_name", "base_model", "base_model_relation")]
    assert found == ["peft", "you/depthvlm-4b", "adapter"]
    loading = ('from_pretrained("you/depthvlm-4b", dtype="auto")', 'PeftModel.from_pretrained(base, "you/lora")')
    assert_said(card.text, *loading, "| adapter | 6 parameters |")
    # On what it must be put is the last step's base, not the first one's.
    write_recipe(folder, [STAGE, STAGE | {"base_model": None}])
    assert make_model_card(folder, "you/lora").data.base_model is None
    for path in ("/home/me/secret", "./secret", str(trained_toy)):
        (folder / RECIPE_FILE).unlink(missing_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": path}))
        card = make_model_card(folder, "you/lora")
        assert card.data.base_model is None
        assert path not in card.content


def test_what_is_no_checkpoint_or_no_name(trained_toy, tmp_path):
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text('{"model_type": "qwen3_vl"}')
    for folder, name, error, message in (
        (tmp_path, "a/b", FileNotFoundError, r"has no config\.json .*Give the folder that `save_pretrained`"),
        (tmp_path / "none", "a/b", FileNotFoundError, "There is no checkpoint folder"),
        (tmp_path / "qwen", "a/b", ValueError, r"a 'qwen3_vl' checkpoint, .*`depthvlm convert"),
        (trained_toy, "a/b/c", ValueError, "is no name on the Hub, expected owner/name"),
    ):
        with pytest.raises(error, match=message):
            make_model_card(folder, name)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        (RECIPE_FILE, "stages: [", ValueError, rf"{RECIPE_FILE} is damaged"),
        (RECIPE_FILE, "format: 9\nstages: []\n", ValueError, "has the format 9, this version reads 1"),
        ("model.safetensors", "cut off", ValueError, r"model\.safetensors is damaged"),
        ("model.safetensors", None, FileNotFoundError, r"holds no \.safetensors weights"),
        ("config.json", "{", ValueError, r"config\.json is damaged"),
    ],
)
def test_damaged_files_are_named(trained_toy, file, content, error, message):
    (trained_toy / file).unlink(missing_ok=True)
    if content is not None:
        (trained_toy / file).write_text(content)
    with pytest.raises(error, match=message):
        make_model_card(trained_toy, "a/b")


def test_terms_are_known_for_every_reader():
    assert set(TERMS) == set(source_names())


def test_the_cards_code_runs(toy_folder, tmp_path, monkeypatch):
    text = make_model_card(toy_folder, None).text
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    shutil.copytree(toy_folder, tmp_path / "here" / "toy")
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "here" / "photo.jpg")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace('"toy"', '"./toy"'), names)
        depth = names["prediction"].depth if "prediction" in names else names["depth"]["predicted_depth"]
        assert tuple(depth.shape) == (64, 96)
        assert depth.min() > 0
