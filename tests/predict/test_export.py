"""Files: what is in them, by numbers worked out by hand, and that they appear whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from depthvlm.processing import Camera, read_depth
from PIL import Image

from depthvlm import Prediction, export
from depthvlm.geometry import back_project, flying_pixels
from depthvlm.prediction import FORMATS


def camera(width: int, height: int, focal_length: float = 100.0) -> Camera:
    return Camera(focal_length, focal_length, width / 2, height / 2, width, height, "focal_length")


def prediction(depth: np.ndarray, focal_length: float = 100.0, **kwargs) -> Prediction:
    """A prediction whose pixel (row, column) has the colour (row, column, 7)."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8))
    return Prediction(depth.astype(np.float32), camera(width, height, focal_length), image, **kwargs)


STEP = np.where(np.arange(8) < 4, 1.0, 3.0) * np.ones((6, 1))  # columns 0 to 3 at 1 m, 4 to 7 at 3 m


class TestMeasuring:
    """Pixel (row 1, column 2) has its centre at (2.5, 1.5); the camera is 100 px at (4, 3)."""

    def test_points_are_those_of_the_pixels_centres(self):
        points = prediction(STEP).points
        assert points.shape == (6, 8, 3)
        np.testing.assert_allclose(points[1, 2], [(2.5 - 4) / 100, (1.5 - 3) / 100, 1], atol=1e-7)
        np.testing.assert_allclose(points[5, 7], [3.5 / 100 * 3, 2.5 / 100 * 3, 3], atol=1e-7)
        holes = prediction(np.array([[1.0, 0.0], [np.inf, 2.0]])).points
        np.testing.assert_array_equal(np.isnan(holes).all(axis=-1), [[False, True], [True, False]])

    def test_depth_at_a_position(self):
        made = prediction(STEP)
        assert (made.at(0.5, 0.5), made.at(3.99, 5.99), made.at(4, 0)) == (1.0, 1.0, 3.0)
        assert np.isnan(prediction(np.zeros((2, 2))).at(1, 1))
        for position in ((8, 1), (-0.1, 1), (1, 6), (float("nan"), 1)):
            with pytest.raises(ValueError, match="outside the image of 8x6 pixels: x from 0 to below 8, y from 0 to"):
                made.at(*position)

    def test_distances(self):
        made = prediction(STEP)
        assert made.distance((0.5, 0.5), (3.5, 0.5)) == pytest.approx(0.03)  # 3 px / 100 px at 1 m
        assert made.distance((4.5, 0.5), (4.5, 4.5)) == pytest.approx(0.12)  # 4 px / 100 px at 3 m
        # (-0.005, -0.025, 1) and (0.015, -0.075, 3)
        expected = (0.02**2 + 0.05**2 + 2**2) ** 0.5
        assert made.distance((3.5, 0.5), (4.5, 0.5)) == pytest.approx(expected)


class TestPointCloud:
    def test_a_plane_at_two_metres_spans_what_its_camera_sees(self):
        cloud = prediction(np.full((4, 6), 2.0)).to_point_cloud()
        # pixel centres at 0.5 ... 5.5 and 0.5 ... 3.5; (0.5 - 3) / 100 * 2 = -0.05 and (0.5 - 2) / 100 * 2 = -0.03
        np.testing.assert_allclose(cloud.bounds, [[-0.05, -0.03, 2], [0.05, 0.03, 2]], atol=1e-6)
        assert len(cloud.vertices) == 24

    def test_one_pixel_and_a_camera_of_unequal_focal_lengths(self):
        depth = np.zeros((4, 6))
        depth[3, 1] = 5.0
        cloud = prediction(depth).to_point_cloud()
        # x = (1.5 - 3) / 100 * 5, y = (3.5 - 2) / 100 * 5
        np.testing.assert_allclose(cloud.vertices, [[-0.075, 0.075, 5]], atol=1e-6)
        np.testing.assert_array_equal(cloud.colors, [[3, 1, 7, 255]])

        made = prediction(np.full((2, 2), 1.0))
        made.camera = Camera(100.0, 50.0, 0.5, 1.5, 2, 2, "intrinsics")
        np.testing.assert_allclose(made.to_point_cloud().vertices[1], [0.01, -0.02, 1], atol=1e-7)

    @pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
    def test_pixels_without_depth_are_left_out(self, bad):
        depth = np.full((4, 6), 2.0)
        depth[0, 0] = bad
        assert len(prediction(depth).to_point_cloud().vertices) == 23

    def test_pixels_between_two_surfaces_are_dropped_but_not_the_surfaces_edges(self):
        depth = STEP.copy()
        depth[:, 3] = 1.7
        grid = back_project(depth, camera(8, 6))
        np.testing.assert_array_equal(flying_pixels(grid), np.arange(8)[None, :].repeat(6, 0) == 3)
        np.testing.assert_array_equal(flying_pixels(back_project(depth.T, camera(6, 8))), flying_pixels(grid).T)
        assert not flying_pixels(back_project(STEP, camera(8, 6))).any()

    def test_a_thin_object_and_a_floor_stay(self):
        depth = np.full((5, 5), 4.0)
        depth[:, 2] = 1.0
        assert len(prediction(depth).to_point_cloud().vertices) == 25
        # a floor 1.6 m below the camera, seen out to 40 m: its relative steps grow with distance
        rows = np.arange(1, 241) + 0.5
        depth = np.repeat((1.6 * 500 / (rows + 20))[:, None], 4, axis=1)
        made = Prediction(depth.astype(np.float32), Camera(500, 500, 2, -20, 4, 240, "fov"), Image.new("RGB", (4, 240)))
        assert len(made.to_point_cloud().vertices) == depth.size
        assert len(made.to_mesh().faces) == 239 * 3 * 2

    def test_large_images_are_thinned_evenly(self):
        cloud = prediction(np.full((6, 8), 2.0)).to_point_cloud(max_points=12)
        assert len(cloud.vertices) == 3 * 4
        np.testing.assert_array_equal(np.unique(cloud.colors[:, 0]), [0, 2, 4])
        np.testing.assert_allclose(cloud.vertices[:, 0].min(), (0.5 - 4) / 100 * 2, atol=1e-6)


