"""Model cards: every field, what is known of the weights and what is not, and bad input."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY
from depthvlm.hub_cards.cards.card_text import CITATION, TERMS
from depthvlm.hub_cards.cards.model_card import make_model_card
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from toy_cards import results_of, with_trained_head
from toy_checkpoint import save_toy_checkpoint

from depthvlm.recipe_file import RECIPE_FILE, write_recipe

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


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As drawn."""
    return save_toy_checkpoint(tmp_path_factory.mktemp("card") / "toy")


@pytest.fixture
def checkpoint(toy: Path, tmp_path: Path) -> Path:
    return with_trained_head(toy, tmp_path / "toy")


# What the issue asks for


def test_every_field(checkpoint: Path, tmp_path: Path) -> None:
    write_recipe(checkpoint, [STAGE])
    files = results_of(checkpoint, tmp_path / "results")
    card = make_model_card(checkpoint, "you/depthvlm-4b", files, note="Made for a test.")
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert str(loaded) == str(card)  # the metadata goes through YAML and back
    data = loaded.data
    assert data["library_name"] == "transformers"
    assert data.pipeline_tag == "depth-estimation"
    assert data.base_model == "Qwen/Qwen3-VL-4B-Instruct"
    assert data["base_model_relation"] == "finetune"
    assert data.datasets == ["you/rgbd"]  # the local file is none on the Hub
    assert (data.license, data.license_name) == ("other", "base-model-and-training-data")
    assert data.license_link == "https://huggingface.co/you/depthvlm-4b#licences"
    assert {"depth-estimation", "metric-depth", "depthvlm", "image-text-to-text"} <= set(data.tags)
    assert data.language == ["en"]
    assert data.model_name == "depthvlm-4b"
    assert data.eval_results == card.data.eval_results
    for title in ("Intended use", "Camera requirements", "Limits", "Results", "Training recipe", "Environment"):
        assert f"\n## {title}\n" in card.text
    assert "Made for a test." in card.text
    assert "canonical focal length of 1000 px" in card.text
    assert "and to 16384 pixels at most" in card.text  # 128x128
    assert "(60 degrees across the longer side)" in card.text
    assert f"```bibtex\n{CITATION}\n```" in card.text
    assert "- Code (the Python files here and the package `depthvlm`): Apache-2.0." in card.text
    assert "| DDAD | CC BY-NC-SA 4.0 |" in card.text
    assert "| Waymo | Waymo Dataset License Agreement for Non-Commercial Use |" in card.text
    assert "untrained" not in card.text
    assert "not known" not in card.text


def test_the_recipe_is_shown_as_it_was_run(checkpoint: Path) -> None:
    second = STAGE | {"base_model": None, "base_revision": None, "trained": ["head", "llm"], "steps": 456}
    write_recipe(checkpoint, [STAGE, second])
    text = make_model_card(checkpoint, None).text
    assert text.index("### Step 1 of 2") < text.index("### Step 2 of 2")
    assert f"| started from | Qwen/Qwen3-VL-4B-Instruct, revision {'f' * 40} |" in text
    assert "| started from | the step before |" in text
    assert "| trained parts | depth head, language model |" in text
    assert "| batch | 2560 = 8 x 4 accumulated x 80 ranks |" in text
    assert "| device | 80 x NVIDIA H20 |" in text
    assert "| settings | learning_rate 0.00035, optim adamw_torch |" in text
    assert "| data | you/rgbd, local: mine.jsonl; 90 rows; ddad 60, waymo 30 |" in text
    assert "Versions in the last training run: torch 2.13.0, trl 1.16.0." in text


