"""The demo's queue with several visitors at once: who waits, who is sent away and told so, and that replies stream."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from demo_process import Visitor, serving
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY
from PIL import Image
from toy_images import picture, png_of

from depthvlm import DepthPredictor
from depthvlm.conversation import Conversation

WAITING = 2
PICTURE = png_of(picture(96, 64))
SECONDS = 300  # until a test gives up; the steps take one or two


@pytest.fixture
def url(nano: DepthPredictor, tmp_path: Path) -> Iterator[str]:
    with serving(nano, tmp_path / "served", waiting=WAITING) as (_, address):
        yield address


def test_more_visitors_than_can_wait_are_told_and_the_others_are_served(nano, url, tmp_path):
    at_work, go_on = threading.Event(), threading.Event()

    def hold(*_) -> None:
        at_work.set()
        assert go_on.wait(SECONDS)

    visitors = [Visitor(url) for _ in range(WAITING + 3)]
    paths = [visitor.upload("a.png", PICTURE).json()[0] for visitor in visitors]
    handle = nano.model.model.visual.register_forward_pre_hook(hold)
    try:
        answers = [visitors[0].join("measure", visitors[0].photo(paths[0]), 90.0)]
        assert at_work.wait(SECONDS)
        others = zip(visitors[1:], paths[1:], strict=True)
        answers += [visitor.join("measure", visitor.photo(path), 90.0) for visitor, path in others]
    finally:
        go_on.set()
        handle.remove()
    # One at the model, two waiting; the page shows what Gradio has for 503: "currently busy. Please try again."
    assert [answer.status_code for answer in answers] == [200] * (1 + WAITING) + [503, 503]
    assert "Queue is full" in answers[-1].json()["detail"]
    for visitor in visitors[: 1 + WAITING]:
        *_, last = visitor.messages()
        assert last["success"], last
        assert visitor.run("write")["success"]  # files are offered to everyone whose picture was measured
    assert visitors[-1].run("measure", visitors[-1].photo(paths[-1]), 90.0)["success"]  # later there is room


def test_a_reply_comes_word_by_word(url, tmp_path):
    visitor = Visitor(url)
    [path] = visitor.upload("a.png", PICTURE).json()
    assert visitor.run("measure", visitor.photo(path), 90.0)["success"]
    assert visitor.join("ask", None, DEPTH_PROMPT).status_code == 200
    *before, last = visitor.messages()
    assert last["success"]
    assert DEPTH_REPLY in str(last["output"]["data"])
    steps = [message for message in before if message["msg"] == "process_generating"]
    assert len(steps) >= len(DEPTH_REPLY.split(" "))


def test_visitors_at_once_get_their_own_metres_and_words(nano, tmp_path):
    room = Image.open(REPOSITORY / "depthvlm" / "assets" / "room.jpg")
    pictures, questions = [], [DEPTH_PROMPT, "What color is the crate?", "Hi", "How many crates are there?"]
    for number in range(5):
        size = (96 + 32 * number, 64 + 16 * number)
        pictures.append(Image.blend(room.resize(size), picture(*size, seed=number), 0.05 * number))
    expected = []
    for number, image in enumerate(pictures):
        alone = Conversation(image, nano, focal_length=100.0 + number)
        expected.append((alone.depth, alone.ask(questions[number % 4], max_new_tokens=16)))
    assert len({words for _, words in expected}) > 1

    def visit(number: int) -> tuple[np.ndarray, str]:
        visitor = Visitor(url)
        [path] = visitor.upload("a.png", png_of(pictures[number])).json()
        view = visitor.run("measure", visitor.photo(path), 100.0 + number)["output"]["data"][1]
        chat = visitor.run("ask", None, questions[number % 4])["output"]["data"][1]
        shape = (len(view["rows"]), len(view["columns"]))
        depth = visitor.client.get(view["depth"]["url"]).raise_for_status().content
        return np.frombuffer(depth, "<f4").reshape(shape), chat[-1]["content"][0]["text"]

    with serving(nano, tmp_path / "served", new_tokens=16) as (_, url), ThreadPoolExecutor(5) as pool:
        found = list(pool.map(visit, range(5)))
    for (depth, words), (right_depth, right_words) in zip(found, expected, strict=True):
        np.testing.assert_allclose(depth, right_depth, rtol=1e-5)
        assert words == right_words
