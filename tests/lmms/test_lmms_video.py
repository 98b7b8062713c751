"""A task of video files in lmms-eval, from the command line, against transformers' own processor for Qwen3-VL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from depthvlm.benchmark.lmms.models.depthvlm import DepthVLMChat
from depthvlm.benchmark.synthetic.samples import draw_scene
from depthvlm.processing import DEPTH_SYSTEM_PROMPT
from lmms_process import run_lmms
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

FRAMES, TAKEN = 9, [0, 3, 5, 8]
QUESTION = "Which object is nearest?"
TASK = """\
task: film_local
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.film
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three films of nine rendered scenes each, two frames a second."""
    folder, found = tmp_path_factory.mktemp("films"), []
    for film in range(3):
        path = folder / f"{film}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv420p", 4_000_000
            for index in range(FRAMES):
                picture = np.asarray(draw_scene(1_000_800_000 + 10 * film + index).image)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(128, 96)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        found.append(path)
    return found


@pytest.fixture(scope="module")
def model() -> DepthVLMChat:
    return DepthVLMChat("depthvlm-nano", device="cpu", num_frames=4)


@pytest.fixture(scope="module")
def replies(films: list[Path], model: DepthVLMChat) -> list[str]:
    """Those of the same weights to the frames that `TAKEN` names, through transformers' own processor."""
    tokenizer = model.processor.tokenizer
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=model.processor.chat_template
    )
    found = []
    for path in films:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == FRAMES
        content: list[dict[str, Any]] = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        system = {"role": "system", "content": [{"type": "text", "text": DEPTH_SYSTEM_PROMPT}]}
        text = processor.apply_chat_template([system, {"role": "user", "content": content}], add_generation_prompt=True)
        assert isinstance(text, str)
        metadata = {"total_num_frames": FRAMES, "fps": 2.0, "frames_indices": list(TAKEN)}
        inputs = processor(
            text=[text],
            videos=[np.stack([frames[index] for index in TAKEN])],
            do_sample_frames=False,
            video_metadata=[metadata],
            return_tensors="pt",
        )
        # Two frames make one grid of tokens, named by the middle of their times.
        read = tokenizer.decode(inputs["input_ids"][0])
        assert "<0.8 seconds>" in read
        assert "<3.2 seconds>" in read
        with torch.inference_mode():
            out = model.network.generate(**inputs, do_sample=False, max_new_tokens=12)
        found.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert len(set(found)) > 1  # what is seen decides
    return found


@pytest.mark.parametrize("arguments", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_a_task_of_films(films, replies, tmp_path, arguments):
    rows = [
        {"film": str(path), "question": QUESTION, "answer": reply if index else "something else"}
        for index, (path, reply) in enumerate(zip(films, replies, strict=True))
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "film_local.yaml").write_text(TASK.format(rows=tmp_path / "rows.parquet"))
    (tmp_path / "utils.py").write_text('def film(doc):\n    return [doc["film"]]\n')
    options = ("--batch_size", "2", *arguments)
    result, samples, _ = run_lmms("film_local", tmp_path, tmp_path / "out", *options, model_args=",num_frames=4")
    lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["filtered_resps"] for line in lines] == replies
    score = json.loads(result.read_text())["results"]["film_local"]["exact_match,none"]
    assert score == pytest.approx(2 / 3)


def test_a_film_and_a_picture_in_one_batch(films, model):
    picture = {"type": "image", "image": Image.new("RGB", (96, 64))}
    ask = {"type": "text", "text": "Is there a door?"}
    contents = [[{"type": "video", "video": str(films[0])}, ask], [picture, ask], [ask]]
    asked = [[{"role": "user", "content": content}] for content in contents]
    options = {"max_new_tokens": 8}
    assert model._reply(asked, dict(options)) == [model._reply([each], dict(options))[0] for each in asked]
