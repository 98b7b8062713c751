"""Which frames and pixels: counts of the paper, evenness over scenes, cameras and time, uniform valid pixels."""

import pickle
import random
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
from depthvlm.benchmark.build.sampling import (
    EVALUATION_IMAGES,
    TRAINING_IMAGES,
    default_images,
    points_per_image,
    sample_frames,
    sample_points,
)
from depthvlm.benchmark.sources.frames import FrameRef
from scipy.stats import chisquare

PAPER = "paper/unlocking_dense_metric_depth_in_vlms.txt"


def refs(scenes: int, cameras: int, frames: int) -> list[FrameRef]:
    places = product(range(scenes), range(cameras), range(frames))
    return [FrameRef(f"{s:03d}/{c}/{i:03d}", f"s{s:03d}", f"c{c}", 10 * i) for s, c, i in places]


def spread(counts: Counter, groups: int) -> int:
    """Greatest difference between two groups, those without a frame included."""
    values = [*counts.values(), *[0] * (groups - len(counts))]
    return max(values) - min(values)


def test_frames_of_an_index_are_small_and_travel():
    one, other = (FrameRef(f"a/{i}", "".join(["sce", "ne"]), "left", i) for i in (1, 2))
    assert not hasattr(one, "__dict__"), "an index has millions"
    assert one.scene is other.scene, "one string for all frames of a scene"
    assert pickle.loads(pickle.dumps([one, other])) == [one, other]


class TestCounts:
    def test_tables(self):
        assert sum(TRAINING_IMAGES.values()) == 4_440_000  # "4.4M images"
        known = {("ddad", "train"): 76_000, ("ddad", "test"): 1000, ("nyuv2", "test"): 654}
        known |= {("nyuv2", "train"): None, ("kitti", "test"): None}
        assert {key: default_images(*key) for key in known} == known
        names = {*TRAINING_IMAGES, *EVALUATION_IMAGES}
        assert len(names) == 12
        assert all(re.fullmatch("[a-z0-9]+", name) for name in names)

    @pytest.mark.real_data
    @pytest.mark.parametrize(("table", "known"), [(9, TRAINING_IMAGES), (10, EVALUATION_IMAGES)])
    def test_tables_as_printed(self, shared, table, known):
        lines = (shared / PAPER).read_text().split(f"Table {table}:")[1].splitlines()
        names, numbers = (next(line for line in lines if line.startswith(word)) for word in ("Dataset", "# Images"))
        sizes = {"nuscenes": "nuscenes", "ibims": "ibims1", "scannet++": "scannetpp"}
        printed = {}
        for name, number in zip(names.split("\t")[1:], numbers.split("\t")[1:], strict=True):
            key = sizes.get(name.lower().replace("-1", ""), name.lower())
            printed[key] = int(number.replace("K", "000"))
        assert printed == known

    @pytest.mark.parametrize(
        ("source", "images", "each"), [("nyuv2", 654, {15, 16}), ("eth3d", 454, {22, 23}), ("ibims1", 100, {100})]
    )
    def test_small_evaluation_sets_have_ten_thousand_points(self, source, images, each):
        points = points_per_image(source, "test", images, 10)
        assert sum(points) == 10_000
        assert len(points) == images
        assert set(points) == each

    def test_other_sets_have_ten_an_image(self):
        for source, split, images in (("ddad", "test", 1000), ("ddad", "train", 300)):
            assert set(points_per_image(source, split, images, 10)) == {10}
        assert set(points_per_image("folder", "test", 300, 7)) == {7}
        assert set(points_per_image("nyuv2", "test", 50, 10, oversample=False)) == {10}


