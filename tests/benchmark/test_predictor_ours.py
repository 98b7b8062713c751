"""DepthVLM as a row: the same numbers as `depthvlm.predict`."""

import numpy as np
import pytest
from depthvlm.benchmark.synthetic.scenes import render_scene
from depthvlm.benchmark.systems import make_predictor
from depthvlm.benchmark.systems.ours import DepthVLMSystem
from PIL import Image
from toy_checkpoint import save_toy_checkpoint
from toy_examples import toy_example

import depthvlm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_toy_checkpoint(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return make_predictor(f"depthvlm:{checkpoint}", device="cpu")


def test_the_same_metres_as_the_package_predicts(predictor, checkpoint):
    examples = [toy_example(80, 60, (900.0, 880.0, 40.0, 30.0), seed=i) for i in range(2)]
    examples.append(toy_example(96, 70, (1200.0, 1200.0, 48.0, 35.0), seed=2))
    maps = predictor.predict(examples)
    expected = depthvlm.load(checkpoint, device="cpu").predict(
        [example.image for example in examples],
        intrinsics=[list(example.intrinsics) for example in examples],
        batch_size=1,
    )
    assert predictor.name == f"depthvlm:{checkpoint}"
    for depth, prediction, example in zip(maps, expected, examples, strict=True):
        assert depth.shape == example.image.size[::-1]
        assert depth.dtype == np.float32
        assert depth.std() > 1e-3
        np.testing.assert_allclose(depth, prediction.depth, rtol=1e-4)


def test_its_token_grid_is_that_of_the_models_input(predictor):
    """Of 500 px and the canonical 1000 px: the processor's own patches, two of them a token and axis."""
    for example in (toy_example(80, 60, (500.0, 480.0, 40.0, 30.0)), toy_example(96, 70, (1000.0, 1000.0, 48.0, 35.0))):
        inputs = predictor.processor.image_processor(example.image, intrinsics=list(example.intrinsics))
        _, rows, columns = np.asarray(inputs["image_grid_thw"])[0].tolist()
        grid = predictor.token_grid(example)
        assert (2 * grid.rows, 2 * grid.columns) == (rows, columns)
        assert grid.stride == predictor.model.config.input_stride


def test_the_camera_sets_the_scale(predictor):
    """Four times the pixel budget's focal length: the same pixels are seen, and all metres double with it."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    near, far = predictor.predict([toy_example(pixels=pixels, intrinsics=(f, f, 128, 128)) for f in (500.0, 1000.0)])
    np.testing.assert_allclose(far, 2 * near, rtol=1e-4)


def test_one_focal_length_for_all_stands_in_place_of_their_own(predictor, checkpoint):
    """Table 7's row without normalisation: every image is predicted as if its focal length were the canonical one."""
    raw = make_predictor(f"depthvlm:{checkpoint}", device="cpu", focal_length=1000)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    own, canonical = (toy_example(pixels=pixels, intrinsics=(f, f, 40, 30)) for f in (700.0, 1000.0))
    [expected] = predictor.predict([canonical])
    np.testing.assert_array_equal(raw.predict([own])[0], expected)
    assert np.abs(predictor.predict([own])[0] / expected - 1).max() > 1e-3
    with pytest.raises(ValueError, match="`focal_length` is in pixels and positive, got -1"):
        make_predictor(f"depthvlm:{checkpoint}", focal_length=-1)


def test_exif_orientation_is_not_followed(predictor):
    upright, turned = toy_example(80, 60), toy_example(80, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.image.getexif().update(exif)
    np.testing.assert_array_equal(*(predictor.predict([one])[0] for one in (upright, turned)))
    # Four images are not taken for one camera.
    assert len(predictor.predict([toy_example(80, 60, (90.0, 80.0, 40.0, 30.0), seed=i) for i in range(4)])) == 4
    with pytest.raises(FileNotFoundError, match=r"no model folder .*nowhere"):
        DepthVLMSystem("/nowhere", device="cpu")


def test_the_bundled_model_measures_scenes_it_has_not_seen():
    scenes = [render_scene(1_000_600_000 + i, kind=kind) for i in range(2) for kind in ("room", "street")]
    predictor = make_predictor("nano", device="cpu")
    assert predictor.name == "depthvlm-nano"
    examples = [
        toy_example(
            pixels=np.asarray(scene.image),
            intrinsics=(scene.focal_length, scene.focal_length, scene.depth.shape[1] / 2, scene.depth.shape[0] / 2),
        )
        for scene in scenes
    ]
    delta1 = []
    for depth, scene in zip(predictor.predict(examples), scenes, strict=True):
        valid = scene.depth > 0
        ratio = depth[valid] / scene.depth[valid]
        delta1.append(np.mean(np.maximum(ratio, 1 / ratio) < 1.25))
    assert np.mean(delta1) > 0.85
