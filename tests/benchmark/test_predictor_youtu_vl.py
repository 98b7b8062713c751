"""Youtu-VL, against a stand-in for the transformers of its own environment, in another process."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthvlm.benchmark.systems import make_predictor, youtu_vl
from depthvlm.benchmark.systems.dense import PredictorError
from depthvlm.benchmark.systems.youtu_vl import read_levels
from toy_examples import toy_example

TRANSFORMERS = """
import torch
from PIL import Image

class Inputs(dict):
    def to(self, device):
        assert device == "cpu"
        return self
    __getattr__ = dict.__getitem__

class Model:
    device = "cpu"
    def eval(self):
        return self
    def generate(self, input_ids, img_input, **options):
        assert options == {"do_sample": True, "temperature": 0.1, "top_p": 0.001, "repetition_penalty": 1.05,
                           "max_new_tokens": 4096}, options
        assert not torch.is_grad_enabled()
        with Image.open(img_input) as image:
            self.reply = REPLIES[image.size]
        if self.reply is None:
            raise MemoryError("no room")
        print("a line that is no reply")
        return torch.cat([input_ids, torch.arange(len(self.reply))[None]], dim=1)

class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(name, **options):
        assert name == "tencent/Youtu-VL-4B-Instruct"
        assert options == {"attn_implementation": "eager", "torch_dtype": torch.bfloat16, "device_map": "cpu",
                           "trust_remote_code": True, "output_loading_info": True}, options
        AutoProcessor.model = Model()
        return AutoProcessor.model, {"missing_keys": []}

class AutoProcessor:
    @classmethod
    def from_pretrained(cls, name, use_fast, trust_remote_code):
        assert use_fast and trust_remote_code
        return cls()
    def apply_chat_template(self, messages, **options):
        assert options == {"tokenize": True, "add_generation_prompt": True, "return_dict": True,
                           "return_tensors": "pt"}
        system, user = messages
        assert system == {"role": "system", "content": "You are a helpful assistant."}
        image, text = user["content"]
        assert image["type"] == "image" and text == {"type": "text", "text": "Estimate the depth."}
        return Inputs(input_ids=torch.zeros(1, 7, dtype=torch.long))
    def batch_decode(self, tokens, **options):
        assert [len(row) for row in tokens] == [len(self.model.reply)]
        return [self.model.reply]
"""
REPLIES = {  # by the size of the resized image
    (128, 96): "<depth><mask>(3,48)</mask>",
    (128, 64): "<depth><mask>" + ",".join("(0,4),(2,4)" for _ in range(4)) + "</mask>",
    (64, 64): "I see a wall.",
    (64, 32): "<depth><mask>(1,7)</mask>",
    (32, 32): None,
    (16, 16): "<depth><mask>(9,1)</mask>",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the predictor with an environment whose transformers is the stand-in."""
    (tmp_path / "transformers.py").write_text(f"{TRANSFORMERS}REPLIES = {REPLIES!r}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("YOUTU_VL_PYTHON", sys.executable)
    made: list[Any] = []

    def make(**options: Any) -> Any:
        options = {"device": "cpu", "attention": "eager", "depth_range": (1, 16), "levels": 5} | options
        made.append(make_predictor("youtu-vl-4b", **options))
        return made[-1]

    yield make
    for predictor in made:
        predictor.close()


def test_levels_to_metres(make, caplog):
    """Images are resized to f = 2000; 5 levels from 1 to 16 m are 1, 2, 4, 8 and 16 m."""
    predictor = make()
    assert predictor.name == "Youtu-VL-4B"
    even, halves, words, short = predictor.predict(
        [
            toy_example(64, 48, (1000.0, 1000.0, 32, 24)),
            toy_example(256, 128, (4000.0, 4000.0, 128, 64)),
            toy_example(64, 64, (2000.0, 2000.0, 32, 32), seed=3),
            toy_example(64, 32, (2000.0, 2000.0, 32, 16), seed=4),
        ]
    )
    np.testing.assert_allclose(even, np.full((48, 64), 8.0), rtol=1e-6)
    np.testing.assert_allclose(halves[:, :112], 1.0, rtol=1e-6)
    np.testing.assert_allclose(halves[:, 144:], 4.0, rtol=1e-6)
    np.testing.assert_allclose(halves[0, 127] * halves[0, 128], 4.0, rtol=1e-6)  # linear in the logarithm
    assert np.isnan(words).all()
    assert np.isnan(short).all()
    assert "reply to image-3 has no depth map: I see a wall." in caplog.text
    with pytest.raises(PredictorError, match="Youtu-VL failed: MemoryError: no room"):
        predictor.predict([toy_example(32, 32, (2000.0, 2000.0, 16, 16))])
    with pytest.raises(PredictorError, match="level 9: there are more than the 5"):
        predictor.predict([toy_example(16, 16, (2000.0, 2000.0, 8, 8))])


def test_a_process_that_ends(make, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    with pytest.raises(PredictorError, match=r"ended with status 3.*transformers>=4\.56,<=4\.57\.1"):
        make()


def test_what_must_be_given(make, monkeypatch):
    with pytest.raises(ValueError, match="'youtu-vl-4b' needs to be told depth_range and levels"):
        make_predictor("youtu-vl-4b")
    with pytest.raises(PredictorError, match="No log scale"):
        make(depth_range=(0, 10))
    with pytest.raises(PredictorError, match="cannot be started"):
        make(python="/nowhere/python")
    monkeypatch.delenv("YOUTU_VL_PYTHON")
    with pytest.raises(PredictorError, match="environment of its own"):
        make()


def test_replies():
    assert read_levels("<depth><mask>(5,1), (6,2)\n</mask>", (48, 16)).tolist() == [[5, 6, 6]]
    assert read_levels("<mask>(7,6)</mask>", (3, 2)).tolist() == [[7] * 3] * 2
    for reply in ("", "5 m", "<mask></mask>", "<mask>(5,2)</mask>", "<mask>(5,99999999999)</mask>", "<mask>(5,3)"):
        assert read_levels(reply, (48, 16)) is None


def test_the_worker_needs_nothing_of_this_package():
    source = Path(youtu_vl.__file__).with_name("youtu_vl_worker.py").read_text()
    assert "from ." not in source
    assert "import depthvlm" not in source
