"""A conversation goes on from the depth pass's cache, and says what a prefill of all of it would say."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from depthvlm.hub_cards.space.demo import deadline
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY
from fresh_reply import fresh_reply, runs_of
from toy_images import picture, save_picture

import depthvlm
from depthvlm import DepthPredictor
from depthvlm.conversation import Conversation, _stripped

QUESTIONS = [DEPTH_PROMPT, "How far is the wall?", "Wie weit? 多远?", "How far is the wall?"]


@pytest.fixture(scope="module")
def toy(checkpoint: str) -> DepthPredictor:
    return depthvlm.load(checkpoint, device="cpu")


@pytest.fixture(params=["toy", "nano"])
def model(request: pytest.FixtureRequest) -> DepthPredictor:
    return request.getfixturevalue(request.param)


def test_every_reply_is_that_of_a_fresh_prefill_of_the_whole_conversation(model):
    image = picture(96, 64)
    conversation = Conversation(image, model, focal_length=90.0)
    for number, question in enumerate(QUESTIONS):
        reply = conversation.ask(question, max_new_tokens=24)
        assert [turn["content"] for turn in conversation.messages[::2]] == QUESTIONS[: number + 1]
        assert reply == conversation.messages[-1]["content"]
        assert reply == fresh_reply(model, image, conversation.messages[:-1], 24, focal_length=90)


def test_the_depth_is_that_of_predict(model):
    image = picture(96, 64)
    conversation = Conversation(image, model, focal_length=90.0)
    [prediction] = model.predict(image, focal_length=90.0)
    np.testing.assert_allclose(conversation.depth, prediction.depth, rtol=1e-6)
    assert conversation.depth.shape == (64, 96)
    assert conversation.prediction.camera == prediction.camera
    assert conversation.prediction.image.tobytes() == image.tobytes()
    assert conversation.prediction.text is None


def test_one_image_pass_serves_depth_and_all_questions(model):
    network = model.model
    vision, words = network.model.visual, network.model.language_model
    with runs_of(vision) as tower, runs_of(network.depth_head) as head, runs_of(words) as llm:
        conversation = Conversation(picture(96, 64), model, focal_length=90.0)
        [prefill] = llm
        assert conversation.cached_tokens == prefill
        for number, question in enumerate(QUESTIONS):
            before = conversation.cached_tokens
            llm.clear()
            conversation.ask(question, max_new_tokens=5)
            # the question's tokens together, then one position a step; nothing of what was cached at the image
            assert llm[0] <= conversation.cached_tokens - prefill
            assert set(llm[1:]) <= {1}
            if number:
                assert conversation.cached_tokens > before
        assert (len(tower), len(head)) == (1, 1)


def test_the_earlier_turns_are_not_run_again(nano):
    """Nano's tokens of its own words are those of the words, so that its turns stay in the cache."""
    conversation = Conversation(picture(160, 120), nano, focal_length=150.0)
    conversation.ask(DEPTH_PROMPT)
    cached = conversation.cached_tokens
    with runs_of(nano.model.model.language_model) as llm:
        conversation.ask("Why?", max_new_tokens=3)
    words = "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    turn = len(nano.processor.tokenizer(words)["input_ids"])
    assert llm[0] == turn
    assert conversation.cached_tokens == cached + turn + len(llm) - 1


def test_conversations_that_take_turns_do_not_mix(model):
    """The grids differ, and with them the positions of the text after the image."""
    images = [picture(128, 64, 1), picture(64, 128, 2)]
    conversations = [Conversation(image, model, focal_length=100.0) for image in images]
    for question in QUESTIONS[1:3]:
        for image, conversation in zip(images, conversations, strict=True):
            reply = conversation.ask(question, max_new_tokens=16)
            assert reply == fresh_reply(model, image, conversation.messages[:-1], 16, focal_length=100)
        model.predict(picture(80, 80), fov=60.0, prompt="Something else", max_new_tokens=2)


def test_a_released_conversation_goes_on(model):
    image = picture(96, 64)
    kept, released = (Conversation(image, model, focal_length=90.0) for _ in range(2))
    with runs_of(model.model.model.visual) as tower:
        for question in QUESTIONS[:2]:
            released.release()
            assert released.cached_tokens == 0
            assert released.ask(question, max_new_tokens=8) == kept.ask(question, max_new_tokens=8)
    assert len(tower) == 2


def test_a_cleared_conversation_begins_anew(model):
    conversation = Conversation(picture(96, 64), model, focal_length=90.0)
    first = conversation.ask(QUESTIONS[1], max_new_tokens=8)
    conversation.ask(QUESTIONS[2], max_new_tokens=8)
    conversation.clear()
    assert conversation.messages == []
    with runs_of(model.model.model.visual) as tower:
        assert conversation.ask(QUESTIONS[1], max_new_tokens=8) == first
    assert tower == []


