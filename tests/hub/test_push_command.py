"""`depthvlm push` from its options to what it says, and what the trainer pushes. The proof runs in fresh processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_builds import build_toy
from bench_source import make_toy
from command_line import run
from depthvlm.hub_cards.push import prove
from depthvlm.hub_cards.push.package import PushError, pack_build, select_checkpoint_files
from loopback_hub import connected_hub
from loopback_repos import Token
from peft import LoraConfig
from safetensors.torch import load, load_file
from toy_checkpoint import leave_out, save_toy_checkpoint
from toy_results import make
from toy_training import settings, toy_dataset, toy_row

from depthvlm import DepthSFTTrainer, __version__
from depthvlm.checkpoint import checkpoint_hash


@pytest.fixture
def hub(tmp_path):
    with connected_hub({"hf_ada": Token("ada")}, tmp_path) as hub:
        yield hub


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save_toy_checkpoint(tmp_path / "toy")


@pytest.fixture
def no_proof(monkeypatch):
    """Where it is not what is tested: it takes two processes that load torch."""
    monkeypatch.setattr(prove, "_run", lambda how, arguments, scratch: np.savez(arguments[2], depth=np.ones((2, 2))))


def push(*arguments: object, code: int = 0) -> str:
    return run("push", *arguments, code=code).output


def test_a_dry_run_shows_files_sizes_and_card_and_contacts_nobody(hub, checkpoint, no_proof, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (checkpoint / "optimizer.pt").write_text("x")
    told = push(checkpoint, "--repo", "ada/toy", "--license", "apache-2.0", "--dry-run")
    lines = [" ".join(line.split()) for line in told.splitlines()]
    size = (checkpoint / "config.json").stat().st_size
    assert f"config.json {size / 1000:.1f} kB" in lines
    assert "Left out: optimizer.pt (pickled)" in lines
    assert "license: apache-2.0" in lines
    assert "# toy" in lines
    assert "Dry run: nothing was sent." in lines
    assert hub.requests == []


@pytest.mark.parametrize("first", [True, False], ids=["checkpoint first", "results first"])
def test_results_by_a_shells_pattern(hub, checkpoint, no_proof, tmp_path, first):
    """README's `--results results/*/*/*.json`: the shell gives one option with many files behind it."""
    scores = {"waymo": 0.611, "ddad": 0.622, "nyuv2": 0.633}
    mine = {"checkpoint": checkpoint_hash(checkpoint)}
    files = [make(tmp_path / "r", each, score, **mine) for each, score in scores.items()]
    parts = [[checkpoint, "--repo", "ada/toy"], ["--results", *files]]
    told = push(*parts[not first], *parts[first], "--dry-run")
    assert all(f"{score:.3f}" in told for score in scores.values())
    assert "is no checkpoint. Results for its card follow --results" in push(*files, "--repo", "ada/toy", code=2)


@pytest.mark.slow
def test_the_proof_runs_the_checkpoints_own_weights(checkpoint):
    """Finite depth, all weights there: what static checks cannot see. One broken checkpoint, in a fresh process."""
    removed = next(name for name in load_file(checkpoint / "model.safetensors") if name.startswith("depth_head."))
    leave_out(checkpoint, removed)
    with pytest.raises(PushError, match=f"fresh process without the package failed:\n(.|\n)*missing_keys {removed}"):
        prove.prove_model(select_checkpoint_files(checkpoint).files)


def test_depths_that_differ_are_told(checkpoint, monkeypatch):
    depths = iter([np.ones((2, 3), np.float32), np.ones((2, 3), np.float32) + np.float32(2**-10)])
    monkeypatch.setattr(prove, "_run", lambda how, arguments, scratch: np.savez(arguments[2], depth=next(depths)))
    with pytest.raises(PushError, match=r"differs \(by 0\.000977 m at most\)"):
        prove.prove_model({})


def test_again_and_again(hub, checkpoint, no_proof):
    told = push(checkpoint, "--repo", "ada/toy")
    assert f"Writing to {hub.url} as ada." in told
    assert "Commit: " in told
    assert "All is there already" in push(checkpoint, "--repo", "ada/toy")
    (checkpoint / "generation_config.json").write_text("{}")
    there = hub.repo("ada/toy").commits[hub.repo("ada/toy").resolve("main")]
    there["mine.txt"] = there[".gitattributes"]
    told = push(checkpoint, "--repo", "ada/toy", "--create-pr")
    assert "Replaced: generation_config.json" in told
    assert "Kept: .gitattributes, mine.txt" in told
    assert f"Pull request: {hub.url}/ada/toy/discussions/1" in told


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "--repo", "ada/toy"], 1, "There is no folder nowhere"),
        (["nowhere", "--repo", "toy"], 1, "expected the owner too: user/toy or organization/toy"),
        (["nowhere", "--repo", "ada/toy", "--dataset"], 1, "There is no folder nowhere"),
        (["nowhere", "--repo", "ada/toy", "--dataset", "--space"], 2, "choose one"),
        (["nowhere", "--repo", "ada/toy", "--dataset", "--results", "r.json"], 2, "for the card of a checkpoint"),
        (["--repo", "ada/toy"], 2, "Name what to push: the folder of a checkpoint"),
        (["toy", "--repo", "ada/depth_metrics", "--metric"], 2, "leave toy out"),
        (["--repo", "ada/depth_metrics", "--metric", "--license", "mit"], 2, "for the card of a checkpoint"),
        (["--repo", "ada/my-metric", "--metric"], 1, "expected owner/depth_metrics"),
        (["--repo", "depth_metrics", "--metric"], 1, "expected the owner too"),
        (["./toy", "--repo", "ada/toy", "--space"], 1, "the model that the Space shows is './toy'"),
        (["depthvlm-nano", "--repo", "ada/nano"], 1, "depthvlm convert"),
    ],
)
def test_what_cannot_be_pushed(hub, arguments, code, said):
    assert said in push(*arguments, code=code)
    assert hub.requests == []


