"""scripts/perf/predict.py, which compares `depthvlm predict` with the model alone, runs to its end."""

import re
import sys

import predict


def test_it_prints_the_ratio_of_one_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py", "--images", "4", "--width", "64", "--batch-size", "2"])
    predict.main()
    seconds = dict(re.findall(r"^  (\w[\w ]*?) +([\d.]+) s ", capsys.readouterr().out, re.MULTILINE))
    assert list(seconds) == ["prepare", "model", "write", "one after the other", "overlapped"]
    parts = sum(float(seconds[name]) for name in ("prepare", "model", "write"))
    assert abs(parts - float(seconds["one after the other"])) < 0.02
