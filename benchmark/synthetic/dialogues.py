"""Words about synthetic scenes: captions, and questions with one right answer, from what is known of each scene.

Only clearly visible objects are mentioned, and no answer could be changed by something barely visible.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .scenes import SceneObject, SyntheticScene
from .world import COLORS

T = TypeVar("T")

CLEAR = 0.02  # share of the image that an object needs to be talked about: one visual token of nano's, or nearly so
APART = 1.2  # ratio of two depths that counts as nearer or farther
ASIDE = 0.1  # share of the image's width that counts as left or right of something
TOLERANCE = 0.25  # relative error of a distance that still is right
CAPTION_PROMPT = "Describe this image."
MAP_PROMPT = "Map the objects."
NO_OBJECT = "no"

PRESENCE: dict[str, dict[str, float]] = {
    "room": {"crate": 0.43, "table": 0.20, "cabinet": 0.31, "gym ball": 0.19, "door": 0.48, "window": 0.27},
    "street": {"crate": 0.37, "car": 0.39, "pole": 0.25},
}
"""Share of the scenes in which a name is clearly seen. Names whose objects are mostly too small for that (balls,
boxes, pictures, in streets also doors and windows) are left out: that there are none of them, or how many, is never
asked. From 1,600 scenes as training draws them."""

_UNCOLORED = ("picture", "window")  # their colour is that of a frame a few pixels wide
_HIDDEN_IN_STREETS = ("door", "window")
_COUNT_WEIGHTS = (1, 1, 2, 4, 4)  # higher counts are rarer


@dataclass(frozen=True)
class Question:
    """A question about a scene; `closed` ones have one exact answer, the others are right within `TOLERANCE`."""

    kind: str
    question: str
    answer: str
    closed: bool


def caption(scene: SyntheticScene, rng: np.random.Generator) -> str:
    """Name the four nearest objects from near to far, with their distances or with their sides as `rng` chooses."""
    told, width = [], scene.depth.shape[1]
    by_distance = rng.random() < 0.5
    for o in sorted(_clear(scene), key=lambda o: o.depth)[:4]:
        place = o.pixel[0] / width
        side = "on the left" if place < 0.4 else "on the right" if place > 0.6 else "in front"
        told.append(f"{_a(_describe(o))} {'at ' + meters(o.depth) if by_distance else side}")
    return f"A {scene.kind}{' with ' if told else ''}{', '.join(told)}."


def object_map(scene: SyntheticScene, rows: int = 6, columns: int = 8) -> str:
    """Name what fills the cells of a grid over the image.

    Each name follows its address (a letter for the row, a number for the column, from the top left) and is that of the
    clearly seen object that covers most of the cell, and at least a quarter of it, else `NO_OBJECT`.

    One reply names what every part of an image shows, which ties words to image tokens long before a model has learnt
    to find what a question names.
    """
    height, width = scene.segments.shape
    cells = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
    area = np.bincount(cells.ravel(), minlength=rows * columns)
    share = np.full((len(scene.objects) + 1, rows * columns), 0.25)
    for index, o in enumerate(scene.objects):
        covered = np.bincount(cells[scene.segments == index], minlength=rows * columns)
        share[index + 1] = covered / area if o.visible >= CLEAR * scene.depth.size else 0
    words = [NO_OBJECT, *(_describe(o) for o in scene.objects)]
    addresses = [_address(row, column) for row in range(rows) for column in range(columns)]
    return " ".join(f"{address} {words[i]}" for address, i in zip(addresses, share.argmax(0), strict=True))


def positions(
    scene: SyntheticScene, rng: np.random.Generator, turns: tuple[int, int] = (3, 6), rows: int = 6, columns: int = 8
) -> list[tuple[str, str]]:
    """Ask where things are, in at most `turns[0]` to `turns[1]` questions.

    First, which of two is left of the other, each two once; then, in which cell of `object_map` the middle of something
    lies. The sides come first, because the cells would tell them.
    """
    height, width = scene.depth.shape
    found, count = _referable(scene), int(rng.integers(turns[0], turns[1], endpoint=True))
    pairs = [pair for pair in itertools.combinations(found, 2) if _beside(*pair, width)]
    said = []
    for index in rng.permutation(len(pairs))[: count // 2]:
        a, b = pairs[index] if rng.random() < 0.5 else pairs[index][::-1]
        said.append(_which_side(a, b))
    for index in rng.permutation(len(found))[: count - len(said)]:
        column, row = found[index].pixel
        cell = _address(row * rows // height, column * columns // width)
        said.append((f"Where is the {_describe(found[index])}?", cell))
    return said


def questions(scene: SyntheticScene, rng: np.random.Generator) -> list[Question]:
    """Ask one question of every kind that the scene allows, drawn by `rng`, in the order of `KINDS`."""
    return [Question(kind, *found, kind in CLOSED_KINDS) for kind, ask in _ASK.items() if (found := ask(scene, rng))]


def conversation(
    scene: SyntheticScene, rng: np.random.Generator, turns: tuple[int, int] = (3, 6), *, captioned: bool = False
) -> list[tuple[str, str]]:
    """Draw a conversation of `turns[0]` to `turns[1]` questions with answers, where the scene allows so many.

    With `captioned`, one of them asks for the caption.
    """
    found = list({q.question: q for q in (*questions(scene, rng), *questions(scene, rng))}.values())
    count = int(rng.integers(turns[0], turns[1], endpoint=True)) - captioned
    chosen = [found[i] for i in rng.permutation(len(found))[:count]]
    # Questions that name objects would answer later ones about what there is, so they come after those.
    chosen.sort(key=lambda q: (q.kind in _NAMING) + (q.kind == "distance"))
    said = [(q.question, q.answer) for q in chosen]
    if captioned:
        said.insert(0 if rng.random() < 0.5 else len(said), (CAPTION_PROMPT, caption(scene, rng)))
    return said


def is_right(question: Question, reply: str) -> bool:
    """Tell if a reply has the answer's words, except for case and final period, or one number within 25 % of it."""
    if question.closed:
        return _plain(reply) == _plain(question.answer)
    numbers = re.findall(r"\d+(?:\.\d+)?", reply)
    truth = float(question.answer.split()[0])
    return len(numbers) == 1 and abs(float(numbers[0]) - truth) <= TOLERANCE * truth


