"""Whole journeys from a Hub, each step a fresh process as users run it, first with an empty cache and then offline."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from bench_builds import build_toy
from bench_source import make_toy
from conftest import REPOSITORY
from demo_process import DemoProcess
from fresh import python
from loopback_hub import LoopbackHub
from loopback_repos import Token
from PIL import Image
from safetensors.torch import load_file
from toy_checkpoint import save_foreign_checkpoint, save_toy_checkpoint
from toy_training import toy_dataset, toy_rows

from depthvlm import Lens, load

pytestmark = pytest.mark.slow

TRAINED = (
    *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--per_device_train_batch_size", "2"),
    *("--save_strategy", "steps", "--save_steps", "1", "--learning_rate", "0.01", "--lr_scheduler_type", "constant"),
)
PHOTO = REPOSITORY / "depthvlm" / "assets" / "room.jpg"
# As ROS's camera_calibration writes it.
ROS_CAMERA = """
image_width: 640
image_height: 480
camera_name: narrow
camera_matrix: {rows: 3, cols: 3, data: [560.0, 0, 320.0, 0, 560.0, 240.0, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.2, 0.05, 0.001, -0.001, 0.0]}
"""


class World:
    """A Hub with models and data on it, and the folder in which commands run."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.commits = {}
        for name, files in {
            "plain": save_foreign_checkpoint(folder / "plain", published=False),
            "published": save_foreign_checkpoint(folder / "published", published=True),
            "toy": save_toy_checkpoint(folder / "toy"),
        }.items():
            self.commits[name] = hub.put(files, f"ada/{name}", private=name == "toy")
        hub.repo("ada/published").readers = ("ada",)
        (folder / "moved").mkdir()
        (folder / "moved" / "note.txt").write_text("what the branch now holds is no model")
        hub.put(folder / "moved", "ada/toy")
        rows = toy_dataset(toy_rows(4))
        (folder / "rgbd" / "data").mkdir(parents=True)
        rows.to_parquet(str(folder / "rgbd" / "data" / "train-00000-of-00001.parquet"))
        hub.put(folder / "rgbd", "ada/rgbd", "dataset", private=True)

    def variables(self, home: str, token: str | None = "hf_ada", offline: bool = False) -> dict[str, str]:
        known = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / home)}
        return known | ({"HF_TOKEN": token} if token else {}) | ({"HF_HUB_OFFLINE": "1"} if offline else {})

    def run(self, home: str, *command: object, code: int = 0, **how: Any) -> str:
        """What a fresh process prints, which must end with `code`."""
        done = python(*command, code=code, folder=self.folder, **self.variables(home, **how))
        return done.stdout + done.stderr

    def twice(self, home: str, *command: object, **how: Any) -> tuple[str, str]:
        """A command with an empty cache, and offline with what it left there; `OUT` is another name each time."""
        first = [str(part).replace("OUT", f"{home}_out") for part in command]
        again = [str(part).replace("OUT", f"{home}_offline") for part in command]
        online = self.run(home, *first, **how)
        before = len(self.hub.requests)
        offline = self.run(home, *again, token=None, offline=True)
        assert len(self.hub.requests) == before
        return online, offline

    def sft(self, home: str, model: str, out: str, *options: object, **how: Any) -> str:
        named = ("--model_name_or_path", model, "--dataset_name", "ada/rgbd", "--output_dir", out)
        return self.run(home, "-m", "depthvlm", "sft", *named, *TRAINED, *options, **how)

    def recipe(self, folder: str) -> list[dict[str, Any]]:
        return yaml.safe_load((self.folder / folder / "training_recipe.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with LoopbackHub({"hf_ada": Token("ada"), "hf_eve": Token("eve")}) as hub:
        yield World(hub, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world) -> str:
    """Stage 1 on a plain Qwen3-VL of the Hub and data of the Hub; gone on with offline; pushed."""
    head = ("--trainable", "head")
    world.sft("stage1", "ada/plain", "stage1", *head, "--max_steps", 1)
    [stage] = world.recipe("stage1")
    assert (stage["base_model"], stage["base_revision"]) == ("ada/plain", world.commits["plain"])
    assert stage["data"] == {"names": ["ada/rgbd"], "rows": 4}
    resume = ("--max_steps", 2, "--resume_from_checkpoint")
    world.sft("stage1", "ada/plain", "stage1", *head, *resume, offline=True, token=None)
    [stage] = world.recipe("stage1")
    assert (stage["base_revision"], stage["steps"]) == (world.commits["plain"], 2)
    told = world.run("push", "-m", "depthvlm", "push", "stage1", "--repo", "ada/trained", "--private")
    assert "their hashes are those of the files here." in told
    return "ada/trained"


def test_an_adapter_on_a_gated_model_is_trained_pushed_used_and_merged(world):
    """Of the published layout; the adapter knows the commit of its base, which may go on without it."""
    lora = ("--use_peft", "true", "--lora_target_modules", "q_proj", "--max_steps", 1)
    refused = world.sft("eve", "ada/published", "eve", *lora, code=2, token="hf_eve")
    assert "Access to model ada/published is restricted" in refused
    world.sft("lora", "ada/published", "lora", *lora, "--push_to_hub", "true", "--hub_model_id", "ada/lora")
    world.sft("lora", "ada/published", "lora2", *lora, offline=True, token=None)
    one, two = (load_file(world.folder / name / "adapter_model.safetensors") for name in ("lora", "lora2"))
    assert all((one[name] == two[name]).all() for name in one)
    commit = world.commits["published"]
    assert json.loads((world.folder / "lora" / "adapter_config.json").read_text())["revision"] == commit

    world.hub.put(world.folder / "moved", "ada/published")
    online, offline = world.twice("info", "-m", "depthvlm", "info", "ada/lora")
    for told in (online, offline):
        words = " ".join(told.split())
        assert f"for ada/published, {commit} rank 16 on q_proj trained whole depth_head" in words
    world.twice("merge", "-m", "depthvlm", "convert", "ada/lora", "OUT")
    assert world.recipe("merge_out") == world.recipe("lora")
    merged, offline = (load_file(world.folder / f"merge_{name}" / "model.safetensors") for name in ("out", "offline"))
    base = load_file(world.folder / "published" / "model.safetensors")
    assert merged.keys() == offline.keys() == base.keys()
    head = "depth_head.norm.weight"
    assert (merged[head] == one[f"base_model.model.{head}"]).all()
    layer = "model.language_model.layers.0.self_attn.q_proj"
    a, b = (one[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "AB")
    np.testing.assert_allclose(merged[f"{layer}.weight"], base[f"{layer}.weight"] + 2 * b @ a, atol=1e-6)  # 32 / 16
    predict = ("-m", "depthvlm", "predict", PHOTO, "--fov", 60, "--formats", "npy", "--out", "OUT", "--model")
    world.twice("with", *predict, "ada/lora")
    world.run("none", *[str(part).replace("OUT", "merged_out") for part in predict], "merge_out")
    adapted, whole = (np.load(world.folder / f"{name}_out" / "room_depth.npy") for name in ("with", "merged"))
    np.testing.assert_allclose(adapted, whole, rtol=1e-4)


def test_a_pinned_revision_of_a_private_model(world):
    """The branch has moved to what is no model; the token is an option, and stays out of the files."""
    pinned = world.commits["toy"]
    options = ("--model_revision", pinned, "--trainable", "head+llm", "--max_steps", 1)
    world.sft("pinned", "ada/toy", "pinned", *options, "--hub_token", "hf_ada", token=None)
    [stage] = world.recipe("pinned")
    assert (stage["base_model"], stage["base_revision"]) == ("ada/toy", pinned)
    assert b"hf_ada" not in (world.folder / "pinned" / "training_args.bin").read_bytes()
    world.sft("pinned", "ada/toy", "pinned2", *options, offline=True, token=None)
    predict = ("-m", "depthvlm", "predict", PHOTO, "--fov", 60, "--formats", "npy", "--out", "OUT")
    said = world.run("refused", *predict, "--model", f"ada/toy@{pinned}", code=1, token=None)
    assert "make sure to pass a token" in said
    assert "Traceback" not in said
    online = [*predict, "--model", "ada/toy", "--revision", pinned, "--token", "hf_ada"]
    world.run("at", *[str(part).replace("OUT", "at_out") for part in online], token=None)
    world.run("here", *[str(part).replace("OUT", "here_out") for part in predict], "--model", "toy")
    there, here = (np.load(world.folder / f"{name}_out" / "room_depth.npy") for name in ("at", "here"))
    np.testing.assert_array_equal(there, here)
    world.twice("convert", "-m", "depthvlm", "convert", f"ada/toy@{pinned}", "OUT")
    assert world.recipe("convert_out")[0]["base_revision"] == pinned


USE = """
import sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

name, image = sys.argv[1], Image.open(sys.argv[2])
here = {} if len(sys.argv) > 3 else {"trust_remote_code": True}
if not here:
    import depthvlm
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "How far?"}]}]
processor = AutoProcessor.from_pretrained(name, **here)
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt", processor_kwargs={"fov": 60.0})
depth = AutoModel.from_pretrained(name, **here).eval().predict_depth(**inputs)[0]
one = pipeline("depth-estimation", model=name, **here)(image, fov=60.0)["predicted_depth"]
words = pipeline("image-text-to-text", model=name, **here)(text=messages, max_new_tokens=2, return_full_text=False)
print(f"found {depth.mean():.5f}", one.shape, len(words))
"""


def test_what_was_pushed_serves_every_use(world, trained, monkeypatch, tmp_path):
    """`predict`, the Auto classes and both pipelines with and without the package, `bench eval`, `info`, the demo."""
    options = ("--fov", 60, "--formats", "npy,json", "--out", "OUT", "--prompt", "Hm?")
    predict = ("-m", "depthvlm", "predict", PHOTO, *options)
    world.twice("predict", *predict, "--model", trained)
    first, again = (np.load(world.folder / f"predict_{name}" / "room_depth.npy") for name in ("out", "offline"))
    np.testing.assert_array_equal(first, again)

    online, offline = world.twice("auto", "-c", USE, trained, PHOTO)
    with_package = world.run("auto", "-c", USE, trained, PHOTO, "with", offline=True, token=None)
    found = [re.findall("(?m)^found .*", told) for told in (online, offline, with_package)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1

    make_toy(world.folder / "root")
    build_toy(world.folder / "root", world.folder / "build", split="test")
    evaluate = ("-m", "depthvlm", "bench", "eval", "--data", "build", "--limit", 2, "--out", "OUT")
    world.twice("bench", *evaluate, "--predictor", f"depthvlm:{trained}")
    scores = [json.loads(next((world.folder / f"bench_{n}").rglob("*.json")).read_text()) for n in ("out", "offline")]
    assert scores[0]["metrics"] == scores[1]["metrics"]
    assert "hf_ada" not in json.dumps(scores)

    online, offline = world.twice("info2", "-m", "depthvlm", "info", trained)
    assert "M parameters" in online
    assert "not in the cache, and this is offline mode" in " ".join(offline.split())

    for offline in (False, True):
        for key, value in world.variables("demo", offline=offline).items():
            monkeypatch.setenv(key, value)
        root = tmp_path / str(offline)
        root.mkdir()
        demo = DemoProcess(root, [sys.executable, "-m", "depthvlm", "demo", "--model", trained])
        try:
            assert "DepthVLM" in httpx.get(demo.url, timeout=60).text
        finally:
            demo.stop()


def test_every_way_to_predict_from_the_hub(world, nano):
    """Refined, quantised, compiled, through a lens, along a clip, and measured: as the same call here predicts."""
    world.hub.put(REPOSITORY / "depthvlm" / "nano", "ada/nano", private=True)
    command = ("-m", "depthvlm", "predict", PHOTO, "--model", "ada/nano", "--formats", "npy", "--out", "OUT")
    fov = ("--fov", 60)

    def maps(home: str, *options: object) -> np.ndarray:
        world.twice(home, *command, *options)
        first, again = (np.load(world.folder / f"{home}_{name}" / "room_depth.npy") for name in ("out", "offline"))
        np.testing.assert_array_equal(first, again)
        return first

    [alone], [refined] = nano.predict(PHOTO, fov=60), nano.predict(PHOTO, fov=60, refine=2)
    np.testing.assert_allclose(maps("refined", *fov, "--refine", 2), refined.depth, rtol=1e-4)
    assert np.abs(refined.depth / alone.depth - 1).max() > 0.01
    np.testing.assert_allclose(maps("compiled", *fov, "--compile"), alone.depth, rtol=1e-4)
    quantized = load(REPOSITORY / "depthvlm" / "nano", quantize="int4", device="cpu").predict(PHOTO, fov=60)
    np.testing.assert_allclose(maps("int4", *fov, "--quantize", "int4"), quantized[0].depth, rtol=1e-4)
    (world.folder / "ros.yaml").write_text(ROS_CAMERA)
    lens = Lens(560, 560, 320.5, 240.5, width=640, height=480, model="opencv", distortion=(-0.2, 0.05, 0.001, -0.001))
    [through] = nano.predict(PHOTO, camera=lens)
    np.testing.assert_allclose(maps("lens", "--intrinsics", "ros.yaml"), through.depth, rtol=1e-4)

    (world.folder / "still").mkdir()
    for frame in range(3):
        shutil.copy(PHOTO, world.folder / "still" / f"{frame}.jpg")
    clip = ("-m", "depthvlm", "predict", "still", "--sequence", "--steady", 1, *fov, "--model", "ada/nano")
    world.twice("clip", *clip, "--out", "OUT")
    for name, frame in (("out", 0), ("out", 2), ("offline", 1)):
        written = np.array(Image.open(world.folder / f"clip_{name}" / "still_depth" / f"{frame}.png")) / 1000
        assert np.median(np.abs(written / alone.depth - 1)) < 0.01

    for told in world.twice(
        "measure", "-m", "depthvlm", "measure", PHOTO, "the chair", *fov, "--model", "ada/nano", "--max-new-tokens", 8
    ):
        assert "No box in the reply: " in told  # nano cannot find objects by their names


def test_a_sharp_head_and_a_camera_head(world):
    """Trained on a plain Qwen3-VL of the Hub, pushed, used for a picture without a camera and without the package."""
    heads = json.dumps({"depth_config": {"head_type": "dpt_sharp", "features": 16, "predict_fov": True}})
    losses = ("--gradient_matching_weight", 0.5, "--normal_weight", 0.25, "--camera_withheld", 1.0)
    told = world.sft(
        "sharp", "ada/plain", "sharp", "--trainable", "head", "--model_init_kwargs", heads, *losses, "--max_steps", 1
    )
    assert all(f"'{name}'" in told for name in ("silog", "gradient_matching", "normal", "camera_loss", "camera_error"))
    [stage] = world.recipe("sharp")
    assert stage["loss"] == {
        "depth_loss_weight": 1.0,
        "silog_lambda": 0.5,
        "gradient_matching_weight": 0.5,
        "normal_weight": 0.25,
        "camera_loss_weight": 1.0,
    }
    world.run("push_sharp", "-m", "depthvlm", "push", "sharp", "--repo", "ada/sharp", "--private")

    Image.fromarray(np.asarray(Image.open(PHOTO))).save(world.folder / "bare.png")  # without EXIF data
    online, _ = world.twice(
        "bare",
        *("-m", "depthvlm", "predict", "bare.png", "--formats", "npy,json", "--out", "OUT"),
        "--model",
        "ada/sharp",
    )
    assert "predicted by the model" in online
    first, again = (world.folder / f"bare_{name}" for name in ("out", "offline"))
    np.testing.assert_array_equal(np.load(first / "bare_depth.npy"), np.load(again / "bare_depth.npy"))
    record = json.loads((first / "bare.json").read_text())
    assert record["focal_source"] == "predicted"
    expected = 2 * np.degrees(np.arctan(record["camera"]["width"] / (2 * record["camera"]["fx"])))
    assert (record["fov"], record["fov_spread"] > 0) == (pytest.approx(expected), True)

    remote, offline = world.twice("auto_sharp", "-c", USE, "ada/sharp", PHOTO)
    with_package = world.run("auto_sharp", "-c", USE, "ada/sharp", PHOTO, "with", offline=True, token=None)
    found = [re.findall("(?m)^found .*", told) for told in (remote, offline, with_package)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1
