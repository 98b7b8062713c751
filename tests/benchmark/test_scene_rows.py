"""Rows of synthetic scenes: held-out questions, what a row holds, shards and their seeds."""

import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from depthvlm.benchmark.synthetic.dialogues import CAPTION_PROMPT, KINDS, MAP_PROMPT, object_map, questions
from depthvlm.benchmark.synthetic.samples import HELD_OUT, draw_scene, held_out_questions, training_rows
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY, DEPTH_SYSTEM_PROMPT
from init_nano import build_processor
from torch.utils.data import DataLoader
from trl.data_utils import prepare_multimodal_messages


def test_held_out_questions_are_balanced_and_repeatable():
    found = held_out_questions(40, start=7)
    assert found == held_out_questions(40, start=7)
    assert {seed for seed, _ in found} <= {HELD_OUT + 7 + i for i in range(40)}
    assert max(Counter(seed for seed, _ in found).values()) <= 3
    counts = Counter(q.kind for _, q in found)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 3
    seed, question = found[0]
    assert question in questions(draw_scene(seed), np.random.default_rng([11, seed]))


def same(row, other):
    equal = [row[key] == other[key] for key in ("messages", "focal_length")]
    return all(equal) and all(np.array_equal(row[key], other[key]) for key in ("images", "depth"))


def contents(row, role="user"):
    return [message["content"] for message in row["messages"] if message["role"] == role]


def test_rows_hold_words_image_depth_and_focal_length():
    reply = [("system", DEPTH_SYSTEM_PROMPT), ("user", DEPTH_PROMPT), ("assistant", DEPTH_REPLY)]
    for row in training_rows(scenes=24, depth_share=0.5):
        assert all(isinstance(message["content"], str) for message in row["messages"])
        assert isinstance(row["focal_length"], float)
        if row["depth"] is not None:
            assert (row["depth"].dtype, row["depth"].shape) == (np.float32, row["images"][0].size[::-1])
        if DEPTH_PROMPT in contents(row):
            assert row["depth"] is not None
            assert row["messages"] == [{"role": role, "content": content} for role, content in reply]


def test_shares_choose_the_kinds_and_the_depth():
    (bare,) = training_rows(scenes=1, mix={"depth": 1}, reply=False)
    assert [message["role"] for message in bare["messages"]] == ["system", "user"]
    words = list(training_rows(scenes=6, mix={"caption": 1}, depth=False, system_share=0.0))
    assert all(row["depth"] is None and row["messages"][0]["role"] == "user" for row in words)
    assert all(CAPTION_PROMPT in contents(row) for row in words)
    (row,) = training_rows(scenes=1, seed=3, mix={"map": 1}, system_share=0.0)
    assert (contents(row), contents(row, "assistant")) == ([MAP_PROMPT], [object_map(draw_scene(3))])
    assert row["depth"].shape == row["images"][0].size[::-1]


def test_a_row_depends_on_its_seed_alone():
    rows = list(training_rows(scenes=20, seed=40, group=8))
    later = list(training_rows(scenes=10, seed=50, group=8))
    assert all(same(row, other) for row, other in zip(rows[10:], later, strict=True))
    # Reading resumes where it stopped.
    data = training_rows(scenes=12, group=4)
    list(islice(iter(data), 6))
    state, rest = data.state_dict(), list(training_rows(scenes=12, group=4))[6:]
    again = training_rows(scenes=12, group=4)
    again.load_state_dict(state)
    assert all(same(row, other) for row, other in zip(again, rest, strict=True))


