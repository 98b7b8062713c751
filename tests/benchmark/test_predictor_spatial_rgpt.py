"""SpatialRGPT through its prompt: its package is a stand-in with the documented calls that checks what it is given."""

import sys

import numpy as np
import pytest
import torch
from depthvlm.benchmark.systems.dense import PredictorError
from depthvlm.benchmark.systems.interface import Example
from depthvlm.benchmark.systems.spatial_rgpt import SpatialRGPT
from PIL import Image
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

# As in llava/eval/eval_spatial.py of github.com/AnjieCheng/SpatialRGPT. The reply says, in feet, how many pixels of the
# image its region has, and what it saw.
PACKAGE = {
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
        if images[0, :, 0, 0].tolist() == [0, 0, 0]:
            raise RuntimeError("out of memory")
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


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    for name, text in PACKAGE.items():
        file = tmp_path / "packages" / "llava" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("SPATIAL_RGPT_PYTHON", sys.executable)
    (tmp_path / "toy").mkdir()
    return str(tmp_path / "toy")


@pytest.fixture
def depth_model(tmp_path) -> str:
    layers = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(image_size=42, patch_size=14, out_features=stages, reshape_hidden_states=False, **layers)
    neck = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16, "head_hidden_size": 8}
    config = DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=32, **neck)
    torch.manual_seed(0)
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    folder = tmp_path / "depth"
    network.save_pretrained(folder)
    processor = DPTImageProcessor(size={"height": 42, "width": 42}, keep_aspect_ratio=True, ensure_multiple_of=14)
    processor.save_pretrained(folder)
    return str(folder)


def example(value: int, points: list[list[float]], size: tuple[int, int] = (96, 64)) -> Example:
    pixels = np.random.default_rng(value).integers(value, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0] = value
    return Example(f"e{value}", Image.fromarray(pixels), (60.0, 60.0, 48.0, 32.0), np.array(points).reshape(-1, 2))


def test_regions_and_relative_depth(model, depth_model):
    rgpt = SpatialRGPT(model, depth_model=depth_model, device="cpu", max_new_tokens=32)
    try:
        answers = rgpt.predict([example(5, [[50, 30], [1, 60]]), example(6, [])])
    finally:
        rgpt.close()
    assert [len(of_image) for of_image in answers] == [2, 0]
    first, second = answers[0]
    # 20 pixels around column 50, row 30; then cut at the border: columns 0 to 10, rows 50 to 63.
    prompt = r"'USER: <image>\nHow far is <mask> <depth> from the camera?<|eot_id|>ASSISTANT: '"
    assert first.text == f"box [40, 20, 59, 39] depth [0.0, 255.0] prompt {prompt} is 400 feet."
    assert first.metres == pytest.approx(400 * 0.3048)
    assert second.text.startswith("box [0, 50, 10, 63] ")
    assert second.metres == pytest.approx(11 * 14 * 0.3048)


def test_without_depth_and_a_failure(model):
    rgpt = SpatialRGPT(model, depth_model=None, device="cpu", max_new_tokens=32, region_size=6)
    try:
        [[answer]] = rgpt.predict([example(5, [[1000, 400]], size=(2048, 1024))])
        # At half the size: column 500, row 200.
        assert answer.text.startswith("box [497, 197, 502, 202] depth None prompt 'USER: <image>")
        assert "How far is <mask> from the camera?" in answer.text
        with pytest.raises(PredictorError, match="SpatialRGPT failed: RuntimeError: out of memory"):
            rgpt.predict([example(0, [[50, 30]])])
    finally:
        rgpt.close()


def test_without_its_environment(model, monkeypatch, tmp_path):
    with pytest.raises(PredictorError, match=r"cannot be started .*clone https://github.com/AnjieCheng/SpatialRGPT"):
        SpatialRGPT(model, depth_model=None, python=tmp_path / "gone")
    with pytest.raises(PredictorError, match="ended with status 1; what it printed says why"):
        SpatialRGPT(model, depth_model=None, python="/bin/false")
    monkeypatch.delenv("SPATIAL_RGPT_PYTHON")
    with pytest.raises(PredictorError, match=r"environment of its own: .* set SPATIAL_RGPT_PYTHON"):
        SpatialRGPT(model, depth_model=None)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SpatialRGPT(model, region_size=0)
