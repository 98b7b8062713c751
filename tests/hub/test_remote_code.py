"""A checkpoint carries its code: it loads in a fresh process where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_checkpoint import save_toy_checkpoint
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMProcessor

HIDE_THE_PACKAGE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "depthvlm":
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
"""

LOAD = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation,
                          AutoModelForImageTextToText, AutoProcessor, pipeline)

folder, image, again = sys.argv[1:4]
trust = {"trust_remote_code": True}
image = Image.open(image)
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How far?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[image], text=[text], focal_length=100.0, return_tensors="pt")
result = {"classes": [type(config).__name__, type(processor).__name__]}
depth = {}
for name, auto in {"model": AutoModel, "chat": AutoModelForImageTextToText}.items():
    model = auto.from_pretrained(folder, **trust).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    depth[name] = model.predict_depth(**inputs)[0]
estimator = AutoModelForDepthEstimation.from_pretrained(folder, **trust).eval()
image_processor = AutoImageProcessor.from_pretrained(folder, **trust)
outputs = estimator(**image_processor(images=image, focal_length=100.0, return_tensors="pt"))
result["estimator"] = list(image_processor.post_process_depth_estimation(outputs)[0]["predicted_depth"].shape)
model.save_pretrained(again)
processor.save_pretrained(again)
depth["again"] = AutoModel.from_pretrained(again, **trust).eval().predict_depth(**inputs)[0]
pipe = pipeline("depth-estimation", model=folder, **trust)
result["pipeline"] = list(pipe(image)["predicted_depth"].shape)
chat = pipeline("image-text-to-text", model=folder, **trust)
reply = chat(text=[{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]}],
             generate_kwargs={"max_new_tokens": 4})
result["reply"] = isinstance(reply[0]["generated_text"][-1]["content"], str)
np.savez(again + "/depth.npz", **{name: value.numpy() for name, value in depth.items()})
assert not [name for name in sys.modules if name.split(".")[0] == "depthvlm"]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_everything_without_the_package(checkpoint, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    run = subprocess.run(
        [sys.executable, "-c", HIDE_THE_PACKAGE + LOAD, checkpoint, tmp_path / "image.png", tmp_path / "again"],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result == {
        "classes": ["DepthVLMConfig", "DepthVLMProcessor"],
        "estimator": [90, 120],
        "pipeline": [90, 120],
        "reply": True,
    }
    processor = DepthVLMProcessor.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How far?"}]}]
    inputs = processor(
        images=[Image.fromarray(pixels)],
        text=[processor.apply_chat_template(messages, add_generation_prompt=True)],
        focal_length=100.0,
        return_tensors="pt",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = DepthVLMForConditionalGeneration.from_pretrained(checkpoint).predict_depth(**inputs)[0].numpy()
    torch.set_num_threads(threads)
    there = np.load(tmp_path / "again" / "depth.npz")
    assert sorted(there) == ["again", "chat", "model"]
    for depth in there.values():
        np.testing.assert_array_equal(depth, here)


def test_the_code_that_travels_requires_nothing_else(checkpoint):
    """transformers refuses remote code whose imports are missing; it passes over those in a `try`, such as HEIC's."""
    allowed = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "PIL", *sys.stdlib_module_names}
    files = {file.name: file for file in checkpoint.glob("*.py")}
    assert {"modeling_depthvlm.py", "configuration_depthvlm.py", "processing_depthvlm.py"} <= set(files)
    for name, file in files.items():
        assert set(get_imports(file)) <= allowed, name
        assert {f"{module}.py" for module in get_relative_imports(file)} <= set(files), name
