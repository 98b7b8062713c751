"""The builder: rows that are exact and train, the same bytes by any number of workers, and builds that go on."""

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
from bench_source import IMAGE_SIZE, INTRINSICS, ToySource, build_files, make_toy, open_toy, toy_depth, toy_image
from datasets import Image as ImageFeature
from datasets import load_dataset
from depthvlm.benchmark.annotations_out import annotation_line, write_annotations
from depthvlm.benchmark.build_plan import plan_build
from depthvlm.benchmark.builder import run_build
from depthvlm.benchmark.frames import Frame, FrameError, FrameRef, SourceError
from depthvlm.benchmark.shard_rows import RowMaker, depth_messages
from depthvlm.benchmark.shard_writer import BuildError, TooManyBadFramesError
from depthvlm.benchmark.shards import load_build
from depthvlm.processing import read_depth
from depthvlm.training.depth_data_collator import DepthDataCollator
from depthvlm.training.depth_dataset import prepare_depth_dataset
from depthvlm.training.depth_sft_config import DepthSFTConfig
from PIL import Image
from toy_rows import toy_processor
from typer.testing import CliRunner

from depthvlm import _command_bench_build

TESTS = Path(__file__).parent
KILLED = """
import sys
from bench_source import open_toy
from depthvlm.benchmark.build_plan import plan_build
from depthvlm.benchmark.builder import run_build

if __name__ == "__main__":
    root, out = sys.argv[1:]
    run_build(plan_build(open_toy("toy", root), "train", rows_per_shard=2), open_toy, root, out, workers=2)
"""


def build(root: Path, out: Path, split: str = "train", name: str = "toy", **settings):
    plan_names = ("num_images", "points", "seed", "rows_per_shard", "options")
    planned = {key: settings.pop(key) for key in plan_names if key in settings}
    plan = plan_build(open_toy(name, root, **planned.get("options", {})), split, **{"rows_per_shard": 6, **planned})
    return run_build(plan, open_toy, root, out, **{"workers": 1, **settings})


@pytest.fixture
def root(tmp_path) -> Path:
    """2 scenes, 2 cameras, 4 frames of each: 16 in 3 shards of 6, 6 and 4."""
    return make_toy(tmp_path / "root")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def rows(out: Path, tmp_path: Path, split: str = "train", decode: bool = False) -> list[dict]:
    data = load_build(out, split, cache_dir=str(tmp_path / "cache"))
    for column in ("image", "depth"):
        data = data.cast_column(column, ImageFeature(decode=decode))
    return list(data)


def expected_millimetres(order: int) -> np.ndarray:
    depth = toy_depth(order)
    depth[0] = 0  # masked
    depth[:, 1] = 0  # 60 m, out of range
    return depth


