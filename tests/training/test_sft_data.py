"""The data of `depthvlm sft`: files, folders, mixtures, functions."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from depthvlm.training.sft import ArgumentError, DepthScriptArguments, check_arguments, load_data
from toy_training import save_toy_lines
from trl import DatasetMixtureConfig


@pytest.fixture
def here(tmp_path_factory, monkeypatch) -> Path:
    """A folder with RGB-D rows of all kinds, which is the current one."""
    folder = tmp_path_factory.mktemp("project")
    save_toy_lines(folder)
    monkeypatch.chdir(folder)
    return folder


def arguments(**values: Any) -> tuple[DepthScriptArguments, Any]:
    return DepthScriptArguments(**values), DatasetMixtureConfig()


def mixture(*entries: dict[str, Any], **values: Any) -> tuple[DepthScriptArguments, Any]:
    return DepthScriptArguments(), DatasetMixtureConfig(datasets=list(entries), **values)


def test_files_folders_and_saved_data_sets(here, tmp_path):
    rows = load_dataset("json", data_files="rgbd.jsonl", split="train")
    (tmp_path / "folder").mkdir()
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_parquet(tmp_path / "folder" / "train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "splits")
    for name in ("rgbd.jsonl", *(str(tmp_path / name) for name in ("rows.parquet", "folder", "saved", "splits"))):
        data = load_data(*arguments(dataset_name=name), ["train"])["train"]
        assert data["messages"] == rows["messages"], name
    assert len(load_data(*arguments(dataset_name=str(tmp_path / "splits")), ["train", "test"])["test"]) == 1
    stream = load_data(*arguments(dataset_name="rgbd.jsonl", dataset_streaming=True), ["train"])["train"]
    assert isinstance(stream, IterableDataset)
    assert next(iter(stream))["messages"] == rows[0]["messages"]


def test_a_mixture_of_files_with_unequal_columns(here, tmp_path):
    text = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "so"}]} for i in range(9)
    ]
    Dataset.from_list(text).to_json(tmp_path / "text.jsonl")
    entries = {"path": "rgbd.jsonl", "fraction": 0.8}, {"path": str(tmp_path / "text.jsonl"), "fraction": 0.2}
    data = load_data(*mixture(*entries), ["train"])["train"]
    assert len(data) == 8 + 2
    assert data[9]["depth"] is None
    assert data[9]["images"] is None
    assert data[0]["depth"] == ["files/0_depth.png"]
    parts = load_data(*mixture(*entries, test_split_size=0.2), ["train", "test"])
    assert {split: len(part) for split, part in parts.items()} == {"train": 8, "test": 2}


def test_a_share_of_one_file_is_held_out_alike_everywhere(here):
    script, data = DepthScriptArguments(dataset_name="rgbd.jsonl"), DatasetMixtureConfig(test_split_size=0.25)
    parts = load_data(script, data, ["train", "test"], seed=3)
    questions = {split: [row["messages"][0]["content"] for row in part] for split, part in parts.items()}
    assert {split: len(asked) for split, asked in questions.items()} == {"train": 6, "test": 2}
    assert sorted(questions["train"] + questions["test"]) == [f"What is number {index}?" for index in range(8)]
    # A resumed run and other ranks, whatever numbers they have drawn since; a mixture of one as well.
    np.random.random(5)  # noqa: NPY002 (what datasets draws from without a seed)
    again = load_data(script, data, ["test"], seed=3)["test"]
    assert [row["messages"][0]["content"] for row in again] == questions["test"]
    mixed = load_data(*mixture({"path": "rgbd.jsonl"}, test_split_size=0.25), ["test"], seed=3)["test"]
    assert [row["messages"][0]["content"] for row in mixed] == questions["test"]
    with pytest.raises(ArgumentError, match="cannot split a stream"):
        load_data(DepthScriptArguments(dataset_name="rgbd.jsonl", dataset_streaming=True), data, ["train", "test"])
    with pytest.raises(ArgumentError, match=r"`test_split_size` is 1000\.0, expected a share"):
        load_data(script, DatasetMixtureConfig(test_split_size=1000.0), ["train", "test"])


def test_a_split_that_is_not_there(here):
    with pytest.raises(ArgumentError, match=r"no split 'test', but 'train'.*--dataset_test_split.*--eval_strategy no"):
        load_data(*arguments(dataset_name="rgbd.jsonl"), ["train", "test"])


GENERATOR = """
from datasets import Dataset, IterableDataset

def rows(count, split):
    return Dataset.from_list([{"text": f"{split} {i}"} for i in range(count)])

def stream(split):
    return IterableDataset.from_generator(lambda: ({"text": split} for _ in range(3)))

def wrong(split):
    return [1, 2]
"""


def test_data_from_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_simulator.py").write_text(GENERATOR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    script, nothing = arguments(dataset_generator="my_simulator:rows", dataset_generator_kwargs='{"count": 2}')
    assert script.dataset_generator_kwargs == {"count": 2}
    data = load_data(script, nothing, ["train", "test"])
    assert data["train"]["text"][:] == ["train 0", "train 1"]
    assert data["test"]["text"][:] == ["test 0", "test 1"]
    [data] = load_data(*arguments(dataset_generator="my_simulator:stream"), ["train"]).values()
    assert [row["text"] for row in data] == ["train"] * 3
    for generator, reason in {
        "my_simulator:wrong": "returned a list, expected a datasets.Dataset or IterableDataset",
        "my_simulator:nosuch": "my_simulator has no function nosuch",
        "my_simulator:rows": "missing a required argument: 'count'. It is rows\\(count, split\\)",
        "no_simulator:rows": "there is no module no_simulator, neither installed nor in",
    }.items():
        with pytest.raises(ArgumentError, match=reason):
            load_data(*arguments(dataset_generator=generator), ["train"])


def test_a_hub_name_is_left_to_datasets():
    script, nothing = arguments(dataset_name="owner/name")
    check_arguments(script, SimpleNamespace(model_name_or_path="Qwen/Qwen3-VL-4B-Instruct"), nothing)
