"""A row's files and cameras in every form, distances along rays, and the released annotation lines."""

import io
import json
import math

import numpy as np
import pytest
from depthvlm.processing import DEPTH_PROMPT, DEPTH_REPLY, Camera, DepthVLMImageProcessor, DepthVLMProcessor
from depthvlm.training.collator import DepthDataCollator
from depthvlm.training.rows import BadSampleError, read_columns, read_depth_map, read_image
from PIL import ExifTags, Image
from toy_tokenizer import build_toy_tokenizer

from depthvlm.geometry import ray_to_z

RAW = np.array([[0, 1000, 2500], [500, 4000, 60000]], dtype=np.uint16)
METRES = np.array([[0, 1, 2.5], [0.5, 4, 60]], dtype=np.float32)


def pixels(height: int = 96, width: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


class TestFiles:
    def test_images_in_every_form(self, tmp_path):
        array = pixels()
        image = Image.fromarray(array)
        image.save(tmp_path / "a.png")
        data = encoded(image)
        forms = [
            str(tmp_path / "a.png"),
            tmp_path / "a.png",
            data,
            {"bytes": data, "path": None},
            {"bytes": data, "path": "gone.png"},
            {"bytes": None, "path": str(tmp_path / "a.png")},
            f"file://{tmp_path}/a.png",
            image,
            array,
            array.tolist(),
        ]
        for form in forms:
            np.testing.assert_array_equal(np.asarray(read_image(form)), array)
        np.testing.assert_array_equal(np.asarray(read_image("a.png", str(tmp_path))), array)
        np.testing.assert_array_equal(np.asarray(read_image({"bytes": None, "path": "a.png"}, str(tmp_path))), array)

    def test_depth_files_that_people_have(self, tmp_path):
        """By path and as bytes, with a space and an umlaut in the name."""
        folder = tmp_path / "Küche 1"
        folder.mkdir()
        np.save(folder / "a.npy", METRES[..., None])
        np.save(folder / "millimetres.npy", RAW.astype(np.int32))
        np.savez(folder / "a.npz", depth=METRES)
        Image.fromarray(METRES).save(folder / "a.tiff")
        (folder / "a.pfm").write_bytes(b"Pf\n3 2\n-1.0\n" + METRES[::-1].astype("<f4").tobytes())
        for file in folder.iterdir():
            scale = 1000 if file.stem == "millimetres" else None
            for form in (str(file), file.read_bytes(), {"bytes": None, "path": str(file)}):
                np.testing.assert_allclose(read_depth_map(form, scale), METRES, err_msg=file.name)

    def test_depth_in_every_form(self, tmp_path):
        image = Image.fromarray(RAW)
        image.save(tmp_path / "a.png")
        np.save(tmp_path / "a.npy", METRES)
        forms = [
            str(tmp_path / "a.png"),
            encoded(image),
            {"bytes": encoded(image, "TIFF"), "path": None},  # what `datasets` makes of a 16-bit PIL image
            image,
            Image.fromarray(RAW.astype(np.int32)),
            RAW,
            RAW.tolist(),
        ]
        for form in forms:
            np.testing.assert_allclose(read_depth_map(form, 1000), METRES)
        for form in (
            str(tmp_path / "a.npy"),
            (tmp_path / "a.npy").read_bytes(),
            Image.fromarray(METRES),
            METRES.tolist(),
        ):
            np.testing.assert_array_equal(read_depth_map(form), METRES)
        np.testing.assert_array_equal(read_depth_map("a.npy", root=str(tmp_path)), METRES)

    def test_list_or_one(self, processor):
        one, many = {"depth": RAW.tolist()}, {"depth": [RAW.tolist(), None]}
        image = Image.fromarray(pixels(64, 96))
        collator = DepthDataCollator(processor)
        for row, images in ((one, 1), (many, 2)):
            row |= {"images": [image] * images, "depth_scale": 1000, "focal_length": 100.0}
            labels = collator([row])["depth_labels"]
            np.testing.assert_allclose(labels[0], METRES)
            assert labels[1:] == [None] * (images - 1)

    def test_scale_and_focal_length_for_each_image(self, processor):
        image = Image.fromarray(pixels(64, 96))
        row = {"images": [image, image], "depth": [RAW, RAW], "depth_scale": [1000, 500], "focal_length": [90.0, 120.0]}
        batch = DepthDataCollator(processor)([row])
        np.testing.assert_allclose(batch["depth_labels"][1], METRES * 2)
        assert batch["cameras"][:, 0].tolist() == [90.0, 120.0]
        with pytest.raises(BadSampleError, match="`focal_length` has 2 entries for 1 image"):
            DepthDataCollator(processor)([{**row, "images": [image], "depth": [RAW], "depth_scale": 1000}])

    def test_intrinsics_of_one_or_each(self, processor):
        image = Image.fromarray(pixels(64, 96))
        matrix, four = [[90, 0, 48], [0, 91, 32], [0, 0, 1]], [120, 121, 50, 30]
        collator = DepthDataCollator(processor)
        for value, expected in (
            (matrix, [[90, 91, 48, 32]] * 2),
            (four, [four] * 2),
            ([matrix, four], [[90, 91, 48, 32], four]),
            (np.array([matrix, matrix]), [[90, 91, 48, 32]] * 2),
        ):
            row = {"images": [image, image], "intrinsics": value}
            assert collator([row])["cameras"][:, :4].tolist() == expected

    def test_exif_tells_the_camera_of_a_null(self, processor):
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
        stream = io.BytesIO()
        Image.fromarray(pixels()).save(stream, "JPEG", exif=exif)
        row = {"image": stream.getvalue(), "depth": np.ones((96, 128)), "focal_length": None}
        focal = DepthDataCollator(processor)([row])["cameras"][0, 0].item()
        assert focal == pytest.approx(28 * math.hypot(128, 96) / math.hypot(36, 24), rel=1e-6)

    def test_columns(self):
        names = read_columns({"depth": "z", "focal_length": None}, "story")
        assert {"images", "image", "messages", "z", "story", "intrinsics", "depth_path", "__row__"} <= set(names)
        assert "depth" not in names


class TestRays:
    def test_by_hand(self):
        # A 4x2 map of an 8x4 image with f = 4, centre (4, 2): at the map's scale f = 2, centre (2, 1). Its first pixel
        # has its centre at (0.5, 0.5): 0.75 to the left and 0.25 up on the plane z = 1.
        camera = Camera(4.0, 4.0, 4.0, 2.0, 8, 4, "intrinsics")
        z = ray_to_z(np.full((2, 4), 3.0, dtype=np.float32), camera)
        near, far = 3 / math.sqrt(1 + 0.25**2 + 0.25**2), 3 / math.sqrt(1 + 0.75**2 + 0.25**2)
        np.testing.assert_allclose(z, [[far, near, near, far]] * 2, rtol=1e-6)
        assert z.dtype == np.float32

    def test_a_wall(self, processor):
        # A wall at z = 5 m, as a sensor of distances sees it.
        matrix = [[100.0, 0, 60.0], [0, 110.0, 50.0], [0, 0, 1]]
        rows, columns = np.mgrid[0:96, 0:128] + 0.5
        points = np.stack([(columns - 60) / 100 * 5, (rows - 50) / 110 * 5, np.full(rows.shape, 5.0)])
        distance = np.linalg.norm(points, axis=0).astype(np.float32)
        distance[0, 0] = 0
        row = {"image": pixels(), "depth": distance, "depth_type": "ray_distance", "intrinsics": matrix}
        collator = DepthDataCollator(processor)
        label = collator([row])["depth_labels"][0].numpy()
        assert label[0, 0] == 0
        np.testing.assert_allclose(label.ravel()[1:], 5, rtol=1e-5)
        same = collator([{**row, "depth_type": "z_depth"}])["depth_labels"][0].numpy()
        np.testing.assert_array_equal(same, distance)


def line(**changes) -> dict:
    size = {
        "original_rgb_size": [96, 64],
        "original_depth_size": [3, 2],
        "canonical_size": [1, 1],
        "canonical_fx": 1000,
    }
    points = {"pixel_coords": [[1, 0]], "depth": [1.0], "depth_type": "z_depth"}
    files = {"image": "rgb/a.png", "depth_path": "depth/a.png", "depth_scale": 1000.0, "original_fx": 100.0}
    return {**files, **size, "prompt": DEPTH_PROMPT, "solution": DEPTH_REPLY, **points, **changes}


class TestAnnotationLines:
    @pytest.fixture
    def root(self, tmp_path):
        for folder in ("rgb", "depth"):
            (tmp_path / folder).mkdir()
        Image.fromarray(pixels(64, 96)).save(tmp_path / "rgb" / "a.png")
        Image.fromarray(RAW).save(tmp_path / "depth" / "a.png")
        return tmp_path

    def collate(self, processor, root, **changes) -> dict:
        return DepthDataCollator(processor, image_root=str(root), depth_root=str(root))([line(**changes)])

    def label(self, processor, root, **changes) -> np.ndarray:
        return self.collate(processor, root, **changes)["depth_labels"][0].numpy()

    def test_a_line(self, processor, root):
        batch = self.collate(processor, root)
        np.testing.assert_allclose(batch["depth_labels"][0], METRES)
        assert batch["cameras"][0, 0] == 100
        labels = batch["labels"][0]
        assert processor.tokenizer.decode(labels[labels >= 0]) == DEPTH_REPLY + "<|im_end|>\n"
        text = processor.tokenizer.decode(batch["input_ids"][0])
        assert text.startswith(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_st"
        )
        assert f"<|vision_end|>{DEPTH_PROMPT}<|im_end|>\n" in text

    def test_its_camera_belongs_to_the_size_that_it_says(self, processor, root):
        # 200 pixels at 192x128 are 100 in the copy of half the size; fy, cx and cy follow from these.
        cameras = self.collate(processor, root, original_rgb_size=[192, 128], original_fx=200.0)["cameras"]
        assert cameras[0, :4].tolist() == [100, 100, 48, 32]
        with pytest.raises(BadSampleError, match="of a picture of 100x100 pixels, and it has 96x64"):
            self.collate(processor, root, original_rgb_size=[100, 100])

    def test_paths_that_begin_with_a_slash(self, processor, root):
        np.testing.assert_allclose(self.label(processor, root, image="/rgb/a.png", depth_path="/depth/a.png"), METRES)

    @pytest.mark.parametrize("solution", [None, ""])
    def test_no_solution_is_depth_alone(self, processor, root, solution):
        assert (self.collate(processor, root, solution=solution)["labels"] == -100).all()

    def test_no_measurement(self, processor, root):
        Image.fromarray(np.array([[65535, 512, 1024], [0, 0, 0]], np.uint16)).save(root / "depth" / "a.png")
        assert self.label(processor, root, depth_scale=512.0).tolist() == [[0, 1, 2], [0, 0, 0]]

    def test_valid_range_of_a_source_named_in_the_path(self, processor, root):
        (root / "ibims1").mkdir()
        Image.fromarray(RAW).save(root / "ibims1" / "a.png")
        label = self.label(processor, root, depth_path="ibims1/a.png", depth_scale=1000.0)
        np.testing.assert_allclose(label, np.where(METRES > 25, 0, METRES))

    def test_rotated_bits(self, processor, root):
        # SUN RGB-D: 9 m is beyond the first 8.192 m, which a division by 8000 gets right.
        true = np.array([[1000, 8191, 9000], [640, 0, 8192]], dtype=np.uint16)
        Image.fromarray((true << 3) | (true >> 13)).save(root / "depth" / "a.png")
        np.testing.assert_allclose(self.label(processor, root, depth_scale=8000.0), true / 1000)

    def test_distances_of_waymo_become_z(self, processor, root):
        # 100 pixels at 96x64 are 3.125 at 3x2. A corner's centre is 1/3.125 = 0.32 across and 0.5/3.125 = 0.16 down
        # on the plane z = 1, so its ray is sqrt(1 + 0.1024 + 0.0256) long there; that of the middle sqrt(1.0256).
        (root / "waymo").mkdir()
        Image.fromarray(np.full((2, 3), 2000, np.uint16)).save(root / "waymo" / "a.png")
        label = self.label(processor, root, depth_path="waymo/a.png")
        corner, middle = 2 / 1.128**0.5, 2 / 1.0256**0.5
        np.testing.assert_allclose(label, [[corner, middle, corner]] * 2, rtol=1e-6)
        ours = {"intrinsics": [100.0, 100.0, 48.0, 32.0, 96, 64]}  # as this package writes lines, in z
        assert (self.label(processor, root, depth_path="waymo/a.png", **ours) == 2).all()
        points = {"depth_path": None, "pixel_coords": [[0, 1], [1, 0]], "depth": [2.0, 2.0], "image": "waymo/b.png"}
        Image.fromarray(pixels(64, 96)).save(root / "waymo" / "b.png")
        label = self.label(processor, root, **points)
        np.testing.assert_allclose(label, [[0, middle, 0], [corner, 0, 0]], rtol=1e-6)

    def test_raster_and_masks(self, processor, root):
        metres = np.array([[1, np.inf, 3], [4, 5, 6]], dtype="<f4")
        metres.tofile(root / "depth" / "raw")
        Image.fromarray(np.array([[0, 255, 255], [255, 255, 255]], np.uint8)).save(root / "depth" / "valid.png")
        Image.fromarray(np.array([[1, 1, 1, 1, 1, 0]] * 4, np.uint8)).save(root / "depth" / "transp.png")
        changes = {"depth_path": "depth/raw", "depth_format": "binary_float32"}
        assert self.label(processor, root, **changes).tolist() == [[1, 0, 3], [4, 5, 6]]
        changes |= {"mask_valid_path": "depth/valid.png", "mask_transp_path": "depth/transp.png"}
        assert self.label(processor, root, **changes).tolist() == [[0, 0, 0], [4, 5, 0]]
        with pytest.raises(BadSampleError, match=r"row 0 of the batch \(depth/raw\).*holds 6 float32 values"):
            self.label(processor, root, **changes, original_depth_size=[4, 2])
        with pytest.raises(BadSampleError, match="`depth_format` is 'float16', expected 'binary_float32'"):
            self.label(processor, root, depth_path="depth/raw", depth_format="float16")

    def test_unknown_focal_length(self, processor, root):
        with pytest.raises(BadSampleError, match="focal length is null"):
            self.collate(processor, root, original_fx=None)

    def test_depth_not_wanted(self, processor, root):
        options = {"image_root": str(root), "columns": {"depth": None}}
        assert "depth_labels" not in DepthDataCollator(processor, **options)([line()])


@pytest.mark.real_data
class TestRealLines:
    def test_scannetpp(self, shared):
        folder = shared / "data" / "scannetpp"
        processor = DepthVLMProcessor(DepthVLMImageProcessor(), build_toy_tokenizer())
        row = json.loads((folder / "examples.jsonl").read_text().splitlines()[0])
        collator = DepthDataCollator(processor, image_root=str(folder / "rgb"), depth_root=str(folder / "depth"))
        batch = collator([row])
        label = batch["depth_labels"][0]
        assert label.shape == (192, 256)
        columns, rows = np.array(row["pixel_coords"]).T
        np.testing.assert_allclose(label[rows, columns], row["depth"], rtol=1e-6)
        # canonical_size is 1339x1004; whole visual tokens are 32 pixels, patches 16.
        assert batch["image_grid_thw"].tolist() == [[1, round(1004 / 32) * 2, round(1339 / 32) * 2]]
        assert batch["cameras"][0, 0].item() == pytest.approx(1434.29)
        assert batch["focal_scale"].tolist() == [1.0]

    def test_ibims_points(self, shared, processor):
        folder = shared / "data" / "ibims1"
        row = json.loads((folder / "ibims1_val.jsonl").read_text().splitlines()[0])
        batch = DepthDataCollator(processor, image_root=str(folder))([row])
        label = batch["depth_labels"][0].numpy()
        assert label.shape == (480, 640)
        assert np.count_nonzero(label) == len({tuple(point) for point in row["pixel_coords"]})
        columns, rows = np.array(row["pixel_coords"]).T
        np.testing.assert_allclose(label[rows, columns], row["depth"], rtol=1e-6)
        np.testing.assert_allclose(batch["cameras"][0, :4], row["intrinsics"][:4], rtol=1e-6)
        assert (batch["labels"] == -100).all()
