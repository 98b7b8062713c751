"""`depthvlm serve` with a real vLLM on a CPU: depth and words of the bundled model, as transformers gives them."""

import base64
import io
import json
import os
import shutil
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vllm  # noqa: F401  (without it this module fails: it is never skipped)
import yaml
from peft import LoraConfig, PeftConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

import depthvlm
from depthvlm import DepthPredictor
from depthvlm.checkpoint import bundled_model_path

NAME = "depthvlm-nano"


@contextmanager
def server(*options: str, model: str = NAME) -> Iterator[str]:
    """The command that a user types; yields the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ("--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager")
    command = [
        sys.executable,
        "-m",
        "depthvlm",
        "serve",
        model,
        "--served-model-name",
        NAME,
        *options,
        *limits,
        "--host",
        "127.0.0.1",
    ]
    # Its automatic binding of threads wants a NUMA node for each rank.
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
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


def post(address: str, path: str, content: dict[str, Any], request_id: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"X-Request-Id": request_id} if request_id else {})
    request = urllib.request.Request(address + path, json.dumps({"model": NAME, **content}).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def depth_of(address: str, images: list[bytes], **request: Any) -> list[dict[str, Any]]:
    return post(address, "/pooling", {"task": "plugin", "data": {"image": encoded(images), **request}})["data"]


def encoded(images: list[bytes]) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


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
    with server("--dtype", "float32", "--max-num-batched-tokens", "100", "--enable-prefix-caching") as address:
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


def test_v1_depth_answers_with_the_list_alone(depth):
    images = [asset("room.jpg"), picture(320, 240, 1)]
    expected = depth_of(depth, images, fov=60)
    assert post(depth, "/v1/depth", {"image": encoded(images), "fov": 60}) == expected
    [one] = post(
        depth, "/v1/depth", {"model": None, "image": encoded(images)[0], "fov": 60}
    )  # the model may be left out
    assert one == expected[0]


@pytest.mark.parametrize(
    ("request_", "code", "told"),
    [
        ({"image": "AAAA"}, 400, "image"),
        ({"lens": 3}, 400, "lens"),
        ({"fov": -3}, 400, "fov"),
        ({"model": "other"}, 404, "other"),
    ],
)
def test_v1_depth_tells_what_is_wrong(depth, request_, code, told):
    [image] = encoded([asset("room.jpg")])
    with pytest.raises(urllib.error.HTTPError) as error:
        post(depth, "/v1/depth", {"image": image} | request_)
    assert error.value.code == code
    assert told in error.value.read().decode()


def test_a_prefix_cache_serves_no_other_images_depth(depth, ours):
    with urllib.request.urlopen(f"{depth}/metrics") as metrics:
        assert 'enable_prefix_caching="True"' in metrics.read().decode()
    # One size and one prompt. 120 and 130 degrees are the same input to the model, as large as it may be, and differ
    # in the focal scale alone.
    requests = [(picture(320, 240, seed), fov) for seed in (0, 1) for fov in (60, 120, 130)]
    expected = [ours.predict(image, fov=fov)[0].depth for image, fov in requests]
    for one, other in ((0, 1), (1, 2), (0, 3), (1, 4), (2, 5)):
        assert not np.allclose(expected[one], expected[other], rtol=1e-2)
    in_turn = [0, 3, 0, 3, 1, 0, 4, 2, 5, 2, 0]
    with ThreadPoolExecutor(8) as clients:
        found = [depth_of(depth, [requests[index][0]], fov=requests[index][1])[0] for index in in_turn]
        at_once = list(range(6)) * 4
        found += clients.map(lambda index: depth_of(depth, [requests[index][0]], fov=requests[index][1])[0], at_once)
    for index, answer in zip(in_turn + at_once, found, strict=True):
        np.testing.assert_allclose(decoded(answer), expected[index], rtol=1e-4)


def test_clients_that_send_the_same_request_id_get_their_own_depth_or_are_told(depth, ours):
    images = [picture(320, 240, seed) for seed in range(8)]

    def ask(index: int) -> Any:
        try:
            return post(depth, "/v1/depth", {"image": encoded(images[index : index + 1]), "fov": 60}, "one")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(8)))
    told = [answer for answer in answers if isinstance(answer, tuple)]
    assert len(told) < 8
    assert all(code == 400 and "X-Request-Id" in text for code, text in told)
    for image, answer in zip(images, answers, strict=True):
        if answer not in told:
            np.testing.assert_allclose(decoded(answer[0]), ours.predict(image, fov=60)[0].depth, rtol=1e-4)


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


def test_a_client_that_goes_away_takes_nothing_with_it(depth, ours):
    host, port = depth.removeprefix("http://").split(":")
    [image] = encoded([asset("room.jpg")])
    body = json.dumps({"model": NAME, "task": "plugin", "data": {"image": image}}).encode()
    for index in range(4):
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /pooling HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: gone-{index}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
    for index in range(4):
        given = picture(320, 240, index)
        answer = answer_of_free_id(depth, {"image": encoded([given]), "fov": 60}, f"gone-{index}")
        np.testing.assert_allclose(decoded(answer), ours.predict(given, fov=60)[0].depth, rtol=1e-4)


def answer_of_free_id(address: str, content: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Ask until the server has noticed that the client with this id has gone."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return post(address, "/v1/depth", content, request_id)[0]
        except urllib.error.HTTPError as error:
            if "X-Request-Id" not in error.read().decode() or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_depth_in_bfloat16_is_as_near_as_its_rounding(ours):
    images = [asset("room.jpg"), asset("street.jpg"), picture(333, 250, 1), picture(200, 400, 2)]
    rounded = depthvlm.load(NAME, device="cpu", dtype="bfloat16")
    with server("--dtype", "bfloat16", "--max-num-batched-tokens", "2048") as address:
        answers = depth_of(address, images, fov=60)
    for image, answer in zip(images, answers, strict=True):
        found, expected, exact = (decoded(answer), *(one.predict(image, fov=60)[0].depth for one in (rounded, ours)))
        assert np.median(np.abs(found - expected) / expected) < 1e-2
        # At edges transformers' own bfloat16 is further from float32 than that: vLLM's may be twice as far.
        errors = [np.quantile(np.abs(one - exact) / exact, 0.99) for one in (found, expected)]
        assert errors[0] < 2 * errors[1]


def test_depth_of_a_checkpoint_with_an_int8_llm(tmp_path, ours):
    images = [asset("room.jpg"), asset("street.jpg")]
    int8_checkpoint(tmp_path / "int8")
    with server("--dtype", "bfloat16", model=str(tmp_path / "int8")) as address:
        answers = depth_of(address, images, fov=60)
    for image, answer in zip(images, answers, strict=True):
        expected = ours.predict(image, fov=60)[0].depth
        median, most = np.quantile(np.abs(decoded(answer) - expected) / expected, [0.5, 0.99])
        assert median < 5e-3
        assert most < 2e-2


def int8_checkpoint(folder: Path) -> None:
    """Write the bundled model with the LLM's linear layers in int8, a scale for each row (compressed-tensors)."""
    shutil.copytree(bundled_model_path(), folder)
    weights = load_file(folder / "model.safetensors")
    for name in [one for one in weights if "language_model.layers" in one and one.endswith("proj.weight")]:
        weight = weights[name].float()
        weights[f"{name}_scale"] = weight.abs().amax(1, keepdim=True) / 127
        weights[name] = (weight / weights[f"{name}_scale"]).round().to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": int8 | {"strategy": "channel", "dynamic": False},
        "input_activations": int8 | {"strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*visual.*", "re:.*depth_head.*"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))


