"""The image processors: one resampling, every kind of image, and what they return, on every backend that is there."""

import base64
import io
import json
import math
import os
import warnings

import numpy as np
import pytest
import torch
from depthvlm.processing import Camera, DepthVLMImageProcessor, DepthVLMImageProcessorPil
from PIL import ExifTags, Image, ImageOps
from transformers.utils import is_torchvision_available

Tag = ExifTags.Base
BACKENDS = [DepthVLMImageProcessorPil, *([DepthVLMImageProcessor] if is_torchvision_available() else [])]


@pytest.fixture(params=BACKENDS, ids=lambda one: one.__name__)
def processor(request):
    return request.param(min_pixels=1024)


def noise(height: int = 96, width: int = 128, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture with structure at every scale, so that a wrong filter shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels)).repeat(8, 0).repeat(8, 1)
    fine = generator.integers(-20, 21, (height, width, channels))
    return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)


def to_picture(features, index: int = 0) -> np.ndarray:
    """Undoes patches and normalisation: `(H, W, 3)` grey levels, 0 to 255, of the first frame."""
    grids = torch.as_tensor(features["image_grid_thw"])
    start = int(grids[:index].prod(-1).sum())
    _, rows, columns = grids[index].tolist()
    patches = torch.as_tensor(features["pixel_values"])[start : start + rows * columns]
    patches = patches.view(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    assert torch.equal(patches[..., 0, :, :], patches[..., 1, :, :])
    pixels = patches[..., 0, :, :].permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3)
    return ((pixels + 1) * 127.5).numpy()


def picture_of(processor, image, **kwargs) -> np.ndarray:
    """The picture that the model sees, at the image's own size."""
    kwargs = {"focal_length": 1000.0} | kwargs
    return np.rint(to_picture(processor(image, return_tensors="pt", **kwargs))).astype(np.uint8)


class TestResampling:
    @pytest.mark.parametrize("focal_length", [400.0, 517.0, 1000.0, 1777.0])
    def test_once_and_straight_to_the_target(self, processor, focal_length):
        image = Image.fromarray(noise(480, 640))
        features = processor(image, focal_length=focal_length, return_tensors="pt")
        seen = to_picture(features)
        expected = np.asarray(image.resize((seen.shape[1], seen.shape[0]), Image.Resampling.BILINEAR))
        assert seen.shape[:2] == tuple(32 * round(side * 1000 / focal_length / 32) for side in (480, 640))
        # Grey levels are whole: nothing is rounded twice, and torchvision differs from Pillow by one at most.
        assert np.abs(seen - expected).max() <= (1.01 if processor.backend == "torchvision" else 0.01)
        assert features["focal_scale"].tolist() == [1.0]

    def test_an_image_of_the_right_size_is_left_alone(self, processor):
        pixels = noise()
        np.testing.assert_array_equal(picture_of(processor, Image.fromarray(pixels)), pixels)

    def test_images_of_one_size_but_different_cameras(self, processor):
        images = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
        together = processor(images, focal_length=[1000.0, 500.0, 1000.0], return_tensors="pt")
        assert together["image_grid_thw"].tolist() == [[1, 6, 8], [1, 12, 16], [1, 6, 8]]
        one_by_one = [
            processor(image, focal_length=focal_length, return_tensors="pt")["pixel_values"]
            for image, focal_length in zip(images, [1000.0, 500.0, 1000.0], strict=True)
        ]
        torch.testing.assert_close(together["pixel_values"], torch.cat(one_by_one), atol=1e-6, rtol=0)

    @pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
    @pytest.mark.parametrize("focal_length", [300.0, 999.0, 2500.0])
    def test_both_backends_agree_within_a_grey_level(self, focal_length):
        image = Image.fromarray(noise(300, 410))
        seen = [to_picture(backend()(image, focal_length=focal_length, return_tensors="pt")) for backend in BACKENDS]
        assert np.abs(seen[0] - seen[1]).max() <= 1.01


