"""The builder: the same bytes by any number of workers, builds that go on, frames that cannot be used, the command."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from bench_builds import build_rows, build_toy
from bench_source import ToySource, build_files, make_toy, open_toy
from depthvlm.benchmark.build.annotations import write_annotations
from depthvlm.benchmark.build.builder import BuildEvents
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.shard_writer import BuildError, TooManyBadFramesError
from depthvlm.benchmark.build.shards import load_build
from depthvlm.benchmark.sources.frames import FrameRef, SourceError
from PIL import Image
from toy_source_files import write_text
from typer.testing import CliRunner

from depthvlm.cli import bench_build as _command_bench_build

TESTS = Path(__file__).parents[1] / "support"
KILLED = """
import sys
from bench_source import open_toy
from depthvlm.benchmark.build.builder import BuildEvents
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.build.builder import run_build

if __name__ == "__main__":
    root, out = sys.argv[1:]
    run_build(plan_build(open_toy("toy", root), "train", rows_per_shard=2), open_toy, root, out, workers=2)
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """2 scenes, 2 cameras, 4 frames of each: 16 in 3 shards of 6, 6 and 4."""
    return make_toy(tmp_path / "root")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


class TestBytes:
    @pytest.mark.slow
    def test_any_number_of_workers(self, root, tmp_path):
        make_toy(root, fail=["scene1/left_001"])
        for workers in (1, 2):
            build_toy(root, tmp_path / f"by{workers}", workers=workers, options={"farther": 5})
            write_annotations(tmp_path / f"by{workers}", "toy", "train")
        one, two = build_files(tmp_path / "by1"), build_files(tmp_path / "by2")
        assert one == two
        assert sum(name.endswith(".parquet") for name in one) == 3
        first = build_rows(tmp_path / "by2", tmp_path)[0]
        # The option has reached the workers.
        assert np.asarray(Image.open(io.BytesIO(first["depth"]["bytes"])))[1, 2] == 1000 + 500 + 20 + 1

    def test_any_place(self, tmp_path):
        for name in ("a", "b"):
            make_toy(tmp_path / name / "root", fail=["scene0/left_001"])
            build_toy(tmp_path / name / "root", tmp_path / name / "out")
        assert build_files(tmp_path / "a" / "out") == build_files(tmp_path / "b" / "out")
        assert str(tmp_path).encode() not in b"".join(build_files(tmp_path / "a" / "out").values())

    @pytest.mark.slow
    def test_no_byte_of_uninitialised_memory(self, tmp_path):
        """glibc fills fresh memory with MALLOC_PERTURB_: whatever is written without being set differs."""
        rng = np.random.default_rng(0)
        (tmp_path / "root/rgb").mkdir(parents=True)
        (tmp_path / "root/depth").mkdir()
        metres = rng.integers(256, 2560, (480, 640)).astype(np.float32) / 256
        for number in range(8):  # of deflated lengths odd and even
            Image.new("RGB", (640, 480)).save(tmp_path / f"root/rgb/{number}.png")
            metres[number] = 0
            np.save(tmp_path / f"root/depth/{number}.npy", metres)
        (tmp_path / "root/intrinsics.json").write_text("[500, 500, 320, 240]")
        command = [sys.executable, "-m", "depthvlm", "bench", "build", "folder", "--root", tmp_path / "root"]
        for byte in ("85", "170"):
            arguments = [*command, "--split", "train", "--workers", "1", "--out", tmp_path / byte]
            subprocess.run(arguments, env=os.environ | {"MALLOC_PERTURB_": byte}, check=True, capture_output=True)
        assert build_files(tmp_path / "85") == build_files(tmp_path / "170")

    def test_seed(self, root, tmp_path):
        for seed in (0, 1):
            build_toy(root, tmp_path / str(seed), seed=seed)
        one, other = (build_rows(tmp_path / str(seed), tmp_path) for seed in (0, 1))
        assert [row["depth"]["bytes"] for row in one] == [row["depth"]["bytes"] for row in other]
        assert all(a["points"] != b["points"] for a, b in zip(one, other, strict=True))

    def test_manifest(self, root, out):
        make_toy(root, fail=["scene1/left_001"], empty=["scene0/right_003"])
        entry = build_toy(root, out, num_images=100)
        assert json.loads((out / "manifest.json").read_text()) == {"format": 1, "builds": {"toy-train": entry}}
        counts = {name: entry["counts"][name] for name in ("rows", "points", "scenes", "cameras")}
        assert counts == {"rows": 14, "points": 140, "scenes": 2, "cameras": 2}
        assert [shard["rows"] for shard in entry["shards"]] == [6, 4, 4]
        assert entry["bad_frames"] == [
            {"id": "scene0/right_003", "reason": "none of its 768 pixels has depth within 0.5 to 50 m"},
            {"id": "scene1/left_001", "reason": "scene1/left_001.png is truncated"},
        ]
        assert entry["notes"][0] == "100 images were asked for, the source has 16: all are taken."
        assert [shard["file"] for shard in entry["shards"]] == [f"toy-train-{i:05d}-of-00003.parquet" for i in range(3)]
        for shard in entry["shards"]:
            data = (out / shard["file"]).read_bytes()
            assert (shard["sha256"], shard["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
            assert pq.read_metadata(out / shard["file"]).num_rows == shard["rows"]

    def test_counts_of_points(self, root, tmp_path, out):
        entry = build_toy(root, tmp_path / "many", points=1000)  # of the 768 pixels 23 x 30 are valid
        assert (entry["counts"]["points"], entry["counts"]["short_of_points"]) == (16 * 690, 16)
        assert entry["notes"] == [
            "16 images have fewer valid pixels than points were asked for: all of those are taken."
        ]
        make_toy(root, frames=6)  # a small evaluation set: 24 images share 10000 points
        entry = build_toy(root, out, "test", name="nyuv2")
        assert entry["counts"]["points"] == 10_000
        assert {len(row["points"]) for row in build_rows(out, tmp_path, "test")} == {416, 417}
        chosen = build_toy(root, tmp_path / "chosen", "test", name="nyuv2", num_images=24)
        assert chosen["counts"]["points"] == 240


class TestGoingOn:
    @pytest.mark.slow
    def test_killed(self, tmp_path):
        frames = {"scenes": 3, "cameras": ["left"], "frames": 6}  # 9 shards of 2
        root, out = make_toy(tmp_path / "root", sleep=0.15, **frames), tmp_path / "out"
        command = [sys.executable, "-c", KILLED, str(root), str(out)]
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
        deadline = time.monotonic() + 300
        while len(list(out.glob(".state/*.parquet.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        workers = [int(one.name.split("-")[1]) for one in root.glob("pid-*")]
        while any(Path(f"/proc/{worker}/cmdline").exists() and _alive(worker) for worker in workers):
            assert time.monotonic() < deadline, "workers outlive the build"
            time.sleep(0.02)

        finished = {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")}
        assert 2 <= len(finished) < 9
        for one in finished:
            assert pq.read_metadata(one).num_rows == 2  # whole
        assert not (out / "manifest.json").exists()
        with pytest.raises(BuildError, match=r"Begun and not finished: toy-train; run the same build command again"):
            load_build(out, "train")

        make_toy(root, **frames)
        recorded = {one for one in finished if (out / ".state" / f"{one.name}.json").exists()}
        build_toy(root, out, rows_per_shard=2)
        assert {one: one.stat().st_mtime_ns for one in recorded}.items() <= finished.items()
        build_toy(root, tmp_path / "whole", rows_per_shard=2)
        assert build_files(out) == build_files(tmp_path / "whole")

    @pytest.mark.slow
    def test_killed_worker(self, root, out, tmp_path):
        make_toy(root, die=["scene1/left_002"])
        with pytest.raises(BuildError, match="A worker process was killed"):
            build_toy(root, out, workers=2)
        build_toy(root, out, workers=2)
        build_toy(root, tmp_path / "whole")
        assert build_files(out) == build_files(tmp_path / "whole")

    def test_finished_is_not_made_again_and_damaged_is(self, root, out):
        build_toy(root, out)
        times, whole = _times(out), build_files(out)
        make_toy(root, bug=["scene0/left_000"])  # whoever reads fails
        build_toy(root, out)
        assert _times(out) == times
        make_toy(root)
        shards = sorted(out.glob("*.parquet"))
        data = bytearray(shards[0].read_bytes())
        data[500] ^= 1
        shards[0].write_bytes(data)
        shards[2].unlink()
        said = []
        build_toy(root, out, events=BuildEvents(say=said.append))
        assert build_files(out) == whole
        assert said[0] == "toy-train-00000-of-00003.parquet is not what its record says: it is made again."

    def test_other_parameters(self, root, out):
        build_toy(root, out)
        for changes, words in (
            ({"points": 7}, r"other parameters:\n  points: 10 there, 7 now\n"),
            ({"seed": 5}, "seed: 0 there, 5 now"),
            ({"options": {"farther": 3}}, r"options: {} there, {'farther': 3} now"),
        ):
            with pytest.raises(BuildError, match=words):
                build_toy(root, out, **changes)
        make_toy(root, frames=5)
        with pytest.raises(BuildError, match="frames_sha256"):
            build_toy(root, out)

    def test_two_at_once(self, root, out):
        seen = []

        def begin(images: int, done: int) -> None:
            with pytest.raises(BuildError, match="Another process is building toy-train"):
                build_toy(root, out)
            seen.append(images)

        build_toy(root, out, events=BuildEvents(begin=begin))
        assert seen == [16]
        build_toy(root, out)  # and the lock is given back


class TestBadFrames:
    def test_more_than_allowed_stop_it(self, root, out, tmp_path):
        bad = ["scene0/right_003", "scene1/left_001", "scene1/right_003"]
        make_toy(root, fail=bad)
        with pytest.raises(TooManyBadFramesError) as caught:
            build_toy(root, out, max_bad=1)
        said = [f"  {name}: {name}.png is truncated" for name in bad[:2]]
        assert str(caught.value).splitlines()[:3] == ["2 frame(s) cannot be used, and --max-bad allows 1:", *said]
        kept = _times(out)
        assert kept
        assert not list(out.glob(".state/*.tmp"))
        entry = build_toy(root, out, max_bad=3)
        assert entry["counts"]["bad"] == 3
        assert kept.items() <= _times(out).items()
        make_toy(root)
        assert build_toy(root, out)["counts"]["bad"] == 3
        assert build_toy(root, out, retry_bad=True)["counts"] == build_toy(root, tmp_path / "good")["counts"]

    def test_by_default_one_in_a_hundred_and_ten_at_least(self, root, out):
        make_toy(root, frames=50, fail=[f"scene0/left_{i:03d}" for i in range(11)])  # of 200
        with pytest.raises(TooManyBadFramesError, match=r"11 frame\(s\) cannot be used, and --max-bad allows 10"):
            build_toy(root, out, rows_per_shard=50)

    @pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_a_fault_of_the_reader(self, root, out, workers):
        make_toy(root, bug=["scene1/left_001"])
        with pytest.raises(BuildError, match="Reading the frame scene1/left_001 of toy failed with KeyError"):
            build_toy(root, out, workers=workers)
        assert not (out / "manifest.json").exists()

    def test_nothing_usable(self, root, out, monkeypatch):
        make_toy(root, frames=1, empty=[f"scene{i}/{side}_000" for i in range(2) for side in ("left", "right")])
        with pytest.raises(BuildError, match=r"None of the 4 frames of toy-train can be used\. 4: none of its"):
            build_toy(root, out)
        for ids, reason in ((["a", "a"], "two frames 'a'"), (["../a"], "a frame '../a'")):
            monkeypatch.setattr(ToySource, "index", lambda self, split, ids=ids: [FrameRef(one, "s") for one in ids])
            with pytest.raises(BuildError, match=reason):
                plan_build(ToySource(root), "train")

    def test_arguments(self, root, out):
        for wrong in ({"points": 0}, {"num_images": 0}, {"rows_per_shard": 0}, {"workers": 0}, {"max_bad": -1}):
            with pytest.raises(BuildError, match="must be at least"):
                build_toy(root, out, **wrong)
        with pytest.raises(BuildError, match="engine must be one of processes, ray, got 'spark'"):
            build_toy(root, out, engine="spark")
        with pytest.raises(SourceError, match="no split 'val'"):
            build_toy(root, out, split="val")


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch):
        monkeypatch.setattr("depthvlm.benchmark.sources.open_source", open_toy)
        app = typer.Typer()
        app.command()(_command_bench_build.build)
        app.command()(_command_bench_build.inspect)
        return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_build(self, run, root, out, tmp_path):
        make_toy(root, fail=["scene1/left_001"])
        arguments = ("build", "toy", "--root", root, "--out", out, "--split", "train", "--workers", 1)
        result = run(*arguments, "--rows-per-shard", 6, "--jsonl")
        assert result.exit_code == 0, result.output
        for words in ("toy-train: 16 of 16 frames, 3 shards.", "15 images, 150 points"):
            assert words in result.output
        assert "Not usable: scene1/left_001: scene1/left_001.png is truncated" in result.output
        build_toy(root, tmp_path / "other")
        write_annotations(tmp_path / "other", "toy", "train")
        assert build_files(out) == build_files(tmp_path / "other")
        assert "3 of 3 shards are there." in run(*arguments, "--rows-per-shard", 6).output

    def test_lines_that_no_build_wrote_stay(self, run, root, out):
        mine = out / "toy-train.jsonl"
        write_text(mine, "mine\n")

        def build(*options: str):
            return run("build", "toy", "--root", root, "--out", out, "--split", "train", "--workers", 1, *options)

        refused = build("--jsonl")
        assert refused.exit_code == 1
        assert "toy-train.jsonl is there, and no build wrote it" in " ".join(refused.output.split())
        assert list(out.iterdir()) == [mine]  # before anything is built
        assert build().exit_code == 0
        with pytest.raises(BuildError, match="no build wrote it"):
            write_annotations(out, "toy", "train")
        assert mine.read_text() == "mine\n"
        assert not (out / "__files__").exists()

        mine.unlink()
        assert build("--jsonl").exit_code == 0
        written = mine.read_bytes()
        mine.write_bytes(written[:100])  # cut off, as by a full disk
        assert build("--jsonl").exit_code == 0
        assert mine.read_bytes() == written
        mine.write_bytes(written + b"{}\n")
        assert "or it was changed since" in " ".join(build("--jsonl").output.split())
        assert mine.read_bytes() == written + b"{}\n"

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            ((), 2, "toy has the splits train and test: choose one with --split"),
            (("--split", "test", "--max-bad", 0), 1, "1 frame(s) cannot be used, and --max-bad allows 0"),
            (("--split", "test", "--option", "nearer=3"), 1, "nearer"),
            (("--split", "test", "--address", "auto"), 2, ""),
        ],
    )
    def test_errors(self, run, root, out, options, code, words):
        make_toy(root, fail=["scene1/left_001"])
        result = run("build", "toy", "--root", root, "--out", out, "--workers", 1, *options)
        assert result.exit_code == code
        assert words in result.output


def _times(out: Path) -> dict[Path, int]:
    return {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")}


def _alive(pid: int) -> bool:
    """Whether a process runs, and does not only wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
