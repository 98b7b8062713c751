"""Runs over many images, without a cluster: listing, plan, stages, shards, manifest, refusals."""

import hashlib
import io
import json
import pickle
import sys
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run as command
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import HfFileSystem
from loopback_hub import connected_hub
from loopback_repos import Token
from PIL import Image
from volume_runs import depth_rows, pixels, request, write_all, write_pictures

import depthvlm
from depthvlm.volume import manifest
from depthvlm.volume.cluster import task_resources, worker_resources
from depthvlm.volume.plan import write_plan
from depthvlm.volume.reading import read_items
from depthvlm.volume.run import Run
from depthvlm.volume.shards import write_shard
from depthvlm.volume.sources import Columns, Entry, Listing, table_columns
from depthvlm.volume.stages import write
from depthvlm.volume.storage import Storage


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("volume") / "pictures", 11)


def png16(prediction: depthvlm.Prediction) -> np.ndarray:
    """Millimetres by hand: the README's definition, where nothing is beyond 65 m."""
    return np.round(prediction.depth.astype(np.float64) * 1000).astype(np.uint16)


def table(path: Path, pictures: list[Path], **columns: list) -> Path:
    data = {"image": [{"bytes": one.read_bytes(), "path": one.name} for one in pictures], **columns}
    Dataset.from_dict(data).cast_column("image", ImageFeature()).to_parquet(path, batch_size=3)
    return path