def meters(depth: float) -> str:
    """Put a distance in words: one decimal below 10 m, none above."""
    return f"{depth:.1f} meters" if round(depth, 1) < 10 else f"{depth:.0f} meters"


def _address(row: int, column: int) -> str:
    return f"{chr(ord('a') + row)}{column + 1}"


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("x") else "s")


def _describe(o: SceneObject) -> str:
    return o.name if o.name in _UNCOLORED else f"{o.color} {o.name}"


def _clear(scene: SyntheticScene) -> list[SceneObject]:
    return [o for o in scene.objects if o.visible >= CLEAR * scene.depth.size]


def _may_be(o: SceneObject, name: str, color: str | None = None) -> bool:
    """Tell if an object could be meant by a name: a gym ball is a ball too."""
    named = o.name == name or {o.name, name} == {"ball", "gym ball"}
    return named and (color is None or o.color == color)


def _referable(scene: SyntheticScene) -> list[SceneObject]:
    """List the clearly seen objects that `_describe` tells from all others, however small."""
    found = []
    for o in _clear(scene):
        color = None if o.name in _UNCOLORED else o.color
        if sum(_may_be(other, o.name, color) for other in scene.objects) == 1:
            found.append(o)
    return found


def _draw(rng: np.random.Generator, items: Sequence[T], weights: Iterable[float] | None = None) -> T:
    share = None if weights is None else np.fromiter(weights, float)
    return items[int(rng.choice(len(items), p=None if share is None else share / share.sum()))]


def _counts(scene: SyntheticScene) -> dict[str, int]:
    """Count the objects of each name of which all, and nothing alike, are clearly seen."""
    clear, counts = _clear(scene), {}
    for name in PRESENCE[scene.kind]:
        count = sum(o.name == name for o in clear)
        if count == sum(_may_be(o, name) for o in scene.objects):
            counts[name] = count
    return counts


def _weight(scene: SyntheticScene, name: str, present: bool) -> float:
    """Make a name as often present as absent in what is asked, so that words alone do not tell the answer."""
    share = PRESENCE[scene.kind][name]
    return 1 - share if present else share


