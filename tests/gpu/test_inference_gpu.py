"""The bundled model on a GPU: the CPU's numbers and words, and no waiting that plain Qwen3-VL does without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from depthvlm.benchmark.synthetic.scenes import render_scene
from transformers import Qwen3VLForConditionalGeneration

import depthvlm

SEED = 1_000_500_000  # held-out scenes
QUESTIONS = ("How many boxes are there?", "What is the nearest object?", "Is there a red ball?")


def scenes(count: int) -> list[Any]:
    return [render_scene(SEED + index, kind=kind) for index in range(count) for kind in ("room", "street")]


def predict(found: list[Any], **options: Any) -> list[np.ndarray]:
    model = depthvlm.load(**options)
    predictions = model.predict([s.image for s in found], focal_length=[s.focal_length for s in found], batch_size=4)
    return [prediction.depth for prediction in predictions]


def test_float32_depth_is_the_cpus() -> None:
    found = scenes(4)
    expected = predict(found, device="cpu", dtype="float32")
    for ours, cpus in zip(predict(found, device="cuda", dtype="float32"), expected, strict=True):
        np.testing.assert_allclose(ours, cpus, rtol=1e-3)


def test_half_precision_keeps_delta1() -> None:
    found = scenes(15)
    delta1 = []
    for scene, depth in zip(found, predict(found, device="cuda", dtype="bfloat16"), strict=True):
        valid = scene.depth > 0
        ratio = depth[valid] / scene.depth[valid]
        delta1.append(np.mean(np.maximum(ratio, 1 / ratio) < 1.25))
    assert np.mean(delta1) >= 0.93


@pytest.mark.parametrize("question", QUESTIONS)
def test_words_are_the_cpus(question: str) -> None:
    images = [scene.image for scene in scenes(2)]
    replies = [
        [p.text for p in depthvlm.load(device=device, dtype="float32").predict(images, fov=60.0, prompt=question)]
        for device in ("cpu", "cuda")
    ]
    assert replies[0] == replies[1]


def test_depth_waits_for_the_gpu_no_more_often_than_a_plain_prefill(
    count_syncs: Callable[[Callable[[], Any]], int],
) -> None:
    found = scenes(2)
    loaded = depthvlm.load(device="cuda", dtype="bfloat16")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": depthvlm.processing.DEPTH_PROMPT}]}
    ]
    text = loaded.processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = loaded.processor(
        text=[text] * len(found),
        images=[s.image for s in found],
        focal_length=[s.focal_length for s in found],
        padding=True,
        return_tensors="pt",
    ).to("cuda")
    inputs.pop("cameras", None)
    focal_scale = inputs.pop("focal_scale")
    model = loaded.model
    with torch.no_grad():
        plain = count_syncs(lambda: Qwen3VLForConditionalGeneration.forward(model, **inputs, logits_to_keep=1))
        depth = count_syncs(lambda: model.predict_depth(**inputs, focal_scale=focal_scale))
    assert depth <= plain
