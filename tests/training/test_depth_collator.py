"""DepthDataCollator: what is trained, one resampling, metres, mixtures, lengths, rows that cannot be used, workers."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from depthvlm.processing import DEPTH_PROMPT, DEPTH_SYSTEM_PROMPT, DepthVLMImageProcessor, DepthVLMProcessor
from depthvlm.training.collator import BatchInfo, DepthDataCollator
from depthvlm.training.replies import ChatTemplateError
from PIL import PngImagePlugin
from toy_models import toy_config
from toy_rows import FOCAL, depth_row, millimetres, picture, turn
from toy_tokenizer import build_toy_tokenizer
from trl.chat_template_utils import qwen3_vl_chat_template

import depthvlm
from depthvlm import DepthVLMForConditionalGeneration

EYE = "<|vision_start|><|image_pad|><|vision_end|>"
YES = "yes<|im_end|>\n"
ASKED = {"completion": [turn("assistant", "yes")], "image": picture()}
PLAIN = {"prompt": f"{EYE}what?", "completion": "a room", "image": picture()}
TALK = [turn("user", "a"), turn("assistant", "b")]
WHOLE_TALK = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def trained(processor, batch, row: int = 0) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def written(processor, batch, row: int = 0) -> str:
    """What the model reads, with one placeholder for each image."""
    text = processor.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
    while "<|image_pad|><|image_pad|>" in text:
        text = text.replace("<|image_pad|><|image_pad|>", "<|image_pad|>")
    return text


class TestLabels:
    @pytest.mark.parametrize("template", [None, qwen3_vl_chat_template], ids=["marked", "marked by TRL"])
    def test_messages_train_every_reply_and_its_end(self, processor, template):
        messages = [
            turn("system", "Be brief."),
            turn("user", "How far is it? é"),
            turn("assistant", "2.5 m, 深度"),
            turn("user", "And the wall?"),
            turn("assistant", "\nno idea"),
        ]
        batch = DepthDataCollator(processor, chat_template=template)([{"messages": messages, "image": picture()}])
        assert trained(processor, batch) == "2.5 m, 深度<|im_end|>\n\nno idea<|im_end|>\n"
        assert written(processor, batch) == (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{EYE}How far is it? é<|im_end|>\n"
            "<|im_start|>assistant\n2.5 m, 深度<|im_end|>\n<|im_start|>user\nAnd the wall?<|im_end|>\n"
            "<|im_start|>assistant\n\nno idea<|im_end|>\n"
        )

    def test_labels_are_the_tokens_that_stand_there(self, processor):
        batch = DepthDataCollator(processor)([{"messages": [turn("user", "a"), turn("assistant", "b")]}])
        chosen = batch["labels"] != -100
        assert torch.equal(batch["labels"][chosen], batch["input_ids"][chosen])

    def test_tokens_are_those_of_the_processor(self, processor):
        messages = [turn("user", [{"type": "image"}, {"type": "text", "text": "How far?"}]), turn("assistant", "2 m")]
        batch = DepthDataCollator(processor)([{"messages": messages, "images": [picture()], "focal_length": FOCAL}])
        text = processor.apply_chat_template(messages, tokenize=False)
        expected = processor(images=[picture()], text=[text], focal_length=FOCAL, return_tensors="pt")
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "pixel_values"):
            assert torch.equal(batch[name], expected[name]), name

    def test_continued_reply(self, processor):
        row = {"prompt": [turn("user", "far?"), turn("assistant", "It is")], "completion": [turn("assistant", " far")]}
        batch = DepthDataCollator(processor)([row])
        assert trained(processor, batch).endswith(" far<|im_end|>\n")
        assert "It is" not in trained(processor, batch)

    @pytest.mark.parametrize(
        ("options", "row", "expected"),
        [
            ({}, ASKED | {"prompt": [turn("user", "far?")]}, YES),
            # A prompt may hold earlier replies, which are not trained.
            ({}, ASKED | {"prompt": [turn("user", "near?"), turn("assistant", "no"), turn("user", "far?")]}, YES),
            ({}, {"prompt": "2 + 2 = ", "completion": "4"}, "4<|im_end|>"),
            ({}, {"prompt": "a", "completion": "b<|im_end|>"}, "b<|im_end|>"),
            ({}, PLAIN, "a room<|im_end|>"),
            ({"completion_only_loss": None}, PLAIN, "a room<|im_end|>"),
            ({"completion_only_loss": True}, PLAIN, "a room<|im_end|>"),
            ({"completion_only_loss": False}, PLAIN, "what?a room<|im_end|>"),
            ({"assistant_only_loss": False}, {"messages": TALK, "image": picture()}, WHOLE_TALK),
            ({"dataset_text_field": "story"}, {"story": "once upon"}, "once upon"),
            ({"dataset_text_field": "story"}, {"story": f"a {EYE} b", "image": picture()}, "a  b"),
            ({}, {"messages": TALK[:1]}, ""),
            ({}, {"prompt": TALK[:1]}, ""),
        ],
    )
    def test_what_is_trained(self, processor, options, row, expected):
        assert trained(processor, DepthDataCollator(processor, **options)([row])) == expected

    def test_depth_alone_has_the_methods_prompt_and_no_reply(self, processor):
        batch = DepthDataCollator(processor)([depth_row()])
        assert (batch["labels"] == -100).all()
        assert written(processor, batch) == (
            f"<|im_start|>system\n{DEPTH_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n{EYE}{DEPTH_PROMPT}<|im_end|>\n"
        )
        assert batch["depth_labels"][0].max() == 2.5

    def test_llava_conversations(self, processor):
        row = {
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A cat."},
            ],
            "image": picture(),
        }
        batch = DepthDataCollator(processor)([row])
        assert trained(processor, batch) == "A cat.<|im_end|>\n"
        assert f"user\n{EYE}What is it?<|im_end|>" in written(processor, batch)
        assert row["conversations"][0] == {"from": "human", "value": "<image>\nWhat is it?"}

    def test_parts_that_parquet_filled_with_nulls_and_images_in_messages(self, processor):
        parts = [{"type": "image", "text": None, "image": picture(3)}, {"type": "text", "text": "far?", "image": None}]
        row = {"messages": [turn("user", parts), {**turn("assistant", "yes"), "tool_calls": None}]}
        batch = DepthDataCollator(processor)([row])
        assert f"{EYE}far?" in written(processor, batch)
        assert trained(processor, batch) == "yes<|im_end|>\n"

    def test_a_template_without_marks_is_not_guessed(self, processor):
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        collator = DepthDataCollator(processor, chat_template=template, on_bad_sample="skip")
        with pytest.raises(ChatTemplateError, match="generation"):
            collator([{"messages": [turn("user", "a"), turn("assistant", "b")]}])


class TestImagesAndDepth:
    def test_one_resampling(self, processor):
        batch = DepthDataCollator(processor)([depth_row(focal_length=300.0), depth_row(image=picture(5, (200, 150)))])
        expected = [
            processor.image_processor(image, focal_length=focal, return_tensors="pt")
            for image, focal in ((picture(), 300.0), (picture(5, (200, 150)), FOCAL))
        ]
        for name in ("pixel_values", "image_grid_thw", "focal_scale", "cameras"):
            assert torch.equal(batch[name], torch.cat([one[name] for one in expected])), name

    def test_processor_runs_once(self, processor, monkeypatch):
        calls = []
        run = DepthVLMProcessor.__call__
        monkeypatch.setattr(
            DepthVLMProcessor, "__call__", lambda self, *args, **kwargs: calls.append(1) or run(self, *args, **kwargs)
        )
        DepthDataCollator(processor)([depth_row(), {"text": "a"}, depth_row(image=picture(1))])
        assert len(calls) == 1

    def test_metres(self, processor):
        rows = [
            depth_row(),
            depth_row(depth=np.full((96, 128), 3.25, dtype=np.float32), depth_scale=None),
            depth_row(depth=[[1, 2], [0, 4]], depth_scale=2.0, image=picture(1, (64, 64))),
        ]
        labels = DepthDataCollator(processor)(rows)["depth_labels"]
        assert torch.equal(labels[0], torch.full((96, 128), 2.5))
        assert torch.equal(labels[1], torch.full((96, 128), 3.25))
        assert labels[2].tolist() == [[0.5, 1.0], [0.0, 2.0]]
        assert all(label.dtype == torch.float32 for label in labels)

    def test_mixed_batch(self, processor):
        rows = [
            {"text": "words", "image": None, "images": None, "depth": None, "messages": None, "focal_length": None},
            depth_row(image=None, images=[picture(1), picture(2)], depth=[None, millimetres(4000)]),
            {"prompt": "a", "completion": "b", "images": [], "depth": None},
            {"messages": [turn("user", "x"), turn("assistant", "y")], "images": [picture(3)]},
            depth_row(),
        ]
        batch = DepthDataCollator(processor, return_info=True)(rows)
        assert [trained(processor, batch, i) for i in range(5)] == ["words", "", "b<|im_end|>", "y<|im_end|>\n", ""]
        assert [None if one is None else one.max().item() for one in batch["depth_labels"]] == [None, 4, None, 2.5]
        assert batch["image_grid_thw"].shape == (4, 3)
        assert batch["batch_info"] == BatchInfo(
            rows=tuple(f"row {i} of the batch" for i in range(5)), skipped=0, images=4, depth_images=2
        )
        tokens = batch["attention_mask"].sum(-1)
        assert batch["input_ids"].shape[1] == tokens.max()
        for i, count in enumerate(tokens):
            assert batch["attention_mask"][i, :count].all()
            assert (batch["input_ids"][i, count:] == processor.tokenizer.pad_token_id).all()
            assert (batch["labels"][i, count:] == -100).all()
        assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == processor.image_token_id)

    def test_keys_only_where_there_is_something(self, processor):
        text = {"input_ids", "attention_mask", "mm_token_type_ids", "labels"}
        image = {"pixel_values", "image_grid_thw", "focal_scale", "cameras"}
        collator = DepthDataCollator(processor)
        assert set(collator([{"text": "a"}])) == text
        assert set(collator([{"image": picture()}])) == text | image
        assert set(collator([depth_row(), {"image": picture()}])) == text | image | {"depth_labels"}
        assert type(collator([depth_row()])) is dict

    def test_other_columns(self, processor):
        row = {"image": picture(), "z": millimetres(), "unit": 1000, "K": [[FOCAL, 0, 64], [0, FOCAL, 48], [0, 0, 1]]}
        columns = {"depth": "z", "depth_scale": "unit", "intrinsics": "K"}
        batch = DepthDataCollator(processor, columns=columns)([row])
        assert batch["depth_labels"][0].max() == 2.5
        assert batch["cameras"][0].tolist()[:4] == [FOCAL, FOCAL, 64, 48]
        without = DepthDataCollator(processor, columns={**columns, "depth": None})([row])
        assert "depth_labels" not in without
        with pytest.raises(ValueError, match="focal"):
            DepthDataCollator(processor, columns={"focal": "f"})

    def test_camera_of_the_processor_where_a_row_has_none(self):
        image_processor = DepthVLMImageProcessor(min_pixels=4096, max_pixels=16384, focal_length=77.0)
        processor = DepthVLMProcessor(image_processor, build_toy_tokenizer())
        rows = [{"image": picture(), "depth": millimetres(), "depth_scale": 1000}, depth_row()]
        assert DepthDataCollator(processor)(rows)["cameras"][:, 0].tolist() == [77.0, FOCAL]

    def test_an_assumed_camera_is_said_once_and_only_for_depth(self, processor):
        collator = DepthDataCollator(processor)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            collator([{"image": picture()}])
        row = {"image": picture(), "depth": millimetres(), "depth_scale": 1000, "__row__": 12}
        with pytest.warns(UserWarning, match=r"row 12 is not known: a field of view of 60"):
            collator([row])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            collator([row])

    def test_rows_stay_as_they_are(self, processor):
        row = depth_row(messages=[turn("user", "a"), turn("assistant", "b")])
        keys, messages = list(row), [dict(message) for message in row["messages"]]
        collator = DepthDataCollator(processor)
        first, second = collator([row]), collator([row])
        assert list(row) == keys
        assert row["messages"] == messages
        assert torch.equal(first["labels"], second["labels"])


class TestLength:
    def test_text_is_cut(self, processor):
        row = {"messages": [turn("user", "a"), turn("assistant", "word " * 50)], "image": picture()}
        whole = DepthDataCollator(processor)([row])
        cut = DepthDataCollator(processor, max_length=60)([row])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            assert torch.equal(cut[name], whole[name][:, :60]), name
        assert torch.equal(cut["pixel_values"], whole["pixel_values"])

    @pytest.mark.parametrize("policy", ["stop", "skip"])
    def test_an_image_is_not_cut(self, processor, policy):
        collator = DepthDataCollator(processor, max_length=10, on_bad_sample=policy)
        with pytest.raises(
            ValueError,
            match=r"max_length \(10\) would cut an image of row 7, which has 176 tokens, 12 .*None",
        ):
            collator([depth_row(__row__=7)])

    def test_multiple(self, processor):
        batch = DepthDataCollator(processor, pad_to_multiple_of=64)([depth_row(), {"text": "a"}])
        assert batch["input_ids"].shape == (2, 192)
        assert batch["labels"].shape == batch["mm_token_type_ids"].shape == (2, 192)


def test_depth_scale_in_the_png(processor):
    info = PngImagePlugin.PngInfo()
    info.add_text("depth_scale", "500")
    stream = io.BytesIO()
    millimetres().save(stream, "PNG", pnginfo=info)
    row = depth_row(depth={"bytes": stream.getvalue(), "path": None}, depth_scale=None)
    assert DepthDataCollator(processor)([row])["depth_labels"][0].unique().tolist() == [5.0]


def test_the_model_takes_every_batch(processor):
    config = toy_config()
    config.text_config.vocab_size = len(processor.tokenizer)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, getattr(processor, name))
    torch.manual_seed(0)
    model = DepthVLMForConditionalGeneration(config).train()
    collator = DepthDataCollator(processor, on_bad_sample="skip")
    words = {"messages": [turn("user", "a"), turn("assistant", "b")]}
    mixed = model(**collator([depth_row(), words, {"image": picture()}]))
    assert torch.isfinite(mixed.text_loss)
    assert torch.isfinite(mixed.depth_loss)
    assert torch.isfinite(model(**collator([words])).text_loss)
    # Nothing to learn: no label, and no invalid number in the logits.
    assert torch.isfinite(model(**collator([depth_row(depth=millimetres(0))])).logits).all()


class TestNanoTokenizer:
    """A tokenizer that joins letters: a reply starts with a token of its own, as it does after a prompt."""

    @pytest.fixture(scope="class")
    def nano(self) -> DepthVLMProcessor:
        return DepthVLMProcessor.from_pretrained(Path(depthvlm.__file__).parent / "nano")

    @pytest.mark.parametrize("reply", ["A red box is 2.5 m away.", " far", "\n\nnear", "ther"])
    def test_replies(self, nano, reply):
        collator = DepthDataCollator(nano)
        rows = [
            {"messages": [turn("user", "How far is the red box?"), turn("assistant", reply)], "image": picture()},
            {"prompt": "The box is far", "completion": reply},
            {"prompt": "The box is ", "completion": reply},
        ]
        batch = collator(rows)
        end = nano.tokenizer.eos_token
        assert trained(nano, batch, 0) == f"{reply}<|im_end|>\n"
        assert trained(nano, batch, 1) == trained(nano, batch, 2) == reply + end
        prompt = nano.tokenizer("The box is ", add_special_tokens=False)["input_ids"]
        assert batch["input_ids"][2, : len(prompt)].tolist() == prompt

    def test_an_ordinary_conversation_has_the_tokens_of_its_template(self, nano):
        messages = [
            turn("user", "Is it far?"),
            turn("assistant", "Yes, 7.2 m."),
            turn("user", "b"),
            turn("assistant", "c"),
        ]
        ids = nano.tokenizer(nano.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        assert DepthDataCollator(nano)([{"messages": messages}])["input_ids"][0].tolist() == ids