class TestOutputs:
    def test_names_shapes_and_types(self, processor):
        features = processor([noise(), noise(64, 64)], focal_length=[1000.0, 500.0], return_tensors="pt")
        assert features["pixel_values"].shape == (48 + 64, 1536)
        assert features["image_grid_thw"].tolist() == [[1, 6, 8], [1, 8, 8]]
        assert features["focal_scale"].dtype == features["cameras"].dtype == torch.float32
        expected = [[1000, 1000, 64, 48, 96, 128, 1], [500, 500, 32, 32, 64, 64, 1]]
        assert features["cameras"].tolist() == expected
        assert "depth_labels" not in features

    def test_numpy_on_request(self, processor):
        features = processor(noise(), focal_length=1000.0, return_tensors="np")
        assert all(isinstance(value, np.ndarray) for value in features.values())

    def test_capped_images_carry_their_scale(self, processor):
        image = noise(480, 640)
        for focal_length, focal_scale in [(250.0, 0.25), (500.0, 0.5), (1000.0, 1.0)]:
            features = processor(image, focal_length=focal_length, max_pixels=640 * 480, return_tensors="pt")
            assert features["focal_scale"].tolist() == [focal_scale]
            assert features["image_grid_thw"].tolist() == [[1, 30, 40]]

    def test_labels_come_with_depth_maps(self, processor):
        depth = np.full((96, 128), 2000, np.uint16)
        maps = {"depth_maps": [depth, None], "depth_scale": 1000}
        features = processor([noise(), noise(64, 64)], focal_length=1000.0, return_tensors="pt", **maps)
        assert torch.equal(features["depth_labels"][0], torch.full((96, 128), 2.0))
        assert features["depth_labels"][1] is None

    def test_a_dense_map_is_reduced_to_what_the_model_sees(self, processor):
        depth = np.full((480, 640), 3.0, np.float32)
        features = processor(noise(480, 640), focal_length=2000.0, depth_maps=depth, return_tensors="pt")
        assert features["image_grid_thw"].tolist() == [[1, 16, 20]]
        assert torch.equal(features["depth_labels"][0], torch.full((256, 320), 3.0))

    def test_the_number_of_patches_is_known_beforehand(self, processor):
        for size in [(96, 128), (480, 640), (1000, 333)]:
            features = processor(noise(*size), focal_length=700.0, return_tensors="pt")
            assert processor.get_number_of_image_patches(*size, {"focal_length": 700.0}) == len(
                features["pixel_values"]
            )


