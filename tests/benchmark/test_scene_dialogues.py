"""What is said about synthetic scenes: a scene known by hand, and answers against pixels."""

import re
from collections import Counter

import numpy as np
import pytest
from depthvlm.benchmark.synthetic.dialogues import (
    CAPTION_PROMPT,
    CLEAR,
    CLOSED_KINDS,
    KINDS,
    Question,
    caption,
    conversation,
    is_right,
    meters,
    object_map,
    positions,
    questions,
)
from depthvlm.benchmark.synthetic.samples import HELD_OUT, draw_scene
from depthvlm.benchmark.synthetic.scenes import SceneObject, SyntheticScene
from init_nano import build_processor


def thing(name, color, column, depth, visible=200):
    return SceneObject(name, color, (1.0, 1.0, 1.0), (column, 50), depth, visible)


def scene_of(*objects, kind="room", seed=0):
    """A scene of 100 x 100 pixels, in which 200 pixels are clearly seen, with a depth map that agrees."""
    depth = np.full((100, 100), 20, np.float32)
    for o in objects:
        depth[o.pixel[1], o.pixel[0]] = o.depth
    image, intrinsics = np.zeros((100, 100, 3), np.uint8), np.array([[100, 0, 50], [0, 100, 50], [0, 0, 1.0]])
    segments = np.full(depth.shape, -1, np.int16)
    return SyntheticScene(image, depth, intrinsics, np.eye(4), tuple(objects), kind, seed, segments, segments)


def asked(scene, draws=200):
    """All that is ever asked about a scene: {kind: {question: answer}}, each question with one answer."""
    found = {kind: {} for kind in KINDS}
    for seed in range(draws):
        for q in questions(scene, np.random.default_rng(seed)):
            assert found[q.kind].setdefault(q.question, q.answer) == q.answer
            assert q.closed == (q.kind in CLOSED_KINDS)
    return found


def drawn(scenes, draws):
    return [
        q
        for draw in range(draws)
        for scene in scenes
        for q in questions(scene, np.random.default_rng([draw, scene.seed]))
    ]


@pytest.fixture(scope="module")
def known():
    crates = thing("crate", "red", 20, 2.44), thing("crate", "blue", 50, 2.5)
    return asked(scene_of(*crates, thing("table", "white", 55, 12.4), thing("window", "cyan", 90, 4.0)))


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(HELD_OUT + 5000 + 16 * i) for i in range(90)]


def test_place_color_count_distance_and_nearest(known):
    # Two crates: their colour is not asked; nor is that of a window, which is a thin frame.
    single = {kind: known[kind] for kind in ("place", "color", "nearest", "count", "distance")}
    counts = {"cabinets": "0", "gym balls": "0", "doors": "0", "tables": "1", "windows": "1", "crates": "2"}
    metres = {"red crate": "2.4", "blue crate": "2.5", "white table": "12", "window": "4.0"}
    assert single == {
        "place": {"Is this a room or a street?": "room"},
        "color": {"What color is the table?": "white"},
        "nearest": {"Which object is nearest?": "crate"},
        "count": {f"How many {name} are there?": count for name, count in counts.items()},
        "distance": {f"How far away is the {name}?": f"{number} meters" for name, number in metres.items()},
    }


def test_existence(known):
    yes = {q for q, answer in known["existence"].items() if answer == "yes"}
    there = ("crate", "table", "window", "red crate", "blue crate", "white table")
    assert yes == {f"Is there a {name}?" for name in there}
    no = set(known["existence"]) - yes
    assert {"Is there a cabinet?", "Is there a gym ball?", "Is there an orange crate?", "Is there a red table?"} <= no


def test_order_and_side(known):
    assert (
        known["order"].items()
        >= {
            "Which is nearer, the red crate or the white table?": "red crate",
            "Which is farther, the red crate or the white table?": "white table",
            "Which is nearer, the window or the blue crate?": "blue crate",
        }.items()
    )
    assert set(known["farthest"].values()) == {"window", "white table"}
    assert known["farthest"]["Which is farthest, the red crate, the window or the blue crate?"] == "window"
    assert known["side"]["Is the red crate left or right of the blue crate?"] == "left"
    assert known["side"]["Is the blue crate left or right of the red crate?"] == "right"
    # What is 2 % apart in depth, or 5 columns apart, is not asked about.
    assert not any("red crate" in question and "blue crate" in question for question in known["order"])
    assert not any("blue crate" in question and "white table" in question for question in known["side"])


