"""Rows of a build: exact, trainable, readable by anyone, and in the released form."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from bench_builds import build_rows, build_toy
from bench_source import IMAGE_SIZE, INTRINSICS, ToySource, make_toy, toy_depth, toy_image
from datasets import load_dataset
from depthvlm.benchmark.build import shards
from depthvlm.benchmark.build.annotations import annotation_line, write_annotations
from depthvlm.benchmark.build.records import RowMaker, benchmark_features, depth_messages
from depthvlm.benchmark.build.shard_writer import BuildError
from depthvlm.benchmark.build.shards import load_build
from depthvlm.benchmark.scoring.eval_sets import EvalSet
from depthvlm.benchmark.sources.frames import Frame, FrameError, FrameRef
from depthvlm.processing import read_depth
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.config import DepthSFTConfig
from depthvlm.training.dataset import prepare_depth_dataset
from PIL import Image
from toy_rows import toy_processor
from toy_source_files import spoils


@pytest.fixture
def root(tmp_path) -> Path:
    """2 scenes, 2 cameras, 4 frames of each: 16 in 3 shards of 6, 6 and 4."""
    return make_toy(tmp_path / "root")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def expected_millimetres(order: int) -> np.ndarray:
    depth = toy_depth(order)
    depth[0] = 0  # masked
    depth[:, 1] = 0  # 60 m, out of range
    return depth


class TestRows:
    @pytest.mark.parametrize("floats", [False, True])
    def test_exact(self, tmp_path, out, floats):
        build_toy(make_toy(tmp_path / "root", float=floats), out)
        found = build_rows(out, tmp_path)
        ids = ["scene0/left_000", "scene0/right_000", "scene0/left_001", "scene0/right_001"]
        assert [row["id"] for row in found][:4] == ids  # neighbours in time are neighbours
        assert len(found) == 16
        for row in found:
            order = int(row["id"][-3:])
            assert row["image"]["bytes"] == toy_image(row["id"])
            picture = Image.open(io.BytesIO(row["depth"]["bytes"]))
            raw, expected = np.asarray(picture), expected_millimetres(order)
            if floats:
                exact = np.where(expected > 0, expected / np.float32(1000) + np.float32(1e-5), 0)
                expected = exact.astype(np.float32)
            assert (raw.dtype, row["depth_scale"]) == (expected.dtype, 1 if floats else 1000)
            np.testing.assert_array_equal(raw, expected)
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
        build_toy(root, out)
        row = build_rows(out, tmp_path, decode=True)[5]
        names = {"id": "scene0/right_002", "source": "toy", "split": "train", "scene": "scene0", "camera": "right"}
        camera = {"depth_type": "z_depth", "intrinsics": list(INTRINSICS), "focal_length": 50, "depth_range": [0.5, 50]}
        assert row.items() >= (names | camera).items()
        assert row["image"].size == (row["width"], row["height"]) == IMAGE_SIZE
        assert row["depth"].size == (row["depth_width"], row["depth_height"]) == (32, 24)
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][2]["content"] == "OK, I will estimate the depth map of this image."

    def test_builds_that_count_from_the_centre_of_the_first_pixel_are_brought_to_its_edge(self, root, out, tmp_path):
        build_toy(root, out)
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["builds"]["toy-train"]["parameters"].pop("pixel_centre") == 0.5
        (out / "manifest.json").write_text(json.dumps(manifest))
        old = load_build(out, "train", cache_dir=str(tmp_path / "cache"))
        fx, fy, cx, cy = INTRINSICS
        assert old["intrinsics"][0] == [fx, fy, cx + 0.5, cy + 0.5]
        assert old.features == benchmark_features()

    def test_they_train(self, root, out, tmp_path):
        build_toy(root, out)
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
        build_toy(root, out)
        build_toy(root, out, "test", num_images=4)
        write_annotations(out, "toy", "train")
        data = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {split: part.num_rows for split, part in data.items()} == {"train": 16, "test": 4}
        assert data["train"][0]["image"].size == IMAGE_SIZE

    @pytest.mark.parametrize(
        ("change", "error", "reason"),
        [
            ({"depth": np.zeros((4, 5), np.uint16)}, FrameError, "none of its 20 pixels has depth within 0.5 to 50 m"),
            ({"depth": np.full((4, 5), 65000, np.uint16)}, FrameError, "none of its 20 pixels"),
            ({"image": b"not an image"}, FrameError, "its image of 12 bytes cannot be read"),
            ({"image_size": (48, 64)}, FrameError, "has 64x48 pixels .*, its camera is for 48x64"),
            ({"intrinsics": (0.0, 50.0, 1.0, 1.0)}, FrameError, "not finite with positive fx and fy"),
            ({"intrinsics": (50.0, 50.0, float("nan"), 1.0)}, FrameError, "not finite"),
            # faults of a reader
            ({"depth": toy_depth(0).astype(np.float64), "depth_scale": 1}, ValueError, "depth must be"),
            ({"depth": toy_depth(0).astype(np.float32)}, ValueError, "depth must be"),
            ({"depth_scale": 0}, ValueError, "depth must be"),
            ({"depth": toy_depth(0)[0]}, ValueError, "depth must be"),
            ({"mask": np.ones((2, 2), bool)}, ValueError, "depth must be"),
        ],
    )
    def test_frames_without_use(self, change, error, reason):
        ref = FrameRef("a", "s")
        good = {"image": toy_image("a"), "image_size": IMAGE_SIZE, "depth": toy_depth(0), "intrinsics": INTRINSICS}
        good["depth_scale"] = 1000
        maker = RowMaker("toy", "train", (0.5, 50.0), 0, depth_messages())
        assert maker.row(Frame(ref, **good), ref, 3)["points"]
        with pytest.raises(error, match=reason):
            maker.row(Frame(ref, **good | change), ref, 3)


class TestReading:
    def test_what_is_missing_or_damaged(self, root, out, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load_build(out, "train")
        build_toy(root, out)
        with pytest.raises(BuildError, match=r"no finished build of test; its manifest.json lists toy-train"):
            load_build(out, "test")
        shard = sorted(out.glob("*.parquet"))[1]
        data, manifest = shard.read_bytes(), (out / "manifest.json").read_text()
        shard.write_bytes(data[:-1] + b"?")
        with pytest.raises(BuildError, match="sha256"):
            load_build(out, "train", verify=True)

        def damaged(change) -> str:
            content = json.loads(manifest)
            change(content["builds"]["toy-train"])
            return json.dumps(content)

        part, listed = shard.name, "manifest.json is damaged ."
        spoils(
            lambda: load_build(out, "train"),
            out,
            (part, data[:100], r"00001-of-00003\.parquet has 100 bytes, the manifest says"),
            (part, None, r"00001-of-00003\.parquet is missing"),
            ("manifest.json", damaged(lambda b: b.pop("split")), f"{listed}it lacks 'split'"),
            ("manifest.json", damaged(lambda b: b["shards"][0].pop("sha256")), f"{listed}it lacks 'sha256'"),
            ("manifest.json", damaged(lambda b: b.update(shards=[])), f"{listed}a build without shards"),
            (
                "manifest.json",
                damaged(lambda b: b["shards"][0].update(bytes="1")),
                f"{listed}something is of the wrong",
            ),
            ("manifest.json", "{", "is damaged"),
            error=BuildError,
        )

    def test_altered_bytes_are_not_scored(self, root, out, tmp_path, monkeypatch):
        """Of the same size and under the genuine hash: only reading the file shows it. Unaltered, it is read once."""
        build_toy(root, out, "test")
        EvalSet(out, "toy")
        monkeypatch.setattr(shards, "file_hash", lambda path: pytest.fail(f"{path} was read again"))
        EvalSet(out, "toy")
        monkeypatch.undo()
        shard = sorted(out.glob("*.parquet"))[1]
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        times = shard.stat()
        shard.write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(BuildError, match=r"test-00001-of-00003\.parquet are not those of the manifest .* altered"):
            EvalSet(out, "toy")

    def test_several_sources(self, root, out, tmp_path):
        build_toy(root, out, "test")
        build_toy(root, out, "test", name="nyuv2", num_images=4)
        cache = {"cache_dir": str(tmp_path / "cache")}
        assert load_build(out, "test", verify=True, **cache).num_rows == 20
        assert load_build(out, "test", "toy", **cache).num_rows == 16


class TestReleasedForm:
    def test_lines_train_alike(self, root, out, tmp_path):
        build_toy(root, out)
        path = write_annotations(out, "toy", "train")
        assert path == out / "toy-train.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        collator = DepthDataCollator(toy_processor(), image_root=str(out), depth_root=str(out))
        batch = collator(lines)
        found = build_rows(out, tmp_path)
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
            points = [(*pixel, metres) for pixel, metres in zip(line["pixel_coords"], line["depth"], strict=True)]
            row = {"id": "a", "scene": line["scene_id"], "messages": depth_messages(), "depth_type": "z_depth"}
            row |= {"image": {"path": line["image"]}, "depth": {"path": line["depth_path"]}}
            row |= {"depth_scale": line["depth_scale"], "depth_width": 256, "depth_height": 192}
            row |= {"width": 1920, "height": 1440, "intrinsics": [*[line["original_fx"]] * 2, 959.5, 719.5]}
            row["points"] = [dict(zip(("column", "row", "depth"), point, strict=True)) for point in points]
            paths = {"image": f"image/{line['image']}", "depth_path": f"depth/{line['depth_path']}"}
            assert annotation_line(row, "").items() >= (line | paths).items()
