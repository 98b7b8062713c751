"""Systems with packages of their own, against stand-ins that check what they are given."""

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from depthvlm.benchmark.systems import make_predictor
from depthvlm.benchmark.systems.interface import PredictorError
from toy_examples import toy_example


def put(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """A stand-in module, and its parents."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    for key, value in contents.items():
        setattr(sys.modules[name], key, value)


class TestMetric3D:
    MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)

    @pytest.fixture
    def hub(self, monkeypatch):
        """torch.hub with one model; `answer` makes its depth from its input."""
        for package in ("mmcv", "mmengine", "timm", "torchvision"):
            put(monkeypatch, package)
        found = SimpleNamespace(
            calls=[], inputs=None, answer=lambda inputs: torch.ones(len(inputs), 1, *inputs.shape[-2:])
        )

        class Network(torch.nn.Module):
            def inference(self, data):
                assert set(data) == {"input"}
                found.inputs = data["input"]
                return found.answer(data["input"]), None, {}

        def load(repository, entry, **options):
            found.calls.append((repository, entry, options))
            return Network()

        monkeypatch.setattr(torch.hub, "load", load)
        return found

    def test_it_is_loaded_only_when_chosen(self, hub):
        assert hub.calls == []
        predictor = make_predictor("metric3d-v2-l", device="cpu")
        assert hub.calls == [("yvanyin/metric3d", "metric3d_vit_large", {"pretrain": True, "trust_repo": True})]
        assert predictor.name == "Metric3Dv2"

    def test_a_checkout_on_this_machine(self, hub):
        make_predictor("metric3d-v1-l", device="cpu", repository="/there")
        assert hub.calls == [("/there", "metric3d_convnext_large", {"pretrain": True, "source": "local"})]

    def test_the_canonical_camera(self, hub):
        """640x480 to 821x616 of 1064x616: f is (500 + 520) / 2 * 616 / 480 = 654.5, so 5 is 5 * 0.6545 m."""
        hub.answer = lambda inputs: 5 * torch.ones(len(inputs), 1, 616, 1064)
        maps = make_predictor("metric3d-v2-l", device="cpu").predict(
            [toy_example(640, 480, (500.0, 520.0, 320.0, 240.0)), toy_example(640, 480, (1000.0, 1040.0, 320.0, 240.0))]
        )
        assert hub.inputs.shape == (2, 3, 616, 1064)
        assert hub.inputs.dtype == torch.float32
        np.testing.assert_allclose(maps[0], np.full((480, 640), 3.2725), rtol=1e-5)
        np.testing.assert_allclose(maps[1], np.full((480, 640), 6.545), rtol=1e-5)

    def test_convolutional_models_have_another_input(self, hub):
        """1216x544 exactly: twice 608x272, and f is 250 * 2 = 500."""
        [depth] = make_predictor("metric3d-v1-l", device="cpu").predict(
            [toy_example(608, 272, (250.0, 250.0, 304, 136))]
        )
        assert hub.inputs.shape == (1, 3, 544, 1216)
        np.testing.assert_allclose(depth, np.full((272, 608), 0.5), rtol=1e-6)

    def test_the_picture_is_scaled_and_padded_with_the_mean_colour(self, hub):
        """40x77 to 320x616 at scale 8, with (1064 - 320) / 2 = 372 columns on either side."""
        pixels = np.full((77, 40, 3), (200, 100, 50), np.uint8)
        make_predictor("metric3d-v2-s", device="cpu").predict([toy_example(pixels=pixels)])
        [inputs] = hub.inputs
        colour = (torch.tensor([200.0, 100.0, 50.0]).view(3, 1, 1) - self.MEAN) / self.STD
        torch.testing.assert_close(inputs[:, :, 372:692], colour.expand(3, 616, 320))
        assert not inputs[:, :, :372].any()
        assert not inputs[:, :, 692:].any()

    def test_the_padding_is_cut_off_and_the_map_resized(self, hub):
        """An answer of 1000 * the column of the picture: at scale 8, image column j has its centre at 8 j + 3.5."""
        columns = torch.full((1064,), 9e5)
        columns[372:692] = 1000 * torch.arange(320.0)
        hub.answer = lambda inputs: columns.expand(1, 1, 616, 1064)
        example = toy_example(40, 77, (0.125, 0.125, 20.0, 38.0))
        [depth] = make_predictor("metric3d-v2-s", device="cpu").predict([example])
        np.testing.assert_allclose(depth[30], np.minimum(8 * np.arange(40) + 3.5, 300), rtol=1e-5)

    def test_failures_stay_failures(self, hub):
        hub.answer = lambda inputs: torch.full((1, 616, 1064), torch.nan)
        assert np.isnan(make_predictor("metric3d-v2-s", device="cpu").predict([toy_example()])[0]).all()

    def test_what_is_missing(self, hub, monkeypatch):
        monkeypatch.setitem(sys.modules, "mmengine", None)
        with pytest.raises(
            ImportError, match=r'Metric3Dv2 needs .*\(.*mmengine.*\)\. pip install "depthvlm\[metric3d\]"'
        ):
            make_predictor("metric3d-v2-l")
        assert hub.calls == []
        with pytest.raises(PredictorError, match="no entry point 'metric3d_swin'"):
            make_predictor("metric3d-v2-l", model="metric3d_swin")


class TestUniDepth:
    @pytest.fixture
    def models(self, monkeypatch):
        """Depth is cx + row / 1000, so that the camera and the way up show in it."""

        def network(version: str, argument: str) -> type:
            class Network(torch.nn.Module):
                names: list[str] = []  # noqa: RUF012

                @classmethod
                def from_pretrained(cls, name):
                    cls.names.append(name)
                    return cls()

                def infer(self, rgb, *cameras, **options):
                    assert rgb.dtype == torch.uint8
                    assert rgb.ndim == 3
                    assert rgb.shape[0] == 3
                    assert not self.training
                    [camera] = [*cameras, *(options.pop(argument, None) for _ in range(not cameras))]
                    assert not options
                    assert camera.shape == (3, 3)
                    assert camera.dtype == torch.float32
                    assert camera.tolist() == [[60, 0, camera[0, 2]], [0, 61, 24], [0, 0, 1]]
                    rows = torch.arange(rgb.shape[1]).view(-1, 1).expand(rgb.shape[1:])
                    return {"depth": (camera[0, 2] + rows / 1000)[None, None], "points": None, "version": version}

            return Network

        found = SimpleNamespace(UniDepthV1=network("v1", "intrinsics"), UniDepthV2=network("v2", "camera"))
        put(monkeypatch, "unidepth.models", **vars(found))
        put(monkeypatch, "xformers.components.attention", NystromAttention=object)
        return found

    @pytest.mark.parametrize(
        ("row", "version", "checkpoint"),
        [
            ("unidepth-v1-l", "UniDepthV1", "lpiccinelli/unidepth-v1-vitl14"),
            ("unidepth-v1-convnext", "UniDepthV1", "lpiccinelli/unidepth-v1-cnvnxtl"),
            ("unidepth-v2-s", "UniDepthV2", "lpiccinelli/unidepth-v2-vits14"),
            ("unidepth-v2-l", "UniDepthV2", "lpiccinelli/unidepth-v2-vitl14"),
        ],
    )
    def test_it_is_told_the_camera(self, models, row, version, checkpoint):
        """The first pixel's centre is at 0.5 there, as here."""
        predictor = make_predictor(row, device="cpu")
        assert getattr(models, version).names == [checkpoint]
        examples = [toy_example(64, 48, (60, 61, 32.0, 24.0)), toy_example(64, 48, (60, 61, 40.5, 24.0), seed=1)]
        first, second = predictor.predict(examples)
        expected = np.broadcast_to(32 + np.arange(48)[:, None] / 1000, (48, 64))
        np.testing.assert_allclose(first, expected, rtol=1e-6)
        np.testing.assert_allclose(second, expected + 8.5, rtol=1e-6)

    def test_v1_without_its_attention(self, models):
        """No xformers for torch 2.6 has NystromAttention, and UniDepth's package then says so only at work."""
        del sys.modules["xformers.components.attention"].NystromAttention
        with pytest.raises(ImportError, match=r"UniDepthV1 needs NystromAttention of xformers.*torch 2\.6"):
            make_predictor("unidepth-v1-l", device="cpu")
        make_predictor("unidepth-v2-l", device="cpu")

    def test_a_checkpoint_that_lacks_weights(self, models, monkeypatch):
        """Its loader takes them with strict=False, as `PyTorchModelHubMixin` does."""

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 1)

            @classmethod
            def from_pretrained(cls, name):
                network = cls()
                network.load_state_dict({"layer.weight": torch.ones(1, 2)}, strict=False)
                return network

        monkeypatch.setattr(sys.modules["unidepth.models"], "UniDepthV2", Network)
        with pytest.raises(
            PredictorError, match=r"unidepth-v2-vitl14 lacks 1 of the weights of a Network \(layer\.bias"
        ):
            make_predictor("unidepth-v2-l", device="cpu")
        assert torch.nn.Module.load_state_dict.__module__.startswith("torch")

    def test_resolution(self, models):
        assert make_predictor("unidepth-v2-l", device="cpu", resolution_level=9).model.resolution_level == 9
        with pytest.raises(PredictorError, match="leave out `resolution_level`"):
            make_predictor("unidepth-v1-l", device="cpu", resolution_level=9)

    def test_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "unidepth", None)
        with pytest.raises(ImportError, match=r'UniDepthV2 needs unidepth \(.*\)\. pip install "unidepth @ git'):
            make_predictor("unidepth-v2-l")


