"""Sampling of frames of a source and pixels of a frame: even over scenes and cameras, the same on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..sources.frames import FrameRef

# Table 9 of the paper (appendix A): training images of each source.
TRAINING_IMAGES = {
    "argoverse2": 800_000,
    "waymo": 800_000,
    "ddad": 76_000,
    "nuscenes": 206_000,
    "scannetpp": 800_000,
    "taskonomy": 800_000,
    "hm3d": 800_000,
    "matterport3d": 158_000,
}

# Table 10 of the paper (appendix A): evaluation images of each source.
EVALUATION_IMAGES = {
    "argoverse2": 1000,
    "waymo": 1000,
    "ddad": 1000,
    "nuscenes": 1000,
    "eth3d": 454,
    "scannetpp": 1000,
    "sunrgbd": 1000,
    "ibims1": 100,
    "nyuv2": 654,
}

# Section 3.3: ten pixels of each of 1k images, 10k a set; smaller sets are oversampled to that.
POINTS_PER_IMAGE = 10
SAME_IMAGES = {"nyuv2-sunrgbd": "nyuv2"}  # other truth, same set of table 10
EVALUATION_SET_IMAGES = 1000


def default_images(source: str, split: str) -> int | None:
    """Return the number of images in the paper's tables 9 ("train") and 10 ("test"); None, all, for other sources."""
    source = SAME_IMAGES.get(source, source)
    return (EVALUATION_IMAGES if split == "test" else TRAINING_IMAGES).get(source)


def points_per_image(source: str, split: str, images: int, points: int, oversample: bool = True) -> list[int]:
    """Count the points that each image of a set gets: `points`, or more in a small evaluation set of the paper.

    The paper scores 10 pixels an image, 10k a set, "oversampling smaller datasets when needed" (section 3.3). Here that
    means more pixels of each image, none twice: an evaluation set of table 10 with fewer than 1000 images has
    `1000 * points` points, spread so that two images differ by one at most. NYUv2 (654) has 15 or 16 an image, ETH3D
    (454) 22 or 23, iBims-1 (100) 100.

    Args:
        source: Name on the command line.
        split: "train" or "test".
        images: Number of images in the set.
        points: Number of points of an image.
        oversample: False where a user chose the number of images: then each has `points`.
    """
    source, total = SAME_IMAGES.get(source, source), points * EVALUATION_SET_IMAGES
    if not oversample or split != "test" or source not in EVALUATION_IMAGES or images >= EVALUATION_SET_IMAGES:
        return [points] * images
    return [total * (i + 1) // images - total * i // images for i in range(images)]


def sample_frames(refs: Sequence[FrameRef], count: int | None) -> list[FrameRef]:
    """Choose frames evenly over scenes and cameras, and within each over time, against near-duplicates (appendix A).

    Every (scene, camera) gives the same number of frames, or all it has where it has fewer. What is left over goes to
    one more frame of as many of them: to every scene before any scene's second, and to the cameras in turn. Within a
    (scene, camera) the frames are the midpoints of equal stretches of its frames in `order`.

    Args:
        refs: All frames.
        count: Number of frames; None, or more than there are, for all.

    Returns:
        The chosen frames, in the order of `refs`.
    """
    if count is None or count >= len(refs):
        return list(refs)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, ref in enumerate(refs):
        groups[ref.scene, ref.camera].append(index)
    keys = sorted(groups)
    sizes = np.array([len(groups[key]) for key in keys], dtype=np.int64)
    level = _level(sizes, count)
    quota = np.minimum(sizes, level)
    rest = [i for i in range(len(keys)) if sizes[i] > level]
    quota[_spread([keys[i] for i in rest], rest, count - int(quota.sum()))] += 1

    chosen: list[int] = []
    for key, wanted in zip(keys, quota.tolist(), strict=True):
        members = sorted(groups[key], key=lambda i: (refs[i].order, refs[i].id))
        chosen += [members[(2 * i + 1) * len(members) // (2 * wanted)] for i in range(wanted)]
    return [refs[i] for i in sorted(chosen)]


def _level(sizes: NDArray[np.int64], count: int) -> int:
    """Find the largest level with `minimum(sizes, level).sum() <= count`, where `count < sizes.sum()`."""
    low, high = 0, int(sizes.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if int(np.minimum(sizes, middle).sum()) <= count else (low, middle)
    return low


def _spread(keys: Sequence[tuple[str, str]], values: Sequence[int], count: int) -> list[int]:
    """Choose the `values` of `count` of the (scene, camera) keys, even over scenes and then over cameras."""
    if 2 * count > len(keys):
        left_out = set(_spread(keys, values, len(keys) - count))
        return [value for value in values if value not in left_out]
    cameras_of: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (scene, camera), value in zip(keys, values, strict=True):
        cameras_of[scene].append((camera, value))
    uses: Counter[str] = Counter()
    chosen: list[int] = []
    while count:
        scenes = [scene for scene, cameras in cameras_of.items() if cameras]
        if len(scenes) > count:
            scenes = [scenes[(2 * i + 1) * len(scenes) // (2 * count)] for i in range(count)]
        for scene in scenes:
            pick = min(cameras_of[scene], key=lambda item: uses[item[0]])
            cameras_of[scene].remove(pick)
            uses[pick[0]] += 1
            chosen.append(pick[1])
        count -= len(scenes)
    return chosen


def sample_points(valid: NDArray[np.bool_], count: int, *key: object) -> NDArray[np.int64]:
    """Draw pixels uniformly among the valid ones, none twice.

    Args:
        valid: `(h, w)`, where the depth map may be sampled.
        count: Number of pixels; all valid ones where there are fewer.
        key: Seed of the draw; the same key gives the same pixels on every machine and numpy version.

    Returns:
        `(n, 2)` int64: column and row.
    """
    pixels = np.flatnonzero(valid)
    if count < len(pixels):
        digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
        # numpy keeps the raw stream of a bit generator the same for ever, but not what `Generator` makes of it.
        bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))
        pixels = pixels[_draw(bits, len(pixels), count)]
    rows, columns = np.divmod(pixels, valid.shape[1])
    return np.stack([columns, rows], axis=1).astype(np.int64)


def _draw(bits: np.random.PCG64, size: int, count: int) -> NDArray[np.int64]:
    """Draw `count` different numbers of `range(size)`."""
    if 4 * count > size:
        return np.argsort(bits.random_raw(size), kind="stable")[:count]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        uniform = (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53
        drawn.update(dict.fromkeys((uniform * size).astype(np.int64).tolist()))
    return np.fromiter(drawn, dtype=np.int64, count=len(drawn))[:count]
