"""The exported depth head in onnxruntime against PyTorch: every head, grids it was not traced with, real features."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import run
from depthvlm.benchmark.synthetic.scenes import render_scene
from forward import plain_dpt
from safetensors.torch import load_file, save_file
from toy_checkpoint import change_config, leave_out
from toy_models import last_layer, toy_inputs, toy_model

import depthvlm
from depthvlm.onnx_export import OPSET, HeadExport, export_depth_head, load_depth_head

GRIDS = [(1, 1, 1), (2, 1, 5), (1, 4, 1), (3, 7, 5), (1, 15, 20)]
HEADS = [
    {"head_type": "dpt_light", "feature_source": "vit+llm"},
    {"head_type": "dpt", "feature_source": "llm"},
    {"head_type": "mlp", "feature_source": "vit"},
    {"head_type": "mlp", "feature_source": "llm_final"},
]


def run_head(path: Path, features: list[torch.Tensor], focal_scale: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    assert names == [*(["F4"] if len(features) == 1 else ["F1", "F2", "F3", "F4"]), "focal_scale"]
    arrays = [tensor.numpy() for tensor in (*features, focal_scale)]
    return torch.from_numpy(session.run(["predicted_depth"], dict(zip(names, arrays, strict=True)))[0])


def varied_model(head: dict[str, str]) -> depthvlm.DepthVLMForConditionalGeneration:
    """A toy model whose head varies: its last layer is drawn at a larger scale."""
    model = toy_model(head)
    if head["head_type"] != "mlp":
        torch.nn.init.normal_(last_layer(model.depth_head).weight, std=30.0)
    return model


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory):
    """A toy model with the paper's head, and its export."""
    folder = tmp_path_factory.mktemp("light")
    model = varied_model(HEADS[0])
    model.save_pretrained(folder / "toy")
    return model, export_depth_head(folder / "toy", folder / "head.onnx")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> HeadExport:
    return export_depth_head("depthvlm-nano", tmp_path_factory.mktemp("nano") / "head.onnx")


class TestDepth:
    @pytest.mark.parametrize("head", HEADS, ids=lambda head: "-".join(head.values()))
    def test_every_head_on_every_grid(self, head, light, tmp_path):
        """Against the head in PyTorch and, for DPT, against the plain order of operations."""
        model, export = light
        if head != HEADS[0]:
            model = varied_model(head)
            model.save_pretrained(tmp_path / "toy")
            export = export_depth_head(tmp_path / "toy", tmp_path / "head.onnx")
        assert export.largest_error < 1e-4
        torch.manual_seed(1)
        for images, height, width in GRIDS:
            maps = 1 if head["feature_source"] == "llm_final" else 4
            features = [torch.randn(images, height, width, 32) for _ in range(maps)]
            focal_scale = 0.5 + torch.rand(images)
            found = run_head(export.path, features, focal_scale)
            assert found.shape == (images, 32 * height, 32 * width)
            tokens = [feature.flatten(1, 2) for feature in features]
            with torch.no_grad():
                expected = [model.depth_head(tokens, (height, width))]
                if head["head_type"] != "mlp":
                    expected.append(plain_dpt(model.depth_head, tokens, (height, width)))
            assert expected[0].std() > 0.05
            for depth in expected:
                torch.testing.assert_close(found, depth * focal_scale[:, None, None], rtol=1e-4, atol=0)

    def test_with_the_features_of_the_whole_model_it_gives_the_depth_of_the_whole_model(self, light):
        """Two images of different grids, and a focal scale each: what `predict_depth` gives with its own head."""
        model, export = light
        inputs = toy_inputs([[3, (2, 3), 2, (4, 1)]])
        focal_scale = torch.tensor([0.7, 1.6])
        taken: list[tuple[list[torch.Tensor], tuple[int, int]]] = []
        hook = model.depth_head.register_forward_pre_hook(lambda head, arguments: taken.append(arguments))
        expected = model.predict_depth(**inputs, focal_scale=focal_scale).predicted_depth
        hook.remove()
        assert [grid for _, grid in taken] == [(2, 3), (4, 1)]
        for index, (features, grid) in enumerate(taken):
            maps = [feature.unflatten(1, grid) for feature in features]
            found = run_head(export.path, maps, focal_scale[index : index + 1])
            torch.testing.assert_close(found[0], expected[index], rtol=1e-4, atol=0)

    def test_nano_on_a_scene(self, nano):
        loaded = depthvlm.load()
        taken = []
        hook = loaded.model.depth_head.register_forward_pre_hook(lambda head, arguments: taken.append(arguments))
        rendered = render_scene(2, width=160, height=128)
        # nano's canonical focal length and a size of whole tokens: nothing is resized.
        [prediction] = loaded.predict(rendered.image, focal_length=160.0)
        hook.remove()
        [(features, grid)] = taken
        assert grid == (4, 5)
        found = run_head(nano.path, [feature.clone().unflatten(1, grid) for feature in features], torch.ones(1))
        np.testing.assert_allclose(found[0].numpy(), prediction.depth, rtol=1e-4)
        assert prediction.depth.std() > 0.1


