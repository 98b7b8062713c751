"""Pictures that stand inside of messages train exactly as those in a column; nothing trains without its pixels."""

import base64
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.rows import BadSampleError
from toy_training import settings, toy_row

from depthvlm import DepthSFTTrainer

QUESTION, REPLY = "What is it?", "A room."


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """`0.png` to `3.png`, and their depth in millimetres in `depth/`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "depth").mkdir()
    for index in range(4):
        row = toy_row(index)
        row["images"][0].save(folder / f"{index}.png")
        row["depth"][0].save(folder / "depth" / f"{index}.png")
    return folder


def conversation(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": REPLY}]},
    ]


def row_of(files: Path, index: int, with_depth: bool, **row: Any) -> dict[str, Any]:
    depth = {"depth": str(files / "depth" / f"{index}.png"), "depth_scale": 1000.0, "focal_length": 1000.0}
    return row | (depth if with_depth else {})


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("depth", [False, True])
def test_every_form_gives_the_batch_of_a_column(processor, files, depth):
    path = files / "0.png"
    image = toy_row(0)["images"][0]
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    column = row_of(files, 0, depth, images=[str(path)], messages=conversation({"type": "image"}))
    collate = DepthDataCollator(processor)
    expected = collate([column])
    assert expected["pixel_values"].shape[0] == 4 * (expected["input_ids"] == processor.image_token_id).sum()
    for part in (
        {"type": "image", "image": str(path)},
        {"image": str(path)},  # Qwen's own, without a type
        {"type": "image", "url": f"file://{path}"},
        {"type": "image", "path": str(path)},
        {"type": "image", "image": image},
        {"type": "image", "image": {"bytes": data, "path": None}},
        {"type": "image", "base64": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}},
        {"type": "image_url", "image_url": str(path)},
        {"type": "image", "image": "0.png"},
    ):
        row = row_of(files, 0, depth, messages=conversation(part))
        assert_same(DepthDataCollator(processor, image_root=str(files))([row]), expected)
    prompt, completion = [[message] for message in conversation({"type": "image", "image": str(path)})]
    assert_same(collate([row_of(files, 0, depth, prompt=prompt, completion=completion)]), expected)


def test_two_pictures_keep_their_order(processor, files):
    parts = [{"type": "image", "image": str(files / f"{index}.png")} for index in (2, 1)]
    content = [parts[0], {"type": "text", "text": "and"}, parts[1]]
    batch = DepthDataCollator(processor)([{"messages": [{"role": "user", "content": content}]}])
    for index, patches in zip((2, 1), batch["pixel_values"].chunk(2), strict=True):
        one = DepthDataCollator(processor)([{"image": str(files / f"{index}.png")}])
        torch.testing.assert_close(patches, one["pixel_values"], rtol=0, atol=0)


def test_pictures_in_both_places_must_be_the_same(processor, files):
    messages = conversation({"type": "image", "image": str(files / "0.png")})
    collate = DepthDataCollator(processor)
    both = collate([{"images": [str(files / "0.png")], "messages": messages}])
    assert_same(both, collate([{"messages": messages}]))
    with pytest.raises(BadSampleError, match=r"1 image\(s\) in its column and 1 in its messages, .* not the same"):
        collate([{"images": [str(files / "1.png")], "messages": messages}])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": conversation({"type": "image"})},
        {"messages": [{"role": "user", "content": "<|image_pad|>"}]},
        {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "No."}]},
        {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "No."}]},
        {"messages": conversation({"type": "text", "text": "<image>"})},
        {"prompt": [{"role": "user", "content": "<image>What?"}]},
        {"prompt": "<|image_pad|> What?", "completion": "No."},
        {"text": "<|image_pad|>"},
    ],
    ids=str,
)
def test_a_place_without_a_picture_is_refused(processor, row):
    with pytest.raises(BadSampleError, match=r"\b0 image\(s\).* 1 placeholder|\(0\) does not match .* \(1\)"):
        DepthDataCollator(processor)([row])


@pytest.mark.parametrize("depth", [False, True])
def test_a_word_marks_the_place_under_every_name(processor, files, depth):
    """`<image>` in the second question, as LLaVA, LLaMA-Factory and ms-swift write it; in a reply it is a word."""
    collate = DepthDataCollator(processor)
    says = [("user", "Hi."), ("assistant", "Write <image>."), ("user", ""), ("assistant", REPLY)]
    parts = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    row = row_of(files, 0, depth, images=[str(files / "0.png")])
    expected = collate([{**row, "messages": [{"role": who, "content": text or parts} for who, text in says]}])
    written = [{"role": who, "content": text or f"See <image>\n{QUESTION}"} for who, text in says]
    llava = [{"from": "gpt" if one["role"] == "assistant" else "human", "value": one["content"]} for one in written]
    in_parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in written]
    for form in (
        {"messages": written},
        {"messages": in_parts},
        {"conversations": written},
        {"conversations": llava},
        {"prompt": written[:3], "completion": written[3:]},
    ):
        batch = collate([{**row, **form}])
        if "prompt" in form:  # whose labels are the completion's alone
            batch["labels"] = torch.where(batch["labels"] == -100, expected["labels"], batch["labels"])
        assert_same(batch, expected)


def test_words_that_mark_places_train_without_depth_too(checkpoint, files, tmp_path):
    """TRL alone would put the picture first and train the word."""
    rows = [{"images": [str(files / "0.png")], "messages": [{"role": "user", "content": "See <image>"}]}] * 2
    rows[0]["messages"].append({"role": "assistant", "content": REPLY})
    trainer = DepthSFTTrainer(checkpoint, settings(tmp_path), train_dataset=Dataset.from_list(rows))
    batch = next(iter(trainer.get_train_dataloader()))
    text = trainer.processing_class.tokenizer.decode(batch["input_ids"][0])
    assert "<image>" not in text
    assert "See <|vision_start|>" in text


def test_a_word_in_a_plain_prompt_is_refused(processor, files):
    with pytest.raises(BadSampleError, match="its prompt is plain text with <image>"):
        DepthDataCollator(processor)([{"prompt": "<image>What?", "completion": "No."}])


@pytest.mark.parametrize("depth", [False, True])
def test_json_lines_train_as_a_column_does(checkpoint, files, tmp_path, depth):
    losses = []
    for name in ("messages", "column"):
        rows = []
        for index in range(4):
            path, inside = str(files / f"{index}.png"), name == "messages"
            messages = conversation({"type": "image"} | ({"image": path} if inside else {}))
            rows.append(row_of(files, index, depth, messages=messages, **({} if inside else {"images": [path]})))
        Dataset.from_list(rows).to_json(tmp_path / f"{name}.jsonl")
        data = load_dataset("json", data_files=str(tmp_path / f"{name}.jsonl"), split="train", cache_dir=str(tmp_path))
        options = settings(tmp_path / name, use_depth_collator=name == "column")
        trainer = DepthSFTTrainer(checkpoint, options, train_dataset=data)
        trainer.train()
        log = next(line for line in trainer.state.log_history if "loss" in line)
        losses.append([log[key] for key in ("loss", "depth_loss", "depth_images") if key in log])
    assert len(losses[0]) == (3 if depth else 1)
    assert losses[0] == losses[1]


def test_image_tokens_without_pixels_are_refused(checkpoint, processor, tmp_path):
    ids = [processor.vision_start_token_id, *[processor.image_token_id] * 3, processor.vision_end_token_id]
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids}] * 4)
    trainer = DepthSFTTrainer(checkpoint, settings(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="12 image tokens in its text and no image"):
        trainer.train()


def test_text_in_columns_of_other_names_is_said(checkpoint, files, tmp_path, caplog):
    rows = [row_of(files, i, True, image=str(files / f"{i}.png"), query=QUESTION, response=REPLY) for i in range(4)]
    with caplog.at_level(logging.WARNING, "depthvlm"):
        DepthSFTTrainer(checkpoint, settings(tmp_path), train_dataset=Dataset.from_list(rows))
    assert "Not read: query, response. Call a question 'prompt' and its reply 'completion'" in caplog.text