def test_captions():
    ball, crate, box = (
        thing("gym ball", "orange", 80, 3.0),
        thing("crate", "red", 20, 1.5),
        thing("box", "red", 50, 2, 9),
    )
    assert {caption(scene_of(ball, crate, box), np.random.default_rng(seed)) for seed in range(20)} == {
        "A room with a red crate at 1.5 meters, an orange gym ball at 3.0 meters.",
        "A room with a red crate on the left, an orange gym ball on the right.",
    }
    assert caption(scene_of(kind="street"), np.random.default_rng(0)) == "A street."
    assert [meters(depth) for depth in (2.44, 9.94, 9.96)] == ["2.4 meters", "9.9 meters", "10 meters"]


def test_a_barely_visible_object_is_never_asked_about():
    found = asked(scene_of(thing("crate", "red", 20, 2.0), thing("box", "blue", 70, 1.0, visible=199)))
    everything = " ".join(question for kind in KINDS for question in found[kind])
    assert [words in everything for words in ("blue box", "a box?", "boxes")] == [False] * 3
    assert found["nearest"] == {}  # it might be the box
    # A double makes a name ambiguous.
    crates = thing("crate", "red", 20, 2.0), thing("crate", "red", 90, 9, 20)
    found = asked(scene_of(*crates, thing("table", "red", 60, 4.0)))
    assert set(found["color"]) == {"What color is the table?"}
    assert set(found["distance"]) == {"How far away is the red table?"}
    assert found["order"] == found["side"] == {}


def test_a_gym_ball_is_a_ball_too():
    found = asked(scene_of(thing("ball", "red", 20, 2.0), thing("gym ball", "red", 60, 4.0)))
    assert found["color"] == found["distance"] == found["order"] == {}
    assert "Is there a gym ball?" not in found["existence"] or found["existence"]["Is there a gym ball?"] == "yes"
    assert found["existence"]["Is there a red ball?"] == "yes"
    assert not any("balls" in question for question in found["count"])


def test_streets_hide_doors_and_windows_of_houses():
    found = asked(scene_of(thing("door", "red", 20, 9.0), thing("car", "blue", 60, 4.0), kind="street"))
    everything = " ".join([*found["existence"], *found["count"]])
    assert "door" not in everything
    assert "window" not in everything
    assert {q.kind for q in questions(scene_of(), np.random.default_rng(0))} == {"place"}  # of an empty scene


def named(scene, words):
    """The only listed object of a description such as "red gym ball" or "window"."""
    [found] = [o for o in scene.objects if words in (f"{o.color} {o.name}", o.name)]
    assert found.visible >= CLEAR * scene.depth.size
    return found


def depth_at(scene, words):
    column, row = named(scene, words).pixel
    return float(scene.depth[row, column])


def answer_again(scene, kind, question):
    if kind == "place":
        return scene.kind
    if kind == "nearest":
        return min(scene.objects, key=lambda o: scene.depth[o.pixel[1], o.pixel[0]]).name
    words = re.fullmatch(PATTERNS[kind], question).groups()
    if kind == "existence":
        return "yes" if any(words[0] in (o.name, f"{o.color} {o.name}") for o in scene.objects) else "no"
    if kind == "color":
        return named(scene, *words).color
    if kind == "count":
        return str(sum(words[0] in (o.name + "s", o.name + "es") for o in scene.objects))
    if kind == "distance":
        depth = depth_at(scene, *words)
        return f"{depth:.1f} meters" if depth < 9.95 else f"{depth:.0f} meters"
    if kind == "side":
        first, second = (named(scene, name).pixel[0] for name in words)
        return "left" if first < second else "right"
    names = [name for name in words[1:] if name]
    assert len(names) == (3 if kind == "farthest" else 2)
    return (min if words[0] == "nearer" else max)(names, key=lambda name: depth_at(scene, name))


PATTERNS = {
    "existence": r"Is there an? (.*)\?",
    "color": r"What color is the (.*)\?",
    "count": r"How many (.*) are there\?",
    "distance": r"How far away is the (.*)\?",
    "side": r"Is the (.*) left or right of the (.*)\?",
    **dict.fromkeys(("order", "farthest"), r"Which is (\w+), the (.*?)(?:, the (.*))? or the (.*)\?"),
}


def test_answers_agree_with_the_scenes(scenes):
    seen = Counter()
    for scene in scenes:
        for q in drawn([scene], 3):
            assert q.answer == answer_again(scene, q.kind, q.question), (scene.seed, q)
            seen[q.kind] += 1
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 40


def test_answers_are_balanced(scenes):
    """Yes and no, and the first and the second that a question mentions."""
    asked = drawn(scenes, 10)
    yes = [q.answer == "yes" for q in asked if q.kind == "existence"]
    first = [q.question.split(", the ")[1].startswith(q.answer) for q in asked if q.kind == "order"]
    assert len(yes) > 500
    assert 0.45 < np.mean(yes) < 0.55
    assert len(first) > 300
    assert 0.42 < np.mean(first) < 0.58


