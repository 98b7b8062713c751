"""
Whether a release may go out: builds it, checks it, and uses it where nothing else of the repository is.

    python scripts/release/check_release.py --dist dist

1. sdist and wheel are built, the wheel from the sdist, and `twine check --strict` is content with both.
2. The wheel holds every file of the package's folders and nothing else at its top level; CITATION.cff and CHANGELOG.md
   name its version.
3. The wheel is installed in a new environment outside the repository, where the `depthvlm` command predicts and every
   command and Python block of the README works (tests/docs/test_docs.py).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("depthvlm", "modeling_depthvlm", "processing", "training", "benchmark", "hub_cards")
EXTRAS = "train,bench"  # what the README uses
TEST_PACKAGES = ("pytest", "av")


class ReleaseError(Exception):
    """The release must not go out, and why."""


def run(command: Sequence[str | Path], folder: Path = ROOT, **environment: str) -> None:
    """Run a command. Raises ReleaseError when it fails."""
    print("+", " ".join(map(str, command)), flush=True)
    status = subprocess.run(list(map(str, command)), cwd=folder, env=os.environ | environment, check=False).returncode
    if status != 0:
        raise ReleaseError(f"`{' '.join(map(str, command))}` ended with {status}.")


def build(dist: Path) -> Path:
    """Build both files into `dist`, and have twine check them. Returns the wheel."""
    if dist.exists() and any(dist.iterdir()):
        raise ReleaseError(f"{dist} is not empty: what is checked must be what was just built. Remove it first.")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT])
    files = sorted(dist.iterdir())
    run([sys.executable, "-m", "twine", "check", "--strict", *files])
    [wheel] = [file for file in files if file.suffix == ".whl"]
    return wheel


def package_files() -> set[str]:
    """The paths that the wheel must hold."""
    found = set()
    for folder in FOLDERS:
        prefix = "" if folder == "depthvlm" else "depthvlm/"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(prefix + path.relative_to(ROOT).as_posix())
    return found


def check_contents(wheel: Path) -> None:
    """
    Compare the wheel with the repository's folders.

    Raises:
        ReleaseError: a file is missing or too many, or the version is not the one that the documents name.
    """
    version = wheel.name.split("-")[1]
    information = f"depthvlm-{version}.dist-info/"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    held = {name for name in names if not name.startswith(information)}
    expected = package_files()
    if held != expected:
        raise ReleaseError(
            f"The wheel lacks {sorted(expected - held) or 'nothing'} and should not hold {sorted(held - expected)}. "
            "`packages` and `package-data` in pyproject.toml say what goes in."
        )
    for name, pattern in {"CITATION.cff": r"^version: (\S+)$", "CHANGELOG.md": r"^## (\S+)"}.items():
        found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        if found is None or found[1] != version:
            raise ReleaseError(f"{name} names version {found and found[1]}, the wheel is {version}.")
    print(f"{wheel.name}: {len(held)} files, {wheel.stat().st_size / 1e6:.1f} MB")


def try_out(wheel: Path, folder: Path) -> None:
    """Install the wheel alone in `folder`, and do there what the README says."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    constraints = ROOT / "constraints.txt"
    [torch] = [line for line in constraints.read_text().splitlines() if line.startswith("torch==")]
    run([*pip, torch])  # first and alone: what depends on it then keeps this build
    run([*pip, "-c", constraints, f"{wheel.resolve()}[{EXTRAS}]", *TEST_PACKAGES])
    run([python, "-m", "pip", "check"])

    empty = folder / "empty"
    empty.mkdir()
    environment = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    place = "import depthvlm, sys; assert depthvlm.__file__.startswith(sys.prefix), depthvlm.__file__"
    run([python, "-c", place], empty, **environment)
    command = python.with_name("depthvlm")
    run([command, "--version"], empty, **environment)
    run([command, "predict", ROOT / "depthvlm" / "assets" / "room.jpg", "--out", "results"], empty, **environment)
    if len(list((empty / "results").iterdir())) != 6:
        raise ReleaseError("`depthvlm predict` did not write its six files.")
    pytest: list[str | Path] = [python.with_name("pytest"), "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider"]
    run([*pytest, ROOT / "tests" / "docs" / "test_docs.py", "-k", "works and README"], empty, **environment)


def main() -> None:
    """Check, and say so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="new or empty folder for sdist and wheel")
    arguments = parser.parse_args()
    try:
        wheel = build(arguments.dist.absolute())
        check_contents(wheel)
        with tempfile.TemporaryDirectory() as folder:
            try_out(wheel, Path(folder))
    except ReleaseError as error:
        raise SystemExit(f"Not ready: {error}") from None
    print(f"Ready: {arguments.dist}")


if __name__ == "__main__":
    main()