def test_files_give_the_pixels_of_one_process(tmp_path, pictures, nano):
    bad = tmp_path / "in" / "004b.jpg"
    bad.parent.mkdir()
    for one in pictures:
        (bad.parent / one.name).write_bytes(one.read_bytes())
    bad.write_bytes(pictures[0].read_bytes()[:500])
    (bad.parent / "notes.txt").write_text("no image")
    run = Run(request([bad.parent], tmp_path / "out"))
    assert (run.summary.images, run.summary.shards, run.passed_over, run.is_complete) == (12, 2, 1, False)
    write_all(run)
    rows = depth_rows(tmp_path / "out")
    expected = nano.predict(pictures, fov=60, batch_size=1)
    assert list(rows) == [one.name for one in pictures]
    for path, prediction in zip(pictures, expected, strict=True):
        row = rows[path.name]
        assert np.array_equal(pixels(row), png16(prediction))
        assert row["depth_scale"] == 1000
        assert (row["source"], row["focal_source"]) == (str(bad.parent / path.name), "fov")
        assert row["camera"] == {key: getattr(prediction.camera, key) for key in ("fx", "fy", "cx", "cy")}
        assert (row["height"], row["width"]) == prediction.depth.shape
        assert row["median"] == pytest.approx(np.median(prediction.depth))
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["complete"]
    assert (content["images"], content["rows"], content["failed"]) == (12, 11, 1)
    [failure] = content["failures"]
    assert (failure["index"], failure["source"]) == (5, str(bad))
    assert "cannot be read, it may be damaged" in failure["reason"]
    for shard in content["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard["sha256"], shard["bytes"])
    assert content["settings"]["weights"]
    assert not list((tmp_path / "out" / ".depthvlm" / "partial").iterdir())


def test_batches_are_those_of_one_process(tmp_path, pictures, nano):
    run = Run(request(pictures, tmp_path / "out", batch_size=2, shard_rows=16))
    write_all(run)
    rows = depth_rows(tmp_path / "out")
    expected = nano.predict(pictures, fov=60, batch_size=2)
    assert all(
        np.array_equal(pixels(rows[path.name]), png16(one)) for path, one in zip(pictures, expected, strict=True)
    )


def test_a_table_with_cameras_of_its_own(tmp_path, pictures, nano):
    lengths = [80.0, None, 120.0, *[100.0] * 8]
    path = table(tmp_path / "a.parquet", pictures, focal_length=lengths, id=[f"p{n}" for n in range(11)])
    free = {"focal_length": None, "fov": None, "intrinsics": None}
    run = Run(request([path], tmp_path / "out", camera=free))
    write_all(run)
    rows = depth_rows(tmp_path / "out")
    with pytest.warns(UserWarning, match="not known"):
        expected = nano.predict(pictures, focal_length=lengths, batch_size=1)
    assert list(rows) == [f"p{n}" for n in range(11)]
    for number, prediction in enumerate(expected):
        assert np.array_equal(pixels(rows[f"p{number}"]), png16(prediction))
    assert rows["p2"]["camera"]["fx"] == 120.0
    assert rows["p10"]["source"] == f"{path}#10"
    assert run.done.focal_sources == {"focal_length": 10, "assumed": 1}
    with pytest.raises(ValueError, match="column focal_length, and --fov names the camera too"):
        Run(request([path], tmp_path / "other"))


def test_rows_with_intrinsics_a_bad_camera_or_no_image(tmp_path, pictures):
    matrix = [[90.0, 0.0, 40.0], [0.0, 90.0, 30.0], [0.0, 0.0, 1.0]]
    rows = [
        {"image": pictures[0].read_bytes(), "intrinsics": matrix, "fov": None},
        {"image": pictures[0].read_bytes(), "intrinsics": None, "fov": -3.0},
        {"image": None, "intrinsics": None, "fov": 50.0},
        {"image": pictures[0].read_bytes(), "intrinsics": matrix, "fov": 50.0},
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    columns = table_columns(pq.read_schema(path), None, "a")
    assert columns == Columns("image", None, ("fov", "intrinsics"))
    items = read_items([Entry(str(path), 0, 4)], columns)
    assert items[0].camera == {"intrinsics": [90.0, 90.0, 40.0, 30.0]}
    assert items[0].problem is None
    assert "fov" in items[1].problem
    assert "no image" in items[2].problem
    assert "both name the camera" in items[3].problem


def test_a_data_set_of_the_hub(tmp_path, monkeypatch, pictures, nano):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    table(folder / "data" / "train-00000-of-00001.parquet", pictures[:5])
    table(folder / "data" / "test-00000-of-00001.parquet", pictures[5:])
    with connected_hub({"hf_ada": Token("ada")}, tmp_path) as hub:
        hub.put(folder, "ada/rooms", "dataset")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        HfFileSystem.clear_instance_cache()
        both = Run(request(["ada/rooms"], tmp_path / "both"))
        assert both.summary.images == 11
        run = Run(request(["ada/rooms"], tmp_path / "out", split="test"))
        write_all(run)
        with pytest.raises(ValueError, match="no split 'val'"):
            Run(request(["ada/rooms"], tmp_path / "other", split="val"))
    rows = depth_rows(tmp_path / "out")
    expected = nano.predict(pictures[5:], fov=60, batch_size=1)
    assert list(rows) == [one.name for one in pictures[5:]]
    for path, prediction in zip(pictures[5:], expected, strict=True):
        assert np.array_equal(pixels(rows[path.name]), png16(prediction))
        assert "ada/rooms@" in rows[path.name]["source"]


def test_an_object_store(tmp_path, pictures, nano):
    store = fsspec.filesystem("memory")
    for one in pictures[:3]:
        store.pipe(f"/store/in/{one.name}", one.read_bytes())
    store.pipe("/store/in/bad.jpg", b"nothing")
    run = Run(request(["memory://store/in"], "memory://store/out"))
    write_all(run)
    [shard] = store.ls("/store/out/data", detail=False)
    rows = pq.read_table(io.BytesIO(store.cat(shard))).to_pylist()
    expected = nano.predict(pictures[:3], fov=60, batch_size=1)
    assert [row["id"] for row in rows] == [one.name for one in pictures[:3]]
    assert all(np.array_equal(pixels(row), png16(one)) for row, one in zip(rows, expected, strict=True))
    assert rows[0]["source"] == "memory:///store/in/000.jpg"
    assert [one["id"] for one in run.done.failures] == ["bad.jpg"]
    assert Run(request(["memory://store/in"], "memory://store/out")).is_complete
    names = [entry.location for entry in Listing(["memory://store/in/00*.jpg"])]
    assert names == [f"memory:///store/in/{one.name}" for one in pictures[:3]]
    store.rm("/store", recursive=True)


def test_the_files_of_predict(tmp_path, pictures):
    run = Run(request(pictures[:2], tmp_path / "out", formats=("npy", "png16", "json", "ply")))
    write_all(run)
    command("predict", *pictures[:2], "--fov", 60, "--batch-size", 1, "--formats", "npy,png16,json,ply", "--device",
            "cpu", "--out", tmp_path / "local")  # fmt: skip
    folder = tmp_path / "out" / "data" / "train-00000-of-00001"
    there = sorted(path.name for path in folder.iterdir())
    assert there == sorted(path.name for path in (tmp_path / "local").iterdir() if path.is_file())
    assert len(there) == 8
    for name in there:
        assert (folder / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


def test_it_goes_on_where_it_stopped_and_refuses_other_settings(tmp_path, pictures):
    first = Run(request(pictures, tmp_path / "out"))
    write_all(first)
    second = tmp_path / "out" / "data" / "train-00001-of-00002.parquet"
    before = (tmp_path / "out" / "data" / "train-00000-of-00002.parquet").stat().st_mtime_ns
    content = second.read_bytes()
    second.unlink()  # its record alone does not make it complete
    again = Run(request(pictures, tmp_path / "out"))
    assert sorted(again.done.records) == [0]
    write_all(again)
    assert second.read_bytes() == content
    assert (tmp_path / "out" / "data" / "train-00000-of-00002.parquet").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"(?s)fov: 60.0 there, 61.0 now.*Nothing was predicted"):
        Run(request(pictures, tmp_path / "out", camera={"focal_length": None, "fov": 61.0, "intrinsics": None}))
    with pytest.raises(FileExistsError, match=r'"images": 11.*"images": 10'):
        Run(request(pictures[:10], tmp_path / "out"))
    with pytest.raises(FileExistsError, match="not the folder of such a run"):
        Run(request(pictures, pictures[0].parent))


def test_the_plan_is_fixed_slices_of_the_listing(tmp_path):
    entries = [Entry("/a/x.jpg"), Entry("/a/t.parquet", 0, 20), Entry("/b/x.jpg"), Entry("/b/y.jpg")]
    summary = write_plan(tmp_path / "plan", entries, shard_rows=16, chunk_rows=8)
    chunks = pq.read_table(tmp_path / "plan").to_pylist()
    assert (summary.images, summary.shards) == (23, 2)
    assert [(one["shard"], one["first"]) for one in chunks] == [(0, 0), (0, 8), (1, 16)]
    slices = [[(one["location"], one["first"], one["rows"]) for one in chunk["entries"]] for chunk in chunks]
    assert slices == [
        [("/a/x.jpg", -1, 1), ("/a/t.parquet", 0, 7)],
        [("/a/t.parquet", 7, 8)],
        [("/a/t.parquet", 15, 5), ("/b/x.jpg", -1, 1), ("/b/y.jpg", -1, 1)],
    ]
    assert chunks[0]["stems"] == ["x", *(f"{number:09d}" for number in range(1, 8))]
    assert chunks[2]["stems"][-2:] == ["x", "y"]
    other = write_plan(tmp_path / "other", [*entries[:2], *reversed(entries[2:])], shard_rows=16, chunk_rows=8)
    assert other.sha256 != summary.sha256


def test_listings(tmp_path, pictures):
    names = [entry.location for entry in Listing([str(pictures[0].parent), str(pictures[3])])]
    assert names == [str(one) for one in pictures]
    pattern = str(pictures[0].parent.parent / "**" / "00[02].jpg")
    assert [entry.location for entry in Listing([pattern])] == [str(pictures[0]), str(pictures[2])]
    (tmp_path / "both").mkdir()
    table(tmp_path / "both" / "t.parquet", pictures[:1])
    (tmp_path / "both" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="images and parquet tables"):
        list(Listing([str(tmp_path / "both")]))
    with pytest.raises(ValueError, match="no images and no parquet tables there"):
        list(Listing([str(tmp_path)]))


def test_the_column_of_images():
    bytes_and_path = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    two = pa.schema([("left", bytes_and_path), ("right", pa.binary())])
    with pytest.raises(ValueError, match=r"several columns .*left, right.*--image-column"):
        table_columns(two, None, "t")
    assert table_columns(two, "right", "t").image == "right"
    with pytest.raises(ValueError, match="no column 'image'"):
        table_columns(two, "image", "t")
    with pytest.raises(ValueError, match="no column of image bytes"):
        table_columns(pa.schema([("n", pa.int64())]), None, "t")


def test_the_workers_leave_a_cpu_for_the_rest():
    assert worker_resources({"CPU": 2.0}, "auto", 2) == (2, {"num_cpus": 0.5})
    assert worker_resources({"CPU": 16.0}, "auto", None) == (8, {"num_cpus": 1.0})
    assert worker_resources({"CPU": 1.0}, "cpu", None) == (1, {"num_cpus": 0.0})
    assert worker_resources({"CPU": 64.0, "GPU": 8.0}, "auto", None) == (8, {"num_gpus": 1, "num_cpus": 0})
    assert worker_resources({"CPU": 64.0, "GPU": 8.0}, "cpu", 4) == (4, {"num_cpus": 1.0})
    with pytest.raises(ValueError, match="the cluster has 0"):
        worker_resources({"CPU": 64.0}, "cuda", None)


@pytest.mark.parametrize(
    ("available", "count", "each", "tasks", "task"),
    [
        ({"CPU": 2.0}, 2, {"num_cpus": 0.5}, 1, 0.25),
        ({"CPU": 2.0, "GPU": 1.0}, 1, {"num_gpus": 1, "num_cpus": 0}, 2, 0.5),
        ({"CPU": 64.0, "GPU": 8.0}, 8, {"num_gpus": 1, "num_cpus": 0}, 64, 1.0),
        ({"CPU": 16.0}, 8, {"num_cpus": 1.0}, 8, 0.99),  # not what its neighbour takes
        ({"CPU": 2.0}, 4, {"num_cpus": 0.25}, 1, 0.24),
    ],
)
def test_every_stage_has_a_share_of_the_cpus(available, count, each, tasks, task):
    expected = (tasks, {"num_cpus": pytest.approx(task)}, {"num_cpus": pytest.approx(task / 2)})
    assert task_resources(available, count, each) == expected
    # With tasks of a whole CPU it would not: nothing would be encoded or written while pictures wait.
    assert count * each["num_cpus"] + task + task + task / 2 <= available["CPU"]


def test_half_a_shard_is_never_written(tmp_path, pictures):
    run = Run(request(pictures, tmp_path / "out"))
    rows = [{"shard": 0, "index": 3, "row": pickle.dumps({"index": 3})}]
    with pytest.raises(RuntimeError, match="Nothing was written"):
        write(pa.Table.from_pylist(rows), run.job)
    assert not (tmp_path / "out" / "data").exists()


def test_a_shard_of_bad_images_alone_is_complete(tmp_path):
    row = {"index": 0, "id": "a", "source": "a", "problem": "bad", "warnings": []}
    write_shard(str(tmp_path), 0, 1, [row], True, "made")
    assert manifest.read_done(Storage(str(tmp_path)), "made").failures[0]["reason"] == "bad"
    assert not manifest.read_done(Storage(str(tmp_path)), "otherwise").records


def test_the_shards_open_in_datasets(tmp_path, pictures):
    run = Run(request(pictures[:2], tmp_path / "out"))
    write_all(run)
    found = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["depth"] == ImageFeature()
    assert isinstance(found[0]["depth"], Image.Image)
    assert np.asarray(found[0]["depth"]).dtype == np.uint16
    assert found["id"][:] == ["000.jpg", "001.jpg"]
    assert found.features["camera"] == Features({n: Value("float64") for n in ("fx", "fy", "cx", "cy")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "How far?"], "--prompt: not for --engine ray"),
        (["--fps", "3", "--sequence"], "--fps, --sequence: not for --engine ray"),
        (["--overwrite"], "--overwrite: not for --engine ray"),
        (["--shard-rows", "100"], "multiple of 8 times --batch-size, 32 here"),
        (["--device", "mps"], "auto, cpu or cuda"),
        (["--formats", "jpg"], "Formats to save: got jpg"),
        (["--fov", "400"], "fov"),
        (["--intrinsics", "folder"], "There is no file folder"),
        (["--known", "3,4,2.5"], "--known: not for --engine ray"),
        (["--token", "hf_x", "--address", "auto"], "HF_TOKEN on the cluster's nodes"),
    ],
)
def test_what_a_cluster_does_not_do_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.chdir(tmp_path)
    result = command("predict", "photo.jpg", "--engine", "ray", *options, code=2)
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_options_of_the_cluster_need_it(tmp_path):
    result = command("predict", "photo.jpg", "--workers", 2, "--address", "auto", "--out", tmp_path / "out", code=2)
    assert "--workers, --address: not for --engine local: add --engine ray" in " ".join(result.output.split())


def test_a_launcher_of_several_processes_is_refused(tmp_path, monkeypatch, pictures):
    # As `accelerate launch --num_processes 2 -m depthvlm predict` sets them.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = command("predict", *pictures, "--out", tmp_path / "out", code=2)
    assert "started 2 processes" in result.output
    assert "--engine ray uses all GPUs" in " ".join(result.output.split())


def test_without_ray(tmp_path, monkeypatch, pictures):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = command("predict", *pictures, "--engine", "ray", "--out", tmp_path / "out", code=1)
    assert 'pip install "depthvlm[ray]"' in result.output
    assert not (tmp_path / "out").exists()
