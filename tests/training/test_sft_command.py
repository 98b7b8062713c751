"""`depthvlm sft`: every option of `trl sft` and our own, split between launcher and script, down to a real run."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
import typer
import yaml
from conftest import REPOSITORY
from depthvlm.hub_cards.push.package import select_checkpoint_files
from depthvlm.training.checkpoints import missing_in
from depthvlm.training.sft import make_parser
from loopback_hub import LoopbackHub
from loopback_repos import Token
from safetensors.torch import load_file
from toy_checkpoint import save_toy_checkpoint
from toy_training import save_toy_lines
from trl.scripts.sft import make_parser as make_trl_parser

from depthvlm.cli import sft as _command_sft
from depthvlm.cli.sft import launch, split_arguments

CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a toy checkpoint, RGB-D rows of all kinds, and two YAML files that use them."""
    folder = tmp_path_factory.mktemp("project")
    save_toy_checkpoint(folder / "toy")
    save_toy_lines(folder)
    (folder / "run.yaml").write_text(
        "model_name_or_path: toy\ndataset_name: rgbd.jsonl\noutput_dir: out\ntrainable: [head+llm]\n"
        "learning_rate: 0.01\n"
        "use_cpu: true\nbf16: false\nreport_to: none\nmax_steps: 2\nper_device_train_batch_size: 2\nlogging_steps: 1\n"
        "save_strategy: 'no'\nseed: 3\nnum_processes: 1\nenv:\n  FROM_THE_YAML: 'yes'\n"
    )
    return folder


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