class TestImagesAsPeopleHaveThem:
    """Every mode becomes the RGB picture that one sees."""

    GREY = noise(channels=1)[..., 0]
    RGB = noise()

    def check(self, processor, image, expected, tolerance=0):
        if expected.ndim == 2:
            expected = expected[..., None].repeat(3, -1)
        difference = np.abs(picture_of(processor, image).astype(int) - expected.astype(int))
        assert difference.max() <= tolerance

    def test_grey(self, processor):
        self.check(processor, Image.fromarray(self.GREY), self.GREY)

    def test_black_and_white(self, processor):
        self.check(processor, Image.fromarray(self.GREY > 99), 255 * (self.GREY > 99))

    @pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32])
    def test_16_bits_are_scaled_not_clipped(self, processor, dtype):
        image = Image.fromarray((self.GREY.astype(np.int64) * 257).astype(dtype))
        assert image.mode.startswith("I")
        self.check(processor, image, self.GREY)

    def test_16_bit_png_and_pgm_files(self, processor, tmp_path):
        for name in ("photo.png", "photo.pgm", "photo.tif"):
            Image.fromarray(self.GREY.astype(np.uint16) * 257).save(tmp_path / name)
            self.check(processor, Image.open(tmp_path / name), self.GREY)

    def test_floats_in_0_to_1_or_255(self, processor):
        self.check(processor, Image.fromarray(self.GREY / np.float32(255)), self.GREY)
        self.check(processor, Image.fromarray(self.GREY.astype(np.float32)), self.GREY)

    def test_palette(self, processor):
        image = Image.fromarray(self.RGB).quantize(64)
        self.check(processor, image, np.asarray(image.convert("RGB")))

    def test_cmyk(self, processor):
        image = Image.fromarray(self.RGB).convert("CMYK")
        self.check(processor, image, np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_alpha_is_composited_on_white(self, processor, mode):
        colours = Image.fromarray(self.RGB).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
        alpha = Image.fromarray(self.GREY)
        image = colours.convert(mode)
        image.putalpha(alpha)
        share = self.GREY[..., None] / 255
        expected = np.asarray(colours.convert("RGB")) * share + 255 * (1 - share)
        self.check(processor, image, np.rint(expected), tolerance=1)

    def test_a_transparent_colour(self, processor, tmp_path):
        image = Image.fromarray(self.RGB)
        path = tmp_path / "keyed.png"
        image.save(path, transparency=tuple(self.RGB[0, 0].tolist()))
        expected = self.RGB.copy()
        expected[(self.RGB[0, 0] == self.RGB).all(-1)] = 255
        self.check(processor, Image.open(path), expected)

    def test_arrays_and_tensors(self, processor):
        for pixels in (self.RGB, self.RGB.astype(np.int64), self.RGB / 255, self.RGB.astype(np.uint16) * 257):
            self.check(processor, pixels, self.RGB)
        tensor = torch.from_numpy(self.RGB).permute(2, 0, 1)
        for pixels in (tensor, tensor / 255, tensor.float()):
            self.check(processor, pixels, self.RGB)
        self.check(processor, (tensor / 255).bfloat16(), self.RGB, tolerance=1)
        self.check(processor, self.GREY, self.GREY)
        self.check(processor, self.GREY[None], self.GREY)
        rgba = np.concatenate([self.RGB, np.full_like(self.RGB[..., :1], 255)], -1)
        self.check(processor, rgba, self.RGB)

    def test_floats_need_no_rescaling_on_request(self, processor):
        features = processor(self.RGB / 255, focal_length=1000.0, do_rescale=False, return_tensors="pt")
        np.testing.assert_allclose(to_picture(features), self.RGB, atol=0.01)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, processor, orientation, tmp_path):
        exif = Image.Exif()
        exif[Tag.Orientation] = orientation
        exif.get_ifd(ExifTags.IFD.Exif)[Tag.FocalLengthIn35mmFilm] = 28
        path = tmp_path / "photo.png"
        Image.fromarray(noise(64, 96)).save(path, exif=exif)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        focal_length = 28 * math.hypot(96, 64) / math.hypot(36, 24)
        # With f_c = f the image keeps its size.
        for source in (path, str(path), Image.open(path)):
            features = processor(source, canonical_focal_length=focal_length, return_tensors="pt")
            np.testing.assert_allclose(to_picture(features), expected, atol=0.01)
            camera = Camera.from_row(features["cameras"][0])
            assert (camera.height, camera.width) == expected.shape[:2]
            assert (camera.source, camera.fx) == ("exif", pytest.approx(focal_length))

    def test_exif_survives_what_pipelines_do_to_an_image(self, processor, tmp_path):
        from transformers.image_utils import load_image

        exif = Image.Exif()
        exif[Tag.Orientation] = 6
        exif.get_ifd(ExifTags.IFD.Exif)[Tag.FocalLengthIn35mmFilm] = 28
        Image.fromarray(noise(64, 96)).save(tmp_path / "photo.jpg", exif=exif)
        features = processor(load_image(str(tmp_path / "photo.jpg")), return_tensors="pt")
        camera = Camera.from_row(features["cameras"][0])
        assert (camera.source, camera.width, camera.height) == ("exif", 64, 96)

    def test_corrupt_exif_is_ignored_with_a_warning(self, processor):
        image = Image.fromarray(self.RGB)
        image.info["exif"] = b"Exif\x00\x00garbage"
        with pytest.warns(UserWarning, match="EXIF data are corrupt and ignored"):
            picture = picture_of(processor, image)
        np.testing.assert_array_equal(picture, self.RGB)

    def test_base64(self, processor):
        stream = io.BytesIO()
        Image.fromarray(self.RGB).save(stream, "PNG")
        text = base64.b64encode(stream.getvalue()).decode()
        for source in (text, f"data:image/png;base64,{text}"):
            self.check(processor, source, self.RGB)

    def test_urls(self, processor, monkeypatch):
        stream = io.BytesIO()
        Image.fromarray(self.GREY.astype(np.uint16) * 257).save(stream, "PNG")

        class Session:
            content = stream.getvalue()

            def get(self, url, follow_redirects):
                assert url == "https://example.org/photo.png"
                return self

            def raise_for_status(self):
                pass

        monkeypatch.setattr("depthvlm.processing.images_depthvlm.get_session", Session)
        self.check(processor, "https://example.org/photo.png", self.GREY)

    def test_nested_lists_are_flattened_in_order(self, processor):
        images = [noise(seed=seed) for seed in range(3)]
        nested = processor([[images[0]], [], images[1:]], focal_length=1000.0, return_tensors="pt")
        flat = processor(images, focal_length=1000.0, return_tensors="pt")
        assert torch.equal(nested["pixel_values"], flat["pixel_values"])


