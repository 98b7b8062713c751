"""OpenEXR, PFM, NPZ and normals: bytes by the formats' definitions, and what another reader sees in them."""

import builtins
import json

import numpy as np
import OpenEXR
import pytest
from depthvlm.processing import Camera
from PIL import Image

from depthvlm import Prediction, read_depth
from depthvlm.prediction import FORMATS

DEPTH = np.array([[0.5, 1.0, 300.25], [4.0, 0.0, 6.0]], dtype=np.float32)


def prediction(depth: np.ndarray = DEPTH, focal_length: float = 100.0) -> Prediction:
    height, width = depth.shape
    camera = Camera(focal_length, focal_length, width / 2, height / 2, width, height, "focal_length")
    return Prediction(depth.astype(np.float32), camera, Image.new("RGB", (width, height)))


def save(tmp_path, format_: str):
    return prediction().save(tmp_path, "x", [format_])[format_]


class TestDepth:
    def test_pfm_is_little_endian_from_the_lowest_row(self, tmp_path):
        path = save(tmp_path, "pfm")
        header, _, values = path.read_bytes().partition(b"-1.0\n")
        assert header == b"Pf\n3 2\n"
        np.testing.assert_array_equal(np.frombuffer(values, "<f4"), [4, 0, 6, 0.5, 1, 300.25])

    def test_exr_has_one_channel_of_float32_that_its_own_package_reads(self, tmp_path):
        channels = OpenEXR.File(str(save(tmp_path, "exr"))).channels()
        assert list(channels) == ["Z"]
        assert channels["Z"].pixels.dtype == np.float32
        np.testing.assert_array_equal(channels["Z"].pixels, DEPTH)

    def test_npz_holds_depth_and_camera_without_pickle(self, tmp_path):
        with np.load(save(tmp_path, "npz"), allow_pickle=False) as held:
            assert set(held) == {"depth", "K", "focal_source"}
            np.testing.assert_array_equal(held["depth"], DEPTH)
            np.testing.assert_array_equal(held["K"], [[100, 0, 1.5], [0, 100, 1], [0, 0, 1]])
            assert held["focal_source"] == "focal_length"

    @pytest.mark.parametrize("format_", ["npy", "npz", "exr", "pfm"])
    def test_read_back_whole(self, tmp_path, format_):
        path = save(tmp_path, format_)
        np.testing.assert_array_equal(read_depth(path), DEPTH)
        np.testing.assert_array_equal(read_depth({"bytes": path.read_bytes(), "path": None}), DEPTH)

    def test_the_16_bit_png_is_read_with_its_own_scale(self, tmp_path):
        with pytest.warns(UserWarning, match="1 of 6 pixels are beyond"):
            path = save(tmp_path, "png16")
        np.testing.assert_allclose(read_depth(path), np.minimum(DEPTH, 65535 / 256), atol=1 / 512)

    def test_they_are_written_only_on_request_and_named_in_the_json(self, tmp_path):
        assert FORMATS == ("npy", "png16", "color", "ply", "glb", "json")
        paths = prediction().save(tmp_path, "x", ["exr", "pfm", "npz", "normals", "json"])
        assert json.loads(paths["json"].read_text())["files"] == {
            "exr": "x_depth.exr",
            "pfm": "x_depth.pfm",
            "npz": "x_depth.npz",
            "normals": "x_normals.png",
        }


class TestForeignExr:
    def write(self, path, channels):
        OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(path))
        return path

    def test_of_opencv_and_blender(self, tmp_path):
        """OpenCV calls a single channel Y; Blender's layers have their depth as ViewLayer.Depth.Z, in half or float."""
        one = self.write(tmp_path / "cv.exr", {"Y": DEPTH})
        np.testing.assert_array_equal(read_depth(one), DEPTH)
        colour = np.ones((2, 3), dtype=np.float16)
        layers = {"ViewLayer.Depth.Z": DEPTH, **{f"ViewLayer.Combined.{name}": colour for name in "RGB"}}
        np.testing.assert_array_equal(read_depth(self.write(tmp_path / "blender.exr", layers)), DEPTH)
        half = self.write(tmp_path / "half.exr", {"Z": DEPTH.astype(np.float16)})
        np.testing.assert_array_equal(read_depth(half), DEPTH)  # all of them are exact in 11 bits

    def test_background_beyond_range_is_no_depth(self, tmp_path):
        np.testing.assert_array_equal(
            read_depth(self.write(tmp_path / "x.exr", {"Z": np.float32([[np.inf, 2]])})), [[0, 2]]
        )

    def test_colours_and_damaged_files_are_refused(self, tmp_path, capfd):
        colours = self.write(tmp_path / "rgb.exr", dict.fromkeys("RGB", DEPTH))
        with pytest.raises(ValueError, match="its channels are B, G, R, where one channel, or one that is named Z"):
            read_depth(colours)
        whole = self.write(tmp_path / "x.exr", {"Z": np.ones((64, 64), np.float32)}).read_bytes()
        for damaged in (whole[:-20], whole[:40], b"no exr"):
            (tmp_path / "x.exr").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"x\.exr cannot be read, it may be truncated"):
                read_depth(tmp_path / "x.exr")

    def test_without_the_package_the_error_says_how_to_get_it(self, tmp_path, monkeypatch):
        path, real = save(tmp_path, "exr"), builtins.__import__

        def without(name, *rest, **named):
            if name == "OpenEXR":
                raise ImportError(name)
            return real(name, *rest, **named)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ValueError, match=r"pip install \"depthvlm\[exr\]\""):
            read_depth(path)
        monkeypatch.setattr("depthvlm.export.find_spec", lambda _: None)
        with pytest.raises(ImportError, match=r"pip install \"depthvlm\[exr\]\""):
            prediction().save(tmp_path / "none", "x", ["exr", "npy"])
        assert not (tmp_path / "none").exists()


