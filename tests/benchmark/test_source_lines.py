"""Released annotation lines as a source: their maps in every encoding, their cameras, and their very points."""

import json
from pathlib import Path

import numpy as np
import pytest
from bench_builds import build_toy
from bench_source import make_toy
from depthvlm.benchmark.build.annotations import write_annotations
from depthvlm.benchmark.build.builder import run_build
from depthvlm.benchmark.build.plan import plan_build
from depthvlm.benchmark.scoring.eval_sets import EvalSet
from depthvlm.benchmark.scoring.protocols import get_protocol
from depthvlm.benchmark.scoring.results import lines_path, read_lines
from depthvlm.benchmark.scoring.runner import LoadedSystem, evaluate, result_path
from depthvlm.benchmark.scoring.tasks import make_example
from depthvlm.benchmark.sources import open_source
from depthvlm.benchmark.sources.lines import AnnotationLines
from depthvlm.benchmark.systems.interface import Constant
from PIL import Image
from toy_source_files import check_frame, fails, frame_of, no_index, write_depth, write_image

RAW = [[0, 1000, 2500], [500, 4000, 60000]]
LINE = {
    **{"scene_id": "hall", "image": "rgb/a.png", "depth_path": "depth/a.png", "depth_scale": 1000.0},
    **{"original_rgb_size": [9, 6], "original_depth_size": [3, 2], "original_fx": 100},
    **{"pixel_coords": [[2, 1], [1, 0], [2, 1]], "depth": [60.0, 1.0, 60.0], "depth_type": "z_depth"},
}


@pytest.fixture
def root(tmp_path):
    write_image(tmp_path / "rgb/a.png", (9, 6))
    write_depth(tmp_path / "depth/a.png", RAW)
    return tmp_path


def source_of(root: Path, *lines: dict | str, **options) -> AnnotationLines:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "a.jsonl").write_text("\n".join(texts) + "\n")
    return AnnotationLines(root, **options)


def line_frame(root: Path, **changes):
    return frame_of(source_of(root, LINE | changes))


def build_lines(root: Path, out: Path, **options) -> EvalSet:
    plan = plan_build(open_source("lines", root, **options), "test", options=options)
    run_build(plan, open_source, root, out, workers=1)
    return EvalSet(out, "lines")


def write_mask(path: Path, rows: list[list[int]]) -> None:
    Image.fromarray(np.array(rows, np.uint8)).save(path)