def depthvlm(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "depthvlm", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def said_by(capsys, *args: str) -> str:
    """What the command says of arguments that it refuses, in one line, with exit code 2."""
    with pytest.raises(typer.Exit) as exit_:
        _command_sft.run(args)
    assert exit_.value.exit_code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("Error: ")
    assert "\n" not in message
    return message


# --- A real run


@pytest.mark.slow
def test_trains_and_saves(project):
    run = depthvlm(project, "sft", "--config", "run.yaml", "--output_dir", "trained")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert "'depth_loss'" in run.stdout
    assert "Model saved to trained." in run.stdout
    assert not re.search("kernels|deprecated|accelerate launch", run.stderr)  # noise of libraries
    before, after = (load_file(project / name / "model.safetensors") for name in ("toy", "trained"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} >= {"depth_head", "model"}
    assert not any(".visual." in name for name in changed)
    assert (project / "trained" / "processor_config.json").is_file()


@pytest.mark.slow
def test_losses_for_dense_truth_from_yaml_are_logged(project):
    (project / "dense.yaml").write_text("gradient_matching_weight: 0.5\nnormal_weight: 0.25\n")
    run = depthvlm(project, "sft", "--config", "run.yaml", "--config", "dense.yaml", "--output_dir", "dense")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    first = ast.literal_eval(re.search(r"\{'loss'.*?\}", run.stdout).group())
    parts = float(first["silog"]) + 0.5 * float(first["gradient_matching"]) + 0.25 * float(first["normal"])
    assert float(first["depth_loss"]) == pytest.approx(parts, rel=1e-3)  # four digits are printed
    (stage,) = yaml.safe_load((project / "dense" / "training_recipe.yaml").read_text())["stages"]
    assert stage["loss"]["gradient_matching_weight"] == 0.5
    assert stage["loss"]["normal_weight"] == 0.25


class Proxy(BaseHTTPRequestHandler):
    """Notes to which hosts connections are asked for, and opens none."""

    hosts: ClassVar[list[str]] = []

    def do_CONNECT(self) -> None:
        self.hosts.append(self.path)
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def outside(monkeypatch) -> Iterator[list[str]]:
    """The hosts that new processes ask for. None of the variables that switch telemetry off is set in them."""
    telling = "CI HF_HUB_DISABLE_TELEMETRY DISABLE_TELEMETRY DO_NOT_TRACK HF_UPDATE_DOWNLOAD_COUNTS"
    reaching = "HF_HUB_OFFLINE TRANSFORMERS_OFFLINE HF_ENDPOINT NO_PROXY no_proxy https_proxy"
    for name in f"{telling} {reaching}".split():
        monkeypatch.delenv(name, raising=False)
    Proxy.hosts.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
        yield Proxy.hosts
        server.shutdown()


@pytest.mark.slow
def test_a_run_on_local_files_tells_nobody(project, outside):
    sends = (
        "from datasets.load import increase_load_count; from huggingface_hub.utils import _telemetry, send_telemetry\n"
        "increase_load_count('json'); send_telemetry('ping'); _telemetry._TELEMETRY_QUEUE.join()"
    )
    subprocess.run([sys.executable, "-c", sends], check=True)
    assert {"s3.amazonaws.com:443", "huggingface.co:443"} <= set(outside)  # so they would be seen
    outside.clear()
    run = depthvlm(project, "sft", "--config", "run.yaml", "--output_dir", "untold")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert outside == []


@pytest.mark.slow
def test_a_bad_row_ends_it_with_one_message(project):
    rows = [json.loads(line) for line in (project / "rgbd.jsonl").read_text().splitlines()]
    bad = [{**row, "images": ["nothere.png"] * len(row["images"])} for row in rows]
    (project / "bad.jsonl").write_text("\n".join(map(json.dumps, bad)))
    options = ["--dataset_name", "bad.jsonl", "--dataloader_num_workers", "1"]
    run = depthvlm(project, "sft", "--config", "run.yaml", "--output_dir", "bad", *options)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    [line] = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert re.match(r"Error: row \d \(nothere.png\) cannot be used: .*no image file", line)


@pytest.mark.slow
def test_two_processes_push_what_they_trained_once(project, tmp_path):
    options = ["--accelerate_config", "cpu", "--num_processes", "2", "--max_steps", "1"]
    options += ["--push_to_hub", "true", "--hub_model_id", "ada/two"]
    with LoopbackHub({"hf_ada": Token("ada")}) as hub:
        home = {"HF_HOME": str(tmp_path), "HF_TOKEN": "hf_ada", "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        run = depthvlm(project, "sft", "--config", "run.yaml", "--output_dir", "pushed", *options, **home)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        there = hub.repo("ada/two").files()
    assert "Model pushed to the Hub as ada/two." in run.stdout
    del there[".gitattributes"]
    files = select_checkpoint_files(project / "pushed").files | {"README.md": project / "pushed" / "README.md"}
    assert there == {name: file.read_bytes() for name, file in files.items()}
    assert "world_size: 2" in there["training_recipe.yaml"].decode()


@pytest.mark.slow
def test_a_dry_run_prints_and_writes_nothing(project):
    before = sorted(project.iterdir())
    run = depthvlm(project, "sft", "--config", "run.yaml", "--output_dir", "dry", "--dry-run", "--push_to_hub", "true")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert sorted(project.iterdir()) == before
    parts = ("head", "llm", "merger", "vit")
    lines = [line.split() for line in run.stdout.splitlines()]
    head, llm, merger, vit = (next(line for line in lines if line[:1] == [part]) for part in parts)
    weights = load_file(project / "toy" / "model.safetensors")
    in_head = sum(weight.numel() for name, weight in weights.items() if name.startswith("depth_head."))
    assert head[1:] == [f"{in_head:,}", "0", "0.01"]
    assert llm[2] == "0"
    assert merger[1] == vit[1] == "0"
    assert "2 a device x 1 accumulated x 1 devices = 2 examples" in run.stdout
    assert ">>It is so" in run.stdout
    assert ">>What is number" not in run.stdout
    assert "<|image_pad|> x 6" in run.stdout
    assert "96x64, focal length 1000.0 px (focal_length); seen as 96x64 at 1000.0 px" in run.stdout
    assert "100.0 % valid" in run.stdout
    assert "total" in run.stdout


@pytest.mark.slow
def test_help_shows_every_option_and_a_failing_script_its_own_exit_code(project, monkeypatch):
    run = depthvlm(project, "sft", "--help")
    assert run.returncode == 0
    for option in ("learning_rate", "lora_r", "head_learning_rate", "dataset_generator", "dry-run", "config"):
        assert f"--{option}" in run.stdout
    assert "accelerate launch" in run.stdout
    (project / "fails.py").write_text("def rows(split):\n    import no_such_module\n")
    monkeypatch.chdir(project)
    arguments = ["--model_name_or_path", "toy", "--dataset_generator", "fails:rows", "--output_dir", "failed", *CPU]
    run = depthvlm(project, "sft", *arguments)
    assert run.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in run.stderr
    assert "CalledProcessError" not in run.stderr  # the script's traceback comes last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "options"),
    [
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGHUP, ["--accelerate_config", "cpu", "--num_processes", "2"]),
    ],
)
def test_a_signal_ends_every_process_and_names_the_last_checkpoint(project, tmp_path, ending, options):
    out = tmp_path / "out"
    given = ["--config", "run.yaml", "--output_dir", str(out), "--max_steps", "100000", "--save_strategy", "steps"]
    given += ["--save_steps", "1", "--save_total_limit", "2", *options]
    command = [sys.executable, "-m", "depthvlm", "sft", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")

    def heed() -> None:
        signal.signal(ending, signal.SIG_DFL)  # a shell's background jobs, such as a test run, inherit a deaf SIGINT

    run = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=heed)
    try:
        end = time.monotonic() + 240
        while not list(out.glob("checkpoint-*/checkpoint_files.json")) and run.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.2)
        started = psutil.Process(run.pid).children(recursive=True)
        assert len(started) >= 1 + len(options) // 4
        run.send_signal(ending)
        assert run.wait(90) == 128 + ending, (tmp_path / "log").read_text()[-3000:]
    finally:
        run.kill()
    assert not [process for process in started if process.is_running()]
    said = " ".join((tmp_path / "log").read_text().split())
    [last] = re.findall(rf"Stopped by {ending.name}\. The last checkpoint is (\S+): the same command with", said)
    assert missing_in(last) is None
    assert Path(last).parent == out


