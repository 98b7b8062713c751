"""DepthVLM in lmms-eval, run by `make test-lmms` in an environment of its own; nothing is downloaded."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import lmms_eval
import numpy as np
import pytest
import torch
import yaml
from command_line import run
from datasets import Dataset, Features, Image, Value
from depthvlm.benchmark.lmms import manifest
from depthvlm.benchmark.lmms.models.depthvlm import DepthVLMChat
from depthvlm.benchmark.report.inputs import read_inputs
from depthvlm.benchmark.synthetic.samples import draw_scene, held_out_questions
from depthvlm.processing import DEPTH_SYSTEM_PROMPT
from lmms_eval.models import get_model, get_model_manifest
from lmms_process import run_lmms
from PIL import Image as Pictures
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

PLUGIN = "depthvlm.benchmark.lmms"
POPE = Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"
TASK = "pope_local"  # of two tasks of one name, lmms-eval takes its own
ROWS = 24


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Questions of POPE's kind, "Is there a ...?", about scenes that nano has not seen, with their answers."""
    found = []
    for seed, question in held_out_questions(80, start=700_000, per_scene=9):
        if question.kind == "existence":
            image = Pictures.fromarray(draw_scene(seed).image)
            about = {"question": question.question, "answer": question.answer, "category": "local"}
            found.append({"question_id": str(seed), **about, "image": image})
    assert len(found) >= ROWS
    return found[:ROWS]


@pytest.fixture(scope="module")
def tasks(rows, tmp_path_factory) -> Path:
    """A folder with lmms-eval's own POPE task, its metrics and its functions, on local rows."""
    folder = tmp_path_factory.mktemp("tasks")
    text = {name: Value("string") for name in ("question_id", "question", "answer", "category")}
    Dataset.from_list(rows, features=Features({**text, "image": Image()})).to_parquet(folder / "rows.parquet")
    task = {
        "task": TASK,
        "include": str(POPE),
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.parquet")}},
        # nano knows the bare questions only.
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
    }
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def model() -> DepthVLMChat:
    return DepthVLMChat("depthvlm-nano", device="cpu")


@pytest.fixture(scope="module")
def replies(rows, model) -> list[str]:
    """Those of the same weights one by one, with the patches that transformers' own processor cuts for Qwen3-VL."""
    ours = model.processor.image_processor
    size = {name: ours.size[name] for name in ("shortest_edge", "longest_edge")}
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen2VLImageProcessor(patch_size=16, merge_size=2, temporal_patch_size=2, size=size, **normal)
    tokenizer = model.processor.tokenizer
    found = []
    for row in rows:
        image = processor([row["image"]], return_tensors="pt")
        tokens = "<|image_pad|>" * (int(image["image_grid_thw"].prod()) // 4)
        text = (
            f"<|im_start|>system\n{DEPTH_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>{tokens}"
            f"<|vision_end|>{row['question']}<|im_end|>\n<|im_start|>assistant\n"
        )
        words = tokenizer(text, return_tensors="pt")
        kinds = (words["input_ids"] == model.network.config.image_token_id).int()
        with torch.inference_mode():
            out = model.network.generate(**words, **image, mm_token_type_ids=kinds, do_sample=False, max_new_tokens=128)
        found.append(tokenizer.decode(out[0, words["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


@pytest.mark.parametrize(("arguments", "plugin"), [((), ""), (("--force_simple",), PLUGIN)])
def test_a_task_from_the_command_line_to_table_3(tasks, rows, replies, tmp_path, arguments, plugin):
    """Chat interface by entry point, and simple one by LMMS_EVAL_PLUGINS."""
    result, samples, printed = run_lmms(TASK, tasks, tmp_path, "--batch_size", "4", *arguments, plugin=plugin)
    assert "focal length" not in printed  # a camera is named, none is assumed
    expected = {row["question_id"]: reply.lower().strip() for row, reply in zip(rows, replies, strict=True)}
    answers = [json.loads(line)["pope_accuracy"] for line in samples.read_text().splitlines()]
    assert {answer["question_id"]: answer["prediction"] for answer in answers} == expected
    right = np.mean([reply == row["answer"] for row, reply in zip(rows, replies, strict=True)])

    [measured] = read_inputs([result]).lmms
    assert measured.name == "depthvlm-nano"
    score = measured.tasks[TASK]["pope_accuracy"]
    assert score.value == pytest.approx(right)
    assert (score.effective, score.original, score.partial) == (ROWS, ROWS, "")
    table_3 = tmp_path / "as_pope_results.json"
    table_3.write_text(result.read_text().replace(TASK, "pope"))
    report = run("bench", "report", table_3, "--table", 3, "--format", "csv")
    lines = csv.reader(io.StringIO(report.stdout))
    [line] = [line for line in lines if "depthvlm-nano" in line and "pope" in line]
    assert float(line[line.index("pope") + 1]) == pytest.approx(100 * right, abs=0.05)


def test_a_part_of_a_task_says_so(tasks, tmp_path):
    result, *_ = run_lmms(TASK, tasks, tmp_path, "--batch_size", "4", "--limit", "8")
    [measured] = read_inputs([result]).lmms
    assert measured.tasks[TASK]["pope_accuracy"].partial == f"8 of {ROWS} samples"


def test_registration():
    assert get_model_manifest("depthvlm") == manifest()
    assert get_model("depthvlm") is DepthVLMChat
    assert get_model("depthvlm", force_simple=True).is_simple


def test_a_field_of_view_brings_images_to_the_canonical_camera():
    """nano's is 160 pixels: at 90 degrees an image of 640 has a focal length of 320, so it is halved."""
    told = DepthVLMChat("depthvlm-nano", device="cpu", fov=90)
    image = told.processor.image_processor(Pictures.new("RGB", (640, 448)), return_tensors="pt", **told.image_options)
    assert image["image_grid_thw"].tolist() == [[1, 14, 20]]


def test_two_images_and_none_in_one_batch(model):
    image = {"type": "image", "image": Pictures.new("RGB", (96, 64))}
    ask = {"type": "text", "text": "Is there a door?"}
    asked = [[{"role": "user", "content": content}] for content in ([image, image, ask], [ask])]
    options = {"max_new_tokens": 8}
    assert model._reply(asked, dict(options)) == [model._reply([each], dict(options))[0] for each in asked]


def test_other_media_and_options(model):
    with pytest.raises(ValueError, match="audio"):
        model._reply([[{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]], {})
    with pytest.raises(ValueError, match="batch_size"):
        DepthVLMChat("depthvlm-nano", batch_size="auto")
    content = [{"type": "text", "text": "Say something."}]
    whole = model._reply([[{"role": "user", "content": content}]], {"max_new_tokens": 8})[0]
    cut = model._reply([[{"role": "user", "content": content}]], {"max_new_tokens": 8, "until": [whole[-1]]})[0]
    assert cut == whole.split(whole[-1])[0] != whole
