"""VLMs of transformers by the arrow protocol: tiny random models of each class, the bundled one, and DepthLM."""

import json
import math
import shutil
import warnings
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch
import toy_vlms
from conftest import REPOSITORY
from depthvlm.benchmark.synthetic.scenes import render_scene
from depthvlm.benchmark.systems.arrow import ARROW_PROMPT, draw_arrow
from depthvlm.benchmark.systems.arrow_vlm import ArrowVLM, DepthLM
from depthvlm.benchmark.systems.interface import Example, PredictorError
from PIL import Image
from safetensors.torch import load_file, save_file

import depthvlm

CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}


def example(seed: int, points: list[list[float]], size=(64, 64), camera=(60.0, 60.0, 32.0, 32.0)) -> Example:
    pixels = np.random.default_rng(seed).integers(1, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Example(f"e{seed}", Image.fromarray(pixels), camera, np.array(points).reshape(-1, 2))


@pytest.fixture(scope="module", params=list(CLASSES))
def vlm(request, tmp_path_factory) -> ArrowVLM:
    folder = getattr(toy_vlms, request.param)(tmp_path_factory.mktemp(request.param))
    loaded = ArrowVLM(folder, dtype="float32", device="cpu", max_new_tokens=6, batch_size=4)
    assert type(loaded.network).__name__ == CLASSES[request.param]
    return loaded


@pytest.fixture
def calls(monkeypatch) -> list[dict[str, Any]]:
    """What `generate` of any model was given."""
    from transformers import GenerationMixin

    recorded: list[dict[str, Any]] = []
    original = GenerationMixin.generate

    def record(self, *args, **kwargs):
        recorded.append(kwargs)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", record)
    return recorded


def in_pixels(vlm: ArrowVLM, values: np.ndarray) -> np.ndarray:
    """`(3, H, W)` as a processor made it, in 0 to 255 `(H, W, 3)`."""
    images = vlm.processor.image_processor
    mean, std = np.array(images.image_mean)[:, None, None], np.array(images.image_std)[:, None, None]
    return ((values * std + mean) * 255).transpose(1, 2, 0)


def seen_pixels(vlm: ArrowVLM, pixel_values: torch.Tensor) -> np.ndarray:
    """The image that a model sees: 64x64 in patches of 16 for Qwen3-VL, 56x56 else."""
    values = pixel_values.double().numpy()
    if values.ndim == 2:
        # Patches in groups of 2x2; each is 3 channels, 2 equal frames, 16x16 pixels.
        grid = values.reshape(2, 2, 2, 2, 3, 2, 16, 16)
        assert np.array_equal(grid[..., 0, :, :], grid[..., 1, :, :])
        values = grid[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, 64, 64)
    return in_pixels(vlm, values)


def greedy(vlm: ArrowVLM, inputs: dict[str, torch.Tensor], count: int) -> list[int]:
    """The most likely token, again and again, without any cache."""
    ids = inputs["input_ids"]
    for _ in range(count):
        more = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in more:
            text = torch.zeros(1, ids.shape[1] - inputs["input_ids"].shape[1], dtype=torch.int)
            more["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], text], 1)
        with torch.no_grad():
            logits = vlm.network(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_model_sees_the_arrow_and_the_question(vlm, calls):
    one = example(0, [[40, 30], [12, 50]])
    vlm.predict([one])
    [call] = calls
    edge = 64 if "image_grid_thw" in call else 56
    per_image = len(call["pixel_values"]) // 2
    for index, point in enumerate([(40, 30), (12, 50)]):
        values = call["pixel_values"][index * per_image : (index + 1) * per_image]
        drawn = draw_arrow(one.image, point).resize((edge, edge), Image.Resampling.BICUBIC)
        seen = seen_pixels(vlm, values if edge == 64 else values[0])
        np.testing.assert_allclose(seen, np.asarray(drawn), atol=1e-3)
        plain = np.asarray(one.image.resize((edge, edge), Image.Resampling.BICUBIC))
        assert np.abs(seen - plain).max() > 50
    text = vlm.processor.tokenizer.decode(call["input_ids"][0])
    words = text.replace("<|image_pad|>", "").replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    assert words == f"<|im_start|>user\n{ARROW_PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert text.index("<|image_pad|>") < text.index("Given this image")


def test_greedy_though_the_checkpoint_samples(vlm, calls):
    assert vlm.network.generation_config.do_sample
    [[answer]] = vlm.predict([example(1, [[40, 30]])])
    assert vlm.predict([example(1, [[40, 30]])]) == [[answer]] or math.isnan(answer.metres)
    inputs = {name: value for name, value in calls[0].items() if isinstance(value, torch.Tensor)}
    assert (calls[0]["do_sample"], calls[0]["num_beams"], calls[0]["max_new_tokens"]) == (False, 1, 6)
    expected = greedy(vlm, inputs, 6)
    if vlm.processor.tokenizer.eos_token_id in expected:
        expected = expected[: expected.index(vlm.processor.tokenizer.eos_token_id)]
    assert answer.text == vlm.processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_batches_equal_one_by_one(vlm, calls, monkeypatch):
    """Images of different sizes in one batch: for Qwen3-VL the shorter rows are padded on the left."""
    other = example(4, [[100, 30], [64, 2], [5, 5]], size=(128, 96))
    examples = [example(2, [[40, 30], [3, 60]]), example(3, []), other]
    together = vlm.predict(examples)
    assert [len(of_image) for of_image in together] == [2, 0, 3]
    assert [len(call["input_ids"]) for call in calls] == [4, 1]
    mask = calls[0]["attention_mask"]
    assert mask[0, 0] == 0 or "image_grid_thw" not in calls[0]
    assert mask[:, -1].all()
    monkeypatch.setattr(vlm, "batch_size", 1)
    alone = [vlm.predict([one])[0] for one in examples]
    assert [[a.text for a in of_image] for of_image in alone] == [[a.text for a in of_image] for of_image in together]


def test_large_images_are_scaled_before_the_arrow(vlm):
    one = example(5, [[1000.0, 500.0]], size=(2048, 1024))
    [question] = vlm.questions(one)
    assert question.image.size == (1024, 512)
    # 1000.5 / 2 = 500.25 and 500.5 / 2 = 250.25
    pixels = np.asarray(question.image)
    assert (pixels[250, 480:500] == [255, 0, 0]).all()
    assert not (pixels[250, 500] == [255, 0, 0]).all()
    # 60 / 2, and the principal point, 32 from the left and the upper edge.
    assert question.intrinsics == (30.0, 30.0, 16.0, 16.0)


def test_a_reply_is_read(tmp_path):
    """A tiny LLaVA that was taught to say "2.5 m"."""
    folder = toy_vlms.llava(tmp_path)
    vlm = ArrowVLM(folder, dtype="float32", device="cpu", max_new_tokens=12, prompt="How far?")
    one = example(0, [[40, 30], [20, 30]])
    reply = vlm.processor.tokenizer("2.5 m<|im_end|>", return_tensors="pt").input_ids
    content = [{"type": "image", "image": one.image}, {"type": "text", "text": vlm.prompt}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = vlm.processor.apply_chat_template([{"role": "user", "content": content}], **options)
    ids = torch.cat([inputs["input_ids"], reply], 1)
    labels = ids.clone()
    labels[:, : -reply.shape[1]] = -100
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": inputs["pixel_values"]}
    optimizer = torch.optim.Adam(vlm.network.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        vlm.network(**given, labels=labels).loss.backward()
        optimizer.step()
    assert [(a.metres, a.text) for a in vlm.predict([one])[0]] == [(2.5, "2.5 m")] * 2


def test_the_bundled_model_answers_as_by_itself(calls):
    """DepthVLM's checkpoints are asked too, with their cameras: nothing is assumed, so nothing warns."""
    vlm = ArrowVLM(str(REPOSITORY / "depthvlm" / "nano"), device="cpu", dtype="float32", max_new_tokens=8)
    scene = render_scene(1_000_500_007, width=128, height=96)
    camera = (scene.focal_length, scene.focal_length, 63.5, 47.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [answers] = vlm.predict([Example("scene", Image.fromarray(scene.image), camera, np.array([[40, 30]]))])
    drawn = draw_arrow(Image.fromarray(scene.image), (40, 30))
    alone = depthvlm.load(REPOSITORY / "depthvlm" / "nano", device="cpu", dtype="float32")
    own = alone.predict(drawn, focal_length=scene.focal_length, prompt=ARROW_PROMPT, max_new_tokens=8)
    inputs = {name: value for name, value in calls[0].items() if isinstance(value, torch.Tensor)}
    [said] = [answer.text for answer in answers]
    tokenizer = vlm.processor.tokenizer
    until_end = takewhile(lambda token: token != tokenizer.eos_token_id, greedy(vlm, inputs, 8))
    assert said == tokenizer.decode(list(until_end), skip_special_tokens=True)
    assert [said.strip()] == [prediction.text for prediction in own] != [""]  # `predict` strips what was said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "cambrian_qwen"}, r"'cambrian_qwen'.*Cambrian-S runs in its own code.*trust_remote_code=True"),
        ({"model_type": "internvl_chat"}, r"ends with -HF, as OpenGVLab/InternVL3_5-8B-HF"),
        ({"model_type": "llava_llama"}, r"Convert it to the layout of llava-hf/llava-1.5-13b-hf"),
        ({"model_type": "bert"}, r"is a 'bert' model, and transformers has no image-text-to-text class"),
    ],
)
def test_models_that_are_none(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ArrowVLM(str(tmp_path))


def test_options(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ArrowVLM(str(tmp_path), batch_size=0)
    with pytest.raises(FileNotFoundError, match=r"There is no model folder .*gone"):
        ArrowVLM(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="`focal_length` is in pixels and positive, got 0"):
        DepthLM(focal_length=0)


def framed(size: tuple[int, int], focal_length: float, points: list[list[float]]) -> Example:
    return example(0, points, size, (focal_length, focal_length * 1.01, size[0] / 2, size[1] / 2))


@pytest.fixture(scope="module")
def pixtral(tmp_path_factory) -> str:
    return toy_vlms.pixtral(tmp_path_factory.mktemp("pixtral"))


@pytest.fixture(scope="module")
def depthlm(pixtral) -> DepthLM:
    return DepthLM(pixtral, dtype="float32", device="cpu", max_new_tokens=4)


def red_pixels(image: Image.Image) -> list[list[int]]:
    rows, columns = np.nonzero((np.asarray(image) == [255, 0, 0]).all(-1))
    return sorted(map(list, zip(columns.tolist(), rows.tolist(), strict=True)))


def test_the_focal_length_of_the_released_evaluation(depthlm, monkeypatch):
    # NYUv2's camera: 750 / 518.8579 = 1.4455: 925.1x693.8, rounded down.
    [question] = depthlm.questions(framed((640, 480), 518.8579, [[320.0, 240.0]]))
    assert question.image.size == (925, 693)
    assert question.intrinsics[0] == pytest.approx(518.8579 * 925 / 640)
    # Its pixel is int(coordinate * scale): 320 * 1.4455 = 462.55 and 240 * 1.4455 = 346.9; the arrow is 5 pixels long.
    x, y = 462, 346
    shaft = [[x - i, y] for i in range(1, 6)]
    head = [[x - 2, y - 1], [x - 2, y + 1], [x - 3, y - 2], [x - 3, y + 2]]
    assert red_pixels(question.image) == sorted(shaft + head)
    [question] = depthlm.questions(framed((1500, 20), 750.0, [[700.0, 10.0]]))
    assert question.image.size == (1500, 20)  # large images stay large
    monkeypatch.setattr(depthlm, "focal_length", 1000.0)  # the paper's
    [question] = depthlm.questions(framed((64, 48), 500.0, [[32.0, 24.0]]))
    assert question.image.size == (128, 96)


def test_a_checkpoint_in_an_old_layout_is_refused(pixtral, tmp_path):
    """Old LLaVA checkpoints name their projector otherwise: it would be random."""
    shutil.copytree(pixtral, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("multi_modal_projector", "mm_projector"): weight for name, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PredictorError, match=r"lacks 4 of the weights of a LlavaFor.*multi_modal_projector"):
        ArrowVLM(str(tmp_path), dtype="float32", device="cpu")


def test_the_model_is_asked_about_that_image(depthlm, calls):
    one = framed((64, 48), 500.0, [[32.0, 24.0], [0.0, 0.0]])
    [answers] = depthlm.predict([one])
    assert len(answers) == 2
    [call] = calls
    text = depthlm.processor.tokenizer.decode(call["input_ids"][0])
    assert ARROW_PROMPT in text
    assert text.index("<|image_pad|>") < text.index("Given this image")
    assert call["do_sample"] is False
    # 64x48 at 750 / 500 is 96x72, in whole patches of 16: 96x80.
    assert call["image_sizes"].tolist() == [[80, 96]] * 2
    bicubic = Image.Resampling.BICUBIC
    # 32.5 * 1.5 = 48.75 and 24.5 * 1.5 = 36.75
    drawn = draw_arrow(one.image.resize((96, 72), bicubic), (48, 36), 5).resize((96, 80), bicubic)
    seen = in_pixels(depthlm, call["pixel_values"][0].double().numpy())
    np.testing.assert_allclose(seen, np.asarray(drawn), atol=1e-3)


def test_its_base_is_asked_through_the_same_template(pixtral):
    """The system pixtral-12b: a plain `ArrowVLM`, whose question must not get lost in Pixtral's template."""
    base = ArrowVLM(pixtral, dtype="float32", device="cpu", max_new_tokens=1)
    [question] = base.questions(framed((64, 48), 500.0, [[32.0, 24.0]]))
    asked = base.processor.apply_chat_template([base._messages(question)], tokenize=False)
    assert asked == [f"[INST]<|image_pad|>{ARROW_PROMPT}[/INST]"]