# --- Which option goes where


def test_all_of_trl_is_there_with_its_defaults():
    ours, trls = ({a.dest: a for a in parser._actions} for parser in (make_parser(), make_trl_parser()))
    assert set(trls) <= set(ours)
    differ = {name for name in trls if trls[name].default != ours[name].default}
    assert differ == {"max_length"}
    assert all(set(trls[name].option_strings) == set(ours[name].option_strings) for name in trls)


def test_a_yaml_of_trl_gives_the_same_values(tmp_path):
    file = tmp_path / "sft.yaml"
    file.write_text(
        "model_name_or_path: Qwen/Qwen2-0.5B\ndatasets:\n  - path: trl-lib/Capybara\n    split: train\n"
        "learning_rate: 2.0e-4\n"
        "packing: true\nmax_length: 512\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\noutput_dir: out\n"
        "use_cpu: true\nmodel_init_kwargs:\n  use_cache: false\nnum_processes: 2\n"
    )
    args = ["--config", str(file), "--lora_r", "8"]
    ours, trls = (
        parser.parse_args_and_config(args, return_remaining_strings=True)
        for parser in (make_parser(), make_trl_parser())
    )
    assert ours[-1] == trls[-1] == ["--num_processes", "2"]
    for mine, its in zip(ours[:-1], trls[:-1], strict=True):
        values = vars(its) | {"logging_dir": None}
        assert {k: v for k, v in vars(mine).items() if k in values and _plain(v)} == {
            k: v for k, v in values.items() if k in vars(mine) and _plain(v)
        }


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list | dict | None)


def test_launcher_and_script_options_part(here):
    given = ["--config=run.yaml", "--num_processes", "2", "--per_device_train_batch_size", "2", "--mixed_precision=no"]
    launcher, script = split_arguments(given)
    # Those of the YAML file first: the command line's, which come last, win.
    assert launcher == ["--num_processes", "1", "--num_processes", "2", "--mixed_precision=no"]
    assert script == ["--config", "run.yaml", "--per_device_train_batch_size", "2"]
    assert os.environ.pop("FROM_THE_YAML") == "yes"


def test_a_switch_of_the_launcher_in_a_yaml_file_is_true_or_false(here, capsys):
    (here / "switches.yaml").write_text((here / "run.yaml").read_text() + "multi_gpu: true\nno_python: false\n")
    launcher, _ = split_arguments(["--config", "switches.yaml"])
    assert launcher == ["--num_processes", "1", "--multi_gpu"]
    (here / "switches.yaml").write_text((here / "run.yaml").read_text() + "multi_gpu: 2\n")
    assert "`multi_gpu` in the YAML file is true or false, got '2'" in said_by(capsys, "--config", "switches.yaml")


def test_a_recipe_is_found_by_its_name_and_a_file_goes_before_it(here, capsys, monkeypatch):
    name = "nano_stage1.yaml"
    _, script = split_arguments(["--config", name, "--model_name_or_path", "toy"])
    assert script[1] == str(REPOSITORY / "training" / "recipes" / name)
    assert f"Recipe: {script[1]}" in capsys.readouterr().out
    (here / name).write_text((here / "run.yaml").read_text())
    try:
        _, script = split_arguments(["--config", name])
    finally:
        (here / name).unlink()
    assert script == ["--config", name]


