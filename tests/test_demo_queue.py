"""The demo's queue with several visitors at once: who waits, who is sent away and told so, and that replies stream."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_process import Visitor
from depthvlm.hub_cards.demo import Demo
from depthvlm.hub_cards.demo_limits import Limits
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY
from PIL import Image

import depthvlm
from depthvlm import DepthVLM
from depthvlm._bundled import BUNDLED_MODEL

WAITING = 2
SECONDS = 300  # until a test gives up; the steps take one or two


@pytest.fixture(scope="module")
def nano() -> DepthVLM:
    return depthvlm.load(BUNDLED_MODEL, device="cpu")


@pytest.fixture
def url(nano: DepthVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    page = Demo(nano, Limits(waiting=WAITING)).page()
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield address
    page.close()


def picture(folder: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return (folder / "a.png").read_bytes()


def test_more_visitors_than_can_wait_are_told_and_the_others_are_served(nano, url, tmp_path):
    at_work, go_on = threading.Event(), threading.Event()

    def hold(*_) -> None:
        at_work.set()
        assert go_on.wait(SECONDS)

    visitors = [Visitor(url) for _ in range(WAITING + 3)]
    [path] = visitors[0].upload("a.png", picture(tmp_path)).json()
    handle = nano.model.model.visual.register_forward_pre_hook(hold)
    try:
        answers = [visitors[0].join("measure", visitors[0].photo(path), 90.0)]
        assert at_work.wait(SECONDS)
        answers += [visitor.join("measure", visitor.photo(path), 90.0) for visitor in visitors[1:]]
    finally:
        go_on.set()
        handle.remove()
    # One at the model, two waiting; the page shows what Gradio has for 503: "currently busy. Please try again."
    assert [answer.status_code for answer in answers] == [200] * (1 + WAITING) + [503, 503]
    assert "Queue is full" in answers[-1].json()["detail"]
    for visitor in visitors[: 1 + WAITING]:
        *_, last = visitor.messages()
        assert last["success"], last
    assert visitors[-1].run("measure", visitors[-1].photo(path), 90.0)["success"]  # later there is room


def test_a_reply_comes_word_by_word(url, tmp_path):
    visitor = Visitor(url)
    [path] = visitor.upload("a.png", picture(tmp_path)).json()
    assert visitor.run("measure", visitor.photo(path), 90.0)["success"]
    assert visitor.join("ask", None, DEPTH_PROMPT).status_code == 200
    *before, last = visitor.messages()
    assert last["success"]
    assert DEPTH_REPLY in str(last["output"]["data"])
    steps = [message for message in before if message["msg"] == "process_generating"]
    assert len(steps) >= len(DEPTH_REPLY.split(" "))
