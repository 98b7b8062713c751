"""What `depthvlm push` puts on a Hub comes back in fresh processes with an empty cache, without the package."""

import json
from pathlib import Path

import numpy as np
import pytest
from bench_builds import build_toy
from bench_source import make_toy
from conftest import REPOSITORY
from fresh import HIDE_THE_PACKAGE, depth_here, python, save_noise
from huggingface_hub import CommitOperationAdd, HfApi
from loopback_hub import LoopbackHub
from loopback_repos import Fault, Token
from toy_checkpoint import change_weights, save_toy_checkpoint

pytestmark = pytest.mark.slow

# The depth of one image from two revisions, and which code it came from.
LOAD = """
import json, sys
import numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor

name, image, result, *revisions = sys.argv[1:]
depths, marks = {}, {}
for revision in revisions:
    pinned = {"revision": revision, "trust_remote_code": True}
    inputs = fresh.ask(AutoProcessor.from_pretrained(name, **pinned), Image.open(image), focal_length=1000.0)
    for code_revision in ({}, {"code_revision": revision}):
        model = AutoModel.from_pretrained(name, **pinned, **code_revision).eval()
        depths[f"{revision}{len(code_revision)}"] = model.predict_depth(**inputs)[0].numpy()
        marks[f"{revision}{len(code_revision)}"] = getattr(sys.modules[type(model).__module__], "MARK", None)
np.savez(result, **depths)
assert not [module for module in sys.modules if module.split(".")[0] == "depthvlm"]
print(json.dumps(marks))
"""


def with_hub(hub: LoopbackHub, home: Path, *command: object, **variables: str) -> tuple[str, str]:
    """What a process prints that knows this Hub alone and has `home` as its cache: output and errors."""
    done = python(*command, HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_TOKEN="hf_ada", **variables)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub({"hf_ada": Token("ada")}) as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = save_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    (folder / "training_args.bin").write_text("a pickle")
    return folder


@pytest.fixture(scope="module")
def first_commit(hub, checkpoint, tmp_path_factory) -> str:
    """Made by the command, in a fresh process over Xet; the upload is cut once."""
    hub.faults.append(Fault("POST /v1/xorbs/", "cut"))
    push = ("-m", "depthvlm", "push", checkpoint, "--repo", "ada/toy")
    said, _ = with_hub(hub, tmp_path_factory.mktemp("home"), *push, HF_XET_CLIENT_RETRY_BASE_DELAY="10ms")
    lines = said.splitlines()
    assert "Left out: training_args.bin (arguments of a training run, pickled)" in lines
    assert any(line.startswith("The model loads without the package, and gives the same depth") for line in lines)
    assert any(line.endswith("their hashes are those of the files here.") for line in lines)
    repo = hub.repo("ada/toy")
    assert lines[-1] == f"Commit: {hub.url}/ada/toy/commit/{repo.refs['refs/heads/main']}"
    assert hub.count("POST /v1/xorbs/") == 2
    return repo.refs["refs/heads/main"]


def test_what_the_hub_has_is_what_was_here(hub, checkpoint, first_commit):
    there = hub.repo("ada/toy").files(first_commit)
    assert there.pop("README.md").startswith(b"---\n")
    del there[".gitattributes"]
    here = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != "training_args.bin"}
    assert there == here


