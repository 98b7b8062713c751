"""The metric module for `evaluate`, from the repository, from the installed package and copied alone."""

import math
import shutil
import sys
from pathlib import Path

import depthvlm.benchmark
import evaluate
import numpy as np
import pytest
from conftest import REPOSITORY
from depthvlm.benchmark.scoring.protocols import get_protocol

INSTALLED = Path(depthvlm.benchmark.__file__).parent / "depth_metrics"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` with copies of scripts and data in a folder of the test."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, name)

    def load(path):
        metric = evaluate.load(str(path), cache_dir=str(tmp_path / "cache"))
        script = sys.modules[type(metric).__module__].__file__
        assert Path(script).is_relative_to(tmp_path)
        return metric

    return load


def test_from_the_repository(load, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    metric = load("benchmark/depth_metrics")
    assert metric.name == "depth_metrics"
    # delta1: 1/2 and 1; abs_rel: (0 + 0.5) / 2 and 0.
    result = metric.compute(predictions=[[1.0, 2.0], [3.0]], references=[[1.0, 4.0], [3.0]])
    assert (result["delta1"], result["abs_rel"], result["rmse"]) == (0.75, 0.125, math.sqrt(2) / 2)
    assert (result["images"], result["pixels"], result["failures"], result["failed_images"]) == (2, 3, 0, 0)
    assert (result["protocol"], result["protocol_hash"]) == ("dense", get_protocol("dense").hash())


def test_from_the_installed_package(load):
    metric = load(INSTALLED)
    # Maps of different sizes; a failure, and truth that is none.
    metric.add(prediction=np.array([[1.0, -1.0], [2.0, 2.0]]), reference=np.array([[1.0, 1.0], [0.0, 2.0]]))
    metric.add(prediction=np.array([[4.0]], dtype=np.float32), reference=np.array([[1.0]], dtype=np.float32))
    result = metric.compute(protocol="dense", changes={"aggregation": "pixels"})
    assert (result["delta1"], result["abs_rel"]) == (2 / 4, (0 + 0 + 3) / 3)
    assert (result["pixels"], result["failures"]) == (4, 1)
    assert result["protocol"] == "dense(aggregation=pixels)"
    # float32(0.005) is on the bound.
    values = {"predictions": [[1.0, 1.0]], "references": [[0.005, 90.0]]}
    assert metric.compute(**values, source_range=(0.005, 80.0))["pixels"] == 1
    with pytest.raises(ValueError, match="image 0 has no valid pixel"):
        metric.compute(**values, source_range=(1.0, 80.0))
    with pytest.raises(ValueError, match="Unknown protocol 'nyu'"):
        metric.compute(**values, protocol="nyu")


def test_copied_alone(load, tmp_path):
    folder = tmp_path / "hub" / "depth_metrics"
    folder.mkdir(parents=True)
    shutil.copy(INSTALLED / "depth_metrics.py", folder)
    metric = load(folder)
    maps = {"predictions": [np.full((480, 640), 3.0)], "references": [np.full((480, 640), 2.0)]}
    result = metric.compute(**maps, protocol="nyu-eigen")
    assert (result["delta1"], result["delta2"], result["pixels"]) == (0, 1, 426 * 560)
    result = metric.compute(**maps, protocol="nyu-eigen", changes={"alignment": "median"})
    assert (result["delta1"], result["rmse"]) == (1, 0)
