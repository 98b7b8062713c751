"""What `depthvlm push` puts on a Hub comes back in fresh processes with an empty cache, without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_builds import build_toy
from bench_source import make_toy
from conftest import REPOSITORY
from huggingface_hub import CommitOperationAdd, HfApi
from loopback_hub import LoopbackHub
from loopback_repos import Fault, Token
from safetensors.torch import load_file, save_file
from test_remote_code import HIDE_THE_PACKAGE
from toy_checkpoint import save_toy_checkpoint

from depthvlm import DepthVLMForConditionalGeneration

pytestmark = pytest.mark.slow

# The depth of one image from two revisions, and which code it came from.
LOAD = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

name, image, result, *revisions = sys.argv[1:]
torch.set_num_threads(1)
image, depths, marks = Image.open(image), {}, {}
for revision in revisions:
    pinned = {"revision": revision, "trust_remote_code": True}
    processor = AutoProcessor.from_pretrained(name, **pinned)
    inputs = processor(images=[image], text=[processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How far?"}]}],
        add_generation_prompt=True)], focal_length=1000.0, return_tensors="pt")
    for code_revision in ({}, {"code_revision": revision}):
        model = AutoModel.from_pretrained(name, **pinned, **code_revision).eval()
        depths[f"{revision}{len(code_revision)}"] = model.predict_depth(**inputs)[0].numpy()
        marks[f"{revision}{len(code_revision)}"] = getattr(sys.modules[type(model).__module__], "MARK", None)
np.savez(result, **depths)
assert not [module for module in sys.modules if module.split(".")[0] == "depthvlm"]
print(json.dumps(marks))
"""


def fresh(hub: LoopbackHub, home: Path, *command: object, **variables: str) -> subprocess.CompletedProcess:
    """A process that knows this Hub alone and has nothing in its cache."""
    known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_ada", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=kept | known | variables, capture_output=True, text=True, check=False
    )


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
    home = tmp_path_factory.mktemp("home")
    pushed = fresh(
        hub, home, "-m", "depthvlm", "push", checkpoint, "--repo", "ada/toy", HF_XET_CLIENT_RETRY_BASE_DELAY="10ms"
    )
    assert pushed.returncode == 0, pushed.stderr
    lines = pushed.stdout.splitlines()
    assert "Left out: training_args.bin (arguments of a training run, pickled)" in lines
    assert any(line.startswith("The model loads without the package, and gives the same depth") for line in lines)
    assert any(line.endswith("their hashes are those of the files here.") for line in lines)
    repo = hub.repo("ada/toy")
    assert lines[-1] == f"Commit: {hub.url}/ada/toy/commit/{repo.refs['refs/heads/main']}"
    assert hub.count("POST /v1/xorbs/") == 2
    return repo.refs["refs/heads/main"]


def expected_depth(folder: Path, picture: Path) -> np.ndarray:
    """With the package, in this process."""
    from PIL import Image

    from depthvlm import DepthVLMProcessor

    processor = DepthVLMProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How far?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[Image.open(picture)], text=[text], focal_length=1000.0, return_tensors="pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    depth = DepthVLMForConditionalGeneration.from_pretrained(folder).predict_depth(**inputs)[0].numpy()
    torch.set_num_threads(threads)
    return depth


def test_what_the_hub_has_is_what_was_here(hub, checkpoint, first_commit):
    there = hub.repo("ada/toy").files(first_commit)
    assert there.pop("README.md").startswith(b"---\n")
    del there[".gitattributes"]
    here = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != "training_args.bin"}
    assert there == here


