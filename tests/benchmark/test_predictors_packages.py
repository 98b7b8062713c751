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
from toy_source_files import write_text


def put(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """A stand-in module, and its parents."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    vars(sys.modules[name]).update(contents)


def on_cpu(key: str, **options: Any) -> Any:
    return make_predictor(key, device="cpu", **options)


@pytest.mark.parametrize(
    ("module", "key", "install"),
    [
        ("mmengine", "metric3d-v2-l", r'Metric3Dv2 needs .*\(.*mmengine.*\)\. pip install "depthvlm\[metric3d\]"'),
        ("unidepth", "unidepth-v2-l", r'UniDepthV2 needs unidepth \(.*\)\. pip install "unidepth @ git'),
        ("depth_anything_3", "depth-anything-v3", r'pip install "depthvlm\[depth-anything-3\]"'),
    ],
)
def test_what_is_missing(monkeypatch, module, key, install):
    for package in ("mmcv", "timm", "torchvision"):
        put(monkeypatch, package)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(ImportError, match=install):
        make_predictor(key)


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

    def test_what_is_loaded(self, hub):
        assert on_cpu("metric3d-v2-l").name == "Metric3Dv2"
        on_cpu("metric3d-v1-l", repository="/there")
        with pytest.raises(PredictorError, match="no entry point 'metric3d_swin'"):
            make_predictor("metric3d-v2-l", model="metric3d_swin")
        assert hub.calls == [
            ("yvanyin/metric3d", "metric3d_vit_large", {"pretrain": True, "trust_repo": True}),
            ("/there", "metric3d_convnext_large", {"pretrain": True, "source": "local"}),
        ]

    def test_the_canonical_camera(self, hub):
        """640x480 to 821x616 of 1064x616: f is (500 + 520) / 2 * 616 / 480 = 654.5, so 5 is 5 * 0.6545 m."""
        hub.answer = lambda inputs: 5 * torch.ones(len(inputs), 1, 616, 1064)
        cameras = (500.0, 520.0, 320.0, 240.0), (1000.0, 1040.0, 320.0, 240.0)
        maps = on_cpu("metric3d-v2-l").predict([toy_example(640, 480, camera) for camera in cameras])
        assert (hub.inputs.shape, hub.inputs.dtype) == ((2, 3, 616, 1064), torch.float32)
        for depth, metres in zip(maps, (3.2725, 6.545), strict=True):
            np.testing.assert_allclose(depth, np.full((480, 640), metres), rtol=1e-5)

    def test_convolutional_models_have_another_input(self, hub):
        """1216x544 exactly: twice 608x272, and f is 250 * 2 = 500."""
        [depth] = on_cpu("metric3d-v1-l").predict([toy_example(608, 272, (250.0, 250.0, 304, 136))])
        assert hub.inputs.shape == (1, 3, 544, 1216)
        np.testing.assert_allclose(depth, np.full((272, 608), 0.5), rtol=1e-6)
        hub.answer = lambda inputs: torch.full((1, 616, 1064), torch.nan)  # failures stay failures
        assert np.isnan(on_cpu("metric3d-v2-s").predict([toy_example()])[0]).all()

    def test_the_picture_is_scaled_and_padded_with_the_mean_colour(self, hub):
        """40x77 to 320x616 at scale 8, with (1064 - 320) / 2 = 372 columns on either side."""
        on_cpu("metric3d-v2-s").predict([toy_example(pixels=np.full((77, 40, 3), (200, 100, 50), np.uint8))])
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
        [depth] = on_cpu("metric3d-v2-s").predict([toy_example(40, 77, (0.125, 0.125, 20.0, 38.0))])
        np.testing.assert_allclose(depth[30], np.minimum(8 * np.arange(40) + 3.5, 300), rtol=1e-5)


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
                    assert (rgb.dtype, rgb.ndim, rgb.shape[0], self.training) == (torch.uint8, 3, 3, False)
                    [camera] = [*cameras, *(options.pop(argument, None) for _ in range(not cameras))]
                    assert not options
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
        predictor = on_cpu(row)
        assert getattr(models, version).names == [checkpoint]
        maps = predictor.predict([toy_example(64, 48, (60, 61, cx, 24.0), seed=i) for i, cx in enumerate((32.0, 40.5))])
        for depth, cx in zip(maps, (32.0, 40.5), strict=True):
            expected = np.broadcast_to(cx + np.arange(48)[:, None] / 1000, (48, 64))
            np.testing.assert_allclose(depth, expected, rtol=1e-6)

    def test_v1_without_its_attention_and_resolution(self, models):
        """No xformers for torch 2.6 has NystromAttention, and UniDepth's package then says so only at work."""
        assert on_cpu("unidepth-v2-l", resolution_level=9).model.resolution_level == 9
        with pytest.raises(PredictorError, match="leave out `resolution_level`"):
            on_cpu("unidepth-v1-l", resolution_level=9)
        del sys.modules["xformers.components.attention"].NystromAttention
        with pytest.raises(ImportError, match=r"UniDepthV1 needs NystromAttention of xformers.*torch 2\.6"):
            on_cpu("unidepth-v1-l")
        on_cpu("unidepth-v2-l")

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
        lacking = r"unidepth-v2-vitl14 lacks 1 of the weights of a Network \(layer\.bias"
        with pytest.raises(PredictorError, match=lacking):
            on_cpu("unidepth-v2-l")
        assert torch.nn.Module.load_state_dict.__module__.startswith("torch")


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

    @pytest.mark.parametrize(
        ("size", "camera", "seen", "metres"),
        [
            # f is (1000 * 504 / 1600 + 1010 * 378 / 1200) / 2 = 316.575 pixels of 504x378; 2 * 316.575 / 300 m.
            ((1600, 1200), (1000.0, 1010.0, 800.0, 600.0), (378, 504), 2.1105),
            # In whole patches: 1600x900 is 504x283.5, which becomes 504x280: fy scales with 280 / 900.
            ((1600, 900), (900, 900, 800, 450), (280, 504), 2 * (283.5 + 280) / 2 / 300),
        ],
    )
    def test_metres_of_the_metric_model(self, calls, size, camera, seen, metres):
        [depth] = on_cpu("depth-anything-v3").predict([toy_example(*size, camera)])
        assert calls == ["depth-anything/DA3METRIC-LARGE", seen]
        np.testing.assert_allclose(depth, np.full(size[::-1], metres), rtol=1e-6)

    def test_the_nested_model_answers_in_metres(self, calls):
        maps = on_cpu("depth-anything-v3-nested").predict([toy_example(640, 480), toy_example(640, 480, seed=1)])
        assert calls == ["depth-anything/DA3NESTED-GIANT-LARGE-1.1", (378, 504), (378, 504)]
        np.testing.assert_array_equal(maps, np.full((2, 480, 640), 2.0))
        with pytest.raises(PredictorError, match="DA3-LARGE is neither"):
            make_predictor("depth-anything-v3", model="depth-anything/DA3-LARGE")
        assert on_cpu("depth-anything-v3", model="my/copy", nested=True).nested


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

    @pytest.fixture(autouse=True)
    def _no_zoedepth(self, monkeypatch):
        """Forget the package before a test, and what the test imported of it."""

        def forget() -> None:
            for name in [name for name in sys.modules if name.split(".")[0] == "zoedepth"]:
                monkeypatch.delitem(sys.modules, name)

        forget()
        monkeypatch.setattr(sys, "path", list(sys.path))
        yield
        forget()

    @pytest.mark.parametrize(("scenes", "dataset"), [("indoor", "nyu"), ("outdoor", "kitti")])
    def test_the_mean_of_the_image_and_its_mirror(self, scenes, dataset, tmp_path, monkeypatch):
        """Columns 0..3 and 3..0 have the mean 1.5; red is 0.25 on average."""
        code = tmp_path / "metric_depth"
        weights = code / "checkpoints" / f"depth_anything_metric_depth_{scenes}.pt"
        builder = self.BUILDER.format(dataset=dataset, weights=f"local::{weights}")
        write_text(tmp_path / "checkpoints" / "depth_anything_vitl14.pth", "")
        write_text(weights, "")
        write_text(code / "zoedepth" / "models" / "builder.py", builder)
        write_text(code / "zoedepth" / "utils" / "config.py", self.CONFIG)
        monkeypatch.setenv("DEPTH_ANYTHING_ROOT", str(tmp_path))
        here = os.getcwd()
        predictor = on_cpu(f"depth-anything-v1-{scenes}")
        assert os.getcwd() == here
        pixels = np.zeros((6, 8, 3), np.uint8)
        pixels[:, ::4, 0] = 255
        [depth] = predictor.predict([toy_example(pixels=pixels)])
        np.testing.assert_allclose(depth, np.full((6, 8), 1.75), rtol=1e-6)

    def test_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.delenv("DEPTH_ANYTHING_ROOT", raising=False)
        with pytest.raises(PredictorError, match="has no package: git clone"):
            make_predictor("depth-anything-v1-indoor")
        with pytest.raises(PredictorError, match=r"no checkpoint .*depth_anything_metric_depth_outdoor\.pt"):
            make_predictor("depth-anything-v1-outdoor", root=tmp_path)
