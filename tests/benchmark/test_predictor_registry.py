"""The registry: every system of the paper, by name, and whether it can run here."""

import inspect
import io
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from depthvlm.benchmark import systems
from depthvlm.benchmark.report.published import published_table
from depthvlm.benchmark.systems import SYSTEMS, System, availability, can_run, find_system, make_predictor
from depthvlm.benchmark.systems.interface import DensePredictor, PointPredictor, Requirement
from huggingface_hub import constants
from rich.console import Console

from depthvlm.cli.bench_eval import list_systems


def test_every_system_of_the_tables_is_there():
    tables = {number for system in SYSTEMS.values() for number in system.tables}
    assert tables == {1, 2, 3, 8}
    for number in tables:
        listed = {row.name for row in published_table(number).rows()}
        assert listed == {system.name for system in SYSTEMS.values() if number in system.tables}


@pytest.mark.parametrize("key", SYSTEMS)
def test_an_entry_fits_its_class(key):
    system = SYSTEMS[key]
    module, _, name = system.target.partition(":")
    loaded = getattr(import_module(module, systems.__name__), name)
    assert issubclass(loaded, DensePredictor if system.kind == "dense" else PointPredictor)
    inspect.signature(loaded).bind(**system.kwargs, **dict.fromkeys(system.required_options))
    assert not system.requirement.packages or system.requirement.install


def test_naming_systems_costs_no_model_library():
    code = (
        "import sys\n"
        "sys.argv = ['depthvlm']  # the command registers nothing before it loads a model\n"
        "from depthvlm.benchmark.systems import SYSTEMS, find_system\n"
        "[find_system(key) for key in SYSTEMS]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spec", ["unidepth-v2-l", "UniDepth V2 L", "unidepth_v2_l", " Unidepth-V2-L "])
