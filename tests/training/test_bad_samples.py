"""Rows that cannot be used, stopped at or left out, and the collator in loader workers."""

import io
import json
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from depthvlm.training.collator import BatchInfo, DepthDataCollator
from depthvlm.training.rows import BadSampleError
from PIL import Image
from torch.utils.data import DataLoader
from toy_rows import depth_row, jpeg, millimetres, picture, turn

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 128 96\n{} loop\n"
POINTS = {"pixel_coords": [[1, 1]], "depth": [2.0], "original_depth_size": [128, 96]}
LINE = {"depth_path": "none.png", "original_fx": 100.0, "messages": None, "prompt": "How far?"}

# By name: what changes in a good row, a part of the file's name, a part of the reason.
BAD = {
    "truncated JPEG": ({"image": "broken.jpg"}, "broken.jpg", "Truncated"),
    "truncated bytes": ({"image": {"bytes": jpeg()[:400], "path": "a.jpg"}}, "a.jpg", "Truncated"),
    "not an image": ({"image": {"bytes": b"hello", "path": "a.jpg"}}, "a.jpg", "not an image that can be read"),
    "missing image": ({"image": "none.jpg"}, "none.jpg", "no image file"),
    "missing depth": ({"depth": "none.png"}, "none.png", "does not exist"),
    "truncated depth": ({"depth": "broken.png"}, "broken.png", "truncated"),
    "more maps than images": ({"depth": [millimetres(), millimetres()]}, None, "2 depth map(s) for 1 image"),
    "depth without image": ({"image": None, "text": "a"}, None, "1 depth map(s) for 0 image"),
    "one map for two images": ({"images": [picture(), picture()]}, None, "1 depth map(s) for 2 image"),
    "all invalid": ({"depth": millimetres(0)}, None, "no valid pixel"),
    "wrong aspect": ({"depth": Image.fromarray(np.ones((128, 96), np.uint16))}, None, "aspect ratios differ"),
    "unknown unit": ({"depth_scale": None}, None, "unit is not known"),
    "bad unit": ({"depth_scale": -1.0}, None, "above 0"),
    "bad focal length": ({"focal_length": float("nan")}, None, "finite number above 0"),
    "null focal length": ({"focal_length": None}, None, "focal length is null"),
    "null among focal lengths": ({"focal_length": [None]}, None, "focal length is null"),
    "bad intrinsics": ({"intrinsics": [1.0, 2.0, 3.0]}, None, "3x3 matrix"),
    "unknown depth type": ({"depth_type": "disparity"}, None, "z_depth, ray_distance"),
    "depth as points": ({"depth": [1.0, 2.0]}, None, "rows and columns"),
    "picture as depth": ({"depth": picture()}, None, "coloured preview"),
    "too long an image": ({"image": picture(0, (2000, 4)), "depth": None}, None, "200 times"),
    "placeholders": ({"messages": [turn("user", [{"type": "text", "text": "a"}])]}, None, "placeholder"),
    "role": ({"messages": [turn("wizard", "a")]}, None, "wizard"),
    "no content": ({"messages": [{"role": "user"}]}, None, "'content'"),
    "half a conversation": ({"prompt": "a", "completion": [turn("assistant", "b")]}, None, "one a conversation"),
    "nothing": ({"image": None, "depth": None}, None, "neither text"),
    "header that claims 20 GB": ({"depth": "lie.npy"}, "lie.npy", "claims 20,000,000,000 bytes"),
    "PostScript": ({"image": {"bytes": POSTSCRIPT, "path": "a.jpg"}}, "a.jpg", "not an image that can be read"),
    "name of no text": ({"image": "a\udcff.jpg"}, ".jpg", "no image file"),
    "too many points": (
        {**POINTS, "pixel_coords": [[1, 1]] * 1_000_001, "depth": [2.0] * 1_000_001},
        None,
        "1,000,001",
    ),
    "map of points beyond memory": ({**POINTS, "original_depth_size": [10**6, 10**6]}, None, "1000000x1000000"),
    "empty array as path": ({**LINE, "depth_path": np.array([])}, None, "`depth_path` is array([]"),
    "list as path": ({**LINE, "depth_path": ["a.png"]}, None, "`depth_path` is ['a.png'], expected the path"),
    "array as mask": ({**LINE, "mask_valid_path": np.ones(2)}, None, "`mask_valid_path` is array("),
    "tensor as text": ({"text": torch.ones(2), "messages": None}, None, "more than one value"),
    "video": ({"text": "<|video_pad|>", "image": None, "depth": None}, None, "video"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(jpeg()[:400])
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(1, 9999, (96, 128), dtype=np.uint16)).save(stream, "PNG")
    (tmp_path / "broken.png").write_bytes(stream.getvalue()[:2000])
    with open(tmp_path / "lie.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (100_000, 50_000)})
    return str(tmp_path)


class TestBadSamples:
    @pytest.mark.parametrize("name", BAD)
    def test_stopped_at_or_left_out(self, processor, folder, tmp_path, name, caplog):
        changes, file, reason = BAD[name]
        options = {"image_root": folder, "depth_root": folder}
        rows = [depth_row(__row__=3), depth_row(**changes, __row__=41), {"text": "words", "__row__": 5}]
        with pytest.raises(BadSampleError) as caught:
            DepthDataCollator(processor, **options)(rows[:2])
        message = str(caught.value)
        assert message.startswith("row 41 ")
        assert reason in message
        assert "--on_bad_sample skip" in message
        assert file is None or file in message.split(" cannot be used")[0]

        listed = tmp_path / "out" / "bad_samples.jsonl"
        options |= {"on_bad_sample": "skip", "bad_samples_file": str(listed), "return_info": True}
        collator = DepthDataCollator(processor, **options)
        with caplog.at_level(logging.WARNING):
            batch = collator(rows)
            again = collator(rows)
        expected = DepthDataCollator(processor)([rows[0], rows[2]])
        assert batch["batch_info"] == BatchInfo(rows=("row 3", "row 5"), skipped=1, images=1, depth_images=1)
        assert again["batch_info"].skipped == 1
        for key in ("input_ids", "labels", "pixel_values"):
            assert torch.equal(batch[key], expected[key])
        (line,) = [json.loads(line) for line in listed.read_text().splitlines()]
        assert line["row"] == 41
        assert reason in line["reason"]
        assert file is None or file in line["file"]
        [said] = [record.message for record in caplog.records if "row 41" in record.message]
        said.encode()  # for handlers that write UTF-8

    def test_a_batch_without_a_usable_row(self, processor):
        collator = DepthDataCollator(processor, on_bad_sample="skip", return_info=True, pad_to_multiple_of=8)
        batch = collator([depth_row(depth=millimetres(0)), depth_row(focal_length=None)])
        assert batch.pop("batch_info") == BatchInfo(rows=(), skipped=2, images=0, depth_images=0)
        assert set(batch) == {"input_ids", "attention_mask", "mm_token_type_ids", "labels"}
        assert all(value.shape == (1, 8) for value in batch.values())
        assert (batch["labels"] == -100).all()
        assert batch["attention_mask"].sum() == 2

    def test_rays_without_a_camera(self, processor):
        row = {"image": picture(), "depth": millimetres(), "depth_scale": 1000, "depth_type": "ray_distance"}
        with pytest.raises(BadSampleError, match="only with a camera"):
            DepthDataCollator(processor)([row])

    def test_a_null_focal_length_without_depth_is_no_error(self, processor):
        batch = DepthDataCollator(processor)([depth_row(), {"image": picture(), "focal_length": None}])
        assert batch["image_grid_thw"].shape == (2, 3)

    def test_row_of_the_batch_where_there_is_no_number(self, processor):
        with pytest.raises(BadSampleError, match=r"^row 1 of the batch \(no\.jpg\) cannot be used"):
            DepthDataCollator(processor)([depth_row(), depth_row(image="no.jpg")])

    @pytest.mark.parametrize("size", [[], [8], [math.inf, 8], "wide"], ids=str)
    def test_an_annotation_without_a_size_is_left_out(self, processor, size):
        line = {"image": picture(), "original_fx": 100.0, "depth_path": "0.raw", "original_depth_size": size}
        with pytest.raises(BadSampleError, match=r"`original_depth_size` is .* expected width and height in pixels"):
            DepthDataCollator(processor)([line])
        collate = DepthDataCollator(processor, on_bad_sample="skip", return_info=True)
        assert collate([line, depth_row()])["batch_info"].skipped == 1

    @pytest.mark.parametrize("value", [np.array([]), torch.empty(0), torch.ones(2), [], "", math.nan], ids=repr)
    def test_columns_called_like_ours_say_nothing(self, processor, value):
        collate = DepthDataCollator(processor, return_info=True)
        batch = collate([depth_row(__row__=value), depth_row(__row__=np.int64(7), __repeated__=value)])
        expected = BatchInfo(rows=("row 0 of the batch", "row 7"), skipped=0, images=2, depth_images=2)
        assert batch["batch_info"] == expected

    def test_unknown_policy(self, processor):
        with pytest.raises(ValueError, match="'ignore', expected 'stop' or 'skip'"):
            DepthDataCollator(processor, on_bad_sample="ignore")


class TestWorkers:
    def test_pickle(self, processor):
        collator = pickle.loads(pickle.dumps(DepthDataCollator(processor, max_length=500, return_info=True)))
        batch, expected = collator([depth_row()]), DepthDataCollator(processor, return_info=True)([depth_row()])
        assert batch["batch_info"] == expected["batch_info"]
        assert torch.equal(batch["input_ids"], expected["input_ids"])

    def test_two_workers(self, processor, tmp_path):
        picture().save(tmp_path / "good.jpg")
        (tmp_path / "bad.jpg").write_bytes(jpeg()[:400])
        names = ["good.jpg", "bad.jpg", "good.jpg", "good.jpg"]
        rows = [depth_row(image=name, __row__=i, depth=np.full((96, 128), 2.0)) for i, name in enumerate(names)]
        for row in rows:
            row["depth_scale"] = None
        listed = tmp_path / "bad.jsonl"
        options = {"image_root": str(tmp_path), "bad_samples_file": str(listed), "return_info": True}
        collator = DepthDataCollator(processor, on_bad_sample="skip", **options)
        batches = list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator))
        assert [batch["batch_info"].rows for batch in batches] == [
            ("row 0 (good.jpg)",),
            ("row 2 (good.jpg)", "row 3 (good.jpg)"),
        ]
        assert json.loads(listed.read_text())["file"] == "bad.jpg"
        with pytest.raises(BadSampleError, match=r"row 1 \(bad.jpg\) cannot be used"):
            list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=DepthDataCollator(processor, **options)))
