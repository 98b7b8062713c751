"""Every family of backbones through `load`, `predict` and `Conversation`: metres and words as of a fresh prefill."""

from pathlib import Path

import numpy as np
import pytest
import torch
from depthvlm.hub_cards.space.demo import deadline
from fresh_reply import fresh_reply, runs_of
from toy_families import FAMILY_NAMES, HEAD, save_plain_checkpoint
from toy_images import picture
from toy_models import last_layer

import depthvlm
from depthvlm import Conversation, DepthPredictor, DepthVLMForConditionalGeneration, DepthVLMProcessor

QUESTIONS = ["How far is the wall?", "And the door?", "Wie weit? 多远?"]


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain_checkpoint(tmp_path_factory.mktemp(family) / "plain", family)


@pytest.fixture(scope="module")
def model(plain: Path) -> DepthPredictor:
    """A checkpoint whose head varies, as `load` takes it from its folder."""
    folder = plain.with_name("ours")
    network = DepthVLMForConditionalGeneration.from_pretrained(plain, depth_config=HEAD)
    torch.manual_seed(0)
    torch.nn.init.normal_(last_layer(network.depth_head).weight, std=30.0)
    network.save_pretrained(folder)
    DepthVLMProcessor.from_pretrained(plain).save_pretrained(folder)
    return depthvlm.load(folder, device="cpu")


def test_a_plain_checkpoint_needs_leave_and_then_says_one_metre(plain):
    with pytest.raises(ValueError, match="its depth head was never trained"):
        depthvlm.load(plain, device="cpu", depth_config=HEAD)
    loaded = depthvlm.load(plain, device="cpu", depth_config=HEAD, allow_untrained_head=True)
    [prediction] = loaded.predict(picture(96, 64), fov=60)
    np.testing.assert_allclose(prediction.depth, 1.0, rtol=0.1)


def test_words_and_metres_of_a_batch_are_those_of_each_alone(model):
    images = [picture(96, 64), picture(64, 120, 1), picture(200, 60, 2)]
    together = model.predict(images, fov=60, prompt="How far?", max_new_tokens=6)
    for image, prediction in zip(images, together, strict=True):
        [alone] = model.predict(image, fov=60)
        assert prediction.depth.shape == image.size[::-1]
        assert prediction.depth.std() > 0.05
        np.testing.assert_allclose(prediction.depth, alone.depth, rtol=1e-3, atol=1e-3)
        turns = [{"role": "user", "content": "How far?"}]
        assert prediction.text == fresh_reply(model, image, turns, 6, focal_length=prediction.camera.focal_length)


def test_every_reply_of_a_conversation_is_that_of_a_fresh_prefill(model, family):
    """Also where a reply is written anew otherwise than it was said, and where the questions begin anew."""
    image, network = picture(96, 64), model.model
    with runs_of(network.model.visual) as tower, runs_of(network.depth_head) as head:
        conversation = Conversation(image, model, focal_length=90.0)
        for question in QUESTIONS:
            reply = conversation.ask(question, max_new_tokens=12)
            turns = conversation.messages[:-1]
            seen, heads = len(tower), len(head)
            assert reply == fresh_reply(model, image, turns, 12, focal_length=90.0)
            del tower[seen:], head[heads:]
        conversation.messages[1]["content"] = "Two metres."
        reply = conversation.ask("Sure?", max_new_tokens=12)
        assert len(tower) == len(head) == 1
    assert reply == fresh_reply(model, image, conversation.messages[:-1], 12, focal_length=90.0)
    conversation.clear()
    reply = conversation.ask(QUESTIONS[1], max_new_tokens=12)
    assert reply == fresh_reply(model, image, conversation.messages[:-1], 12, focal_length=90.0)
    [prediction] = model.predict(image, focal_length=90.0)
    np.testing.assert_allclose(conversation.depth, prediction.depth, rtol=1e-3, atol=1e-3)


def test_the_demo_breaks_off_a_request_between_two_layers(model):
    with deadline(model.model, 0.0), pytest.raises(TimeoutError, match="longer than 0 seconds"):
        Conversation(picture(96, 64), model, focal_length=90.0)


def test_a_conversation_goes_on_after_its_memory_was_given_back(model):
    image = picture(96, 64)
    conversation = Conversation(image, model, focal_length=90.0)
    conversation.ask(QUESTIONS[0], max_new_tokens=4)
    conversation.release()
    assert conversation.cached_tokens == 0
    reply = "".join(conversation.stream(QUESTIONS[1], max_new_tokens=8))
    assert reply == fresh_reply(model, image, conversation.messages[:-1], 8, focal_length=90.0)


def test_a_cache_that_cannot_be_cut_is_kept_where_the_conversation_only_grows(model, family):
    """One more turn runs its own tokens alone, whatever the attention is."""
    conversation = Conversation(picture(96, 64), model, focal_length=90.0)
    assert (conversation._image_cache is not None) == family.startswith("qwen3_5")
    conversation.ask(QUESTIONS[0], max_new_tokens=4)
    ids = conversation._token_ids([*conversation.messages, {"role": "user", "content": "?"}])
    cached = conversation.cached_tokens
    kept = ids[:cached] == conversation._cached_ids
    with runs_of(model.model.model.language_model) as llm:
        conversation.ask("?", max_new_tokens=2)
    image_end = len(ids) - ids[::-1].index(model.model.config.image_token_id)
    begins = cached if kept else image_end if family.startswith("qwen3_5") else None
    if begins is not None:
        assert llm[0] == len(ids) - begins


def test_the_saved_processor_is_the_familys(model, family):
    names = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "glm46v": "Glm46VProcessor", "glm4v": "Glm46VProcessor"}
    assert type(model.processor).__name__ == f"DepthVLM{names.get(family, 'Processor')}"
