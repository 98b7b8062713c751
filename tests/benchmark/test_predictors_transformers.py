"""Systems that transformers runs: a tiny random model of each class, saved, loaded, and compared with direct calls."""

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from depthvlm.benchmark.systems import make_predictor
from depthvlm.benchmark.systems.interface import PredictorError
from depthvlm.benchmark.systems.transformers_depth import TransformersDepth, check_metric
from safetensors.torch import load_file, save_file
from toy_depth_models import depth_anything, depth_pro, dpt, glpn, zoedepth
from toy_examples import toy_example
from transformers import AutoImageProcessor, DepthProForDepthEstimation, DepthProImageProcessor


def direct(model: Any, examples: list[Any], **options: Any) -> list[np.ndarray]:
    """What the model's page on the Hub says to do, one image at a time."""
    processor = AutoImageProcessor.from_pretrained(model.name_or_path)
    maps = []
    for example in examples:
        with torch.no_grad():
            inputs = processor(images=example.image, return_tensors="pt")
            outputs = model(**inputs)
            given = {name: [example.image.size[::-1]] for name in options.get("sizes", ["target_sizes"])}
            if options.get("flipped"):
                given["outputs_flipped"] = model(inputs["pixel_values"].flip(3))
        maps.append(processor.post_process_depth_estimation(outputs, **given)[0]["predicted_depth"].numpy())
    return maps


