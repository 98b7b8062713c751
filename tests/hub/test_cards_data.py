"""Cards of a build, of the demo's Space and of the metric: what `datasets`, Spaces and `evaluate` read from them."""

import json
import math
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluate
import pytest
import yaml
from bench_builds import build_toy
from datasets import get_dataset_config_names, load_dataset
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.records import benchmark_features
from depthvlm.benchmark.build.shard_writer import BuildError
from depthvlm.benchmark.build.shards import MANIFEST
from depthvlm.benchmark.scoring import metrics
from depthvlm.benchmark.scoring.protocols import PROTOCOLS
from depthvlm.benchmark.sources import open_source
from depthvlm.hub_cards.cards.card_text import TERMS, closed_sources, licence_table
from depthvlm.hub_cards.cards.dataset_card import COLUMNS, make_dataset_card, restricted_sources
from depthvlm.hub_cards.cards.space_card import METRIC, VALUES, make_metric_card, make_space_card, metric_files
from huggingface_hub import DatasetCard, SpaceCard


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    plan = plan_build(open_source("synthetic", "."), "test", 3, rows_per_shard=2)
    run_build(plan, open_source, ".", folder, workers=1)
    return folder


def as_source(folder: Path, source: str, title: str) -> None:
    """Let a manifest say that its toy shards are of that source."""
    content = json.loads((folder / MANIFEST).read_text())
    builds = {}
    for entry in content["builds"].values():
        for shard in entry["shards"]:
            name = shard["file"].replace(entry["source"], source)
            (folder / shard["file"]).rename(folder / name)
            shard["file"] = name
        builds[f"{source}-{entry['split']}"] = entry | {"source": source, "title": title}
    (folder / MANIFEST).write_text(json.dumps(content | {"builds": builds}))


def metadata(card: Any) -> dict[str, Any]:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_the_card_loads_the_build_without_a_script(synthetic, tmp_path):
    card = make_dataset_card(synthetic, "you/bench")
    card.save(synthetic / "README.md")
    assert str(DatasetCard.load(synthetic / "README.md")) == str(card)
    assert get_dataset_config_names(str(synthetic)) == ["default"]
    rows = load_dataset(str(synthetic), split="test", cache_dir=str(tmp_path))
    assert len(rows) == 3
    assert rows.features == benchmark_features()
    data = metadata(card)
    assert (data["license"], data["pretty_name"]) == ("apache-2.0", "DepthVLM-Bench: Synthetic")
    assert (data["size_categories"], data["task_categories"][0]) == (["n<1K"], "depth-estimation")
    assert "| Synthetic | test | 3 | not in it | 30 |" in card.text
    assert 'load_dataset("you/bench", split="test")' in card.text
    assert "Not for everyone" not in card.text
    assert restricted_sources(synthetic) == ()


def test_rows_that_are_missing_are_noticed(synthetic, tmp_path):
    """A card with the numbers of rows: half a download is an error, no smaller data set."""
    for file in [*synthetic.glob("*-00000-of-00002.parquet"), synthetic / MANIFEST]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    make_dataset_card(synthetic, "you/bench").save(tmp_path / "README.md")
    with pytest.raises(Exception, match="num_examples=2"):
        load_dataset(str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))


def test_several_sources_and_splits(tmp_path):
    (tmp_path / "toy.json").write_text("{}")
    out = tmp_path / "out"
    for split in ("train", "test"):
        build_toy(tmp_path, out, split)
    build_toy(tmp_path, out, "test", name="nyuv2", num_images=5)
    stale = out / "toy-test-00000-of-00009.parquet"  # of an older build, in other shards
    stale.write_bytes(next(out.glob("toy-test-00000-*.parquet")).read_bytes())
    card = make_dataset_card(out, "you/bench")
    card.save(out / "README.md")
    counts = {}
    for config in get_dataset_config_names(str(out)):
        sets = load_dataset(str(out), config, cache_dir=str(tmp_path / "cache"))
        counts[config] = {split: len(rows) for split, rows in sets.items()}
    assert counts == {"default": {"train": 16, "test": 21}, "toy": {"train": 16, "test": 16}, "nyuv2": {"test": 5}}
    assert len(load_dataset(str(out), split="test", cache_dir=str(tmp_path / "cache"))) == 21


def test_the_terms_and_the_papers_tables(tmp_path):
    (tmp_path / "toy.json").write_text('{"fail": ["scene0/left_001"]}')
    out = tmp_path / "out"
    build_toy(tmp_path, out, "train")
    as_source(out, "waymo", "Waymo")
    card = make_dataset_card(out, "you/bench")
    for said in (
        "**Not for everyone**: the terms of Waymo do not allow a public copy",
        "| Waymo | train | 15 | 800K (table 9) |",
        "Apache License 2.0 (the paper's is the licence of the dataset's code)",
        "- Waymo train: 1 frames could not be used",
    ):
        assert said in card.text
    assert restricted_sources(out) == ("Waymo",)
    expected = {"license": "other", "license_name": "terms-of-each-source", "source_datasets": ["extended"]}
    assert {name: metadata(card)[name] for name in expected} == expected


