"""The image processors on every kind of image that people have, and on what is none, on every backend that is there."""

import math

import numpy as np
import pytest
import torch
from depthvlm.processing import Camera
from PIL import Image, ImageOps
from toy_images import BACKENDS, exif_of, noise, picture_of, png_of, to_picture
from transformers.image_utils import load_image


@pytest.fixture(params=BACKENDS, ids=lambda one: one.__name__)
def processor(request):
    return request.param(min_pixels=1024)


class TestImagesAsPeopleHaveThem:
    """Every mode becomes the RGB picture that one sees."""

    GREY = noise(channels=1)[..., 0]
    RGB = noise()

    def check(self, processor, image, expected, tolerance=0):
        if expected.ndim == 2:
            expected = expected[..., None].repeat(3, -1)
        difference = np.abs(picture_of(processor, image).astype(int) - expected.astype(int))
        assert difference.max() <= tolerance

    def test_16_bits_and_floats_in_0_to_1_or_255_are_scaled_not_clipped(self, processor, tmp_path):
        wide = self.GREY.astype(np.int64) * 257
        images = [Image.fromarray(wide.astype(dtype)) for dtype in (np.uint16, ">u2", np.int32)]
        assert all(image.mode.startswith("I") for image in images)
        for name in ("photo.png", "photo.pgm", "photo.tif"):
            images[0].save(tmp_path / name)
            images.append(Image.open(tmp_path / name))
        floats = [self.GREY / np.float32(255), self.GREY.astype(np.float32)]
        for image in (*images, *map(Image.fromarray, floats)):
            self.check(processor, image, self.GREY)

    @pytest.mark.parametrize("white", [1.0, 255.0, 255, 65535])
    def test_one_stray_value_does_not_decide_the_range(self, processor, white):
        values = self.RGB / 255 * white
        pixels = values.astype(np.float32) if isinstance(white, float) else np.rint(values).astype(np.int64)
        for stray in (1.01 * white, 1.5 * white, -0.02 * white):
            changed = pixels.copy()
            changed[3, 4, 1] = np.ceil(stray) if isinstance(white, int) else stray
            expected = self.RGB.copy()
            expected[3, 4, 1] = 0 if stray < 0 else 255
            with pytest.warns(UserWarning, match=rf"taken for a picture of 0 to {white:g}, and the 0.00% beyond"):
                self.check(processor, changed, expected)

    def test_a_brightened_picture_is_clipped_at_white(self, processor):
        bright = self.RGB.astype(np.float32) / 255 * 1.5
        expected = np.rint(np.minimum(bright, 1) * 255)
        for image, seen in ((bright, expected), (Image.fromarray(bright[..., 0]), expected[..., 0])):
            with pytest.warns(UserWarning, match="taken for a picture of 0 to 1"):
                self.check(processor, image, seen)

    def test_grey_black_and_white_palette_and_cmyk(self, processor):
        self.check(processor, Image.fromarray(self.GREY), self.GREY)
        self.check(processor, Image.fromarray(self.GREY > 99), 255 * (self.GREY > 99))
        colours = Image.fromarray(self.RGB)
        for image in (colours.quantize(64), colours.convert("CMYK")):
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
        rgba = np.concatenate([self.RGB, np.full_like(self.RGB[..., :1], 255)], -1)
        for pixels in (tensor, tensor / 255, tensor.float(), rgba):
            self.check(processor, pixels, self.RGB)
        self.check(processor, (tensor / 255).bfloat16(), self.RGB, tolerance=1)
        for pixels in (self.GREY, self.GREY[None]):
            self.check(processor, pixels, self.GREY)

    def test_floats_need_no_rescaling_on_request(self, processor):
        features = processor(self.RGB / 255, focal_length=1000.0, do_rescale=False, return_tensors="pt")
        np.testing.assert_allclose(to_picture(features), self.RGB, atol=0.01)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, processor, orientation, tmp_path):
        path = tmp_path / "photo.png"
        exif = exif_of(Orientation=orientation, FocalLengthIn35mmFilm=28)
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
        exif = exif_of(Orientation=6, FocalLengthIn35mmFilm=28)
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

    def test_urls(self, processor, monkeypatch):
        class Session:
            content = png_of(Image.fromarray(self.GREY.astype(np.uint16) * 257))

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
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            *(
                (Image.new("RGB", size), r"Image 1 has .* needs at least 2 pixels on a side")
                for size in ((1, 50), (50, 1), (1, 1), (0, 5), (5, 0))
            ),
            *((Image.new("RGB", size), "more than 200 times the other") for size in ((4020, 20), (5, 1001))),
            (np.full((64, 64, 3), np.nan), "NaN or infinite"),
            (np.full((64, 64, 3), -0.5), "undo any normalisation"),
            (np.full((64, 64, 3), 300.0), "values from 300 to 300"),
            (np.full((64, 64, 3), 70000), "values from 70000 to 70000"),
            (np.zeros((64, 64, 2), np.uint8), "channel|1, 3 or 4"),
            (Image.new("La", (64, 64)), r"mode 'La'.*Pass it as RGB"),
        ],
    )
    def test_what_is_no_picture(self, processor, image, message):
        with pytest.raises(ValueError, match=message):
            processor([noise(), image], focal_length=1000.0)

    def test_not_an_image_and_a_truncated_file(self, processor, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(ValueError, match=r"notes.txt is not an image that can be read"):
            processor(str(tmp_path / "notes.txt"))
        with pytest.raises(TypeError, match="only a single or a list"):
            processor(5)
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

    @pytest.mark.parametrize("name", ["focal_length", "fov", "intrinsics", "depth_maps", "depth_scale"])
    def test_as_many_as_images(self, processor, name):
        values = {"intrinsics": [500.0, 500.0, 64.0, 48.0], "depth_maps": np.ones((96, 128)), "depth_scale": 1.0}
        options = {"depth_maps": [np.ones((96, 128))] * 2, "fov": 90.0, name: [values.get(name, 90.0)] * 3}
        with pytest.raises(ValueError, match=rf"`{name}` has 3 entries for 2 image\(s\)"):
            processor([noise(), noise()], **options)
