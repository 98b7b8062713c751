"""The registry of readers, and the files that all of them read."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from depthvlm.benchmark.sources import SOURCES, open_source, source_class, source_names
from depthvlm.benchmark.sources.files import pinhole, read_depth_png, read_image, read_json, read_mask, read_numbers
from depthvlm.benchmark.sources.frames import FrameError, Source, SourceError
from PIL import Image
from toy_source_files import truncate, write_depth, write_image, write_text

TWELVE = "argoverse2 waymo ddad nuscenes scannetpp taskonomy hm3d matterport3d sunrgbd ibims1 nyuv2 eth3d"
OURS = "nyuv2-sunrgbd kitti kitti-lidar folder lines"
DOWNLOADS = [*TWELVE.split(), *OURS.split()]  # "synthetic" has its own test: it needs no root


class TestRegistry:
    def test_the_papers_twelve_and_ours(self):
        assert source_names() == (*TWELVE.split(), *OURS.split(), "synthetic")
        assert tuple(SOURCES) == source_names()

    @pytest.mark.parametrize("name", DOWNLOADS)
    def test_every_reader(self, name):
        reader = source_class(name)
        assert issubclass(reader, Source)
        assert reader.name == name
        assert set(reader.splits) <= {"train", "test"}
        assert reader.splits
        assert 0 < reader.depth_range[0] < reader.depth_range[1]
        assert reader.title
        assert reader.licence
        assert len(reader.__doc__) > 200, "the docstring says the layout"

    # Metres that count as measured, by the released evaluation.
    @pytest.mark.parametrize(
        ("name", "low", "high"),
        [
            ("argoverse2", 0.05, 120),
            ("waymo", 0.05, 70),
            ("nuscenes", 0.05, 80),
            ("ddad", 0.05, 120),
            ("scannetpp", 0.001, 10),
            ("taskonomy", 0.005, 15),
            ("hm3d", 0.01, 10),
            ("matterport3d", 0.01, 10),
            ("sunrgbd", 0.005, 8),
            ("nyuv2", 0.005, 10),
            ("ibims1", 0.005, 25),
            ("eth3d", 0.01, 50),
        ],
    )
    def test_ranges(self, name, low, high):
        assert source_class(name).depth_range == (low, high)

    def test_what_the_published_labels_are(self):
        """The published extraction stores the distance from the camera for Argoverse 2 and Waymo, z for all others."""
        rays = [name for name in source_names() if source_class(name).published_depth == "ray"]
        assert rays == ["argoverse2", "waymo"]

    def test_an_unknown_name_lists_those_there_are(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no source 'kitty'.*argoverse2, waymo, .*, kitti, kitti-lidar, folder, lines, synthetic"
        ):
            open_source("kitty", tmp_path)

    @pytest.mark.parametrize("name", DOWNLOADS)
    def test_a_wrong_root_names_what_was_expected(self, name, tmp_path):
        with pytest.raises(SourceError, match=str(tmp_path / "gone")):
            open_source(name, tmp_path / "gone").index("test")
        with pytest.raises(SourceError, match=str(tmp_path)):
            open_source(name, tmp_path).index("test")

    def test_options_reach_the_reader(self, tmp_path):
        write_image(tmp_path / "rgb/a.png", (4, 2))
        write_depth(tmp_path / "depth/a.png", [[512] * 4] * 2)
        write_text(tmp_path / "intrinsics.txt", "2 2 2 1")
        source = open_source("folder", tmp_path, depth_scale=256)
        assert source.read(source.index("test")[0]).metres().max() == 2

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
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
    def test_truncated(self, tmp_path, name, share):
        write_image(tmp_path / name, (64, 48))
        truncate(tmp_path / name, share)
        with pytest.raises(FrameError, match=name):
            read_image(tmp_path / name)

    def test_filled_with_zeros_where_the_rest_is_missing(self, tmp_path):
        data = write_image(tmp_path / "a.jpg", (64, 48))
        (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
        with pytest.raises(FrameError, match="truncated"):
            read_image(tmp_path / "a.jpg")
        (tmp_path / "a.jpg").write_bytes(data + bytes(300))
        assert read_image(tmp_path / "a.jpg")[1] == (64, 48), "whole, then padded"

    def test_a_damaged_png(self, tmp_path):
        data = bytearray(write_image(tmp_path / "a.png", (64, 48)))
        data[len(data) // 2] ^= 0xFF
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(FrameError, match="damaged"):
            read_image(tmp_path / "a.png")

    def test_missing_empty_or_something_else(self, tmp_path):
        with pytest.raises(FrameError, match=r"gone\.jpg: no such file"):
            read_image(tmp_path / "gone.jpg")
        (tmp_path / "empty.jpg").touch()
        with pytest.raises(FrameError, match=r"empty\.jpg: the file is empty"):
            read_image(tmp_path / "empty.jpg")
        (tmp_path / "page.jpg").write_text("<html>please log in</html>")
        with pytest.raises(FrameError, match=r"page\.jpg: not an image"):
            read_image(tmp_path / "page.jpg")
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
        assert depth.dtype == np.uint16
        assert depth.tolist() == rows

    @pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
    def test_a_preview_is_none(self, tmp_path, mode):
        Image.new(mode, (4, 2)).save(tmp_path / "a.png")
        with pytest.raises(FrameError, match=r"a\.png.*16 bits.*preview"):
            read_depth_png(tmp_path / "a.png")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_truncated(self, tmp_path, share):
        write_depth(tmp_path / "a.png", np.random.default_rng(0).integers(0, 65536, (40, 50)))
        truncate(tmp_path / "a.png", share)
        with pytest.raises(FrameError, match=r"a\.png"):
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
        expected = (500.0, 501.0, 320.5, 240.25)
        matrix = [[500, 0, 320.5], [0, 501, 240.25], [0, 0, 1]]
        flat = [500, 0, 320.5, 0, 501, 240.25, 0, 0, 1]
        homogeneous = [[500, 0, 320.5, 0], [0, 501, 240.25, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        for values in ([500, 501, 320.5, 240.25], matrix, flat, homogeneous):
            assert pinhole(values, tmp_path) == expected

    @pytest.mark.parametrize(
        "values",
        [
            [500, 501, 320.5],
            [0, 501, 320, 240],
            [500, -1, 320, 240],
            [500, 501, float("nan"), 240],
            [[500, 1, 320], [0, 501, 240], [0, 0, 1]],
            [[500, 0, 0], [0, 501, 0], [320, 240, 1]],
            ["a", "b", "c", "d"],
            [500, 501, None, 240],
            None,
        ],
    )
    def test_no_cameras(self, tmp_path, values):
        with pytest.raises(FrameError, match=r"camera\.txt"):
            pinhole(values, tmp_path / "camera.txt")

    def test_numbers_and_json(self, tmp_path):
        write_text(tmp_path / "a", "1.5, 2\n-3e1")
        assert read_numbers(tmp_path / "a") == [1.5, 2, -30]
        with pytest.raises(FrameError, match="not JSON, it may be truncated"):
            read_json(tmp_path / "a")
        write_text(tmp_path / "a", "1.5 metres")
        with pytest.raises(FrameError, match="not only numbers"):
            read_numbers(tmp_path / "a")
        stream = io.BytesIO()
        np.save(stream, np.arange(200.0))
        (tmp_path / "a").write_bytes(stream.getvalue())
        with pytest.raises(FrameError, match="not a text file"):
            read_json(tmp_path / "a")