class TestRows:
    @pytest.mark.parametrize("floats", [False, True])
    def test_exact(self, tmp_path, out, floats):
        build(make_toy(tmp_path / "root", float=floats), out)
        found = rows(out, tmp_path)
        assert len(found) == 16
        assert found[0]["id"] == "scene0/left_000"
        for row in found:
            order = int(row["id"][-3:])
            assert row["image"]["bytes"] == toy_image(row["id"])
            picture = Image.open(io.BytesIO(row["depth"]["bytes"]))
            raw = np.asarray(picture)
            millimetres = expected_millimetres(order)
            if floats:
                exact = np.where(millimetres > 0, millimetres / np.float32(1000) + np.float32(1e-5), 0)
                assert (raw.dtype, row["depth_scale"]) == (np.float32, 1)
                np.testing.assert_array_equal(raw, exact.astype(np.float32))
            else:
                assert (raw.dtype, row["depth_scale"]) == (np.uint16, 1000)
                np.testing.assert_array_equal(raw, millimetres)
            metres = read_depth(picture, row["depth_scale"])
            np.testing.assert_array_equal(metres, read_depth(picture, None))  # the file alone says its scale
            frame = ToySource(tmp_path / "root").read(FrameRef(row["id"], "", "", order))
            np.testing.assert_array_equal(metres, frame.metres(ToySource.depth_range))
            assert len(row["points"]) == 10
            for point in row["points"]:
                assert point["depth"] == raw[point["row"], point["column"]] / row["depth_scale"] > 0

    @pytest.mark.parametrize("scale", [256, 512, 1000, 4000, 65535 / 50])
    def test_ends_of_the_range(self, scale):
        every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
        for depth_range in ((0.05, 120.0), (0.001, 10.0), (0.005, 15.0), (0.01, 50.0)):
            frame = Frame(FrameRef("a", "s"), toy_image("a"), IMAGE_SIZE, every, scale, INTRINSICS)
            row = RowMaker("toy", "train", depth_range, 0, depth_messages()).row(frame, frame.ref, 10)
            raw = np.asarray(Image.open(io.BytesIO(row["depth"]["bytes"])))
            np.testing.assert_array_equal(raw, np.where(frame.metres(depth_range) > 0, every, 0))

    def test_columns(self, root, out, tmp_path):
        build(root, out)
        row = rows(out, tmp_path, decode=True)[5]
        assert {key: row[key] for key in ("id", "source", "split", "scene", "camera", "depth_type")} == {
            "id": "scene0/right_002",
            "source": "toy",
            "split": "train",
            "scene": "scene0",
            "camera": "right",
            "depth_type": "z_depth",
        }
        assert row["image"].size == (row["width"], row["height"]) == IMAGE_SIZE
        assert row["depth"].size == (row["depth_width"], row["depth_height"]) == (32, 24)
        assert row["intrinsics"] == list(INTRINSICS)
        assert row["focal_length"] == 50
        assert row["depth_range"] == [0.5, 50]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][2]["content"] == "OK, I will estimate the depth map of this image."

    def test_neighbours_in_time_are_neighbours(self, root, out, tmp_path):
        build(root, out)
        ids = [row["id"] for row in rows(out, tmp_path)]
        assert ids[:4] == ["scene0/left_000", "scene0/right_000", "scene0/left_001", "scene0/right_001"]

    def test_they_train(self, root, out, tmp_path):
        build(root, out)
        data = load_build(out, "train", cache_dir=str(tmp_path / "cache"))
        config = DepthSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
        prepared = prepare_depth_dataset(data, config)
        processor = toy_processor()
        batch = DepthDataCollator(processor, return_info=True)([prepared[0], prepared[7]])
        for label, row in zip(batch["depth_labels"], (prepared[0], prepared[7]), strict=True):
            np.testing.assert_allclose(label, expected_millimetres(int(row["id"][-3:])) / 1000, rtol=1e-6)
        np.testing.assert_allclose(batch["cameras"][:, :4], [INTRINSICS] * 2)
        labels = batch["labels"][0]
        reply = processor.tokenizer.decode(labels[labels >= 0])
        assert reply.startswith("OK, I will estimate the depth map of this image.")
        assert batch["batch_info"].rows[0] == "row 0 (scene0/left_000.jpg, scene0/left_000.png)"

    def test_any_datasets_user_can_load_it(self, root, out, tmp_path):
        build(root, out)
        build(root, out, "test", num_images=4)
        write_annotations(out, "toy", "train")
        data = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {split: part.num_rows for split, part in data.items()} == {"train": 16, "test": 4}
        assert data["train"][0]["image"].size == IMAGE_SIZE

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"depth": np.zeros((4, 5), np.uint16)}, "none of its 20 pixels has depth within 0.5 to 50 m"),
            ({"depth": np.full((4, 5), 65000, np.uint16)}, "none of its 20 pixels"),
            ({"image": b"not an image"}, "its image of 12 bytes is none that Pillow can read"),
            ({"image_size": (48, 64)}, "has 64x48 pixels .*, its camera is for 48x64"),
            ({"intrinsics": (0.0, 50.0, 1.0, 1.0)}, "not finite with positive fx and fy"),
            ({"intrinsics": (50.0, 50.0, float("nan"), 1.0)}, "not finite"),
        ],
    )
    def test_frames_without_use(self, change, reason):
        ref = FrameRef("a", "s")
        good = {"image": toy_image("a"), "image_size": IMAGE_SIZE, "depth": toy_depth(0), "intrinsics": INTRINSICS}
        maker = RowMaker("toy", "train", (0.5, 50.0), 0, depth_messages())
        assert maker.row(Frame(ref, depth_scale=1000, **good), ref, 3)["points"]
        with pytest.raises(FrameError, match=reason):
            maker.row(Frame(ref, depth_scale=1000, **{**good, **change}), ref, 3)

    def test_faults_of_a_reader(self):
        ref = FrameRef("a", "s")
        maker = RowMaker("toy", "train", (0.5, 50.0), 0, depth_messages())
        for depth, scale, mask in (
            (toy_depth(0).astype(np.float64), 1, None),
            (toy_depth(0).astype(np.float32), 1000, None),
            (toy_depth(0), 0, None),
            (toy_depth(0)[0], 1000, None),
            (toy_depth(0), 1000, np.ones((2, 2), bool)),
        ):
            with pytest.raises(ValueError, match="depth must be"):
                maker.row(Frame(ref, toy_image("a"), IMAGE_SIZE, depth, scale, INTRINSICS, mask), ref, 3)


