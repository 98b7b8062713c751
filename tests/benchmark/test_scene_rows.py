"""Rows of synthetic scenes: held-out questions, what a row holds, shards and their seeds."""

import re
from collections import Counter

import numpy as np
import pytest
from depthvlm.benchmark.synthetic.dialogues import CAPTION_PROMPT, KINDS, MAP_PROMPT, object_map, questions
from depthvlm.benchmark.synthetic.samples import HELD_OUT, draw_scene, held_out_questions, training_rows
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY, DEPTH_SYSTEM_PROMPT
from init_nano import build_processor
from torch.utils.data import DataLoader


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
    return (
        row["messages"] == other["messages"]
        and np.array_equal(row["images"][0], other["images"][0])
        and np.array_equal(row["depth"], other["depth"])
        and row["focal_length"] == other["focal_length"]
    )


def test_rows_hold_words_image_depth_and_focal_length():
    for row in training_rows(scenes=24, depth_share=0.5):
        image = row["images"][0]
        assert all(isinstance(message["content"], str) for message in row["messages"])
        assert isinstance(row["focal_length"], float)
        users = [message["content"] for message in row["messages"] if message["role"] == "user"]
        if row["depth"] is not None:
            assert row["depth"].dtype == np.float32
            assert row["depth"].shape == image.size[::-1]
        if DEPTH_PROMPT in users:
            assert row["depth"] is not None
            assert row["messages"] == [
                {"role": "system", "content": DEPTH_SYSTEM_PROMPT},
                {"role": "user", "content": DEPTH_PROMPT},
                {"role": "assistant", "content": DEPTH_REPLY},
            ]


def test_shares_choose_the_kinds_and_the_depth():
    (bare,) = training_rows(scenes=1, mix={"depth": 1}, reply=False)
    assert [message["role"] for message in bare["messages"]] == ["system", "user"]
    words = list(training_rows(scenes=6, mix={"caption": 1}, depth=False, system_share=0.0))
    assert all(row["depth"] is None and row["messages"][0]["role"] == "user" for row in words)
    assert all(CAPTION_PROMPT in [message["content"] for message in row["messages"]] for row in words)


def test_a_row_depends_on_its_seed_alone():
    rows = list(training_rows(scenes=20, seed=40, group=8))
    later = list(training_rows(scenes=10, seed=50, group=8))
    assert all(same(row, other) for row, other in zip(rows[10:], later, strict=True))


def test_reading_resumes_where_it_stopped():
    data = training_rows(scenes=12, group=4)
    rows = iter(data)
    for _ in range(6):
        next(rows)
    state, rest = data.state_dict(), list(rows)
    again = training_rows(scenes=12, group=4)
    again.load_state_dict(state)
    assert all(same(row, other) for row, other in zip(again, rest, strict=True))


def test_workers_and_ranks_share_the_rows_without_doubles():
    from datasets.distributed import split_dataset_by_node

    def key(row):
        return row["focal_length"]  # drawn anew for each scene

    data = training_rows(scenes=24, group=4, mix={"depth": 1})
    assert data.num_shards == 6
    everything = sorted(map(key, data))
    assert len(set(everything)) == 24
    halves = [split_dataset_by_node(data, rank, 2) for rank in range(2)]
    found = [key(row) for half in halves for row in DataLoader(half, batch_size=None, num_workers=2)]
    assert sorted(found) == everything


def test_train_and_test_never_share_a_seed():
    (train,), (test,) = training_rows(scenes=1, seed=5), training_rows("test", scenes=1, seed=5)
    assert np.array_equal(train["images"][0], draw_scene(5).image)
    assert np.array_equal(test["images"][0], draw_scene(HELD_OUT + 5).image)
    with pytest.raises(ValueError, match="seed in"):
        training_rows(scenes=2, seed=HELD_OUT - 1)


def test_a_map_is_a_row_with_depth():
    (row,) = training_rows(scenes=1, seed=3, mix={"map": 1}, system_share=0.0)
    assert row["messages"] == [
        {"role": "user", "content": MAP_PROMPT},
        {"role": "assistant", "content": object_map(draw_scene(3))},
    ]
    assert row["depth"].shape == row["images"][0].size[::-1]


def test_positions_are_a_row_and_the_caption_where_nothing_can_be_named():
    rows = list(training_rows(scenes=40, mix={"position": 1}, turns=(4, 4), system_share=0.0))
    captioned = 0
    for seed, row in enumerate(rows):
        said = [message["content"] for message in row["messages"]]
        if said[0] == CAPTION_PROMPT:
            captioned += 1
            assert len(said) == 2
            assert not any(q.kind == "distance" for q in questions(draw_scene(seed), np.random.default_rng(0)))
        else:
            assert 1 <= len(said) / 2 <= 4
            assert all(re.match(r"(Is the .* left or right of the .*|Where is the .*)\?$", ask) for ask in said[::2])
    assert 0 < captioned < 20


def test_ranks_change_the_order_alone():
    one, two = (list(training_rows(scenes=32, group=16, ranks=ranks)) for ranks in (1, 2))
    first = [row["focal_length"] for row in one]
    assert [row["focal_length"] for row in two] == [*first[:8], *first[16:24], *first[8:16], *first[24:]]


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


def test_trl_finds_the_image_of_a_row():
    from trl.data_utils import prepare_multimodal_messages

    (row,) = training_rows(scenes=1, mix={"question": 1})
    prepared = prepare_multimodal_messages(row["messages"], images=row["images"])
    text = build_processor().apply_chat_template(prepared, tokenize=False)
    assert text.count("<|image_pad|>") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "val"}, "split"),
        ({"mix": {"depths": 1}}, "mix"),
        ({"mix": {"depth": 0}}, "mix"),
        ({"mix": {}}, "mix"),
        ({"scenes": 0}, "scenes"),
        ({"group": 0}, "group"),
        ({"turns": (4, 3)}, "turns"),
        ({"depth_share": 1.5}, "depth_share"),
        ({"system_share": -0.1}, "system_share"),
        ({"ranks": 3}, "ranks"),
        ({"ranks": 2, "seed": 8}, "ranks"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        training_rows(**{"scenes": 4, **settings})
