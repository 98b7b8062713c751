"""The recipe and the card that a training run leaves beside its weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from datasets import Dataset
from depthvlm.hub_cards.cards.model_card import make_model_card
from depthvlm.training.card import base_model, count_data, name_data
from depthvlm.training.sft import run
from huggingface_hub import ModelCard
from peft import LoraConfig
from toy_checkpoint import save_toy_checkpoint
from toy_training import settings, toy_dataset, toy_rows

from depthvlm import DepthSFTTrainer
from depthvlm.recipe_file import RECIPE_FILE, read_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_checkpoint(tmp_path_factory.mktemp("private_folder") / "toy")


def trainer_of(model: Path, folder: Path, peft_config: Any = None, **changes: Any) -> DepthSFTTrainer:
    values = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2} | changes
    rows = toy_dataset(toy_rows(4))
    return DepthSFTTrainer(str(model), settings(folder, **values), train_dataset=rows, peft_config=peft_config)


@pytest.fixture(scope="module")
def stage1(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the head, AdamW, checkpoints at each."""
    folder = tmp_path_factory.mktemp("private_runs") / "stage1"
    options = {"optim": "adamw_torch", "learning_rate": 3.5e-4, "hub_token": "hf_secret"}
    trainer = trainer_of(checkpoint, folder, trainable=["head"], max_steps=2, **options)
    trainer.data_names = ["you/rgbd"]
    trainer.train()
    trainer.save_model()
    return folder


def test_the_recipe_is_what_was_run(stage1):
    [stage] = read_recipe(stage1)
    run, versions = stage["settings"], stage["versions"]
    expected = {
        **{"base_model": None, "backbone": "qwen3_vl", "trained": ["head"]},
        **{"data": {"names": ["you/rgbd"], "rows": 4}},
        **{"loss": {"depth_loss_weight": 1.0, "silog_lambda": 0.5}, "steps": 2, "epochs": 1.0},
        **{"world_size": 1, "device": "CPU", "per_device_batch_size": 2, "gradient_accumulation_steps": 1},
        "global_batch_size": 2,
    }
    assert {name: stage[name] for name in expected} == expected
    expected = {"optim": "adamw_torch", "learning_rate": 3.5e-4, "lr_scheduler_type": "constant"}
    expected |= {"max_steps": 2, "seed": 0, "bf16": False}
    assert {name: run[name] for name in expected} == expected
    assert "adam_beta2" not in run  # the default
    assert {"python", "torch", "transformers", "trl", "accelerate", "datasets"} <= set(versions)


def test_nothing_private_is_in_it(stage1):
    for file in [*stage1.rglob(RECIPE_FILE), *stage1.rglob("README.md")]:
        assert not [word for word in ("private", "hf_secret", str(stage1.parent)) if word in file.read_text()]


def test_every_checkpoint_has_its_own_recipe(stage1):
    steps = [read_recipe(stage1 / f"checkpoint-{i}")[0]["steps"] for i in (1, 2)]
    assert steps == [1, 2]
    sealed = json.loads((stage1 / "checkpoint-2" / "checkpoint_files.json").read_text())
    assert RECIPE_FILE in sealed


def test_the_run_writes_the_card_that_a_push_would(stage1):
    card = ModelCard.load(stage1 / "README.md")
    mine = make_model_card(stage1, None)
    assert card.text == mine.text
    assert {"generated_from_trainer", "trl", "sft", *mine.data.tags} == set(card.data.tags)
    assert card.data.datasets == ["you/rgbd"]
    assert "untrained" not in card.text  # two steps have moved its biases
    assert card.data.eval_results is None


def test_a_card_in_mid_run_is_of_the_trainer(checkpoint, tmp_path):
    """TRL writes it before the first weights are there."""
    trainer = trainer_of(checkpoint, tmp_path / "run", trainable=["head+llm"])
    trainer.create_model_card(model_name="mine", dataset_name="you/other", tags="extra")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "\n# mine\n" in card.text
    assert "| trained parts | depth head, language model |" in card.text
    assert "| steps | 0 |" in card.text
    assert card.data.datasets == ["you/other"]
    assert "extra" in card.data.tags


