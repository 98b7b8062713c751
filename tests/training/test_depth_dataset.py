"""Data sets of every kind on their way to the collator: undecoded, numbered, not copied; folders of RGB-D files."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value, concatenate_datasets, load_dataset
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.config import DepthSFTConfig
from depthvlm.training.dataset import prepare_depth_dataset
from depthvlm.training.rows import BadSampleError
from depthvlm.training.sft import ArgumentError, DepthScriptArguments, load_data
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from trl import DatasetMixtureConfig
from typer.testing import CliRunner

from depthvlm.cli.app import app

FEATURES = Features(
    {"image": Image(), "depth": Image(), "depth_scale": Value("float32"), "focal_length": Value("float32")}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four images, and depth maps of 1, 2, 3 and 4 metres in millimetres."""
    folder = tmp_path_factory.mktemp("rgbd")
    (folder / "rgb").mkdir()
    (folder / "depth").mkdir()
    (folder / "intrinsics.json").write_text("[110.5, 110.5, 64, 48]")
    (folder / "depth.json").write_text('{"depth_scale": 1000}')
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / "rgb" / f"{i}.jpg")
        PILImage.fromarray(np.full((96, 128), 1000 * (i + 1), np.uint16)).save(folder / "depth" / f"{i}.png")
    return folder


def rows(folder: Path) -> list[dict]:
    return [
        {
            "image": str(folder / "rgb" / f"{i}.jpg"),
            "depth": str(folder / "depth" / f"{i}.png"),
            "depth_scale": 1000.0,
            "focal_length": 110.5,
        }
        for i in range(4)
    ]


@pytest.fixture
def dataset(folder) -> Dataset:
    return Dataset.from_list(rows(folder), features=FEATURES)


def config(tmp_path, **options) -> DepthSFTConfig:
    return DepthSFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **options)


def metres(batch) -> list[float]:
    return [label.max().item() for label in batch["depth_labels"]]


class TestPrepare:
    def test_undecoded_and_numbered(self, dataset, tmp_path, processor):
        prepared = prepare_depth_dataset(dataset, config(tmp_path))
        assert prepared.features["image"] == Image(decode=False)
        assert prepared.features["depth"] == Image(decode=False)
        assert prepared["__row__"][:] == [0, 1, 2, 3]
        assert prepared[0]["image"]["path"].endswith("0.jpg")
        batch = DepthDataCollator(processor, return_info=True)([prepared[1], prepared[3]])
        assert metres(batch) == [2, 4]
        assert batch["batch_info"].rows[0].startswith("row 1 (")
        assert prepare_depth_dataset(prepared, config(tmp_path)).column_names == prepared.column_names

    def test_order_is_kept_without_a_copy(self, dataset, tmp_path):
        shuffled = dataset.shuffle(seed=3).select([2, 0])
        prepared = prepare_depth_dataset(shuffled, config(tmp_path))
        assert [one["path"] for one in prepared["image"]] == [
            one["path"] for one in shuffled.cast_column("image", Image(decode=False))["image"]
        ]
        numbers = [int(Path(one["path"]).stem) for one in prepared["image"]]
        assert prepared["__row__"][:] == numbers
        assert prepared._data.num_rows == 4  # still the table that was given

    def test_lists_of_images(self, folder, tmp_path, processor):
        features = Features({"rgb": List(Image()), "z": List(Image()), "depth_scale": Value("float32")})
        data = Dataset.from_list(
            [
                {
                    "rgb": [str(folder / "rgb" / "0.jpg"), str(folder / "rgb" / "1.jpg")],
                    "z": [None, str(folder / "depth" / "1.png")],
                    "depth_scale": 1000.0,
                }
            ],
            features=features,
        )
        options = config(tmp_path, image_column="rgb", depth_column="z")
        prepared = prepare_depth_dataset(data, options)
        assert prepared.features["images"] == List(Image(decode=False))
        assert prepared.features["z"] == List(Image(decode=False))
        batch = DepthDataCollator(processor, columns=options.columns())([prepared[0]])
        assert batch["depth_labels"][0] is None
        assert batch["depth_labels"][1].unique().tolist() == [2]

    @pytest.mark.parametrize("order", [[1, 0], [0, 1]])
    def test_nothing_is_written(self, folder, tmp_path, monkeypatch, order):
        features = Features({"images": List(Image()), "depth": Image()})
        one = {"images": [str(folder / "rgb" / "0.jpg")], "depth": str(folder / "depth" / "0.png")}
        data = Dataset.from_list([one, one], features=features).select(order)
        monkeypatch.setattr(Dataset, "map", lambda *args, **kwargs: pytest.fail("the data set is rewritten"))
        prepared = prepare_depth_dataset(data, config(tmp_path))
        assert prepared["__row__"][:] == order
        assert prepared[0]["images"][0]["path"] == one["images"][0]
        assert data[0]["images"][0].size == (128, 96)  # and what was given still decodes

    def test_other_image_columns(self, dataset, tmp_path):
        renamed = dataset.rename_column("image", "rgb")
        assert "image" in prepare_depth_dataset(renamed, config(tmp_path, image_column="rgb")).column_names
        assert "image" in prepare_depth_dataset(dataset, config(tmp_path, image_column="image")).column_names
        with pytest.raises(ValueError, match="no image column 'photo' in the data, which has image, depth"):
            prepare_depth_dataset(dataset, config(tmp_path, image_column="photo"))
        both = dataset.add_column("rgb", ["a"] * 4)
        with pytest.raises(ValueError, match="'rgb' under the name 'image'"):
            prepare_depth_dataset(both, config(tmp_path, image_column="rgb"))


