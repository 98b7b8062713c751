"""A checkpoint carries its code: it loads in a fresh process where the package is not installed."""

import json

import numpy as np
from fresh import HIDE_THE_PACKAGE, depth_here, python, save_noise

LOAD = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation,
                          AutoModelForImageTextToText, AutoProcessor, pipeline)

folder, image, again = sys.argv[1:]
trust = {"trust_remote_code": True}
image = Image.open(image)
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
inputs = fresh.ask(processor, image, focal_length=100.0)
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
saved = AutoProcessor.from_pretrained(again, **trust)
assert type(saved).__module__.startswith("transformers_modules"), type(saved).__module__
labelled = fresh.ask(saved, image, focal_length=100.0, depth_maps=[np.ones((90, 120))])
assert labelled.pop("depth_labels")[0].shape == (90, 120)
torch.testing.assert_close(dict(labelled), dict(inputs))
assert labelled.to(torch.bfloat16)["focal_scale"].dtype == torch.float32
assert type(AutoImageProcessor.from_pretrained(again, backend="pil", **trust)).__name__ == "DepthVLMImageProcessorPil"
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


def test_everything_without_the_package(toy_folder, tmp_path):
    picture, again = save_noise(tmp_path / "image.png"), tmp_path / "again"
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = python("-c", HIDE_THE_PACKAGE + LOAD, toy_folder, picture, again, **offline)
    classes, shape = ["DepthVLMConfig", "DepthVLMProcessor"], [90, 120]
    expected = {"classes": classes, "estimator": shape, "pipeline": shape, "reply": True}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    here, there = depth_here(toy_folder, picture, 100.0), np.load(again / "depth.npz")
    assert sorted(there) == ["again", "chat", "model"]
    for depth in there.values():
        np.testing.assert_array_equal(depth, here)