def test_revisions_pin_weights_and_code(hub, checkpoint, first_commit, tmp_path):
    """A second commit has other weights and other code; each revision gives its own, in one process."""
    second = save_toy_checkpoint(tmp_path / "second")
    bias = "depth_head.scratch.output_conv2.2.bias"
    change_weights(second, lambda weights: weights | {bias: weights[bias] + 1})
    code = (checkpoint / "modeling_depthvlm.py").read_text() + '\nMARK = "second"\n'
    changed = {"model.safetensors": second / "model.safetensors", "modeling_depthvlm.py": code.encode()}
    operations = [CommitOperationAdd(name, content) for name, content in changed.items()]
    api = HfApi(endpoint=hub.url, token="hf_ada")
    api.create_commit("ada/toy", operations, commit_message="other weights and code")
    picture = save_noise(tmp_path / "image.png")
    hub.faults.append(Fault("GET /cdn/", "cut answer"))  # the download of the weights is cut once
    arguments = ["ada/toy", picture, tmp_path / "depth.npz", first_commit, "main"]
    said, _ = with_hub(hub, tmp_path / "home", "-c", HIDE_THE_PACKAGE + LOAD, *arguments)
    assert not [fault for fault in hub.faults if fault.times]
    marks = json.loads(said.splitlines()[-1])
    assert marks == {f"{first_commit}0": None, f"{first_commit}1": None, "main0": "second", "main1": "second"}
    depths = np.load(tmp_path / "depth.npz")
    mine, others = (depth_here(folder, picture, 1000.0) for folder in (checkpoint, second))
    assert np.abs(mine - others).min() > 0.1
    for way in "01":
        np.testing.assert_array_equal(depths[f"{first_commit}{way}"], mine)
        np.testing.assert_array_equal(depths[f"main{way}"], others)


READ = """
import json, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train")
print(json.dumps({"ids": list(rows["id"]), "size": rows[0]["image"].size, "points": len(rows[0]["points"])}))
"""


def test_a_build_comes_back_as_a_data_set(hub, tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    make_toy(root)
    entry = build_toy(root, out)
    push = ("-m", "depthvlm", "push", out, "--dataset", "--repo", "ada/bench", "--private")
    assert "The dataset loads without the package: default/train." in with_hub(hub, tmp_path / "home", *push)[0]
    there = hub.repo("ada/bench", "dataset").files()
    shards = [shard["file"] for shard in entry["shards"]]
    assert len(shards) > 1
    assert sorted(there) == sorted([".gitattributes", "README.md", "manifest.json", *shards])
    assert all(there[name] == (out / name).read_bytes() for name in shards)
    read, _ = with_hub(hub, tmp_path / "other home", "-c", HIDE_THE_PACKAGE + READ, "ada/bench")
    rows = json.loads(read.splitlines()[-1])
    assert len(rows["ids"]) == entry["counts"]["rows"]
    assert len(set(rows["ids"])) == len(rows["ids"])


SCORE = """
import json, sys
import evaluate
metric = evaluate.load(sys.argv[1])
print(json.dumps(metric.compute(predictions=[[1.0, 2.0], [3.0]], references=[[1.0, 4.0], [3.0]])))
"""


def test_the_metric_comes_back_with_evaluate(hub, tmp_path):
    """Pushed, and pushed again; then the numbers of two images: delta1 1/2 and 1, abs_rel 1/4 and 0."""
    command = ("-m", "depthvlm", "push", "--metric", "--repo", "ada/depth_metrics")
    said, _ = with_hub(hub, tmp_path / "home", *command)
    assert "The space loads with evaluate, and scores two points as they are scored by hand." in said
    space = hub.repo("ada/depth_metrics", "space")
    assert sorted(space.files()) == [".gitattributes", "README.md", "app.py", "depth_metrics.py", "requirements.txt"]
    module = REPOSITORY / "benchmark" / "depth_metrics" / "depth_metrics.py"
    assert space.files()["depth_metrics.py"] == module.read_bytes()
    assert space.titles == ["initial commit", "Upload space with depthvlm push"]
    assert "All is there already" in with_hub(hub, tmp_path / "home", *command)[0]
    assert not space.variables
    scored, _ = with_hub(hub, tmp_path / "other home", "-c", SCORE, "ada/depth_metrics")
    result = json.loads(scored.splitlines()[-1])
    assert (result["delta1"], result["abs_rel"], result["images"], result["pixels"]) == (0.75, 0.125, 2, 3)
    assert list((tmp_path / "other home").rglob("depth_metrics.py"))


SAY = """
import sys, transformers
transformers.__version__ = sys.argv[2]
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)
"""


def test_another_transformers_is_told_on_load(hub, checkpoint, tmp_path):
    said, warned = with_hub(hub, tmp_path / "home", "-c", HIDE_THE_PACKAGE + SAY, checkpoint, "5.24.0")
    assert said == "DepthVLMConfig\n"
    assert "tested with transformers 5.18 to 5.23, and 5.24.0 is installed, which is newer" in warned