def test_sources_of_one_licence_have_it(tmp_path):
    (tmp_path / "toy.json").write_text("{}")
    build_toy(tmp_path, tmp_path / "out", "test")
    as_source(tmp_path / "out", "ddad", "DDAD")
    card = make_dataset_card(tmp_path / "out", None)
    assert metadata(card)["license"] == "cc-by-nc-sa-4.0"
    assert "1K (table 10)" in card.text


@pytest.mark.real_data
def test_table_11_is_that_of_the_paper(shared):
    paper = next((shared / "paper").glob("*.txt")).read_text()
    rows = re.findall(r"^([\w+-]+)\t([^\t\n]+)\thttps?://\S+$", paper, re.M)
    named = {"Argoverse2", "Waymo", "NuScenes", "ScanNet++", "DDAD", "ETH3D"}
    found = {name.lower().replace("+", "p"): licence for name, licence in rows if name in named}
    assert found == {source: terms.paper for source, terms in TERMS.items() if terms.paper}


def test_every_column_is_described():
    assert list(COLUMNS) == list(benchmark_features())


def test_nothing_is_claimed_of_an_unknown_source():
    assert "| mine | not known |  | not in it | see its terms |" in licence_table(["mine"])
    assert closed_sources(["mine", "synthetic", "hm3d", "ddad"]) == ("hm3d",)


def test_folders_that_are_no_build(synthetic, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        make_dataset_card(tmp_path / "none", "a/b")
    with pytest.raises(ValueError, match="is no name on the Hub"):
        make_dataset_card(synthetic, "a b")
    manifests = {"has no finished build": None, "is missing": (synthetic / MANIFEST).read_text(), "is damaged": "{"}
    for message, content in manifests.items():
        if content is not None:
            (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(BuildError, match=message):
            make_dataset_card(tmp_path, "a/b")


def test_the_demos_space(tmp_path):
    card = make_space_card("you/depthvlm-4b", "you/demo")
    card.save(tmp_path / "README.md")
    assert str(SpaceCard.load(tmp_path / "README.md")) == str(card)
    data = metadata(card)
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", version("gradio"), "app.py")
    assert data["models"] == data["preload_from_hub"] == ["you/depthvlm-4b"]
    assert len(data["short_description"]) <= 60  # the Hub's limit
    assert "`depthvlm demo --model you/depthvlm-4b`" in card.text


def test_the_demo_of_nano_says_what_it_is():
    card = make_space_card("depthvlm-nano", None)
    assert "models" not in metadata(card)
    assert "on real photographs its\nmetres mean nothing" in card.text
    assert "`depthvlm demo`" in card.text


def test_names_of_spaces_are_checked():
    with pytest.raises(ValueError, match="is no name on the Hub"):
        make_space_card("a/b/c", None)
    with pytest.raises(ValueError, match=f"expected owner/{METRIC}"):
        make_metric_card("you/other-name")


def test_the_metrics_card():
    card = make_metric_card(f"you/{METRIC}")
    assert {"evaluate", "metric"} <= set(metadata(card)["tags"])
    assert metadata(card)["sdk"] == "gradio"
    assert f'evaluate.load("you/{METRIC}")' in card.text
    assert set(VALUES) == set(metrics.METRICS)
    for name in (*metrics.METRICS, *PROTOCOLS):
        assert f"| `{name}` |" in card.text


def test_the_metrics_space_scores(tmp_path, monkeypatch):
    """Its files alone in a folder, as in the Space: the example of the card, and a page that can be made."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, name)
    files = metric_files(f"you/{METRIC}")
    assert sorted(files) == ["README.md", "app.py", "depth_metrics.py", "requirements.txt"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    import app

    assert Path(app.__file__).parent == tmp_path
    example = app.score("[[1.0, 2.0]]", "[[1.0, 4.0]]", "dense")
    assert (example["delta1"], example["abs_rel"], example["pixels"]) == (0.5, 0.25, 2)
    assert app.page().title == "depth_metrics"
    monkeypatch.delitem(sys.modules, "app")


def test_the_formulas_of_the_metrics_card_are_those_of_the_benchmark():
    """By hand: p = 2, g = 1 and p = g = 4."""
    p, g = [2.0, 4.0], [1.0, 4.0]
    ln = math.log(2)
    by_hand = dict.fromkeys(("delta1", "delta2", "delta3", "abs_rel", "sq_rel"), 0.5)  # 1.25^3 = 1.95
    by_hand |= {"rmse": math.sqrt(0.5), "rmse_log": math.sqrt(ln**2 / 2), "log10": math.log10(2) / 2}
    by_hand["silog"] = ln / 2  # the standard deviation of ln 2 and 0
    assert {name: getattr(metrics, name)(p, g) for name in VALUES} == pytest.approx(by_hand)