def words_of(address: str, model: str, question: str) -> str:
    url = f"data:image/jpeg;base64,{base64.b64encode(asset('room.jpg')).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]
    request = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 32}
    return post(address, "/v1/chat/completions", request)["choices"][0]["message"]["content"].strip()


@torch.inference_mode()
def test_words_are_those_of_transformers_with_and_without_an_adapter_on_two_ranks(tmp_path):
    questions = ["How far away is the nearest object, in metres?", "What is in the picture?"]
    ours = depthvlm.load(NAME, device="cpu", dtype="float32")
    plain = [ours.predict(asset("room.jpg"), prompt=question, max_new_tokens=32)[0].text for question in questions]
    words_adapter(ours.model, tmp_path)
    adapted = [ours.predict(asset("room.jpg"), prompt=question, max_new_tokens=32)[0].text for question in questions]
    assert adapted != plain
    lora = ("--enable-lora", "--lora-modules", f"adapter={tmp_path / 'words'}")
    with server("--words", "--dtype", "float32", "--tensor-parallel-size", "2", *lora) as address:
        assert [words_of(address, NAME, question) for question in questions] == plain
        assert [words_of(address, "adapter", question) for question in questions] == adapted


def words_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Put an adapter into a model, as the recipe does but stronger, and save it as docs/serving.md says."""
    recipe = yaml.safe_load((Path(__file__).parents[2] / "training" / "recipes" / "lora_1gpu.yaml").read_text())
    torch.manual_seed(0)
    options = {"target_modules": recipe["lora_target_modules"], "modules_to_save": ["depth_head"]}
    config = LoraConfig(r=recipe["lora_r"], lora_alpha=4 * recipe["lora_alpha"], init_lora_weights=False, **options)
    get_peft_model(model, config).save_pretrained(folder / "trained")
    config = PeftConfig.from_pretrained(folder / "trained")
    config.modules_to_save = None
    config.save_pretrained(folder / "words")
    shutil.copy(folder / "trained" / "adapter_model.safetensors", folder / "words")
