"""The same shards on a local Ray of two workers, one of which is killed half-way."""

import sys
from pathlib import Path

import pytest
import ray
from bench_source import build_files, make_toy, open_toy
from depthvlm.benchmark.build.builder import BuildEvents, Engine, run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.shard_writer import BuildError

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))  # workers import bench_source
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        size = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        ray.init("local", log_to_driver=False, logging_level="error", **size)
        yield
        ray.shutdown()


def build(root: Path, out: Path, engine: Engine, **options) -> dict:
    plan = plan_build(open_toy("toy", root), "train", rows_per_shard=3)
    return run_build(plan, open_toy, root, out, engine=engine, workers=2 if engine == "ray" else 1, **options)


def test_a_killed_worker_changes_nothing(tmp_path):
    # The fourth of six shards kills its worker, the first time.
    root = make_toy(tmp_path / "root", die=["scene1/right_000"], fail=["scene0/left_001"])
    seen = []
    entry = build(root, tmp_path / "ray", "ray", events=BuildEvents(advance=seen.append))
    assert (root / "died-0").exists()
    assert sum(seen) == 16
    assert entry["counts"]["rows"] == 15
    build(root, tmp_path / "processes", "processes")
    assert build_files(tmp_path / "ray") == build_files(tmp_path / "processes")
    assert ray.is_initialized()  # a Ray that was there stays


def test_a_fault_of_the_reader_arrives_as_such(tmp_path):
    root = make_toy(tmp_path / "root", bug=["scene1/right_000"])
    with pytest.raises(BuildError, match="Reading the frame scene1/right_000 of toy failed with KeyError"):
        build(root, tmp_path / "out", "ray")


def test_a_worker_that_always_dies(tmp_path, monkeypatch):
    monkeypatch.setattr("depthvlm.benchmark.build.builder.RAY_RETRIES", 0)
    root = make_toy(tmp_path / "root", die=["scene1/right_000"])
    with pytest.raises(BuildError, match=r"worker of toy-train-0000\d-of-00006.parquet died 1 time"):
        build(root, tmp_path / "out", "ray")


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "depthvlm\[ray\]"'):
        build(make_toy(tmp_path / "root"), tmp_path / "out", "ray")
