"""Which checkpoints count as whole, and what a full disk says."""

import errno
import json
from pathlib import Path

import pytest
import torch
from depthvlm.training.checkpoints import explain_full_disk, missing_in, resolve_checkpoint, seal_checkpoint
from toy_training import settings, toy_dataset, toy_rows

from depthvlm import DepthSFTTrainer


def make(folder: Path, step: int, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "trainer_state.json").write_text("{}")
    if sealed:
        seal_checkpoint(checkpoint)
    return checkpoint


def test_the_newest_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make(tmp_path, step)
    assert resolve_checkpoint(tmp_path, True) == str(tmp_path / "checkpoint-100")
    assert resolve_checkpoint(tmp_path, "latest") == str(tmp_path / "checkpoint-100")
    assert resolve_checkpoint(tmp_path, None) is None
    assert resolve_checkpoint(tmp_path, False) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"wei"), "3 bytes instead of 7"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is not there"),
        (lambda c: (c / "checkpoint_files.json").write_text('{"mod'), "checkpoint_files.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, words: str
) -> None:
    make(tmp_path, 1)
    damage(make(tmp_path, 2))  # type: ignore[operator]
    assert resolve_checkpoint(tmp_path, True) == str(tmp_path / "checkpoint-1")
    assert words in caplog.text
    assert resolve_checkpoint(tmp_path, str(tmp_path / "checkpoint-2")) == str(tmp_path / "checkpoint-1")


def test_checkpoints_of_other_trainers(tmp_path: Path) -> None:
    foreign = make(tmp_path, 3, sealed=False)
    assert missing_in(foreign) is None
    (foreign / "trainer_state.json").write_text('{"epoch": ')
    assert missing_in(foreign) == "its trainer_state.json is incomplete"
    (foreign / "trainer_state.json").unlink()
    assert missing_in(foreign) == "it has no trainer_state.json, which is written last"


def test_nothing_to_resume_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_checkpoint(tmp_path, True) is None
    assert "starts from the beginning" in caplog.text
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        resolve_checkpoint(tmp_path, str(tmp_path / "checkpoint-7"))
    torn = make(tmp_path, 1)
    (torn / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no checkpoint before it"):
        resolve_checkpoint(tmp_path, str(torn))


SAFE = "model.safetensors"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pytorch_model.bin": "x"}, "pytorch_model.bin and no model.safetensors"),
        # transformers looks for the one file before it looks for an index.
        ({"pytorch_model.bin": "x", f"{SAFE}.index.json": '{"weight_map": {}}'}, "pytorch_model.bin and no"),
        ({"pytorch_model.bin.index.json": "{}"}, r"pytorch_model.bin.index.json and no model.safetensors.index.json"),
        ({f"{SAFE}.index.json": '{"weight_map": {"a": "a.bin"}}'}, "names a.bin: DepthVLM reads safetensors alone"),
        ({"adapter_model.bin": "x"}, "adapter_model.bin and no adapter_model.safetensors"),
        ({"adapter_model.safetensors": "x", "second/adapter_model.bin": "x"}, "second holds adapter_model.bin"),
    ],
)
def test_pickled_weights_are_not_gone_on_from(tmp_path: Path, files: dict[str, str], words: str) -> None:
    make(tmp_path, 1)
    checkpoint = make(tmp_path, 2, sealed=False)
    (checkpoint / SAFE).unlink()
    for name, text in files.items():
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text(text)
    for resume in (True, str(checkpoint)):
        with pytest.raises(ValueError, match=words):
            resolve_checkpoint(tmp_path, resume)


def test_pickled_weights_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1, sealed=False)
    for name in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"x")
    assert resolve_checkpoint(tmp_path, True) == str(checkpoint)


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return self.file.touch, ()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_a_trainer_never_opens_them(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path / "run", max_steps=2),
        train_dataset=toy_dataset(toy_rows(4)),
    )
    pickled = make(tmp_path / "run", 1, sealed=False)
    (pickled / SAFE).unlink()
    torch.save({"weight": Canary(tmp_path / "opened")}, pickled / name)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(ValueError, match=f"{name} and no .*never pickle"):
        trainer.train(resume_from_checkpoint=str(pickled))
    assert not (tmp_path / "opened").exists()


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 1)
    assert json.loads((checkpoint / "checkpoint_files.json").read_text()) == {
        "model.safetensors": 7,
        "trainer_state.json": 2,
    }


def test_other_errors_are_not_explained_as_a_full_disk(tmp_path: Path) -> None:
    assert explain_full_disk(RuntimeError("shape mismatch"), tmp_path / "checkpoint-1") is None
    assert explain_full_disk(OSError(errno.EACCES, "denied"), tmp_path / "checkpoint-1") is None


def test_a_full_disk_leaves_the_checkpoint_before(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path / "run", max_steps=3, save_strategy="steps", save_steps=1),
        train_dataset=toy_dataset(toy_rows(4)),
    )
    save = trainer._save_optimizer_and_scheduler

    def fills_the_disk(folder: str) -> None:
        if folder.endswith("checkpoint-2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fills_the_disk)
    with pytest.raises(OSError, match=r"The disk is full.*checkpoint-2.*last whole checkpoint is .*checkpoint-1"):
        trainer.train()
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    assert missing_in(tmp_path / "run" / "checkpoint-1") is None