class TestMesh:
    def test_a_plane_has_two_triangles_for_every_four_neighbours(self):
        mesh = prediction(np.full((4, 6), 2.0)).to_mesh()
        assert (len(mesh.vertices), len(mesh.faces)) == (24, 2 * 3 * 5)
        np.testing.assert_allclose(mesh.face_normals, np.tile([0, 0, -1], (30, 1)), atol=1e-6)  # towards the camera
        np.testing.assert_array_equal(mesh.visual.vertex_colors[7], [1, 1, 7, 255])
        assert mesh.area == pytest.approx(0.10 * 0.06)

    def test_no_triangle_spans_a_relative_depth_step_beyond_the_threshold(self):
        mesh = prediction(STEP).to_mesh()
        z = mesh.vertices[:, 2][mesh.faces]
        assert set(np.unique(z)) == {1.0, 3.0}
        np.testing.assert_array_equal(z.min(axis=1), z.max(axis=1))
        assert len(prediction(STEP).to_mesh(max_jump=1.99).faces) == 2 * (2 * 5 * 3)
        assert len(prediction(STEP).to_mesh(max_jump=2.01).faces) == 2 * 5 * 7

    def test_holes_take_their_triangles_with_them(self):
        depth = np.full((3, 3), 2.0)
        depth[1, 1] = np.nan
        mesh = prediction(depth).to_mesh()
        # Of eight triangles six touch the centre; two corners go.
        assert (len(mesh.vertices), len(mesh.faces)) == (6, 2)


class TestPng16:
    def test_millimetres_that_pillow_and_our_reader_read_back(self, tmp_path):
        depth = np.array([[0.0, 0.0004, 0.5], [1.2344, 65.535, np.nan]], dtype=np.float32)
        path = tmp_path / "depth.png"
        assert export.write_png16(path, depth) == (1000, 0)
        with Image.open(path) as image:
            assert image.mode == "I;16"
            assert image.info["depth_scale"] == "1000"
            assert "metres" in image.info["depth_unit"]
            np.testing.assert_array_equal(np.asarray(image), [[0, 1, 500], [1234, 65535, 0]])
        np.testing.assert_allclose(read_depth(path), [[0, 0.001, 0.5], [1.234, 65.535, 0]], rtol=1e-6)

    def test_beyond_65_metres_in_units_of_a_256th(self, tmp_path):
        depth = np.array([[1.0, 65.536], [80.125, np.inf]], dtype=np.float32)
        assert export.write_png16(tmp_path / "depth.png", depth) == (256, 0)
        with Image.open(tmp_path / "depth.png") as image:
            assert image.info["depth_scale"] == "256"
            np.testing.assert_array_equal(np.asarray(image), [[256, 16777], [20512, 0]])
        np.testing.assert_allclose(read_depth(tmp_path / "depth.png")[1, 0], 80.125)

    def test_what_does_not_fit_is_clipped_counted_and_warned_about(self, tmp_path):
        depth = np.array([[300.0, 400.0, 10.0]], dtype=np.float32)
        with pytest.warns(UserWarning, match="2 of 3 pixels are beyond 256.0 m"):
            assert export.write_png16(tmp_path / "far.png", depth) == (256, 2)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "far.png")), [[65535, 65535, 2560]])