def test_revisions_pin_weights_and_code(hub, checkpoint, first_commit, tmp_path):
    """A second commit has other weights and other code; each revision gives its own, in one process."""
    second = tmp_path / "second"
    second.mkdir()
    weights = load_file(checkpoint / "model.safetensors")
    bias = next(name for name in reversed(weights) if name.startswith("depth_head.") and weights[name].shape == (1,))
    save_file(weights | {bias: weights[bias] + 1}, second / "model.safetensors", {"format": "pt"})
    code = (checkpoint / "modeling_depthvlm.py").read_text() + '\nMARK = "second"\n'
    api = HfApi(endpoint=hub.url, token="hf_ada")
    changed = {"model.safetensors": second / "model.safetensors", "modeling_depthvlm.py": code.encode()}
    operations = [CommitOperationAdd(name, content) for name, content in changed.items()]
    api.create_commit("ada/toy", operations, commit_message="other weights and code")
    for file in checkpoint.iterdir():
        if file.name != "model.safetensors" and file.suffix in (".json", ".jinja"):
            (second / file.name).write_bytes(file.read_bytes())

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    hub.faults.append(Fault("GET /cdn/", "cut answer"))  # the download of the weights is cut once
    script = HIDE_THE_PACKAGE + LOAD
    arguments = ["ada/toy", tmp_path / "image.png", tmp_path / "depth.npz", first_commit, "main"]
    loaded = fresh(hub, tmp_path / "home", "-c", script, *arguments)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert not [fault for fault in hub.faults if fault.times]
    marks = json.loads(loaded.stdout.splitlines()[-1])
    assert marks == {f"{first_commit}0": None, f"{first_commit}1": None, "main0": "second", "main1": "second"}
    depths = np.load(tmp_path / "depth.npz")
    mine, others = (expected_depth(folder, tmp_path / "image.png") for folder in (checkpoint, second))
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
    pushed = fresh(
        hub, tmp_path / "home", "-m", "depthvlm", "push", out, "--dataset", "--repo", "ada/bench", "--private"
    )
    assert pushed.returncode == 0, pushed.stderr
    assert "The dataset loads without the package: default/train." in pushed.stdout
    there = hub.repo("ada/bench", "dataset").files()
    shards = [shard["file"] for shard in entry["shards"]]
    assert len(shards) > 1
    assert sorted(there) == sorted([".gitattributes", "README.md", "manifest.json", *shards])
    assert all(there[name] == (out / name).read_bytes() for name in shards)
    read = fresh(hub, tmp_path / "other home", "-c", HIDE_THE_PACKAGE + READ, "ada/bench")
    assert read.returncode == 0, read.stderr[-3000:]
    rows = json.loads(read.stdout.splitlines()[-1])
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
    pushed = fresh(hub, tmp_path / "home", *command)
    assert pushed.returncode == 0, pushed.stderr
    assert "The space loads with evaluate, and scores two points as they are scored by hand." in pushed.stdout
    space = hub.repo("ada/depth_metrics", "space")
    assert sorted(space.files()) == [".gitattributes", "README.md", "app.py", "depth_metrics.py", "requirements.txt"]
    module = REPOSITORY / "benchmark" / "depth_metrics" / "depth_metrics.py"
    assert space.files()["depth_metrics.py"] == module.read_bytes()
    assert space.titles == ["initial commit", "Upload space with depthvlm push"]
    assert "All is there already" in fresh(hub, tmp_path / "home", *command).stdout
    assert not space.variables
    scored = fresh(hub, tmp_path / "other home", "-c", SCORE, "ada/depth_metrics")
    assert scored.returncode == 0, scored.stderr[-3000:]
    result = json.loads(scored.stdout.splitlines()[-1])
    assert (result["delta1"], result["abs_rel"], result["images"], result["pixels"]) == (0.75, 0.125, 2, 3)
    assert list((tmp_path / "other home").rglob("depth_metrics.py"))


SAY = """
import sys, transformers
transformers.__version__ = sys.argv[2]
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)
"""


def test_another_transformers_is_told_on_load(hub, checkpoint, tmp_path):
    loaded = fresh(hub, tmp_path / "home", "-c", HIDE_THE_PACKAGE + SAY, checkpoint, "5.24.0")
    assert loaded.stdout == "DepthVLMConfig\n", loaded.stderr
    assert "tested with transformers 5.18 to 5.23, and 5.24.0 is installed, which is newer" in loaded.stderr
