"""DepthLM: its focal length, its arrow, its checkpoint's layout (a tiny random Pixtral)."""

import numpy as np
import pytest
import toy_vlms
from depthvlm.benchmark.systems.answers import ARROW_PROMPT
from depthvlm.benchmark.systems.arrow import draw_arrow
from depthvlm.benchmark.systems.arrow_vlm import ArrowVLM
from depthvlm.benchmark.systems.dense import PredictorError
from depthvlm.benchmark.systems.depthlm import DepthLM
from depthvlm.benchmark.systems.interface import Example
from PIL import Image
from safetensors.torch import load_file, save_file


def example(size: tuple[int, int], focal_length: float, points: list[list[float]]) -> Example:
    pixels = np.random.default_rng(0).integers(1, 255, (size[1], size[0], 3), dtype=np.uint8)
    camera = (focal_length, focal_length * 1.01, size[0] / 2, size[1] / 2)
    return Example("e", Image.fromarray(pixels), camera, np.array(points))


@pytest.fixture(scope="module")
def depthlm(tmp_path_factory) -> DepthLM:
    folder = toy_vlms.pixtral(tmp_path_factory.mktemp("pixtral"))
    return DepthLM(folder, dtype="float32", device="cpu", max_new_tokens=4)


def red_pixels(image: Image.Image) -> list[list[int]]:
    rows, columns = np.nonzero((np.asarray(image) == [255, 0, 0]).all(-1))
    return sorted(map(list, zip(columns.tolist(), rows.tolist(), strict=True)))


def test_the_focal_length_of_the_released_evaluation(depthlm):
    # NYUv2's camera: 750 / 518.8579 = 1.4455: 925.1x693.8, rounded down.
    [question] = depthlm.questions(example((640, 480), 518.8579, [[320.0, 240.0]]))
    assert question.image.size == (925, 693)
    assert question.intrinsics[0] == pytest.approx(518.8579 * 925 / 640)
    # Its pixel is int(coordinate * scale): 320 * 1.4455 = 462.55 and 240 * 1.4455 = 346.9; the arrow is 5 pixels long.
    x, y = 462, 346
    shaft = [[x - i, y] for i in range(1, 6)]
    head = [[x - 2, y - 1], [x - 2, y + 1], [x - 3, y - 2], [x - 3, y + 2]]
    assert red_pixels(question.image) == sorted(shaft + head)


def test_a_checkpoint_in_an_old_layout_is_refused(tmp_path):
    """Old LLaVA checkpoints name their projector otherwise: it would be random."""
    folder = toy_vlms.pixtral(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("multi_modal_projector", "mm_projector"): weight for name, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PredictorError, match=r"lacks 4 of the weights of a LlavaFor.*multi_modal_projector"):
        ArrowVLM(folder, dtype="float32", device="cpu")


def test_large_images_stay_large(depthlm):
    [question] = depthlm.questions(example((1500, 20), 750.0, [[700.0, 10.0]]))
    assert question.image.size == (1500, 20)


def test_the_papers_focal_length(depthlm):
    depthlm.focal_length = 1000.0
    try:
        [question] = depthlm.questions(example((64, 48), 500.0, [[32.0, 24.0]]))
    finally:
        depthlm.focal_length = 750.0
    assert question.image.size == (128, 96)


def test_the_model_is_asked_about_that_image(depthlm, monkeypatch):
    calls = []
    original = depthlm.network.generate
    monkeypatch.setattr(depthlm.network, "generate", lambda **inputs: calls.append(inputs) or original(**inputs))
    one = example((64, 48), 500.0, [[32.0, 24.0], [0.0, 0.0]])
    [answers] = depthlm.predict([one])
    assert len(answers) == 2
    [call] = calls
    text = depthlm.processor.tokenizer.decode(call["input_ids"][0])
    assert ARROW_PROMPT in text
    assert text.index("<|image_pad|>") < text.index("Given this image")
    assert call["do_sample"] is False
    # 64x48 at 750 / 500 is 96x72, in whole patches of 16: 96x80.
    assert call["image_sizes"].tolist() == [[80, 96]] * 2
    images = depthlm.processor.image_processor
    mean, std = np.array(images.image_mean)[:, None, None], np.array(images.image_std)[:, None, None]
    seen = ((call["pixel_values"][0].double().numpy() * std + mean) * 255).transpose(1, 2, 0)
    bicubic = Image.Resampling.BICUBIC
    # 32.5 * 1.5 = 48.75 and 24.5 * 1.5 = 36.75
    drawn = draw_arrow(one.image.resize((96, 72), bicubic), (48, 36), 5).resize((96, 80), bicubic)
    np.testing.assert_allclose(seen, np.asarray(drawn), atol=1e-3)


def test_its_base_is_asked_through_the_same_template(tmp_path):
    """The row pixtral-12b: a plain `ArrowVLM`, whose question must not get lost in Pixtral's template."""
    base = ArrowVLM(toy_vlms.pixtral(tmp_path), dtype="float32", device="cpu", max_new_tokens=1)
    [question] = base.questions(example((64, 48), 500.0, [[32.0, 24.0]]))
    asked = base.processor.apply_chat_template([base._messages(question)], tokenize=False)
    assert asked == [f"[INST]<|image_pad|>{ARROW_PROMPT}[/INST]"]


def test_a_focal_length_that_is_none():
    with pytest.raises(ValueError, match="`focal_length` is in pixels and positive, got 0"):
        DepthLM(focal_length=0)