class TestFile:
    def test_it_says_what_it_is(self, nano):
        proto = onnx.load(nano.path)
        onnx.checker.check_model(proto, full_check=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        assert metadata == nano.metadata
        config = json.loads((Path(depthvlm.__file__).parent / "nano/config.json").read_text())
        expected = {"head_type": "dpt_light", "feature_source": "vit+llm", "license": "apache-2.0"}
        expected |= {"hidden_size": str(config["text_config"]["hidden_size"]), "source": "depthvlm-nano"}
        expected |= {"patch_size": "16", "spatial_merge_size": "2", "stride": "32", "backbone": "qwen3_vl"}
        assert {name: metadata[name] for name in expected} == expected
        assert float(metadata["canonical_focal_length"]) == config["canonical_focal_length"]
        assert json.loads(metadata["vision_layers"]) == config["vision_config"]["deepstack_visual_indexes"]
        assert nano.size == nano.path.stat().st_size

    def test_its_axes_are_free(self, nano):
        session = onnxruntime.InferenceSession(nano.path)
        assert [value.shape for value in session.get_inputs()] == [*[["batch", "height", "width", 192]] * 4, ["batch"]]
        assert session.get_outputs()[0].shape == ["batch", "32*height", "32*width"]

    def test_weights_in_bfloat16_and_in_shards_are_read_and_nothing_else(self, tmp_path):
        """A checkpoint whose other shard is missing, as a download of the head's alone would leave it."""
        model = toy_model({"head_type": "mlp", "feature_source": "llm_final"}).to(torch.bfloat16)
        model.save_pretrained(tmp_path / "toy")
        weights = load_file(tmp_path / "toy/model.safetensors")
        (tmp_path / "toy/model.safetensors").unlink()
        head = {name: weight for name, weight in weights.items() if name.startswith("depth_head.")}
        save_file(head, tmp_path / "toy/model-00002-of-00002.safetensors")
        weight_map = {name: f"model-0000{1 + (name in head)}-of-00002.safetensors" for name in weights}
        index = {"metadata": {}, "weight_map": weight_map}
        (tmp_path / "toy/model.safetensors.index.json").write_text(json.dumps(index))
        _, loaded = load_depth_head(tmp_path / "toy")
        for name, weight in loaded.state_dict().items():
            assert weight.dtype == torch.float32
            torch.testing.assert_close(weight, head[f"depth_head.{name}"].float(), rtol=0, atol=0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda toy: leave_out(toy, "depth_head."), "has no depth head"),
            (lambda toy: change_config(toy, depth_config={"features": 18}), "do not fit its config"),
            (lambda toy: os.truncate(toy / "model.safetensors", 5000), "model.safetensors is incomplete or damaged"),
            (shutil.rmtree, "There is no model folder"),
        ],
    )
    def test_a_checkpoint_whose_head_cannot_be_read(self, tmp_path, damage, message):
        toy_model().save_pretrained(tmp_path / "toy")
        damage(tmp_path / "toy")
        assert message in run("export", "onnx", tmp_path / "toy", "--out", tmp_path / "head.onnx", code=1).output
        assert not (tmp_path / "head.onnx").exists()

    def test_a_file_that_is_there(self, tmp_path):
        (tmp_path / "head.onnx").write_bytes(b"mine")
        assert "--overwrite" in run("export", "onnx", "depthvlm-nano", "--out", tmp_path / "head.onnx", code=2).output
        assert (tmp_path / "head.onnx").read_bytes() == b"mine"

    @pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
    def test_without_the_extra(self, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        output = run("export", "onnx", "depthvlm-nano", "--out", tmp_path / "head.onnx", code=1).output
        assert f"needs the package {package}" in output
        assert 'pip install "depthvlm[onnx]"' in output