def _existence(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    counts = _counts(scene)
    asked: dict[bool, str] = {}
    if rng.random() < 0.5:
        for present in (True, False):
            names = [name for name, count in counts.items() if (count > 0) == present]
            if names:
                asked[present] = _draw(rng, names, [_weight(scene, name, present) for name in names])
    else:
        hidden = _HIDDEN_IN_STREETS if scene.kind == "street" else ()
        seen = [o for o in _clear(scene) if o.name not in (*_UNCOLORED, *hidden)]
        if seen:
            asked[True] = _describe(_draw(rng, seen))
            other = _draw(rng, seen).name
            free = [color for color in COLORS if not any(_may_be(o, other, color) for o in scene.objects)]
            asked[False] = f"{_draw(rng, free)} {other}"
    # Where only one answer can be given, nothing is asked, so that yes and no stay as frequent.
    if len(asked) < 2:
        return None
    answer = bool(rng.random() < 0.5)
    return f"Is there {_a(asked[answer])}?", "yes" if answer else "no"


def _color(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    alone = [o for o in _clear(scene) if sum(_may_be(other, o.name) for other in scene.objects) == 1]
    alone = [o for o in alone if o.name not in _UNCOLORED]
    if not alone:
        return None
    o = _draw(rng, alone)
    return f"What color is the {o.name}?", o.color


def _count(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    counts = {name: count for name, count in _counts(scene).items() if count < len(_COUNT_WEIGHTS)}
    if not any(counts.values()):
        return None  # 0 would be the answer to every such question
    values = sorted(set(counts.values()))
    value = _draw(rng, values, [_COUNT_WEIGHTS[v] for v in values])
    names = [name for name, count in counts.items() if count == value]
    name = _draw(rng, names, [_weight(scene, name, value > 0) for name in names])
    return f"How many {_plural(name)} are there?", str(value)


def _place(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str]:
    return "Is this a room or a street?", scene.kind


def _order(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    found = _referable(scene)
    pairs = [(a, b) for a in found for b in found if max(a.depth, b.depth) > APART * min(a.depth, b.depth)]
    if not pairs:
        return None
    a, b = _draw(rng, pairs)
    word = _draw(rng, ("nearer", "farther"))
    answer = a if (a.depth < b.depth) == (word == "nearer") else b
    return f"Which is {word}, the {_describe(a)} or the {_describe(b)}?", _describe(answer)


def _nearest(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    clear = _clear(scene)
    if len({o.name for o in clear}) < 2:
        return None
    first = min(clear, key=lambda o: o.depth)
    if any(o.name != first.name and o.depth <= APART * first.depth for o in scene.objects):
        return None
    return "Which object is nearest?", first.name


def _farthest(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    # Among named objects: anything too small to be listed may well be farther than all of them.
    found = sorted(_referable(scene), key=lambda o: o.depth)
    lasts = [i for i in range(2, len(found)) if found[i].depth > APART * found[1].depth]
    if not lasts:
        return None
    last = found[_draw(rng, lasts)]
    nearer = [o for o in found if last.depth > APART * o.depth]
    chosen = [last, *(nearer[i] for i in rng.choice(len(nearer), 2, replace=False))]
    a, b, c = (_describe(chosen[i]) for i in rng.permutation(3))
    return f"Which is farthest, the {a}, the {b} or the {c}?", _describe(last)


def _side(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    found = _referable(scene)
    pairs = [(a, b) for a in found for b in found if _beside(a, b, scene.depth.shape[1])]
    return _which_side(*_draw(rng, pairs)) if pairs else None


def _beside(a: SceneObject, b: SceneObject, width: int) -> bool:
    return abs(a.pixel[0] - b.pixel[0]) > ASIDE * width


def _which_side(a: SceneObject, b: SceneObject) -> tuple[str, str]:
    answer = "left" if a.pixel[0] < b.pixel[0] else "right"
    return f"Is the {_describe(a)} left or right of the {_describe(b)}?", answer


def _distance(scene: SyntheticScene, rng: np.random.Generator) -> tuple[str, str] | None:
    found = _referable(scene)
    if not found:
        return None
    o = _draw(rng, found)
    return f"How far away is the {_describe(o)}?", meters(o.depth)


_ASK: dict[str, Callable[[SyntheticScene, np.random.Generator], tuple[str, str] | None]] = {
    "place": _place,
    "existence": _existence,
    "color": _color,
    "count": _count,
    "nearest": _nearest,
    "order": _order,
    "farthest": _farthest,
    "side": _side,
    "distance": _distance,
}
KINDS = tuple(_ASK)
CLOSED_KINDS = tuple(kind for kind in KINDS if kind != "distance")
_NAMING = ("order", "farthest", "side", "distance")
