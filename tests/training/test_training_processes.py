"""Runs of two processes, and runs that are killed: the same weights as an unbroken run of one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_families import HEAD, save_plain_checkpoint
from toy_training import settings, toy_dataset, toy_row, toy_rows

from depthvlm import DepthSFTTrainer

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "support" / "train_worker.py"
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def start(options: dict[str, Any], processes: int = 1) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [*launcher, str(WORKER), json.dumps(options)], env=environment, capture_output=True, text=True, timeout=300
    )


def finish(options: dict[str, Any], processes: int = 1) -> dict[str, Any]:
    result = start(options, processes)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(Path(options["out"], "log.json").read_text())


def one_process(checkpoint: str, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DepthSFTTrainer:
    data = toy_dataset(rows)
    trainer = DepthSFTTrainer(checkpoint, settings(folder, **changes), train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer


def assert_same_weights(folder: Path, trainer: DepthSFTTrainer, tolerance: float) -> None:
    saved = load_file(folder / "model.safetensors")
    parameters = dict(trainer.model.named_parameters())
    assert parameters.keys() <= saved.keys()
    for name, p in parameters.items():
        torch.testing.assert_close(saved[name], p.detach(), rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("layout", [{}, FSDP2], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("trainable", [["all"], ["head"]], ids=["all", "head"])
def test_two_ranks_equal_one(checkpoint: str, tmp_path: Path, layout: dict[str, Any], trainable: list[str]) -> None:
    # Two of eight rows have depth, so that for some orders a rank has none; text is of unequal length.
    rows = [toy_row(i, depth=i < 2) for i in range(8)]
    changes = {"trainable": trainable, "max_steps": 2, "shuffle_dataset": False}
    options = {
        "model": checkpoint,
        "out": str(tmp_path / "two"),
        "lone_depth": True,
        "evaluate": True,
        "settings": {**changes, **layout, "per_device_train_batch_size": 4},
    }
    two = finish(options, processes=2)
    one = one_process(checkpoint, tmp_path / "one", rows, **changes, per_device_train_batch_size=8)
    assert_same_weights(tmp_path / "two", one, 1e-6)
    names = ["loss", "depth_loss", "delta1", "abs_rel", "depth_images", "num_tokens"]
    for mine, theirs in zip(two["log"][:2], one.state.log_history[:2], strict=True):
        for name in names + (["text_loss"] if trainable == ["all"] else []):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    numbers = one.evaluate()
    for name in ("eval_loss", "eval_delta1", "eval_depth_images"):
        assert two["eval"][name] == pytest.approx(numbers[name], abs=1e-5)


@pytest.mark.parametrize("layout", [{}, FSDP2], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("trainable", [["all"], ["head"]], ids=["all", "head"])
def test_two_ranks_equal_one_with_projectors_of_the_heads_own(
    tmp_path: Path, layout: dict[str, Any], trainable: list[str]
) -> None:
    plain = str(save_plain_checkpoint(tmp_path / "plain", "qwen3_5"))
    rows = [toy_row(i, image=i < 2) for i in range(8)]
    head = {"model_init_kwargs": {"depth_config": HEAD | {"projector": "own"}}}
    changes = {"trainable": trainable, "max_steps": 2, "shuffle_dataset": False, **head}
    options = {
        "model": plain,
        "out": str(tmp_path / "two"),
        "lone_image": True,
        "settings": {**changes, **layout, "per_device_train_batch_size": 4},
    }
    two = finish(options, processes=2)
    one = one_process(plain, tmp_path / "one", rows, **changes, per_device_train_batch_size=8)
    assert type(one.model).__name__ == "DepthVLMQwen3_5ForConditionalGeneration"
    assert_same_weights(tmp_path / "two", one, 5e-6)  # its weights are larger than those above, and round more
    for mine, theirs in zip(two["log"][:2], one.state.log_history[:2], strict=True):
        for name in ("loss", "depth_loss", "depth_images"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name


@pytest.mark.parametrize("layout", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_equal_one_with_losses_for_dense_truth(
    checkpoint: str, tmp_path: Path, layout: dict[str, Any]
) -> None:
    rows = [toy_row(i, depth=i < 2) for i in range(8)]
    weights = {"gradient_matching_weight": 0.5, "normal_weight": 0.25}
    changes = {"trainable": ["all"], "max_steps": 2, "shuffle_dataset": False, **weights}
    options = {
        "model": checkpoint,
        "out": str(tmp_path / "two"),
        "lone_depth": True,
        "evaluate": True,
        "settings": {**changes, **layout, "per_device_train_batch_size": 4},
    }
    two = finish(options, processes=2)
    one = one_process(checkpoint, tmp_path / "one", rows, **changes, per_device_train_batch_size=8)
    assert_same_weights(tmp_path / "two", one, 1e-6)
    names = ("depth_loss", "silog", "gradient_matching", "normal")
    for mine, theirs in zip(two["log"][:2], one.state.log_history[:2], strict=True):
        assert [mine[name] for name in names] == pytest.approx([theirs[name] for name in names], abs=1e-5)
        parts = theirs["silog"] + 0.5 * theirs["gradient_matching"] + 0.25 * theirs["normal"]
        assert theirs["depth_loss"] == pytest.approx(parts, abs=1e-5)
    numbers = one.evaluate()
    for name in names:
        assert two["eval"][f"eval_{name}"] == pytest.approx(numbers[f"eval_{name}"], abs=1e-5)


@pytest.mark.parametrize("layout", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_equal_one_with_muon(checkpoint: str, tmp_path: Path, layout: dict[str, Any]) -> None:
    # FSDP2 gives each rank half of a matrix's rows, and Muon's step needs the whole matrix.
    changes = {"trainable": ["all"], "max_steps": 2, "shuffle_dataset": False, "muon_learning_rate": 0.01}
    options = {
        "model": checkpoint,
        "out": str(tmp_path / "two"),
        "lone_depth": True,
        "settings": {**changes, **layout, "per_device_train_batch_size": 4},
    }
    finish(options, processes=2)
    rows = [toy_row(i, depth=i < 2) for i in range(8)]
    one = one_process(checkpoint, tmp_path / "one", rows, **changes, per_device_train_batch_size=8)
    assert_same_weights(tmp_path / "two", one, 1e-5)  # a step is 1e-2; rounding goes through the iteration


@pytest.mark.parametrize("trainable", [["all"], ["head"]], ids=["all", "head"])
@pytest.mark.parametrize(
    ("layout", "stream"),
    [({}, {}), (FSDP2, {}), ({}, {"shards": 1}), ({}, {"shards": 2}), (FSDP2, {"shards": 2})],
    ids=["ddp", "fsdp2", "ddp stream", "ddp shards", "fsdp2 shards"],
)
def test_an_evaluation_counts_every_row_once(
    checkpoint: str, tmp_path: Path, layout: dict[str, Any], stream: dict[str, int], trainable: list[str]
) -> None:
    # Five rows, two to a batch: the last batch is half full on one rank, and has no row at all on the other.
    changes = {"learning_rate": 0.0, "trainable": trainable, "per_device_eval_batch_size": 2}
    options = {
        "model": checkpoint,
        "out": str(tmp_path / "two"),
        "evaluate": True,
        "eval_rows": 5,
        **stream,
        "settings": {**changes, **layout},
    }
    two = finish(options, processes=2)["eval"]
    data = toy_dataset(toy_rows(5))
    one = DepthSFTTrainer(
        checkpoint, settings(tmp_path / "one", **changes), train_dataset=data, eval_dataset=data
    ).evaluate()
    names = ["loss", "depth_loss", "delta1", "abs_rel", "valid_pixels", "depth_images", "skipped_samples"]
    for name in names + (["text_loss"] if trainable == ["all"] else []):
        assert two[f"eval_{name}"] == pytest.approx(one[f"eval_{name}"], abs=1e-6), name
    assert two["eval_depth_images"] == sum(any(row["depth"] or []) for row in toy_rows(5)) == 3


@pytest.mark.parametrize("layout", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_resume(checkpoint: str, tmp_path: Path, layout: dict[str, Any]) -> None:
    changes = {
        "optim": "adamw_torch",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        **layout,
    }
    options = {"model": checkpoint, "out": str(tmp_path / "unbroken"), "settings": changes}
    finish(options, processes=2)
    broken = {**options, "out": str(tmp_path / "broken"), "kill_at": 3}
    assert start(broken, processes=2).returncode != 0
    del broken["kill_at"]
    finish({**broken, "resume": "latest"}, processes=2)
    unbroken, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "broken"))
    assert unbroken.keys() == resumed.keys()
    for name, tensor in unbroken.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the workers: another number of threads adds up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_steps": 5}
    changes |= {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    unbroken = one_process(checkpoint, tmp_path / "unbroken", toy_rows(8), **changes)
    folder = tmp_path / "killed"
    options = {"model": checkpoint, "out": str(folder), "settings": changes, "kill_at": 4}
    assert start(options).returncode == -signal.SIGKILL
    # A checkpoint that was being written when the power went: some files are there, one of them half.
    torn = folder / "checkpoint-4"
    shutil.copytree(folder / "checkpoint-3", torn)
    (torn / "checkpoint_files.json").unlink()
    (torn / "trainer_state.json").unlink()
    os.truncate(torn / "optimizer.pt", 1000)
    data = toy_dataset(toy_rows(8))
    resumed = DepthSFTTrainer(checkpoint, settings(folder, **changes), train_dataset=data, eval_dataset=data)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is not whole (it has no trainer_state.json" in caplog.text
    expected = dict(unbroken.model.named_parameters())
    for name, p in resumed.model.named_parameters():
        assert torch.equal(p, expected[name]), name
    assert resumed.state.log_history[-2]["loss"] == unbroken.state.log_history[-2]["loss"]