class TestMaps:
    def test_a_line(self, root):
        frame = line_frame(root)
        check_frame(frame, (root / "rgb/a.png").read_bytes(), (9, 6), (2, 3))
        assert (frame.depth.dtype, frame.depth.tolist(), frame.depth_scale) == (np.uint16, RAW, 1000)
        assert frame.points.tolist() == [[2, 1, 60], [1, 0, 1], [2, 1, 60]]
        # A point where the map has none is kept.
        assert line_frame(root, pixel_coords=[[0, 0]], depth=[3.0]).points.tolist() == [[0, 0, 3]]
        # Metres may be rounded to two decimals.
        write_depth(root / "depth/a.png", [[1234, 0, 0], [0, 0, 0]])
        assert line_frame(root, pixel_coords=[[0, 0]], depth=[1.23]).points[0, 2] == 1.23

    def test_rotated_bits(self, root):
        # SUN RGB-D: 9 m is beyond the first 8.192 m, which a division by 8000 gets right.
        true = np.array([[1000, 8191, 9000], [640, 0, 8192]], dtype=np.uint16)
        write_depth(root / "depth/a.png", (true << 3) | (true >> 13))
        frame = line_frame(root, depth_scale=8000.0, pixel_coords=[[2, 0]], depth=[9.0])
        assert (frame.depth.tolist(), frame.depth_scale) == (true.tolist(), 1000)

    def test_raster_and_masks(self, root):
        np.array([[1, np.inf, 3], [4, 5, 6]], dtype="<f4").tofile(root / "depth/raw")
        write_mask(root / "depth/valid.png", [[0, 255, 255], [255, 255, 255]])
        write_mask(root / "depth/transp.png", [[1, 1, 1, 1, 1, 0]] * 4)
        changes = {"depth_path": "depth/raw", "depth_format": "binary_float32", "depth_scale": None}
        changes |= {"pixel_coords": [[0, 1]], "depth": [4.0]}
        frame = line_frame(root, **changes)
        assert (frame.depth.dtype, frame.depth_scale) == (np.float32, 1)
        assert frame.depth.tolist() == [[1, 0, 3], [4, 5, 6]]
        frame = line_frame(root, mask_valid_path="depth/valid.png", mask_transp_path="depth/transp.png", **changes)
        assert frame.depth.tolist() == [[0, 0, 0], [4, 5, 0]]

    def test_values_without_measurement_and_out_of_the_range_of_the_source(self, root):
        write_depth(root / "taskonomy/a.png", [[65535, 512, 1024], [0, 7680, 7681]])
        changes = {"depth_path": "taskonomy/a.png", "depth_scale": 512.0, "pixel_coords": [[2, 0]], "depth": [2.0]}
        assert line_frame(root, **changes).depth.tolist() == [[0, 512, 1024], [0, 7680, 0]], "15 m at most"

    def test_points_alone(self, root):
        changes = {"depth_path": None, "pixel_coords": [[2, 1], [0, 0]], "depth": [2.417792019531548, 1.5]}
        frame = line_frame(root, **changes)
        np.testing.assert_array_equal(frame.depth, np.float32([[1.5, 0, 0], [0, 0, 2.417792019531548]]))
        assert frame.points[:, 2].tolist() == changes["depth"], "not rounded to float32"

    def test_distances_along_the_ray(self, root):
        """The released lines of Argoverse 2 and Waymo: 45 degrees off the axis a distance of sqrt(2) is a z of 1."""
        write_image(root / "waymo/a.png", (9, 1))
        line = {"image": "waymo/a.png", "original_rgb_size": [9, 1], "original_depth_size": [9, 1], "original_fx": 4}
        line |= {"pixel_coords": [[4, 0], [8, 0]], "depth": [1.0, 2**0.5], "depth_type": "z_depth"}
        with pytest.warns(UserWarning, match="1 of the 1 lines in .* distance along the ray.*ray_to_z=true"):
            source_of(root, line).index("test")
        frame = frame_of(source_of(root, line, ray_to_z=True))
        np.testing.assert_allclose(frame.points, [[4, 0, 1], [8, 0, 1]])
        np.testing.assert_allclose(frame.metres()[0, [4, 8]], [1, 1])

    def test_cameras(self, root):
        assert line_frame(root).intrinsics == (100, 100, 4.5, 3)  # the centre is assumed: 9x6 pixels from (0.5, 0.5)
        assert line_frame(root, original_fy=101, original_cy=0).intrinsics == (100, 101, 4.5, 0)
        assert line_frame(root, intrinsics=[90, 91, 5, 3, 9, 6]).intrinsics == (90, 91, 5, 3)


class TestIndex:
    def test_scenes_numbers_and_empty_lines(self, root):
        source = source_of(root, LINE, "", LINE | {"scene_id": None, "image": "/rgb/b 1.png"})
        refs = source.index("train")
        expected = [("0000001/a", "hall", 1), ("0000003/b_1", "/rgb", 3)]
        assert [(ref.id, ref.scene, ref.order) for ref in refs] == expected
        assert source.index("test") == refs
        line = LINE | {"image": "/a.png", "depth_path": "a.png"}
        assert frame_of(source_of(root, line, image_root="rgb", depth_root="depth")).depth.tolist() == RAW

    def test_which_file(self, root):
        no_index(r"expected one \.jsonl file in .*, there is none: name it by --option", AnnotationLines, root)
        source_of(root, LINE)
        (root / "b.jsonl").touch()
        no_index(r"there is a\.jsonl, b\.jsonl", AnnotationLines, root)
        no_index(r"no file .*c\.jsonl", AnnotationLines, root, file="c.jsonl")
        no_index("the split 'test' has no frames", AnnotationLines, root, file="b.jsonl")
        no_index("expected the folder images/", AnnotationLines, root, file="a.jsonl", image_root="images")