class TestFrames:
    def test_midpoints_of_equal_stretches(self):
        chosen = sample_frames(refs(2, 2, 10), 8)
        # Ten frames in two halves: the third of each.
        assert Counter(ref.order for ref in chosen) == {20: 4, 70: 4}
        assert set(Counter((ref.scene, ref.camera) for ref in chosen).values()) == {2}
        assert [ref.order for ref in sample_frames(refs(1, 1, 10), 1)] == [50]
        orders = [ref.order for ref in sample_frames(refs(1, 1, 97), 12)]
        assert min(np.diff(orders)) >= 80  # 97 / 12 is 8 frames, 10 apart each

    def test_small_scenes_give_all_they_have(self):
        frames = [*refs(1, 1, 1), *refs(3, 1, 10)[10:]]
        assert Counter(ref.scene for ref in sample_frames(frames, 11)) == {"s000": 1, "s001": 5, "s002": 5}
        assert Counter(ref.scene for ref in sample_frames(frames, 20))["s000"] == 1
        assert len(sample_frames(refs(999, 1, 1), 400)) == 400
        frames = refs(2, 1, 3)
        assert sample_frames(frames, None) == sample_frames(frames, 6) == sample_frames(frames, 100) == frames

    # nuScenes has 150 scenes of 6 cameras, Waymo 202 of 5, and 1000 images are wanted of each.
    @pytest.mark.parametrize(("scenes", "cameras"), [(150, 6), (202, 5)])
    @pytest.mark.parametrize("count", [75, 1000, 1234])
    def test_even_over_scenes_and_cameras(self, scenes, cameras, count):
        chosen = sample_frames(refs(scenes, cameras, 4), count)
        assert len({ref.id for ref in chosen}) == count
        assert spread(Counter((ref.scene, ref.camera) for ref in chosen), scenes * cameras) <= 1
        assert spread(Counter(ref.scene for ref in chosen), scenes) <= 1
        assert spread(Counter(ref.camera for ref in chosen), cameras) <= 2
        # The scenes themselves are not the first ones.
        halves = Counter(int(ref.scene[1:]) * 2 // scenes for ref in chosen)
        assert abs(halves[0] - halves[1]) <= 0.02 * count + 2

    def test_order_of_the_index_is_kept_and_does_not_matter(self):
        frames = refs(7, 3, 9)
        chosen = sample_frames(frames, 50)
        assert chosen == [ref for ref in frames if ref in set(chosen)]
        random.Random(0).shuffle(frames)
        assert set(sample_frames(frames, 50)) == set(chosen)


class TestPoints:
    def test_valid_distinct_and_stable(self):
        valid = np.zeros((48, 64), dtype=bool)
        valid[10:20, 30:60] = True
        points = sample_points(valid, 25, 0, "toy", "train", "a/b_1")
        assert points.shape == (25, 2)
        assert len({tuple(point) for point in points.tolist()}) == 25
        assert valid[points[:, 1], points[:, 0]].all()
        np.testing.assert_array_equal(points, sample_points(valid, 25, 0, "toy", "train", "a/b_1"))
        for key in ((1, "toy", "train", "a/b_1"), (0, "toy", "test", "a/b_1"), (0, "toy", "train", "a/b_2")):
            assert (points != sample_points(valid, 25, *key)).any()
        few = np.zeros((4, 5), dtype=bool)
        assert sample_points(few, 10, "a").shape == (0, 2)
        few[1, 2] = few[3, 4] = True
        assert sample_points(few, 10, "a").tolist() == [[2, 1], [4, 3]]

    # Few of many are drawn one by one, many of few by a permutation.
    @pytest.mark.parametrize(("count", "draws"), [(10, 1500), (60, 300)])
    def test_uniform(self, count, draws):
        valid = np.zeros((20, 20), dtype=bool)
        valid[::2, ::2] = True  # 100 pixels
        drawn = np.concatenate([sample_points(valid, count, 3, i) for i in range(draws)])
        counts = Counter((drawn[:, 1] * 20 + drawn[:, 0]).tolist())
        assert len(counts) == 100
        assert chisquare(list(counts.values())).pvalue > 0.001
