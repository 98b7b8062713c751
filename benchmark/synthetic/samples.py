"""Endless training data of synthetic scenes, made as it is read: images with words, depth and focal length."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...processing import DEPTH_PROMPT, DEPTH_REPLY, DEPTH_SYSTEM_PROMPT
from .dialogues import (
    CAPTION_PROMPT,
    KINDS,
    MAP_PROMPT,
    Question,
    caption,
    conversation,
    object_map,
    positions,
    questions,
)
from .scenes import SyntheticScene, render_scene

if TYPE_CHECKING:
    from datasets import IterableDataset

Split = Literal["train", "test"]

HELD_OUT = 1_000_000_000  # seeds from here on are for evaluation: training never sees them
ROW_KINDS = ("caption", "question", "depth", "map", "position")
ASPECTS = (4 / 3, 4 / 3, 3 / 2, 16 / 9, 1.0)
_CELL = 32  # pixels that one image token covers, at the canonical focal length


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """Settings of rows, apart from their seed."""

    focal_length: float
    shares: tuple[float, ...]
    depth: bool
    depth_share: float
    reply: bool
    turns: tuple[int, int]
    system_share: float
    group: int
    sizes: tuple[float, float] | None
    raw: bool
    widths: tuple[float, float] | None = None


def training_rows(
    split: Split = "train",
    *,
    scenes: int,
    seed: int = 0,
    focal_length: float = 160.0,
    mix: dict[str, float] | None = None,
    depth: bool = True,
    depth_share: float = 1.0,
    reply: bool = True,
    turns: tuple[int, int] = (3, 6),
    system_share: float = 0.5,
    group: int = 16,
    ranks: int = 1,
    sizes: tuple[float, float] | None = None,
    raw: bool = False,
    widths: tuple[float, float] | None = None,
) -> IterableDataset:
    """Make rows of synthetic scenes, one a scene, each when it is read.

    A row depends on its seed and on the other arguments alone, not on the process that makes it.

    Columns: `messages` (roles and plain text; the image belongs before the first user's text, where TRL puts it),
    `images` (one PIL image), `depth` (float32 (H, W), z-depth in metres, 0 where there is none; or None) and
    `focal_length` (pixels). The data set is declared without features, so that nothing is encoded on the way.

    A shard is `group / ranks` rows, which one worker of one process reads: choose `scenes` such that the number of
    shards is a multiple of processes times workers. The data set's `state_dict` resumes within a shard, so that at
    most so many scenes are rendered again.

    Args:
        split: "test" has seeds from `HELD_OUT` on, "train" those below.
        scenes: Number of rows.
        seed: Seed of the first row; the following ones count up.
        focal_length: Canonical focal length in pixels of the model that will be trained.
        mix: Shares of the kinds of rows: "caption" and "question" hold conversations of `turns` questions, with and
            without a caption among them; "depth" the method's prompt; "map" a map of the objects; "position"
            up to `turns` questions about where they are (where nothing can be named, the caption). By default
            1 : 4 : 5 : 0 : 0.
        depth: Give depth maps at all.
        depth_share: Share of the other kinds of rows that have one; rows of kind "depth" always do.
        reply: Rows of kind "depth" have the method's constant reply, or else end with the prompt.
        turns: Least and most questions in a conversation.
        system_share: Share of conversations that begin with the method's system prompt.
        group: This many rows, from a multiple of it on, have images of one size as the model sees them; best a multiple
            of the batch size of all processes, so that no batch pads its images.
        ranks: Number of processes. Shards are ordered so that each of them, given its equal part of their list, draws
            from one group as the others do: their images have one size, and none waits for another.
        sizes: Least and largest focal length of the images as multiples of `focal_length`, between which each is drawn
            with a uniform logarithm. By default two thirds have `focal_length` itself, the others up to 1.9 times it.
        raw: Give `focal_length` as that of every image, whatever its camera, so that training leaves images and metres
            alone: the "raw mixed-source" of the paper's table 7. Scenes and images are the same with and without.
        widths: Least and largest width of the images in pixels, between which each is drawn with a uniform logarithm,
            whatever its field of view: then neither size nor sharpness tells a camera that is withheld. In place of
            `sizes`.

    Raises:
        ValueError: An argument is out of its range, with the range.
        ImportError: `datasets` is missing (`pip install depthvlm[train]`).
    """
    from datasets import IterableDataset

    mix = {"caption": 1, "question": 4, "depth": 5} if mix is None else mix
    total = sum(mix.values())
    if set(mix) - set(ROW_KINDS) or min(mix.values(), default=0) < 0 or not 0 < total < math.inf:
        raise ValueError(f"mix must give shares >= 0, not all 0, of {', '.join(ROW_KINDS)}, got {mix!r}")
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    if scenes < 1 or not 0 <= seed <= HELD_OUT - scenes:
        raise ValueError(f"scenes must be >= 1 and seed in [0, {HELD_OUT} - scenes], got {scenes} and {seed}")
    if group < 1 or not 1 <= turns[0] <= turns[1]:
        raise ValueError(f"group must be >= 1 and turns rising from >= 1, got {group} and {turns}")
    if ranks < 1 or group % ranks or (ranks > 1 and (scenes % group or seed % group)):
        raise ValueError(
            f"ranks must be >= 1 and divide group, and group must divide scenes and seed where ranks > 1, "
            f"got ranks {ranks}, group {group}, scenes {scenes} and seed {seed}"
        )
    if sizes is not None and not 0 < sizes[0] <= sizes[1] < math.inf:
        raise ValueError(f"sizes must be two rising multiples of the focal length above 0, got {sizes!r}")
    if widths is not None and (sizes is not None or not 16 <= widths[0] <= widths[1] < math.inf):
        raise ValueError(f"widths must be two rising numbers of pixels from 16 on, without sizes, got {widths!r}")
    for name, share in (("depth_share", depth_share), ("system_share", system_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")

    shares = tuple(mix.get(kind, 0) / total for kind in ROW_KINDS)
    cameras = None if sizes is None else (sizes[0], sizes[1])
    said = (turns[0], turns[1])
    pixels = None if widths is None else (widths[0], widths[1])
    recipe = _Recipe(focal_length, shares, depth, depth_share, reply, said, system_share, group, cameras, raw, pixels)
    first = seed + HELD_OUT * (split == "test")
    size = group // ranks
    bounds = [first, *range(first - first % size + size, first + scenes, size), first + scenes]
    shards = list(itertools.pairwise(bounds))
    shards = [shard for rank in range(ranks) for shard in shards[rank::ranks]]
    return IterableDataset.from_generator(_rows, gen_kwargs={"shards": shards, "recipe": recipe})


def held_out_questions(scenes: int, start: int = 0, per_scene: int = 3) -> list[tuple[int, Question]]:
    """Ask questions about held-out scenes, balanced over their kinds, with the seeds for [`draw_scene`].

    Args:
        scenes: Number of scenes. Those that allow only kinds of questions
            that were asked more often than the rarest kind, by `per_scene` or more, are skipped.
        start: The first seed is `HELD_OUT + start`.
        per_scene: Questions about each, at most, of different kinds.
    """
    asked: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    found = []
    for seed in range(HELD_OUT + start, HELD_OUT + start + scenes):
        offered = questions(draw_scene(seed), np.random.default_rng([11, seed]))
        few = [question for question in offered if asked[question.kind] < min(asked.values()) + per_scene]
        rarest = sorted(few, key=lambda question: asked[question.kind])[:per_scene]
        asked.update(question.kind for question in rarest)
        found += [(seed, question) for question in rarest]
    return found


def draw_scene(
    seed: int,
    focal_length: float = 160.0,
    group: int = 16,
    sizes: tuple[float, float] | None = None,
    widths: tuple[float, float] | None = None,
) -> SyntheticScene:
    """Draw the scene of a seed as training sees it: with its own camera and light, up to 1.9 times oversampled.

    `group` scenes, from a multiple of it on, have images of one size at the canonical `focal_length`. With `sizes`
    or `widths` images have other focal lengths, see [`training_rows`].
    """
    rng = np.random.default_rng([10, seed])
    # Drawn from the group's number alone, so that all of them agree on it.
    grid = _camera(np.random.default_rng([8, seed // group]), focal_length, sizes, widths)[2]
    fov, (width, height), own_grid = _camera(rng, focal_length, sizes, widths)
    while own_grid != grid:
        fov, (width, height), own_grid = _camera(rng, focal_length, sizes, widths)
    scene = render_scene(seed, width=width, height=height, fov=fov)
    return dataclasses.replace(scene, image=change_light(scene.image, rng))


def _rows(shards: list[tuple[int, int]], recipe: _Recipe) -> Iterator[dict[str, Any]]:
    for first, end in shards:
        for seed in range(first, end):
            yield _row(seed, recipe)


def _row(seed: int, recipe: _Recipe) -> dict[str, Any]:
    scene = draw_scene(seed, recipe.focal_length, recipe.group, recipe.sizes, recipe.widths)
    rng = np.random.default_rng([9, seed])
    kind = ROW_KINDS[int(rng.choice(len(ROW_KINDS), p=recipe.shares))]
    with_depth = recipe.depth and (kind == "depth" or rng.random() < recipe.depth_share)
    said: list[tuple[str, str | None]]
    if kind == "depth":
        said, system = [(DEPTH_PROMPT, DEPTH_REPLY if recipe.reply else None)], True
    else:
        if kind == "map":
            said = [(MAP_PROMPT, object_map(scene))]
        elif kind == "position":
            said = list(positions(scene, rng, recipe.turns)) or [(CAPTION_PROMPT, caption(scene, rng))]
        else:
            said = list(conversation(scene, rng, recipe.turns, captioned=kind == "caption"))
        system = rng.random() < recipe.system_share
    messages = [{"role": "system", "content": DEPTH_SYSTEM_PROMPT}] if system else []
    for user, assistant in said:
        messages.append({"role": "user", "content": user})
        if assistant is not None:
            messages.append({"role": "assistant", "content": assistant})
    return {
        "messages": messages,
        "images": [Image.fromarray(scene.image)],
        "depth": scene.depth if with_depth else None,
        "focal_length": recipe.focal_length if recipe.raw else scene.focal_length,
    }


def _camera(
    rng: np.random.Generator,
    focal_length: float,
    sizes: tuple[float, float] | None,
    widths: tuple[float, float] | None = None,
) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """Draw the field of view in degrees, width and height of the image, and rows and columns of its tokens."""
    fov = rng.uniform(45, 80)
    spread = 2 * math.tan(math.radians(fov / 2))
    if sizes is None:
        oversampling = rng.uniform(1.0, 1.9) if rng.random() < 1 / 3 else 1.0
    else:
        oversampling = math.exp(rng.uniform(math.log(sizes[0]), math.log(sizes[1])))
    width = round(spread * focal_length * oversampling)
    if widths is not None:
        width = round(math.exp(rng.uniform(math.log(widths[0]), math.log(widths[1]))))
    height = round(width / ASPECTS[rng.integers(len(ASPECTS))])
    scale = focal_length * spread / width / _CELL
    return fov, (width, height), (round(height * scale), round(width * scale))


def change_light(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change gamma and white balance mildly: no light must be a cue for distance."""
    tone = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.3) * rng.uniform(0.9, 1.1, 3)
    table = (tone.clip(0, 1) * 255).astype(np.uint8)
    return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)