class TestBadImages:
    @pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (0, 5), (5, 0)])
    def test_sides_of_0_or_1_pixel(self, processor, size):
        with pytest.raises(ValueError, match=r"Image 1 has .* needs at least 2 pixels on a side"):
            processor([noise(), Image.new("RGB", size)], focal_length=1000.0)

    @pytest.mark.parametrize("size", [(4020, 20), (5, 1001)])
    def test_extreme_aspect_ratios(self, processor, size):
        with pytest.raises(ValueError, match="more than 200 times the other"):
            processor(Image.new("RGB", size), focal_length=1000.0)

    def test_not_an_image(self, processor, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(ValueError, match=r"notes.txt is not an image that Pillow can read"):
            processor(str(tmp_path / "notes.txt"))
        with pytest.raises(TypeError, match="only a single or a list"):
            processor(5)

    def test_a_truncated_file(self, processor, tmp_path):
        path = tmp_path / "photo.jpg"
        Image.fromarray(noise()).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(ValueError, match="Image 1 cannot be decoded, it may be truncated"):
            processor([noise(), Image.open(path)], focal_length=1000.0)
        with pytest.raises(ValueError, match=r"photo.jpg cannot be decoded, it may be truncated"):
            processor(path)

    @pytest.mark.parametrize("source", ["nowhere.png", "some/nowhere.jpg", "abcd"])
    def test_a_missing_file(self, processor, source):
        with pytest.raises(FileNotFoundError, match=f"There is no image file '{source}'"):
            processor(source)

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (np.full((64, 64, 3), np.nan), "NaN or infinite"),
            (np.full((64, 64, 3), -0.5), "undo any normalisation"),
            (np.full((64, 64, 3), 300.0), "values from 300 to 300"),
            (np.full((64, 64, 3), 70000), "values from 70000 to 70000"),
            (np.zeros((64, 64, 2), np.uint8), "channel|1, 3 or 4"),
        ],
    )
    def test_arrays_that_are_no_pictures(self, processor, pixels, message):
        with pytest.raises(ValueError, match=message):
            processor(pixels, focal_length=1000.0)

    def test_a_mode_that_has_no_colours(self, processor):
        with pytest.raises(ValueError, match=r"mode 'La'.*Pass it as RGB"):
            processor(Image.new("La", (64, 64)), focal_length=1000.0)

    @pytest.mark.parametrize("name", ["focal_length", "fov", "intrinsics", "depth_maps", "depth_scale"])
    def test_as_many_as_images(self, processor, name):
        values = {"intrinsics": [500.0, 500.0, 64.0, 48.0], "depth_maps": np.ones((96, 128)), "depth_scale": 1.0}
        options = {"depth_maps": [np.ones((96, 128))] * 2} if name == "depth_scale" else {}
        options[name] = [values.get(name, 90.0)] * 3
        if name in ("depth_maps", "depth_scale"):
            options["focal_length"] = 1000.0
        with pytest.raises(ValueError, match=rf"`{name}` has 3 entries for 2 image\(s\)"):
            processor([noise(), noise()], **options)

    @pytest.mark.parametrize("value", [0, -1, math.nan])
    def test_focal_lengths(self, processor, value):
        with pytest.raises(ValueError, match="`focal_length` must be a finite number above 0"):
            processor(noise(), focal_length=[value])


