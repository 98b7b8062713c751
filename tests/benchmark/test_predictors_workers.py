"""VLMs in environments of their own, against stand-ins for their packages that check what they are given."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depthvlm.benchmark.systems import make_predictor, worker_script, workers
from depthvlm.benchmark.systems.interface import PredictorError
from depthvlm.benchmark.systems.workers import SpatialRGPT, read_levels
from toy_depth_models import depth_anything
from toy_examples import toy_example
from toy_source_files import write_text

# As in llava/eval/eval_spatial.py of github.com/AnjieCheng/SpatialRGPT. The reply says, in feet, how many pixels of the
# image its region has, and what it saw.
LLAVA = {
    "__init__.py": "",
    "constants.py": "IMAGE_TOKEN_INDEX = -200\n",
    "conversation.py": """
from enum import Enum

class SeparatorStyle(Enum):
    TWO = 1
    LLAMA_3 = 2

class Conversation:
    roles = ("USER: ", "ASSISTANT: ")
    sep_style, sep, sep2 = SeparatorStyle.LLAMA_3, "<|eot_id|>", "<|end_of_text|>"

    def __init__(self):
        self.messages = []

    def copy(self):
        return Conversation()

    def append_message(self, role, message):
        self.messages.append([role, message])

    def get_prompt(self):
        return "".join(role + (message + self.sep if message else "") for role, message in self.messages)

conv_templates = {"llama_3": Conversation()}
""",
    "mm_utils.py": """
import numpy as np
import torch

def get_model_name_from_path(path):
    return path.strip("/").split("/")[-1]

def process_images(images, image_processor, model_cfg):
    assert image_processor == "image processor" and model_cfg.image_aspect_ratio == "resize"
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() for image in images])

def process_regions(masks, image_processor, data_args):
    assert all(mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1} for mask in masks)
    return torch.stack([torch.from_numpy(mask).float() for mask in masks])

def tokenizer_image_token(prompt, tokenizer, image_token_index, return_tensors=None):
    assert image_token_index == -200 and return_tensors == "pt"
    tokenizer.prompt = prompt
    return torch.tensor([1, image_token_index, 2])
""",
    "model/__init__.py": "",
    "model/builder.py": """
import os
from types import SimpleNamespace
import torch

class Tokenizer:
    def batch_decode(self, output_ids, skip_special_tokens):
        assert skip_special_tokens
        return [output_ids[0]]

class Model:
    device = torch.device("cpu")
    config = SimpleNamespace(image_aspect_ratio="resize")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def to(self, dtype):
        assert dtype == torch.bfloat16
        return self

    def generate(self, input_ids, images=None, depths=None, masks=None, attention_mask=None, **generation):
        assert input_ids.tolist() == [[1, -200, 2]]
        assert generation == {"do_sample": False, "num_beams": 1, "max_new_tokens": 32, "use_cache": True}
        assert images.dtype == masks[0].dtype == torch.bfloat16 and images.shape[1] == 3
        assert len(masks) == 1 and masks[0].shape == (1, *images.shape[2:])
        rows, columns = torch.nonzero(masks[0][0], as_tuple=True)
        box = [columns.min().item(), rows.min().item(), columns.max().item(), rows.max().item()]
        depth = None if depths is None else [depths.min().item(), depths.max().item()]
        print("noise on the standard output")
        return [f"box {box} depth {depth} prompt {self.tokenizer.prompt!r} is {len(rows)} feet.<|eot_id|>"]

def load_pretrained_model(model_path, model_name, model_base=None, load_8bit=False, load_4bit=False,
                          device_map="auto", device="cuda", **kwargs):
    assert os.path.isdir(model_path) and model_name == "toy" and model_base is None and device == "cpu"
    tokenizer = Tokenizer()
    return tokenizer, Model(tokenizer), "image processor", 2048