class TestDepthAnything3:
    @pytest.fixture
    def calls(self, monkeypatch):
        """Works at 504 pixels on the longer side, as docs/API.md says: 1600x1200 becomes 504x378. It says 2.0."""
        calls: list[Any] = []

        class Network(torch.nn.Module):
            @classmethod
            def from_pretrained(cls, name):
                calls.append(name)
                return cls()

            def inference(self, image, extrinsics=None, intrinsics=None, process_res=504, **options):
                [pixels] = image
                assert pixels.dtype == np.uint8
                assert extrinsics is None
                height, width = pixels.shape[:2]
                scale = process_res / max(height, width)
                size = tuple(round(side * scale / 14) * 14 for side in (height, width))
                calls.append(size)
                return SimpleNamespace(depth=np.full((1, *size), 2.0, np.float32), is_metric=1, intrinsics=None)

        put(monkeypatch, "depth_anything_3.api", DepthAnything3=Network)
        return calls

    def test_metres_of_the_metric_model(self, calls):
        """f is (1000 * 504 / 1600 + 1010 * 378 / 1200) / 2 = 316.575 pixels of 504x378; 2 * 316.575 / 300 m."""
        predictor = make_predictor("depth-anything-v3", device="cpu")
        [depth] = predictor.predict([toy_example(1600, 1200, (1000.0, 1010.0, 800.0, 600.0))])
        assert calls == ["depth-anything/DA3METRIC-LARGE", (378, 504)]
        np.testing.assert_allclose(depth, np.full((1200, 1600), 2.1105), rtol=1e-6)

    def test_the_size_is_rounded_to_patches(self, calls):
        """1600x900 is 504x283.5, which becomes 504x280: fy scales with 280 / 900."""
        [depth] = make_predictor("depth-anything-v3", device="cpu").predict(
            [toy_example(1600, 900, (900, 900, 800, 450))]
        )
        assert calls[1] == (280, 504)
        np.testing.assert_allclose(depth, np.full((900, 1600), 2 * (283.5 + 280) / 2 / 300), rtol=1e-6)

    def test_the_nested_model_answers_in_metres(self, calls):
        predictor = make_predictor("depth-anything-v3-nested", device="cpu")
        maps = predictor.predict([toy_example(640, 480), toy_example(640, 480, seed=1)])
        assert calls == ["depth-anything/DA3NESTED-GIANT-LARGE-1.1", (378, 504), (378, 504)]
        np.testing.assert_array_equal(maps, np.full((2, 480, 640), 2.0))

    def test_relative_models_are_refused(self, calls):
        with pytest.raises(PredictorError, match="DA3-LARGE is neither"):
            make_predictor("depth-anything-v3", model="depth-anything/DA3-LARGE")
        assert make_predictor("depth-anything-v3", model="my/copy", nested=True, device="cpu").nested

    def test_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "depth_anything_3", None)
        with pytest.raises(ImportError, match=r'pip install "depthvlm\[depth-anything-3\]"'):
            make_predictor("depth-anything-v3")


