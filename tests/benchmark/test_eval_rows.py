"""Parquet files of rows as sets: the rows that train, and a build's own shard."""

import numpy as np
import pytest
import toy_source_files
from bench_builds import build_toy
from bench_source import make_toy
from datasets import Dataset, Features, Image, Value
from depthvlm.benchmark.scoring.eval_sets import EvalRows, EvalSet, open_sets
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate
from depthvlm.benchmark.systems.interface import Constant
from PIL import ExifTags
from PIL import Image as Picture

FILES = {"image": Image(), "depth": Image(), "depth_scale": Value("float32"), "focal_length": Value("float32")}


def png(array: np.ndarray, **options) -> dict:
    return {"bytes": toy_source_files.png(array, **options), "path": "a.png"}


def write(path, *rows: dict, features: dict = FILES):
    Dataset.from_list(list(rows), features=Features(features)).to_parquet(str(path))
    return path


def row(millimetres: int = 2000, size=(8, 6), **changes) -> dict:
    width, height = size
    depth = np.full((height, width), millimetres, np.uint16)
    image = np.zeros((height, width, 3), np.uint8)
    return {"image": png(image), "depth": png(depth), "depth_scale": 1000.0, "focal_length": 10.0} | changes


def test_rows_that_train_are_scored(tmp_path):
    """Always 2 m is right at 2 m and at 2.4 m, and wrong at 2.6 m."""
    file = write(tmp_path / "rooms.parquet", row(2000), row(2400), row(2600))
    [rooms] = open_sets(file)
    assert (rooms.source, rooms.split, len(rooms), rooms.sizes[0]) == ("rooms", "test", 3, (8, 6))
    item = rooms.read(1)
    assert item.intrinsics == (10, 10, 4, 3)  # no principal point is given: the middle of the picture
    assert item.depth.dtype == np.float32
    np.testing.assert_allclose(item.point_depths, [2.4] * 10, rtol=1e-6)
    result = evaluate(LoadedSystem("a", "A", Constant(2.0), {}), rooms, get_protocol("depthvlm"), tmp_path / "out")
    assert result.metrics["images"]["delta1"] == pytest.approx(2 / 3)
    assert (tmp_path / "out/a/rooms-test/depthvlm.json").is_file()


def test_a_shard_is_the_build(tmp_path):
    build_toy(make_toy(tmp_path / "root"), tmp_path / "build", "test", rows_per_shard=100)
    whole = EvalSet(tmp_path / "build", "toy")
    [shard] = open_sets(next((tmp_path / "build").glob("*.parquet")))
    assert (shard.source, shard.split, shard.ids, shard.sizes) == ("toy", "test", whole.ids, whole.sizes)
    for mine, theirs in zip((shard.read(3), shard.read(9)), (whole.read(3), whole.read(9)), strict=True):
        assert (mine.intrinsics, mine.depth_range) == (theirs.intrinsics, theirs.depth_range)
        np.testing.assert_array_equal(mine.points, theirs.points)
        np.testing.assert_array_equal(mine.depth, theirs.depth)


def test_an_upright_picture_and_distances(tmp_path):
    """Stored lying, 8 wide; shown standing, 6 wide. On the ray of 45 degrees sqrt(2) m are 1 m of z."""
    exif = Picture.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = png(np.zeros((6, 8, 3), np.uint8), exif=exif)
    distance = np.full((8, 6), np.sqrt(2), np.float32).tolist()
    rows = [{"image": image, "depth": distance, "intrinsics": [2.0, 2.0, 0.5, 0.5], "depth_type": "ray_distance"}]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(str(tmp_path / "a.parquet"))
    rooms = EvalRows(tmp_path / "a.parquet")
    assert rooms.sizes == [(6, 8)]
    item = rooms.read(0)
    assert item.image.size == (6, 8)
    np.testing.assert_allclose(item.depth[0, [0, 2]], [np.sqrt(2), 1], rtol=1e-6)  # column 2 is 2 px from cx, fx = 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(0)], "row '0000000' .* no pixel with depth"),
        ([row(depth=png(np.ones((9, 6), np.uint16)))], "6x9 pixels .*, its image 8x6, which is of another shape"),
        ([row(focal_length=-1.0)], "row '0000000' .* cannot be used"),
        ([row(depth_scale=None)], "holds integers"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path, rows, words):
    rooms = EvalRows(write(tmp_path / "rooms.parquet", *rows))
    with pytest.raises(ValueError, match=words):
        rooms.read(0)


def test_files_that_are_no_set(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "a.jsonl").write_text("{}")
    Dataset.from_list([{"text": "a", "depth": 1}]).to_parquet(str(tmp_path / "b.parquet"))
    write(tmp_path / "rooms.parquet", row())
    for name, error, words, *sources in (
        ("gone.parquet", FileNotFoundError, r"no file .*gone\.parquet"),
        ("a.parquet", ValueError, r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl", ValueError, "annotation lines become a build by `depthvlm bench build lines`"),
        ("b.parquet", ValueError, "has the columns text, depth; an evaluation needs `image`"),
        ("rooms.parquet", ValueError, "holds the set rooms, not waymo", "waymo"),
    ):
        with pytest.raises(error, match=words):
            open_sets(tmp_path / name, sources=tuple(sources))