class TestSources:
    def test_parquet_round_trip(self, dataset, folder, tmp_path, processor):
        stored = [
            {**row, **{key: {"bytes": Path(row[key]).read_bytes(), "path": None} for key in ("image", "depth")}}
            for row in rows(folder)
        ]
        Dataset.from_list(stored, features=FEATURES).to_parquet(tmp_path / "data.parquet")
        loaded = load_dataset(
            "parquet", data_files=str(tmp_path / "data.parquet"), split="train", cache_dir=str(tmp_path / "cache")
        )
        prepared = prepare_depth_dataset(loaded, config(tmp_path))
        assert prepared[0]["image"]["bytes"]
        expected = DepthDataCollator(processor)([prepare_depth_dataset(dataset, config(tmp_path))[i] for i in range(4)])
        batch = DepthDataCollator(processor)([prepared[i] for i in range(4)])
        assert metres(batch) == [1, 2, 3, 4]
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])

    def test_pil_images_of_16_bits(self, tmp_path, processor):
        depth = PILImage.fromarray(np.full((96, 128), 65000, np.uint16))
        image = PILImage.fromarray(np.zeros((96, 128, 3), np.uint8))
        row = {"image": image, "depth": depth, "depth_scale": 1000.0, "focal_length": 100.0}
        prepared = prepare_depth_dataset(Dataset.from_list([row], features=FEATURES), config(tmp_path))
        assert metres(DepthDataCollator(processor)([prepared[0]])) == [65]

    def test_decoded_data(self, dataset, processor):
        # A data set that nobody prepared works too.
        assert metres(DepthDataCollator(processor)([dataset[2]])) == [3]

    def test_mixture(self, dataset, tmp_path, processor):
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        words = Dataset.from_list([{"messages": messages}])
        pairs = Dataset.from_list([{"prompt": "a", "completion": "c"}])
        texts = Dataset.from_list([{"text": "d"}])
        mixed = prepare_depth_dataset(concatenate_datasets([dataset, words, pairs, texts]), config(tmp_path))
        batch = DepthDataCollator(processor)([mixed[i] for i in range(3, 7)])
        replies = [processor.tokenizer.decode(labels[labels >= 0]) for labels in batch["labels"]]
        assert replies == ["", "b<|im_end|>\n", "c<|im_end|>", "d"]
        assert metres(batch) == [4]

    @pytest.mark.parametrize("known", [True, False], ids=["features", "no features"])
    def test_stream(self, folder, tmp_path, processor, known):
        def generate(shards):
            for shard in shards:
                yield rows(folder)[shard]

        stream = IterableDataset.from_generator(
            generate, features=FEATURES if known else None, gen_kwargs={"shards": [0, 1, 2, 3]}
        )
        assert (stream.features is not None) == known
        prepared = prepare_depth_dataset(stream, config(tmp_path, image_column="image"))
        first = list(prepared)
        assert [row["__row__"] for row in first] == [0, 1, 2, 3]
        assert isinstance(first[0]["image"], dict if known else str)
        loader = DataLoader(prepared, batch_size=2, num_workers=2, collate_fn=DepthDataCollator(processor))
        assert sorted(value for batch in loader for value in metres(batch)) == [1, 2, 3, 4]

    def test_a_broken_file_fails_in_the_collator(self, folder, tmp_path, processor):
        broken = tmp_path / "1.jpg"
        broken.write_bytes((folder / "rgb" / "1.jpg").read_bytes()[:300])
        data = rows(folder)
        data[1]["image"] = str(broken)
        prepared = prepare_depth_dataset(Dataset.from_list(data, features=FEATURES), config(tmp_path))
        loader = DataLoader(prepared, batch_size=2, num_workers=2, collate_fn=DepthDataCollator(processor))
        with pytest.raises(BadSampleError, match=rf"row 1 \({re.escape(str(broken))}\).*[Tt]runcated"):
            list(loader)
        skipping = DepthDataCollator(processor, on_bad_sample="skip", return_info=True)
        batches = list(DataLoader(prepared, batch_size=2, num_workers=2, collate_fn=skipping))
        assert [batch["batch_info"].skipped for batch in batches] == [1, 0]
        assert [metres(batch) for batch in batches] == [[1], [3, 4]]

    @pytest.mark.real_data
    def test_annotation_lines(self, shared, tmp_path, processor):
        folder = shared / "data" / "scannetpp"
        file = str(folder / "examples.jsonl")
        data = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
        prepared = prepare_depth_dataset(data, config(tmp_path))
        collator = DepthDataCollator(
            processor, image_root=str(folder / "rgb"), depth_root=str(folder / "depth"), return_info=True
        )
        batch = collator([prepared[i] for i in range(len(prepared))])
        lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
        assert batch["batch_info"].depth_images == len(lines) == 12
        np.testing.assert_allclose(batch["cameras"][:, 0], [line["original_fx"] for line in lines], rtol=1e-6)
        for line, label in zip(lines, batch["depth_labels"], strict=True):
            raw = np.asarray(PILImage.open(folder / "depth" / line["depth_path"]))
            # The map has more pixels than this small input, so it was reduced to measured values.
            assert set(np.unique(label)) <= {0, *np.unique((raw / 1000).astype(np.float32))}
        reply = batch["labels"][0]
        assert processor.tokenizer.decode(reply[reply >= 0]) == lines[0]["solution"] + "<|im_end|>\n"