class TestBytes:
    def test_any_number_of_workers(self, root, tmp_path):
        make_toy(root, fail=["scene1/left_001"])
        for workers in (1, 3):
            build(root, tmp_path / f"by{workers}", workers=workers)
            write_annotations(tmp_path / f"by{workers}", "toy", "train")
        one, three = build_files(tmp_path / "by1"), build_files(tmp_path / "by3")
        assert one == three
        assert sum(name.endswith(".parquet") for name in one) == 3

    def test_any_place(self, tmp_path):
        for name in ("a", "b"):
            make_toy(tmp_path / name / "root", fail=["scene0/left_001"])
            build(tmp_path / name / "root", tmp_path / name / "out")
        assert build_files(tmp_path / "a" / "out") == build_files(tmp_path / "b" / "out")
        assert str(tmp_path).encode() not in b"".join(build_files(tmp_path / "a" / "out").values())

    def test_seed(self, root, tmp_path):
        for seed in (0, 1):
            build(root, tmp_path / str(seed), seed=seed)
        one, other = (rows(tmp_path / str(seed), tmp_path) for seed in (0, 1))
        assert [row["depth"]["bytes"] for row in one] == [row["depth"]["bytes"] for row in other]
        assert all(a["points"] != b["points"] for a, b in zip(one, other, strict=True))

    def test_manifest(self, root, out):
        make_toy(root, fail=["scene1/left_001"], empty=["scene0/right_003"])
        entry = build(root, out, num_images=100)
        assert json.loads((out / "manifest.json").read_text()) == {"format": 1, "builds": {"toy-train": entry}}
        assert entry["counts"]["rows"] == 14
        assert entry["counts"]["points"] == 140
        assert (entry["counts"]["scenes"], entry["counts"]["cameras"]) == (2, 2)
        assert [shard["rows"] for shard in entry["shards"]] == [6, 4, 4]
        assert entry["bad_frames"] == [
            {"id": "scene0/right_003", "reason": "none of its 768 pixels has depth within 0.5 to 50 m"},
            {"id": "scene1/left_001", "reason": "scene1/left_001.png is truncated"},
        ]
        assert entry["notes"][0] == "100 images were asked for, the source has 16: all are taken."
        for shard in entry["shards"]:
            data = (out / shard["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            assert len(data) == shard["bytes"]
            assert pq.read_metadata(out / shard["file"]).num_rows == shard["rows"]
        assert [shard["file"] for shard in entry["shards"]] == [f"toy-train-{i:05d}-of-00003.parquet" for i in range(3)]

    def test_small_evaluation_set(self, tmp_path, out):
        root = make_toy(tmp_path / "root", frames=6)  # 24 images share 10000 points
        entry = build(root, out, "test", name="nyuv2")
        assert entry["counts"]["points"] == 10_000
        assert {len(row["points"]) for row in rows(out, tmp_path, "test")} == {416, 417}
        chosen = build(root, tmp_path / "chosen", "test", name="nyuv2", num_images=24)
        assert chosen["counts"]["points"] == 240

    def test_images_with_few_valid_pixels(self, root, out):
        entry = build(root, out, points=1000)  # of the 768 pixels 23 x 30 are valid
        assert entry["counts"]["points"] == 16 * 690
        assert entry["counts"]["short_of_points"] == 16
        assert entry["notes"] == [
            "16 images have fewer valid pixels than points were asked for: all of those are taken."
        ]


class TestGoingOn:
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
        build(root, out, rows_per_shard=2)
        assert {one: one.stat().st_mtime_ns for one in recorded}.items() <= finished.items()
        build(root, tmp_path / "whole", rows_per_shard=2)
        assert build_files(out) == build_files(tmp_path / "whole")

    def test_killed_worker(self, root, out, tmp_path):
        make_toy(root, die=["scene1/left_002"])
        with pytest.raises(BuildError, match="A worker process was killed"):
            build(root, out, workers=2)
        build(root, out, workers=2)
        build(root, tmp_path / "whole")
        assert build_files(out) == build_files(tmp_path / "whole")

    def test_finished_is_not_made_again(self, root, out):
        build(root, out)
        times = {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")}
        make_toy(root, bug=["scene0/left_000"])  # whoever reads fails
        build(root, out)
        assert {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")} == times

    def test_damaged_shards_are_made_again(self, root, out, tmp_path):
        build(root, out)
        whole = build_files(out)
        shards = sorted(out.glob("*.parquet"))
        data = bytearray(shards[0].read_bytes())
        data[500] ^= 1
        shards[0].write_bytes(data)
        shards[2].unlink()
        said = []
        build(root, out, events=_events(said))
        assert build_files(out) == whole
        assert said[0] == "toy-train-00000-of-00003.parquet is not what its record says: it is made again."

    def test_other_parameters(self, root, out):
        build(root, out)
        with pytest.raises(BuildError, match=r"other parameters:\n  points: 10 there, 7 now\n"):
            build(root, out, points=7)
        with pytest.raises(BuildError, match="seed: 0 there, 5 now"):
            build(root, out, seed=5)
        with pytest.raises(BuildError, match=r"options: {} there, {'farther': 3} now"):
            build(root, out, options={"farther": 3})
        make_toy(root, frames=5)
        with pytest.raises(BuildError, match="frames_sha256"):
            build(root, out)

    def test_two_at_once(self, root, out):
        seen = []

        def begin(images: int, done: int) -> None:
            with pytest.raises(BuildError, match="Another process is building toy-train"):
                build(root, out)
            seen.append(images)

        build(root, out, events=_events([], begin))
        assert seen == [16]
        build(root, out)  # and the lock is given back

    def test_options_reach_the_workers(self, root, out, tmp_path):
        build(root, out, options={"farther": 5}, workers=2)
        row = rows(out, tmp_path)[0]
        assert np.asarray(Image.open(io.BytesIO(row["depth"]["bytes"])))[1, 2] == 1000 + 500 + 20 + 1


class TestBadFrames:
    def test_more_than_allowed_stop_it(self, root, out, tmp_path):
        make_toy(root, fail=["scene0/right_003", "scene1/left_001", "scene1/right_003"])
        with pytest.raises(TooManyBadFramesError) as caught:
            build(root, out, max_bad=1)
        lines = str(caught.value).splitlines()
        assert lines[0] == "2 frames cannot be used, and --max-bad allows 1:"
        assert lines[1:3] == [
            "  scene0/right_003: scene0/right_003.png is truncated",
            "  scene1/left_001: scene1/left_001.png is truncated",
        ]
        kept = {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")}
        assert kept
        assert not list(out.glob(".state/*.tmp"))
        entry = build(root, out, max_bad=3)
        assert entry["counts"]["bad"] == 3
        assert kept.items() <= {one: one.stat().st_mtime_ns for one in out.glob("*.parquet")}.items()
        make_toy(root)
        assert build(root, out)["counts"]["bad"] == 3
        assert build(root, out, retry_bad=True)["counts"] == build(root, tmp_path / "good")["counts"]

    def test_by_default_one_in_a_hundred_and_ten_at_least(self, root, out):
        make_toy(root, frames=50, fail=[f"scene0/left_{i:03d}" for i in range(11)])  # of 200
        with pytest.raises(TooManyBadFramesError, match="11 frames cannot be used, and --max-bad allows 10"):
            build(root, out, rows_per_shard=50)

    def test_a_fault_of_the_reader(self, root, out):
        make_toy(root, bug=["scene1/left_001"])
        for workers in (1, 2):
            with pytest.raises(BuildError, match="Reading the frame scene1/left_001 of toy failed with KeyError"):
                build(root, out, workers=workers)
        assert not (out / "manifest.json").exists()

    def test_nothing_usable(self, root, out):
        make_toy(root, frames=1, empty=[f"scene{i}/{side}_000" for i in range(2) for side in ("left", "right")])
        with pytest.raises(BuildError, match=r"None of the 4 frames of toy-train can be used\. 4: none of its"):
            build(root, out)

    @pytest.mark.parametrize(("ids", "reason"), [(["a", "a"], "two frames 'a'"), (["../a"], "a frame '../a'")])
    def test_ids(self, root, monkeypatch, ids, reason):
        monkeypatch.setattr(ToySource, "index", lambda self, split: [FrameRef(one, "s") for one in ids])
        with pytest.raises(BuildError, match=reason):
            plan_build(ToySource(root), "train")

    def test_arguments(self, root, out):
        for wrong in ({"points": 0}, {"num_images": 0}, {"rows_per_shard": 0}, {"workers": 0}, {"max_bad": -1}):
            with pytest.raises(BuildError, match="must be at least"):
                build(root, out, **wrong)
        with pytest.raises(BuildError, match="engine must be one of processes, ray, got 'spark'"):
            build(root, out, engine="spark")
        with pytest.raises(SourceError, match="no split 'val'"):
            build(root, out, split="val")


class TestReading:
    def test_what_is_missing_or_damaged(self, root, out, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load_build(out, "train")
        build(root, out)
        with pytest.raises(BuildError, match=r"no finished build of test; its manifest.json lists toy-train"):
            load_build(out, "test")
        shard = sorted(out.glob("*.parquet"))[1]
        data = shard.read_bytes()
        shard.write_bytes(data[:-1] + b"?")
        with pytest.raises(BuildError, match="sha256"):
            load_build(out, "train", verify=True)
        shard.write_bytes(data[:100])
        with pytest.raises(BuildError, match=r"00001-of-00003\.parquet has 100 bytes, the manifest says"):
            load_build(out, "train")
        shard.unlink()
        with pytest.raises(BuildError, match=r"00001-of-00003\.parquet is missing"):
            load_build(out, "train")
        (out / "manifest.json").write_text("{")
        with pytest.raises(BuildError, match="is damaged"):
            load_build(out, "train")

    def test_several_sources(self, root, out, tmp_path):
        build(root, out, "test")
        build(root, out, "test", name="nyuv2", num_images=4)
        cache = {"cache_dir": str(tmp_path / "cache")}
        assert load_build(out, "test", verify=True, **cache).num_rows == 20
        assert load_build(out, "test", "toy", **cache).num_rows == 16


class TestReleasedForm:
    def test_lines_train_alike(self, root, out, tmp_path):
        build(root, out)
        path = write_annotations(out, "toy", "train")
        assert path == out / "toy-train.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        collator = DepthDataCollator(toy_processor(), image_root=str(out), depth_root=str(out))
        batch = collator(lines)
        found = rows(out, tmp_path)
        reference = DepthDataCollator(toy_processor())(found)
        for label, other, line in zip(batch["depth_labels"], reference["depth_labels"], lines, strict=True):
            np.testing.assert_array_equal(label, other)
            columns, down = np.array(line["pixel_coords"]).T
            np.testing.assert_allclose(label[down, columns], line["depth"], rtol=1e-6)
        assert (batch["input_ids"] == reference["input_ids"]).all()
        assert (batch["pixel_values"] == reference["pixel_values"]).all()
        assert lines[0]["image"] == "__files__/toy-train/image/scene0/left_000.jpg"
        assert lines[0]["canonical_size"] == [1280, 960]  # 64x48 at 50 pixels

    @pytest.mark.real_data
    def test_released_examples(self, shared):
        """A row of the sizes, camera and points of each released line gives that line."""
        text = (shared / "data" / "scannetpp" / "examples.jsonl").read_text()
        released = [json.loads(line) for line in text.splitlines()]
        assert len(released) == 12
        for line in released:
            fx = line["original_fx"]
            row = {
                "id": "a",
                "scene": line["scene_id"],
                "image": {"path": line["image"]},
                "depth": {"path": line["depth_path"]},
                "depth_scale": line["depth_scale"],
                "width": 1920,
                "height": 1440,
                "depth_width": 256,
                "depth_height": 192,
                "intrinsics": [fx, fx, 959.5, 719.5],
                "points": [
                    {"column": pixel[0], "row": pixel[1], "depth": metres}
                    for pixel, metres in zip(line["pixel_coords"], line["depth"], strict=True)
                ],
                "messages": depth_messages(),
                "depth_type": "z_depth",
            }
            ours = annotation_line(row, "")
            paths = {"image": f"image/{line['image']}", "depth_path": f"depth/{line['depth_path']}"}
            assert ours.items() >= (line | paths).items()


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
        assert "toy-train: 16 of 16 frames, 3 shards." in result.output
        assert "15 images, 150 points" in result.output
        assert "Not usable: scene1/left_001: scene1/left_001.png is truncated" in result.output
        build(root, tmp_path / "other")
        write_annotations(tmp_path / "other", "toy", "train")
        assert build_files(out) == build_files(tmp_path / "other")
        again = run(*arguments, "--rows-per-shard", 6)
        assert "3 of 3 shards are there." in again.output

    def test_errors(self, run, root, out):
        arguments = ("build", "toy", "--root", root, "--out", out, "--workers", 1)
        result = run(*arguments)
        assert result.exit_code == 2
        assert "toy has the splits train and test: choose one with --split" in result.output
        make_toy(root, fail=["scene1/left_001"])
        result = run(*arguments, "--split", "test", "--max-bad", 0)
        assert result.exit_code == 1
        assert "1 frames cannot be used, and --max-bad allows 0" in result.output
        result = run(*arguments, "--split", "test", "--option", "nearer=3")
        assert result.exit_code == 1
        assert "nearer" in result.output
        result = run(*arguments, "--split", "test", "--address", "auto")
        assert result.exit_code == 2


def _events(said: list[str], begin=lambda images, done: None):
    from depthvlm.benchmark.builder import BuildEvents

    return BuildEvents(begin=begin, say=said.append)


def _alive(pid: int) -> bool:
    """Whether a process runs, and does not only wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