def test_a_generation_that_is_broken_off_leaves_nothing_behind(model):
    image = picture(96, 64)
    conversation = Conversation(image, model, focal_length=90.0)
    conversation.ask(QUESTIONS[1], max_new_tokens=4)
    calls = []

    def stop(*_) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError("stopped")

    handle = model.model.model.language_model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(TimeoutError, match="stopped"):
        conversation.ask("This is lost", max_new_tokens=8)
    handle.remove()
    assert len(conversation.messages) == 2
    reply = conversation.ask(QUESTIONS[2], max_new_tokens=8)
    assert reply == fresh_reply(model, image, conversation.messages[:-1], 8, focal_length=90)


def test_a_stream_is_the_reply_in_pieces_and_the_cache_the_same(model):
    image = picture(96, 64)
    streamed, whole = (Conversation(image, model, focal_length=90.0) for _ in range(2))
    with runs_of(model.model.model.visual) as tower:
        for question in QUESTIONS:
            pieces = list(streamed.stream(question, max_new_tokens=24))
            assert "".join(pieces) == whole.ask(question, max_new_tokens=24)
            assert all(pieces)
            assert streamed.messages == whole.messages
            assert streamed.cached_tokens == whole.cached_tokens
    assert tower == []


def test_nano_says_and_streams_its_sentence_word_by_word(nano):
    conversation = Conversation(picture(160, 120), nano, focal_length=150.0)
    assert conversation.ask(DEPTH_PROMPT) == DEPTH_REPLY
    conversation.clear()
    assert list(conversation.stream(DEPTH_PROMPT)) == [
        word if i == 0 else f" {word}" for i, word in enumerate(DEPTH_REPLY.split(" "))
    ]


def test_white_space_at_the_ends_is_left_out_and_within_is_kept():
    assert list(_stripped(["", " \n", " a ", "", "b\n", " \n", "c", " ", ""])) == ["a", " b", "\n \nc"]


def test_a_stream_that_is_left_stops_and_the_conversation_goes_on(nano):
    image = picture(96, 64)
    conversation = Conversation(image, nano, focal_length=90.0)
    threads = threading.active_count()
    with runs_of(nano.model.model.language_model) as llm:
        stream = conversation.stream(DEPTH_PROMPT, max_new_tokens=4000, min_new_tokens=4000)
        first = next(stream)
        stream.close()
    assert len(llm) < 4000
    assert threading.active_count() == threads
    said = conversation.messages[-1]
    assert said["role"] == "assistant"
    assert said["content"].startswith(first)
    reply = conversation.ask(QUESTIONS[2], max_new_tokens=8)
    assert reply == fresh_reply(nano, image, conversation.messages[:-1], 8, focal_length=90)


def test_a_stream_that_is_left_does_not_run_into_the_next_conversation(nano):
    first, second = (Conversation(picture(*size), nano, focal_length=100.0) for size in ((128, 64), (64, 128)))
    stream = first.stream(DEPTH_PROMPT, max_new_tokens=4000, min_new_tokens=4000)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(second.ask, QUESTIONS[1], max_new_tokens=8)
        stream.close()
    assert reply.result() == fresh_reply(nano, picture(64, 128), second.messages[:-1], 8, focal_length=100)


def test_errors_come_out_of_a_stream(model):
    conversation = Conversation(picture(96, 64), model, focal_length=90.0)
    with pytest.raises(ValueError, match="question is empty"):
        list(conversation.stream(" "))
    with pytest.raises(TimeoutError, match="longer than 0 seconds"), deadline(model.model, 0.0):
        list(conversation.stream(QUESTIONS[1]))
    assert conversation.messages == []
    assert list(conversation.stream(QUESTIONS[1], max_new_tokens=4))


def test_a_camera_and_a_file(toy, tmp_path):
    save_picture(tmp_path / "view.png")
    conversation = Conversation(tmp_path / "view.png", toy, fov=90.0)
    assert conversation.prediction.camera.fx == pytest.approx(40)
    with pytest.warns(UserWarning, match="focal length"):
        assert Conversation(tmp_path / "view.png", toy).prediction.camera.source == "assumed"


def test_bad_questions_and_a_template_that_changes_what_is_before_the_image(toy):
    conversation = Conversation(picture(), toy, fov=60.0)
    for question, message in (("What is <|image_pad|>?", r"holds <\|image_pad\|>, a control"), ("  \n", "is empty")):
        with pytest.raises(ValueError, match=message):
            conversation.ask(question)
    assert conversation.messages == []
    conversation._system = "Written otherwise."
    with pytest.raises(RuntimeError, match="before the image differently"):
        conversation.ask("Hi")