""",
}


class HereWorker:
    """The worker's script in this process; `test_levels_to_metres` runs it in another."""

    def __init__(self, python: str, arguments: list[str], name: str, install: str):
        self.ask = worker_script.MODELS[arguments[0]](*arguments[1:])


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    for name, text in LLAVA.items():
        write_text(tmp_path / "packages" / "llava" / name, text)
    for name in [name for name in sys.modules if name.split(".")[0] == "llava"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(workers, "Worker", HereWorker)
    monkeypatch.setenv("SPATIAL_RGPT_PYTHON", sys.executable)
    (tmp_path / "toy").mkdir()
    return str(tmp_path / "toy")


def example(points: list[list[float]], size: tuple[int, int] = (96, 64)) -> Any:
    return replace(
        toy_example(*size, (60.0, 60.0, 48.0, 32.0)), points=np.array(points, dtype=np.float64).reshape(-1, 2)
    )


def test_regions_and_relative_depth(model, tmp_path):
    depth_model = depth_anything(tmp_path / "depth", "relative")
    rgpt = SpatialRGPT(model, depth_model=depth_model, device="cpu", max_new_tokens=32)
    [[first, second], none] = rgpt.predict([example([[50, 30], [1, 60]]), example([])])
    assert none == []
    # 20 pixels around column 50, row 30; then cut at the border: columns 0 to 10, rows 50 to 63.
    prompt = r"'USER: <image>\nHow far is <mask> <depth> from the camera?<|eot_id|>ASSISTANT: '"
    assert first.text == f"box [40, 20, 59, 39] depth [0.0, 255.0] prompt {prompt} is 400 feet."
    assert first.metres == pytest.approx(400 * 0.3048)
    assert second.text.startswith("box [0, 50, 10, 63] ")
    assert second.metres == pytest.approx(11 * 14 * 0.3048)


def test_without_depth(model):
    rgpt = SpatialRGPT(model, depth_model=None, device="cpu", max_new_tokens=32, region_size=6)
    [[answer]] = rgpt.predict([example([[1000, 400]], size=(2048, 1024))])
    # At half the size: column 500, row 200.
    assert answer.text.startswith("box [497, 197, 502, 202] depth None prompt 'USER: <image>")
    assert "How far is <mask> from the camera?" in answer.text


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"python": "/gone"}, PredictorError, "cannot be started .*clone https://github.com/AnjieCheng/SpatialRGPT"),
        ({"python": "/bin/false"}, PredictorError, "ended with status 1; what it printed says why"),
        ({}, PredictorError, "environment of its own: .* set SPATIAL_RGPT_PYTHON"),
        ({"region_size": 0}, ValueError, "at least 1, got 0"),
    ],
)
def test_without_its_environment(monkeypatch, options, error, words):
    monkeypatch.delenv("SPATIAL_RGPT_PYTHON", raising=False)
    with pytest.raises(error, match=words):
        SpatialRGPT("toy", depth_model=None, **options)


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

    def images(*sizes: tuple[int, int, float]) -> list:
        return [toy_example(w, h, (f, f, w / 2, h / 2), seed=seed) for seed, (w, h, f) in enumerate(sizes)]

    predictor = make()
    assert predictor.name == "Youtu-VL-4B"
    given = images((64, 48, 1000.0), (256, 128, 4000.0), (64, 64, 2000.0), (64, 32, 2000.0))
    even, halves, words, short = predictor.predict(given)
    np.testing.assert_allclose(even, np.full((48, 64), 8.0), rtol=1e-6)
    np.testing.assert_allclose(halves[:, :112], 1.0, rtol=1e-6)
    np.testing.assert_allclose(halves[:, 144:], 4.0, rtol=1e-6)
    np.testing.assert_allclose(halves[0, 127] * halves[0, 128], 4.0, rtol=1e-6)  # linear in the logarithm
    assert np.isnan(words).all()
    assert np.isnan(short).all()
    assert "reply to image-2 has no depth map: I see a wall." in caplog.text
    with pytest.raises(PredictorError, match="Youtu-VL failed: MemoryError: no room"):
        predictor.predict(images((32, 32, 2000.0)))
    with pytest.raises(PredictorError, match="level 9: there are more than the 5"):
        predictor.predict(images((16, 16, 2000.0)))


def test_what_must_be_given(make, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="'youtu-vl-4b' needs to be told depth_range and levels"):
        make_predictor("youtu-vl-4b")
    with pytest.raises(PredictorError, match="No log scale"):
        make(depth_range=(0, 10))
    with pytest.raises(PredictorError, match="cannot be started"):
        make(python="/nowhere/python")
    (tmp_path / "torch.py").write_text("raise SystemExit(3)")
    with pytest.raises(PredictorError, match=r"ended with status 3.*transformers>=4\.56,<=4\.57\.1"):
        make()
    monkeypatch.delenv("YOUTU_VL_PYTHON")
    with pytest.raises(PredictorError, match="environment of its own"):
        make()


def test_replies():
    assert read_levels("<depth><mask>(5,1), (6,2)\n</mask>", (48, 16)).tolist() == [[5, 6, 6]]
    assert read_levels("<mask>(7,6)</mask>", (3, 2)).tolist() == [[7] * 3] * 2
    for reply in ("", "5 m", "<mask></mask>", "<mask>(5,2)</mask>", "<mask>(5,99999999999)</mask>", "<mask>(5,3)"):
        assert read_levels(reply, (48, 16)) is None
    # The worker needs nothing of this package.
    assert not re.search("from [.]|import depthvlm", Path(worker_script.__file__).read_text())
