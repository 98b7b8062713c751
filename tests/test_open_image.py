"""One opener for every picture: raster formats alone, whole files alone, and no more pixels than are allowed."""

import contextlib
import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from depthvlm.benchmark.frames import FrameError
from depthvlm.benchmark.sources.files import read_image as read_source_image
from depthvlm.benchmark.sources.files import read_mask
from depthvlm.processing import DepthVLMImageProcessorPil, read_depth
from depthvlm.processing.depth_maps_depthvlm import load_array
from depthvlm.processing.images_depthvlm import open_image, upright_image
from depthvlm.training.row_files import read_depth_map, read_image
from PIL import EpsImagePlugin, Image

from depthvlm.annotated_depth import AnnotatedDepth
from depthvlm.export import read_png16
from depthvlm.inputs import read_intrinsics
from depthvlm.video_frames import ImageSequence

REPOSITORY = Path(__file__).resolve().parents[1]

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
    "a Pillow image": lambda file: upright_image(Image.open(file), 0),
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


@pytest.mark.parametrize("read", [open_image, read_depth, read_intrinsics, read_source_image, load_array, read_png16])
def test_a_pipe_is_refused_at_once(read, tmp_path):
    pipe = tmp_path / "photo.npy"
    os.mkfifo(pipe)
    errors = []

    def attempt():
        try:
            read(pipe)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert "pipe" in str(errors[0])


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    "read", [read_depth, load_array, read_intrinsics, lambda file: read_depth_map(file.read_bytes())]
)
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
