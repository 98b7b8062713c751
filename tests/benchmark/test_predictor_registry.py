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
from toy_source_files import write_text

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


def own_server(model: str, url: str) -> dict:
    return {"model": model, "base_url": url, "api_key_env": None}


@pytest.mark.parametrize("spec", ["unidepth-v2-l", "UniDepth V2 L", "unidepth_v2_l", " Unidepth-V2-L "])
def test_keys_are_read_kindly(spec):
    assert find_system(spec) is SYSTEMS["unidepth-v2-l"]


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("unidepht-v2-l", {}, "no predictor 'unidepht-v2-l'. Did you mean .*unidepth-v2-l"),
        ("DepthPro", {}, "no predictor 'DepthPro'. Did you mean .*depth-pro"),
        ("qwen3-vl-9b", {}, "no predictor 'qwen3-vl-9b'. Did you mean .*qwen3-vl-8b"),
        ("Always Output 2m", {}, "no predictor 'Always Output 2m'. Did you mean .*always-2m"),
        ("InternVL3.5-38", {}, "no predictor 'InternVL3.5-38'. Did you mean .*internvl3.5-38b"),
        ("xyzzy", {}, "no predictor 'xyzzy'. `depthvlm bench list`.*pipeline:HUB_ID.*vlm:HUB_ID"),
        ("always-2m", {"device": "cpu"}, r"'always-2m' does not take device\. It takes metres\."),
        ("oracle", {"metres": 1.0}, r"'oracle' does not take metres\. It takes nothing\."),
    ],
)
def test_unknown_names_and_options(spec, options, words):
    with pytest.raises(ValueError, match=words):
        make_predictor(spec, **options)


class TestPrefixes:
    @pytest.mark.parametrize(
        ("spec", "kind", "module", "kwargs"),
        [
            ("depthvlm:runs/mine", "dense", "ours", {"model": "runs/mine"}),
            ("depthvlm:~/mine", "dense", "ours", {"model": os.path.expanduser("~/mine")}),
            ("pipeline:some/model", "dense", "transformers_depth", {"model": "some/model"}),
            ("vlm:some/model", "points", "arrow_vlm", {"model": "some/model"}),
            ("api:gpt-4o", "points", "api", {"model": "gpt-4o"}),
            ("api:a/b@http://localhost:8000/v1", "points", "api", own_server("a/b", "http://localhost:8000/v1")),
            ("api:b@c@https://d.e/v1", "points", "api", own_server("b@c", "https://d.e/v1")),
        ],
    )
    def test_any_model(self, spec, kind, module, kwargs):
        system = find_system(spec)
        found = (system.name, system.kind, system.kwargs, system.target.split(":")[0])
        assert found == (spec, kind, kwargs, f".{module}")
        # A key goes to its own server only.
        assert system.requirement.environment == (("OPENAI_API_KEY",) if spec == "api:gpt-4o" else ())

    @pytest.mark.parametrize(
        "spec", ["depthvlm:", "pipeline: ", "vlm:", "api:", "api:m@", "api:m@localhost:8000", "api:@http://a"]
    )
    def test_incomplete(self, spec):
        with pytest.raises(ValueError, match="is not complete: give"):
            find_system(spec)


class TestCanRun:
    def can(self, *options, **values: object) -> tuple[bool, str]:
        return can_run(System("a system", "nowhere:Nothing", **values), *options)  # type: ignore[arg-type]

    def test_packages_options_and_environment(self, monkeypatch):
        assert self.can(requirement=Requirement()) == (True, "")
        needs = Requirement(packages=("numpy", "no_such_thing", "nor_this"), install="pip install both")
        missing = "no_such_thing, nor_this are not installed. pip install both"
        assert self.can(requirement=needs) == (False, missing)
        needs = Requirement(environment=("A_KEY",), install="get one")
        monkeypatch.delenv("A_KEY", raising=False)
        assert self.can(requirement=needs) == (False, "A_KEY is not set. get one")
        monkeypatch.setenv("A_KEY", "1")
        assert self.can(requirement=needs) == (True, "")
        told = {"required_options": ("levels", "depth_range")}
        assert self.can(**told) == (False, "needs to be told: levels, depth_range")
        assert self.can(("levels",), **told) == (False, "needs to be told: depth_range")
        assert self.can(("levels", "depth_range"), **told) == (True, "")

    @pytest.mark.parametrize(
        ("found", "answer"),
        [
            (0.0, (False, "needs about 20 GiB of GPU memory, none here")),
            (15.8, (False, "needs about 20 GiB of GPU memory, 16 GiB here")),
            (24.0, (True, "")),
        ],
    )
    def test_gpu_memory(self, monkeypatch, found, answer):
        monkeypatch.setattr(availability, "gpu_gib", lambda: found)
        assert self.can(requirement=Requirement(gpu_gib=20)) == answer

    def test_weights(self, monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert self.can(weights="owner/model") == (True, "downloads owner/model first")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        missing = "owner/model is not in the cache, and HF_HUB_OFFLINE is set"
        assert self.can(weights="owner/model") == (False, missing)
        repository = tmp_path / "models--owner--model"
        write_text(repository / "snapshots/abc/model.safetensors", "")
        write_text(repository / "refs/main", "abc")
        assert self.can(weights="owner/model") == (True, "")
        assert self.can(weights=str(tmp_path)) == (True, "")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        assert self.can(weights="torch.hub:a.pth") == (True, "downloads a.pth first")
        write_text(tmp_path / "checkpoints/a.pth", "")
        assert self.can(weights="torch.hub:a.pth") == (True, "")

    def test_a_package_that_lacks_what_is_imported(self, monkeypatch, tmp_path):
        """A package may be there and its import fail, as UniDepth's V1 and Depth Anything 3 do: the import decides."""
        (tmp_path / "there_and_broken.py").write_text("import not_there_at_all")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        needs = Requirement(("there_and_broken",), install="Do this", imports=("import there_and_broken",))
        why = "`import there_and_broken` fails: ModuleNotFoundError: No module named 'not_there_at_all'. Do this"
        assert self.can(requirement=needs) == (False, why)
        assert self.can(requirement=replace(needs, imports=("import json",))) == (True, "")


def test_the_list_shows_every_system_and_asks_nobody(monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the list wanted something from outside")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load", refuse)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(availability, "gpu_gib", lambda: 16.0)
    out = io.StringIO()
    list_systems(Console(file=out, width=220))
    shown = {line.split()[0]: line for line in reversed(out.getvalue().splitlines()) if line.strip()}
    assert set(SYSTEMS) < set(shown)
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
