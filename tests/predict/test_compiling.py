"""`compile=True`: depth from compiled layers is the model's own, and a bounded number of shapes is compiled."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from depthvlm.benchmark.synthetic.scenes import render_scene
from peft import LoraConfig
from toy_families import HEAD, save_plain_checkpoint
from toy_images import picture, save_picture
from toy_models import toy_inputs, toy_model

import depthvlm
from depthvlm.compiling import BATCHES, BUCKETS, compile_depth


class Counting:
    """A backend that compiles nothing and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def same(model: Any, calls: list[dict[str, Any]], **options: Any) -> tuple[Any, Counting]:
    """Compile a model; assert that every call gives its depth."""
    expected = [model.predict_depth(**call) for call in calls]
    backend = Counting()
    compiled = compile_depth(model, backend=backend, **options)
    for call, depths in zip(calls, expected, strict=True):
        torch.testing.assert_close(list(model.predict_depth(**call)), list(depths), rtol=1e-5, atol=1e-6)
    return compiled, backend


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"feature_source": "vit"},
        {"head_type": "dpt_sharp"},
        pytest.param({"feature_source": "llm"}, marks=pytest.mark.slow),
        pytest.param({"feature_source": "llm_final", "head_type": "mlp"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_unequal_pictures_in_padded_batches_have_the_models_depth(head):
    calls = [
        toy_inputs([[3, (2, 3), 4]]),
        toy_inputs([[3, (2, 4), 4], [7, (3, 4)], [1, (1, 5), 9]], side="left", seed=1),
        toy_inputs([[3, (2, 3), 4], [5, (1, 1)]], seed=2) | {"focal_scale": torch.tensor([0.5, 2.0])},
        toy_inputs([[2, (4, 3)]], seed=3) | {"output_size": (50, 70)},
    ]
    compiled, backend = same(toy_model(head), calls, buckets=(16, 8))
    assert set(compiled.programs) == {(1, 8), (2, 8), (1, 16)}  # pictures, visual tokens
    assert backend.graphs == len(compiled.programs) * (1 if head.get("feature_source") == "vit" else 2)


@pytest.mark.slow
def test_graphs_are_bounded_by_the_buckets_whatever_is_asked():
    """More of them than the 8 recompilations after which torch gives up, and none for a known bucket."""
    model, buckets = toy_model({"feature_source": "vit"}), (4, 8, 12)
    calls = [toy_inputs([[2, (2, width)]] * rows, seed=width) for width in (1, 2, 3, 5) for rows in (1, 2, 3, 5, 11)]
    compiled, backend = same(model, calls, buckets=buckets)
    assert backend.graphs == len(compiled.programs) == len(BATCHES) * len(buckets)
    for call in calls:
        with torch.inference_mode():
            model.predict_depth(**call)
    assert backend.graphs == len(BATCHES) * len(buckets)


def test_a_picture_leaves_nothing_behind_for_the_next_of_its_bucket():
    large, small = toy_inputs([[3, (4, 4)]], seed=1), toy_inputs([[1, (1, 2)]], seed=2)
    large["pixel_values"] = large["pixel_values"].fill_(float("nan"))
    model = toy_model()
    expected = model.predict_depth(**small)
    compile_depth(model, backend="eager", buckets=(16,))
    assert model.predict_depth(**large)[0].isnan().all()
    torch.testing.assert_close(model.predict_depth(**small)[0], expected[0])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (toy_inputs([[3, (4, 5)]]), "pictures of more than 16 visual tokens"),
        (toy_inputs([[60, (1, 1)]]), "prompts that are longer still"),
        (toy_inputs([[1, (2, 2), 3, (2, 3)]]), "prompts with several images"),
        (toy_inputs([[1, (2, 2)]]) | {"position_ids": torch.arange(7).expand(4, 1, 7)}, "a call with `position_ids`"),
    ],
    ids=["large", "long", "several", "positions"],
)
def test_what_fits_no_bucket_runs_as_before_and_that_is_said_once(call, reason, caplog):
    with caplog.at_level(logging.WARNING, "depthvlm.compiling"):
        _, backend = same(toy_model(), [call, call], buckets=(16,))
    assert backend.graphs == 0
    [message] = [record.getMessage() for record in caplog.records]
    assert reason in message


def test_a_new_bucket_is_said(caplog):
    with caplog.at_level(logging.WARNING, "depthvlm.compiling"):
        same(toy_model({"feature_source": "vit"}), [toy_inputs([[3, (2, 3)]] * 3)], buckets=(8,))
    assert "Compiled for a batch of 4 with up to 8 visual tokens, in " in caplog.text


def test_threads_share_a_compiled_model():
    model = toy_model()
    calls = [toy_inputs([[3, (2, width)]], seed=width) for width in range(1, 9)]
    expected = [model.predict_depth(**call)[0] for call in calls]
    compile_depth(model, backend="eager", buckets=(16,))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda call: model.predict_depth(**call)[0], calls))
    torch.testing.assert_close(found, expected)