class TestBadLines:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"image": "rgb/gone.png"}, "gone.png: no such file"),
            ({"image": None}, "it has no `image`"),
            ({"pixel_coords": []}, "it has no `pixel_coords`"),
            ({"depth": None}, "it has no `depth`"),
            ({"depth": [1.0]}, "a number in metres for each of them"),
            ({"depth": [60.0, 0, 60.0]}, "not a number of metres above 0"),
            ({"pixel_coords": [[2, 1], [1, 2], [2, 1]]}, "points outside the map of 3x2 pixels"),
            ({"pixel_coords": [[2, 1], [1, 0.5], [2, 1]]}, "pairs of whole numbers"),
            (
                {"depth_scale": 4000.0},
                "3 of 3 listed depths are not those of the map: at column 2, row 1 it lists 60 m",
            ),
            ({"depth_scale": None}, "unit is not known"),
            ({"depth_path": "depth/gone.png"}, "gone.png"),
            ({"depth_path": None, "original_depth_size": None}, "the size of their map"),
            ({"depth_type": "ray_distance"}, "only z_depth is read"),
            ({"original_rgb_size": [18, 12]}, "its image has 9x6 pixels (width x height), the line says [18, 12]"),
            ({"original_depth_size": [2, 3]}, "its depth map has 3x2 pixels"),
            ({"original_fx": None}, "focal length is not known"),
            ({"original_fx": -1}, "fx and fy above 0"),
        ],
    )
    def test_its_number_and_the_reason(self, root, changes, reason):
        source = source_of(root, LINE, LINE, LINE | changes)
        fails(source, source.index("test")[2], "a.jsonl, line 3: ", reason)

    def test_no_json_object(self, root):
        source = source_of(root, LINE, '{"image": "rgb/a.png", "dep', "[1, 2]", "\x80", LINE)
        refs = source.index("test")
        assert [ref.id for ref in refs] == ["0000001/a", "0000002", "0000003", "0000004", "0000005/a"]
        for number in (2, 3, 4):
            fails(source, refs[number - 1], f"a.jsonl, line {number}: not ")

    def test_it_is_left_out_and_listed(self, root, tmp_path):
        source_of(root, LINE, LINE | {"depth_scale": 500.0})
        entry = run_build(
            plan_build(open_source("lines", root), "test"), open_source, root, tmp_path / "out", workers=1
        )
        assert entry["counts"]["rows"] == 1
        [bad] = entry["bad_frames"]
        assert bad["id"] == "0000002/a"
        assert bad["reason"].startswith("a.jsonl, line 2: 3 of 3 listed depths are not those of the map")


class TestPoints:
    def test_they_are_what_is_scored(self, root, tmp_path):
        source = source_of(root, LINE)
        data = build_lines(root, tmp_path / "out")
        item = data.read(0)
        assert (item.points.tolist(), item.point_depths.tolist()) == (LINE["pixel_coords"], LINE["depth"])
        for name in ("depthvlm", "depthlm"):  # of different seeds
            example = make_example(item, data, get_protocol(name, points=3))
            # A pixel of the map is 3x3 of the image; its middle is the pixel 3 c + 1.
            assert example.points.tolist() == [[7, 4], [4, 1], [7, 4]]
            assert example.truth.tolist() == LINE["depth"]
        with pytest.raises(ValueError, match=r"scores 10 points an image, the build has 3 .*--change points=3"):
            make_example(item, data, get_protocol("depthvlm"))
        # Points and seed change nothing.
        assert plan_build(source, "test", points=10, seed=0).hash == plan_build(source, "test", points=3, seed=7).hash

    def test_our_own_lines_give_the_build_again(self, tmp_path):
        root, out = make_toy(tmp_path / "root", float=True), tmp_path / "out"
        build_toy(root, out, "test", points=5)
        write_annotations(out, "toy", "test")
        theirs, ours = EvalSet(out, "toy"), build_lines(out, tmp_path / "again", file="toy-test.jsonl")
        assert len(ours) == len(theirs) == 16
        for index in range(16):
            one, other = theirs.read(index), ours.read(index)
            np.testing.assert_array_equal(one.depth, other.depth)
            assert one.points.tolist() == other.points.tolist()
            assert one.point_depths.tolist() == other.point_depths.tolist()
            assert one.intrinsics == other.intrinsics