def test_a_second_file_says_what_it_changes_and_the_command_line_goes_before_it(here, capsys):
    (here / "mine.yaml").write_text(
        "trainable: [head, llm]\nmax_steps: 7\nseed: 4\nbf16: false\nnum_processes: 2\n"
        "model_init_kwargs: {depth_config: {head_type: mlp}, note: a b}\n"
    )
    launcher, script = split_arguments(["--config", "run.yaml", "--seed", "5", "--config", "mine.yaml"])
    assert launcher == ["--num_processes", "1", "--num_processes", "2"]  # of two, argparse takes the last
    assert script[:2] == ["--config", "run.yaml"]
    given = [*script, "--use_cpu", "true"]
    _, training, *_ = make_parser().parse_args_and_config(given, return_remaining_strings=True)
    assert training.trainable == ["head", "llm"]
    assert (training.max_steps, training.seed, training.bf16) == (7, 5, False)
    assert training.learning_rate == 0.01  # the first file's
    assert training.model_init_kwargs == {"depth_config": {"head_type": "mlp"}, "note": "a b"}
    for content in ("datasets: [{path: a}]", "env: {A: b}", "seed:"):
        (here / "mine.yaml").write_text(content)
        key = content.partition(":")[0]
        assert f"`{key}` in mine.yaml cannot be said" in said_by(
            capsys, "--config", "run.yaml", "--config", "mine.yaml"
        )
    (here / "mine.yaml").write_text("a: [1")
    with pytest.raises(typer.Exit):
        _command_sft.run(["--config", "run.yaml", "--config", "mine.yaml"])
    assert "mine.yaml is not YAML" in capsys.readouterr().err
    assert "no recipe of that name" in said_by(capsys, "--config", "run.yaml", "--config", "../recipes/stage1.yaml")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fsdp2_1node.yaml", "training/accelerate/fsdp2_1node.yaml"),
        ("fsdp2_10nodes", "training/accelerate/fsdp2_10nodes.yaml"),
        ("zero3.yaml", "training/accelerate/zero3.yaml"),
        ("cpu", "training/accelerate/cpu.yaml"),
        ("zero3", "trl/accelerate_configs/zero3.yaml"),
        ("zero2", "trl/accelerate_configs/zero2.yaml"),
    ],
)
def test_launchers_are_found_by_name_and_trls_keep_theirs(here, name, file):
    launcher, script = split_arguments(["--config", "run.yaml", "--accelerate_config", name, "--num_processes", "4"])
    assert launcher[0] == "--config_file"
    assert launcher[1].endswith(file)
    assert launcher[2:] == ["--num_processes", "1", "--num_processes", "4"]
    assert script == ["--config", "run.yaml"]


# --- What is refused, in a line


CONFIG = ["--config", "run.yaml"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "nosuch.yaml"], "no file nosuch.yaml, and no recipe of that name: lora_1gpu.yaml"),
        (["--config"], "needs a file after it"),
        ([*CONFIG, "--learning_ratee", "1"], "Did you mean --learning_rate?"),
        ([*CONFIG, "--depth_loss_weight", "-1"], "expected a finite number"),
        ([*CONFIG, "--accelerate_config", "nosuch"], "none in TRL (fsdp1, fsdp2, multi_gpu"),
        ([*CONFIG, "--dataset_name", "nosuch.jsonl"], "no data at nosuch.jsonl"),
        ([*CONFIG, "--model_name_or_path", "./nosuch"], "no model folder ./nosuch"),
        ([*CONFIG, "--dataset_generator", "a:b"], "both name the data"),
        ([*CONFIG, "--dataset_name", "", "--dataset_generator", "a"], "expected 'package.module:function'"),
        ([*CONFIG, "--dataset_generator_kwargs", "{rows"], "which is not JSON"),
        (["--model_name_or_path", "toy", *CPU], "No data is named"),
        (["--dataset_name", "rgbd.jsonl", *CPU], "No model is named"),
        # A typo is told before what the rest leads to on this machine: bf16, which TRL asks for, is not there on a CPU.
        (["--modle", "x"], "`--modle` is an option neither"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_refused_in_a_line(here, capsys, args, words):
    assert words in said_by(capsys, *args)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"modle: x", "`--modle` is an option neither"),
        (b"3: x", "The key 3 in broken.yaml is no option"),
        (b"- a", "broken.yaml holds a list"),
        (b"a: \xff", "broken.yaml is not text in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(here, capsys, content, words):
    (here / "broken.yaml").write_bytes(content)
    assert words in said_by(capsys, "--config", "broken.yaml")


def test_a_file_that_is_not_yaml(here, capsys):
    (here / "broken.yaml").write_text("a: [")
    with pytest.raises(typer.Exit):
        _command_sft.run(["--config", "broken.yaml"])
    assert "broken.yaml is not YAML" in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(capsys, monkeypatch):
    monkeypatch.setattr(_command_sft, "TRAIN_PACKAGES", ("trl", "no_such_package"))
    assert said_by(capsys, "--help") == 'Error: Training needs no_such_package: pip install "depthvlm[train]"'


@pytest.mark.slow
def test_a_script_that_fails_ends_the_command_with_its_code(here):
    with pytest.raises(typer.Exit) as exit_:
        launch(["--num_processes", "1", "--cpu"], ["--config", "run.yaml", "--dataset_train_split", "nosuch"])
    assert exit_.value.exit_code == 2
