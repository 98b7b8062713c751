"""`depthvlm serve` with a real vLLM on a CPU: depth and words of the bundled model, as transformers gives them."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
import vllm  # noqa: F401  (without it this module fails: it is never skipped)
from PIL import Image

import depthvlm
from depthvlm import DepthPredictor

NAME = "depthvlm-nano"


@contextmanager
def server(*options: str) -> Iterator[str]:
    """The command that a user types; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ("--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager")
    command = [sys.executable, "-m", "depthvlm", "serve", NAME, *options, *limits, "--host", "127.0.0.1"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen([*command, "--port", str(port)], cwd=tempfile.gettempdir(), env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server stopped"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def post(address: str, path: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        address + path, json.dumps({"model": NAME, **content}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def depth_of(address: str, images: list[bytes], **request: Any) -> list[dict[str, Any]]:
    encoded = [base64.b64encode(image).decode() for image in images]
    return post(address, "/pooling", {"task": "plugin", "data": {"image": encoded, **request}})["data"]


def decoded(answer: dict[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(answer["depth"])))


def picture(width: int, height: int, seed: int) -> bytes:
    room = Image.open(io.BytesIO(asset("room.jpg"))).rotate(10 * seed).resize((width, height))
    stream = io.BytesIO()
    room.save(stream, "PNG")
    return stream.getvalue()


def asset(name: str) -> bytes:
    return resources.files("depthvlm").joinpath("assets", name).read_bytes()


@pytest.fixture(scope="module")
def ours() -> DepthPredictor:
    return depthvlm.load(NAME, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def depth() -> Iterator[str]:
    # Chunks of 100 tokens: the 300 of an image of 480x640 come in three.
    with server("--dtype", "float32", "--max-num-batched-tokens", "100") as address:
        yield address


def test_depth_is_that_of_transformers_at_the_pictures_own_size(depth, ours):
    images = [asset("room.jpg"), asset("street.jpg"), picture(333, 250, 1)]
    answers = depth_of(depth, images, fov=[60, 60, None], focal_length=[None, None, 300])
    expected = ours.predict(images, fov=[60, 60, None], focal_length=[None, None, 300], batch_size=1)
    for answer, prediction in zip(answers, expected, strict=True):
        np.testing.assert_allclose(decoded(answer), prediction.depth, rtol=1e-4)
        assert answer["shape"] == list(prediction.depth.shape)
        assert answer["camera"]["fx"] == pytest.approx(prediction.camera.fx)
    assert [answer["source"] for answer in answers] == ["fov", "fov", "focal_length"]


def test_a_png_holds_the_same_in_its_unit(depth, ours):
    [answer] = depth_of(depth, [asset("room.jpg")], fov=60, format="png16")
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["depth"]))))
    expected = ours.predict(asset("room.jpg"), fov=60)[0].depth
    np.testing.assert_allclose(values / answer["depth_scale"], expected, atol=0.51 / answer["depth_scale"])


def test_sixty_four_at_once_of_mixed_sizes_get_their_own_depth(depth, ours):
    sizes = [(640, 480), (320, 240), (200, 400), (512, 288)]
    images = [picture(*sizes[seed % 4], seed) for seed in range(16)]
    with ThreadPoolExecutor(64) as clients:
        found = list(clients.map(lambda index: depth_of(depth, [images[index % 16]], fov=60)[0], range(64)))
    expected = ours.predict(images, fov=60, batch_size=1)
    for index, answer in enumerate(found):
        np.testing.assert_allclose(decoded(answer), expected[index % 16].depth, rtol=1e-4)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"image": "AAAA"}, "image"),
        ({"image": "not base64!"}, "base64"),
        ({"image": "http://127.0.0.1/x.png"}, "fetches nothing"),
        ({"image": base64.b64encode(b"x").decode(), "lens": 3}, "lens"),
        ({"focal_length": -1}, "focal_length"),
        ({"fov": [60, 60]}, "fov"),
    ],
)
def test_a_bad_request_is_told_and_the_next_one_is_answered(depth, request_, told):
    content = {"image": base64.b64encode(asset("room.jpg")).decode()} | request_
    with pytest.raises(urllib.error.HTTPError) as error:
        post(depth, "/pooling", {"task": "plugin", "data": content})
    assert error.value.code == 400
    assert told in error.value.read().decode()
    assert len(depth_of(depth, [picture(320, 240, 0)], fov=60)) == 1


def test_a_client_that_goes_away_takes_nothing_with_it(depth):
    host, port = depth.removeprefix("http://").split(":")
    data = {"model": NAME, "task": "plugin", "data": {"image": base64.b64encode(asset("room.jpg")).decode()}}
    body = json.dumps(data).encode()
    for _ in range(4):
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /pooling HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert len(depth_of(depth, [picture(320, 240, 0)], fov=60)) == 1


def test_words_are_those_of_transformers():
    questions = ["How far away is the nearest object, in metres?", "What is in the picture?"]
    ours = depthvlm.load(NAME, device="cpu", dtype="float32")
    with server("--words", "--dtype", "float32", "--max-num-batched-tokens", "2048") as address:
        for question in questions:
            url = f"data:image/jpeg;base64,{base64.b64encode(asset('room.jpg')).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
            answer = post(
                address,
                "/v1/chat/completions",
                {
                    "messages": [
                        {"role": "system", "content": "You are a helpful assistant."},
                        {"role": "user", "content": content},
                    ],
                    "temperature": 0,
                    "max_tokens": 32,
                },
            )
            with torch.inference_mode():
                expected = ours.predict(asset("room.jpg"), prompt=question, max_new_tokens=32)[0].text
            assert answer["choices"][0]["message"]["content"].strip() == expected
