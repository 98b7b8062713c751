"""`depthvlm sft` on a plain checkpoint of every family, by its name on the Hub, with an empty cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from depthvlm.modeling_depthvlm import FAMILIES
from fresh import python
from loopback_hub import LoopbackHub
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_training import save_toy_lines

pytestmark = pytest.mark.slow

SETTINGS = {
    "dataset_name": "rgbd.jsonl",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
}
LOADS = """
import sys, fresh
fresh.hide_the_package()
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, type(processor).__name__, len(model.depth_head.projectors))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub({}) as hub:
        yield hub


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_command_chooses_the_class_by_itself(hub: LoopbackHub, tmp_path: Path, family: str) -> None:
    classes = FAMILIES[family]
    commit = hub.put(save_plain_checkpoint(tmp_path / "plain", family), f"ada/{family}")
    save_toy_lines(tmp_path)
    own = {} if classes.config.backbone.has_deepstack else {"projector": "own"}
    run = SETTINGS | {"model_init_kwargs": {"depth_config": HEAD | own}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    named = ("--config", "run.yaml", "--model_name_or_path", f"ada/{family}", "--output_dir", "out")
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    told = python("-m", "depthvlm", "sft", *named, folder=tmp_path, **variables)
    assert "'depth_loss'" in told.stdout
    assert ("'aux_loss'" in told.stdout) == family.endswith("moe")
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert json.loads((folder / "config.json").read_text())["model_type"] == classes.config.model_type
        assert (folder / f"{classes.model.__module__.rpartition('.')[2]}.py").is_file()
        [stage] = yaml.safe_load((folder / "training_recipe.yaml").read_text())["stages"]
        assert (stage["base_model"], stage["base_revision"], stage["backbone"]) == (f"ada/{family}", commit, family)
        assert stage["trained"] == ["head", "llm", "merger", "vit"]
    # The first save, which carries the code of a model whose own checkpoint has none.
    home = {"HF_HOME": str(tmp_path / "other"), "HF_HUB_OFFLINE": "1"}
    loaded = python("-c", LOADS, str(tmp_path / "out" / "checkpoint-1"), **home).stdout.split()
    assert loaded == [classes.model.__name__, classes.config.backbone.processor_class, "3" if own else "0"]
    assert f"| backbone | {family} |" in (tmp_path / "out" / "README.md").read_text()