def test_a_space(hub):
    told = push("ada/depthvlm-8b", "--space", "--repo", "ada/demo")
    assert "3 files are on the Hub" in told
    space = hub.repo("ada/demo", "space")
    files = space.files()
    assert files["requirements.txt"] == f"depthvlm[demo]=={__version__}\n".encode()
    assert b"app_file: app.py" in files["README.md"]
    assert b"    launch_space()" in files["app.py"]
    assert space.variables["DEPTHVLM_MODEL"]["value"] == "ada/depthvlm-8b"
    before = hub.count("POST /api/spaces/ada/demo/variables")
    push("ada/depthvlm-8b", "--space", "--repo", "ada/demo")
    assert hub.count("POST /api/spaces/ada/demo/variables") == before


def test_a_metric_that_scores_otherwise_is_not_pushed(hub, monkeypatch):
    monkeypatch.setattr(prove, "_run", lambda how, arguments, scratch: arguments[2].write_text('{"delta1": 1.0}'))
    told = push("--metric", "--repo", "ada/depth_metrics", code=1)
    assert "says {'delta1': 1.0} where delta1 is 0.5 and abs_rel 0.25 by hand" in told
    assert hub.repos == {}


def test_a_build_that_is_damaged_or_must_stay_private(hub, tmp_path, monkeypatch):
    make_toy(tmp_path / "root")
    entry = build_toy(tmp_path / "root", tmp_path / "out")
    (tmp_path / "out" / "toy-train.jsonl").write_text("{}")
    package = pack_build(tmp_path / "out", "ada/bench")
    shards = {shard["file"]: shard["sha256"] for shard in entry["shards"]}
    assert sorted(package.upload.files) == sorted(["README.md", "manifest.json", *shards])
    assert package.left_out == {".state/": "not of the shards", "toy-train.jsonl": "not of the shards"}
    monkeypatch.setattr("depthvlm.hub_cards.cards.dataset_card.restricted_sources", lambda build: ("Waymo",))
    monkeypatch.setattr(prove, "prove_dataset", lambda files: "was not read")
    assert "Waymo leave no room for a public copy" in push(tmp_path / "out", "--dataset", "--repo", "ada/bench", code=1)
    assert hub.repos == {}
    shard = tmp_path / "out" / next(iter(shards))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "not those of the manifest" in push(tmp_path / "out", "--dataset", "--repo", "ada/bench", code=1)


def test_the_trainer_pushes_the_same_files_and_its_card(hub, checkpoint, tmp_path):
    pushed = {"push_to_hub": True, "hub_model_id": "ada/trained"}
    args = settings(tmp_path / "run", **pushed, save_strategy="steps", save_steps=1, max_steps=2)
    trainer = DepthSFTTrainer(str(checkpoint), args, train_dataset=toy_dataset([toy_row(i) for i in range(8)]))
    trainer.train()
    trainer.save_model()  # as `depthvlm sft` does; with `push_to_hub` it pushes too
    trainer.push_to_hub()
    repo, out = hub.repo("ada/trained"), tmp_path / "run"
    assert repo.titles[1] == "Training in progress, step 1"
    there = repo.files()
    del there[".gitattributes"]
    selected = select_checkpoint_files(out).files | {"README.md": out / "README.md"}
    assert there == {name: file.read_bytes() for name, file in selected.items()}
    assert (out / "training_args.bin").exists()
    assert "training_recipe.yaml" in there
    trained = load(there["model.safetensors"])
    for name, value in trainer.model.state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], value, rtol=0, atol=0)


def test_the_trainer_pushes_an_adapter(hub, checkpoint, tmp_path):
    args = settings(tmp_path / "run", hub_model_id="ada/adapter")
    rows, adapter = toy_dataset([toy_row(i) for i in range(4)]), LoraConfig(r=2, target_modules=["q_proj"])
    trainer = DepthSFTTrainer(str(checkpoint), args, train_dataset=rows, peft_config=adapter)
    trainer.push_to_hub("An adapter", private=True)
    assert hub.repo("ada/adapter").private
    there = hub.repo("ada/adapter").files()
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "README.md"} <= set(there)
    assert json.loads(there["adapter_config.json"])["r"] == 2
    assert not [name for name in there if name.endswith(".bin") or name == "model.safetensors"]
    assert hub.repo("ada/adapter").titles[-1] == "An adapter"