def test_answers_are_short_in_nanos_tokens(scenes):
    tokenizer = build_processor().tokenizer
    said = [turn for scene in scenes for turn in conversation(scene, np.random.default_rng(scene.seed))]
    lengths = np.array([[len(tokenizer.tokenize(text)) for text in turn] for turn in said])
    captions = [len(tokenizer.tokenize(caption(scene, np.random.default_rng(scene.seed)))) for scene in scenes]
    assert lengths[:, 0].mean() < 14
    assert lengths[:, 1].mean() < 2.5
    assert np.mean(captions) < 40


def test_conversations_have_the_turns_asked_for(scenes):
    for scene in scenes:
        said = conversation(scene, np.random.default_rng(1), (3, 6))
        assert 1 <= len(said) <= 6  # where nothing is seen clearly, one question is left
        assert len({question for question, _ in said}) == len(said)
        captioned = conversation(scene, np.random.default_rng(1), (2, 2), captioned=True)
        assert [question for question, _ in captioned].count(CAPTION_PROMPT) == 1
        assert len(captioned) == 2


def test_a_map_names_what_fills_the_cells():
    scene = scene_of(
        thing("crate", "red", 10, 2), thing("window", "blue", 60, 3), thing("car", "cyan", 90, 4, visible=150)
    )
    scene.segments[:30, :20] = 0  # of the first cell, 30 x 20 of 50 x 50 pixels: 24 %
    scene.segments[50:, :25] = 0  # of the cell below: half, and the rest is the window's
    scene.segments[50:, 25:70] = 1
    scene.segments[:50, 50:] = 2  # barely visible in all, so never named
    assert object_map(scene, 2, 2) == "a1 no a2 no b1 red crate b2 window"
    scene.segments[:32, :20] = 0  # 25.6 %
    assert object_map(scene, 2, 2) == "a1 red crate a2 no b1 red crate b2 window"


def test_a_map_names_the_clear_objects_of_rendered_scenes(scenes):
    for scene in scenes:
        cells = re.findall(r"([a-f])([1-8]) (.*?)(?= [a-f][1-8] |$)", object_map(scene))
        assert len(cells) == 48
        height, width = scene.depth.shape
        for row, column, words in cells:
            if words != "no":  # what is named is there: one of its pixels lies in the cell
                top, left = (ord(row) - ord("a")) * height // 6, (int(column) - 1) * width // 8
                shown = scene.segments[top : top + height // 6 + 1, left : left + width // 8 + 1]
                inside = [scene.objects[i] for i in np.unique(shown) if i >= 0]
                assert any(words in (o.name, f"{o.color} {o.name}") for o in inside)


def test_positions_ask_for_sides_then_for_cells():
    scene = scene_of(
        thing("crate", "red", 10, 2),  # column 10 of 100 is in the first eighth; row 50 of 100 in the fourth sixth
        thing("window", "blue", 15, 3),  # beside nothing but the car: 5 % of the width from the crate
        thing("car", "cyan", 99, 4),
        thing("pole", "white", 50, 4, visible=150),  # barely visible
    )
    pairs = {("red crate", "cyan car"): "left", ("window", "cyan car"): "left"}
    pairs |= {pair[::-1]: "right" for pair in pairs}
    sides = {f"Is the {one} left or right of the {other}?": side for (one, other), side in pairs.items()}
    cells = {"Where is the red crate?": "d1", "Where is the window?": "d2", "Where is the cyan car?": "d8"}
    for seed in range(20):
        said = positions(scene, np.random.default_rng(seed), (9, 9))
        assert len(said) == 5
        assert sides.items() >= dict(said[:2]).items()
        assert len({frozenset(re.findall("crate|window|car", question)) for question, _ in said[:2]}) == 2
        assert dict(said[2:]) == cells
        few = positions(scene, np.random.default_rng(seed), (2, 2))
        assert [answer in ("left", "right") for _, answer in few] == [True, False]
    assert positions(scene_of(), np.random.default_rng(0)) == []


def test_right_replies():
    """Closed questions need the exact words; distances are right within a quarter."""
    words = {"red crate": True, " Red crate.\n": True, "crate": False, "the red crate": False, "": False}
    assert {reply: is_right(Question("order", "", "red crate", True), reply) for reply in words} == words
    metres = {"3.0 meters": True, "5.0 meters.": True, "2.9 meters": False, "5.1": False, "4": True, "4 or 4": False}
    metres["far"] = False
    assert {reply: is_right(Question("distance", "", "4.0 meters", False), reply) for reply in metres} == metres