class TestBudget:
    @pytest.mark.parametrize(
        "given", [{"min_pixels": 4096, "max_pixels": 65536}, {"size": {"shortest_edge": 4096, "longest_edge": 65536}}]
    )
    def test_at_construction_and_in_a_call(self, given):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            built = DepthVLMImageProcessorPil(**given)
            assert dict(built.size) == {"shortest_edge": 4096, "longest_edge": 65536}
            inside = built(noise(480, 640), focal_length=1000.0, return_tensors="pt")
            called = DepthVLMImageProcessorPil()(noise(480, 640), focal_length=1000.0, return_tensors="pt", **given)
        assert inside["image_grid_thw"].tolist() == called["image_grid_thw"].tolist() == [[1, 14, 18]]
        assert inside["focal_scale"].tolist() == called["focal_scale"].tolist()

    def test_what_is_not_given_stays(self):
        built = DepthVLMImageProcessorPil(max_pixels=10**6)
        assert dict(built.size) == {"shortest_edge": 65536, "longest_edge": 10**6}
        built = DepthVLMImageProcessorPil(size={"longest_edge": 10**5})
        assert dict(built.size) == {"shortest_edge": 65536, "longest_edge": 10**5}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"max_pixels": 1000}, r"max_pixels >= 1024 \(one visual token\)"),
            ({"min_pixels": 10**7}, "min_pixels <= max_pixels"),
            ({"min_pixels": 0}, "1 <= min_pixels"),
            ({"size": {"height": 480, "width": 640}}, "`size` is a pixel budget"),
        ],
    )
    def test_bad_budgets(self, given, message):
        with pytest.raises(ValueError, match=message):
            DepthVLMImageProcessorPil(**given)
        with pytest.raises(ValueError, match=message):
            DepthVLMImageProcessorPil()(noise(), focal_length=1000.0, **given)

    def test_without_resizing_the_camera_is_the_image_s(self, processor):
        features = processor(noise(), focal_length=500.0, do_resize=False, return_tensors="pt")
        assert (features["image_grid_thw"].tolist(), features["focal_scale"].tolist()) == ([[1, 6, 8]], [0.5])
        with pytest.raises(ValueError, match="multiples of 32 pixels"):
            processor(noise(100, 128), focal_length=500.0, do_resize=False)


class TestSettings:
    def test_a_camera_at_construction_holds_until_a_call_names_one(self):
        processor = DepthVLMImageProcessorPil(focal_length=500.0)
        assert processor(noise())["cameras"][0, 0] == 500
        assert processor(noise(), fov=90.0)["cameras"][0, 0] == 64
        assert processor(noise())["cameras"][0, 0] == 500

    def test_canonical_camera_and_assumed_field_of_view(self):
        processor = DepthVLMImageProcessorPil(canonical_focal_length=200.0, assumed_fov=90.0, min_pixels=1024)
        with pytest.warns(UserWarning, match="90 degrees"):
            features = processor(noise(), return_tensors="pt")
        assert features["cameras"][0, 0] == 64
        assert features["image_grid_thw"].tolist() == [
            [1, 2 * round(96 * 200 / 64 / 32), 2 * round(128 * 200 / 64 / 32)]
        ]

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_a_canonical_camera_is_a_camera(self, value):
        with pytest.raises(ValueError, match="`canonical_focal_length` must be a finite number above 0"):
            DepthVLMImageProcessorPil(canonical_focal_length=value)

    def test_round_trip(self, tmp_path):
        settings = {"canonical_focal_length": 321.0, "assumed_fov": 50.0, "min_pixels": 2048, "max_pixels": 98765}
        for backend in BACKENDS:
            backend(**settings).save_pretrained(tmp_path)
            saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
            assert saved["image_processor_type"] == "DepthVLMImageProcessor"
            for other in BACKENDS:
                loaded = other.from_pretrained(tmp_path)
                assert loaded.to_dict() == backend(**settings).to_dict() | {"auto_map": saved["auto_map"]}
                assert (loaded.canonical_focal_length, loaded.assumed_fov) == (321.0, 50.0)
                assert dict(loaded.size) == {"shortest_edge": 2048, "longest_edge": 98765}

    def test_the_public_name_is_the_best_backend_there_is(self):
        expected = "torchvision" if is_torchvision_available() else "pil"
        assert DepthVLMImageProcessor().backend == expected


@pytest.mark.real_data
def test_real_photographs_of_every_source(shared):
    """Each sample picture, through the processor with the camera it comes with, or an assumed one."""
    processor = DepthVLMImageProcessor(max_pixels=200_000)
    folders = ["scannetpp/rgb", "ibims1/rgb", "nyuv2", "sunrgbd", "kitti", "nuscenes/samples", "ddad"]
    for folder in folders:
        paths = [
            os.path.join(root, name)
            for root, _, names in sorted(os.walk(shared / "data" / folder))
            for name in sorted(names)
            if name.endswith((".jpg", ".ppm")) or (name.endswith(".png") and "depth" not in os.path.join(root, name))
        ]
        assert paths, folder
        for path in paths[:2]:
            features = processor(path, fov=60.0, return_tensors="pt")
            assert torch.isfinite(features["pixel_values"]).all()
            assert len(features["pixel_values"]) * 256 <= 200_000
            assert 0 < features["focal_scale"].item() <= 1
