"""One loaded model in several threads: unlike images, each with the depth and the words that it has alone."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from depthvlm.benchmark.synthetic.scenes import render_scene
from PIL import Image
from toy_models import toy_inputs, toy_model
from transformers import pipeline

import depthvlm
from depthvlm.checkpoint import resolve_model_path
from depthvlm.conversation import Conversation

SIZES = [(96, 64), (64, 128), (128, 96), (160, 64)]
PICTURES = [
    Image.fromarray(render_scene(seed, width=width, height=height).image)
    for seed, (width, height) in enumerate(SIZES, 1)
]
ROUNDS = 2


@pytest.fixture(scope="module")
def nano():
    return depthvlm.load(device="cpu")


def predict(nano, index):
    [prediction] = nano.predict(PICTURES[index], focal_length=160, prompt="How far is the crate?", max_new_tokens=6)
    return prediction.depth, prediction.text


def converse(nano, index):
    conversation = Conversation(PICTURES[index], nano, focal_length=160)
    replies = [conversation.ask(text, max_new_tokens=6) for text in ("What is there?", "And behind it?")]
    return conversation.depth, replies


@pytest.fixture(scope="module")
def estimate(nano):
    run = pipeline("depth-estimation", model=str(resolve_model_path("depthvlm-nano")))
    return lambda _, index: (run(PICTURES[index])["predicted_depth"].numpy(), None)


@pytest.fixture(scope="module")
def chat(nano):
    run = pipeline("image-text-to-text", model=str(resolve_model_path("depthvlm-nano")))

    def ask(_, index):
        content = [{"type": "image", "image": PICTURES[index]}, {"type": "text", "text": "What color is the crate?"}]
        [reply] = run(text=[{"role": "user", "content": content}], generate_kwargs={"max_new_tokens": 6})
        return np.zeros(1), reply["generated_text"][-1]["content"]

    return ask


@pytest.mark.filterwarnings("ignore:The focal length")
@pytest.mark.parametrize("name", ["predict", "converse", "estimate", "chat"])
def test_each_thread_gets_its_own_answer(name, nano, request):
    work = {"predict": predict, "converse": converse}.get(name) or request.getfixturevalue(name)
    alone = [work(nano, index) for index in range(len(PICTURES))]
    assert not np.array_equal(alone[0][0], alone[1][0]) or name == "chat"
    order = list(range(len(PICTURES))) * ROUNDS
    with ThreadPoolExecutor(len(PICTURES)) as pool:
        results = list(pool.map(partial(work, nano), order))
    for index, (depth, words) in zip(order, results, strict=True):
        np.testing.assert_array_equal(depth, alone[index][0])
        assert words == alone[index][1]


@pytest.mark.parametrize("source", ["vit+llm", "llm"])
def test_generate_and_words_by_hand(source):
    """Also with states of inner layers, beams, and a cache that is gone on with by hand."""
    model = toy_model({"feature_source": source})
    batches = [toy_inputs([[2, (2, 3), 4]]), toy_inputs([[5, (4, 1), 2]]), toy_inputs([[(3, 3), 1]])]

    def work(index):
        beams = {"num_beams": 2} if index == 1 else {}
        output = model.generate(**batches[index], **beams, max_new_tokens=5, return_dict_in_generate=True)
        with torch.no_grad():
            prefill = model(**batches[index], use_cache=True)
            word = prefill.logits[:, -1:].argmax(-1)
            after = model(input_ids=word, past_key_values=prefill.past_key_values).logits
        return output.predicted_depth[0], output.sequences, after

    alone = [work(index) for index in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for index, found in zip([0, 1, 2] * 6, pool.map(work, [0, 1, 2] * 6), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found, alone[index], strict=True))
