"""
Scores depthvlm-nano as a user would, and writes the report that docs/ shows.

    python scripts/docs/make_bench_report.py --samples ../shared/data

Held-out synthetic scenes, and, where there are samples of real datasets (`sample_layouts.py` says which), those too:
nano has seen no photograph, so its numbers there say what a model of synthetic scenes is worth on them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from sample_layouts import SOURCES, arrange

DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "nano_bench.md"
SYSTEMS = ("nano", "always-2m")


def main(
    samples: Annotated[Path | None, typer.Option(help="Folder with ddad/, scannetpp/ and so on.")] = None,
    images: Annotated[int, typer.Option(help="Synthetic scenes.")] = 300,
    out: Annotated[Path, typer.Option(help="The page.")] = DOCS,
) -> None:
    """Build, evaluate, report."""
    with tempfile.TemporaryDirectory() as folder:
        build, results = f"{folder}/build", f"{folder}/results"
        _bench("build", "synthetic", "--root", ".", "--out", build, "--split", "test", "--num-images", str(images))
        splits = ["test"]
        if samples is not None:
            for source in SOURCES:
                root, split = arrange(samples, source, Path(folder) / source)
                _bench("build", source, "--root", str(root), "--out", build, "--split", split)
                splits += [split] if split not in splits else []
        for split in splits:
            for system in SYSTEMS:
                _bench("eval", "-p", system, "-d", build, "-o", results, "--split", split)
        page = subprocess.run(
            [sys.executable, "-m", "depthvlm", "bench", "report", results, "--format", "markdown"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    out.write_text(page)
    print(f"Wrote {out}")


def _bench(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "depthvlm", "bench", *arguments], check=True)


if __name__ == "__main__":
    typer.run(main)