def test_adapters_are_compiled_too():
    model = toy_model()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "down_proj", "qkv"], init_lora_weights=False))
    plain = toy_model().predict_depth(**toy_inputs([[3, (2, 3)]]))[0]
    compiled, _ = same(model.eval(), [toy_inputs([[3, (2, 3)]])], buckets=(8,))
    assert list(compiled.programs) == [(1, 8)]
    assert not torch.allclose(model.predict_depth(**toy_inputs([[3, (2, 3)]]))[0], plain, rtol=1e-3)


def test_training_and_gradients_never_take_the_compiled_way():
    model, inputs = toy_model(), toy_inputs([[3, (2, 3)]])
    compiled = compile_depth(model, backend="eager")
    labels = [torch.ones(64, 96)]
    model.train()(**inputs, depth_labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.depth_head.parameters())
    _, depth = model.run_backbone(True, text=False, **inputs)
    assert depth[0].requires_grad
    assert not compiled.programs


def test_words_are_those_of_the_model_that_is_not_compiled(checkpoint, caplog):
    question = {"prompt": "How far is the wall?", "max_new_tokens": 8, "fov": 60}
    [plain] = depthvlm.load(checkpoint, device="cpu").predict(picture(), **question)
    loaded = depthvlm.load(checkpoint, device="cpu", compile=True)
    with caplog.at_level(logging.WARNING, "depthvlm.compiling"):
        [compiled] = loaded.predict(picture(), **question)
    assert compiled.text == plain.text
    np.testing.assert_array_equal(compiled.depth, plain.depth)
    [message] = [record.getMessage() for record in caplog.records]
    assert "replies to a prompt" in message


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe", "glm4v"])
def test_other_families_are_refused_by_name(family, tmp_path):
    path = save_plain_checkpoint(tmp_path, family)
    with pytest.raises(ValueError, match=f"written for Qwen3-VL, and this model is a {family}"):
        depthvlm.load(path, device="cpu", compile=True, allow_untrained_head=True, depth_config=HEAD)


def test_other_attention_is_refused_by_name(checkpoint):
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        depthvlm.load(checkpoint, device="cpu", compile=True, attn_implementation="eager")


def test_a_failure_of_the_compiler_says_what_to_do():
    def broken(*_: Any) -> Any:
        raise OSError("no C++ compiler")

    model = toy_model()
    compile_depth(model, backend=broken)
    with pytest.raises(RuntimeError, match=r"(?s)no C\+\+ compiler.*Load the model without `compile`"):
        model.predict_depth(**toy_inputs([[3, (2, 3)]]))


def test_buckets_hold_every_picture_of_the_processor():
    greatest = depthvlm.DepthVLMImageProcessor().size["longest_edge"] // 32**2
    assert BUCKETS[-1] == greatest
    assert list(BUCKETS) == sorted(set(BUCKETS))
    # Padding is at most half of a picture, and a tenth at the usual data sets' sizes.
    assert all(bigger / (smaller + 1) <= 1.5 for smaller, bigger in pairwise(BUCKETS))
    for height, width in ((480, 640), (768, 1024), (352, 1216), (992, 1344)):
        tokens = height * width // 32**2
        assert min(size for size in BUCKETS if size >= tokens) <= 1.1 * tokens


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inductor_gives_nanos_depth(dtype):
    scenes = [render_scene(1_000_500_000 + index, kind=kind) for index in range(3) for kind in ("room", "street")]
    images, options = [scene.image for scene in scenes], {"focal_length": [scene.focal_length for scene in scenes]}
    compiled = depthvlm.load(device="cpu", dtype=dtype, compile=True)
    found = compiled.predict(images, batch_size=6, **options)
    assert list(compiled.model.run_backbone.programs) == [(8, 64)]
    plain, exact = (
        depthvlm.load(device="cpu", dtype=kind).predict(images, batch_size=6, **options) for kind in (dtype, "float32")
    )
    ours, models, truth = (np.concatenate([p.depth.ravel() for p in some]) for some in (found, plain, exact))
    difference = np.abs(ours / models - 1)
    if dtype == "float32":
        assert difference.max() <= 1e-5
        return
    assert np.median(difference) <= 1e-3
    # It is rounding: on average no further from float32 than the model itself is in bfloat16.
    assert np.mean(np.abs(ours / truth - 1)) <= 1.25 * np.mean(np.abs(models / truth - 1))


@pytest.mark.slow
def test_the_command_compiles(checkpoint, tmp_path, caplog):
    save_picture(tmp_path / "view.png")
    base = ["predict", tmp_path / "view.png", "--model", checkpoint, "--fov", "60", "--device", "cpu"]
    for name, options in {"plain": [], "compiled": ["--compile"]}.items():
        run(*base, "--formats", "npy", "--out", tmp_path / name, *options)
    assert "Compiled for a batch of 1 with up to 64 visual tokens" in caplog.text
    depths = [np.load(tmp_path / name / "view_depth.npy") for name in ("plain", "compiled")]
    np.testing.assert_allclose(depths[1], depths[0], rtol=1e-5)
