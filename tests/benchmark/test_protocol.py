"""Protocols: crops, ranges, names and hashes; where the points of annotation lines lie."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from depthvlm.benchmark.scoring.metrics import ErrorSums, MetricAccumulator, delta1
from depthvlm.benchmark.scoring.protocols import PROTOCOLS, Protocol, get_protocol
from depthvlm.benchmark.scoring.tasks import point_pixels, published_truth
from PIL import Image

from depthvlm.geometry import ray_factors


class TestProtocol:
    def test_presets(self):
        """Their hashes, which stand in users' results, pin every field."""
        assert {name: protocol.hash() for name, protocol in PROTOCOLS.items()} == {
            "depthvlm": "9150fec741a0",
            "depthvlm-published": "8809b727d63c",
            "depthlm": "1c594afd813b",
            "nyu-eigen": "24e7ff3284cd",
            "kitti-garg": "e22b7bc02d04",
            "kitti-eigen": "7020c2ec4dbb",
            "dense": "1fb665d92eec",
        }
        assert all(name == protocol.name and protocol.description for name, protocol in PROTOCOLS.items())
        with pytest.raises(ValueError, match=f"Unknown protocol 'nyu': choose one of {', '.join(PROTOCOLS)}"):
            get_protocol("nyu")

    def test_hash_is_of_the_fields(self):
        def hash_of(fields: dict) -> str:
            return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]

        fields = {"aggregation": "images", "alignment": "none", "clip": True, "coordinates": "depth"}
        fields |= {"crop": "kitti-garg", "depth_type": "z", "kb_crop": True, "max_depth": 80.0, "min_depth": 0.001}
        fields |= {"name": "kitti-garg", "points": None, "seed": 0}
        protocol = get_protocol("kitti-garg")
        assert protocol.hash() == hash_of(fields)
        assert dataclasses.replace(protocol, description="other words").hash() == hash_of(fields)
        assert dataclasses.replace(protocol, max_depth=80).hash() == hash_of(fields)
        assert dataclasses.replace(protocol, max_depth=50).hash() != hash_of(fields)
        # False is as absent: results from before the field keep their hash.
        del fields["kb_crop"]
        assert dataclasses.replace(protocol, kb_crop=False).hash() == hash_of(fields)

    def test_changes_show_in_the_name(self):
        changed = get_protocol("kitti-garg", alignment="median", max_depth=50)
        assert changed.name == "kitti-garg(alignment=median, max_depth=50)"
        assert (changed.alignment, changed.max_depth, changed.crop) == ("median", 50.0, "kitti-garg")
        assert get_protocol("kitti-garg", max_depth=80) == PROTOCOLS["kitti-garg"]
        assert get_protocol("dense", name="mine", seed=3).name == "mine"
        with pytest.raises(ValueError, match="no field 'align', only name, points"):
            get_protocol("dense", align="median")

    def test_round_trip(self):
        for protocol in PROTOCOLS.values():
            again = Protocol.from_dict(json.loads(json.dumps(protocol.to_dict())))
            assert (again, again.hash()) == (protocol, protocol.hash())
        for values, words in (({"name": "a", "range": 3}, "no field 'range'"), ({}, "needs a `name`")):
            with pytest.raises(ValueError, match=words):
                Protocol.from_dict(values)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"crop": "garg"}, "`crop` must be one of None, 'nyu-eigen', 'kitti-garg', 'kitti-eigen', got 'garg'"),
            ({"depth_type": "distance"}, "`depth_type` must be one of 'z', 'ray'"),
            ({"alignment": "mean"}, "`alignment` must be one of 'none', 'median', 'scale'"),
            ({"aggregation": "sum"}, "`aggregation` must be"),
            ({"coordinates": "rgb"}, "`coordinates` must be"),
            ({"points": 0}, "`points` must be a whole number from 1"),
            ({"points": 10, "crop": "kitti-garg"}, "a crop needs a dense map"),
            ({"coordinates": "published"}, "give `points`"),
            ({"min_depth": 10, "max_depth": 10}, "the range from 10.0 to 10.0 m holds no depth"),
            ({"min_depth": -1}, "holds no depth"),
        ],
    )
    def test_errors(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Protocol(name="mine", **fields)


class TestMasks:
    @pytest.mark.parametrize(
        ("name", "size", "expected"),
        [
            ("nyu-eigen", (480, 640), (45, 470, 41, 600)),
            # 153.04, 371.96, 44.65, 1197.35, rounded down; the last row and column are excluded.
            ("kitti-garg(kb_crop=False)", (375, 1242), (153, 370, 44, 1196)),
            # Of 352x1216 at row 375 - 352 = 23 and column (1242 - 1216) / 2 = 13: 143.65, 349.15, 43.71, 1172.29,
            # rounded down and shifted.
            ("kitti-garg", (375, 1242), (23 + 143, 23 + 348, 13 + 43, 13 + 1171)),
            ("kitti-garg", (370, 1224), (18 + 143, 18 + 348, 4 + 43, 4 + 1171)),
            # 124.66, 342.57, 44.65, 1197.35
            ("kitti-eigen", (375, 1242), (124, 341, 44, 1196)),
            ("dense", (3, 5), (0, 2, 0, 4)),
        ],
    )
    def test_crops(self, name, size, expected):
        name, _, change = name.partition("(")
        mask = get_protocol(name, **({"kb_crop": False} if change else {})).crop_mask(*size)
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == expected
        assert mask.sum() == (expected[1] - expected[0] + 1) * (expected[3] - expected[2] + 1)

    def test_kb_crop(self):
        mask = get_protocol("dense", kb_crop=True).crop_mask(375, 1242)
        assert mask.sum() == 352 * 1216
        assert mask[23:, 13:1229].all()

    @pytest.mark.parametrize(
        ("name", "changes", "size", "words"),
        [
            ("nyu-eigen", {}, (530, 730), "480x640 pixels .* got 530x730"),
            ("kitti-garg", {}, (256, 1216), "at least 352x1216 pixels .* got 256x1216.*kb_crop=false"),
            ("nyu-eigen", {"kb_crop": True}, (480, 640), "`kb_crop` is for KITTI's images"),
            ("depthvlm", {"kb_crop": True}, (480, 640), "a crop needs a dense map"),
        ],
    )
    def test_crops_of_other_images(self, name, changes, size, words):
        with pytest.raises(ValueError, match=words):
            get_protocol(name, **changes).crop_mask(*size)

    @pytest.mark.real_data
    def test_pixels_of_a_real_map(self, shared):
        """With the KB crop, Garg's crop has 3.6 to 5.2 % fewer measured pixels."""
        files = sorted((shared / "data/kitti/kitti_demo/depth").glob("*.png"))
        assert files
        for file in files:
            truth = np.asarray(Image.open(file)) / 256
            counts = [get_protocol("kitti-garg", kb_crop=kb).valid_mask(truth).sum() for kb in (False, True)]
            assert 0.036 <= round(1 - counts[1] / counts[0], 3) <= 0.052

    def test_ranges(self):
        truth = np.array([0.0, 0.001, 0.5, 1, 10, 80, 90, np.inf], dtype=np.float32)
        mine = get_protocol("dense", min_depth=0.001, max_depth=80)
        for protocol, bounds, expected in (
            # The source's bounds count, the protocol's own do not.
            (get_protocol("dense"), (0.5, 80), [0, 0, 1, 1, 1, 1, 0, 0]),
            (mine, (0.5, 90), [0, 0, 1, 1, 1, 0, 0, 0]),
            (get_protocol("dense", max_depth=80), (1, 10), [0, 0, 0, 1, 1, 0, 0, 0]),
            (get_protocol("dense"), None, [0, 1, 1, 1, 1, 1, 1, 0]),
        ):
            assert protocol.valid_mask(truth, *([bounds] if bounds else [])).tolist() == expected
        with pytest.raises(ValueError, match="'x' has no valid pixel"):
            mine.valid_mask(np.full(8, 80.0), name="'x'")
        # float32(0.005) is below 0.005.
        truth = np.full((2, 2), 0.005, dtype=np.float32)
        assert get_protocol("dense").valid_mask(truth, (0.005, 10)).all()
        assert get_protocol("dense").prepare(truth, truth, (0.005, 10))[2].all()
        # Crop and range together.
        truth = np.full((375, 1242), 20.0)
        truth[200] = 85
        assert get_protocol("kitti-garg", kb_crop=False).valid_mask(truth).sum() == (371 - 153 - 1) * (1197 - 44)
        with pytest.raises(ValueError, match=r"needs a truth \(H, W\), got the shape \(4,\)"):
            get_protocol("kitti-garg").valid_mask(np.ones(4))


class TestByHand:
    """Whole maps under the dense presets: which pixels count, and what a prediction beyond the range becomes."""

    @pytest.mark.parametrize(
        ("name", "size", "pixels", "far"),
        [
            # Rows 45 to 470 and columns 41 to 600, without two rows whose truth is a bound.
            ("nyu-eigen", (480, 640), (426 - 2) * 560, 10),
            # Rows 166 to 371 and columns 56 to 1184; rows 124 to 341 and columns 44 to 1196.
            ("kitti-garg", (375, 1242), (206 - 2) * 1129, 80),
            ("kitti-eigen", (375, 1242), (218 - 2) * 1153, 80),
        ],
    )
    def test_crop_range_and_clip(self, name, size, pixels, far):
        truth = np.full(size, far - 1.0)
        truth[200], truth[201] = far, 1e-3
        truth[0], truth[:, 0] = 1.0, 1.0  # outside of the crop
        prediction = np.full(size, 500.0)
        prediction[210, 100] = -3.0  # a failure is not moved into the range
        sums = ErrorSums.of(*get_protocol(name).prepare(prediction, truth))
        assert (sums.pixels, sums.failures) == (pixels, 1)
        # 500 m counts as 10 or 80 m, for 9 or 79.
        found = sums.metrics()["abs_rel"], sums.metrics()["delta1"]
        assert found == pytest.approx((1 / (far - 1), (pixels - 1) / pixels))


class TestPrepare:
    def test_clips_answers_not_failures(self):
        prediction, truth = np.array([200.0, 1e-5, 3.0, -1.0, np.nan, np.inf]), np.array([70.0, 1, 3, 3, 3, 3])
        protocol = get_protocol("kitti-garg", crop=None, kb_crop=False)
        p, g, mask = protocol.prepare(prediction, truth)
        np.testing.assert_array_equal(p, [80, 0.001, 3, np.nan, np.nan, np.nan])
        assert mask.all()
        # 80 for 70 m and 3 for 3 m are right; three answers failed.
        assert delta1(p, g, mask) == pytest.approx(2 / 6)
        with pytest.raises(ValueError, match="clips, but neither it nor the source"):
            get_protocol("dense", clip=True).prepare(prediction, truth)

    def test_aligns_over_what_is_scored(self):
        # Inside the range the median ratio is 2; the pixel beyond it would make it 3.
        prediction, truth = np.array([1.0, 2, 4, 30]), np.array([2.0, 4, 8, 300])
        p, _, mask = get_protocol("dense", alignment="median").prepare(prediction, truth, (0.1, 80))
        np.testing.assert_allclose(p, [2, 4, 8, 60])
        assert mask.tolist() == [True, True, True, False]
        # A disparity below zero ends at the range.
        prediction, truth = 1 / np.array([0.8, 0.5, 0.2]), np.array([2.0, 5.0, 90.0])
        p, _, _ = get_protocol("dense", alignment="scale_shift_disparity").prepare(prediction, truth, (0.1, 80))
        np.testing.assert_allclose(p, [2, 5, 80])

    def test_along_the_ray(self):
        # Column 14 of fx = 4 is 45 degrees off the axis.
        factors, root = ray_factors([[10, 20], [14, 20]], (4.0, 3.0, 10.5, 20.5)), 2**0.5
        protocol = get_protocol("dense", depth_type="ray")
        found = protocol.prepare([1.0, 2.0], [1.0, 3.0], ray_factors=factors)[:2]
        np.testing.assert_allclose(found, [[1, 2 * root], [1, 3 * root]])
        found = get_protocol("dense", depth_type="ray_truth").prepare([1.0, 2.0], [1.0, 3.0], ray_factors=factors)[:2]
        np.testing.assert_allclose(found, [[1, 2], [1, 3 * root]])
        with pytest.raises(ValueError, match="give `ray_factors`"):
            protocol.prepare([1.0], [1.0])

    def test_what_it_gives_is_scored(self):
        accumulator = MetricAccumulator()
        accumulator.add("a", *get_protocol("dense").prepare([[1.0, 5.0, 9.0]], [[1.0, 10.0, 0.0]], (0.5, 80)))
        assert accumulator.compute()["images"]["delta1"] == 0.5
        with pytest.raises(ValueError, match=r"prediction for 'b' has the shape \(2,\), its truth \(3,\)"):
            get_protocol("dense").prepare([1.0, 2.0], [1.0, 2.0, 3.0], name="'b'")


class TestPoints:
    def test_centres_on_centres(self):
        # A 4x2 map under a 16x6 image: pixel 0 covers image columns 0..3, centre 1.5, and rows 0..2, centre 1.
        pixels = point_pixels([[0, 0], [3, 1], [1, 0]], (4, 2), (16, 6))
        np.testing.assert_allclose(pixels, [[1.5, 1], [13.5, 4], [5.5, 1]])
        np.testing.assert_array_equal(point_pixels([[3, 1]], (4, 2), (4, 2)), [[3, 1]])

    def test_published_reading(self):
        np.testing.assert_array_equal(point_pixels([[3, 1]], (4, 2), (16, 6), "published"), [[3, 1]])
        # A 4x2 map, canonical 8x3 of a 16x6 image: point (3, 1) comes to (1.5, 0.5), rounded to even (2, 0), which is
        # (1, 0) of the map.
        depth = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
        truth = published_truth(depth, [[3, 1], [0, 0]], [9.0, 9.0], (16, 6), (8, 3))
        np.testing.assert_array_equal(truth, [2, 1])
        # No depth there: the listed one. Rounded beyond the border (15 / 2 = 7.5, to 8): left out.
        depth[0, 1] = 0
        truth = published_truth(depth, [[3, 1], [15, 0]], [9.0, 9.0], (16, 6), (8, 3))
        np.testing.assert_array_equal(truth, [9, 0])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (([[4, 0]], (4, 2), (16, 6)), "outside the map of 4x2 pixels"),
            (([[16, 0]], (20, 10), (16, 6), "published"), "outside the map of 16x6 pixels"),
            (([1, 2], (4, 2), (16, 6)), "column and row"),
            (([[1, 2]], (4, 2), (16, 6), "rgb"), 'must be "depth" or "published"'),
        ],
    )
    def test_errors(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            point_pixels(*arguments)

    @pytest.mark.real_data
    def test_scannetpp(self, shared):
        folder = shared / "data" / "scannetpp"
        lines = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
        truths = []
        for line in lines:
            raw = np.asarray(Image.open(folder / "depth" / line["depth_path"]))
            depth, coordinates = raw / 1000, np.array(line["pixel_coords"])
            sizes = line["original_depth_size"], line["original_rgb_size"]
            right = point_pixels(coordinates, *sizes)
            # Each lies in the middle of the 7.5 x 7.5 image pixels of its depth pixel, where the listed depth is.
            np.testing.assert_allclose((right + 0.5) / 7.5 - 0.5, coordinates, atol=1e-9)
            np.testing.assert_allclose(depth[*coordinates.T[::-1]], line["depth"], atol=1e-9)
            published = point_pixels(coordinates, *sizes, "published")
            assert (published < np.array([1920, 1440]) * 0.134).all()
            truths.append(published_truth(depth, coordinates, line["depth"], sizes[1], line["canonical_size"]))
        # The first point (238, 48): canonical (165.98, 33.47), so (166, 33) of 1339x1004, which is (31, 6) of the map.
        raw = np.asarray(Image.open(folder / "depth" / lines[0]["depth_path"]))
        assert truths[0][0] == raw[6, 31] / 1000
        assert all((truth > 0).all() for truth in truths)

    @pytest.mark.real_data
    def test_nyu_crop_of_a_real_map(self, shared):
        raw = np.asarray(Image.open(shared / "data/nyuv2/nyu_demo/depth/sync_depth_00000.png"))
        metres = raw.astype(np.float32) / 1000
        mask = get_protocol("nyu-eigen").valid_mask(metres)
        assert mask.sum() == np.count_nonzero(raw[45:-9, 41:-39])
        assert metres[mask].max() < 10
