"""The image processors: one resampling, what they return, budgets and settings, on every backend that is there."""

import json
import math
import os
import warnings

import numpy as np
import pytest
import torch
from depthvlm.processing import DepthVLMImageProcessor, DepthVLMImageProcessorPil
from PIL import Image
from toy_images import BACKENDS, noise, picture_of, to_picture
from transformers.utils import is_torchvision_available


@pytest.fixture(params=BACKENDS, ids=lambda one: one.__name__)
def processor(request):
    return request.param(min_pixels=1024)


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
        cameras = [1000.0, 500.0, 1000.0]
        together = processor(images, focal_length=cameras, return_tensors="pt")
        assert together["image_grid_thw"].tolist() == [[1, 6, 8], [1, 12, 16], [1, 6, 8]]
        alone = zip(images, cameras, strict=True)
        one_by_one = [processor(one, focal_length=f, return_tensors="pt")["pixel_values"] for one, f in alone]
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
        dense = np.full((480, 640), 3.0, np.float32)  # reduced to what the model sees
        features = processor(noise(480, 640), focal_length=2000.0, depth_maps=dense, return_tensors="pt")
        assert features["image_grid_thw"].tolist() == [[1, 16, 20]]
        assert torch.equal(features["depth_labels"][0], torch.full((256, 320), 3.0))

    def test_the_number_of_patches_is_known_beforehand(self, processor):
        for size in [(96, 128), (480, 640), (1000, 333)]:
            features = processor(noise(*size), focal_length=700.0, return_tensors="pt")
            known = processor.get_number_of_image_patches(*size, {"focal_length": 700.0})
            assert known == len(features["pixel_values"])


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

    @pytest.mark.parametrize("given", [{"max_pixels": 10**6}, {"size": {"longest_edge": 10**6}}])
    def test_what_is_not_given_stays(self, given):
        built = DepthVLMImageProcessorPil(**given)
        assert dict(built.size) == {"shortest_edge": 65536, "longest_edge": 10**6}

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
        cells = [round(side * 200 / 64 / 32) for side in (96, 128)]
        assert features["image_grid_thw"].tolist() == [[1, 2 * cells[0], 2 * cells[1]]]

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
