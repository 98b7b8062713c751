"""One opener for every picture: raster formats alone, whole files alone, and no more pixels than are allowed."""

import base64
import contextlib
import io
import math
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset
from depthvlm.benchmark.sources.files import read_image as read_source_image
from depthvlm.benchmark.sources.files import read_mask
from depthvlm.benchmark.sources.frames import FrameError
from depthvlm.processing import DepthVLMImageProcessorPil, read_depth
from depthvlm.processing.depth_maps_depthvlm import load_array
from depthvlm.processing.images_depthvlm import open_image, upright_image
from depthvlm.training.rows import read_depth_map, read_image
from PIL import EpsImagePlugin, Image
from toy_images import exif_of, png_of

from depthvlm.annotated_depth import AnnotatedDepth
from depthvlm.camera_files import read_camera
from depthvlm.export import read_png16
from depthvlm.video_frames import ImageSequence

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj << >> endobj\n%%EOF\n"
WMF = bytes.fromhex("d7cdc69a0000000000000000e803e8036000000000003159") + bytes(64)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """An interpreter that notes down that it was run."""
    marker, program = tmp_path / "it-was-run", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    with contextlib.suppress(Exception):  # what Pillow itself does with such bytes
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert marker.exists()
    marker.unlink()
    return marker


READERS = {
    "a path": lambda file: open_image(file),
    "bytes": lambda file: open_image(file.read_bytes()),
    "a Pillow image": lambda file: upright_image(Image.open(file)),
    "the processor": lambda file: DepthVLMImageProcessorPil()(str(file), focal_length=100.0),
    "bytes of a row": lambda file: read_image({"bytes": file.read_bytes(), "path": None}),
    "a map of a row": lambda file: read_depth_map({"bytes": file.read_bytes(), "path": None}, 1000),
    "a depth map": lambda file: read_depth(file, 1000),
    "a map of a line": lambda file: AnnotatedDepth(str(file), 1000).read(),
    "a source": read_source_image,
    "a mask": lambda file: read_mask(file, (64, 64)),
    "a result": read_png16,
    "a frame": lambda file: ImageSequence(file.parent, 30.0),
}


@pytest.mark.parametrize("document", [POSTSCRIPT, PDF, WMF], ids=["postscript", "pdf", "wmf"])
@pytest.mark.parametrize("reader", READERS)
def test_documents_are_no_pictures(reader, document, tmp_path, ghostscript):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "photo.png").write_bytes(document)
    with pytest.raises((ValueError, OSError, FrameError)):
        READERS[reader](folder / "photo.png")
    assert not ghostscript.exists()


