"""Depth maps: read into metres from every format, and labels that never mix, invent or lose a measurement."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from depthvlm.processing import read_depth
from depthvlm.processing.depth_maps_depthvlm import depth_labels, reduce_depth
from depthvlm.training.rows import read_depth_map
from PIL import Image, PngImagePlugin

RAW = np.array([[0, 1000, 2500], [65535, 500, 1]], dtype=np.uint16)
METRES = np.array([[0, 1, 2.5], [65.535, 0.5, 0.001]], dtype=np.float32)


def one_label(depth, image_size, input_size, scale=None) -> torch.Tensor:
    (label,) = depth_labels(depth, scale, [image_size], [input_size])
    assert label is not None
    return label


class TestReading:
    @pytest.mark.parametrize("dtype", [np.float16, np.float64])
    def test_npy_of_any_width_is_in_metres(self, tmp_path, dtype):
        np.save(tmp_path / "depth.npy", METRES.astype(dtype))
        np.testing.assert_array_equal(read_depth(tmp_path / "depth.npy"), METRES.astype(dtype).astype(np.float32))

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
    def test_integers_of_any_width(self, dtype):
        raw = np.array([[0, 1, 100]], dtype=dtype)
        expected = np.array([[0, 0.01, 1]], dtype=np.float32)
        np.testing.assert_allclose(read_depth(raw, 100), expected)
        np.testing.assert_allclose(read_depth(torch.from_numpy(raw), 100), expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_float_tensors(self, dtype):
        np.testing.assert_array_equal(read_depth(torch.tensor([[0.5, 2.0]], dtype=dtype)), [[0.5, 2.0]])

    @pytest.mark.parametrize(
        ("mode", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("L", np.uint8), ("F", np.float32)]
    )
    def test_pil_images(self, mode, dtype):
        image = Image.fromarray(np.array([[0, 50, 100]], dtype=dtype))
        assert image.mode == mode
        np.testing.assert_allclose(read_depth(image, 100), [[0, 0.5, 1.0]])

    @pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3, 1), (2, 3)])
    def test_one_channel_may_be_an_axis(self, shape):
        assert read_depth(METRES.reshape(shape)).shape == (2, 3)

    def test_what_is_not_a_measurement_is_0(self):
        raw = np.array([[0.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 2.0]])
        np.testing.assert_array_equal(read_depth(raw), [[0, 0, 0, 0, 0, 0, 2]])

    def test_a_png_of_this_package_carries_its_scale(self, tmp_path):
        path = tmp_path / "depth.png"
        Image.fromarray(RAW).save(path, pnginfo=with_scale("256"))
        np.testing.assert_allclose(read_depth(path), RAW / np.float32(256))
        with Image.open(path) as image:
            np.testing.assert_allclose(read_depth(image), RAW / np.float32(256))
        with pytest.warns(UserWarning, match="depth_scale = 256, but 1000 was given"):
            np.testing.assert_allclose(read_depth(path, 1000), METRES, rtol=1e-6)


def with_scale(scale: str) -> PngImagePlugin.PngInfo:
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("depth_scale", scale)
    return metadata


class TestBadDepthMaps:
    def test_integers_without_a_scale(self, tmp_path):
        Image.fromarray(RAW).save(tmp_path / "depth.png")
        for depth in (tmp_path / "depth.png", RAW, Image.fromarray(RAW)):
            with pytest.raises(ValueError, match=r"uint16.*Pass `depth_scale`"):
                read_depth(depth)

    @pytest.mark.parametrize(
        ("depth", "scale", "message"),
        [
            *((RAW, scale, "finite number above 0") for scale in (0, -1000, math.nan, math.inf, True)),
            (RAW, "mm", "not a number: 'mm'"),
            *((Image.new(mode, (4, 4)), None, "perhaps a coloured preview") for mode in ("RGB", "RGBA", "P", "1")),
            *(
                (np.zeros(shape, np.float32), None, r"must have the shape \(H, W\)")
                for shape in ((4,), (3, 4, 4), (2, 2, 3), (0, 4))
            ),
            (np.ones((4, 4), dtype=bool), None, "integers or floats, got bool"),
            (5, None, "got int"),
        ],
    )
    def test_what_is_no_depth_map_or_no_scale(self, depth, scale, message):
        with pytest.raises(ValueError, match=message):
            read_depth(depth, scale)

    @pytest.mark.parametrize(
        ("name", "write", "message"),
        [
            *(
                (f"depth.{suffix}", lambda path: path.write_bytes(b"anything"), rf"is a \.{suffix} file.*Convert it")
                for suffix in ("jpg", "hdr")
            ),
            *(
                (f"depth.{suffix}", lambda path: path.write_bytes(b"no image"), "not an image that can be read")
                for suffix in ("png", "tif")
            ),
            ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read"),
            ("a.png", lambda path: Image.fromarray(RAW).save(path, pnginfo=with_scale("mm")), "not a number: 'mm'"),
        ],
    )
    def test_files_that_are_not_read(self, tmp_path, name, write, message):
        write(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            read_depth(tmp_path / name)

    def test_missing_and_truncated_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
            read_depth(tmp_path / "nowhere.png")
        Image.fromarray(np.arange(10000, dtype=np.uint16).reshape(100, 100)).save(tmp_path / "depth.png")
        np.save(tmp_path / "depth.npy", np.ones((100, 100)))
        for name in ("depth.png", "depth.npy"):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:150])
            with pytest.raises(ValueError, match=f"{name} cannot be read, it may be truncated"):
                read_depth(path)

    @pytest.mark.parametrize("count", [1, 3])
    def test_as_many_as_images(self, count):
        for name, maps, scales in (("maps", [METRES] * count, None), ("scale", [METRES] * 2, [1.0] * count)):
            with pytest.raises(ValueError, match=rf"`depth_{name}` has {count} entries for 2 image\(s\)"):
                depth_labels(maps, scales, [(2, 3)] * 2, [(32, 32)] * 2)

    def test_another_aspect_ratio(self):
        with pytest.raises(ValueError, match=r"image 0 has 100x100 pixels .* the image 640x480: .* Crop or pad"):
            one_label(np.ones((100, 100)), (480, 640), (96, 128))
        with pytest.raises(ValueError, match="seems to be turned"):
            one_label(np.ones((640, 480)), (480, 640), (96, 128))

    def test_no_valid_pixel(self):
        with pytest.warns(UserWarning, match="depth map of image 1 has no valid pixel"):
            labels = depth_labels([np.ones((2, 3)), np.zeros((2, 3))], None, [(2, 3)] * 2, [(32, 32)] * 2)
        assert not labels[1].any()


class TestLabels:
    def test_one_for_each_image_in_metres(self):
        labels = depth_labels([RAW, None, METRES], [1000, None, None], [(4, 6), (9, 9), (2, 3)], [(32, 64)] * 3)
        expected = torch.from_numpy(METRES)  # float32, which `assert_close` compares too
        torch.testing.assert_close(labels, [expected, None, expected])

    def test_a_stack_of_maps_and_nested_lists(self):
        stack = np.stack([METRES, 2 * METRES])
        for maps in (stack, torch.from_numpy(stack), list(stack), [[stack[0]], [stack[1]]]):
            labels = depth_labels(maps, None, [(2, 3)] * 2, [(32, 64)] * 2)
            np.testing.assert_array_equal(torch.stack(labels).numpy(), stack)

    @pytest.mark.parametrize("size", [(192, 256), (43, 57), (1, 1), (14, 19)])
    def test_rounded_aspect_ratios_pass(self, size):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert one_label(np.ones(size), (1440, 1920), (992, 1344)).shape == size

    def test_a_sparse_map_keeps_every_point(self):
        # 5,000 points on 1216x1936 pixels under an input of 672x1056 ones.
        generator = np.random.default_rng(0)
        depth = np.zeros((1216, 1936), dtype=np.float32)
        depth.flat[generator.choice(depth.size, 5000, replace=False)] = generator.uniform(1, 100, 5000)
        label = one_label(depth, depth.shape, (672, 1056))
        np.testing.assert_array_equal(label.numpy(), depth)

    @pytest.mark.parametrize("size", [(224, 320), (480, 640), (960, 1280)])
    def test_a_dense_map_is_reduced_to_the_input(self, size):
        depth = np.random.default_rng(0).uniform(1, 9, (480, 640)).astype(np.float32)
        assert one_label(depth, depth.shape, size).shape == min(size, (480, 640))


class TestReduction:
    def test_each_cell_takes_the_valid_pixel_nearest_to_its_centre(self):
        depth = torch.tensor([[1.0, 2, 0, 0, 5, 0], [3, 4, 6, 0, 0, 0], [7, 8, 9, 0, 0, 0]])
        # Centres (1, 1) and (1, 4); the second is not valid, and of its cell only (0, 4) is.
        assert reduce_depth(depth, 1, 2).tolist() == [[4.0, 5.0]]

    def test_ties_go_to_the_nearer_surface(self):
        assert reduce_depth(torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 5.0], [0.0, 4.0, 0.0]]), 1, 1).tolist() == [[2.0]]

    @pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.98, 1.0])
    @pytest.mark.parametrize("size", [(60, 80), (37, 53), (120, 160), (1, 1), (119, 159)])
    def test_against_the_definition(self, share, size):
        generator = np.random.default_rng(1)
        known, metres = generator.random((120, 160)) < share, generator.uniform(1, 50, (120, 160))
        depth = np.where(known, metres, 0).astype(np.float32)
        reduced = reduce_depth(torch.from_numpy(depth), *size).numpy()
        rows = np.floor((np.arange(120) + 0.5) * size[0] / 120).astype(int)
        columns = np.floor((np.arange(160) + 0.5) * size[1] / 160).astype(int)
        for row in range(size[0]):
            for column in range(size[1]):
                values = depth[np.ix_(rows == row, columns == column)]
                values = values[values > 0]
                # A measurement of its own cell where there is one; nothing where there is none.
                assert reduced[row, column] in values if values.size else reduced[row, column] == 0

    def test_a_step_stays_a_step(self):
        depth = torch.full((90, 120), 2.0)
        depth[:, 67:] = 10.0
        reduced = reduce_depth(depth, 40, 50)
        assert set(reduced.unique().tolist()) == {2.0, 10.0}
        assert (reduced[:, :27] == 2).all()
        assert (reduced[:, 28:] == 10).all()

    def test_a_slope_is_not_drawn_towards_the_camera(self):
        depth = torch.linspace(1, 20, 900)[:, None].expand(900, 900).contiguous()
        expected = torch.nn.functional.interpolate(depth[None, None], size=(300, 300), mode="area")[0, 0]
        torch.testing.assert_close(reduce_depth(depth, 300, 300), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.real_data
class TestRealDepth:
    def test_scannetpp_points_are_where_the_annotations_say(self, shared):
        root = shared / "data/scannetpp"
        for line in (root / "examples.jsonl").read_text().splitlines()[:4]:
            row = json.loads(line)
            depth = read_depth(root / "depth" / row["depth_path"], row["depth_scale"])
            width, height = row["original_rgb_size"]
            label = one_label(depth, (height, width), (992, 1344)).numpy()
            found = [label[y, x] for x, y in row["pixel_coords"]]
            np.testing.assert_allclose(found, row["depth"], atol=1e-3)

    def test_kitti_lidar_keeps_every_point(self, shared):
        paths = sorted((shared / "data/kitti/kitti_demo/depth").glob("*.png"))
        assert paths
        for path in paths:
            raw = np.asarray(Image.open(path))
            # Even under an input of a quarter of the size.
            label = one_label(path, raw.shape, (192, 608), 256)
            np.testing.assert_allclose(label.numpy(), raw / 256)

    def test_sun_rgbd_after_its_bits_are_turned_back(self, shared):
        raw = np.asarray(Image.open(next((shared / "data/sunrgbd").glob("2014*/depth/*.png"))))
        depth = read_depth((raw >> 3) | (raw << 13), 1000)
        valid = depth[depth > 0]
        assert (valid.min(), valid.max()) == (pytest.approx(0.640), pytest.approx(3.783))
        reduced = reduce_depth(torch.from_numpy(depth), 256, 352)
        assert torch.isin(reduced[reduced > 0], torch.from_numpy(valid)).all()


class TestEveryForm:
    """One map in every form in which people have it, with values known by hand."""

    METRES = np.array([[0.5, 1.25, 0.0], [4.0, 2.75, 9.5]], dtype=np.float32)

    def check(self, form, scale=None):
        np.testing.assert_array_equal(read_depth(form, scale), self.METRES)

    def files(self, folder):
        millimetres = (self.METRES * 1000).astype(np.uint16)
        np.save(folder / "ü 1.npy", self.METRES[..., None])
        np.save(folder / "int32.npy", millimetres.astype(np.int32))
        np.savez(folder / "a.npz", depth=self.METRES, mask=self.METRES > 0)
        Image.fromarray(self.METRES).save(folder / "float.tif")
        Image.fromarray(millimetres).save(folder / "16 bit.tiff")
        Image.fromarray(millimetres).save(folder / "a.png")
        Image.fromarray(millimetres).save(folder / "a.pgm")
        # PFM, by its definition: rows from the bottom, a negative scale for little-endian floats.
        (folder / "little.pfm").write_bytes(b"Pf\n3 2\n-1.0\n" + self.METRES[::-1].astype("<f4").tobytes())
        (folder / "big.PFM").write_bytes(b"Pf\n3 2\n1.0\n" + self.METRES[::-1].astype(">f4").tobytes())
        integers = ("int32.npy", "16 bit.tiff", "a.png", "a.pgm")
        return {file: 1000 if file.name in integers else None for file in folder.iterdir()}

    def test_files_bytes_and_rows(self, tmp_path, monkeypatch):
        files = self.files(tmp_path)
        assert len(files) == 9
        monkeypatch.setenv("HOME", str(tmp_path))
        for file, scale in files.items():
            data = file.read_bytes()
            for form in (file, str(file), file.as_uri(), f"~/{file.name}", data):
                self.check(form, scale)
            for row in ({"bytes": data, "path": None}, {"bytes": None, "path": str(file)}, data, str(file)):
                self.check(row, scale)
                np.testing.assert_array_equal(read_depth_map(row, scale), self.METRES)

    def test_masked_values_are_no_measurements(self):
        masked = np.ma.masked_array(np.full((2, 3), 7.0), mask=[[1, 0, 0], [0, 0, 1]])
        expected = [[0, 7, 7], [7, 7, 0]]
        np.testing.assert_array_equal(read_depth(masked), expected)
        np.testing.assert_array_equal(read_depth((masked * 1000).astype(np.int32), 1000), expected)
        labels = depth_labels(masked, None, [(2, 3)], [(32, 32)])
        np.testing.assert_array_equal(labels[0], expected)

    def test_metres_with_the_scale_of_millimetres(self):
        with pytest.warns(UserWarning, match=r"median of 2.75, which `depth_scale` = 1000 .* taken for metres"):
            self.check(self.METRES, 1000)
        np.testing.assert_array_equal(read_depth(self.METRES * 1000, 1000), self.METRES)
        np.testing.assert_array_equal(read_depth(self.METRES * 2, 2), self.METRES)
