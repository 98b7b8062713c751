"""A misspelt keyword of any public function is a TypeError that names the near one; those that exist pass."""

import json
import os
import shutil

import numpy as np
import pytest
from transformers import AutoImageProcessor, AutoProcessor

import depthvlm
from depthvlm import DepthVLMImageProcessor, DepthVLMProcessor, load, predict, predict_video
from depthvlm.checkpoint import bundled_model_path
from depthvlm.conversation import Conversation

PATH = str(bundled_model_path())
PIXELS = np.full((64, 64, 3), 99, np.uint8)
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PIXELS}, {"type": "text", "text": "a"}]}]


def converse(nano, **keywords):
    return Conversation(PIXELS, nano, fov=60.0, **keywords)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Before a model is looked for.
        (lambda _: predict(PIXELS, model="there/is-none", focal_lenght=1.0), "`focal_lenght`.*mean `focal_length`"),
        (
            lambda _: load("there/is-none", attn_implementatoin="eager"),
            "Did you mean `attn_implementation`",
        ),
        (lambda nano: nano.predict(PIXELS, fov=60.0, refined=4), "`refined`.*`refine`"),
        (lambda nano: nano.predict(PIXELS, fov=60.0, prompt="a", max_new_token=4), "mean `max_new_tokens`"),
        (lambda nano: nano.predict(PIXELS, fov=60.0, do_sample=True), "`do_sample` is for the reply to a `prompt`"),
        (lambda nano: converse(nano).ask("a", do_samples=True), "`do_samples`.*mean `do_sample`"),
        (lambda nano: list(converse(nano).stream("a", do_samples=True)), "Did you mean `do_sample`"),
        (lambda nano: converse(nano, focal_lenght=1.0), "Conversation got .*`focal_lenght`.*mean `focal_length`"),
        (lambda _: predict_video("clip.mp4", "out", max_frame=3), "predict_video got .*`max_frame`.*`max_frames`"),
        (lambda nano: nano.processor.post_process_depth_estimation(None, target_size=[]), "mean `target_sizes`"),
        (lambda _: DepthVLMImageProcessor(canonical_focal_lenght=500.0), "Did you mean `canonical_focal_length`"),
    ],
)
def test_a_misspelt_one_is_named(nano, call, message):
    with pytest.raises(TypeError, match=message):
        call(nano)


def test_those_that_exist_pass(nano):
    [prediction] = nano.predict(PIXELS, fov=60.0, prompt="a", max_new_tokens=2, do_sample=True, top_k=3)
    assert prediction.text is not None
    assert load(PATH, attn_implementation="eager", canonical_focal_length=100.0).model.config.silog_lambda == 0.5


def test_a_pipe_in_the_place_of_a_config(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a file but a pipe"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [DepthVLMProcessor, DepthVLMImageProcessor, AutoProcessor, AutoImageProcessor])
def test_from_pretrained(kind):
    with pytest.raises(TypeError, match=r"`canonical_focal_lenght`.*Did you mean `canonical_focal_length`"):
        kind.from_pretrained(PATH, canonical_focal_lenght=500.0)
    known = {"padding_side": "left", "model_max_length": 99} if "Image" not in kind.__name__ else {"max_pixels": 4096}
    kind.from_pretrained(PATH, assumed_fov=50.0, trust_remote_code=False, revision="main", **known)


def test_calls(nano):
    processor, text = nano.processor, "<|image_pad|>"
    for call in (
        lambda **kwargs: processor.image_processor(PIXELS, **kwargs),
        lambda **kwargs: processor(PIXELS, text, **kwargs),
        lambda **kwargs: processor.apply_chat_template(MESSAGES, **kwargs),
        lambda **kwargs: processor.apply_chat_template(MESSAGES, tokenize=True, processor_kwargs=kwargs),
    ):
        with pytest.raises(TypeError, match=r"`focal_lenght`.*Did you mean `focal_length`"):
            call(focal_lenght=100.0)
    processor(PIXELS, text, fov=60.0, padding=True, return_tensors="pt", max_length=9999, do_normalize=False)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    processor.apply_chat_template(MESSAGES, **options, processor_kwargs={"focal_length": 100.0})
    assert processor.apply_chat_template(MESSAGES, chat_template="{{ mood }}", mood="glad") == "glad"


def test_a_prompt_beyond_the_context(nano, monkeypatch):
    words = "word " * 100_000
    talk = Conversation(PIXELS, nano, fov=60.0)
    monkeypatch.setattr(type(nano.model), "generate", lambda *_, **__: pytest.fail("the model ran"))
    for ask in (lambda: nano.predict(PIXELS, fov=60.0, prompt=words), lambda: talk.ask(words)):
        with pytest.raises(ValueError, match=r"has \d\d\d,\d\d\d tokens with its image.* holds 4,096"):
            ask()


def test_model_and_processor_of_different_canonical_focal_lengths(nano, tmp_path):
    folder = shutil.copytree(PATH, tmp_path / "copy")
    file = next(name for name in ("processor_config.json", "preprocessor_config.json") if (folder / name).is_file())
    settings = json.loads((folder / file).read_text())
    trained = json.loads((folder / "config.json").read_text())["canonical_focal_length"]
    settings.get("image_processor", settings)["canonical_focal_length"] = 5 * trained
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config.json has `canonical_focal_length` .* by a factor of 5\."):
        load(folder)
    loaded = load(folder, canonical_focal_length=trained)
    expected = nano.predict(PIXELS, fov=60.0)[0].depth
    np.testing.assert_array_equal(loaded.predict(PIXELS, fov=60.0)[0].depth, expected)


def test_the_predictors_old_name_works_with_a_warning():
    with pytest.warns(FutureWarning, match="now `depthvlm.DepthPredictor`"):
        assert depthvlm.DepthVLM is depthvlm.DepthPredictor