def test_workers_and_ranks_share_the_rows_without_doubles():
    def keys(rows):
        return [row["focal_length"] for row in rows]  # drawn anew for each scene

    data = training_rows(scenes=24, group=4, mix={"depth": 1})
    assert data.num_shards == 6
    everything = sorted(keys(data))
    assert len(set(everything)) == 24
    halves = [split_dataset_by_node(data, rank, 2) for rank in range(2)]
    found = [keys(DataLoader(half, batch_size=None, num_workers=2)) for half in halves]
    assert sorted(found[0] + found[1]) == everything
    # Ranks change the order alone.
    first, two = (keys(training_rows(scenes=32, group=16, ranks=ranks)) for ranks in (1, 2))
    assert two == [*first[:8], *first[16:24], *first[8:16], *first[24:]]


def test_train_and_test_never_share_a_seed():
    (train,), (test,) = training_rows(scenes=1, seed=5), training_rows("test", scenes=1, seed=5)
    assert np.array_equal(train["images"][0], draw_scene(5).image)
    assert np.array_equal(test["images"][0], draw_scene(HELD_OUT + 5).image)
    with pytest.raises(ValueError, match="seed in"):
        training_rows(scenes=2, seed=HELD_OUT - 1)


def test_positions_are_a_row_and_the_caption_where_nothing_can_be_named():
    rows = list(training_rows(scenes=40, mix={"position": 1}, turns=(4, 4), system_share=0.0))
    captioned = 0
    for seed, row in enumerate(rows):
        asks = contents(row)
        if asks[0] == CAPTION_PROMPT:
            captioned += 1
            assert len(asks) == 1
            assert not any(q.kind == "distance" for q in questions(draw_scene(seed), np.random.default_rng(0)))
        else:
            assert 1 <= len(asks) <= 4
            assert all(re.match(r"(Is the .* left or right of the .*|Where is the .*)\?$", ask) for ask in asks)
    assert 0 < captioned < 20


def test_a_group_has_one_size_as_the_model_sees_it():
    processor = build_processor()
    rows = list(training_rows(scenes=48, group=16))
    grids = processor.image_processor(
        [row["images"][0] for row in rows], focal_length=[row["focal_length"] for row in rows], return_tensors="pt"
    )["image_grid_thw"].tolist()
    groups = [grids[i : i + 16] for i in range(0, 48, 16)]
    assert all(grid == group[0] for group in groups for grid in group)
    assert len({tuple(group[0]) for group in groups}) > 1
    assert len({row["images"][0].size for row in rows[:16]}) > 4


def test_raw_rows_are_the_same_images_said_to_have_the_canonical_focal_length():
    """From 0.7 to 1.4 times 160 px: 112 to 224."""
    plain, raw = (list(training_rows(scenes=24, group=12, sizes=(0.7, 1.4), raw=raw)) for raw in (False, True))
    lengths = np.array([row["focal_length"] for row in plain])
    assert 111 < lengths.min() < 125  # widths are whole pixels
    assert 200 < lengths.max() < 225
    assert {row["focal_length"] for row in raw} == {160.0}
    for one, other in zip(plain, raw, strict=True):
        assert np.array_equal(one["images"][0], other["images"][0])
        assert np.array_equal(one["depth"], other["depth"])
        assert one["messages"] == other["messages"]


def test_trl_finds_the_image_of_a_row():
    (row,) = training_rows(scenes=1, mix={"question": 1})
    prepared = prepare_multimodal_messages(row["messages"], images=row["images"])
    text = build_processor().apply_chat_template(prepared, tokenize=False)
    assert text.count("<|image_pad|>") == 1


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("split", [{"split": "val"}]),
        ("mix", [{"mix": {"depths": 1}}, {"mix": {"depth": 0}}, {"mix": {}}]),
        *((name, [{name: 0}]) for name in ("scenes", "group")),
        ("turns", [{"turns": (4, 3)}]),
        ("depth_share", [{"depth_share": 1.5}]),
        ("system_share", [{"system_share": -0.1}]),
        ("ranks", [{"ranks": 3}, {"ranks": 2, "seed": 8}]),
    ],
)
def test_arguments_out_of_range(name, choices):
    for settings in choices:
        with pytest.raises(ValueError, match=name):
            training_rows(**{"scenes": 4, **settings})