def assert_same(maps: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for depth, other in zip(maps, expected, strict=True):
        assert depth.dtype == np.float32
        assert depth.shape == other.shape
        assert other.std() > 1e-3 * abs(other.mean())
        np.testing.assert_allclose(depth, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("build", "options"),
    [(depth_anything, {}), (glpn, {}), (dpt, {"metric": True})],
    ids=["depth_anything", "glpn", "dpt"],
)
def test_as_called_directly(build, options, tmp_path):
    examples = [toy_example(70, 45, seed=i) for i in range(2)]
    predictor = make_predictor(f"pipeline:{build(tmp_path)}", device="cpu", **options)
    assert_same(predictor.predict(examples), direct(predictor.model, examples))


def test_zoedepth_without_its_padding(tmp_path, monkeypatch):
    """transformers itself cuts the padding off, with torchvision's resize, or torch's where that is missing."""
    examples = [toy_example(70, 45, seed=i) for i in range(2)]
    predictor = make_predictor(f"pipeline:{zoedepth(tmp_path)}", device="cpu")
    maps = predictor.predict(examples)
    alone = make_predictor(f"pipeline:{tmp_path}", device="cpu", flip_average=False).predict(examples)
    if find_spec("torchvision") is None:
        resize = SimpleNamespace(
            InterpolationMode=SimpleNamespace(BICUBIC="bicubic"),
            resize=lambda depth, size, interpolation, antialias: torch.nn.functional.interpolate(
                depth[None], size=tuple(size), mode=interpolation, antialias=antialias
            )[0],
        )
        module = import_module("transformers.models.zoedepth.image_processing_pil_zoedepth")
        monkeypatch.setattr(module, "tvF", resize, raising=False)
    assert_same(maps, direct(predictor.model, examples, sizes=["source_sizes"], flipped=True))
    assert_same(alone, direct(predictor.model, examples, sizes=["source_sizes"]))


def test_a_checkpoint_without_its_neck_is_refused(tmp_path):
    """Published so for another class: the weights that are not there would be random, and answer all the same."""
    folder = depth_anything(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("neck.")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    lost = len(weights) - len(kept)
    assert lost > 10
    with pytest.raises(PredictorError, match=rf"lacks {lost} of the weights of a DepthAnythingForDepth.*\(neck\."):
        make_predictor(f"pipeline:{folder}", device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return depth_pro(tmp_path_factory.mktemp("depth_pro"))


@pytest.fixture(scope="module")
def inverse(checkpoint):
    """Depth Pro's answer to the 64 x 64 pixels of image 0, and its field of view in degrees."""
    pixels = np.asarray(toy_example(64, 64).image, dtype=np.float32)
    with torch.no_grad():
        values = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        outputs = DepthProForDepthEstimation.from_pretrained(checkpoint)(values)
    assert outputs.predicted_depth.shape == (1, 128, 128)
    return outputs.predicted_depth[0].numpy(), float(outputs.field_of_view)


def at(focal: float) -> Any:
    return toy_example(64, 64, (focal, focal, 32, 32))


def halved(answer: np.ndarray) -> torch.Tensor:
    values = torch.from_numpy(answer)[None, None]
    return torch.nn.functional.interpolate(values, size=(64, 64), mode="bilinear")[0, 0].clamp(1e-4, 1e4)


class TestDepthPro:
    def test_metres_follow_from_the_focal_length(self, checkpoint, inverse):
        """`1 / (answer * width / fx)`, the answer halved in size first, cut off at 1e-4 and 1e4."""
        predictor = TransformersDepth(checkpoint, device="cpu")
        expected = [(1 / halved(inverse[0] * np.float32(64 / 50))).numpy()]
        assert_same(predictor.predict([at(50.0)]), expected)
        if find_spec("torchvision") is not None:  # transformers' own processor needs it
            fov = torch.tensor([np.rad2deg(2 * np.arctan(64 / (2 * 50)))])
            outputs = SimpleNamespace(predicted_depth=torch.from_numpy(inverse[0])[None], field_of_view=fov)
            [own] = DepthProImageProcessor().post_process_depth_estimation(outputs, [(64, 64)])
            assert_same(expected, [own["predicted_depth"].numpy()])
        # Each image of a batch has its camera.
        near, far = (predictor.predict([at(focal)])[0] for focal in (50.0, 100.0))
        assert_same(predictor.predict([at(50.0), at(100.0)]), [near, far])
        inside = (near > 1e-3) & (far < 1e3)
        assert inside.mean() > 0.1
        np.testing.assert_allclose(far[inside], 2 * near[inside], rtol=1e-4)

    def test_its_own_field_of_view(self, checkpoint, inverse):
        """`width / f = 2 tan(fov / 2)`."""
        focal = 64 / (2 * np.tan(np.deg2rad(inverse[1]) / 2))
        [estimated] = TransformersDepth(checkpoint, device="cpu", focal_length="estimated").predict([at(1.0)])
        # Of the inverse, which the network answers: far metres magnify its last bits.
        expected = halved(inverse[0] * np.float32(64 / focal)).numpy()
        np.testing.assert_allclose(1 / estimated, expected, rtol=1e-4, atol=1e-5)

    def test_pixels_are_sampled_without_antialiasing(self, checkpoint):
        """From 256 columns to 64, column i reads between columns 4i + 1 and 4i + 2; 0..255 becomes -1..1."""
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
        predictor = TransformersDepth(checkpoint, device="cpu")
        values = predictor.processor(images=[ramp], return_tensors="pt")["pixel_values"]
        expected = (4 * np.arange(64) + 1.5) / 255 * 2 - 1
        np.testing.assert_allclose(values[0, 1, 17].numpy(), expected, atol=1e-6)
        if find_spec("torchvision") is not None:  # transformers' own processor needs it
            own = DepthProImageProcessor(size={"height": 64, "width": 64})(images=[ramp], return_tensors="pt")
            torch.testing.assert_close(values, own["pixel_values"])

    def test_estimating_needs_the_head_for_it(self, tmp_path):
        with pytest.raises(PredictorError, match="does not estimate a field of view"):
            TransformersDepth(depth_pro(tmp_path, fov=False), device="cpu", focal_length="estimated")
        with pytest.raises(ValueError, match=r"must be .* got 'own'"):
            TransformersDepth(str(tmp_path), focal_length="own")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["prompt_depth_anything", "chmv2", "depthvlm"])
def test_other_tasks(kind):
    with pytest.raises(PredictorError, match=rf"some/model \({kind}\) is no row"):
        check_metric(SimpleNamespace(model_type=kind), "some/model", metric=True)


def test_what_is_refused(tmp_path):
    with pytest.raises(PredictorError, match=r"relative depth .*'relative'"):
        TransformersDepth(depth_anything(tmp_path / "relative", "relative"), device="cpu")
    with pytest.raises(PredictorError, match="metric=True if you know"):
        TransformersDepth(dpt(tmp_path / "dpt"), device="cpu")
    with pytest.raises(FileNotFoundError, match="no model folder /nowhere"):
        make_predictor("pipeline:/nowhere")
    predictor = TransformersDepth(glpn(tmp_path / "glpn"), device="cpu")
    with pytest.raises(ValueError, match="images of one size"):
        predictor.predict([toy_example(64, 64), toy_example(96, 64)])