@pytest.mark.real_data
class TestRealLines:
    @pytest.fixture
    def released(self, shared) -> list[dict]:
        text = (shared / "data/scannetpp/examples.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    @pytest.fixture
    def scannetpp(self, shared, tmp_path) -> EvalSet:
        options = {"file": "examples.jsonl", "image_root": "rgb", "depth_root": "depth"}
        return build_lines(shared / "data/scannetpp", tmp_path / "scannetpp", **options)

    def test_all_released_points_are_scored_and_are_the_maps(self, shared, released, scannetpp, tmp_path):
        system = LoadedSystem("constant", "Constant", Constant(2.0), {})
        protocol = get_protocol("depthvlm")
        result = evaluate(system, scannetpp, protocol, tmp_path)
        assert (result.images, result.pixels) == (12, 120)
        scored = {one.id: one for one in read_lines(lines_path(result_path(tmp_path, system, scannetpp, protocol)))}
        for number, line in enumerate(released, start=1):
            one = scored[f"{number:07d}/{Path(line['image']).stem}"]
            assert one.truth == line["depth"]
            raw = np.asarray(Image.open(shared / "data/scannetpp/depth" / line["depth_path"]))
            assert [raw[row, column] / 1000 for column, row in line["pixel_coords"]] == line["depth"]
            # 1920 / 256 = 1440 / 192 = 7.5 pixels of the image are one of the map.
            assert one.points == [[7.5 * c + 3.25, 7.5 * r + 3.25] for c, r in line["pixel_coords"]]
        right = [max(2 / g, g / 2) < 1.25 for line in released for g in line["depth"]]
        assert result.metrics["pixels"]["delta1"] == pytest.approx(np.mean(right))

    def test_the_published_reading(self, shared, released, scannetpp):
        protocol = get_protocol("depthvlm-published")
        for index in range(len(scannetpp)):
            item = scannetpp.read(index)
            line = released[int(item.id[:7]) - 1]
            example = make_example(item, scannetpp, protocol)
            assert example.points.tolist() == line["pixel_coords"], "as if they were pixels of the image"
            raw = Image.open(shared / "data/scannetpp/depth" / line["depth_path"])
            # The truth is read from the map at the canonical size, to which the points are brought too.
            enlarged = np.repeat(np.repeat(np.asarray(raw), 40, axis=0), 40, axis=1)
            width, height = line["canonical_size"]
            for (column, row), metres, listed in zip(line["pixel_coords"], example.truth, line["depth"], strict=True):
                x, y = round(column * width / 1920), round(row * height / 1440)
                there = enlarged[int(y * 7680 / height), int(x * 10240 / width)] / 1000
                assert metres == pytest.approx(there or listed)

    def test_points_of_ibims_alone(self, shared, tmp_path):
        data = build_lines(shared / "data/ibims1", tmp_path / "ibims1")
        released = [json.loads(line) for line in (shared / "data/ibims1/ibims1_val.jsonl").read_text().splitlines()]
        assert len(data) == len(released) == 25
        for index in range(25):
            item = data.read(index)
            line = released[int(item.id[:7]) - 1]
            example = make_example(item, data, get_protocol("depthvlm"))
            assert example.points.tolist() == line["pixel_coords"]
            assert example.truth.tolist() == line["depth"]
            assert list(item.intrinsics) == line["intrinsics"][:4]
