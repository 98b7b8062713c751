"""`depthvlm serve` up to the command that starts vLLM; `make test-vllm` starts it."""

import json
from importlib.metadata import EntryPoint, requires

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from toy_checkpoint import make_foreign, save_toy_checkpoint
from typer.testing import CliRunner

from depthvlm.checkpoint import bundled_model_path
from depthvlm.cli.app import app
from depthvlm.serving.command import SUPPORTED_VLLM, TESTED_VLLM, vllm_command, vllm_environment


def test_depth_is_a_pooling_model_and_words_are_not():
    depth, words = (vllm_command("depthvlm-nano", words, ["--port", "1"]) for words in (False, True))
    for command in (depth, words):
        assert command[command.index("--model") + 1] == str(bundled_model_path())
        assert command[command.index("--served-model-name") + 1] == "depthvlm-nano"
        assert command[-2:] == ["--port", "1"]
    overrides = json.loads(depth[depth.index("--hf-overrides") + 1])
    assert overrides == {"architectures": ["DepthVLMForDepthEstimation"]}
    assert depth[depth.index("--runner") + 1] == "pooling"
    assert "--runner" not in words


@pytest.mark.parametrize("published", [False, True])
def test_what_vllm_cannot_serve_is_refused_before_it_starts(tmp_path, published):
    plain = make_foreign(save_toy_checkpoint(tmp_path / "plain"), published)
    with pytest.raises(ValueError, match=r"model_type='qwen3_vl'.*depthvlm convert"):
        vllm_command(str(plain), words=False)


def test_without_vllm_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("depthvlm.cli.app.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["serve", "depthvlm-nano"])
    assert result.exit_code == 1
    assert 'pip install "depthvlm[vllm]"' in result.output


def test_the_extra_has_the_bounds_that_the_plugin_tells():
    extras = [one for one in map(Requirement, requires("depthvlm")) if one.name == "vllm"]
    assert [one.specifier for one in extras] == [SpecifierSet(SUPPORTED_VLLM)]
    assert TESTED_VLLM in SpecifierSet(SUPPORTED_VLLM)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"depthvlm", "theirs"}),  # as without the variable, but for the other package's routes
        ("", {"depthvlm"}),
        ("theirs,routes", {"depthvlm", "theirs", "routes"}),
    ],
)
def test_vllm_is_allowed_our_route_and_no_one_elses(monkeypatch, given, expected):
    installed = {
        "vllm.general_plugins": ["depthvlm", "theirs", "routes"],
        "vllm.endpoint_plugins": ["depthvlm", "routes"],
    }
    monkeypatch.setattr(
        "depthvlm.serving.command.entry_points",
        lambda group: [EntryPoint(name, "a:b", group) for name in installed.get(group, [])],
    )
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if given is not None:
        monkeypatch.setenv("VLLM_PLUGINS", given)
    assert set(vllm_environment()["VLLM_PLUGINS"].split(",")) == expected
