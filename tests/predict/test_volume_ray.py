"""`depthvlm predict --engine ray` on a local cluster of two workers: one is killed half-way, or the command itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from volume_runs import depth_rows, pixels, write_pictures

pytestmark = pytest.mark.slow

SHARDS = 19
PICTURES = 149  # and a damaged one


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    paths = write_pictures(tmp_path_factory.mktemp("volume") / "pictures", PICTURES, scale=4)
    (paths[0].parent / "005b.jpg").write_bytes(b"no picture")
    return paths


@pytest.fixture(scope="module")
def expected(nano, pictures) -> dict[str, np.ndarray]:
    """The values of one process, in millimetres."""
    found = nano.predict(pictures, fov=60, batch_size=1)
    return {
        path.name: np.round(one.depth.astype(np.float64) * 1000).astype(np.uint16)
        for path, one in zip(pictures, found, strict=True)
    }


def begin(pictures: list[Path], out: Path, batch_size: int = 1) -> subprocess.Popen:
    sizes = ["--batch-size", str(batch_size), "--shard-rows", str(8 * batch_size)]
    options = ["--engine", "ray", "--workers", "2", *sizes, "--fov", "60"]
    command = [
        sys.executable,
        "-m",
        "depthvlm",
        "predict",
        pictures[0].parent,
        *options,
        "--device",
        "cpu",
        "--out",
        out,
    ]
    # Ray would kill workers where other processes of this machine take its memory.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def recorded(out: Path) -> dict[str, int]:
    """The complete shards, with the times of their files."""
    names = [path.stem for path in (out / ".depthvlm" / "shards").glob("*.json")]
    return {name: (out / "data" / name).stat().st_mtime_ns for name in names}


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> object:
    while process.poll() is None:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"The command has ended: {process.stdout.read()}")


def at_work(command: subprocess.Popen) -> list[int]:
    """The processes below the command that predict at this moment, as Ray names them."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes().decode()
        except (OSError, ValueError):  # it has ended
            continue
    found = []
    for process, name in names.items():
        above = process
        while above not in (0, 1, command.pid):
            above = parents.get(above, 0)
        if above == command.pid and name.startswith("ray::") and "(Predict)).submit" in name:
            found.append(process)
    return found


def check(out: Path, expected: dict[str, np.ndarray], pictures: list[Path]) -> None:
    rows = depth_rows(out)
    assert list(rows) == list(expected)
    assert all(np.array_equal(pixels(rows[name]), expected[name]) for name in expected)
    content = json.loads((out / "manifest.json").read_text())
    assert (content["complete"], content["rows"], len(content["shards"])) == (True, PICTURES, SHARDS)
    assert [one["source"] for one in content["failures"]] == [str(pictures[0].parent / "005b.jpg")]


def test_a_killed_worker_changes_nothing(tmp_path, pictures, expected):
    out = tmp_path / "out"
    command = begin(pictures, out)
    victim = wait_for(lambda: at_work(command), command)[0]
    os.kill(victim, signal.SIGKILL)
    assert len(recorded(out)) < SHARDS
    said, _ = command.communicate(timeout=500)
    assert command.returncode == 1, said  # for the damaged file
    assert f"{PICTURES} done, 1 failed" in said
    assert "Failed: " in said
    assert "005b.jpg is not an image that can be read" in said
    check(out, expected, pictures)


def test_a_killed_run_goes_on(tmp_path, pictures, expected):
    out = tmp_path / "out"
    command = begin(pictures, out)
    wait_for(lambda: recorded(out), command)
    command.kill()
    command.communicate()
    before = recorded(out)
    assert 0 < len(before) < SHARDS
    again = begin(pictures, out)
    wait_for(lambda: at_work(again), again)
    again.send_signal(signal.SIGINT)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 130, said
    assert "Give the same command again to go on." in said
    last = begin(pictures, out)
    said, _ = last.communicate(timeout=500)
    assert last.returncode == 1, said
    assert "Skipped " in said
    after = recorded(out)
    assert {name: after[name] for name in before} == before
    check(out, expected, pictures)


def test_batches_of_several_pictures_end_in_whole_shards(tmp_path, pictures):
    """A picture is one row and a batch another: a writer that counted the rows of both alike would mix shards."""
    out = tmp_path / "out"
    command = begin(pictures, out, batch_size=2)
    said, _ = command.communicate(timeout=500)
    assert command.returncode == 1, said  # for the damaged file
    content = json.loads((out / "manifest.json").read_text())
    assert [shard["rows"] for shard in content["shards"]] == [15, *[16] * 8, 6]
