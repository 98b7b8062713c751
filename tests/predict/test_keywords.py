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


def test_predict(nano):
    with pytest.raises(TypeError, match=r"`focal_lenght`.*Did you mean `focal_length`"):
        predict(PIXELS, model="there/is-none", focal_lenght=100.0)  # before a model is looked for
    for given, message in (
        ({"refine": 4}, "`refine`"),
        ({"prompt": "a", "max_new_token": 4}, r"`max_new_token`.*Did you mean `max_new_tokens`"),
        ({"do_sample": True}, "`do_sample` is for the reply to a `prompt`"),
    ):
        with pytest.raises(TypeError, match=message):
            nano.predict(PIXELS, fov=60.0, **given)
    [prediction] = nano.predict(PIXELS, fov=60.0, prompt="a", max_new_tokens=2, do_sample=True, top_k=3)
    assert prediction.text is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nano: Conversation(PIXELS, nano, fov=60.0).ask("a", do_samples=1), "`do_samples`.*mean `do_sample`"),
        (lambda nano: list(Conversation(PIXELS, nano, fov=60.0).stream("a", do_samples=1)), "mean `do_sample`"),
        (
            lambda nano: Conversation(PIXELS, nano, focal_lenght=1.0),
            "Conversation got .*`focal_lenght`.*focal_length",
        ),
        (lambda _: predict_video("clip.mp4", "out", max_frame=3), "predict_video got .*`max_frame`.*`max_frames`"),
        (lambda nano: nano.processor.post_process_depth_estimation(None, target_size=[]), "size`.*mean `target_sizes`"),
    ],
)
def test_other_functions(nano, call, message):
    with pytest.raises(TypeError, match=message):
        call(nano)


def test_a_pipe_in_the_place_of_a_config(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a file but a pipe"):
        load(tmp_path)


def test_load():
    with pytest.raises(TypeError, match=r"`attn_implementatoin`.*Did you mean `attn_implementation`"):
        load("there/is-none", attn_implementatoin="eager")
    assert load(PATH, attn_implementation="eager", canonical_focal_length=100.0).model.config.silog_lambda == 0.5


@pytest.mark.parametrize("kind", [DepthVLMProcessor, DepthVLMImageProcessor, AutoProcessor, AutoImageProcessor])
def test_from_pretrained(kind):
    with pytest.raises(TypeError, match=r"`canonical_focal_lenght`.*Did you mean `canonical_focal_length`"):
        kind.from_pretrained(PATH, canonical_focal_lenght=500.0)
    known = {"padding_side": "left", "model_max_length": 99} if "Image" not in kind.__name__ else {"max_pixels": 4096}
    kind.from_pretrained(PATH, assumed_fov=50.0, trust_remote_code=False, revision="main", **known)


def test_constructor_and_calls(nano):
    processor = nano.processor
    with pytest.raises(TypeError, match="Did you mean `canonical_focal_length`"):
        DepthVLMImageProcessor(canonical_focal_lenght=500.0)
    text = "<|image_pad|>"
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
    def never(*_, **__):
        raise AssertionError("the model ran")

    words = "word " * 100_000
    talk = Conversation(PIXELS, nano, fov=60.0)
    monkeypatch.setattr(type(nano.model), "generate", never)
    for ask in (lambda: nano.predict(PIXELS, fov=60.0, prompt=words), lambda: talk.ask(words)):
        with pytest.raises(ValueError, match=r"has \d\d\d,\d\d\d tokens with its image.* holds 4,096"):
            ask()


def test_model_and_processor_of_different_canonical_focal_lengths(tmp_path):
    folder = shutil.copytree(PATH, tmp_path / "copy")
    file = next(name for name in ("processor_config.json", "preprocessor_config.json") if (folder / name).is_file())
    text = (folder / file).read_text()
    settings = json.loads(text)
    trained = json.loads((folder / "config.json").read_text())["canonical_focal_length"]
    settings.get("image_processor", settings)["canonical_focal_length"] = 5 * trained
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config.json has `canonical_focal_length` .* by a factor of 5\."):
        load(folder)
    loaded = load(folder, canonical_focal_length=trained)
    expected = load(PATH).predict(PIXELS, fov=60.0)[0].depth
    np.testing.assert_array_equal(loaded.predict(PIXELS, fov=60.0)[0].depth, expected)


def test_the_predictors_old_name_works_with_a_warning():
    with pytest.warns(FutureWarning, match="now `depthvlm.DepthPredictor`"):
        assert depthvlm.DepthVLM is depthvlm.DepthPredictor
