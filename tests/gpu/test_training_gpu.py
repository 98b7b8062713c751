"""The trainer on a GPU: the CPU's losses through TRL's own kernel, and what needs an accelerator."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from peft import LoraConfig
from toy_checkpoint import save_toy_checkpoint
from toy_training import save_toy_lines, settings, toy_dataset, toy_row, toy_rows
from transformers import BitsAndBytesConfig

from depthvlm import DepthSFTTrainer, DepthVLMForConditionalGeneration

LAUNCHERS = REPOSITORY / "training" / "accelerate"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy_checkpoint(tmp_path_factory.mktemp("toy")))


def run(checkpoint: str, folder: Path, **changes: Any) -> DepthSFTTrainer:
    options = {"use_cpu": False, "max_steps": 2, **changes}
    trainer = DepthSFTTrainer(checkpoint, settings(folder, **options), train_dataset=toy_dataset(toy_rows(8)))
    trainer.train()
    return trainer


def logged(trainer: DepthSFTTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def weights(trainer: DepthSFTTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in trainer.depth_model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, parameter in one.items():
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("trainable", [["all"], ["head+llm"], ["head"]])
def test_losses_and_weights_are_the_cpus(checkpoint: str, tmp_path: Path, trainable: list[str]) -> None:
    cpu = run(checkpoint, tmp_path / "cpu", trainable=trainable, use_cpu=True)
    gpu = run(checkpoint, tmp_path / "gpu", trainable=trainable)
    assert gpu.depth_model.device.type == "cuda"
    for name in ("loss", "depth_loss", "delta1", "abs_rel", *(["text_loss"] if trainable != ["head"] else [])):
        assert logged(gpu, name) == pytest.approx(logged(cpu, name), abs=1e-4)
    assert_same(weights(gpu), weights(cpu), 1e-4)


@pytest.mark.parametrize("changes", [{"activation_offloading": True}, {"gradient_checkpointing": True}], ids=str)
def test_what_saves_memory_changes_no_weight(checkpoint: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = run(checkpoint, tmp_path / "plain")
    assert_same(weights(run(checkpoint, tmp_path / "saving", **changes)), weights(plain), 1e-5)


def test_offloaded_activations_are_not_on_the_gpu(checkpoint: str, tmp_path: Path) -> None:
    """Both keep the same graph; offloaded, its tensors wait in the host's memory."""
    peaks = []
    for offloading in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        rows = toy_dataset([toy_row(i, size=(128, 128)) for i in range(64)])
        changes = {"activation_offloading": offloading, "per_device_train_batch_size": 64, "max_steps": 2}
        args = settings(tmp_path / str(offloading), use_cpu=False, **changes)
        trainer = DepthSFTTrainer(checkpoint, args, train_dataset=rows)
        before = torch.cuda.memory_allocated()
        trainer.train()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.8 * peaks[0]


def test_compiled_gives_the_same_losses(checkpoint: str, tmp_path: Path) -> None:
    """The second loss is that of weights which the compiled step has moved."""
    plain = run(checkpoint, tmp_path / "plain")
    compiled = run(checkpoint, tmp_path / "compiled", torch_compile=True)
    for name in ("text_loss", "depth_loss"):
        assert logged(compiled, name) == pytest.approx(logged(plain, name), abs=1e-3)


def test_bfloat16_follows_float32(checkpoint: str, tmp_path: Path) -> None:
    exact = run(checkpoint, tmp_path / "float32")
    rounded = run(checkpoint, tmp_path / "bfloat16", bf16=True)
    assert logged(rounded, "loss") == pytest.approx(logged(exact, "loss"), rel=0.02)


def test_qlora_trains_adapters_and_the_head(checkpoint: str, tmp_path: Path) -> None:
    trainer = DepthSFTTrainer(
        checkpoint,
        settings(tmp_path, max_steps=2, use_cpu=False, bf16=True),
        train_dataset=toy_dataset(toy_rows(4)),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])}
    assert any("depth_head" in name for name in changed)
    assert any("lora_B" in name for name in changed)


@pytest.mark.parametrize("launcher", ["multi_gpu", "fsdp2_1node"])
def test_the_launchers_train_and_save(checkpoint: str, tmp_path: Path, launcher: str) -> None:
    """On one GPU, through NCCL: what is saved loads, and has learnt."""
    save_toy_lines(tmp_path)
    options = {
        "--accelerate_config": LAUNCHERS / f"{launcher}.yaml",
        "--num_processes": 1,
        "--model_name_or_path": checkpoint,
        "--dataset_name": "rgbd.jsonl",
        "--output_dir": tmp_path / "out",
        "--max_steps": 2,
        "--learning_rate": 1e-2,
        "--warmup_steps": 0,
        "--logging_steps": 1,
        "--report_to": "none",
        "--per_device_train_batch_size": 4,
        "--save_steps": 1,
    }
    flat = [str(part) for item in options.items() for part in item]
    command = [sys.executable, "-m", "depthvlm", "sft", *flat]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [line["depth_images"] for line in state["log_history"] if "depth_images" in line]
    start = dict(DepthVLMForConditionalGeneration.from_pretrained(checkpoint).named_parameters())
    end = dict(DepthVLMForConditionalGeneration.from_pretrained(tmp_path / "out").named_parameters())
    assert start.keys() == end.keys()
    moved = {name for name, parameter in end.items() if not torch.equal(parameter, start[name])}
    assert any(name.startswith("depth_head") for name in moved)
    assert any("language_model" in name for name in moved)
