"""`compile=True` on a GPU: one CUDA graph a batch, and the depth of the model."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from depthvlm.benchmark.synthetic.scenes import render_scene
from torch.profiler import ProfilerActivity, profile

import depthvlm

SIZES = [(96, 128), (192, 256), (320, 240), (480, 640)]


def predict(model: Any, batch_size: int) -> list[np.ndarray]:
    scenes = [render_scene(1_000_500_000 + i, height=h, width=w) for i, (h, w) in enumerate(SIZES * 3)]
    lengths = [scene.focal_length for scene in scenes]
    predictions = model.predict([s.image for s in scenes], focal_length=lengths, batch_size=batch_size)
    return [prediction.depth for prediction in predictions]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_float32_depth_is_the_models(batch_size: int) -> None:
    expected = predict(depthvlm.load(device="cuda", dtype="float32"), batch_size)
    compiled = depthvlm.load(device="cuda", dtype="float32", compile=True)
    for _ in range(2):  # what a graph leaves behind must not reach the next batch
        for ours, models in zip(predict(compiled, batch_size), expected, strict=True):
            np.testing.assert_allclose(ours, models, rtol=1e-4)


def test_bfloat16_depth_differs_by_rounding() -> None:
    exact = np.concatenate([d.ravel() for d in predict(depthvlm.load(device="cuda", dtype="float32"), 4)])
    models, ours = (
        np.concatenate([d.ravel() for d in predict(depthvlm.load(device="cuda", dtype="bfloat16", compile=c), 4)])
        for c in (False, True)
    )
    assert np.median(np.abs(ours / models - 1)) <= 1e-3
    assert np.mean(np.abs(ours / exact - 1)) <= 1.25 * np.mean(np.abs(models / exact - 1))


def test_a_batch_is_one_cuda_graph() -> None:
    launches = {}
    for compiled in (False, True):
        model = depthvlm.load(device="cuda", dtype="bfloat16", compile=compiled)
        scene = render_scene(1_000_500_000)
        options = {"focal_length": scene.focal_length, "batch_size": 1}
        model.predict(scene.image, **options)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            model.predict(scene.image, **options)
            torch.cuda.synchronize()
        launches[compiled] = Counter({event.key: event.count for event in found.key_averages()})
    assert launches[True]["cudaGraphLaunch"] == 1
    kernels = [count["cudaLaunchKernel"] + count["cudaLaunchKernelExC"] for count in launches.values()]
    assert kernels[1] < kernels[0] / 2  # the head's own, and what prepares the inputs


def test_words_are_those_of_the_model() -> None:
    scene = render_scene(1_000_500_000)
    replies = [
        depthvlm.load(device="cuda", dtype="float32", compile=compiled)
        .predict(scene.image, fov=60.0, prompt="How many boxes are there?")[0]
        .text
        for compiled in (False, True)
    ]
    assert replies[0] == replies[1]