def test_a_folder_is_built_and_trained(folder, tmp_path, processor):
    source = shutil.copytree(folder, tmp_path / "source")
    options = ["--root", str(source), "--split", "train", "--out", str(tmp_path / "rooms"), "--workers", "1"]
    result = CliRunner().invoke(app, ["bench", "build", "folder", *options])
    assert result.exit_code == 0, result.output
    shutil.rmtree(source)  # the build holds all
    data = load_dataset(str(tmp_path / "rooms"), split="train", cache_dir=str(tmp_path / "cache"))
    prepared = prepare_depth_dataset(data, config(tmp_path))
    batch = DepthDataCollator(processor)([prepared[i] for i in range(4)])
    assert sorted(metres(batch)) == [1, 2, 3, 4]
    assert batch["cameras"][:, 0].tolist() == [110.5] * 4
    order = [int(depth.max()) - 1 for depth in batch["depth_labels"]]
    first = PILImage.open(io.BytesIO((folder / "rgb" / f"{order[0]}.jpg").read_bytes()))
    expected = processor.image_processor(first, focal_length=110.5, return_tensors="pt")
    assert torch.equal(batch["pixel_values"][: len(expected["pixel_values"])], expected["pixel_values"])


def test_sft_on_an_unbuilt_folder_says_how_to_build_it(folder):
    arguments = DepthScriptArguments(dataset_name=str(folder)), DatasetMixtureConfig()
    with pytest.raises(ArgumentError, match=re.escape(f"depthvlm bench build folder --root {folder}")):
        load_data(*arguments, ["train"])