def test_the_parts_are_counted_from_the_weights(checkpoint: Path) -> None:
    from depthvlm import DepthVLMForConditionalGeneration

    text = make_model_card(checkpoint, None).text
    model = DepthVLMForConditionalGeneration.from_pretrained(checkpoint)
    head = sum(p.numel() for p in model.depth_head.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    assert f"| depth head | {head:,} parameters |" in text
    assert f"| vision tower | {vision:,} parameters |" in text
    assert "| head type | `dpt_light`, features from `vit+llm` |" in text


def test_the_citation_is_that_of_the_repository() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["preferred-citation"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in cited["authors"])
    assert f"title   = {{{cited['title']}}}" in CITATION
    assert f"author  = {{{authors}}}" in CITATION
    assert f"year    = {{{cited['year']}}}" in CITATION


# What is known about the weights


def test_an_untrained_head_is_said(toy: Path) -> None:
    assert "**The depth head is untrained**" in make_model_card(toy, None).text


def test_untrained_in_bfloat16_too(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(toy / "model.safetensors").items()}
    save_file(weights, tmp_path / "toy" / "model.safetensors", metadata={"format": "pt"})
    assert "**The depth head is untrained**" in make_model_card(tmp_path / "toy", None).text


def test_nothing_is_claimed_without_a_record(checkpoint: Path) -> None:
    card = make_model_card(checkpoint, None)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert card.data.license == "other"
    assert f"Not recorded: there is no `{RECIPE_FILE}`" in card.text
    assert "The versions of the training are not recorded." in card.text
    assert "They derive from a base model that is not recorded" in card.text


def test_a_conversion_keeps_where_it_comes_from(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from depthvlm.recipe_file import convert_recipe

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(toy, tmp_path / "toy")
    base = "Qwen/Qwen3-VL-4B-Instruct"
    convert_recipe(base, tmp_path / "toy", base, "a1b2c3")
    card = make_model_card(tmp_path / "toy", "a/b")
    assert card.data.base_model == "Qwen/Qwen3-VL-4B-Instruct"
    assert card.data.license == "apache-2.0"  # of Qwen3-VL: nothing else is in it
    assert "**The depth head is untrained**" in card.text
    assert "### Conversion" in card.text
    convert_recipe(str(tmp_path / "toy"), tmp_path, str(tmp_path / "toy"), None)  # and on to the next one
    assert (tmp_path / RECIPE_FILE).read_text() == (tmp_path / "toy" / RECIPE_FILE).read_text()


def test_the_licence_of_weights_follows_the_data(checkpoint: Path) -> None:
    data = {"names": [], "rows": 5, "sources": {"synthetic": 5}}
    write_recipe(checkpoint, [STAGE | {"data": data}])
    assert make_model_card(checkpoint, None).data.license == "apache-2.0"
    write_recipe(checkpoint, [STAGE | {"data": data | {"rows": 6}}])  # one row of nobody knows where
    assert make_model_card(checkpoint, None).data.license == "other"
    assert make_model_card(checkpoint, None, license="cc-by-nc-4.0").data.license == "cc-by-nc-4.0"


def test_an_adapter(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    head = {
        f"base_model.model.{name}": tensor
        for name, tensor in load_file(checkpoint / "model.safetensors").items()
        if name.startswith("depth_head.")
    }
    lora = {"base_model.model.model.visual.blocks.0.lora_A.weight": torch.ones(2, 3)}
    save_file(head | lora, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "you/depthvlm-4b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    card = make_model_card(folder, "you/lora")
    assert (card.data["library_name"], card.data.base_model) == ("peft", "you/depthvlm-4b")
    assert card.data["base_model_relation"] == "adapter"
    assert 'from_pretrained("you/depthvlm-4b", dtype="auto")' in card.text
    assert 'PeftModel.from_pretrained(base, "you/lora")' in card.text
    assert "| adapter | 6 parameters |" in card.text
    # On what it must be put is the last step's base, not the first one's.
    write_recipe(folder, [STAGE, STAGE | {"base_model": None}])
    assert make_model_card(folder, "you/lora").data.base_model is None
    for path in ("/home/me/secret", "./secret", str(checkpoint)):
        (folder / RECIPE_FILE).unlink(missing_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": path}))
        card = make_model_card(folder, "you/lora")
        assert card.data.base_model is None
        assert path not in card.content


# Bad input


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json .*Give the folder that `save_pretrained`"):
        make_model_card(tmp_path, "a/b")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint folder"):
        make_model_card(tmp_path / "none", "a/b")


def test_a_plain_qwen3_vl_is_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ValueError, match=r"a 'qwen3_vl' checkpoint, .*`depthvlm convert"):
        make_model_card(tmp_path, "a/b")


def test_damaged_files_are_named(checkpoint: Path) -> None:
    (checkpoint / RECIPE_FILE).write_text("stages: [")
    with pytest.raises(ValueError, match=rf"{RECIPE_FILE} is damaged"):
        make_model_card(checkpoint, "a/b")
    (checkpoint / RECIPE_FILE).write_text("format: 9\nstages: []\n")
    with pytest.raises(ValueError, match="has the format 9, this version reads 1"):
        make_model_card(checkpoint, "a/b")
    (checkpoint / RECIPE_FILE).unlink()
    (checkpoint / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        make_model_card(checkpoint, "a/b")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors weights"):
        make_model_card(checkpoint, "a/b")
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        make_model_card(checkpoint, "a/b")


def test_a_name_that_the_hub_does_not_take(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="is no name on the Hub, expected owner/name"):
        make_model_card(checkpoint, "a/b/c")


def test_terms_are_known_for_every_reader() -> None:
    from depthvlm.benchmark.sources import source_names

    assert set(TERMS) == set(source_names())


def test_the_cards_code_runs(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    text = make_model_card(toy, None).text
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    shutil.copytree(toy, tmp_path / "here" / "toy")
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "here" / "photo.jpg")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block.replace('"toy"', '"./toy"'), names)
        depth = names["prediction"].depth if "prediction" in names else names["depth"]["predicted_depth"]
        assert tuple(depth.shape) == (64, 96)
        assert depth.min() > 0