def plane(normal: np.ndarray, distance: float, width: int = 40, height: int = 30, focal: float = 50.0) -> np.ndarray:
    """Return the depth of a plane: z = -distance / (normal . ray)."""
    x, y = (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
    return -distance / (normal[0] * x[None] + normal[1] * y[:, None] + normal[2])


class TestNormals:
    def test_of_a_wall_in_front(self):
        normals = prediction(np.full((5, 6), 2.0)).normals()
        assert normals.dtype == np.float32
        np.testing.assert_allclose(normals, np.tile([0, 0, -1], (5, 6, 1)), atol=1e-6)

    @pytest.mark.parametrize("normal", [(0.6, 0, -0.8), (0, -0.6, -0.8), (0.48, 0.36, -0.8), (0, -0.8, -0.6)])
    def test_of_tilted_planes_to_their_edges(self, normal):
        depth = plane(np.array(normal), 2.0)
        assert (depth > 0).all()
        normals = prediction(depth, 50.0).normals()
        np.testing.assert_allclose(normals, np.broadcast_to(normal, normals.shape), atol=2e-4)

    def test_of_a_sphere(self):
        """A sphere of 1 m at 5 m: the normal at a point is the point minus the centre."""
        size, focal = 200, 500.0
        along = (np.arange(size) + 0.5 - size / 2) / focal
        rays = np.stack([*np.meshgrid(along, along), np.ones((size, size))], axis=-1)
        squared = (rays**2).sum(axis=-1)
        root = 25 - squared * 24  # |t ray - (0, 0, 5)| = 1
        depth = np.where(root > 0, (5 - np.sqrt(np.maximum(root, 0))) / squared, np.nan)
        expected = rays * depth[..., None] - [0, 0, 5]
        normals = prediction(depth, focal).normals()
        facing = -(expected * rays).sum(axis=-1) / np.sqrt(squared) > 0.5  # seen at 30 degrees or more
        degrees = np.degrees(np.arccos(np.clip((normals * expected).sum(axis=-1), -1, 1)))
        assert np.isfinite(degrees[facing]).all()
        assert degrees[facing].max() < 1
        assert np.isnan(normals[np.isnan(depth)]).all()

    def test_none_of_them_spans_a_depth_step(self):
        step = np.where(np.arange(8) < 4, 1.0, 3.0) * np.ones((6, 1))
        np.testing.assert_allclose(prediction(step).normals(), np.tile([0, 0, -1], (6, 8, 1)), atol=1e-6)
        assert np.abs(prediction(step).normals(max_jump=5)[:, 3:5, 0]).min() > 0.9
        alone = np.full((5, 5), 4.0)
        alone[:, 2] = 1.0  # one pixel wide: no neighbour in its row
        normals = prediction(alone).normals()
        assert np.isnan(normals[:, 2]).all()
        assert np.isfinite(normals[:, [0, 1, 3, 4]]).all()

    def test_colours(self, tmp_path):
        depth = np.full((4, 6), 2.0)
        depth[0, 0] = 0
        path = prediction(depth).save(tmp_path, "x", ["normals"])["normals"]
        colours = np.asarray(Image.open(path))
        assert colours[2, 3].tolist() == [128, 128, 255]
        assert colours[0, 0].tolist() == [0, 0, 0]
        floor = prediction(plane(np.array([0, -0.8, -0.6]), 2.0), 50.0).save(tmp_path, "floor", ["normals"])
        # (255 * 1 / 2, 255 * 1.8 / 2, 255 * 1.6 / 2): up is green
        np.testing.assert_allclose(np.asarray(Image.open(floor["normals"]))[15, 20], [127.5, 229.5, 204], atol=1)