def test_nothing_else_opens_pictures():
    """`Image.open` is in the one opener; where else it is called, it names its formats."""
    for folder in ("benchmark", "depthvlm", "hub_cards", "modeling_depthvlm", "processing", "training"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            for call in re.findall(r"Image\.open\(.*", file.read_text(encoding="utf-8")):
                assert "formats=" in call, f"{file}: {call}"


@pytest.mark.parametrize("read", [open_image, read_depth, read_camera, read_source_image, load_array, read_png16])
def test_a_pipe_is_refused_at_once(read, tmp_path):
    pipe = tmp_path / "photo.npy"
    os.mkfifo(pipe)
    pool = ThreadPoolExecutor(1)
    attempt = pool.submit(read, pipe)
    pool.shutdown(wait=False)
    assert "pipe" in str(attempt.exception(timeout=5))


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("read", [read_depth, load_array, read_camera, lambda file: read_depth_map(file.read_bytes())])
def test_an_array_that_claims_more_than_it_holds(read, tmp_path):
    file = tmp_path / "depth.npy"
    file.write_bytes(npy_header((50000, 100000)) + bytes(64))
    with pytest.raises(ValueError, match="claims 20,000,000,000 bytes"):
        read(file)


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    values = np.asfortranarray(np.arange(12, dtype=">f8").reshape(3, 4))
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", depth=values, other=values[:1])
    np.savez(tmp_path / "one.npz", metres=values)
    for name in ("a.npy", "a.npz", "one.npz"):
        np.testing.assert_array_equal(load_array(tmp_path / name), values)
        np.testing.assert_array_equal(load_array((tmp_path / name).read_bytes()), values)
    np.testing.assert_array_equal(load_array(tmp_path / "a.npz", "other"), values[:1])
    with pytest.raises(ValueError, match="no array 'x' in it, only depth, other"):
        load_array(tmp_path / "a.npz", "x")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_array(tmp_path / "o.npy")


PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
SMOOTH = Image.fromarray(PICTURE[::12, ::16].copy())


class TestEveryForm:
    """The same picture in every form that a signature promises gives the same pixels, one by one and many at once."""

    @pytest.fixture
    def forms(self, tmp_path, monkeypatch):
        data = png_of(Image.fromarray(PICTURE))
        text = base64.b64encode(data).decode()
        assert len(text) > 4096
        folder = tmp_path / "a folder, ü"
        folder.mkdir()
        file = folder / "my photo.png"
        file.write_bytes(data)
        monkeypatch.setenv("HOME", str(folder))
        return {
            "path": file,
            "text path": str(file),
            "home": "~/my photo.png",
            "file URL": file.as_uri(),
            "base64": text,
            "data URL": f"data:image/png;base64,{text}",
            "bytes": data,
            "stream": io.BytesIO(data),
            "open file": file.open("rb"),
            "row": {"bytes": data, "path": None},
            "row with a path": {"bytes": None, "path": str(file)},
            "channels first": torch.from_numpy(PICTURE).permute(2, 0, 1),
            "floats": torch.from_numpy(PICTURE).float() / 255,
        }

    def test_predict_and_processor(self, forms, nano):
        processor = nano.processor.image_processor
        expected = processor(PICTURE, fov=60.0, return_tensors="pt")["pixel_values"]
        for name, form in forms.items():
            assert torch.equal(processor(form, fov=60.0, return_tensors="pt")["pixel_values"], expected), name
            many = processor([form], fov=60.0, return_tensors="pt")["pixel_values"]
            assert torch.equal(many, expected), name
        predictions = nano.predict(list(forms.values()), fov=60.0, batch_size=len(forms))
        for name, prediction in zip(forms, predictions, strict=True):
            np.testing.assert_array_equal(np.asarray(prediction.image), PICTURE, err_msg=name)
        of_files = ("path", "text path", "home", "file URL", "row with a path")
        sources = [prediction.source and prediction.source.name for prediction in predictions]
        assert sources == ["my photo.png" if name in of_files else None for name in forms]

    def test_many(self, nano):
        column = Dataset.from_dict({"image": [Image.fromarray(PICTURE)] * 2})["image"]
        batch = np.stack([PICTURE, PICTURE])
        tensor, generator = torch.from_numpy(batch).permute(0, 3, 1, 2), (one for one in batch)
        for many in (column, batch, tensor, batch / 255, generator):
            pictures = [np.asarray(prediction.image) for prediction in nano.predict(many, fov=[60.0, 60.0])]
            np.testing.assert_array_equal(pictures, batch)
        text = "<|image_pad|>" * 2
        features = nano.processor(images=(one for one in batch), text=text, fov=60.0)
        assert len(features["image_grid_thw"]) == 2

    def test_messages(self, nano, tmp_path):
        for images, message in (
            ([PICTURE, np.zeros((1, 1, 3), np.uint8)], r"^Image 1 has 1x1 pixels \(width x height\)"),
            ("s3://bucket/a.png", "s3://bucket/a.png: images are read from http"),
            ({"image": PICTURE}, r'must have "bytes" or a "path", got \[\'image\'\]. Of a data set'),
            (tmp_path, "is not a file but a folder"),
        ):
            with pytest.raises(ValueError, match=message):
                nano.predict(images, fov=60.0)


class TestBigPhotographs:
    """Cameras are of the photograph as given, results of the size at which it was read."""

    @pytest.mark.parametrize("name", ["big.jpg", "big.png", "big.tif", "turned.jpg"])
    def test_they_are_reduced_with_their_camera(self, name, monkeypatch, tmp_path, nano):
        monkeypatch.setattr("depthvlm.processing.images_depthvlm.REDUCED_ABOVE", 20_000)
        exif = exif_of(FocalLengthIn35mmFilm=24, Orientation=6 if name == "turned.jpg" else 1)
        smooth = SMOOTH.resize((301, 201), Image.Resampling.BICUBIC)
        smooth.save(tmp_path / name, exif=exif.tobytes())
        width, height = (101, 151) if name == "turned.jpg" else (151, 101)
        with pytest.warns(UserWarning, match=rf"has 301x201 pixels .* is read at {151}x{101}"):
            [prediction] = nano.predict(tmp_path / name)
        assert prediction.depth.shape == prediction.image.size[::-1] == (height, width)
        # 24 mm on film of 43.27 mm across the diagonal, in pixels of the photograph, then of the half of it.
        full = 24 * math.hypot(301, 201) / math.hypot(36, 24)
        assert prediction.camera.source == "exif"
        assert prediction.camera.fx == pytest.approx(full * width / (2 * width - 1), rel=1e-3)
        [given] = nano.predict(tmp_path / name, focal_length=300.0)
        assert given.camera.fx == pytest.approx(300 * width / (2 * width - 1), rel=1e-4)
        if name != "turned.jpg":
            half = np.asarray(smooth.resize((151, 101), Image.Resampling.BOX), dtype=float)
            assert np.abs(np.asarray(prediction.image, dtype=float) - half).mean() < 3

    def test_a_bomb_is_refused_by_name(self, tmp_path, nano):
        header = bytearray(png_of(Image.fromarray(PICTURE)))
        header[16:24] = (20000).to_bytes(4, "big") + (20000).to_bytes(4, "big")
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        (tmp_path / "bomb.png").write_bytes(header)
        for read in (nano.predict, open_image, read_depth, lambda file: read_image(str(file))):
            with pytest.raises(ValueError, match=r"bomb\.png .*20000x20000 pixels.*250,000,000"):
                read(tmp_path / "bomb.png")
        with pytest.raises(FrameError, match=r"bomb\.png.*20000x20000"):
            read_source_image(tmp_path / "bomb.png")
        Image.fromarray(PICTURE).save(tmp_path / "photo.png")
        with pytest.raises(ValueError, match=r"64x48 pixels.*more than the 3,000"):
            nano.predict(tmp_path / "photo.png", fov=60.0, max_image_pixels=3000)

    def test_108_megapixels(self, tmp_path):
        Image.new("RGB", (12000, 9000), (90, 120, 150)).save(tmp_path / "p108.jpg", quality=30)
        image = open_image(tmp_path / "p108.jpg")
        assert image.size == (6000, 4500)
        assert image.getpixel((5, 5)) == pytest.approx((90, 120, 150), abs=2)
        assert read_source_image(tmp_path / "p108.jpg")[1] == (12000, 9000)


def test_heic(tmp_path, nano):
    from pillow_heif import from_pillow

    smooth = SMOOTH.resize((96, 72), Image.Resampling.BICUBIC)
    from_pillow(smooth).save(tmp_path / "IMG 1.HEIC", exif=exif_of(FocalLengthIn35mmFilm=24).tobytes())
    [prediction] = nano.predict(tmp_path / "IMG 1.HEIC")
    assert np.abs(np.asarray(prediction.image, dtype=float) - np.asarray(smooth, dtype=float)).mean() < 4
    assert prediction.camera.fx == pytest.approx(24 * math.hypot(96, 72) / math.hypot(36, 24), rel=1e-3)