def test_keys_are_read_kindly(spec):
    assert find_system(spec) is SYSTEMS["unidepth-v2-l"]


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("unidepht-v2-l", "unidepth-v2-l"),
        ("DepthPro", "depth-pro"),
        ("qwen3-vl-9b", "qwen3-vl-8b"),
        ("Always Output 2m", "always-2m"),
        ("InternVL3.5-38", "internvl3.5-38b"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(spec, near):
    with pytest.raises(ValueError, match=rf"no predictor '{spec}'. Did you mean .*{near}"):
        make_predictor(spec)


def test_a_name_that_is_near_nothing():
    with pytest.raises(ValueError, match=r"no predictor 'xyzzy'. `depthvlm bench list`.*pipeline:HUB_ID.*vlm:HUB_ID"):
        find_system("xyzzy")


class TestPrefixes:
    @pytest.mark.parametrize(
        ("spec", "kind", "module", "kwargs"),
        [
            ("depthvlm:runs/mine", "dense", "ours", {"model": "runs/mine"}),
            ("depthvlm:~/mine", "dense", "ours", {"model": os.path.expanduser("~/mine")}),
            ("pipeline:some/model", "dense", "transformers_depth", {"model": "some/model"}),
            ("vlm:some/model", "points", "arrow_vlm", {"model": "some/model"}),
            ("api:gpt-4o", "points", "api", {"model": "gpt-4o"}),
            (
                "api:a/b@http://localhost:8000/v1",
                "points",
                "api",
                {"model": "a/b", "base_url": "http://localhost:8000/v1", "api_key_env": None},
            ),
            (
                "api:b@c@https://d.e/v1",
                "points",
                "api",
                {"model": "b@c", "base_url": "https://d.e/v1", "api_key_env": None},
            ),
        ],
    )
    def test_any_model(self, spec, kind, module, kwargs):
        system = find_system(spec)
        assert system.name == spec
        assert system.kind == kind
        assert system.kwargs == kwargs
        assert system.target.split(":")[0] == f".{module}"

    def test_a_key_goes_to_its_own_server_only(self):
        assert find_system("api:gpt-4o").requirement.environment == ("OPENAI_API_KEY",)
        assert find_system("api:m@http://localhost:1/v1").requirement.environment == ()

    @pytest.mark.parametrize(
        "spec", ["depthvlm:", "pipeline: ", "vlm:", "api:", "api:m@", "api:m@localhost:8000", "api:@http://a"]
    )
    def test_incomplete(self, spec):
        with pytest.raises(ValueError, match="is not complete: give"):
            find_system(spec)


def test_options_that_a_class_does_not_take():
    with pytest.raises(ValueError, match=r"'always-2m' does not take device\. It takes metres\."):
        make_predictor("always-2m", device="cpu")
    with pytest.raises(ValueError, match=r"'oracle' does not take metres\. It takes nothing\."):
        make_predictor("oracle", metres=1.0)


class TestCanRun:
    def system(self, **values: object) -> System:
        return System("a system", "nowhere:Nothing", **values)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("needs", "answer"),
        [
            (Requirement(), (True, "")),
            (
                Requirement(packages=("numpy", "no_such_thing", "nor_this"), install="pip install both"),
                (False, "no_such_thing, nor_this are not installed. pip install both"),
            ),
        ],
    )
    def test_packages(self, needs, answer):
        assert can_run(self.system(requirement=needs)) == answer

    def test_environment(self, monkeypatch):
        system = self.system(requirement=Requirement(environment=("A_KEY",), install="get one"))
        monkeypatch.delenv("A_KEY", raising=False)
        assert can_run(system) == (False, "A_KEY is not set. get one")
        monkeypatch.setenv("A_KEY", "1")
        assert can_run(system) == (True, "")

    def test_options(self):
        system = self.system(required_options=("levels", "depth_range"))
        assert can_run(system) == (False, "needs to be told: levels, depth_range")
        assert can_run(system, ("levels",)) == (False, "needs to be told: depth_range")
        assert can_run(system, ("levels", "depth_range")) == (True, "")

    def test_gpu_memory(self, monkeypatch):
        system = self.system(requirement=Requirement(gpu_gib=20))
        for found, answer in [
            (0.0, (False, "needs about 20 GiB of GPU memory, none here")),
            (15.8, (False, "needs about 20 GiB of GPU memory, 16 GiB here")),
            (24.0, (True, "")),
        ]:
            monkeypatch.setattr(availability, "gpu_gib", lambda found=found: found)
            assert can_run(system) == answer

    def test_weights(self, monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        system = self.system(weights="owner/model")
        assert can_run(system) == (True, "downloads owner/model first")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert can_run(system) == (False, "owner/model is not in the cache, and HF_HUB_OFFLINE is set")
        repository = tmp_path / "models--owner--model"
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "snapshots" / "abc" / "model.safetensors").touch()
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        assert can_run(system) == (True, "")
        assert can_run(self.system(weights=str(tmp_path))) == (True, "")

    def test_a_package_that_lacks_what_is_imported(self, monkeypatch, tmp_path):
        """A package may be there and its import fail, as UniDepth's V1 and Depth Anything 3 do: the import decides."""
        (tmp_path / "there_and_broken.py").write_text("import not_there_at_all")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        needs = Requirement(("there_and_broken",), install="Do this", imports=("import there_and_broken",))
        able, why = can_run(self.system(requirement=needs))
        assert not able
        assert why == (
            "`import there_and_broken` fails: ModuleNotFoundError: No module named 'not_there_at_all'. Do this"
        )
        assert can_run(self.system(requirement=replace(needs, imports=("import json",)))) == (True, "")

    def test_weights_of_torch_hub(self, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        system = self.system(weights="torch.hub:a.pth")
        assert can_run(system) == (True, "downloads a.pth first")
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "a.pth").touch()
        assert can_run(system) == (True, "")


def test_the_list_shows_every_system_and_asks_nobody(monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the list wanted something from outside")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load", refuse)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(availability, "gpu_gib", lambda: 16.0)
    out = io.StringIO()
    list_systems(Console(file=out, width=220))
    lines = out.getvalue().splitlines()
    first_words = [line.split()[0] for line in lines if line.strip()]
    assert set(SYSTEMS) < set(first_words)
    shown = {key: next(line for line in lines if line.split()[:1] == [key]) for key in SYSTEMS}
    assert shown["always-2m"].split()[-4:] == ["dense", "1", "-", "yes"]
    assert shown["oracle"].split()[-4:] == ["points", "-", "-", "yes"]
    assert shown["depthvlm-4b"].split()[3:7] == ["1,", "2,", "3,", "8"]
    assert "OPENAI_API_KEY" in shown["gpt-4o"]
    assert shown["gpt-4o"].split()[-1] == "yes"
    assert "secret" not in out.getvalue()
    assert "no: needs about 72 GiB of GPU memory, 16 GiB here" in shown["qwen3-vl-32b"]
    assert "depth_range=, levels=" in shown["youtu-vl-4b"]
    assert 'pip install "depthvlm[metric3d]"' in out.getvalue().replace("\n", " ")
    assert "api:MODEL@BASE_URL" in out.getvalue()
