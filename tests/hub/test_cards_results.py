"""Results on model cards: only numbers that a result file holds, only those of the very checkpoint."""

import json
import re
import shutil
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.scoring.eval_sets import EvalSet
from depthvlm.benchmark.scoring.metrics import METRICS as KNOWN
from depthvlm.benchmark.scoring.protocols import PROTOCOLS
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate
from depthvlm.benchmark.scoring.tasks import EXTRA_METRICS
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.systems import make_predictor
from depthvlm.hub_cards.cards.model_card import make_model_card
from depthvlm.hub_cards.cards.model_facts import METRICS
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from toy_cards import results_of
from toy_results import make

from depthvlm.checkpoint import checkpoint_hash

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")


def leaves(value: Any) -> set[str]:
    """All numbers and the digits in all texts of a JSON file, as a card may write them."""
    if isinstance(value, dict):
        return set().union(*(leaves(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(leaves(each) for each in value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {f"{value}", f"{value:.3f}", f"{value:g}"}
    return set(NUMBER.findall(value)) if isinstance(value, str) else set()


def test_every_number_of_the_results_is_in_a_result_file(trained_toy, tmp_path):
    files = results_of(trained_toy, tmp_path / "results")
    metrics = {kind: {"delta1": 0.5, "rmse": 1.23456, "silog": 0.098765} for kind in ("images", "pixels")}
    details = {"environment": {"torch": "2.13.0", "python": "3.11"}, "checkpoint": checkpoint_hash(trained_toy)}
    files.append(make(tmp_path / "results", "eth3d", 0.5, metrics=metrics, **details))
    plain, shown = make_model_card(trained_toy, "a/b"), make_model_card(trained_toy, "a/b", files)
    held = set().union(*(leaves(json.loads(file.read_text())) for file in files))
    # The words of the section itself: "1.25" of delta1 and "95 %" of its interval.
    extra = set(NUMBER.findall(shown.text)) - set(NUMBER.findall(plain.text)) - {"1.25", "95"}
    assert extra
    assert extra <= held
    assert {"0.812", "0.654", "1.235", "0.099"} <= extra
    # In the metadata they are not even rounded.
    values: dict[str, dict[str, float]] = {"nyuv2": {}, "ddad": {}, "eth3d": {}}
    for result in shown.data.eval_results:
        values[result.dataset_type][result.metric_type] = result.metric_value
    assert values == {
        "nyuv2": {"delta1": 0.81237, "abs_rel": 0.25},
        "ddad": {"delta1": 0.65432, "abs_rel": 0.25},
        "eth3d": metrics["images"],
    }


def test_without_results_there_are_no_scores(trained_toy):
    card = make_model_card(trained_toy, "a/b")
    section = card.text.split("## Results")[1].split("\n## ")[0]
    assert not NUMBER.findall(section)
    assert "has not been evaluated" in section
    assert card.data.eval_results is None
    assert "model-index" not in card.content


def test_the_protocol_goes_with_each_number(trained_toy, tmp_path):
    files = results_of(trained_toy, tmp_path / "results")
    card = make_model_card(trained_toy, "a/b", files)
    result = json.loads(files[0].read_text())
    [index] = yaml.safe_load(card.content.split("---\n")[1])["model-index"]
    entry = next(each for each in index["results"] if each["dataset"]["type"] == "nyuv2")
    assert entry["dataset"]["revision"] == "a" * 64
    assert entry["dataset"]["args"] == {"images": 20, "pixels": 200, "failures": 0, "aggregation": "images"}
    assert entry["metrics"][0]["args"] == {"protocol": "depthvlm", "protocol_hash": result["protocol"]["hash"]}
    assert f"`depthvlm` ({result['protocol']['hash']}): 10 points an image" in card.text
    assert "options dtype=float32" in card.text
    assert f"`{checkpoint_hash(trained_toy)}`" in card.text


def test_two_protocols_on_one_set_are_two_entries(trained_toy, tmp_path):
    mine = {"checkpoint": checkpoint_hash(trained_toy)}
    files = [make(tmp_path, "nyuv2", score, protocol=p, **mine) for score, p in ((0.5, "dense"), (0.6, "depthvlm"))]
    make_model_card(trained_toy, "a/b", files).save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md").data.eval_results
    scores = {(r.dataset_config, r.metric_value) for r in loaded if r.metric_type == "delta1"}
    assert scores == {("nyuv2, protocol dense", 0.5), ("nyuv2, protocol depthvlm", 0.6)}


def test_partial_results_are_marked_and_not_in_the_metadata(trained_toy, tmp_path):
    mine = {"checkpoint": checkpoint_hash(trained_toy)}
    files = [make(tmp_path, "ddad", 0.7, limit=5, done=5, **mine), make(tmp_path, "waymo", 0.6, done=19, **mine)]
    card = make_model_card(trained_toy, "a/b", files)
    assert card.data.eval_results is None
    assert "5 of 20, **partial**" in card.text
    assert "19 of 20, **partial**" in card.text
    assert "are not in this card's metadata" in card.text
    files.append(make(tmp_path, "eth3d", 0.5, **mine))
    assert {r.dataset_type for r in make_model_card(trained_toy, "a/b", files).data.eval_results} == {"eth3d"}


def test_the_headline_is_in_the_protocols_aggregation(trained_toy, tmp_path):
    metrics = {"images": {"delta1": 0.25}, "pixels": {"delta1": 0.75}}
    file = make(tmp_path, "ddad", 0.5, protocol="depthlm", metrics=metrics, checkpoint=checkpoint_hash(trained_toy))
    [result] = make_model_card(trained_toy, "a/b", [file]).data.eval_results
    assert result.metric_value == 0.75


def test_metrics_of_a_card_are_the_benchmarks():
    assert set(METRICS) <= {*KNOWN, *EXTRA_METRICS}


def test_results_that_do_not_belong_on_the_card_are_refused(toy_folder, trained_toy, tmp_path):
    mine, other = checkpoint_hash(trained_toy), checkpoint_hash(toy_folder)
    twice = [make(tmp_path, "ddad", score, checkpoint=mine) for score in (0.5, 0.6)]
    for files, message in (
        ([make(tmp_path, "ddad", 0.5, checkpoint=other)], "another model: .*depthvlm bench eval --predictor depthvlm:"),
        ([make(tmp_path, "ddad", 0.5)], r"\('Mine'\) does not say of which checkpoint it is"),
        (twice, "of the same set under the same protocol: give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model_card(trained_toy, "a/b", files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no JSON {", "is no result of `depthvlm bench eval`"),
        ("[]", "is no result of `depthvlm bench eval`"),
        ('{"format": 1}', "lacks confidence, data_hash"),
        ({"format": 7}, "of format 1"),
        ({"protocol": {"name": "depthvlm"}}, "lacks aggregation, hash of its protocol"),
        ({"surprise": 1}, "surprise"),
        ({"metrics": {"images": {"delta1": float("nan")}, "pixels": {}}}, "no finite number"),
        ({"metrics": {"images": {"delta1": "best"}, "pixels": {}}}, "wrong type in metrics"),
        ({"metrics": {"images": {}, "pixels": {}}}, "no delta1"),
        ("alignment", "do not give its hash"),
    ],
)
def test_malformed_results_are_refused(trained_toy, tmp_path, change, message):
    file = make(tmp_path, "ddad", 0.5, checkpoint=checkpoint_hash(trained_toy))
    content = json.loads(file.read_text())
    if change == "alignment":
        content["protocol"]["alignment"] = "median"
        file.write_text(json.dumps(content))
    else:
        file.write_text(change if isinstance(change, str) else json.dumps(content | change))
    with pytest.raises(ValueError, match=message) as caught:
        make_model_card(trained_toy, "a/b", [file])
    assert str(file) in str(caught.value)


def test_a_missing_result_file(trained_toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result file .*none\.json: give the JSON"):
        make_model_card(trained_toy, "a/b", [tmp_path / "none.json"])


def test_the_hash_is_of_what_decides_about_answers(toy_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(toy_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {}, "transformers_version": "9"}))
    (copy / "README.md").write_text("a card")
    (copy / "text_probe.safetensors").write_bytes(b"of a training run")
    assert checkpoint_hash(copy) == checkpoint_hash(toy_folder)
    (copy / "config.json").write_text(json.dumps(config | {"canonical_focal_length": 900.0}))
    assert checkpoint_hash(copy) != checkpoint_hash(toy_folder)
    (copy / "config.json").write_text(json.dumps(config))
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("lm_head.weight") or "embed_tokens" in name)
    weights[name].view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_hash(copy) != checkpoint_hash(toy_folder)


def test_an_evaluation_of_nano_goes_on_the_card_of_nano_alone(toy_folder, tmp_path):
    run_build(plan_build(open_source("synthetic", "."), "test", 2), open_source, ".", tmp_path / "build", workers=1)
    scenes = EvalSet(tmp_path / "build", "synthetic")
    system = LoadedSystem("nano", "nano", make_predictor("nano", device="cpu"), {"device": "cpu"})
    evaluate(system, scenes, PROTOCOLS["depthvlm"], tmp_path / "results")
    [file] = (tmp_path / "results").rglob("depthvlm.json")
    measured = json.loads(file.read_text())["metrics"]["images"]["delta1"]
    nano = REPOSITORY / "depthvlm" / "nano"
    [delta1] = [r for r in make_model_card(nano, "me/n", [file]).data.eval_results if r.metric_type == "delta1"]
    assert (delta1.metric_value, delta1.dataset_type) == (measured, "synthetic")
    with pytest.raises(ValueError, match="is of another model"):
        make_model_card(toy_folder, "me/n", [file])