class TestFiles:
    def test_every_format(self, tmp_path):
        made = prediction(STEP, text="Three metres.", prompt="How far?", source=Path("a/view.jpg"), model="toy")
        paths = made.save(tmp_path / "new")
        suffixes = {"npy": "_depth.npy", "png16": "_depth.png", "color": "_color.png"}
        suffixes |= {"ply": ".ply", "glb": ".glb", "json": ".json"}
        assert {name: path.name for name, path in paths.items()} == {k: f"view{v}" for k, v in suffixes.items()}
        assert sorted(paths.values()) == sorted((tmp_path / "new").iterdir())

        np.testing.assert_array_equal(np.load(paths["npy"]), made.depth, strict=True)
        expected = {
            "camera": {"fx": 100.0, "fy": 100.0, "cx": 4.0, "cy": 3.0, "width": 8, "height": 6},
            **{"min": 1.0, "median": 2.0, "max": 3.0, "focal_source": "focal_length", "unit": "metres"},
            **{"text": "Three metres.", "prompt": "How far?", "model": "toy", "depth_scale": 1000, "clipped_pixels": 0},
        }
        record = json.loads(paths["json"].read_text())
        assert {name: record[name] for name in expected} == expected
        assert record["files"]["glb"] == "view.glb"

    def test_the_point_cloud_is_binary_ply_in_the_cameras_frame(self, tmp_path):
        made = prediction(STEP)
        path = made.save(tmp_path, stem="x", formats=["ply"])["ply"]
        assert b"format binary_little_endian 1.0" in path.read_bytes()[:100]
        cloud = trimesh.load(path)
        np.testing.assert_allclose(cloud.vertices, made.to_point_cloud().vertices, atol=1e-6)
        np.testing.assert_array_equal(cloud.colors[9], [1, 1, 7, 255])

    def test_the_mesh_is_a_textured_glb_with_y_up_looking_along_minus_z(self, tmp_path):
        made = prediction(STEP)
        path = made.save(tmp_path, stem="x", formats=["glb"])["glb"]
        mesh = trimesh.load(path).to_geometry()
        expected = made.to_mesh()
        assert len(mesh.faces) == len(expected.faces)
        np.testing.assert_allclose(mesh.vertices, expected.vertices * [1, -1, -1], atol=1e-6)
        # the texture coordinates are those of the pixel's centre, v upwards
        np.testing.assert_allclose(mesh.visual.uv[9], [1.5 / 8, 1 - 1.5 / 6], atol=1e-6)
        assert mesh.visual.material.baseColorTexture.size == (8, 6)
        assert b"KHR_materials_unlit" in path.read_bytes()

    def test_no_depth_at_all_still_gives_files_that_load(self, tmp_path):
        made = prediction(np.full((4, 6), np.nan))
        paths = made.save(tmp_path, stem="x")
        record = json.loads(paths["json"].read_text())
        assert (record["min"], record["median"], record["max"]) == (None, None, None)
        assert not read_depth(paths["png16"]).any()
        assert len(trimesh.load(paths["glb"]).geometry) == 0

    def test_files_that_are_there_are_not_replaced_unasked(self, tmp_path):
        made = prediction(STEP)
        made.save(tmp_path, stem="x", formats=["npy"])
        with pytest.raises(FileExistsError, match="overwrite=True"):
            made.save(tmp_path, stem="x", formats=["json", "npy"])
        assert not (tmp_path / "x.json").exists()
        made.depth += 1
        made.save(tmp_path, stem="x", formats=["npy"], overwrite=True)
        np.testing.assert_array_equal(np.load(tmp_path / "x_depth.npy"), STEP + 1)

    def test_wrong_requests(self, tmp_path):
        with pytest.raises(ValueError, match="got tiff; choose from npy, png16"):
            prediction(STEP).save(tmp_path, stem="x", formats=["npy", "tiff"])
        with pytest.raises(ValueError, match="give save\\(\\) a `stem`"):
            prediction(STEP).save(tmp_path)
        assert not list(tmp_path.iterdir())


class TestAtomicWrites:
    @staticmethod
    def write_half(path: Path, error: type[BaseException]) -> None:
        with export.atomic_write(path) as file:
            file.write(b"half")
            raise error

    def test_a_failure_leaves_nothing_behind_or_the_older_file(self, tmp_path):
        with pytest.raises(RuntimeError):
            self.write_half(tmp_path / "x.bin", RuntimeError)
        assert not list(tmp_path.iterdir())
        (tmp_path / "x.bin").write_bytes(b"whole")
        with pytest.raises(KeyboardInterrupt):
            self.write_half(tmp_path / "x.bin", KeyboardInterrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]
        assert (tmp_path / "x.bin").read_bytes() == b"whole"

    @pytest.mark.parametrize(
        ("format_", "inner"),
        [
            ("npy", "numpy.save"),
            ("png16", "PIL.Image.Image.save"),
            ("color", "PIL.Image.Image.save"),
            ("ply", "trimesh.exchange.ply.export_ply"),
            ("glb", "trimesh.exchange.gltf.export_glb"),
            ("json", "json.dumps"),
        ],
    )
    def test_every_writer(self, tmp_path, monkeypatch, format_, inner):
        def full(*_, **__):
            raise OSError("No space left on device")

        assert format_ in FORMATS
        monkeypatch.setattr(inner, full)
        with pytest.raises(OSError, match="No space left"):
            prediction(STEP).save(tmp_path, stem="x", formats=[format_])
        assert not list(tmp_path.iterdir())
