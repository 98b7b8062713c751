"""Every family's checkpoint carries its code: it loads in a fresh process where the package is not installed."""

import json
import shutil

import numpy as np
import pytest
import torch
from fresh import HIDE_THE_PACKAGE, ask, python, save_noise
from PIL import Image
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_models import last_layer
from transformers.dynamic_module_utils import get_relative_imports

from depthvlm import DepthVLMForConditionalGeneration, DepthVLMForDepthEstimation, DepthVLMProcessor

LOAD = """
import json, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation,
                          AutoModelForImageTextToText, AutoProcessor, pipeline)

folder, image, again = Path(sys.argv[1]), Image.open(sys.argv[2]), Path(sys.argv[3])
trust, result = {"trust_remote_code": True}, {}
for path in sorted(folder.iterdir()):
    def remote(loaded):
        assert type(loaded).__module__.startswith("transformers_modules"), type(loaded).__module__
        return loaded

    config = remote(AutoConfig.from_pretrained(path, **trust))
    processor = remote(AutoProcessor.from_pretrained(path, **trust))
    inputs = fresh.ask(processor, image, focal_length=100.0)
    depth = {}
    for name, auto in {"model": AutoModel, "chat": AutoModelForImageTextToText}.items():
        model = remote(auto.from_pretrained(path, **trust).eval())
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        depth[name] = output.predicted_depth[0]
    words = output.sequences[0].tolist()
    estimator = remote(AutoModelForDepthEstimation.from_pretrained(path, **trust).eval())
    pixels = remote(AutoImageProcessor.from_pretrained(path, **trust))(image, focal_length=100.0, return_tensors="pt")
    depth["estimator"] = estimator(**pixels).predicted_depth[0]
    model.save_pretrained(again / path.name)
    processor.save_pretrained(again / path.name)
    remote(AutoProcessor.from_pretrained(again / path.name, **trust))
    saved = remote(AutoModel.from_pretrained(again / path.name, **trust).eval())
    depth["again"] = saved.predict_depth(**inputs)[0]
    chat = pipeline("image-text-to-text", model=str(path), **trust)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]
    [reply] = chat(text=[{"role": "user", "content": content}], generate_kwargs={"max_new_tokens": 2})
    assert isinstance(reply["generated_text"][-1]["content"], str)
    found = pipeline("depth-estimation", model=str(path), **trust)(image)["predicted_depth"]
    assert tuple(found.shape) == image.size[::-1]
    np.savez(again / path.name / "depth.npz", **{name: value.numpy() for name, value in depth.items()})
    classes = [config, processor, model, estimator]
    files = sorted(file.name for file in (again / path.name).glob("*.py"))
    result[path.name] = {"classes": [type(one).__name__ for one in classes], "words": words, "files": files}
assert not [name for name in sys.modules if name.split(".")[0] == "depthvlm"]
print(json.dumps(result))
"""
NAMES = {
    "qwen3_vl": "DepthVLM",
    "qwen3_vl_moe": "DepthVLMQwen3VLMoe",
    "qwen3_5": "DepthVLMQwen3_5",
    "qwen3_5_moe": "DepthVLMQwen3_5Moe",
    "qwen2_5_vl": "DepthVLMQwen2_5_VL",
    "glm46v": "DepthVLMGlm46V",
    "glm4v": "DepthVLMGlm4v",
}
PROCESSORS = {"qwen2_5_vl": "DepthVLMQwen2_5_VLProcessor"} | dict.fromkeys(
    ["glm46v", "glm4v"], "DepthVLMGlm46VProcessor"
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint with a depth head of every family, whose depth varies."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILY_NAMES:
        plain, folder = save_plain_checkpoint(root / "plain" / family, family), root / "depth" / family
        head = HEAD if family.startswith("qwen3_vl") else HEAD | {"projector": "own"}
        model = DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=head)
        torch.manual_seed(0)
        torch.nn.init.normal_(last_layer(model.depth_head).weight, std=0.3)
        model.save_pretrained(folder)
        processor = DepthVLMProcessor.from_pretrained(plain, min_pixels=1024, max_pixels=32 * 32**2)
        processor.save_pretrained(folder)
    shutil.rmtree(root / "plain")
    return root / "depth"


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_family_without_the_package(checkpoints, tmp_path, one_thread):
    """The depth and the words that the package gives here."""
    picture, again = save_noise(tmp_path / "image.png"), tmp_path / "again"
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = python("-c", HIDE_THE_PACKAGE + LOAD, checkpoints, picture, again, **offline)
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == set(FAMILY_NAMES)
    for family, found in results.items():
        name = NAMES[family]
        processor = PROCESSORS.get(family, "DepthVLMProcessor")
        model = [f"{name}ForConditionalGeneration", f"{name}ForDepthEstimation"]
        assert found["classes"] == [f"{name}Config", processor, *model]
        folder = checkpoints / family
        assert found["files"] == sorted(file.name for file in folder.glob("*.py"))
        processor = DepthVLMProcessor.from_pretrained(folder)
        inputs = ask(processor, Image.open(picture), focal_length=100.0)
        here = DepthVLMForConditionalGeneration.from_pretrained(folder).eval()
        output = here.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        assert output.sequences[0].tolist() == found["words"]
        estimator = DepthVLMForDepthEstimation.from_pretrained(folder).eval()
        pixels = processor.image_processor(Image.open(picture), focal_length=100.0, return_tensors="pt")
        alone = estimator(**pixels).predicted_depth[0].numpy()
        there = np.load(again / family / "depth.npz")
        for kind in ("model", "chat"):
            np.testing.assert_array_equal(there[kind], output.predicted_depth[0].numpy())
        np.testing.assert_array_equal(there["again"], here.predict_depth(**inputs)[0].numpy())
        np.testing.assert_array_equal(there["estimator"], alone)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_files_that_travel(checkpoints, family):
    """Those of Qwen3-VL, and one more for another family; each finds what it imports."""
    files = {file.name: file for file in (checkpoints / family).glob("*.py")}
    assert len(files) == (14 if family == "qwen3_vl" else 15)
    config = json.loads((checkpoints / family / "config.json").read_text())
    assert {f"{reference.split('.')[0]}.py" for reference in config["auto_map"].values()} <= files.keys()
    for name, file in files.items():
        assert {f"{module}.py" for module in get_relative_imports(file)} <= files.keys(), name
