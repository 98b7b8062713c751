"""Builds of the toy source; apart from it, so that workers need not import what builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_source import open_toy
from datasets import Image as ImageFeature
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.shards import load_build


def build_toy(root: Path, out: Path, split: str = "train", name: str = "toy", **settings: Any) -> dict[str, Any]:
    """Builds shards of six rows in this process; `settings` are of the plan and of the run."""
    plan_names = ("num_images", "points", "seed", "rows_per_shard", "options")
    planned = {key: settings.pop(key) for key in plan_names if key in settings}
    plan = plan_build(open_toy(name, root, **planned.get("options", {})), split, **{"rows_per_shard": 6, **planned})
    return run_build(plan, open_toy, root, out, **{"workers": 1, **settings})


def build_rows(out: Path, tmp_path: Path, split: str = "train", decode: bool = False) -> list[dict[str, Any]]:
    """The rows of a build, files undecoded."""
    data = load_build(out, split, cache_dir=str(tmp_path / "cache"))
    for column in ("image", "depth"):
        data = data.cast_column(column, ImageFeature(decode=decode))
    return list(data)
