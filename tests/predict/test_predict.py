"""`depthvlm.predict`: from images to metres, on a tiny model with random weights."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from depthvlm.processing import Camera
from depthvlm.processing.camera_depthvlm import unsaid, warn
from fresh_reply import fresh_reply
from PIL import Image
from toy_images import picture, png_of, save_picture

import depthvlm
from depthvlm import DepthPredictor, Prediction
from depthvlm.checkpoint import BUNDLED_MODEL


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> DepthPredictor:
    return depthvlm.load(checkpoint, device="cpu")


def test_one_image_gives_a_list_of_one(checkpoint, tmp_path):
    view = save_picture(tmp_path / "view.png")
    [prediction] = depthvlm.predict(view, model=checkpoint, focal_length=70, device="cpu")
    assert isinstance(prediction, Prediction)
    assert (prediction.depth.shape, prediction.depth.dtype) == ((60, 80), np.float32)
    assert prediction.valid.all()
    assert prediction.camera == Camera(70, 70, 40, 30, 80, 60, "focal_length")
    assert (prediction.text, prediction.source, prediction.model) == (None, view, str(checkpoint))
    assert prediction.image.tobytes() == picture().tobytes()
    assert prediction.summary()["min"] == prediction.depth.min()


def test_a_batch_of_unequal_images_equals_one_by_one_in_the_order_given(model):
    images = [picture(96, 60, 1), np.asarray(picture(64, 64, 2)), torch.from_numpy(np.array(picture(48, 80, 3)))]
    focal_lengths = [80, None, 60]
    with pytest.warns(UserWarning, match="The focal length of Image 1 is not known"):
        together = model.predict(images, focal_length=focal_lengths)
    assert [p.depth.shape for p in together] == [(60, 96), (64, 64), (80, 48)]
    assert [p.camera.source for p in together] == ["focal_length", "assumed", "focal_length"]
    for image, focal_length, prediction in zip(images, focal_lengths, together, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [alone] = model.predict(image, focal_length=focal_length)
        np.testing.assert_allclose(alone.depth, prediction.depth, atol=1e-6)


def test_results_come_as_they_are_done_and_images_of_one_size_share_a_batch(model, monkeypatch):
    batches = []
    original = type(model.model).predict_depth

    def spy(self, **inputs):
        batches.append(inputs["image_grid_thw"][:, 1:].tolist())
        return original(self, **inputs)

    monkeypatch.setattr(type(model.model), "predict_depth", spy)
    images = [picture(128, 96), picture(64, 64), picture(128, 96), picture(64, 64)]
    results = model.predict_iter(images, fov=60, batch_size=2)
    assert next(results)[0] == 1
    assert len(batches) == 1
    assert [index for index, _ in results] == [3, 0, 2]
    assert all(first == second for first, second in batches)


def test_a_prompt_gives_text_and_the_same_depth_from_one_prefill(model, monkeypatch):
    runs = []
    tower = type(model.model.model.visual)
    original = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *a, **k: runs.append(1) or original(self, *a, **k))
    prompt = "How far is the wall?"
    images = [picture(80, 60), picture(64, 96)]
    predictions = model.predict(images, fov=60, prompt=prompt, max_new_tokens=3)
    assert len(runs) == 1
    for prediction, alone in zip(predictions, model.predict(images, fov=60), strict=True):
        assert isinstance(prediction.text, str)
        assert prediction.prompt == prompt
        np.testing.assert_allclose(prediction.depth, alone.depth, atol=1e-6)  # the prompt comes after the image


def test_the_text_is_what_generate_gives(model):
    [prediction] = model.predict(picture(), fov=60, prompt="Hi", max_new_tokens=4)
    assert prediction.text == fresh_reply(model, picture(), [{"role": "user", "content": "Hi"}], 4, fov=60)


def test_cameras_for_all_or_for_each(model):
    images = [picture(80, 60), picture(80, 60)]
    matrix = [[70.0, 0, 41], [0, 71.0, 29], [0, 0, 1]]
    for intrinsics in (matrix, np.array(matrix), [matrix, matrix], [70, 71, 41, 29], [None, [70, 71, 41, 29]]):
        camera = model.predict(images, intrinsics=intrinsics, focal_length=50)[1].camera
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (70, 71, 41, 29)
        assert camera.source == "intrinsics"
    assert model.predict(images, fov=90)[0].camera.fx == pytest.approx(40)  # 80 / 2 / tan 45


def test_one_warning_for_all_images_of_unknown_focal_length_and_others_name_the_image(model, tmp_path):
    with pytest.warns(UserWarning, match="focal length of Image 0 is not known") as caught:
        model.predict([picture(64, 64, seed) for seed in range(3)], batch_size=1)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"view\.png: a focal length of 4 pixels"):
        model.predict([picture(), save_picture(tmp_path / "view.png")], focal_length=[70, 4])


def test_the_next_batch_is_opened_while_the_model_runs(model, tmp_path, monkeypatch):
    running, opened_meanwhile = Event(), []

    class Second(io.BytesIO):
        def read(self, *args):
            opened_meanwhile.append(running.wait(30))
            return super().read(*args)

    predict_depth = model.model.predict_depth
    monkeypatch.setattr(model.model, "predict_depth", lambda **inputs: running.set() or predict_depth(**inputs))
    first, second = model.predict([picture(), Second(png_of(picture()))], fov=60, batch_size=1)
    assert opened_meanwhile[0] is True
    np.testing.assert_array_equal(first.depth, second.depth)


class TestBadInput:
    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"focal_length": 0}, "`focal_length` must be a finite number above 0"),
            ({"focal_length": [70, 80, 90]}, "`focal_length` has 3 entries for 2 image"),
            ({"focal_length": "long"}, "`focal_length`"),
            ({"fov": 180}, "`fov` must lie between 0 and 180"),
            ({"fov": [60]}, "`fov` has 1 entries for 2 image"),
            ({"intrinsics": [[70, 0, 40], [0, 70, 30]]}, "`intrinsics`"),
            ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ],
    )
    def test_settings_are_refused_before_anything_is_done(self, model, monkeypatch, keywords, message):
        monkeypatch.setattr("depthvlm.batches.BatchRun.prepare", lambda *_: pytest.fail("went on"))
        with pytest.raises(ValueError, match=message):
            model.predict([picture(80, 60)] * 2, **keywords)

    def test_an_error_names_the_image(self, model, tmp_path):
        (tmp_path / "junk.jpg").write_text("no image")
        with pytest.raises(ValueError, match=r"junk\.jpg is not an image"):
            model.predict([picture(80, 60), tmp_path / "junk.jpg"], fov=60)
        with pytest.raises(ValueError, match=r"^Image 1 has 1x40 pixels"):
            model.predict([picture(80, 60), picture(1, 40)], fov=60)

    def test_warnings_are_left_out_in_one_thread_alone(self):
        """`warnings.catch_warnings` would change the filters of the whole process while a batch is prepared."""
        with ThreadPoolExecutor(1) as other, unsaid(UserWarning), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn("here")
            other.submit(warn, "there").result()
        assert [str(one.message) for one in caught] == ["there"]

    def test_the_other_images_of_a_batch_go_on(self, model):
        failed = {}
        images = [picture(80, 60), picture(1, 40), picture(64, 64), "nowhere.png", picture(4000, 4)]
        results = model.predict_iter(images, fov=60, on_error=lambda index, error: failed.update({index: str(error)}))
        assert sorted(dict(results)) == [0, 2]
        assert "no image file 'nowhere.png'" in failed[3]
        assert "more than 200 times" in failed[4]
        assert "1x40 pixels" in failed[1]

    def test_models_devices_and_dtypes_that_are_not_there(self, checkpoint, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no model folder .*nowhere"):
            depthvlm.load(tmp_path / "nowhere")
        for given, message in (
            ({"device": "abacus"}, r"'abacus' cannot be used.*'cpu'"),
            ({"dtype": "float8"}, "'float8' is not known"),
        ):
            with pytest.raises(ValueError, match=message):
                depthvlm.load(checkpoint, **given)


def test_the_bundled_model_predicts_and_answers_what_the_readme_asks():
    room = Path(depthvlm.__file__).parent / "assets" / "room.jpg"
    [prediction] = depthvlm.predict(room, BUNDLED_MODEL, prompt="What color is the crate?", max_new_tokens=8)
    assert prediction.depth.shape == Image.open(room).size[::-1]
    assert prediction.valid.all()
    assert prediction.text == "orange"


class TestLoad:
    def test_dtype(self, checkpoint, tmp_path):
        assert depthvlm.load(checkpoint, "cpu").model.dtype == torch.float32
        half = depthvlm.load(checkpoint, "cpu", "bfloat16")
        assert half.model.dtype == torch.bfloat16
        assert half.predict(picture(80, 60), fov=60)[0].depth.dtype == np.float32
        half.model.save_pretrained(tmp_path)
        half.processor.save_pretrained(tmp_path)
        assert depthvlm.load(tmp_path, "cpu").model.dtype == torch.float32  # small: faster and exact on a CPU

    def test_the_bundled_model_says_what_it_is(self, checkpoint, monkeypatch, caplog):
        known = {"depthvlm-nano": str(checkpoint)}
        monkeypatch.setattr("depthvlm.loading.resolve_model_path", lambda name: known[name])
        assert depthvlm.load(device="cpu").name == "depthvlm-nano"
        assert "bundled depthvlm-nano, trained on synthetic scenes only" in caplog.text
        caplog.clear()
        depthvlm.load("depthvlm-nano", device="cpu")
        assert not caplog.text  # asked for by name