def test_a_name_of_the_data_given_at_the_push_is_kept(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, tmp_path / "run", trainable=["head"], save_strategy="no")
    trainer.train()
    trainer.save_model()
    assert ModelCard.load(tmp_path / "run" / "README.md").data.datasets is None
    trainer.create_model_card(dataset_name="you/rgbd")
    assert ModelCard.load(tmp_path / "run" / "README.md").text == make_model_card(tmp_path / "run", None).text
    assert read_recipe(tmp_path / "run")[0]["data"]["names"] == ["you/rgbd"]


def test_an_adapter_on_an_earlier_run(stage1, tmp_path):
    adapter = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    trainer = trainer_of(stage1, tmp_path / "lora", adapter)
    trainer.train()
    trainer.save_model()
    first, second = read_recipe(tmp_path / "lora")
    assert first == read_recipe(stage1)[0]
    parts = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["depth_head"]}
    assert second["adapter"] == {"type": "LORA", "r": 2, "lora_alpha": 4, **parts}
    assert second["trained"] == ["head", "llm"]
    for folder in ("lora", "lora/checkpoint-1"):  # where PEFT has written a card with the local path of the base
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert (card.data["library_name"], card.data.base_model) == ("peft", None)
        assert "private" not in card.content
        assert "PeftModel.from_pretrained" in card.text


def test_the_folder_that_a_run_starts_from_and_writes_to(stage1, tmp_path):
    folder = tmp_path / "same"
    shutil.copytree(stage1, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    trainer = trainer_of(folder, folder, trainable=["head"], save_strategy="no")
    trainer.train()
    trainer.save_model()
    trainer.save_model()  # twice: the run is told once
    assert [stage["steps"] for stage in read_recipe(folder)] == [2, 1]


def test_names_of_base_models(tmp_path):
    def named(name: str, commit: str | None = None) -> tuple[str | None, str | None]:
        return base_model(SimpleNamespace(_name_or_path=name, _commit_hash=commit))

    cached = f"/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-VL-4B-Instruct/snapshots/{'a' * 40}"
    assert named("Qwen/Qwen3-VL-4B-Instruct", "b" * 40) == ("Qwen/Qwen3-VL-4B-Instruct", "b" * 40)
    assert named(cached) == ("Qwen/Qwen3-VL-4B-Instruct", "a" * 40)
    for local in ("", str(tmp_path), "/data/secret", "./secret/one", "~/secret"):
        assert named(local, "b" * 40) == (None, None)


def test_names_of_data():
    def named(name: str | None = None, generator: str | None = None, *mixed: tuple[str, str | None]) -> list[str]:
        script = SimpleNamespace(dataset_name=name, dataset_generator=generator)
        mixture = SimpleNamespace(datasets=[SimpleNamespace(path=p, data_files=f) for p, f in mixed])
        return name_data(script, mixture)

    assert named("you/rgbd") == ["you/rgbd"]
    assert named("/data/me/rgbd.jsonl") == ["local: rgbd.jsonl"]
    assert named("rgbd.jsonl") == ["local: rgbd.jsonl"]
    assert named(None, "made.here:rows") == ["made by made.here:rows"]
    assert named(None, None, ("you/text", None), ("json", "/data/me/a.jsonl")) == ["you/text", "local: a.jsonl"]


def test_rows_are_counted_by_source():
    rows = Dataset.from_dict({"source": ["ddad", "waymo", "ddad", "a client's name", None]})
    assert count_data(rows) == {"rows": 5, "sources": {"ddad": 2, "other": 2, "waymo": 1}}
    assert count_data(rows.rename_column("source", "origin")) == {"rows": 5}
    assert count_data(rows.to_iterable_dataset()) == {}


def test_the_command_records_the_name_of_its_data(checkpoint, tmp_path):
    rows = tmp_path / "talk.jsonl"
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    rows.write_text((json.dumps(talk) + "\n") * 2)
    arguments = {"model_name_or_path": str(checkpoint), "dataset_name": str(rows), "output_dir": str(tmp_path / "out")}
    arguments |= {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"}
    arguments |= {"use_cpu": True, "bf16": False, "report_to": "none"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(arguments))
    run(["--config", str(tmp_path / "run.yaml")])
    [stage] = read_recipe(tmp_path / "out")
    assert stage["data"] == {"names": ["local: talk.jsonl"], "rows": 2}
    assert stage["loss"] == "text alone"
    assert "**The depth head is untrained**" in (tmp_path / "out" / "README.md").read_text()