class TestDepthAnything1:
    BUILDER = """
import os
import torch
class Network(torch.nn.Module):
    def forward(self, x, dataset):
        assert dataset == {dataset!r}
        assert x.dtype == torch.float32 and 0 <= x.min() and 0.9 < x.max() <= 1
        columns = torch.arange(4.0).expand(len(x), 1, 2, 4)
        return {{"metric_depth": columns + x[:, :1].mean((2, 3), keepdim=True), "domain": None}}
def build_model(config):
    assert os.path.isfile("../checkpoints/depth_anything_vitl14.pth")
    assert config == {{"name": "zoedepth", "mode": "eval", "dataset": {dataset!r}, "pretrained_resource": {weights!r}}}
    return Network()
"""
    CONFIG = """
def get_config(name, mode="train", dataset=None, **overwrite):
    return {"name": name, "mode": mode, "dataset": dataset, **overwrite}
"""

    @pytest.mark.parametrize(("scenes", "dataset"), [("indoor", "nyu"), ("outdoor", "kitti")])
    def test_the_mean_of_the_image_and_its_mirror(self, scenes, dataset, tmp_path, monkeypatch):
        """Columns 0..3 and 3..0 have the mean 1.5; red is 0.25 on average."""
        code = tmp_path / "metric_depth"
        weights = code / "checkpoints" / f"depth_anything_metric_depth_{scenes}.pt"
        files = {
            tmp_path / "checkpoints" / "depth_anything_vitl14.pth": "",
            weights: "",
            code / "zoedepth" / "models" / "builder.py": self.BUILDER.format(
                dataset=dataset, weights=f"local::{weights}"
            ),
            code / "zoedepth/utils/config.py": self.CONFIG,
        }
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] == "zoedepth"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("DEPTH_ANYTHING_ROOT", str(tmp_path))
        here = os.getcwd()
        predictor = make_predictor(f"depth-anything-v1-{scenes}", device="cpu")
        assert os.getcwd() == here
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:, ::4, 0] = 255
        [depth] = predictor.predict([toy_example(pixels=pixels)])
        np.testing.assert_allclose(depth, np.full((6, 8), 1.75), rtol=1e-6)
        for name in [name for name in sys.modules if name.split(".")[0] == "zoedepth"]:
            monkeypatch.delitem(sys.modules, name)

    def test_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.delenv("DEPTH_ANYTHING_ROOT", raising=False)
        with pytest.raises(PredictorError, match="has no package: git clone"):
            make_predictor("depth-anything-v1-indoor")
        with pytest.raises(PredictorError, match=r"no checkpoint .*depth_anything_metric_depth_outdoor\.pt"):
            make_predictor("depth-anything-v1-outdoor", root=tmp_path)
