"""The registry of readers, and the files that all of them read."""

import io
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from depthvlm.benchmark.sources import SOURCES, open_source, source_class, source_names
from depthvlm.benchmark.sources.files import pinhole, read_depth_png, read_image, read_json, read_mask, read_numbers
from depthvlm.benchmark.sources.frames import FrameError, Source
from PIL import Image
from toy_source_files import no_index, spoils, write_depth, write_image, write_text

TWELVE = "argoverse2 waymo ddad nuscenes scannetpp taskonomy hm3d matterport3d sunrgbd ibims1 nyuv2 eth3d"
OURS = "nyuv2-sunrgbd kitti kitti-lidar folder lines"
DOWNLOADS = [*TWELVE.split(), *OURS.split()]  # "synthetic" has its own test: it needs no root


class TestRegistry:
    def test_the_papers_twelve_and_ours(self):
        """The published extraction stores the distance from the camera for Argoverse 2 and Waymo, z for all others."""
        assert tuple(SOURCES) == source_names() == (*TWELVE.split(), *OURS.split(), "synthetic")
        rays = [name for name in source_names() if source_class(name).published_depth == "ray"]
        assert rays == ["argoverse2", "waymo"]
        # Metres that count as measured, by the released evaluation.
        assert {name: source_class(name).depth_range for name in TWELVE.split()} == {
            **{"argoverse2": (0.05, 120), "waymo": (0.05, 70), "nuscenes": (0.05, 80), "ddad": (0.05, 120)},
            **{"scannetpp": (0.001, 10), "taskonomy": (0.005, 15), "hm3d": (0.01, 10), "matterport3d": (0.01, 10)},
            **{"sunrgbd": (0.005, 8), "nyuv2": (0.005, 10), "ibims1": (0.005, 25), "eth3d": (0.01, 50)},
        }

    @pytest.mark.parametrize("name", DOWNLOADS)
    def test_every_reader(self, name, tmp_path):
        reader = source_class(name)
        assert issubclass(reader, Source)
        assert reader.name == name
        assert reader.splits
        assert set(reader.splits) <= {"train", "test"}
        assert 0 < reader.depth_range[0] < reader.depth_range[1]
        assert reader.title
        assert reader.licence
        assert len(reader.__doc__) > 200, "the docstring says the layout"
        for root in (tmp_path / "gone", tmp_path):  # a wrong root names what was expected
            no_index(str(root), partial(open_source, name), root)

    # Metres that count as measured, by the released evaluation.

    def test_an_unknown_name_lists_those_there_are(self, tmp_path):
        every = "argoverse2, waymo, .*, kitti, kitti-lidar, folder, lines, synthetic"
        with pytest.raises(ValueError, match=f"no source 'kitty'.*{every}"):
            open_source("kitty", tmp_path)

    def test_no_reader_is_imported_before_it_is_asked_for(self):
        code = (
            "import sys, json; sys.argv = ['depthvlm']\n"
            "from depthvlm.benchmark.sources import source_names; source_names()\n"
            "print(json.dumps([m for m in sys.modules if m.startswith('depthvlm.benchmark.sources.')"
            " and not m.endswith('.frames') or m in ('scipy', 'h5py', 'pyarrow', 'torch', 'transformers')]))"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert json.loads(run.stdout) == []


class TestImages:
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.ppm"])
    def test_bytes_untouched(self, tmp_path, name):
        data = write_image(tmp_path / name, (7, 5))
        assert read_image(tmp_path / name) == (data, (7, 5))

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.ppm"])
    def test_truncated(self, tmp_path, name):
        data = write_image(tmp_path / name, (64, 48))
        steps = [(name, data[: int(share * len(data))], name) for share in (0.05, 0.5, 0.98)]
        spoils(lambda: read_image(tmp_path / name), tmp_path, *steps)

    def test_damaged_missing_empty_or_something_else(self, tmp_path):
        data = write_image(tmp_path / "a.jpg", (64, 48))
        filled = data[: len(data) // 2] + bytes(len(data) // 2)  # with zeros where the rest is missing
        spoils(lambda: read_image(tmp_path / "a.jpg"), tmp_path, ("a.jpg", filled, "truncated"))
        (tmp_path / "a.jpg").write_bytes(data + bytes(300))
        assert read_image(tmp_path / "a.jpg")[1] == (64, 48), "whole, then padded"
        steps = [
            ("a.jpg", b"", r"a\.jpg: the file is empty"),
            ("a.jpg", "<html>please log in</html>", r"a\.jpg: not an image"),
            ("a.jpg", None, r"a\.jpg: no such file"),
        ]
        spoils(lambda: read_image(tmp_path / "a.jpg"), tmp_path, *steps)
        damaged = bytearray(write_image(tmp_path / "a.png", (64, 48)))
        damaged[len(damaged) // 2] ^= 0xFF
        spoils(lambda: read_image(tmp_path / "a.png"), tmp_path, ("a.png", bytes(damaged), "damaged"))
        with pytest.raises(FrameError, match="cannot be read"):
            read_image(tmp_path)

    @pytest.mark.parametrize("name", ["a.jpg", "a.png"])
    def test_turned_by_exif(self, tmp_path, name):
        exif = Image.Exif()
        exif[0x0112] = 6
        write_image(tmp_path / name, (64, 48), exif=exif)
        with pytest.raises(FrameError, match="EXIF orientation is 6"):
            read_image(tmp_path / name)
        exif[0x0112] = 1
        data = write_image(tmp_path / name, (64, 48), exif=exif)
        assert read_image(tmp_path / name) == (data, (64, 48))


class TestDepthFiles:
    def test_all_16_bits(self, tmp_path):
        rows = [[0, 1, 255, 256], [32767, 32768, 65534, 65535]]
        write_depth(tmp_path / "a.png", rows)
        depth = read_depth_png(tmp_path / "a.png")
        assert (depth.dtype, depth.tolist()) == (np.uint16, rows)
        write_depth(tmp_path / "a.png", np.random.default_rng(0).integers(0, 65536, (40, 50)))
        data = (tmp_path / "a.png").read_bytes()
        steps = [("a.png", data[: int(share * len(data))], r"a\.png") for share in (0.1, 0.5, 0.9)]
        spoils(lambda: read_depth_png(tmp_path / "a.png"), tmp_path, *steps)

    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
    def test_a_preview_is_none(self, tmp_path, mode):
        Image.new(mode, (4, 2)).save(tmp_path / "a.png")
        with pytest.raises(FrameError, match=r"a\.png.*16 bits.*preview"):
            read_depth_png(tmp_path / "a.png")

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_masks(self, tmp_path, mode):
        picture = Image.new(mode, (3, 2))
        picture.putpixel((2, 0), 255)
        picture.save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png", (3, 2)).tolist() == [[False, False, True], [False] * 3]
        with pytest.raises(FrameError, match=r"mask of \(3, 2\), but the depth map is \(2, 3\)"):
            read_mask(tmp_path / "a.png", (2, 3))


class TestTexts:
    def test_cameras(self, tmp_path):
        matrix = [[500, 0, 320.5], [0, 501, 240.25], [0, 0, 1]]
        homogeneous = [[500, 0, 320.5, 0], [0, 501, 240.25, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        for values in ([500, 501, 320.5, 240.25], matrix, np.ravel(matrix).tolist(), homogeneous):
            assert pinhole(values, tmp_path) == (500.0, 501.0, 320.5, 240.25)

    @pytest.mark.parametrize(
        "values",
        [
            *([500, 501, 320.5], [0, 501, 320, 240], [500, -1, 320, 240], [500, 501, float("nan"), 240]),
            *([[500, 1, 320], [0, 501, 240], [0, 0, 1]], [[500, 0, 0], [0, 501, 0], [320, 240, 1]]),
            *(["a", "b", "c", "d"], [500, 501, None, 240], None),
        ],
    )
    def test_no_cameras(self, tmp_path, values):
        with pytest.raises(FrameError, match=r"camera\.txt"):
            pinhole(values, tmp_path / "camera.txt")

    def test_numbers_and_json(self, tmp_path):
        write_text(tmp_path / "a", "1.5, 2\n-3e1")
        assert read_numbers(tmp_path / "a") == [1.5, 2, -30]
        stream = io.BytesIO()
        np.save(stream, np.arange(200.0))
        for read, content, words in (
            (read_json, "1.5, 2\n-3e1", "not JSON, it may be truncated"),
            (read_numbers, "1.5 metres", "not only numbers"),
            (read_json, stream.getvalue(), "not a text file"),
        ):
            spoils(partial(read, tmp_path / "a"), tmp_path, ("a", content, words))
